/* SPDX-License-Identifier: BSD-2-Clause */
/* Address kinds, ranges and sequence numbers: one-member structs, so that mixing them does not
 * compile. */
#ifndef UMBRA_TYPES_H
#define UMBRA_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UMBRA_PAGE_SHIFT 12
#define UMBRA_PAGE_SIZE  (1ULL << UMBRA_PAGE_SHIFT)
#define UMBRA_HUGE_SHIFT 21
#define UMBRA_HUGE_SIZE  (1ULL << UMBRA_HUGE_SHIFT)
#define UMBRA_HUGE_PAGES 512ULL /* 4K pages in a 2M page */

/* clang-format off */
typedef struct { uint64_t v; } gfn_t;	/* guest frame number, 4 KiB units                          */
typedef struct { uint64_t v; } gpa_t;	/* guest-physical address, bytes                             */
typedef struct { uint64_t v; } hva_t;	/* host-virtual address, bytes                               */
typedef struct { uint64_t v; } pfn_t;	/* output frame of a leaf, 4 KiB units: what the walk yields */
typedef struct { uint64_t v; } mmu_seq_t; /* number of invalidations ended, 64 bits, never cut       */
/* clang-format on */

/* Half-open [start, end). An end of ~0 is legal and means "to the last byte". */
struct gfn_range {
	gfn_t start, end;
};
struct hva_range {
	hva_t start, end;
};

/* Level of a table or leaf: 1 holds 4K leaves, 2 holds 2M leaves; 3 and 4 hold only tables. */
enum umbra_level {
	UMBRA_LEVEL_NONE = 0,
	UMBRA_LEVEL_4K = 1,
	UMBRA_LEVEL_2M = 2,
	UMBRA_LEVEL_1G = 3,
	UMBRA_LEVEL_512G = 4,
};

/* Kinds of access; a fault names one or more of them. */
enum umbra_access {
	UMBRA_ACCESS_READ = 1 << 0,
	UMBRA_ACCESS_WRITE = 1 << 1,
	UMBRA_ACCESS_EXEC = 1 << 2,
};

static inline gfn_t gpa_to_gfn(gpa_t gpa)
{
	return (gfn_t){ gpa.v >> UMBRA_PAGE_SHIFT };
}

static inline gpa_t gfn_to_gpa(gfn_t gfn)
{
	return (gpa_t){ gfn.v << UMBRA_PAGE_SHIFT };
}

static inline bool gfn_range_empty(struct gfn_range r)
{
	return r.start.v >= r.end.v;
}

static inline bool hva_range_empty(struct hva_range r)
{
	return r.start.v >= r.end.v;
}

static inline bool hva_ranges_meet(struct hva_range a, struct hva_range b)
{
	return a.start.v < b.end.v && b.start.v < a.end.v;
}

static inline struct hva_range hva_range_of(const void *p, size_t bytes)
{
	uint64_t start = (uint64_t)(uintptr_t)p;

	return (struct hva_range){ { start }, { start + bytes } };
}

/*
 * hva_range_widen - the whole 4K pages that @r touches.
 * An end in the last page of the address space stays ~0: rounding it up would wrap to 0.
 */
static inline struct hva_range hva_range_widen(struct hva_range r)
{
	const uint64_t mask = UMBRA_PAGE_SIZE - 1;

	r.start.v &= ~mask;
	r.end.v = r.end.v > ~mask ? ~0ULL : (r.end.v + mask) & ~mask;
	return r;
}

/*
 * hva_range_cut - what the pages that @by touches cover of @r is cut off its ends; from its middle nothing is.
 * Returns: whether they meet at all.
 */
static inline bool hva_range_cut(struct hva_range *r, struct hva_range by)
{
	by = hva_range_widen(by);
	if (!hva_ranges_meet(*r, by))
		return false;
	if (by.start.v <= r->start.v)
		r->start.v = by.end.v < r->end.v ? by.end.v : r->end.v;
	else if (by.end.v >= r->end.v)
		r->end.v = by.start.v;
	return true;
}

#endif
