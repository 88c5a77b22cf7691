/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * MADV_POPULATE_WRITE as an own call. What is known to move is planned; but a page may look as if it stayed, and move, or
 * a 2M page be split, all the same (see write_and_look() in resolve.c). So what is there is noted while the range is held,
 * and what the call has changed of it is announced before the range is open again.
 */
#include <errno.h>
#include <stdlib.h>
#include "shadow/events/hostmap.h"
#include "shadow/events/own.h"

#define LOOKS 2048 /* pages compared in one call; a piece of umbra_madvise() has as many */

/* More of them may come by a read of another thread, so the caller holds @r. */
int plan_populate_write(const struct umbra_own *own, struct hva_range r, struct plan *plan)
{
	const struct hva_range w = hva_range_widen(r);
	struct umbra_page pages[64];
	struct host_vma vma = { 0 };
	int err = 0;

	if (!own->map)
		return plan_add(plan, w);
	for (uint64_t at = w.start.v; !err && at < w.end.v;) {
		const uint64_t left = (w.end.v - at) >> UMBRA_PAGE_SHIFT;
		const size_t n = left < 64 ? left : 64;

		err = umbra_hostmap_query_range(own->map, (hva_t){ at }, pages, n);
		if (err)
			return plan_add(plan, w);
		for (size_t i = 0; !err && i < n; i++, at += UMBRA_PAGE_SIZE) {
			const uint64_t size = pages[i].flags & UMBRA_PAGE_HUGE ? UMBRA_HUGE_SIZE
									       : UMBRA_PAGE_SIZE;
			const uint64_t start = at & ~(size - 1);

			if (!page_write_moves_private(pages[i].flags))
				continue;
			if ((at >= vma.hva.end.v || at < vma.hva.start.v) &&
			    hostmap_vma(own->map, (hva_t){ at }, &vma))
				continue; /* gone meanwhile: nothing to move */
			if (vma.flags & UMBRA_VMA_SHARED)
				continue;
			if (plan->nr && plan->v[plan->nr - 1].end.v >= start + size)
				continue;
			err = plan_add(plan, (struct hva_range){ { start }, { start + size } });
		}
	}
	return err;
}

/* It is over: nobody may refuse it. */
static void announce(struct umbra_own *own, struct hva_range r, enum umbra_cause cause,
		     bool relocates)
{
	struct umbra_range range = bracket_of(r, cause, relocates);

	range.flags |= UMBRA_RANGE_FORCED;
	if (!umbra_invalidate_start(own->chain, &range))
		umbra_invalidate_end(own->chain, &range);
}

static bool was_split(const struct umbra_page *before, const struct umbra_page *now)
{
	return (before->flags & UMBRA_PAGE_HUGE) && !(now->flags & UMBRA_PAGE_HUGE);
}

/* Without frames, what was split is taken to have moved too. */
static bool has_moved(const struct umbra_page *before, const struct umbra_page *now)
{
	if (!(before->flags & UMBRA_PAGE_PRESENT))
		return false;
	return before->host_pfn != now->host_pfn ||
	       (before->host_pfn == UMBRA_HOST_PFN_UNKNOWN && was_split(before, now));
}

/* @n pages from @start on, as they were and as they are. What @planned has is announced already. */
static void announce_changes(struct umbra_own *own, const struct plan *planned, uint64_t start,
			     const struct umbra_page *before, const struct umbra_page *now,
			     uint64_t n)
{
	const uint64_t mask = UMBRA_HUGE_SIZE - 1;
	struct hva_range moved = { { start }, { start } }, split = moved;

	for (uint64_t i = 0; i < n; i++) {
		const uint64_t at = start + i * UMBRA_PAGE_SIZE;

		if (plan_covers(planned, (struct hva_range){ { at }, { at + UMBRA_PAGE_SIZE } }))
			continue;
		if (has_moved(&before[i], &now[i])) {
			if (moved.end.v != at) {
				if (!hva_range_empty(moved))
					announce(own, moved, UMBRA_CAUSE_COW, true);
				moved.start.v = at;
			}
			moved.end.v = at + UMBRA_PAGE_SIZE;
		}
		if (was_split(&before[i], &now[i]) && at >= split.end.v) {
			split = (struct hva_range){ { at & ~mask }, { (at | mask) + 1 } };
			announce(own, split, UMBRA_CAUSE_SPLIT, false);
		}
	}
	if (!hva_range_empty(moved))
		announce(own, moved, UMBRA_CAUSE_COW, true);
}

int own_populate(struct umbra_own *own, const struct plan *planned, struct hva_range r)
{
	const struct hva_range w = hva_range_widen(r);
	const uint64_t n = hva_range_len(w) >> UMBRA_PAGE_SHIFT;
	struct umbra_page *before = NULL;
	int err;

	if (own->map && n && n <= LOOKS)
		before = malloc(2 * n * sizeof(*before));
	if (before && umbra_hostmap_query_range(own->map, w.start, before, n)) {
		free(before);
		before = NULL;
	}
	err = madvise(hva_ptr(r.start), hva_range_len(r), MADV_POPULATE_WRITE) ? -errno : 0;
	if (before && !umbra_hostmap_query_range(own->map, w.start, before + n, n))
		announce_changes(own, planned, w.start.v, before, before + n, n);
	else if (n && !plan_covers(planned, w))
		announce(own, w, UMBRA_CAUSE_COW, true);
	free(before);
	return err;
}
