/* SPDX-License-Identifier: BSD-2-Clause */
/* What the tables cost: resident bytes for each byte mapped. All that grows counts: pages, their records, the rest. */
#include "bench.h"
#include "world.h"

#include <malloc.h>
#include <stdio.h>

#define GIB (1ULL << 18) /* in pages */

/* Of the process, to the page. 0: the kernel does not say. */
static uint64_t resident(void)
{
	FILE *f = fopen("/proc/self/smaps_rollup", "re");
	unsigned long long kib = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Rss: %llu kB", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib << 10;
}

/* Percent of what is mapped. */
static double cost(enum umbra_level level, uint64_t pages)
{
	const uint64_t step = level == UMBRA_LEVEL_2M ? UMBRA_HUGE_PAGES : 1;
	uint64_t before, after;
	static struct world w;
	bool good;

	if (world_create(&w, pages, pages / step / UMBRA_HUGE_PAGES + 64))
		return BENCH_FAILED;
	w.level = level;
	before = resident(); /* the benchmark's own list of free pages is there already */
	good = world_fill(&w, 0, pages / step, step);
	after = resident();
	world_destroy(&w);
	if (!good || !before || after <= before)
		return BENCH_FAILED;
	/* the root is older than the mapping, and belongs to it */
	return 100.0 * (double)(after - before + UMBRA_PAGE_SIZE) /
	       (double)(pages << UMBRA_PAGE_SHIFT);
}

static double cost_4k(void *ctx)
{
	(void)ctx;
	return cost(UMBRA_LEVEL_4K, 4 * GIB);
}

static double cost_2m(void *ctx)
{
	(void)ctx;
	return cost(UMBRA_LEVEL_2M, 1024 * GIB);
}

int main(void)
{
	bench_begin("memory", 0);
	/* what is not touched is not resident, in the second round as in the first */
	mallopt(M_MMAP_THRESHOLD, 1 << 14);
	bench_row(&(struct bench_row){ .name = "memory_4k",
				       .unit = "%",
				       .what = "of 4 GiB mapped by 4K: tables,",
				       .floor = "0.21 %",
				       .limit = 0.21,
				       .at_most = 1,
				       .ours = cost_4k,
				       .rounds = 9 });
	bench_row(&(struct bench_row){ .name = "memory_2m",
				       .unit = "%",
				       .what = "of 1 TiB mapped by 2M: tables,",
				       .floor = "0.001 %",
				       .limit = 0.001,
				       .at_most = 1,
				       .ours = cost_2m,
				       .rounds = 9 });
	return bench_end();
}
