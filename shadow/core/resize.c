/* SPDX-License-Identifier: BSD-2-Clause */
/* The embedder's own changes of leaves: drop, write-protect, split 2M into 4K, collapse 4K into 2M.
 */
#include <errno.h>

#include "private.h"

void umbra_zap(struct umbra_mmu *mmu, struct gfn_range r)
{
	struct zapped zapped = { 0, 0 };
	uint64_t ticket;

	mmu_lock(mmu);
	mmu->cuts_gen++;
	for (struct umbra_root *root = mmu->roots; root; root = root->next)
		map_zap(root, r, &zapped);
	ticket = flush_post(mmu);
	mmu_unlock(mmu);
	flush_wait(mmu, ticket, true);
	mmu_lock(mmu);
	tables_settle(mmu, SETTLE_BUDGET);
	mmu_unlock(mmu);
}

void umbra_zap_all(struct umbra_mmu *mmu)
{
	uint64_t ticket;

	mmu_lock(mmu);
	mmu->cuts_gen++;
	mmu->stats.zap_alls++;
	for (struct umbra_root *root = mmu->roots; root; root = root->next)
		map_zap_root(root);
	ticket = flush_post(mmu);
	mmu_unlock(mmu);
	flush_wait(mmu, ticket, true);
}

static int protect_leaf(void *arg, struct spte_iter *it)
{
	struct umbra_mmu *mmu = arg;

	if (!spte_writable(it->old))
		return 0;
	if (!spte_change(mmu, it, it->old & ~SPTE_WRITABLE))
		mmu->os->bug("I4: a leaf changed under the lock");
	mmu->stats.protected ++;
	return 0;
}

void umbra_write_protect(struct umbra_mmu *mmu, struct gfn_range r)
{
	uint64_t ticket;

	mmu_lock(mmu);
	mmu->cuts_gen++;
	for (struct umbra_root *root = mmu->roots; root; root = root->next)
		walk_leaves(root, r, protect_leaf, mmu);
	ticket = flush_post(mmu);
	mmu_unlock(mmu);
	flush_wait(mmu, ticket, true);
}

struct split {
	struct umbra_mmu *mmu;
	int64_t done;
};

static int split_leaf(void *arg, struct spte_iter *it)
{
	struct split *s = arg;
	struct umbra_mmu *mmu = s->mmu;
	uint64_t host_pfn, *entries;
	int64_t child;

	if (it->level != UMBRA_LEVEL_2M)
		return 0;
	host_pfn = map_recorded_pfn(mmu, it);
	child = table_new(it->root, UMBRA_LEVEL_4K, it->gfn);
	if (child < 0)
		return -ENOSPC;
	entries = table_entries(mmu, (uint32_t)child);
	table_link(mmu, (uint32_t)child, it->table, it->slot);
	do {
		/* again if the CPU set accessed or dirty while we copied them */
		for (unsigned int i = 0; i < SPTE_ENTRIES; i++)
			__atomic_store_n(&entries[i], spte_split_child(it->old, i),
					 __ATOMIC_RELAXED);
	} while (!spte_change(
		mmu, it,
		spte_make_table(mmu->config.window_phys + ((uint64_t)child << UMBRA_PAGE_SHIFT))));
	mmu->tables[child].count = SPTE_ENTRIES;
	it->root->leaves_4k += SPTE_ENTRIES;
	if (mmu->tables[child].host_pfns)
		for (unsigned int i = 0; i < SPTE_ENTRIES; i++)
			mmu->tables[child].host_pfns[i] =
				host_pfn == UMBRA_HOST_PFN_UNKNOWN ? host_pfn : host_pfn + i;
	mmu->stats.split++;
	s->done++;
	return 0;
}

int64_t umbra_split(struct umbra_mmu *mmu, struct gfn_range r)
{
	struct split s = { .mmu = mmu };
	uint64_t ticket;
	int rc = 0;

	mmu_lock(mmu);
	for (struct umbra_root *root = mmu->roots; root && !rc; root = root->next)
		rc = walk_leaves(root, r, split_leaf, &s);
	ticket = flush_post(mmu);
	mmu_unlock(mmu);
	flush_wait(mmu, ticket, true);
	return rc ? rc : s.done;
}

/* The table of 512 x 4K at @it, if it could be one 2M leaf: contiguous frames, equal rights. Else
 * NO_TABLE. */
static uint32_t collapsible(struct umbra_mmu *mmu, const struct spte_iter *it)
{
	const uint64_t *entries;
	uint64_t first;
	uint32_t child;

	if (it->level != UMBRA_LEVEL_2M || !spte_is_table(it->old, UMBRA_LEVEL_2M))
		return NO_TABLE;
	child = spte_child(mmu, it->old);
	if (mmu->tables[child].count != SPTE_ENTRIES)
		return NO_TABLE;
	entries = table_entries(mmu, child);
	first = spte_read(&entries[0]);
	for (unsigned int i = 1; i < SPTE_ENTRIES; i++)
		if (!spte_same_but_ad(spte_read(&entries[i]),
				      first + ((uint64_t)i << UMBRA_PAGE_SHIFT)))
			return NO_TABLE;
	return child;
}

