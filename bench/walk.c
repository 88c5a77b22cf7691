/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Lookups: random, each one's address waits for the last one's answer. Against the bare chase through the very same
 * entries (four dependent loads, nothing looked at), and against JudyL, which maps the same frames.
 */
#include "bench.h"
#include "world.h"

#include <Judy.h>
#include <stdatomic.h>
#include <stdio.h>

#define MOST   (10ULL << 20)    /* leaves: 40 GiB of 4K */
#define OTHERS UMBRA_HUGE_PAGES /* leaves of their own, which the zapper drops and brings back */
#define GROUP \
	500U /* lookups timed at once; a sample is the median of GROUPS: an interrupt in one does not count */
#define GROUPS 201U

struct walk {
	struct world w;
	Pvoid_t judy;
	uint64_t leaves;
	uint64_t top; /* where the root is */
	uint64_t sum; /* of all frames found: ours and the floor's must agree */
	pthread_t zapper;
	_Atomic bool stop;
	_Atomic uint64_t rounds;
};

/* The next of a random sequence, as @waits_for is below 2^40; of which the compiler must know nothing. */
static inline uint64_t next(uint64_t *seed, uint64_t leaves, uint64_t waits_for)
{
	__asm__("" : "+r"(waits_for));
	*seed = *seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return (uint64_t)((unsigned __int128)*seed * leaves >> 64) + (waits_for >> 40);
}

static int by_size(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Times @find, inlined, over a sequence that is the same for all. */
static inline __attribute__((always_inline)) double
sample(struct walk *k, bool (*find)(struct walk *k, uint64_t gfn, uint64_t *pfn))
{
	uint64_t seed = 1, pfn = 0, sum = 0, ns[GROUPS];

	for (unsigned int g = 0; g < GROUPS; g++) {
		const uint64_t start = bench_ns();

		for (unsigned int i = 0; i < GROUP; i++) {
			if (!find(k, next(&seed, k->leaves, pfn), &pfn))
				return BENCH_FAILED;
			sum += pfn;
		}
		ns[g] = bench_ns() - start;
	}
	if (k->sum && k->sum != sum)
		return BENCH_FAILED;
	k->sum = sum;
	qsort(ns, GROUPS, sizeof(ns[0]), by_size);
	return (double)ns[GROUPS / 2] / GROUP;
}

static inline bool find_lookup(struct walk *k, uint64_t gfn, uint64_t *pfn)
{
	struct umbra_translation t;

	if (umbra_lookup(k->w.root, (gpa_t){ gfn << UMBRA_PAGE_SHIFT }, &t))
		return false;
	*pfn = t.pfn.v;
	return true;
}

static inline bool find_chase(struct walk *k, uint64_t gfn, uint64_t *pfn)
{
	const char *base = k->w.window - WORLD_PHYS;
	uint64_t e = k->top;

	e = ((const uint64_t *)(base + (e & WORLD_ADDR)))[gfn >> 27 & 511];
	e = ((const uint64_t *)(base + (e & WORLD_ADDR)))[gfn >> 18 & 511];
	e = ((const uint64_t *)(base + (e & WORLD_ADDR)))[gfn >> 9 & 511];
	e = ((const uint64_t *)(base + (e & WORLD_ADDR)))[gfn & 511];
	*pfn = (e & WORLD_ADDR) >> UMBRA_PAGE_SHIFT;
	return true;
}

static inline bool find_judy(struct walk *k, uint64_t gfn, uint64_t *pfn)
{
	const Pvoid_t *value = JudyLGet(k->judy, gfn, PJE0);

	if (!value)
		return false;
	*pfn = (Word_t)*value;
	return true;
}

static double lookup(void *ctx)
{
	return sample(ctx, find_lookup);
}

static double chase(void *ctx)
{
	return sample(ctx, find_chase);
}

static double judy(void *ctx)
{
	return sample(ctx, find_judy);
}

/* Drops a table of leaves, frees it, brings it back: the writes a lookup must live with. */
static void *zap_others(void *arg)
{
	struct walk *k = arg;

	while (!k->stop) {
		world_fill(&k->w, MOST, OTHERS, 1);
		umbra_zap(k->w.mmu, (struct gfn_range){ { MOST }, { MOST + OTHERS } });
		world_reclaim(&k->w);
		world_forget(&k->w);
		k->rounds++;
	}
	return NULL;
}

static void zapper_start(struct walk *k)
{
	k->stop = false;
	if (!pthread_create(&k->zapper, NULL, zap_others, k))
		bench_pin(k->zapper, 1);
}

static void zapper_stop(struct walk *k)
{
	k->stop = true;
	pthread_join(k->zapper, NULL);
}

static void row(struct walk *k, const char *size, const char *kind, double target,
		double (*against)(void *))
{
	char name[32], what[64];

	snprintf(name, sizeof(name), "walk_%s%s", size, kind);
	snprintf(what, sizeof(what), "lookup among %s leaves%s,", size,
		 strcmp(kind, "_zap") ? "" : " beside a zapper");
	bench_row(&(struct bench_row){
		.name = name,
		.unit = "ns",
		.what = what,
		.floor = against == judy ? "JudyL" : "a chase through the same entries",
		.at_most = target,
		.ours = lookup,
		.against = against,
		.ctx = k,
		.rounds = 31,
	});
}

int main(void)
{
	static const struct {
		const char *name;
		uint64_t leaves;
	} sizes[] = {
		{ "1k", 1ULL << 10 }, { "64k", 1ULL << 16 }, { "1m", 1ULL << 20 }, { "10m", MOST }
	};
	static struct walk k;
	uint64_t there = 0;

	bench_begin("walk", 0);
	if (world_create(&k.w, MOST + OTHERS, MOST / UMBRA_HUGE_PAGES + 256)) {
		bench_fail("out of memory");
		return bench_end();
	}
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		k.leaves = sizes[i].leaves;
		k.top = umbra_root_phys(k.w.root);
		k.sum = 0;
		if (!world_fill(&k.w, there, k.leaves - there, 1)) {
			bench_fail("a fault failed");
			break;
		}
		for (; there < k.leaves; there++)
			*(Word_t *)JudyLIns(&k.judy, there, PJE0) = there;
		row(&k, sizes[i].name, "", 1.2, chase);
		row(&k, sizes[i].name, "_judy", 0.2, judy);
		zapper_start(&k);
		row(&k, sizes[i].name, "_zap", 1.2, chase);
		zapper_stop(&k);
	}
	bench_note("the zapper dropped, freed and brought back a table %lu times",
		   (unsigned long)k.rounds);
	JudyLFreeArray(&k.judy, PJE0);
	world_destroy(&k.w);
	return bench_end();
}
