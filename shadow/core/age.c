/* SPDX-License-Identifier: BSD-2-Clause */
/* Young: was it accessed? Callouts never change a translation and never move the sequence. */
#include "private.h"

enum age_op { AGE_TEST, AGE_CLEAR };

struct age {
	struct umbra_mmu *mmu;
	enum age_op op;
	bool young;
};

static int age_run(void *arg, struct spte_iter *it, unsigned int n)
{
	struct age *a = arg;
	uint32_t aged;

	if (a->op == AGE_TEST) {
		for (unsigned int i = 0; i < n && !a->young; i++)
			a->young = spte_accessed(spte_read(it->sptep + i));
		return a->young; /* one is enough */
	}
	aged = spte_age_run(a->mmu, it, n);
	a->young |= aged != 0;
	a->mmu->stats.aged += aged;
	return 0;
}

static int age_leaf(void *arg, struct spte_iter *it)
{
	struct age *a = arg;

	if (!spte_accessed(it->old))
		return 0;
	a->young = true;
	if (a->op == AGE_TEST)
		return 1; /* one is enough */
	/* a 4K callout in a 2M leaf ages the whole leaf: less exact, never wrong */
	slot_log(a->mmu, it->gfn, it->level, it->old & ~SPTE_DIRTY);
	if (!spte_change(a->mmu, it, it->old & ~SPTE_ACCESSED))
		a->mmu->os->bug("I4: a leaf changed under the lock");
	a->mmu->stats.aged++;
	return 0;
}

/*
 * Never sleeps: with @kick the vCPUs are told, but not waited for. Until a vCPU was told, an access
 * of its may go unseen; that is what clear_young allows, and the window of clear_flush_young is the
 * kick.
 */
static bool age(struct umbra_notifier *n, struct hva_range r, enum age_op op, bool kick)
{
	struct umbra_mmu *mmu = mmu_of(n);
	struct age a = { .mmu = mmu, .op = op };
	const struct leaf_visitor visitor = { .run = age_run, .leaf = age_leaf, .arg = &a };
	struct gfn_range g;
	uint64_t ticket;

	mmu_lock(mmu);
	mmu->stats.young_callouts++;
	for (struct rmap_iter it = rmap_hva(mmu, r); rmap_next(mmu, &it, &g);)
		for (struct umbra_root *root = mmu->roots; root; root = root->next)
			walk_runs(root, g, &visitor);
	ticket = flush_post(mmu);
	mmu_unlock(mmu);
	if (kick)
		flush_wait(mmu, ticket, false);
	return a.young;
}

bool mmu_clear_flush_young(struct umbra_notifier *n, struct hva_range r)
{
	return age(n, r, AGE_CLEAR, true);
}

bool mmu_clear_young(struct umbra_notifier *n, struct hva_range r)
{
	return age(n, r, AGE_CLEAR, false);
}

bool mmu_test_young(struct umbra_notifier *n, struct hva_range r)
{
	return age(n, r, AGE_TEST, false);
}
