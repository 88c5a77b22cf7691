/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 WITH Linux-syscall-note */
/*
 * The boundary between a guest and vmm: ports, the boot information page, host calls. Freestanding.
 *
 * A guest starts in 64-bit mode with every vCPU at its ELF entry point: rdi = guest-physical address
 * of struct guest_boot_info, rsi = vCPU number, rsp undefined, interrupts off, all memory mapped
 * guest-virtual = guest-physical (from the guest's view paging is off).
 */
#ifndef UMBRA_ABI_GUEST_H
#define UMBRA_ABI_GUEST_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
#endif

#define GUEST_PORT_SERIAL \
	0x3f8 /* out 8: a byte to the console; rep outsb: a line in one exit. in 0x3fd: line status */
#define GUEST_PORT_EXIT 0xf4 /* out 32: ends the machine with this code; 0 is success           */
#define GUEST_PORT_CLOCK_LO \
	0x518 /* in 32: nanoseconds since start, low half; latches the high half  */
#define GUEST_PORT_CLOCK_HI \
	0x51c /* in 32: the latched high half                                     */
#define GUEST_PORT_HOSTCALL \
	0x520 /* out 32: guest-physical address of a struct guest_hostcall        */

/* Model-specific registers a guest may read and write; any other is a guest fault (#GP). */
#define GUEST_MSR_EFER      0xc0000080 /* read: LME|LMA; writes of the same value             */
#define GUEST_MSR_FS_BASE   0xc0000100
#define GUEST_MSR_GS_BASE   0xc0000101
#define GUEST_MSR_APIC_BASE 0x0000001b /* read only: bit 8 set on vCPU 0                      */
#define GUEST_MSR_TSC       0x00000010 /* read only                                           */

#define GUEST_BOOT_MAGIC 0x41524d55 /* "UMRA" */
#define GUEST_ARGS_MAX   1024

struct guest_boot_info {
	uint32_t magic;
	uint32_t size;   /* of this struct, bytes                                                 */
	uint64_t memory; /* bytes of guest memory, from guest-physical 0                          */
	uint64_t
		free_base; /* first byte after image and boot information, 2M aligned              */
	uint32_t vcpus;
	uint32_t page_kind; /* enum guest_page_kind                                         */
	uint32_t backing;   /* enum guest_backing                                           */
	uint32_t can_swap;  /* the host has swap                                            */
	uint64_t seed;      /* of --chaos, 0 when calm                                      */
	char args[GUEST_ARGS_MAX]; /* what followed "--", separated by one blank; NUL terminated  */
	uint32_t sees_2m;          /* the host tells where it maps by 2M: 2M leaves are possible  */
	uint32_t reserved;         /* 0 */
};

enum guest_page_kind { GUEST_PAGES_4K = 0, GUEST_PAGES_THP = 1, GUEST_PAGES_HUGETLB = 2 };
enum guest_backing { GUEST_BACKING_ANON = 0, GUEST_BACKING_MEMFD = 1 };

/*
 * Host calls: the guest asks the host to act on [gpa, gpa + len) of guest memory, 4K aligned. When the call
 * returns, the host has done it and no vCPU uses an old translation. With hugetlb memory DISCARD and PROTECT
 * take whole 2M pages: -EINVAL for anything else.
 * @ret: 0 or a negative errno (Linux numbers); for some calls a count.
 */
enum guest_hostcall_nr {
	GUEST_CALL_NOP = 0,
	GUEST_CALL_ARENA =
		1, /* chaos may discard this range from now on; without one it keeps all contents */
	GUEST_CALL_DISCARD =
		2, /* MADV_DONTNEED (anon), hole punch (memfd): reads as zero                */
	GUEST_CALL_PROTECT =
		3, /* mprotect read-only; the first write to a page lifts it and is counted  */
	GUEST_CALL_PROTECT_HITS =
		4, /* ret: writes that met PROTECT since start, all ranges: one a page and PROTECT,
	   the guest's or vmm's own (an answer written there, what rep ins reads)           */
	GUEST_CALL_SPLIT =
		5, /* host maps it by 4K from now on, contents kept; -ENOTSUP: hugetlb       */
	GUEST_CALL_COLLAPSE =
		6, /* MADV_COLLAPSE, contents kept: each 2M that holds something becomes one page;
	   -EINVAL: nothing there; -ENOTSUP: pages 4k or hugetlb                    */
	GUEST_CALL_SWAPOUT =
		7, /* MADV_PAGEOUT; ret: pages that left memory; -ENOTSUP: hugetlb, or without
	   swap anon                                                                */
	GUEST_CALL_REMAP =
		8, /* mremap away and back, contents kept; -ENOTSUP: hugetlb                 */
	GUEST_CALL_FORK =
		9, /* a child process keeps a copy-on-write view; ret: its number            */
	GUEST_CALL_FORK_SUM =
		10, /* arg: child; val: GUEST_SUM of the range as the child sees it; ends it  */
	GUEST_CALL_LOG_RESET =
		11, /* forget which pages were accessed and written                            */
	GUEST_CALL_LOG_READ =
		12, /* arg: gpa of a buffer for the accessed bitmap of the range, then the dirty one:
				    * one bit a page, each rounded up to 8 bytes. Does not count itself.     */
	GUEST_CALL_CHECK =
		13, /* ret: violations found by check and audit now                            */
	GUEST_CALL_LEAVES =
		14, /* val: 4K leaves in the range | 2M leaves << 32                            */
	GUEST_CALL_FREE =
		15, /* MADV_FREE: contents, or zero, until written again; -ENOTSUP: memfd or hugetlb */
	GUEST_CALL_NR
};

struct guest_hostcall {
	uint32_t nr;       /* in  enum guest_hostcall_nr */
	uint32_t reserved; /* in  0 */
	uint64_t gpa;      /* in  bytes */
	uint64_t len;      /* in  bytes */
	uint64_t arg;      /* in */
	uint64_t val;      /* out */
	int64_t ret;       /* out */
};

/* The checksum of FORK_SUM: FNV-1a, 64 bits, over 8-byte words. */
static inline uint64_t guest_sum(const uint64_t *p, uint64_t words)
{
	uint64_t h = 0xcbf29ce484222325ULL;

	for (uint64_t i = 0; i < words; i++)
		h = (h ^ p[i]) * 0x100000001b3ULL;
	return h;
}

/* Exit codes of vmm (its process exit status). */
enum vmm_exit {
	VMM_EXIT_OK = 0,           /* the guest reported success                                  */
	VMM_EXIT_GUEST_FAIL = 1,   /* the guest reported a failure                                */
	VMM_EXIT_USAGE = 2,        /* bad arguments                                               */
	VMM_EXIT_GUEST_CRASH = 3,  /* the guest did what no guest may: fault, escape attempt ...  */
	VMM_EXIT_INTERNAL = 4,     /* our error, or the tables were found wrong                   */
	VMM_EXIT_CANNOT_RUN = 77,  /* this host lacks something: no /dev/kvm, no hugepages ...    */
	VMM_EXIT_INTERRUPTED = 130 /* Ctrl-C                                                      */
};

#endif
