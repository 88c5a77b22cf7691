/* SPDX-License-Identifier: BSD-2-Clause */
/* The x86-64 entry format: pure functions over a 64-bit value. Nothing here reads or writes a
 * table. */
#ifndef UMBRA_SPTE_H
#define UMBRA_SPTE_H

#include <umbra/types.h>

#define SPTE_PRESENT  (1ULL << 0)
#define SPTE_WRITABLE (1ULL << 1)
#define SPTE_USER     (1ULL << 2)
#define SPTE_ACCESSED (1ULL << 5)
#define SPTE_DIRTY    (1ULL << 6)
#define SPTE_PS       (1ULL << 7) /* at level 2: a 2M leaf */
#define SPTE_ADDR     0x000ffffffffff000ULL

#define SPTE_ENTRIES 512U

/* All bits an entry of ours may have; anything else is corruption (docs/invariants.md I3). */
#define SPTE_LEGAL                                                                         \
	(SPTE_PRESENT | SPTE_WRITABLE | SPTE_USER | SPTE_ACCESSED | SPTE_DIRTY | SPTE_PS | \
	 SPTE_ADDR)

static inline bool spte_present(uint64_t e)
{
	return e & SPTE_PRESENT;
}

static inline bool spte_writable(uint64_t e)
{
	return e & SPTE_WRITABLE;
}

static inline bool spte_accessed(uint64_t e)
{
	return e & SPTE_ACCESSED;
}

static inline bool spte_dirty(uint64_t e)
{
	return e & SPTE_DIRTY;
}

/* Is a present entry in a table of @level a leaf? Levels 3 and 4 never hold leaves of ours. */
static inline bool spte_is_leaf(uint64_t e, unsigned int level)
{
	return level == UMBRA_LEVEL_4K || (level == UMBRA_LEVEL_2M && (e & SPTE_PS));
}

static inline bool spte_is_table(uint64_t e, unsigned int level)
{
	return spte_present(e) && !spte_is_leaf(e, level);
}

/* Frame a leaf maps to: the first 4K frame, for 2M too. */
static inline uint64_t spte_pfn(uint64_t e)
{
	return (e & SPTE_ADDR) >> UMBRA_PAGE_SHIFT;
}

/* 4K pages that one entry of a table of @level spans. */
static inline uint64_t spte_span(unsigned int level)
{
	return 1ULL << (9 * (level - 1));
}

/* Which entry of a table of @level translates @gfn. */
static inline unsigned int spte_slot(uint64_t gfn, unsigned int level)
{
	return (unsigned int)(gfn >> (9 * (level - 1))) & (SPTE_ENTRIES - 1);
}

static inline uint64_t spte_make_leaf(uint64_t pfn, unsigned int level, bool writable)
{
	return (pfn << UMBRA_PAGE_SHIFT) | SPTE_PRESENT | SPTE_USER |
	       (writable ? SPTE_WRITABLE : 0) | (level == UMBRA_LEVEL_2M ? SPTE_PS : 0);
}

/* Tables carry full rights, so that a leaf's alone decide; A is set so that the walker need not. */
static inline uint64_t spte_make_table(uint64_t phys)
{
	return (phys & SPTE_ADDR) | SPTE_PRESENT | SPTE_WRITABLE | SPTE_USER | SPTE_ACCESSED;
}

/* The 4K leaf for page @i of a 2M leaf: same rights, accessed and dirty. */
static inline uint64_t spte_split_child(uint64_t leaf_2m, unsigned int i)
{
	return (leaf_2m & ~SPTE_PS) + ((uint64_t)i << UMBRA_PAGE_SHIFT);
}

/* Equal but for accessed and dirty, which the CPU sets by itself? */
static inline bool spte_same_but_ad(uint64_t a, uint64_t b)
{
	return !((a ^ b) & ~(SPTE_ACCESSED | SPTE_DIRTY));
}

/*
 * spte_needs_flush - may a CPU that remembers @old do what @now forbids, or miss a bit it must set
 * again? Only giving rights, or going from absent to present, needs none.
 */
static inline bool spte_needs_flush(uint64_t old, uint64_t now)
{
	if (!spte_present(old))
		return false;
	return (old & ~now) || ((old ^ now) & (SPTE_ADDR | SPTE_PS));
}

#endif
