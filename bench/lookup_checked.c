/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A lookup that asks the module's counters first, as one must that may not use what the kernel has taken away, against the
 * lookup alone. The counters are written by a drain on another CPU only when something happens: here nothing does.
 */
#include <umbra/module.h>

#include "bench.h"
#include "world.h"

#define MOST   (1ULL << 20)
#define GROUP  500U /* lookups timed at once; a sample is the median of GROUPS */
#define GROUPS 201U

/* Where they are in use: the kernel's page, and the library's own memory. */
struct counters {
	uint64_t begun __attribute__((aligned(4096)));
	uint64_t applied __attribute__((aligned(4096)));
};

struct checked {
	struct world w;
	struct umbra_gate gate;
	uint64_t leaves, drains;
};

static int by_size(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Each address waits for the last one's answer. */
static inline __attribute__((always_inline)) double sample(struct checked *c, bool check)
{
	uint64_t seed = 1, pfn = 0, ns[GROUPS];
	struct umbra_translation t;

	for (unsigned int g = 0; g < GROUPS; g++) {
		const uint64_t start = bench_ns();

		for (unsigned int i = 0; i < GROUP; i++) {
			uint64_t gfn;

			__asm__("" : "+r"(pfn));
			seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
			gfn = (uint64_t)((unsigned __int128)seed * c->leaves >> 64) + (pfn >> 40);
			if (check && !umbra_gate_current(&c->gate))
				c->drains++;
			if (umbra_lookup(c->w.root, (gpa_t){ gfn << UMBRA_PAGE_SHIFT }, &t))
				return BENCH_FAILED;
			pfn = t.pfn.v;
		}
		ns[g] = bench_ns() - start;
	}
	qsort(ns, GROUPS, sizeof(ns[0]), by_size);
	return (double)ns[GROUPS / 2] / GROUP;
}

static double with_check(void *ctx)
{
	return sample(ctx, true);
}

static double without(void *ctx)
{
	return sample(ctx, false);
}

int main(void)
{
	static const struct {
		const char *name;
		uint64_t leaves;
	} sizes[] = { { "lookup_checked_1k", 1ULL << 10 }, { "lookup_checked_1m", MOST } };
	static struct counters counters;
	static struct checked c;
	uint64_t there = 0;

	bench_begin("lookup_checked", 0);
	c.gate = (struct umbra_gate){ &counters.begun, &counters.applied };
	if (world_create(&c.w, MOST, MOST / UMBRA_HUGE_PAGES + 256)) {
		bench_fail("out of memory");
		return bench_end();
	}
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		c.leaves = sizes[i].leaves;
		if (!world_fill(&c.w, there, c.leaves - there, 1)) {
			bench_fail("a fault failed");
			break;
		}
		there = c.leaves;
		bench_row(&(struct bench_row){
			.name = sizes[i].name,
			.unit = "ns",
			.what = "lookup that asks the gate first,",
			.floor = "the same without",
			.at_most = 1.15,
			.ours = with_check,
			.against = without,
			.ctx = &c,
			.rounds = 31,
		});
	}
	if (c.drains)
		bench_fail("the gate was not current %lu times", (unsigned long)c.drains);
	world_destroy(&c.w);
	return bench_end();
}
