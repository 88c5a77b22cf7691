/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 WITH Linux-syscall-note */
/*
 * The boundary between the kernel module and user space: /dev/umbra, its ioctls, its shared pages.
 *
 * A descriptor is one subscription to the mmu_notifier callouts of one address space. What is
 * mapped from it:
 *   offset 0                    struct umbra_ntf_state, one page, then the ring: read-only
 *   UMBRA_NTF_OFFSET_CONSUMER   struct umbra_ntf_consumer, one page, then the accessed bitmap:
 *                               read and write, MAP_SHARED
 * The callout never waits: a full ring drops the record and raises @lost.
 */
#ifndef UMBRA_ABI_NOTIFIER_H
#define UMBRA_ABI_NOTIFIER_H

#include <linux/types.h>
#ifdef __KERNEL__
#include <linux/ioctl.h>
#endif

#define UMBRA_NTF_DEVICE "/dev/umbra"
#define UMBRA_NTF_MAGIC  0x46544e55 /* "UNTF" */
#define UMBRA_NTF_ABI    1
#define UMBRA_NTF_PAGE   4096

#define UMBRA_NTF_OFFSET_STATE    0ULL
#define UMBRA_NTF_OFFSET_CONSUMER (1ULL << 32)

#define UMBRA_NTF_RING_ORDER_MIN 4  /* 16 records */
#define UMBRA_NTF_RING_ORDER_MAX 20 /* 1 Mi records; the module's max_ring_order may be less */

#define UMBRA_NTF_PAGE_SHIFT_MAX  30
#define UMBRA_NTF_BITMAP_BITS_MAX (1ULL << 40)

/* A byte range of the subscribed address space; both ends on pages, start < end. */
struct umbra_ntf_range {
	__u64 start, end;
};

enum umbra_ntf_attach_flags {
	UMBRA_NTF_ATTACH_PID = 1 << 0, /* the address space of @pid, not the caller's own */
};

/*
 * struct umbra_ntf_attach - argument of UMBRA_NTF_ATTACH, once for a descriptor.
 * @size: sizeof this struct. @flags: enum umbra_ntf_attach_flags. @pid: in the caller's namespace; 0 for its own.
 * @ranges: address of @nr_ranges struct umbra_ntf_range, sorted, apart from each other.
 * @ring_order: log2 of the records in the ring. @watermark: poll wakes at so many unread records;
 *   0 is 1. @page_shift: one bit of the accessed bitmap stands for 1 << page_shift bytes (12 .. 30).
 * @bitmap_bits: room for later UMBRA_NTF_RANGES; 0 is as many as @ranges need.
 * @reserved: zero. @state_bytes, @consumer_bytes: out, what to map at the two offsets.
 */
struct umbra_ntf_attach {
	__u32 size;
	__u32 flags;
	__s32 pid;
	__u32 nr_ranges;
	__u64 ranges;
	__u32 ring_order;
	__u32 watermark;
	__u32 page_shift;
	__u32 reserved0;
	__u64 bitmap_bits;
	__u64 reserved[2];
	__u64 state_bytes;
	__u64 consumer_bytes;
};

/*
 * struct umbra_ntf_ranges - argument of UMBRA_NTF_RANGES: from now on these ranges.
 * The bitmap's bits mean the new ranges: whoever calls clears it first.
 */
struct umbra_ntf_ranges {
	__u32 size;
	__u32 nr_ranges;
	__u64 ranges;
	__u64 reserved[2];
};

/*
 * ATTACH errors: EFAULT; EINVAL a value out of range, ranges not sorted, or reserved not zero; E2BIG
 *   size is of a newer ABI; EBUSY attached already; ESRCH no such process, or it has no memory; EPERM
 *   pid without CAP_SYS_PTRACE over that memory's namespace; ENOSPC past a limit of the module;
 *   ENOMEM; EINTR a signal came, call again. After an error nothing is attached.
 * RANGES errors: EIO not the address space that attached; EBUSY an invalidation is open anywhere in
 *   the address space, call again; ENOSPC past max_ranges, or the bitmap has too few bits; ENOTCONN
 *   not attached; ESRCH the address space is gone; EFAULT, EINVAL, E2BIG, ENOMEM, EINTR as above.
 *   After an error the ranges are those of before.
 */
#define UMBRA_NTF_ATTACH _IOWR('u', 0xb0, struct umbra_ntf_attach)
#define UMBRA_NTF_RANGES _IOW('u', 0xb1, struct umbra_ntf_ranges)

