/* SPDX-License-Identifier: BSD-2-Clause */
/* The only writer of entries: every change ends in spte_change, which holds old against new. */
#include <errno.h>

#include "private.h"

static void check_live(const struct umbra_mmu *mmu, const struct spte_iter *it)
{
	if (mmu->tables[it->table].state != TABLE_LIVE)
		mmu->os->bug("I13: an entry is changed in a table that is not live");
}

/* Is a change from @it->old to @now one that may ever happen? If not, an invariant of ours is
 * broken. */
static void check_change(const struct umbra_mmu *mmu, const struct spte_iter *it, uint64_t now)
{
	const uint64_t old = it->old;
	const unsigned int level = it->level;

	check_live(mmu, it);
	if (!spte_present(now)) {
		if (now)
			mmu->os->bug("I3: an absent entry is not zero");
		return;
	}
	if ((now & ~SPTE_LEGAL) || !(now & SPTE_USER))
		mmu->os->bug("I3: an entry has bits that no entry of ours has");
	if (spte_is_leaf(now, level)) {
		if (level == UMBRA_LEVEL_2M && (spte_pfn(now) & (UMBRA_HUGE_PAGES - 1)))
			mmu->os->bug("I6: a 2M leaf to a frame that is not 2M aligned");
		if (spte_present(old) && !spte_is_leaf(old, level))
			mmu->os->bug("I3: a leaf replaces a table that is still linked");
		if (spte_present(old) && spte_pfn(old) != spte_pfn(now))
			mmu->os->bug("I4: a leaf is replaced by a leaf to another frame");
		return;
	}
	if (now & SPTE_PS)
		mmu->os->bug("I3: a leaf above 2M");
	if (spte_present(old)) {
		const uint64_t *child = table_entries(mmu, spte_child(mmu, now));

		/* a split: the children say what the leaf said */
		if (!spte_is_leaf(old, level) || spte_read(&child[0]) != spte_split_child(old, 0) ||
		    spte_read(&child[SPTE_ENTRIES - 1]) != spte_split_child(old, SPTE_ENTRIES - 1))
			mmu->os->bug("I4: a split changes what is mapped");
	}
}

static void account(struct umbra_mmu *mmu, const struct spte_iter *it, uint64_t now)
{
	struct table *t = &mmu->tables[it->table];
	struct umbra_root *root = it->root;
	uint64_t *leaves = it->level == UMBRA_LEVEL_4K ? &root->leaves_4k : &root->leaves_2m;

	if (spte_present(now) && !spte_present(it->old))
		t->count++;
	if (!spte_present(now) && spte_present(it->old))
		t->count--;
	if (spte_present(now) && spte_is_leaf(now, it->level))
		++*leaves;
	if (spte_present(it->old) && spte_is_leaf(it->old, it->level))
		--*leaves;
	if (t->host_pfns && (!spte_present(now) || !spte_is_leaf(now, it->level)))
		t->host_pfns[it->slot] = UMBRA_HOST_PFN_UNKNOWN;
}

bool spte_change(struct umbra_mmu *mmu, struct spte_iter *it, uint64_t now)
{
	uint64_t seen = it->old;

	check_change(mmu, it, now);
	while (!__atomic_compare_exchange_n(it->sptep, &seen, now, false, __ATOMIC_ACQ_REL,
					    __ATOMIC_ACQUIRE)) {
		const uint64_t set = (seen & ~it->old) & (SPTE_ACCESSED | SPTE_DIRTY);
		const bool only_ad = spte_present(seen) && spte_same_but_ad(seen, it->old);

		it->old = seen;
		if (!only_ad || spte_is_table(now, it->level))
			return false;
		if (spte_present(now))
			now |= set; /* the CPU used it meanwhile: never lose that */
	}
	account(mmu, it, now);
	if (spte_needs_flush(it->old, now)) {
		flush_queue(it->root, it->table, it->slot, it->gfn, it->level);
		/* an accessed bit alone is nothing that anybody must wait for */
		mmu->lowered |= spte_needs_flush(it->old & ~SPTE_ACCESSED, now);
	}
	return true;
}

