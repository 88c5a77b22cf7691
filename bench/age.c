/* SPDX-License-Identifier: BSD-2-Clause */
/* Aging: clear_young of a young leaf against the locked and that it cannot do without. */
#include "bench.h"
#include "world.h"

#define TABLES 64
#define LEAVES (TABLES * UMBRA_HUGE_PAGES)

struct aging {
	struct world w;
	uint64_t *copy; /* of as many table pages, for the floor */
	uint64_t step;  /* one leaf in so many is young */
};

/* As a CPU does that uses the pages. */
static void touch(struct aging *a)
{
	for (uint64_t t = 0; t < TABLES; t++) {
		uint64_t *e = world_table(&a->w, t * UMBRA_HUGE_PAGES, UMBRA_LEVEL_4K);

		for (uint64_t i = 0; i < UMBRA_HUGE_PAGES; i += a->step)
			e[i] |= WORLD_YOUNG;
		memcpy(a->copy + t * UMBRA_HUGE_PAGES, e, UMBRA_PAGE_SIZE);
	}
	world_forget(&a->w);
}

static double clear_young(void *ctx)
{
	struct aging *a = ctx;
	uint64_t start, ns;
	bool young;

	touch(a);
	start = bench_ns();
	young = umbra_clear_young(a->w.chain, world_hva(0, LEAVES));
	ns = bench_ns() - start;
	if (!young || umbra_test_young(a->w.chain, world_hva(0, LEAVES)))
		return BENCH_FAILED;
	return (double)ns / (double)(LEAVES / a->step);
}

static double locked_and(void *ctx)
{
	struct aging *a = ctx;
	uint64_t start, ns;

	touch(a);
	start = bench_ns();
	for (uint64_t i = 0; i < LEAVES; i++)
		if (a->copy[i] & WORLD_YOUNG)
			__atomic_fetch_and(&a->copy[i], ~WORLD_YOUNG, __ATOMIC_ACQ_REL);
	ns = bench_ns() - start;
	return (double)ns / (double)(LEAVES / a->step);
}

int main(void)
{
	static struct aging a;

	bench_begin("age", 0);
	a.copy = aligned_alloc(UMBRA_PAGE_SIZE, TABLES * UMBRA_PAGE_SIZE);
	if (!a.copy || world_create(&a.w, LEAVES, 2 * TABLES) || !world_fill(&a.w, 0, LEAVES, 1)) {
		bench_fail("out of memory");
		return bench_end();
	}
	a.step = 1;
	bench_row(&(struct bench_row){ .name = "age",
				       .unit = "ns",
				       .what = "clear_young of a leaf, all are young,",
				       .floor = "a locked and",
				       .at_most = 1.5,
				       .ours = clear_young,
				       .against = locked_and,
				       .ctx = &a });
	a.step = 8;
	bench_row(&(struct bench_row){ .name = "age_some",
				       .unit = "ns",
				       .what = "clear_young of a young leaf, one in 8 is,",
				       .floor = "a look at 8 and a locked and",
				       .ours = clear_young,
				       .against = locked_and,
				       .ctx = &a });
	world_destroy(&a.w);
	free(a.copy);
	return bench_end();
}
