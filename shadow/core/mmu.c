/* SPDX-License-Identifier: BSD-2-Clause */
/* An MMU and its roots: made, ended, counted. */
#include <errno.h>

#include "private.h"

#define WINDOW_PAGES_MAX (1ULL << 28)

int umbra_mmu_create(struct umbra_mmu **out, const struct umbra_mmu_config *config)
{
	const uint64_t page = UMBRA_PAGE_SIZE - 1;
	const struct umbra_mmu_ops *ops = config->ops;
	struct umbra_mmu *mmu;

	if (!config->os || !ops || !ops->table_alloc || !ops->table_free || !ops->resolve ||
	    !ops->flush_queue || !ops->flush_post || !ops->flush_wait || !ops->flush_done ||
	    !config->window || ((uintptr_t)config->window & page) || (config->window_phys & page) ||
	    config->window_pages == 0 || config->window_pages > WINDOW_PAGES_MAX ||
	    config->window_phys + (config->window_pages << UMBRA_PAGE_SHIFT) > SPTE_ADDR ||
	    (config->flags & ~(uint32_t)UMBRA_MMU_RECORD_PFN))
		return -EINVAL;
	mmu = config->os->alloc(sizeof(*mmu));
	if (!mmu)
		return -ENOMEM;
	mmu->config = *config;
	mmu->os = config->os;
	mmu->notifier.ops = &mmu_notifier_ops;
	mmu->notifier.name = "shadow mmu";
	mmu->seq = config->first_seq.v;
	mmu->unlinked = mmu->cleared = (struct table_list){ NO_TABLE, NO_TABLE, NO_TABLE, 0 };
	mmu->lock = mmu->os->mutex_create();
	mmu->tables = mmu->os->alloc(config->window_pages * sizeof(*mmu->tables));
	if (config->flags & UMBRA_MMU_RECORD_PFN)
		mmu->host_pfns =
			mmu->os->alloc(config->window_pages * SPTE_ENTRIES * sizeof(uint64_t));
	if (!mmu->lock || !mmu->tables ||
	    ((config->flags & UMBRA_MMU_RECORD_PFN) && !mmu->host_pfns)) {
		umbra_mmu_destroy(mmu);
		return -ENOMEM;
	}
	*out = mmu;
	return 0;
}

void umbra_mmu_destroy(struct umbra_mmu *mmu)
{
	const struct umbra_os *os = mmu->os;

	while (mmu->roots)
		umbra_root_destroy(mmu->roots);
	for (uint32_t i = 0; i < mmu->nslots; i++) {
		struct slot *s = &mmu->slots[i];
		const uint64_t bytes = (s->pub.npages + 63) / 64 * sizeof(uint64_t);

		if (s->log_accessed)
			os->free(s->log_accessed, bytes);
		if (s->log_dirty)
			os->free(s->log_dirty, bytes);
	}
	if (mmu->slots_cap) {
		os->free(mmu->slots, mmu->slots_cap * sizeof(*mmu->slots));
		os->free(mmu->by_hva, mmu->slots_cap * sizeof(*mmu->by_hva));
	}
	if (mmu->host_pfns)
		os->free(mmu->host_pfns,
			 mmu->config.window_pages * SPTE_ENTRIES * sizeof(uint64_t));
	if (mmu->tables)
		os->free(mmu->tables, mmu->config.window_pages * sizeof(*mmu->tables));
	if (mmu->lock)
		os->mutex_destroy(mmu->lock);
	os->free(mmu, sizeof(*mmu));
}

struct umbra_notifier *umbra_mmu_notifier(struct umbra_mmu *mmu)
{
	return &mmu->notifier;
}

int umbra_root_create(struct umbra_mmu *mmu, enum umbra_root_kind kind, struct umbra_root **out)
{
	struct umbra_root *root;
	int64_t table;

	if (kind != UMBRA_ROOT_DIRECT && kind != UMBRA_ROOT_MIRROR)
		return -ENOTSUP;
	root = mmu->os->alloc(sizeof(*root));
	if (!root)
		return -ENOSPC;
	root->mmu = mmu;
	root->kind = kind;
	mmu_lock(mmu);
	table = mmu->released ? -ESHUTDOWN : table_new(root, UMBRA_LEVEL_512G, 0);
	if (table >= 0) {
		root->table = (uint32_t)table;
		root->next = mmu->roots;
		mmu->roots = root;
	}
	mmu_unlock(mmu);
	if (table < 0) {
		mmu->os->free(root, sizeof(*root));
		return (int)table;
	}
	*out = root;
	return 0;
}

