/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a call brackets: exactly what it changes, and nothing if it changes nothing.
 *
 * A plan that looks at no page cannot be overtaken: discard, munmap, mmap over, mremap, mprotect change
 * their range, whatever is there. Of those that look, each foresees what a fault may put there until the
 * call, and what other own calls change is waited out by those (own_plan_begin()):
 *  - what cuts a mapping: a large page can come over a cut only where both sides are empty, see vacant();
 *  - MADV_FREE, PAGEOUT and their like: the range is closed anyway, so only what reaches over its ends
 *    matters, which is again a cut;
 *  - MADV_COLD: where a page is missing, or a folio whole, the range is held and planned again;
 *  - MADV_COLLAPSE: a block not seen as huge is bracketed and collapsed, one seen as huge is left alone;
 *  - MADV_POPULATE_WRITE: held before it is planned, and what it changed is looked at after it (own_populate.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "shadow/events/hostmap.h"
#include "shadow/events/own.h"

#define PLAN_LOOKS (64ULL << 30) /* bytes that a plan looks at, at most */

void plan_init(struct plan *plan, enum umbra_cause cause, bool relocates)
{
	plan->v = plan->few;
	plan->nr = 0;
	plan->cap = PLAN_INLINE;
	plan->cause = cause;
	plan->relocates = relocates;
	plan->hold = (struct hva_range){ 0 };
	plan->calls = 0;
}

void plan_fini(struct plan *plan)
{
	if (plan->v != plan->few)
		free(plan->v);
}

int plan_add(struct plan *plan, struct hva_range r)
{
	struct hva_range *v;

	if (hva_range_empty(r))
		return 0;
	if (plan->nr > plan->calls && plan->v[plan->nr - 1].end.v == r.start.v) {
		plan->v[plan->nr - 1].end = r.end;
		return 0;
	}
	if (plan->nr == plan->cap) {
		const bool inline_now = plan->v == plan->few;

		v = realloc(inline_now ? NULL : plan->v, 2 * plan->cap * sizeof(*v));
		if (!v)
			return -ENOMEM;
		if (inline_now)
			memcpy(v, plan->few, sizeof(plan->few));
		plan->v = v;
		plan->cap *= 2;
	}
	plan->v[plan->nr++] = r;
	return 0;
}

bool plan_covers(const struct plan *plan, struct hva_range r)
{
	for (uint32_t i = 0; i < plan->nr; i++)
		if (r.start.v >= plan->v[i].start.v && r.end.v <= plan->v[i].end.v)
			return true;
	return false;
}

static bool mapped_huge(const struct umbra_own *own, uint64_t block)
{
	uint32_t flags;

	/* Not known is taken for huge: a bracket too many costs a refault, one too few an old
	 * translation. */
	return !own->map || !umbra_hostmap_has_scan(own->map) ||
	       hostmap_peek(own->map, (hva_t){ block }, &flags) || (flags & UMBRA_PAGE_HUGE);
}

/*
 * Nothing is on either side of the cut @at: a fault between the plan and the call may put a large
 * page over it. Where one side has a small page, none fits.
 */
static bool vacant(const struct umbra_own *own, uint64_t at)
{
	uint32_t before, after;

	if (!own->map || hostmap_peek(own->map, (hva_t){ at - UMBRA_PAGE_SIZE }, &before) ||
	    hostmap_peek(own->map, (hva_t){ at }, &after))
		return true;
	return !((before | after) & UMBRA_PAGE_PRESENT);
}

/* Cutting a mapping, or aging a part of it, splits the 2M page at the cut: the blocks that @r
 * covers in part. */
static int plan_edges(const struct umbra_own *own, struct hva_range r, struct plan *plan)
{
	const uint64_t mask = UMBRA_HUGE_SIZE - 1;
	const uint64_t first = r.start.v & ~mask, last = r.end.v & ~mask;
	int err = 0;

	if ((first != r.start.v || (first == last && r.end.v != last)) &&
	    (vacant(own, r.start.v) || (first == last && vacant(own, r.end.v)) ||
	     mapped_huge(own, first)))
		err = plan_add(plan, (struct hva_range){ { first }, { first + UMBRA_HUGE_SIZE } });
	if (!err && last != r.end.v && last != first &&
	    (vacant(own, r.end.v) || mapped_huge(own, last)))
		err = plan_add(plan, (struct hva_range){ { last }, { last + UMBRA_HUGE_SIZE } });
	return err;
}

int plan_file_edges(struct umbra_own *own, struct hva_range r, struct plan *plan)
{
	const uint64_t mask = UMBRA_HUGE_SIZE - 1;
	const struct hva_range w = hva_range_widen(r);

	if (hva_range_empty(r) || !((w.start.v | w.end.v) & mask) ||
	    !region_has_file(own, (struct hva_range){
					  { w.start.v & ~mask },
					  { w.end.v > ~mask ? ~0ULL : (w.end.v + mask) & ~mask } }))
		return 0;
	return plan_edges(own, w, plan);
}

/* The whole 2M blocks inside @r that are not huge yet: collapse moves all their pages. */
static int plan_collapse(const struct umbra_own *own, struct hva_range r, struct plan *plan)
{
	const uint64_t mask = UMBRA_HUGE_SIZE - 1;
	uint64_t at = r.start.v > ~mask ? r.end.v : (r.start.v + mask) & ~mask;
	const uint64_t end = r.end.v & ~mask;
	struct hva_range huge;
	int err = 0;

	while (!err && at < end) {
		if (!own->map || hostmap_next(own->map, at, end, true, &huge) <= 0)
			huge.start.v = huge.end.v = end;
		if (huge.start.v > at)
			err = plan_add(plan, (struct hva_range){ { at }, { huge.start.v } });
		at = huge.end.v;
	}
	return err;
}

static const struct hva_range everything = { { 0 }, { ~0ULL & ~(UMBRA_PAGE_SIZE - 1) } };

void own_moved(struct umbra_own *own, struct hva_range from, hva_t to)
{
	if ((from.start.v | from.end.v | to.v) & (UMBRA_HUGE_SIZE - 1))
		atomic_store(&own->torn, true);
}

/* Where folios cannot be seen: may one in @r be torn? */
static bool may_be_torn(const struct umbra_own *own, struct hva_range r)
{
	struct host_vma vma;

	if (!atomic_load(&own->torn) || (own->map && own->map->kpageflags >= 0))
		return false;
	return !own->map || hostmap_vma(own->map, r.start, &vma) || r.end.v > vma.hva.end.v ||
	       !vma.file;
}

struct hva_range own_widen_folios(const struct umbra_own *own, struct hva_range r)
{
	const uint64_t far = UMBRA_HUGE_SIZE - UMBRA_PAGE_SIZE;
	const struct hva_range w = hva_range_widen(r);
	struct hva_range reach = w;

	if (may_be_torn(own, w))
		return everything;
	if (own->map)
		return hostmap_folios(own->map, w, &reach) & FOLIO_TORN ? everything : reach;
	reach.start.v = w.start.v > far ? w.start.v - far : 0;
	reach.end.v = w.end.v < ~far ? w.end.v + far : w.end.v;
	return reach;
}

static int add_place(void *plan, struct hva_range place)
{
	return plan_add(plan, place);
}

/*
 * Parts of folios in @r that mremap has taken elsewhere: a split unmaps those too, for a moment, and moves
 * their zero pages. Measured on 6.18 for MADV_COLD, FREE and PAGEOUT. Found by their frames, or if
 * that cannot be done, or not in reasonable time, everything is bracketed.
 */
static int plan_torn(const struct umbra_own *own, struct hva_range r, struct plan *plan)
{
	const int err = own->map && own->map->kpageflags >= 0
				? hostmap_torn(own->map, r, add_place, plan)
				: -EOPNOTSUPP;

	return err && err != -ENOMEM ? plan_add(plan, everything) : err;
}

/*
 * Advice to a part of a large folio splits it, and the split may move pages of it that lie outside
 * @r. So such folios are bracketed whole; elsewhere what is in @r if @inside, else nothing.
 */
static int plan_folios(const struct umbra_own *own, struct hva_range r, bool inside,
		       struct plan *plan)
{
	const uint64_t mask = UMBRA_HUGE_SIZE - 1;
	const struct hva_range w = hva_range_widen(r);
	int err = 0;

	for (uint64_t block = w.start.v & ~mask; !err && block < w.end.v;
	     block += UMBRA_HUGE_SIZE) {
		const uint64_t end = block + UMBRA_HUGE_SIZE;
		const struct hva_range part = {
			{ w.start.v > block ? w.start.v : block },
			{ w.end.v < end ? w.end.v : end },
		};
		struct hva_range reach;
		uint32_t found = FOLIO_LARGE;
		bool open;

		if (end < block) /* the last block of all: nothing can be mapped there */
			return plan_add(plan, part);
		/* Asked first: what comes after it is seen by the look at the folios. */
		open = (part.start.v != block && vacant(own, part.start.v)) ||
		       (part.end.v != end && vacant(own, part.end.v));
		if (own->map)
			found = hostmap_folios(own->map, part, &reach);
		else
			reach = own_widen_folios(own, part);
		if (open) {
			found |= FOLIO_LARGE;
			reach.start.v = reach.start.v < block ? reach.start.v : block;
			reach.end.v = reach.end.v > end ? reach.end.v : end;
		}
		if ((found & FOLIO_TORN) || may_be_torn(own, part))
			err = plan_torn(own, part, plan);
		if (err)
			break;
		if ((found & FOLIO_LARGE) || reach.start.v < part.start.v ||
		    reach.end.v > part.end.v)
			err = plan_add(plan, reach);
		else if (inside)
			err = plan_add(plan, part);
		else if (found & (FOLIO_HUGE | FOLIO_NONE))
			/* Whole or not there: but a folio may come, or be cut by another call. */
			hva_range_join(&plan->hold, part);
	}
	return err;
}

static int plan_inexact(const struct umbra_own *own, struct hva_range r, int advice,
			struct plan *plan)
{
	struct hva_range wide = r;
	int err;

	if (advice == MADV_COLLAPSE) {
		err = plan_collapse(own, r, plan);
		plan->calls = plan->nr;
	} else if (r.end.v - r.start.v > PLAN_LOOKS) {
		/* More than is worth a look at each block: announced as it is, with what its ends may cut. */
		const uint64_t far = UMBRA_HUGE_SIZE - UMBRA_PAGE_SIZE;

		wide.start.v = r.start.v > far ? r.start.v - far : 0;
		wide.end.v = r.end.v < ~far ? r.end.v + far : r.end.v;
		err = plan_add(plan, atomic_load(&own->torn) ? everything : wide);
	} else {
		err = plan_folios(own, r, advice != MADV_COLD, plan);
	}
	if (!err && (plan->nr || !hva_range_empty(plan->hold)))
		err = region_plan_advice(own, r, advice, plan);
	/* A folio that is split gives its zero pages away. */
	if (plan->nr)
		plan->relocates = true;
	return err;
}

int plan_madvise(const struct umbra_own *own, struct hva_range r, int advice, struct plan *plan)
{
	enum umbra_cause cause;
	bool relocates;

	if (plan_is_exact(advice, &cause, &relocates)) {
		plan_init(plan, cause, relocates);
		return plan_add(plan, r);
	}
	switch (advice) {
	case MADV_COLLAPSE: plan_init(plan, UMBRA_CAUSE_COLLAPSE, true); break;
	case MADV_FREE: plan_init(plan, UMBRA_CAUSE_FREE, true); break;
	case MADV_PAGEOUT: plan_init(plan, UMBRA_CAUSE_SWAP, true); break;
	case MADV_COLD: plan_init(plan, UMBRA_CAUSE_SPLIT, false); break;
	case MADV_REMOVE: plan_init(plan, UMBRA_CAUSE_REMOVE, true); break;
	case MADV_SOFT_OFFLINE: plan_init(plan, UMBRA_CAUSE_MIGRATE, true); break;
	case MADV_HWPOISON: plan_init(plan, UMBRA_CAUSE_GUARD, true); break;
	case MADV_POPULATE_WRITE:
		plan_init(plan, UMBRA_CAUSE_COW, true);
		if (r.end.v - r.start.v > PLAN_LOOKS)
			return plan_add(plan, r);
		return plan_populate_write(own, r, plan);
	case MADV_WILLNEED:
	case MADV_POPULATE_READ:
	case MADV_GUARD_REMOVE: plan_init(plan, UMBRA_CAUSE_UNKNOWN, false); return 0;
	default: /* what only marks the mapping: nothing moves, cut hugepages are split */
		plan_init(plan, UMBRA_CAUSE_SPLIT, false);
		return plan_edges(own, r, plan);
	}
	return plan_inexact(own, r, advice, plan);
}
