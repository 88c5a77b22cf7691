/* SPDX-License-Identifier: BSD-2-Clause */
/* The fault: snapshot, resolve unlocked, check under the lock, install. */
#include <errno.h>

#include "private.h"

static struct hva_range leaf_hva(const struct slot *s, uint64_t gfn, unsigned int level)
{
	const uint64_t first = gfn & ~(spte_span(level) - 1);
	const uint64_t start = s->pub.hva.v + ((first - s->pub.gfn.v) << UMBRA_PAGE_SHIFT);

	return (struct hva_range){ { start }, { start + (spte_span(level) << UMBRA_PAGE_SHIFT) } };
}

/*
 * A no is an answer too: it holds only if nothing changed the page meanwhile. While mremap moves a mapping away and
 * back, nothing is mapped at its hva, and that is not the guest's fault.
 */
static enum umbra_fault_result resolve_failed(struct umbra_root *root, uint64_t gfn,
					      const struct snapshot *snap, int rc,
					      struct umbra_fault *f)
{
	struct umbra_mmu *mmu = root->mmu;
	enum inv_verdict verdict = INV_PASSED;
	const struct slot *s;

	f->error = rc;
	mmu_lock(mmu);
	s = slot_of_gfn(mmu, gfn);
	if (s && mmu->slots_gen == snap->slots_gen)
		verdict = inv_retry(mmu, leaf_hva(s, gfn, UMBRA_LEVEL_4K), snap);
	if (verdict == INV_OPEN)
		mmu->stats.retried_open++;
	else if (verdict == INV_PASSED)
		mmu->stats.retried_seq++;
	mmu_unlock(mmu);
	if (verdict != INV_OK)
		return UMBRA_FAULT_RETRY;
	switch (rc) {
	case -EAGAIN: return UMBRA_FAULT_RETRY;
	case -EACCES: return UMBRA_FAULT_DENIED;
	case -ENOMEM: return UMBRA_FAULT_NO_MEMORY;
	case -EFAULT:
	case -EHWPOISON: return UMBRA_FAULT_BAD_HOST;
	default: return UMBRA_FAULT_ERROR;
	}
}

static bool leaf_allows(const struct spte_iter *it, uint32_t access)
{
	return spte_present(it->old) && spte_is_leaf(it->old, it->level) &&
	       (!(access & UMBRA_ACCESS_WRITE) || spte_writable(it->old));
}

static enum umbra_fault_result found(struct umbra_fault *f, const struct spte_iter *it,
				     enum umbra_fault_result result)
{
	f->level = (enum umbra_level)it->level;
	f->writable = spte_writable(it->old);
	return result;
}

/*
 * The host maps the page in a way that contradicts the leaf we have (another frame, or 4K under our
 * 2M), and nobody told us: drop it, and let the guest fault again.
 */
static enum umbra_fault_result drop_wrong_leaf(struct umbra_mmu *mmu, struct spte_iter *it)
{
	const struct slot *s = slot_of_gfn(mmu, it->gfn);
	const struct umbra_range r = {
		.hull = leaf_hva(s, it->gfn, it->level),
		.cause = UMBRA_CAUSE_COW,
		.source = UMBRA_SOURCE_CORE,
	};

	pin_lose(mmu, &r);
	map_drop_leaf(mmu, it);
	mmu->stats.retried_seq++;
	return UMBRA_FAULT_RETRY;
}

/* Is the frame of @gfn, which a present leaf maps, not the one that the host has there? */
static bool other_frame(struct umbra_mmu *mmu, const struct spte_iter *it, uint64_t gfn,
			const struct umbra_resolved *res)
{
	const uint64_t in_block = gfn & (UMBRA_HUGE_PAGES - 1);
	uint64_t recorded = map_recorded_pfn(mmu, it), now = res->host_pfn;

	if (recorded == UMBRA_HOST_PFN_UNKNOWN || now == UMBRA_HOST_PFN_UNKNOWN)
		return false;
	if (it->level < res->level)
		now += in_block;
	if (it->level > res->level)
		recorded += in_block;
	return recorded != now;
}

