/* SPDX-License-Identifier: BSD-2-Clause */
/* What the kernel's ABI has and the headers of Debian 12 lack: own definitions, checked by feature
 * tests at run time. */
#ifndef SHADOW_EVENTS_UAPI_H
#define SHADOW_EVENTS_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* 6.1 */
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* 6.13 */
#define MADV_GUARD_REMOVE  103
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* /proc/PID/pagemap, one 64-bit word a page. */
#define PM_PFN_MASK       ((1ULL << 55) - 1)
#define PM_MMAP_EXCLUSIVE (1ULL << 56)
#define PM_UFFD_WP        (1ULL << 57)
#define PM_FILE           (1ULL << 61)
#define PM_SWAP           (1ULL << 62)
#define PM_PRESENT        (1ULL << 63)

/* PAGEMAP_SCAN, 6.7: categories of a page and the ioctl on /proc/PID/pagemap. */
#define UMBRA_PM_IS_WRITTEN (1ULL << 1)
#define UMBRA_PM_IS_FILE    (1ULL << 2)
#define UMBRA_PM_IS_PRESENT (1ULL << 3)
#define UMBRA_PM_IS_SWAPPED (1ULL << 4)
#define UMBRA_PM_IS_PFNZERO (1ULL << 5)
#define UMBRA_PM_IS_HUGE    (1ULL << 6)

struct umbra_pm_region {
	__u64 start, end; /* bytes, out */
	__u64 categories; /* out */
};

struct umbra_pm_scan {
	__u64 size, flags;
	__u64 start, end; /* bytes, in */
	__u64 walk_end;   /* out: where it stopped */
	__u64 vec, vec_len, max_pages;
	__u64 category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define UMBRA_PAGEMAP_SCAN _IOWR('f', 16, struct umbra_pm_scan)

/* PROCMAP_QUERY, 6.11: the mapping at an address, an ioctl on /proc/PID/maps. */
#define UMBRA_VMA_READ   0x01
#define UMBRA_VMA_WRITE  0x02
#define UMBRA_VMA_EXEC   0x04
#define UMBRA_VMA_SHARED 0x08

struct umbra_procmap_query {
	__u64 size, query_flags, query_addr;                /* in */
	__u64 vma_start, vma_end, vma_flags, vma_page_size; /* out */
	__u64 vma_offset, inode;                            /* out */
	__u32 dev_major, dev_minor;
	__u32 vma_name_size, build_id_size;
	__u64 vma_name_addr, build_id_addr;
};
#define UMBRA_PROCMAP_QUERY _IOWR('f', 17, struct umbra_procmap_query)

/* userfaultfd beyond bit 12. */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13) /* 6.4 */
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14) /* 6.6 */
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15) /* 6.7 */
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16) /* 6.8 */
#endif

#ifndef _UFFDIO_MOVE
#define _UFFDIO_MOVE 0x05
struct uffdio_move {
	__u64 dst, src, len, mode; /* in */
	__s64 move;                /* out: bytes moved or -errno */
};
#define UFFDIO_MOVE _IOWR(UFFDIO, _UFFDIO_MOVE, struct uffdio_move)
#endif

#ifndef _UFFDIO_POISON
#define _UFFDIO_POISON 0x08
struct uffdio_poison {
	struct uffdio_range range; /* in */
	__u64 mode;                /* in */
	__s64 updated;             /* out: bytes or -errno */
};
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif

#ifndef PIDFD_SELF_THREAD
#define PIDFD_SELF_THREAD (-10000)
#endif

#endif
