/* SPDX-License-Identifier: BSD-2-Clause */
/* Walking the tables: finds entries and remembers what it saw, never writes. */
#include <errno.h>

#include "private.h"

void walk_lost(const struct umbra_mmu *mmu)
{
	mmu->os->bug("I1: a table entry points outside the window");
}

static void iter_at(struct spte_iter *it, struct umbra_root *root, uint32_t table,
		    unsigned int level, uint64_t gfn)
{
	const unsigned int slot = spte_slot(gfn, level);

	it->root = root;
	it->table = table;
	it->level = (uint8_t)level;
	it->slot = (uint16_t)slot;
	it->gfn = gfn & ~(spte_span(level) - 1);
	it->sptep = table_entries(root->mmu, table) + slot;
	it->old = spte_read(it->sptep);
}

/* One level at a time, with constants for shifts: it is on the way of every fault and of most invalidations. */
#define WALK_STEP(at)                                                                       \
	do {                                                                                \
		slot = spte_slot(gfn, at);                                                  \
		sptep = table_entries(mmu, table) + slot;                                   \
		old = spte_read(sptep);                                                     \
		if (level == (at) || !spte_is_table(old, at)) {                             \
			*it = (struct spte_iter){ root,         sptep,                      \
						  old,          gfn & ~(spte_span(at) - 1), \
						  table,        (uint16_t)slot,             \
						  (uint8_t)(at) };                          \
			return;                                                             \
		}                                                                           \
		table = spte_child(mmu, old);                                               \
	} while (0)

void walk_to(struct umbra_root *root, uint64_t gfn, unsigned int level, struct spte_iter *it)
{
	const struct umbra_mmu *mmu = root->mmu;
	uint32_t table = root->table;
	uint64_t *sptep, old;
	unsigned int slot;

	WALK_STEP(UMBRA_LEVEL_512G);
	WALK_STEP(UMBRA_LEVEL_1G);
	WALK_STEP(UMBRA_LEVEL_2M);
	iter_at(it, root, table, UMBRA_LEVEL_4K, gfn);
}

struct leaf_walk {
	struct umbra_root *root;
	struct gfn_range r;
	int (*fn)(void *arg, struct spte_iter *it);
	void *arg;
};

static int walk_table(const struct leaf_walk *w, uint32_t table, unsigned int level, uint64_t base)
{
	const uint64_t span = spte_span(level);
	const uint64_t start = w->r.start.v > base ? w->r.start.v : base;
	const uint64_t limit = base + span * SPTE_ENTRIES;
	const uint64_t end = w->r.end.v < limit ? w->r.end.v : limit;

	for (uint64_t gfn = start & ~(span - 1); gfn < end; gfn += span) {
		struct spte_iter it;
		int rc;

		/* the upper half of a root is the embedder's or empty; gfns never reach it */
		iter_at(&it, w->root, table, level, gfn);
		if (!spte_present(it.old))
			continue;
		if (spte_is_leaf(it.old, level))
			rc = w->fn(w->arg, &it);
		else
			rc = walk_table(w, spte_child(w->root->mmu, it.old), level - 1, gfn);
		if (rc)
			return rc;
	}
	return 0;
}

int walk_leaves(struct umbra_root *root, struct gfn_range r,
		int (*fn)(void *arg, struct spte_iter *it), void *arg)
{
	struct leaf_walk w = { .root = root, .r = r, .fn = fn, .arg = arg };

	if (w.r.end.v > GFN_LIMIT)
		w.r.end.v = GFN_LIMIT;
	if (gfn_range_empty(w.r))
		return 0;
	return walk_table(&w, root->table, UMBRA_LEVEL_512G, 0);
}

/* [@start, @end) lies in what @table translates. */
static int walk_table_runs(const struct leaf_visitor *v, struct spte_iter *at, uint64_t start,
			   uint64_t end)
{
	const uint64_t span = spte_span(at->level);
	const struct umbra_mmu *mmu = at->root->mmu;
	int rc = 0;

	if (at->level == UMBRA_LEVEL_4K)
		return v->run(v->arg, at, (unsigned int)(end - start));
	for (uint64_t stop; !rc && start < end; start = stop) {
		struct spte_iter it;

		iter_at(&it, at->root, at->table, at->level, start);
		stop = end - it.gfn < span ? end : it.gfn + span;
		if (!spte_present(it.old))
			continue;
		if (spte_is_leaf(it.old, it.level)) {
			rc = v->leaf(v->arg, &it);
		} else {
			iter_at(&it, at->root, spte_child(mmu, it.old), at->level - 1U, start);
			rc = walk_table_runs(v, &it, start, stop);
		}
	}
	return rc;
}

