/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The price of the bracket: our discard of a VM's memory against madvise alone. The memory is known to KVM, so the
 * kernel's own notifier works on both sides; every page is there and has a leaf in our tables; no vCPU runs.
 */
#include "bench.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <tests/support/engine.h>

#define FIRST  (16ULL << 20)
#define MEMORY (256ULL << 20)
#define GROUPS 64

struct discard {
	struct engine e;
	struct umbra_own *own;
	uint64_t pages;     /* of one discard */
	unsigned int calls; /* of one group */
};

static hva_t at(struct discard *d, uint64_t page)
{
	return (hva_t){ (uintptr_t)engine_at(&d->e, FIRST + page * UMBRA_PAGE_SIZE) };
}

static bool fill(struct discard *d)
{
	static struct monitor_flush flush;
	bool needed;

	for (uint64_t i = 0; i < GROUPS * d->calls * d->pages; i++) {
		struct umbra_fault f = { .gpa = { FIRST + i * UMBRA_PAGE_SIZE },
					 .access = UMBRA_ACCESS_WRITE };

		*(volatile char *)(uintptr_t)at(d, i).v = 1;
		if (umbra_fault(d->e.vm.root, &f) != UMBRA_FAULT_INSTALLED)
			return false;
	}
	shootdown_collect(&d->e.vm, 0, &flush, &needed); /* a vCPU that comes by */
	return true;
}

static void empty(struct discard *d)
{
	const uint64_t first = FIRST >> UMBRA_PAGE_SHIFT;

	umbra_zap(d->e.vm.mmu,
		  (struct gfn_range){ { first }, { first + GROUPS * d->calls * d->pages } });
	while (umbra_reclaim(d->e.vm.mmu, UINT64_MAX))
		;
}

static int by_size(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* The median of small groups of calls: an interrupt in one of them does not count. */
static double discard(struct discard *d, bool ours)
{
	const uint64_t bytes = d->pages * UMBRA_PAGE_SIZE;
	uint64_t ns[GROUPS];
	int bad = 0;

	if (!fill(d))
		return BENCH_FAILED;
	for (unsigned int g = 0; g < GROUPS; g++) {
		const uint64_t start = bench_ns();

		for (unsigned int i = g * d->calls; i < (g + 1) * d->calls; i++) {
			const hva_t hva = at(d, i * d->pages);

			if (ours)
				bad |= umbra_madvise(d->own,
						     (struct hva_range){ hva, { hva.v + bytes } },
						     MADV_DONTNEED);
			else
				bad |= madvise((void *)(uintptr_t)hva.v, bytes, MADV_DONTNEED);
		}
		ns[g] = bench_ns() - start;
	}
	empty(d);
	qsort(ns, GROUPS, sizeof(ns[0]), by_size);
	return bad ? BENCH_FAILED : (double)ns[GROUPS / 2] / d->calls;
}

static double with_bracket(void *ctx)
{
	return discard(ctx, true);
}

static double alone(void *ctx)
{
	return discard(ctx, false);
}

static void row(struct discard *d, const char *name, uint64_t pages, double target)
{
	const char *what = pages == 1    ? "our discard of a page,"
			   : pages == 16 ? "our discard of 16 pages,"
					 : "our discard of 512 pages,";

	d->pages = pages;
	d->calls = pages == 1 ? 16 : pages == 16 ? 4 : 1;
	bench_row(&(struct bench_row){ .name = name,
				       .unit = "ns",
				       .what = what,
				       .floor = "madvise",
				       .at_most = target,
				       .ours = with_bracket,
				       .against = alone,
				       .ctx = d,
				       .rounds = 31 });
}

int main(void)
{
	static struct discard d;

	bench_begin("inval_own", 0);
	if (engine_create(&d.e, 1, MEMORY, GUEST_PAGES_4K)) {
		bench_fail("no machine");
		return bench_end();
	}
	madvise(engine_at(&d.e, 0), MEMORY, MADV_NOHUGEPAGE);
	if (umbra_own_create(&d.own, d.e.vm.chain, d.e.vm.hostmap)) {
		bench_fail("out of memory");
	} else {
		row(&d, "inval_own_1", 1, 1.10);
		row(&d, "inval_own_16", 16, 1.05);
		row(&d, "inval_own_512", 512, 1.03);
	}
	umbra_own_destroy(d.own);
	engine_destroy(&d.e);
	return bench_end();
}
