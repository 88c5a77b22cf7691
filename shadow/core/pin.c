/* SPDX-License-Identifier: BSD-2-Clause */
/* Pins: pages that sources in this process must not relocate, and the report when the host does it
 * all the same. */
#include <errno.h>

#include "private.h"

#define PIN_TRIES 4096 /* faults on one page before the caller is asked to come again */

static bool gfns_meet(struct gfn_range a, struct gfn_range b)
{
	return a.start.v < b.end.v && b.start.v < a.end.v;
}

bool pin_in_gfns(const struct umbra_mmu *mmu, struct gfn_range g)
{
	for (const struct umbra_pin *p = mmu->pins; p; p = p->next)
		if (gfns_meet(p->gfns, g))
			return true;
	return false;
}

struct pin_search {
	struct umbra_mmu *mmu;
	const struct umbra_range *lose; /* NULL: only look */
	bool found;
};

static void pin_part(struct pin_search *a, struct gfn_range g)
{
	struct umbra_mmu *mmu = a->mmu;

	for (struct umbra_pin *p = mmu->pins; p; p = p->next) {
		if (!gfns_meet(p->gfns, g))
			continue;
		a->found = true;
		if (!a->lose)
			return;
		if (!p->lost)
			mmu->stats.pins_lost++;
		p->lost = true;
		for (uint64_t gfn = p->gfns.start.v;
		     gfn < p->gfns.end.v && mmu->config.ops->pin_lost; gfn++)
			if (gfn >= g.start.v && gfn < g.end.v)
				mmu->config.ops->pin_lost(mmu->config.ctx, (gfn_t){ gfn }, a->lose);
	}
}

static void pin_search(struct pin_search *a, const struct umbra_range *r)
{
	struct hva_range part;
	struct gfn_range g;

	for (uint32_t i = 0; range_nth(r, i, &part); i++)
		for (struct rmap_iter it = rmap_hva(a->mmu, part); rmap_next(a->mmu, &it, &g);) {
			pin_part(a, g);
			if (a->found && !a->lose)
				return;
		}
}

bool pin_meets(struct umbra_mmu *mmu, const struct umbra_range *r)
{
	struct pin_search a = { .mmu = mmu };

	pin_search(&a, r);
	return a.found;
}

void pin_lose(struct umbra_mmu *mmu, const struct umbra_range *r)
{
	struct pin_search a = { .mmu = mmu, .lose = r };

	pin_search(&a, r);
}

static void pin_unlink(struct umbra_pin *pin)
{
	*pin->pprev = pin->next;
	if (pin->next)
		pin->next->pprev = pin->pprev;
}

static int pin_page(struct umbra_root *root, uint64_t gfn)
{
	for (unsigned int i = 0; i < PIN_TRIES; i++) {
		struct umbra_fault f = { .gpa = { gfn << UMBRA_PAGE_SHIFT },
					 .access = UMBRA_ACCESS_WRITE };

		switch (umbra_fault(root, &f)) {
		case UMBRA_FAULT_INSTALLED:
		case UMBRA_FAULT_SPURIOUS: return 0;
		case UMBRA_FAULT_RETRY: root->mmu->os->relax(); break;
		case UMBRA_FAULT_READONLY:
		case UMBRA_FAULT_DENIED: return -EACCES;
		case UMBRA_FAULT_NO_MEMORY: return -ENOMEM;
		case UMBRA_FAULT_RELEASED: return -ESHUTDOWN;
		default: return -EFAULT;
		}
	}
	return -EAGAIN;
}

int umbra_pin(struct umbra_root *root, gfn_t gfn, uint64_t npages, struct umbra_pin *pin)
{
	struct umbra_mmu *mmu = root->mmu;
	int rc = 0;

	if (npages == 0 || npages > GFN_LIMIT || gfn.v > GFN_LIMIT - npages)
		return -EFAULT;
	/* first on the list: from here on nobody here relocates; then fault in what is not there */
	pin->gfns = (struct gfn_range){ gfn, { gfn.v + npages } };
	mmu_lock(mmu);
	pin->next = mmu->pins;
	pin->pprev = &mmu->pins;
	if (pin->next)
		pin->next->pprev = &pin->next;
	mmu->pins = pin;
	for (unsigned int round = 0; !rc; round++) {
		pin->lost = false;
		mmu_unlock(mmu);
		for (uint64_t i = 0; i < npages && !rc; i++)
			rc = pin_page(root, gfn.v + i);
		mmu_lock(mmu);
		if (!rc && !pin->lost)
			break; /* all came after the last loss */
		if (!rc && round == PIN_TRIES)
			rc = -EAGAIN;
	}
	if (rc)
		pin_unlink(pin);
	else
		mmu->stats.pins++;
	mmu_unlock(mmu);
	return rc;
}

bool umbra_unpin(struct umbra_mmu *mmu, struct umbra_pin *pin)
{
	bool lost;

	mmu_lock(mmu);
	pin_unlink(pin);
	lost = pin->lost;
	mmu_unlock(mmu);
	return !lost;
}