/* Entries @from up to @to, counted from @it, have changed. */
static void queue_run(struct umbra_mmu *mmu, const struct spte_iter *it, unsigned int from,
		      unsigned int to)
{
	if (it->root->kind == UMBRA_ROOT_DIRECT)
		flush_queue_run(
			mmu,
			&(struct umbra_flush_entry){
				.index = (uint64_t)it->table * SPTE_ENTRIES + it->slot + from,
				.addr = (it->gfn + from) << UMBRA_PAGE_SHIFT,
				.level = UMBRA_LEVEL_4K,
			},
			to - from);
}

/* The leaf of @gfn, which was seen to be @seen; what the CPU set meanwhile is not lost. Counts are the caller's. */
static inline void drop_4k(struct umbra_mmu *mmu, uint64_t *sptep, uint64_t seen, uint64_t gfn)
{
	const uint64_t old = __atomic_exchange_n(sptep, 0, __ATOMIC_ACQ_REL);

	if (!spte_same_but_ad(old, seen))
		mmu->os->bug("I4: a leaf changed under the lock");
	if ((old & (SPTE_ACCESSED | SPTE_DIRTY)) && mmu->nlogs)
		slot_log(mmu, gfn, UMBRA_LEVEL_4K, old);
}

uint32_t spte_drop_run(struct umbra_mmu *mmu, const struct spte_iter *it, unsigned int n)
{
	struct table *t = &mmu->tables[it->table];
	uint64_t *const entries = it->sptep;
	unsigned int run = 0; /* entries from here up to the one looked at have been dropped */
	uint32_t dropped = 0;

	check_live(mmu, it);
	for (unsigned int i = 0; i < n; i++) {
		const uint64_t seen = spte_read(&entries[i]);

		if (!spte_present(seen)) {
			if (i > run)
				queue_run(mmu, it, run, i);
			run = i + 1;
			continue;
		}
		drop_4k(mmu, &entries[i], seen, it->gfn + i);
		dropped++;
	}
	if (n > run)
		queue_run(mmu, it, run, n);
	if (dropped)
		mmu->lowered = true;
	for (unsigned int i = 0; t->host_pfns && i < n; i++)
		t->host_pfns[it->slot + i] = UMBRA_HOST_PFN_UNKNOWN;
	t->count = (uint16_t)(t->count - dropped);
	it->root->leaves_4k -= dropped;
	return dropped;
}

uint32_t spte_age_run(struct umbra_mmu *mmu, const struct spte_iter *it, unsigned int n)
{
	uint64_t *const entries = it->sptep;
	unsigned int run = 0;
	uint32_t aged = 0;

	check_live(mmu, it);
	for (unsigned int i = 0; i < n; i++) {
		const uint64_t seen = spte_read(&entries[i]);

		if (!spte_accessed(seen)) { /* an absent entry is zero */
			if (i > run)
				queue_run(mmu, it, run, i);
			run = i + 1;
			continue;
		}
		__atomic_fetch_and(&entries[i], ~SPTE_ACCESSED, __ATOMIC_ACQ_REL);
		if (mmu->nlogs)
			slot_log(mmu, it->gfn + i, UMBRA_LEVEL_4K, seen & ~SPTE_DIRTY);
		aged++;
	}
	if (n > run)
		queue_run(mmu, it, run, n);
	return aged;
}

int map_tables(struct umbra_root *root, uint64_t gfn, unsigned int level, struct spte_iter *it)
{
	struct umbra_mmu *mmu = root->mmu;

	for (;;) {
		int64_t child;

		walk_to(root, gfn, level, it);
		if (it->level == level)
			return 0;
		if (spte_present(it->old))
			return -EEXIST;
		child = table_new(root, it->level - 1U, gfn);
		if (child < 0) {
			map_prune(mmu, it->table); /* do not leave empty tables behind */
			return (int)child;
		}
		table_link(mmu, (uint32_t)child, it->table, it->slot);
		if (!spte_change(mmu, it,
				 spte_make_table(mmu->config.window_phys +
						 ((uint64_t)child << UMBRA_PAGE_SHIFT))))
			mmu->os->bug("I1: an absent entry changed under the lock");
	}
}

void map_record_pfn(struct umbra_mmu *mmu, const struct spte_iter *it, uint64_t host_pfn)
{
	if (mmu->tables[it->table].host_pfns)
		mmu->tables[it->table].host_pfns[it->slot] = host_pfn;
}

