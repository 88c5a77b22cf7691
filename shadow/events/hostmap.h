/* SPDX-License-Identifier: BSD-2-Clause */
/* Private to shadow/events: the open files behind a struct umbra_hostmap, and the mapping at an
 * address. */
#ifndef SHADOW_EVENTS_HOSTMAP_H
#define SHADOW_EVENTS_HOSTMAP_H

#include <pthread.h>
#include <umbra/events.h>
#include "shadow/events/uapi.h"

struct umbra_hostmap {
	int pagemap, maps;
	int kpageflags;         /* -1 without the right to it */
	int khugepaged, vmstat; /* counters of pages that the kernel moves by itself, or -1 */
	uint64_t collapsed, migrated, reclaimed; /* what they said when the map was opened */
	bool scan, pfns, procmap;
	pthread_mutex_t maps_lock; /* reading /proc/PID/maps as text moves its offset */
};

/* One mapping of the host (a VMA). @flags: UMBRA_VMA_*. @file: has an inode, shared anonymous
 * memory too. */
struct host_vma {
	struct hva_range hva;
	uint32_t flags;
	bool file;
};

/* Returns: 0, -ENOENT (nothing is mapped at @hva), -errno. */
int hostmap_vma(struct umbra_hostmap *map, hva_t hva, struct host_vma *vma);

/*
 * hostmap_peek - flags of one page, EXCLUSIVE and the frame only if the kernel has no PAGEMAP_SCAN.
 * A quarter of the price of umbra_hostmap_query(): enough to see whether a page is there at all.
 */
int hostmap_peek(struct umbra_hostmap *map, hva_t hva, uint32_t *flags);

/* Has khugepaged collapsed, has anything migrated, was anything reclaimed (not by MADV_PAGEOUT), since @map was opened? */
bool hostmap_has_collapsed(const struct umbra_hostmap *map);
bool hostmap_has_reclaimed(const struct umbra_hostmap *map);
bool hostmap_has_migrated(const struct umbra_hostmap *map);

/*
 * hostmap_large_folio - is a page of [@start, @end) part of a larger folio that is not mapped by a PMD? Such a folio may be split by
 * advice to one of its pages, and then kernels since 6.12 move its all-zero pages to the zero page. True if it cannot be known.
 */
bool hostmap_large_folio(struct umbra_hostmap *map, uint64_t start, uint64_t end);

/* Would a private write to a page with these flags give it another frame? */
static inline bool page_write_moves_private(uint32_t flags)
{
	return (flags & UMBRA_PAGE_PRESENT) &&
	       ((flags & (UMBRA_PAGE_ZERO | UMBRA_PAGE_FILE)) || !(flags & UMBRA_PAGE_EXCLUSIVE));
}

#endif