/* A present leaf lacks the right asked for, and the host grants it. */
static enum umbra_fault_result upgrade(struct umbra_mmu *mmu, struct spte_iter *it,
				       const struct umbra_resolved *res, struct umbra_fault *f)
{
	if (it->level > res->level)
		return drop_wrong_leaf(mmu, it);
	if (!spte_change(mmu, it, it->old | SPTE_WRITABLE))
		mmu->os->bug("I4: a leaf changed under the lock");
	mmu->stats.upgraded++;
	f->level = (enum umbra_level)it->level;
	f->writable = true;
	return UMBRA_FAULT_INSTALLED;
}

/* Lock held, verdict OK: the entry for @gfn becomes what @res says. */
static enum umbra_fault_result install(struct umbra_root *root, struct slot *s, uint64_t gfn,
				       const struct umbra_resolved *res, struct umbra_fault *f)
{
	struct umbra_mmu *mmu = root->mmu;
	unsigned int level = res->level;
	bool writable = res->writable && !(s->pub.flags & UMBRA_SLOT_READONLY);
	struct spte_iter it;
	uint64_t first, pfn;

	walk_to(root, gfn, UMBRA_LEVEL_4K, &it);
	if (spte_present(it.old) && other_frame(mmu, &it, gfn, res))
		return drop_wrong_leaf(mmu, &it);
	if (leaf_allows(&it, f->access))
		return found(f, &it, UMBRA_FAULT_SPURIOUS); /* another thread was faster */
	if (spte_present(it.old))
		return upgrade(mmu, &it, res, f);

	/* a table with 4K leaves stays: it goes when it is empty, or by umbra_collapse() */
	if (level == UMBRA_LEVEL_2M && it.level == UMBRA_LEVEL_4K)
		level = UMBRA_LEVEL_4K;
	switch (map_tables(root, gfn, level, &it)) {
	case 0: break;
	case -EEXIST: mmu->os->bug("I1: a leaf appeared under the lock");
	default: return UMBRA_FAULT_NO_MEMORY;
	}
	first = gfn & ~(spte_span(level) - 1);
	pfn = s->pub.out.v + (first - s->pub.gfn.v);
	if (!spte_change(mmu, &it, spte_make_leaf(pfn, level, writable)))
		mmu->os->bug("I4: an absent entry changed under the lock");
	if (res->host_pfn != UMBRA_HOST_PFN_UNKNOWN)
		map_record_pfn(mmu, &it,
			       level == res->level
				       ? res->host_pfn
				       : res->host_pfn + (gfn & (UMBRA_HUGE_PAGES - 1)));
	else
		map_record_pfn(mmu, &it, UMBRA_HOST_PFN_UNKNOWN);
	if (level == UMBRA_LEVEL_2M)
		mmu->stats.installed_2m++;
	else
		mmu->stats.installed_4k++;
	f->level = (enum umbra_level)level;
	f->writable = writable;
	return UMBRA_FAULT_INSTALLED;
}

/*
 * Everything that can be said before asking the host. Lock held. True: @result is the answer. Else @most: the
 * largest leaf that could be installed: where a table with 4K leaves is, it stays.
 */
static bool answered_early(struct umbra_root *root, struct umbra_fault *f, struct slot **slot,
			   enum umbra_fault_result *result, enum umbra_level *most)
{
	struct umbra_mmu *mmu = root->mmu;
	const uint64_t gfn = f->gpa.v >> UMBRA_PAGE_SHIFT;
	struct spte_iter it;

