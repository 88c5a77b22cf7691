/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Random operations on core against a flat reference of the host: every access of every vCPU must
 * reach the page that the host has there now, and every step must leave the tables right. Seeded:
 * UMBRA_SEED replays a run, UMBRA_STEPS sets its length.
 */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "tests/support/fakehost.h"

#define PAGES   (512 * 6)
#define ALIASED 1024 /* pages 0..1023 also stand at gfn PAGES.. */

struct world {
	struct fake *f;
	uint64_t rng;
	struct umbra_range open[8];
	unsigned int nopen;
	uint8_t touched[PAGES], written[PAGES]; /* since the last collect, through the first slot */
	uint64_t steps[12];
};

static uint64_t rnd(struct world *w, uint64_t below)
{
	w->rng ^= w->rng << 13;
	w->rng ^= w->rng >> 7;
	w->rng ^= w->rng << 17;
	return w->rng % below;
}

static uint64_t env(const char *name, uint64_t otherwise)
{
	const char *s = getenv(name);

	return s ? strtoull(s, NULL, 0) : otherwise;
}

static bool is_open(const struct world *w, uint64_t page)
{
	for (unsigned int i = 0; i < w->nopen; i++)
		if (hva_ranges_meet(w->open[i].hull, fake_range(page, 1)))
			return true;
	return false;
}

static void access_one(struct world *w)
{
	const uint64_t page = rnd(w, PAGES),
		       gfn = page < ALIASED && rnd(w, 2) ? PAGES + page : page;
	const bool write = rnd(w, 2);
	uint64_t pfn;
	const int r = fake_access(w->f, (unsigned int)rnd(w, FAKE_CPUS), gfn, write, &pfn);

	if (write && !w->f->pages[page].writable) {
		cr_assert(r == UMBRA_FAULT_DENIED || r == UMBRA_FAULT_RETRY,
			  "a write to a protected page went through");
		return;
	}
	if (is_open(w, page)) {
		cr_assert_eq(r, UMBRA_FAULT_RETRY, "page %lu used while it is open", page);
		return;
	}
	/* the union over several opens may hold up a page between them: that is allowed */
	if (r == UMBRA_FAULT_RETRY && w->nopen)
		return;
	cr_assert_eq(r, 0, "page %lu: %s", page, umbra_fault_name((enum umbra_fault_result)r));
	cr_assert_eq(pfn, gfn);
	if (gfn == page) {
		w->touched[page] = 1;
		w->written[page] |= write;
	}
}

/* What the host does between start and end. */
static void change_host(struct world *w, uint64_t first, uint64_t n)
{
	const unsigned int what = (unsigned int)rnd(w, 3);

	for (uint64_t p = first; p < first + n; p++) {
		if (what == 0)
			fake_move_page(w->f, p);
		else if (what == 1)
			w->f->pages[p].writable = rnd(w, 2);
		else
			w->f->pages[p].writable = true;
		w->f->block_huge[p / 512] = false;
	}
}

static void invalidate(struct world *w)
{
	const uint64_t first = rnd(w, PAGES), n = rnd(w, rnd(w, 4) ? 8 : 700) + 1;
	struct umbra_range r = fake_test_range(first, first + n > PAGES ? PAGES - first : n,
					       UMBRA_RANGE_BLOCKABLE);

	r.source = (enum umbra_source)rnd(w, UMBRA_SOURCE_NR);
	cr_assert_eq(umbra_invalidate_start(w->f->chain, &r), 0);
	change_host(w, first, first + n > PAGES ? PAGES - first : n);
	if (w->nopen < 8 && rnd(w, 2)) {
		w->open[w->nopen++] = r;
		return;
	}
	umbra_invalidate_end(w->f->chain, &r);
}

static void end_one(struct world *w)
{
	const unsigned int i = (unsigned int)rnd(w, 8);

	if (i >= w->nopen)
		return;
	umbra_invalidate_end(w->f->chain, &w->open[i]);
	w->open[i] = w->open[--w->nopen];
}

static void collapse_host(struct world *w)
{
	const uint64_t block = rnd(w, PAGES / 512);
	const struct umbra_range r = fake_test_range(block * 512, 512, UMBRA_RANGE_BLOCKABLE);

	cr_assert_eq(umbra_invalidate_start(w->f->chain, &r), 0);
	fake_make_huge(w->f, block);
	umbra_invalidate_end(w->f->chain, &r);
}

