/* SPDX-License-Identifier: BSD-2-Clause */
/* Private to shadow/events: the open files behind a struct umbra_hostmap, and the mapping at an
 * address. */
#ifndef SHADOW_EVENTS_HOSTMAP_H
#define SHADOW_EVENTS_HOSTMAP_H

#include <pthread.h>
#include <stdatomic.h>
#include <umbra/events.h>
#include "shadow/events/uapi.h"

#define HOSTMAP_WRITERS 64
#define HOSTMAP_FRAGILE 1024

struct umbra_hostmap {
	int pagemap, maps;
	int kpageflags, kpagecount; /* -1 without the right to it */
	int khugepaged, vmstat;     /* counters of pages that the kernel moves by itself, or -1 */
	uint64_t collapsed, migrated, reclaimed; /* what they said when the map was opened */
	bool scan, pfns, procmap;
	atomic_bool large; /* somebody has asked for a leaf of 2M */
	/*
	 * Writes of ours that have perhaps moved or split what is there, and have not announced that yet: the page, and
	 * HOSTMAP_SPLITS if it was there before. 0: free. @writers_more: others, for which there was no room.
	 */
	_Atomic uint64_t writers[HOSTMAP_WRITERS];
	atomic_uint writers_more;
	/* By page, and by 2M block: answers given that a write moves, so far. Several may share one count. */
	atomic_uint fragile[HOSTMAP_FRAGILE];
	pthread_mutex_t maps_lock; /* reading /proc/PID/maps as text moves its offset */
};

#define HOSTMAP_WRITES 1ULL
#define HOSTMAP_SPLITS 2ULL

static inline atomic_uint *hostmap_fragile(struct umbra_hostmap *map, hva_t hva, bool block)
{
	const uint64_t key = block ? ~(hva.v / UMBRA_HUGE_SIZE) : hva.v / UMBRA_PAGE_SIZE;

	return &map->fragile[(key * 0x9e3779b97f4a7c15ULL >> 32) % HOSTMAP_FRAGILE];
}

/* May a write of ours, under way, have moved the page at @hva (@block: of 2M), or split the 2M page there (@split)? */
bool hostmap_being_written(const struct umbra_hostmap *map, hva_t hva, bool block, bool split);

/* One mapping of the host (a VMA). @flags: UMBRA_VMA_*. @page: bytes of its pages, 0 if not known
 * (before 6.11). @file: has an inode, shared anonymous memory too. */
struct host_vma {
	struct hva_range hva;
	uint64_t page;
	uint32_t flags;
	bool file;
};

/* Returns: 0, -ENOENT (nothing is mapped at @hva), -errno. */
int hostmap_vma(struct umbra_hostmap *map, hva_t hva, struct host_vma *vma);

/*
 * hostmap_entry - one page as its pagemap entry shows it: without HUGE and ZERO, for half the price of
 * umbra_hostmap_query(). A zero page shows as FILE or not EXCLUSIVE.
 */
int hostmap_entry(struct umbra_hostmap *map, hva_t hva, struct umbra_page *page);

/*
 * hostmap_peek - flags of one page, EXCLUSIVE and the frame only if the kernel has no PAGEMAP_SCAN.
 * Half the price of umbra_hostmap_query(): enough to see whether a page is there at all, and its size.
 */
int hostmap_peek(struct umbra_hostmap *map, hva_t hva, uint32_t *flags);

/* Reads the words of at most 512 pages of pagemap; what lies beyond the address space is a hole. */
int hostmap_entries(const struct umbra_hostmap *map, uint64_t first_page, uint64_t *entries,
		    size_t n);

/* The next run of pages that are there and, if @huge, mapped by a PMD, in [@at, @end). Returns: 1, 0, -errno. */
int hostmap_next(const struct umbra_hostmap *map, uint64_t at, uint64_t end, bool huge,
		 struct hva_range *found);

/* Has khugepaged collapsed, has anything migrated, was anything reclaimed (not by MADV_PAGEOUT), since @map was opened? */
bool hostmap_has_collapsed(const struct umbra_hostmap *map);
bool hostmap_has_reclaimed(const struct umbra_hostmap *map);
bool hostmap_has_migrated(const struct umbra_hostmap *map);

/*
 * hostmap_folios - what the pages of @r, whole pages, are parts of; @reach is @r widened to all folios
 * that it cuts. A large folio may be split by advice to one of its pages: that unmaps the others for a
 * moment, for good if they are a file's, and kernels since 6.12 move all-zero ones to the zero page.
 * Returns: FOLIO_*, all of them if it cannot be known.
 */
#define FOLIO_HUGE  1U /* mapped by a PMD */
#define FOLIO_LARGE 2U /* of more than one page, mapped by PTEs */
#define FOLIO_NONE  4U /* a page is not present */
#define FOLIO_TORN  8U /* large, and a part of it is mapped elsewhere: mremap took it there */
uint32_t hostmap_folios(struct umbra_hostmap *map, struct hva_range r, struct hva_range *reach);

/*
 * hostmap_torn - every place where the parts of torn folios in @r are mapped, one call of @fn for each
 * run of pages; the whole of the address space is looked through. Returns: 0, what @fn returned, -errno.
 */
int hostmap_torn(struct umbra_hostmap *map, struct hva_range r,
		 int (*fn)(void *arg, struct hva_range place), void *arg);

/* Would a private write to a page with these flags give it another frame? */
static inline bool page_write_moves_private(uint32_t flags)
{
	return (flags & UMBRA_PAGE_PRESENT) &&
	       ((flags & (UMBRA_PAGE_ZERO | UMBRA_PAGE_FILE)) || !(flags & UMBRA_PAGE_EXCLUSIVE));
}

#endif
