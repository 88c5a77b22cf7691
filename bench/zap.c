/* SPDX-License-Identifier: BSD-2-Clause */
/* Zapping: a present leaf against the atomic exchange that it cannot do without; nothing in 1 TiB; everything. */
#include "bench.h"
#include "world.h"

#define TABLES 64
#define LEAVES (TABLES * UMBRA_HUGE_PAGES)
#define PART \
	(UMBRA_HUGE_PAGES - 1) /* of each table: never so many that it could be cut off whole */
#define TIB    (1ULL << 28)    /* pages */
#define MANY   (1ULL << 18)
#define FEW    (1ULL << 12)
#define PAUSES 7
#define COLD   (256ULL << 20) /* bytes: eight times the last cache */

struct zap {
	struct world w;
	uint64_t *copy; /* of as many table pages, for the floor */
	uint64_t part;  /* leaves of each table that are zapped */
	struct world large, all;
	char *cold;
};

static bool fill(struct zap *z)
{
	bool good = true;

	for (uint64_t t = 0; t < TABLES; t++)
		good &= world_fill(&z->w, t * UMBRA_HUGE_PAGES, z->part, 1);
	world_forget(&z->w);
	return good;
}

/* From the call to the moment when all is done: leaves gone and posted, tables cleaned and given back. */
static double zap_leaves(void *ctx)
{
	struct zap *z = ctx;
	uint64_t start, ns;

	if (!fill(z))
		return BENCH_FAILED;
	start = bench_ns();
	if (z->part == UMBRA_HUGE_PAGES)
		umbra_zap(z->w.mmu, (struct gfn_range){ { 0 }, { LEAVES } });
	else
		for (uint64_t gfn = 0; gfn < LEAVES; gfn += UMBRA_HUGE_PAGES)
			umbra_zap(z->w.mmu, (struct gfn_range){ { gfn + 1 }, { gfn + z->part } });
	world_reclaim(&z->w);
	ns = bench_ns() - start;
	umbra_zap(z->w.mmu, (struct gfn_range){ { 0 }, { LEAVES } });
	world_reclaim(&z->w);
	return (double)ns / (double)(z->part == UMBRA_HUGE_PAGES ? LEAVES : TABLES * (z->part - 1));
}

/* The same entries in pages of their own, in the same order. */
static double exchange(void *ctx)
{
	struct zap *z = ctx;
	uint64_t start, ns, sum = 0, n = 0;

	if (!fill(z))
		return BENCH_FAILED;
	for (uint64_t t = 0; t < TABLES; t++)
		memcpy(z->copy + t * UMBRA_HUGE_PAGES,
		       world_table(&z->w, t * UMBRA_HUGE_PAGES, UMBRA_LEVEL_4K), UMBRA_PAGE_SIZE);
	start = bench_ns();
	for (uint64_t t = 0; t < TABLES; t++) {
		uint64_t *e = z->copy + t * UMBRA_HUGE_PAGES;

		for (uint64_t i = z->part != UMBRA_HUGE_PAGES; i < z->part; i++, n++)
			sum += __atomic_exchange_n(&e[i], 0, __ATOMIC_ACQ_REL);
	}
	ns = bench_ns() - start;
	bench_clobber(&sum);
	umbra_zap(z->w.mmu, (struct gfn_range){ { 0 }, { LEAVES } });
	world_reclaim(&z->w);
	return (double)ns / (double)n;
}

/* A slot of 1 TiB with one leaf at its far end, so that there are tables to look into. */
static double zap_empty(void *ctx)
{
	struct zap *z = ctx;
	uint64_t start;

	start = bench_ns();
	for (unsigned int i = 0; i < 1000; i++)
		umbra_zap(z->large.mmu, (struct gfn_range){ { 0 }, { TIB - 1 } });
	return (double)(bench_ns() - start) / 1e6;
}

/*
 * A busy guest: code and the head of the tables are in the caches, small or large. What then differs is a few cache
 * lines that the filling of the larger has driven out; the work is the same.
 */
static void keep_busy(struct zap *z)
{
	struct umbra_translation t;

	for (unsigned int i = 0; i < 64; i++) {
		struct umbra_fault f = { .gpa = { 0 }, .access = UMBRA_ACCESS_READ };

		umbra_zap_all(z->large.mmu);
		umbra_lookup(z->all.root, f.gpa, &t);
		umbra_fault(z->all.root, &f);
	}
	world_forget(&z->all);
}