static void collect(struct world *w)
{
	uint64_t a[PAGES / 64], d[PAGES / 64];

	cr_assert_eq(umbra_log_collect(w->f->mmu, 1, a, d), 0);
	for (uint64_t p = 0; p < PAGES; p++) {
		const bool ga = a[p / 64] >> (p % 64) & 1, gd = d[p / 64] >> (p % 64) & 1;

		/* never a missing bit; more only where a 2M leaf stood for its pages */
		cr_assert(ga || !w->touched[p], "page %lu: an access was lost", p);
		cr_assert(gd || !w->written[p], "page %lu: a write was lost", p);
		w->touched[p] = w->written[p] = 0;
	}
}

/* The audit of the fake host: every leaf says what the host has. */
static int audit_leaf(void *arg, const struct umbra_leaf *leaf)
{
	const struct world *w = arg;
	const uint64_t first = (leaf->hva.v - FAKE_HVA) >> UMBRA_PAGE_SHIFT;
	const uint64_t n = leaf->level == UMBRA_LEVEL_2M ? UMBRA_HUGE_PAGES : 1;

	for (uint64_t i = 0; i < n; i++) {
		const struct fake_page *p = &w->f->pages[first + i];

		cr_assert_eq(leaf->host_pfn + i, p->pfn, "gfn %lx: stale frame", leaf->gfn.v + i);
		cr_assert(!leaf->writable || p->writable,
			  "gfn %lx: writable, and the host forbids it", leaf->gfn.v + i);
		cr_assert_not(is_open(w, first + i), "gfn %lx: a leaf in an open range",
			      leaf->gfn.v + i);
	}
	cr_assert(n == 1 || w->f->block_huge[first / 512], "gfn %lx: 2M over 4K pages",
		  leaf->gfn.v);
	return 0;
}

static void step(struct world *w)
{
	const uint64_t kind = rnd(w, 100);
	const uint64_t first = rnd(w, PAGES);
	const struct gfn_range g = { { first }, { first + 1 + rnd(w, rnd(w, 3) ? 4 : 1200) } };

	if (kind < 60) {
		access_one(w);
	} else if (kind < 70) {
		invalidate(w);
	} else if (kind < 78) {
		end_one(w);
	} else if (kind < 81) {
		collapse_host(w);
	} else if (kind < 84) {
		umbra_zap(w->f->mmu, g);
	} else if (kind < 87) {
		umbra_write_protect(w->f->mmu, g);
	} else if (kind < 90) {
		cr_assert_geq(umbra_split(w->f->mmu, g), 0);
	} else if (kind < 93) {
		umbra_collapse(w->f->mmu, g);
	} else if (kind < 95) {
		umbra_clear_flush_young(w->f->chain, fake_range(first, g.end.v - first));
	} else if (kind < 97) {
		umbra_reclaim(w->f->mmu, rnd(w, 4));
	} else if (kind < 98) {
		umbra_zap_all(w->f->mmu);
	} else {
		collect(w);
	}
}

static void run(uint64_t seed, uint64_t steps, uint64_t first_seq)
{
	struct world *w = calloc(1, sizeof(*w));
	const struct umbra_memslot alias = {
		.id = 2, .gfn = { PAGES }, .npages = ALIASED, .hva = fake_hva(0), .out = { PAGES }
	};

	cr_assert_not_null(w);
	w->rng = seed * 0x9e3779b97f4a7c15ULL + 1;
	w->f = fake_create(&(struct fake_config){ .npages = PAGES,
						  .slot_flags = UMBRA_SLOT_LOG,
						  .flags = UMBRA_MMU_RECORD_PFN,
						  .first_seq = first_seq });
	cr_assert_eq(umbra_memslot_add(w->f->mmu, &alias), 0);
	for (uint64_t i = 0; i < steps; i++) {
		step(w);
		umbra_for_each_leaf(w->f->root, (struct gfn_range){ { 0 }, { PAGES + ALIASED } },
				    audit_leaf, w);
		cr_assert_eq(fake_check(w->f), 0, "after step %lu: replay with UMBRA_SEED=%lu", i,
			     seed);
	}
	while (w->nopen)
		umbra_invalidate_end(w->f->chain, &w->open[--w->nopen]);
	cr_assert_eq(fake_stats(w->f).starts, fake_stats(w->f).ends);
	fake_destroy(w->f);
	free(w);
}

Test(model, random_steps_reach_the_page_the_host_has_now)
{
	const uint64_t seed = env("UMBRA_SEED", 1), steps = env("UMBRA_STEPS", 4000);

	for (uint64_t s = seed; s < seed + 5; s++)
		run(s, steps, 0);
}

Test(model, random_steps_across_the_borders_of_the_sequence)
{
	const uint64_t borders[] = { 1ULL << 31, 1ULL << 32, 0 };
	const uint64_t seed = env("UMBRA_SEED", 100);

	for (size_t i = 0; i < 3; i++)
		run(seed + i, env("UMBRA_STEPS", 2000), borders[i] - 50);
}