uint64_t map_recorded_pfn(const struct umbra_mmu *mmu, const struct spte_iter *it)
{
	const struct table *t = &mmu->tables[it->table];

	return t->host_pfns ? t->host_pfns[it->slot] : UMBRA_HOST_PFN_UNKNOWN;
}

/* Cuts an empty table off its parent, which is returned. */
static uint32_t unlink_empty(struct umbra_mmu *mmu, uint32_t table)
{
	const struct table *t = &mmu->tables[table];
	const uint32_t parent = t->parent;
	struct spte_iter it = {
		.root = t->root,
		.sptep = table_entries(mmu, parent) + t->slot,
		.gfn = t->gfn,
		.table = parent,
		.slot = t->slot,
		.level = (uint8_t)(t->level + 1),
	};

	it.old = spte_read(it.sptep);
	if (!spte_change(mmu, &it, 0))
		mmu->os->bug("I1: a table entry changed under the lock");
	table_retire(mmu, table, true);
	return parent;
}

static bool is_empty_child(const struct umbra_mmu *mmu, uint32_t table)
{
	return mmu->tables[table].count == 0 && mmu->tables[table].parent != NO_TABLE;
}

void map_prune(struct umbra_mmu *mmu, uint32_t table)
{
	while (is_empty_child(mmu, table))
		table = unlink_empty(mmu, table);
}

/* Drops the leaf without looking at the table it leaves empty. */
static void drop_leaf(struct umbra_mmu *mmu, struct spte_iter *it)
{
	if (!spte_change(mmu, it, 0))
		mmu->os->bug("I4: a leaf changed under the lock");
	slot_log(mmu, it->gfn, it->level, it->old);
	if (it->level == UMBRA_LEVEL_4K)
		mmu->stats.zapped_4k++;
	else
		mmu->stats.zapped_2m++;
}

void map_drop_leaf(struct umbra_mmu *mmu, struct spte_iter *it)
{
	drop_leaf(mmu, it);
	map_prune(mmu, it->table);
}

/* Cuts off a whole table of 4K leaves by one entry; its leaves are read and cleared when no CPU
 * walks it. */
static void unlink_leaves(struct umbra_mmu *mmu, struct spte_iter *it, struct zapped *zapped)
{
	const uint32_t child = spte_child(mmu, it->old);
	const uint16_t leaves = mmu->tables[child].count;

	if (!spte_change(mmu, it, 0))
		mmu->os->bug("I1: a table entry changed under the lock");
	it->root->leaves_4k -= leaves;
	mmu->stats.zapped_4k += leaves;
	zapped->leaves_4k += leaves;
	table_retire(mmu, child, false);
}

static void zap_run(struct umbra_mmu *mmu, struct spte_iter *it, unsigned int n,
		    struct zapped *zapped)
{
	const uint32_t dropped = spte_drop_run(mmu, it, n);

	mmu->stats.zapped_4k += dropped;
	zapped->leaves_4k += dropped;
}

/* [@start, @end) lies in what @table translates. */
static void zap_table(struct umbra_root *root, uint32_t table, uint64_t start, uint64_t end,
		      struct zapped *zapped)
{
	struct umbra_mmu *mmu = root->mmu;
	const struct table *t = &mmu->tables[table];
	const unsigned int level = t->level;
	const uint64_t span = spte_span(level);
	struct spte_iter it = {
		.root = root,
		.sptep = table_entries(mmu, table) + spte_slot(start, level),
		.gfn = start & ~(span - 1),
		.table = table,
		.slot = (uint16_t)spte_slot(start, level),
		.level = (uint8_t)level,
	};

	if (level == UMBRA_LEVEL_4K) {
		zap_run(mmu, &it, (unsigned int)(end - start), zapped);
		start = end;
	}
	for (; start < end && t->count; start = it.gfn += span, it.slot++, it.sptep++) {
		const uint64_t stop = end - it.gfn < span ? end : it.gfn + span;

		it.old = spte_read(it.sptep);
		if (!spte_present(it.old))
			continue;
		if (spte_is_leaf(it.old, level)) {
			drop_leaf(mmu, &it);
			zapped->leaves_2m++;
		} else if (level == UMBRA_LEVEL_2M && stop - start == span &&
			   mmu->tables[spte_child(mmu, it.old)].count > 1) {
			unlink_leaves(mmu, &it, zapped);
		} else {
			/* a child that gets empty cuts itself off */
			zap_table(root, spte_child(mmu, it.old), start, stop, zapped);
		}
	}
	if (is_empty_child(mmu, table))
		unlink_empty(mmu, table);
}