enum umbra_ntf_kind {
	UMBRA_NTF_START,
	UMBRA_NTF_END,
	UMBRA_NTF_RELEASE,
};

/* Values of the kernel's enum mmu_notifier_event, fixed here; for people, never for correctness. */
enum umbra_ntf_event {
	UMBRA_NTF_UNMAP,
	UMBRA_NTF_CLEAR,
	UMBRA_NTF_PROTECTION_VMA,
	UMBRA_NTF_PROTECTION_PAGE,
	UMBRA_NTF_SOFT_DIRTY,
	UMBRA_NTF_EVENT_RELEASE,
	UMBRA_NTF_MIGRATE,
	UMBRA_NTF_EXCLUSIVE,
	UMBRA_NTF_OTHER = 255,
};

enum umbra_ntf_flags {
	UMBRA_NTF_BLOCKABLE = 1 << 0,
	UMBRA_NTF_OWNER = 1 << 1,   /* the caller runs in the subscribed address space */
	UMBRA_NTF_RECLAIM = 1 << 2, /* PF_MEMALLOC: the kernel frees memory */
	UMBRA_NTF_KTHREAD = 1 << 3, /* kswapd, khugepaged, ksmd ... */
};

/*
 * struct umbra_ntf_record - one callout.
 * @start, @end: bytes as the kernel gave them; @end may be ~0. @time_ns: CLOCK_MONOTONIC.
 * @begun: the state's @begun after this callout. @who: the caller's gettid() when it
 * runs in the subscribed address space, else 0.
 */
struct umbra_ntf_record {
	__u64 start, end;
	__u64 time_ns;
	__u64 begun;
	__s32 who;
	__u8 kind;
	__u8 event;
	__u16 flags;
};

/*
 * struct umbra_ntf_state - written by the kernel inside the callout, before it returns.
 * @seq: odd while the fields of its cache line change together. @begun, @ended: counted over the
 * ranges subscribed; begun - ended are open, all inside [@open_lo, @open_hi). @head: records ever
 * written; @lost: records dropped because the ring was full. @dead: the address space is gone;
 * that counts as one begun and ended.
 * @young_asked, @young_yes: callouts of clear_flush_young, clear_young and test_young, and how many
 * of them found a bit set.
 */
struct umbra_ntf_state {
	__u32 magic, abi;
	__u32 size, record_size;
	__u64 nr_records;
	__u64 bitmap_bits;
	__u32 page_shift;
	__u32 reserved0;
	__u64 reserved1[3];

	__u32 seq;
	__u32 dead;
	__u64 begun, ended;
	__u64 open_lo, open_hi;
	__u64 head, lost;
	__u64 reserved2;

	__u64 young_asked, young_yes;
	__u64 reserved3[6];
};

/* @tail: records ever read, written by the consumer. A lie costs the liar its records. */
struct umbra_ntf_consumer {
	__u64 tail;
	__u64 reserved[7];
};

#ifdef __cplusplus
#define UMBRA_NTF_ASSERT(x) static_assert(x, #x)
#else
#define UMBRA_NTF_ASSERT(x) _Static_assert(x, #x)
#endif
UMBRA_NTF_ASSERT(sizeof(struct umbra_ntf_range) == 16);
UMBRA_NTF_ASSERT(sizeof(struct umbra_ntf_attach) == 80);
UMBRA_NTF_ASSERT(sizeof(struct umbra_ntf_ranges) == 32);
UMBRA_NTF_ASSERT(sizeof(struct umbra_ntf_record) == 40);
UMBRA_NTF_ASSERT(sizeof(struct umbra_ntf_state) == 192);
UMBRA_NTF_ASSERT(sizeof(struct umbra_ntf_consumer) == 64);
UMBRA_NTF_ASSERT(__builtin_offsetof(struct umbra_ntf_attach, ranges) == 16);
UMBRA_NTF_ASSERT(__builtin_offsetof(struct umbra_ntf_attach, bitmap_bits) == 40);
UMBRA_NTF_ASSERT(__builtin_offsetof(struct umbra_ntf_attach, state_bytes) == 64);
UMBRA_NTF_ASSERT(__builtin_offsetof(struct umbra_ntf_record, who) == 32);
UMBRA_NTF_ASSERT(__builtin_offsetof(struct umbra_ntf_state, seq) == 64);
UMBRA_NTF_ASSERT(__builtin_offsetof(struct umbra_ntf_state, lost) == 112);
UMBRA_NTF_ASSERT(__builtin_offsetof(struct umbra_ntf_state, young_asked) == 128);

#endif