int walk_runs(struct umbra_root *root, struct gfn_range r, const struct leaf_visitor *visitor)
{
	const uint64_t end = r.end.v < GFN_LIMIT ? r.end.v : GFN_LIMIT;
	struct spte_iter it;

	if (r.start.v >= end)
		return 0;
	iter_at(&it, root, root->table, UMBRA_LEVEL_512G, r.start.v);
	return walk_table_runs(visitor, &it, r.start.v, end);
}

uint64_t walk_next_table(struct umbra_root *root, uint64_t gfn, uint64_t limit)
{
	struct spte_iter it;

	for (; gfn < limit; gfn = it.gfn + spte_span(it.level)) {
		walk_to(root, gfn, UMBRA_LEVEL_2M, &it);
		if (it.level == UMBRA_LEVEL_2M && spte_is_table(it.old, UMBRA_LEVEL_2M))
			return it.gfn;
	}
	return UINT64_MAX;
}

/*
 * One step of a lookup: @entry becomes the one of @gfn in the table that it points to. What is read from a table page in
 * transit may point anywhere: beyond the window nothing is read. The address is one addition away from the entry before,
 * all the rest of the work is beside the chain of loads (bench/walk.c).
 */
#define LOOKUP_STEP(at)                                                                \
	do {                                                                           \
		const uint64_t place = beside + spte_slot(gfn, at) * sizeof(uint64_t); \
		const uint64_t table = entry & SPTE_ADDR;                              \
                                                                                       \
		if (__builtin_expect(table - phys >= bytes, 0))                        \
			goto odd;                                                      \
		entry = spte_read((const uint64_t *)(uintptr_t)(table + place));       \
		if (!spte_present(entry))                                              \
			goto absent;                                                   \
	} while (0)

int umbra_lookup(struct umbra_root *root, gpa_t gpa, struct umbra_translation *t)
{
	const struct umbra_mmu *mmu = root->mmu;
	const uint64_t gfn = gpa.v >> UMBRA_PAGE_SHIFT;
	const uint64_t phys = mmu->config.window_phys;
	const uint64_t bytes = mmu->config.window_pages << UMBRA_PAGE_SHIFT;
	const uint64_t beside = (uintptr_t)mmu->config.window - phys;
	enum umbra_level level = UMBRA_LEVEL_2M;
	uint64_t gen, entry;

	if (gfn >= GFN_LIMIT)
		return -ENOENT;
again:
	/*
	 * A table page met on the way may be given back, and used again at another level, while we
	 * walk. free_gen moves before that can happen (table_give_back, the partner of this
	 * acquire).
	 */
	gen = __atomic_load_n(&mmu->free_gen, __ATOMIC_ACQUIRE);
	entry = phys + ((uint64_t)root->table << UMBRA_PAGE_SHIFT);
	LOOKUP_STEP(UMBRA_LEVEL_512G);
	LOOKUP_STEP(UMBRA_LEVEL_1G);
	LOOKUP_STEP(UMBRA_LEVEL_2M);
	if (!spte_is_leaf(entry, UMBRA_LEVEL_2M)) {
		LOOKUP_STEP(UMBRA_LEVEL_4K);
		level = UMBRA_LEVEL_4K;
	}
	/* every entry was read with acquire: this load cannot move before them */
	if (__atomic_load_n(&mmu->free_gen, __ATOMIC_RELAXED) != gen)
		goto once_more;
	t->pfn.v = spte_pfn(entry) + (gfn & (spte_span(level) - 1));
	t->level = level;
	t->writable = spte_writable(entry);
	t->accessed = spte_accessed(entry);
	t->dirty = spte_dirty(entry);
	return 0;

absent:
	if (__atomic_load_n(&mmu->free_gen, __ATOMIC_RELAXED) == gen)
		return -ENOENT;
	goto once_more;
odd:
	if (__atomic_load_n(&mmu->free_gen, __ATOMIC_RELAXED) == gen)
		walk_lost(mmu);
once_more:
	level = UMBRA_LEVEL_2M;
	goto again;
}