/* Nothing of it is in a cache, large or small: what takes longer then is more work. */
static void go_cold(struct zap *z)
{
	for (uint64_t i = 0; i < COLD; i += 64)
		((volatile char *)z->cold)[i]++;
}

static int by_size(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* The median of some. */
static double zap_everything(struct zap *z, uint64_t leaves, void (*before)(struct zap *z))
{
	uint64_t ns[PAUSES], start;

	for (unsigned int i = 0; i < PAUSES; i++) {
		if (!world_fill(&z->all, 0, leaves, 1))
			return BENCH_FAILED;
		before(z);
		start = bench_ns();
		umbra_zap_all(z->all.mmu);
		ns[i] = bench_ns() - start;
		world_reclaim(&z->all);
		world_forget(&z->all);
	}
	qsort(ns, PAUSES, sizeof(ns[0]), by_size);
	return (double)ns[PAUSES / 2] / 1e3;
}

static double zap_all_large(void *ctx)
{
	return zap_everything(ctx, MANY, keep_busy);
}

static double zap_all_small(void *ctx)
{
	return zap_everything(ctx, FEW, keep_busy);
}

static double zap_all_large_cold(void *ctx)
{
	return zap_everything(ctx, MANY, go_cold);
}

static double zap_all_small_cold(void *ctx)
{
	return zap_everything(ctx, FEW, go_cold);
}

int main(void)
{
	static struct zap z;

	bench_begin("zap", 0);
	z.copy = aligned_alloc(UMBRA_PAGE_SIZE, TABLES * UMBRA_PAGE_SIZE);
	z.cold = calloc(1, COLD);
	if (!z.copy || !z.cold || world_create(&z.w, LEAVES, 2 * TABLES) ||
	    world_create(&z.large, TIB, 64) || world_create(&z.all, MANY, 4096)) {
		bench_fail("out of memory");
		return bench_end();
	}
	z.part = UMBRA_HUGE_PAGES;
	bench_row(&(struct bench_row){ .name = "zap",
				       .unit = "ns",
				       .what = "a leaf of a range, until its table is given back,",
				       .floor = "an exchange per entry",
				       .at_most = 1.2,
				       .ours = zap_leaves,
				       .against = exchange,
				       .ctx = &z });
	z.part = PART;
	bench_row(&(struct bench_row){ .name = "zap_part",
				       .unit = "ns",
				       .what = "a leaf of ranges that keep their tables,",
				       .floor = "an exchange per entry",
				       .at_most = 1.2,
				       .ours = zap_leaves,
				       .against = exchange,
				       .ctx = &z });
	if (!world_fill(&z.large, TIB - 1, 1, 1))
		bench_fail("no leaf at the end of 1 TiB");
	bench_row(&(struct bench_row){ .name = "zap_1t",
				       .unit = "us",
				       .what = "1 TiB without entries",
				       .floor = "10 us",
				       .limit = 10,
				       .at_most = 1,
				       .ours = zap_empty,
				       .ctx = &z });
	bench_row(&(struct bench_row){ .name = "zap_all",
				       .unit = "us",
				       .what = "pause of a zap of everything, 1 GiB of 4K leaves,",
				       .floor = "1 us",
				       .limit = 1,
				       .at_most = 1,
				       .ours = zap_all_large,
				       .ctx = &z,
				       .spread = 2 });
	bench_row(&(struct bench_row){ .name = "zap_all_flat",
				       .unit = "us",
				       .what = "the same, all caches cold,",
				       .floor = "16 MiB, as cold",
				       .at_most = 1.2,
				       .ours = zap_all_large_cold,
				       .against = zap_all_small_cold,
				       .ctx = &z,
				       .spread = 2 });
	bench_row(&(struct bench_row){ .name = "zap_all_16m",
				       .unit = "us",
				       .what = "the same, 16 MiB",
				       .floor = "1 us",
				       .limit = 1,
				       .ours = zap_all_small,
				       .ctx = &z,
				       .spread = 2 });
	world_destroy(&z.w);
	world_destroy(&z.large);
	world_destroy(&z.all);
	free(z.copy);
	free(z.cold);
	return bench_end();
}
