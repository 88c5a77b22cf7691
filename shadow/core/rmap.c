/* SPDX-License-Identifier: BSD-2-Clause */
/* From host to guest: which gfns a host-virtual range appears at. Slots may alias one another in
 * hva. */
#include "private.h"

/* Restores the heap (greatest start on top) of @v[0..n) below @i. */
static void sift_down(struct slot_by_hva *v, uint32_t i, uint32_t n)
{
	const struct slot_by_hva moving = v[i];

	for (uint32_t child; (child = 2 * i + 1) < n; i = child) {
		if (child + 1 < n && v[child + 1].start > v[child].start)
			child++;
		if (v[child].start <= moving.start)
			break;
		v[i] = v[child];
	}
	v[i] = moving;
}

/* Heap sort: no recursion, no memory, and no order of slots that makes it slow. */
static void sort_by_hva(struct slot_by_hva *v, uint32_t n)
{
	for (uint32_t i = n / 2; i-- > 0;)
		sift_down(v, i, n);
	while (n > 1) {
		const struct slot_by_hva greatest = v[0];

		v[0] = v[--n];
		v[n] = greatest;
		sift_down(v, 0, n);
	}
}

void rmap_rebuild(struct umbra_mmu *mmu)
{
	struct slot_by_hva *v = mmu->by_hva;
	uint64_t max_end = 0;

	for (uint32_t i = 0; i < mmu->nslots; i++) {
		const struct umbra_memslot *s = &mmu->slots[i].pub;

		v[i] = (struct slot_by_hva){
			.start = s->hva.v,
			.end = s->hva.v + (s->npages << UMBRA_PAGE_SHIFT),
			.gfn = s->gfn.v,
		};
	}
	sort_by_hva(v, mmu->nslots);
	for (uint32_t i = 0; i < mmu->nslots; i++) {
		if (v[i].end > max_end)
			max_end = v[i].end;
		v[i].max_end = max_end;
	}
}

/* max_end grows with the index, so it can be halved for. */
uint32_t rmap_first(const struct umbra_mmu *mmu, uint64_t hva)
{
	uint32_t lo = 0, hi = mmu->nslots;

	while (lo < hi) {
		const uint32_t mid = lo + (hi - lo) / 2;

		if (mmu->by_hva[mid].max_end > hva)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

unsigned int umbra_hva_to_gpas(struct umbra_mmu *mmu, hva_t hva, gpa_t *gpas, unsigned int max)
{
	const uint64_t page = hva.v & ~(UMBRA_PAGE_SIZE - 1);
	struct gfn_range g;
	unsigned int n = 0;

	mmu_lock(mmu);
	for (struct rmap_iter it = rmap_hva(mmu, (struct hva_range){ { page }, { page + 1 } });
	     rmap_next(mmu, &it, &g); n++)
		if (n < max)
			gpas[n].v = (g.start.v << UMBRA_PAGE_SHIFT) | (hva.v - page);
	mmu_unlock(mmu);
	return n;
}