/*
 * The shortest way for what most invalidations are: one 4K leaf of a table, of which others stay. Returns: false, and nothing
 * is done, for anything else.
 */
static bool zap_page(struct umbra_root *root, uint64_t gfn, struct zapped *zapped)
{
	struct umbra_mmu *mmu = root->mmu;
	uint32_t index = root->table;
	uint64_t *sptep, entry;
	unsigned int slot;
	struct table *t;

	for (unsigned int level = UMBRA_LEVEL_512G; level > UMBRA_LEVEL_4K; level--) {
		entry = spte_read(table_entries(mmu, index) + spte_slot(gfn, level));
		if (!spte_is_table(entry, level))
			return !spte_present(entry);
		index = spte_child(mmu, entry);
	}
	t = &mmu->tables[index];
	slot = spte_slot(gfn, UMBRA_LEVEL_4K);
	sptep = table_entries(mmu, index) + slot;
	entry = spte_read(sptep);
	if (!spte_present(entry))
		return true;
	if (t->count == 1 || t->state != TABLE_LIVE)
		return false;
	drop_4k(mmu, sptep, entry, gfn);
	if (t->host_pfns)
		t->host_pfns[slot] = UMBRA_HOST_PFN_UNKNOWN;
	t->count--;
	root->leaves_4k--;
	mmu->stats.zapped_4k++;
	zapped->leaves_4k++;
	mmu->lowered = true;
	flush_queue(root, index, slot, gfn, UMBRA_LEVEL_4K);
	return true;
}

/* The short way for what most invalidations are: some 4K leaves of one table, of which others stay. */
static bool zap_in_block(struct umbra_root *root, uint64_t start, uint64_t end,
			 struct zapped *zapped)
{
	struct umbra_mmu *mmu = root->mmu;
	struct spte_iter it;

	walk_to(root, start, UMBRA_LEVEL_4K, &it);
	if (!spte_present(it.old) && it.level > UMBRA_LEVEL_4K)
		return true; /* nothing there */
	if (it.level != UMBRA_LEVEL_4K)
		return false;
	zap_run(mmu, &it, (unsigned int)(end - start), zapped);
	map_prune(mmu, it.table);
	return true;
}

void map_zap(struct umbra_root *root, struct gfn_range r, struct zapped *zapped)
{
	const uint64_t start = r.start.v, end = r.end.v < GFN_LIMIT ? r.end.v : GFN_LIMIT;

	if (start >= end || (end - start == 1 && zap_page(root, start, zapped)))
		return;
	if (end - start < UMBRA_HUGE_PAGES && !((start ^ (end - 1)) / UMBRA_HUGE_PAGES) &&
	    zap_in_block(root, start, end, zapped))
		return;
	zap_table(root, root->table, start, end, zapped);
}

void map_zap_root(struct umbra_root *root)
{
	struct umbra_mmu *mmu = root->mmu;

	for (unsigned int i = 0; i < SPTE_ENTRIES && mmu->tables[root->table].count; i++) {
		struct spte_iter it = {
			.root = root,
			.sptep = table_entries(mmu, root->table) + i,
			.gfn = i * spte_span(UMBRA_LEVEL_512G),
			.table = root->table,
			.slot = (uint16_t)i,
			.level = UMBRA_LEVEL_512G,
		};

		if (root->reserved[i / 64] >> (i % 64) & 1)
			continue;
		it.old = spte_read(it.sptep);
		if (!spte_present(it.old))
			continue;
		if (!spte_change(mmu, &it, 0))
			mmu->os->bug("I1: a table entry changed under the lock");
		table_retire(mmu, spte_child(mmu, it.old), false);
	}
	mmu->stats.zapped_4k += root->leaves_4k;
	mmu->stats.zapped_2m += root->leaves_2m;
	root->leaves_4k = 0;
	root->leaves_2m = 0;
}
