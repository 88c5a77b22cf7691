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
			.index = i,
		};
	}
	sort_by_hva(v, mmu->nslots);
	for (uint32_t i = 0; i < mmu->nslots; i++) {
		if (v[i].end > max_end)
			max_end = v[i].end;
		v[i].max_end = max_end;
	}
}

/* The first slot in hva order that can reach @hva: max_end grows with the index, so it can be
 * halved for. */
static uint32_t first_reaching(const struct umbra_mmu *mmu, uint64_t hva)
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

void rmap_hva(struct umbra_mmu *mmu, struct hva_range r,
	      void (*fn)(void *arg, struct slot *s, struct gfn_range g), void *arg)
{
	r = hva_range_widen(r);
	if (hva_range_empty(r))
		return;
	for (uint32_t i = first_reaching(mmu, r.start.v);
	     i < mmu->nslots && mmu->by_hva[i].start < r.end.v; i++) {
		const struct slot_by_hva *h = &mmu->by_hva[i];
		struct slot *s = &mmu->slots[h->index];
		const uint64_t start = r.start.v > h->start ? r.start.v : h->start;
		const uint64_t end = r.end.v < h->end ? r.end.v : h->end;

		if (start >= end)
			continue;
		/* rounding the end up cannot wrap: it is at most the slot's own, which is page
		 * aligned */
		fn(arg, s,
		   (struct gfn_range){ { s->pub.gfn.v + ((start - h->start) >> UMBRA_PAGE_SHIFT) },
				       { s->pub.gfn.v + ((end - h->start + UMBRA_PAGE_SIZE - 1) >>
							 UMBRA_PAGE_SHIFT) } });
	}
}

struct gpas {
	hva_t hva;
	gpa_t *v;
	unsigned int max, n;
};

static void add_gpa(void *arg, struct slot *s, struct gfn_range g)
{
	struct gpas *out = arg;

	(void)s;
	if (out->n < out->max)
		out->v[out->n].v =
			(g.start.v << UMBRA_PAGE_SHIFT) | (out->hva.v & (UMBRA_PAGE_SIZE - 1));
	out->n++;
}

unsigned int umbra_hva_to_gpas(struct umbra_mmu *mmu, hva_t hva, gpa_t *gpas, unsigned int max)
{
	struct gpas out = { .hva = hva, .v = gpas, .max = max };
	const uint64_t page = hva.v & ~(UMBRA_PAGE_SIZE - 1);

	mmu_lock(mmu);
	rmap_hva(mmu, (struct hva_range){ { page }, { page + 1 } }, add_gpa, &out);
	mmu_unlock(mmu);
	return out.n;
}