	*slot = slot_of_gfn(mmu, gfn);
	if (mmu->released) {
		*result = UMBRA_FAULT_RELEASED;
		return true;
	}
	if (!*slot) {
		*result = UMBRA_FAULT_NO_SLOT;
		return true;
	}
	f->hva.v = slot_hva(*slot, gfn);
	if ((f->access & UMBRA_ACCESS_WRITE) && ((*slot)->pub.flags & UMBRA_SLOT_READONLY)) {
		*result = UMBRA_FAULT_READONLY;
		return true;
	}
	walk_to(root, gfn, UMBRA_LEVEL_4K, &it);
	if (leaf_allows(&it, f->access)) {
		/*
		 * The CPU faulted on an entry that is good: it knows an older one. Usually another
		 * vCPU was faster; to be sure that a CPU cannot fault for ever, it is told of the
		 * entry again.
		 */
		mmu->stats.spurious++;
		flush_queue(it.root, it.table, it.slot, it.gfn, it.level);
		flush_post(mmu);
		*result = found(f, &it, UMBRA_FAULT_SPURIOUS);
		return true;
	}
	*most = it.level == UMBRA_LEVEL_4K ? UMBRA_LEVEL_4K : slot_max_level(*slot, gfn);
	return false;
}

enum umbra_fault_result umbra_fault(struct umbra_root *root, struct umbra_fault *f)
{
	struct umbra_mmu *mmu = root->mmu;
	const uint64_t gfn = f->gpa.v >> UMBRA_PAGE_SHIFT;
	struct umbra_resolved res = { UMBRA_LEVEL_4K, false, UMBRA_HOST_PFN_UNKNOWN };
	struct umbra_resolve_req req;
	enum umbra_fault_result result;
	enum umbra_level most;
	struct snapshot snap;
	struct slot *s;
	bool drained = false;
	int rc;

	f->level = UMBRA_LEVEL_NONE;
	f->writable = false;
	f->hva.v = 0;
	f->error = 0;
again:
	mmu_lock(mmu);
	mmu->stats.faults += !drained;
	if (answered_early(root, f, &s, &result, &most)) {
		mmu_unlock(mmu);
		return result;
	}
	req = (struct umbra_resolve_req){
		.hva = f->hva,
		.gfn = { gfn },
		.access = f->access,
		.slot_id = s->pub.id,
		.slot_flags = s->pub.flags,
		.max_level = most,
	};
	inv_snapshot(mmu, leaf_hva(s, gfn, req.max_level), &snap);
	if (inv_open(mmu, leaf_hva(s, gfn, UMBRA_LEVEL_4K))) {
		mmu->stats.retried_open++;
		mmu_unlock(mmu);
		return UMBRA_FAULT_RETRY;
	}
	mmu_unlock(mmu);

	rc = mmu->config.ops->resolve(mmu->config.ctx, &req, &res);
	if (rc)
		return resolve_failed(root, gfn, &snap, rc, f);
	if (res.level > req.max_level ||
	    (res.level == UMBRA_LEVEL_2M && req.max_level == UMBRA_LEVEL_4K)) {
		/* host_pfn is of the block: this page's is inside */
		if (res.host_pfn != UMBRA_HOST_PFN_UNKNOWN)
			res.host_pfn += (f->hva.v >> UMBRA_PAGE_SHIFT) & (UMBRA_HUGE_PAGES - 1);
		res.level = UMBRA_LEVEL_4K;
	}
	if ((f->access & UMBRA_ACCESS_WRITE) && !res.writable) {
		f->error = -EAGAIN;
		return UMBRA_FAULT_RETRY;
	}

	mmu_lock(mmu);
	if (mmu->released) {
		result = UMBRA_FAULT_RELEASED;
	} else if (!(s = slot_of_gfn(mmu, gfn))) {
		mmu->stats.retried_seq++;
		result = UMBRA_FAULT_RETRY;
	} else { /* another slot than the one resolved for is found out by inv_retry() */
		switch (inv_retry(mmu, leaf_hva(s, gfn, res.level), &snap)) {
		case INV_OPEN:
			mmu->stats.retried_open++;
			result = UMBRA_FAULT_RETRY;
			break;
		case INV_PASSED:
			mmu->stats.retried_seq++;
			result = UMBRA_FAULT_RETRY;
			break;
		default: result = install(root, s, gfn, &res, f);
		}
	}
	flush_post(mmu); /* an upgrade or a dropped leaf: effective before this vCPU runs guest code
			    again */
	if (result == UMBRA_FAULT_NO_MEMORY && !drained) {
		drained = true;
		tables_drain(mmu);
		mmu_unlock(mmu);
		goto again;
	}
	mmu_unlock(mmu);
	return result;
}
