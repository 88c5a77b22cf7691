/* SPDX-License-Identifier: BSD-2-Clause */
/* The MMU as a consumer: invalidate start and end, their counts and history, and the check that
 * decides. */
#include <errno.h>

#include "private.h"

static inline void store(uint64_t *p, uint64_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELAXED); /* read without the lock by the open hint only */
}

static inline uint64_t load(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

bool inv_open(const struct umbra_mmu *mmu, struct hva_range r)
{
	for (unsigned int i = 0; i < UMBRA_SOURCE_NR; i++) {
		const struct source_state *s = &mmu->sources[i];

		if (load(&s->begun) != load(&s->ended) &&
		    hva_ranges_meet(r, (struct hva_range){ { load(&s->lo) }, { load(&s->hi) } }))
			return true;
	}
	return false;
}

bool umbra_range_open_hint(struct umbra_mmu *mmu, struct hva_range r)
{
	return inv_open(mmu, r);
}

void inv_snapshot(struct umbra_mmu *mmu, struct hva_range block, struct snapshot *s)
{
	s->seq = mmu->seq;
	s->starts_nr = mmu->starts_nr;
	s->slots_gen = mmu->slots_gen;
	s->open_block = inv_open(mmu, block);
}

enum inv_verdict inv_retry(const struct umbra_mmu *mmu, struct hva_range leaf,
			   const struct snapshot *s)
{
	if (inv_open(mmu, leaf))
		return INV_OPEN;
	if (mmu->slots_gen != s->slots_gen)
		return INV_PASSED;
	if (mmu->seq == s->seq && mmu->starts_nr == s->starts_nr)
		return INV_OK;
	/*
	 * Something ended. It matters only if it met this leaf: either it was open at the snapshot,
	 * or its start is in the history since. What fell out of the history is taken to matter.
	 */
	if (s->open_block || mmu->starts_nr - s->starts_nr > UMBRA_HISTORY)
		return INV_PASSED;
	for (uint64_t nr = s->starts_nr; nr != mmu->starts_nr; nr++)
		if (hva_ranges_meet(leaf, mmu->history[nr % UMBRA_HISTORY].hva))
			return INV_PASSED;
	return INV_OK;
}

/* The library's own brackets drop the leaves of one slot or block; an alias of its hva keeps its own. */
static bool drops_by_gfn(const struct umbra_range *r)
{
	return r->source == UMBRA_SOURCE_CORE &&
	       (r->cause == UMBRA_CAUSE_MEMSLOT || r->cause == UMBRA_CAUSE_COLLAPSE);
}

void inv_begin(struct umbra_mmu *mmu, const struct umbra_range *r, const struct zapped *zapped)
{
	struct source_state *s = &mmu->sources[r->source];
	const struct hva_range w = hva_range_widen(r->hull);
	struct history_entry *h = &mmu->history[mmu->starts_nr % UMBRA_HISTORY];

	if (h->open) /* falls out of the history before its end */
		mmu->sources[h->source].shown--;
	s->shown++;
	if (s->begun == s->ended) {
		store(&s->lo, w.start.v);
		store(&s->hi, w.end.v);
	} else {
		if (w.start.v < s->lo)
			store(&s->lo, w.start.v);
		if (w.end.v > s->hi)
			store(&s->hi, w.end.v);
	}
	store(&s->begun, s->begun + 1);
	mmu->stats.starts++;
	mmu->starts_nr++;
	h->seq = mmu->seq;
	h->hva = w;
	h->who = r->who;
	h->zapped_4k = zapped->leaves_4k;
	h->zapped_2m = zapped->leaves_2m;
	h->cause = (uint8_t)r->cause;
	h->source = (uint8_t)r->source;
	h->flags = (uint8_t)r->flags;
	h->open = true;
	h->exact = r->nr == 0 && !drops_by_gfn(r);
}

/* For people: marks the newest open event that fits, or all of the source with its last end. */
static void history_search(struct umbra_mmu *mmu, const struct umbra_range *r)
{
	const struct hva_range w = hva_range_widen(r->hull);
	struct source_state *s = &mmu->sources[r->source];
	const bool all = s->begun == s->ended;
	const uint64_t n = mmu->starts_nr < UMBRA_HISTORY ? mmu->starts_nr : UMBRA_HISTORY;
	uint32_t left = s->shown;

	for (uint64_t i = 1; left && i <= n; i++) {
		struct history_entry *h = &mmu->history[(mmu->starts_nr - i) % UMBRA_HISTORY];

		if (!h->open || h->source != r->source)
			continue;
		left--;
		if (!all && (h->hva.start.v != w.start.v || h->hva.end.v != w.end.v))
			continue;
		h->open = false;
		s->shown--;
		h->seq = mmu->seq;
		if (!all)
			return;
	}
}

/* The counts do not depend on it. Nearly always the newest event is the only one that is open. */
static void history_close(struct umbra_mmu *mmu, const struct umbra_range *r)
{
	struct history_entry *h = &mmu->history[(mmu->starts_nr - 1) % UMBRA_HISTORY];
	struct source_state *s = &mmu->sources[r->source];

	if (s->begun == s->ended && s->shown == 1 && h->open && h->source == r->source) {
		h->open = false;
		h->seq = mmu->seq;
		s->shown = 0;
	} else {
		history_search(mmu, r);
	}
}

void inv_finish(struct umbra_mmu *mmu, const struct umbra_range *r)
{
	struct source_state *s = &mmu->sources[r->source];

	if (s->begun == s->ended)
		mmu->os->bug("I10: an invalidation ends that has not begun");
	store(&s->ended, s->ended + 1);
	mmu->seq++;
	mmu->stats.ends++;
	history_close(mmu, r);
}

/* Lock held. Drops what @r takes away, and opens it. Returns the ticket of what is to be flushed. */
static inline uint64_t drop(struct umbra_mmu *mmu, const struct umbra_range *r,
			    struct zapped *zapped)
{
	struct hva_range part;
	struct gfn_range g;

	*zapped = (struct zapped){ 0 };
	for (uint32_t i = 0; range_nth(r, i, &part); i++)
		for (struct rmap_iter it = rmap_hva(mmu, part); rmap_next(mmu, &it, &g);)
			for (struct umbra_root *root = mmu->roots; root; root = root->next)
				map_zap(root, g, zapped);
	inv_begin(mmu, r, zapped);
	return flush_post(mmu);
}

static bool to_settle(const struct umbra_mmu *mmu, const struct umbra_range *r,
		      const struct zapped *zapped)
{
	return (r->flags & UMBRA_RANGE_BLOCKABLE) && (mmu->unlinked.count || mmu->cleared.count) &&
	       (zapped->leaves_4k || zapped->leaves_2m);
}

static int start(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct umbra_mmu *mmu = mmu_of(n);
	const bool forced = r->flags & UMBRA_RANGE_FORCED,
		   may_wait = r->flags & UMBRA_RANGE_BLOCKABLE;
	struct zapped zapped;
	uint64_t ticket;
	bool settle;
	int rc;

	if (may_wait || forced)
		mmu_lock(mmu); /* held for short, bounded work only: a FORCED non-blockable range
				  may take it */
	else if (!mmu->os->mutex_trylock(mmu->lock))
		return -EAGAIN;
	if (mmu->pins && (r->flags & UMBRA_RANGE_RELOCATES) && pin_meets(mmu, r)) {
		if (!forced) {
			mmu->stats.refused++;
			mmu_unlock(mmu);
			return -EBUSY;
		}
		pin_lose(mmu, r);
	}
	ticket = drop(mmu, r, &zapped);
	settle = to_settle(mmu, r, &zapped);
	mmu_unlock(mmu);

	rc = flush_wait(mmu, ticket, may_wait);
	if (rc && !forced) {
		mmu_lock(mmu);
		inv_finish(
			mmu,
			r); /* refused: nothing stays open; what was dropped is faulted in again */
		mmu->stats.refused++;
		mmu_unlock(mmu);
		return -EAGAIN;
	}
	if (settle) {
		mmu_lock(mmu);
		tables_settle(mmu, SETTLE_BUDGET);
		mmu_unlock(mmu);
	}
	return 0;
}

static void end(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct umbra_mmu *mmu = mmu_of(n);

	mmu_lock(mmu);
	inv_finish(mmu, r);
	mmu_unlock(mmu);
}

/* start() and end() of a forced range; the lock is dropped in between only if the flush is not known to be over. */
static void over(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct umbra_mmu *mmu = mmu_of(n);
	struct zapped zapped;
	uint64_t ticket;

	mmu_lock(mmu);
	if (mmu->pins && (r->flags & UMBRA_RANGE_RELOCATES) && pin_meets(mmu, r))
		pin_lose(mmu, r);
	ticket = drop(mmu, r, &zapped);
	if (!flush_over(mmu, ticket)) {
		mmu_unlock(mmu);
		flush_wait(mmu, ticket, r->flags & UMBRA_RANGE_BLOCKABLE);
		mmu_lock(mmu);
	}
	if (to_settle(mmu, r, &zapped))
		tables_settle(mmu, SETTLE_BUDGET);
	inv_finish(mmu, r);
	mmu_unlock(mmu);
}

void inv_release(struct umbra_mmu *mmu)
{
	mmu->released = true;
	for (struct umbra_root *root = mmu->roots; root; root = root->next)
		map_zap_root(root);
}

static void release(struct umbra_notifier *n)
{
	struct umbra_mmu *mmu = mmu_of(n);
	uint64_t ticket;

	mmu_lock(mmu);
	inv_release(mmu);
	ticket = flush_post(mmu);
	mmu_unlock(mmu);
	flush_wait(mmu, ticket, true);
}

const struct umbra_notifier_ops mmu_notifier_ops = {
	.invalidate_range_start = start,
	.invalidate_range_end = end,
	.invalidate_range = over,
	.clear_flush_young = mmu_clear_flush_young,
	.clear_young = mmu_clear_young,
	.test_young = mmu_test_young,
	.release = release,
};

unsigned int umbra_history(struct umbra_mmu *mmu, struct hva_range r, struct umbra_event *events,
			   unsigned int max)
{
	unsigned int found = 0;
	uint64_t n;

	r = hva_range_widen(r);
	mmu_lock(mmu);
	n = mmu->starts_nr < UMBRA_HISTORY ? mmu->starts_nr : UMBRA_HISTORY;
	for (uint64_t i = 1; i <= n && found < max; i++) {
		const struct history_entry *h = &mmu->history[(mmu->starts_nr - i) % UMBRA_HISTORY];

		if (!hva_ranges_meet(h->hva, r))
			continue;
		events[found++] = (struct umbra_event){
			.nr = mmu->starts_nr - i + 1,
			.seq = { h->seq },
			.open = h->open,
			.hva = h->hva,
			.cause = (enum umbra_cause)h->cause,
			.source = (enum umbra_source)h->source,
			.who = h->who,
			.flags = h->flags,
			.zapped_4k = h->zapped_4k,
			.zapped_2m = h->zapped_2m,
		};
	}
	mmu_unlock(mmu);
	return found;
}