void umbra_root_destroy(struct umbra_root *root)
{
	struct umbra_mmu *mmu = root->mmu;
	struct umbra_root **pp = &mmu->roots;
	uint64_t *entries;

	mmu_lock(mmu);
	while (mmu->collapsing) { /* they may sleep, in resolve */
		const uint32_t now = mmu->collapsing;

		mmu_unlock(mmu);
		if (mmu->os->wait)
			mmu->os->wait(&mmu->collapsing, now);
		else
			mmu->os->relax();
		mmu_lock(mmu);
	}
	while (*pp != root)
		pp = &(*pp)->next;
	*pp = root->next;
	entries = table_entries(mmu, root->table);
	for (unsigned int i = 0; i < SPTE_ENTRIES; i++)
		if (root->reserved[i / 64] >> (i % 64) & 1)
			__atomic_store_n(&entries[i], 0, __ATOMIC_RELAXED);
	map_zap_root(root);
	table_retire(mmu, root->table, true);
	table_queue_clear(mmu, root->table);
	flush_post(mmu);
	tables_drain(mmu);
	mmu_unlock(mmu);
	mmu->os->free(root, sizeof(*root));
}

uint64_t umbra_root_phys(const struct umbra_root *root)
{
	return root->mmu->config.window_phys + ((uint64_t)root->table << UMBRA_PAGE_SHIFT);
}

int umbra_root_reserve(struct umbra_root *root, unsigned int index, uint64_t entry)
{
	struct umbra_mmu *mmu = root->mmu;

	if (index < SPTE_ENTRIES / 2 || index >= SPTE_ENTRIES)
		return -EINVAL;
	mmu_lock(mmu);
	root->reserved[index / 64] |= 1ULL << (index % 64);
	__atomic_store_n(table_entries(mmu, root->table) + index, entry, __ATOMIC_RELEASE);
	mmu_unlock(mmu);
	return 0;
}

void umbra_mmu_stats(struct umbra_mmu *mmu, struct umbra_stats *stats)
{
	mmu_lock(mmu);
	*stats = mmu->stats;
	for (const struct umbra_root *root = mmu->roots; root; root = root->next) {
		stats->leaves_4k += root->leaves_4k;
		stats->leaves_2m += root->leaves_2m;
	}
	stats->tables_unlinked = mmu->unlinked.count + mmu->cleared.count;
	stats->slots = mmu->nslots;
	stats->seq.v = mmu->seq;
	mmu_unlock(mmu);
}

struct each_leaf {
	struct umbra_mmu *mmu;
	int (*fn)(void *arg, const struct umbra_leaf *leaf);
	void *arg;
};

static int show_leaf(void *arg, struct spte_iter *it)
{
	struct each_leaf *e = arg;
	const struct slot *s = slot_of_gfn(e->mmu, it->gfn);
	const struct umbra_leaf leaf = {
		.gfn = { it->gfn },
		.level = (enum umbra_level)it->level,
		.pfn = { spte_pfn(it->old) },
		.writable = spte_writable(it->old),
		.accessed = spte_accessed(it->old),
		.dirty = spte_dirty(it->old),
		.hva = { s ? slot_hva(s, it->gfn) : 0 },
		.host_pfn = map_recorded_pfn(e->mmu, it),
		.slot_id = s ? s->pub.id : UINT32_MAX,
	};

	return e->fn(e->arg, &leaf);
}

int umbra_for_each_leaf(struct umbra_root *root, struct gfn_range r,
			int (*fn)(void *arg, const struct umbra_leaf *leaf), void *arg)
{
	struct each_leaf e = { .mmu = root->mmu, .fn = fn, .arg = arg };
	int rc;

	mmu_lock(root->mmu);
	rc = walk_leaves(root, r, show_leaf, &e);
	mmu_unlock(root->mmu);
	return rc;
}

struct umbra_mmu *umbra_root_mmu(const struct umbra_root *root)
{
	return root->mmu;
}