/* One 2M block: 1 collapsed, 0 not. */
static int collapse_block(struct umbra_root *root, uint64_t gfn)
{
	struct umbra_mmu *mmu = root->mmu;
	struct umbra_resolved res = { UMBRA_LEVEL_4K, false, UMBRA_HOST_PFN_UNKNOWN };
	struct umbra_resolve_req req = { .access = UMBRA_ACCESS_READ,
					 .max_level = UMBRA_LEVEL_2M,
					 .gfn = { gfn } };
	struct zapped zapped = { SPTE_ENTRIES, 0 };
	struct umbra_range range = {
		.flags = UMBRA_RANGE_BLOCKABLE,
		.cause = UMBRA_CAUSE_COLLAPSE,
		.source = UMBRA_SOURCE_CORE,
	};
	struct snapshot snap;
	struct spte_iter it;
	uint64_t first, ad = 0, ticket, cuts_gen;
	struct slot *s;
	uint32_t child;
	int done = 0;

	mmu_lock(mmu);
	s = slot_of_gfn(mmu, gfn);
	walk_to(root, gfn, UMBRA_LEVEL_2M, &it);
	if (!s || slot_max_level(s, gfn) != UMBRA_LEVEL_2M || collapsible(mmu, &it) == NO_TABLE)
		goto out;
	req.slot_id = s->pub.id;
	req.slot_flags = s->pub.flags;
	req.hva.v = slot_hva(s, gfn);
	range.hull = (struct hva_range){ req.hva, { req.hva.v + UMBRA_HUGE_SIZE } };
	inv_snapshot(mmu, range.hull, &snap);
	mmu_unlock(mmu);
	if (mmu->config.ops->resolve(mmu->config.ctx, &req, &res) || res.level != UMBRA_LEVEL_2M)
		return 0;

	mmu_lock(mmu);
	if (mmu->released || inv_retry(mmu, range.hull, &snap) != INV_OK)
		goto out;
	walk_to(root, gfn, UMBRA_LEVEL_2M, &it);
	child = collapsible(mmu, &it);
	if (child == NO_TABLE)
		goto out;
	first = spte_read(table_entries(mmu, child));

	/* break before make: no CPU may hold 4K and 2M translations of one page, nor set bits in a
	 * table we read */
	if (!spte_change(mmu, &it, 0))
		mmu->os->bug("I1: a table entry changed under the lock");
	root->leaves_4k -= SPTE_ENTRIES;
	mmu->stats.zapped_4k += SPTE_ENTRIES;
	inv_begin(mmu, &range, &zapped);
	inv_snapshot(mmu, range.hull, &snap);
	cuts_gen = mmu->cuts_gen;
	mmu->tables[child].parent = NO_TABLE; /* ours alone until it is retired below */
	mmu->in_transit++;
	map_prune(mmu, it.table);
	ticket = flush_post(mmu);
	mmu_unlock(mmu);
	flush_wait(mmu, ticket, true);

	mmu_lock(mmu);
	for (unsigned int i = 0; i < SPTE_ENTRIES; i++)
		ad |= spte_read(table_entries(mmu, child) + i) & (SPTE_ACCESSED | SPTE_DIRTY);
	inv_finish(mmu, &range);
	snap.open_block = false; /* it was our own bracket */
	/* nor does it bring back what a zap, or a write permission what a write_protect found no leaf to take from */
	if (!mmu->released && mmu->cuts_gen == cuts_gen &&
	    inv_retry(mmu, range.hull, &snap) == INV_OK) {
		/* without a table page it stays a hole: a fault brings it back */
		if (map_tables(root, gfn, UMBRA_LEVEL_2M, &it) == 0 && !spte_present(it.old))
			done = spte_change(mmu, &it,
					   spte_make_leaf(spte_pfn(first), UMBRA_LEVEL_2M,
							  spte_writable(first)) |
						   ad);
	}
	if (done) {
		/* the leaf carries the bits now */
		map_record_pfn(mmu, &it, res.host_pfn);
		for (unsigned int i = 0; i < SPTE_ENTRIES; i++)
			__atomic_fetch_and(table_entries(mmu, child) + i,
					   ~(SPTE_ACCESSED | SPTE_DIRTY), __ATOMIC_RELAXED);
		mmu->stats.collapsed++;
		mmu->stats.installed_2m++;
	}
	mmu->in_transit--;
	table_retire(mmu, child, false);
	flush_post(mmu);
	tables_settle(mmu, SETTLE_BUDGET);
out:
	mmu_unlock(mmu);
	return done;
}

int64_t umbra_collapse(struct umbra_mmu *mmu, struct gfn_range r)
{
	const uint64_t mask = UMBRA_HUGE_PAGES - 1;
	const uint64_t limit = (r.end.v < GFN_LIMIT ? r.end.v : GFN_LIMIT) & ~mask;
	int64_t done = 0;
	bool last;

	if (r.start.v >= limit)
		return 0;
	mmu_lock(mmu);
	mmu->collapsing++; /* keeps the roots */
	for (struct umbra_root *root = mmu->roots; root; root = root->next) {
		uint64_t gfn = (r.start.v + mask) & ~mask;

		while ((gfn = walk_next_table(root, gfn, limit)) != UINT64_MAX) {
			mmu_unlock(mmu);
			done += collapse_block(root, gfn);
			mmu_lock(mmu);
			gfn += UMBRA_HUGE_PAGES;
		}
	}
	last = !--mmu->collapsing;
	mmu_unlock(mmu);
	if (last && mmu->os->wake) /* whoever destroys a root */
		mmu->os->wake(&mmu->collapsing);
	return done;
}
