/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Scattered discards, as a balloon makes them: one batch against a loop of madvise. Memory of a VM, every page there
 * and with a leaf in our tables; no vCPU runs.
 */
#include "bench.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <tests/support/engine.h>

#define FIRST  (16ULL << 20)
#define MEMORY (256ULL << 20)
#define PIECES 4096U
#define REACH \
	8192U /* pages that they are scattered over: none beside another, so nothing can be joined */

struct scatter {
	struct engine e;
	struct umbra_own *own;
	struct hva_range v[PIECES]; /* in no order */
};

static bool fill(struct scatter *s)
{
	static struct monitor_flush flush;
	bool needed;

	for (unsigned int i = 0; i < PIECES; i++) {
		const uint64_t gpa = s->v[i].start.v - (uintptr_t)engine_at(&s->e, 0);
		struct umbra_fault f = { .gpa = { gpa }, .access = UMBRA_ACCESS_WRITE };

		*(volatile char *)(uintptr_t)s->v[i].start.v = 1;
		if (umbra_fault(s->e.vm.root, &f) != UMBRA_FAULT_INSTALLED)
			return false;
	}
	shootdown_collect(&s->e.vm, 0, &flush, &needed); /* a vCPU that comes by */
	return true;
}

static double batch(void *ctx)
{
	struct scatter *s = ctx;
	uint64_t start, ns;
	uint32_t done;

	if (!fill(s))
		return BENCH_FAILED;
	start = bench_ns();
	if (umbra_madvise_batch(s->own, s->v, PIECES, MADV_DONTNEED, &done) || done != PIECES)
		return BENCH_FAILED;
	ns = bench_ns() - start;
	return (double)ns / PIECES;
}

static double loop(void *ctx)
{
	struct scatter *s = ctx;
	uint64_t start, ns;
	int bad = 0;

	if (!fill(s))
		return BENCH_FAILED;
	start = bench_ns();
	for (unsigned int i = 0; i < PIECES; i++)
		bad |= madvise((void *)(uintptr_t)s->v[i].start.v, UMBRA_PAGE_SIZE, MADV_DONTNEED);
	ns = bench_ns() - start;
	umbra_zap_all(s->e.vm.mmu);
	while (umbra_reclaim(s->e.vm.mmu, UINT64_MAX))
		;
	return bad ? BENCH_FAILED : (double)ns / PIECES;
}

static void scatter(struct scatter *s)
{
	uint64_t seed = 1;

	for (unsigned int i = 0; i < PIECES; i++)
		s->v[i] = hva_range_of(
			engine_at(&s->e, FIRST + (uint64_t)i * (REACH / PIECES) * UMBRA_PAGE_SIZE),
			UMBRA_PAGE_SIZE);
	for (unsigned int i = PIECES - 1; i; i--) {
		const unsigned int k = (unsigned int)(bench_random(&seed) % (i + 1));
		const struct hva_range r = s->v[i];

		s->v[i] = s->v[k];
		s->v[k] = r;
	}
}

int main(void)
{
	static struct scatter s;

	bench_begin("inval_batch", 0);
	if (engine_create(&s.e, 1, MEMORY, GUEST_PAGES_4K)) {
		bench_fail("no machine");
		return bench_end();
	}
	madvise(engine_at(&s.e, 0), MEMORY, MADV_NOHUGEPAGE);
	scatter(&s);
	if (umbra_own_create(&s.own, s.e.vm.chain, s.e.vm.hostmap))
		bench_fail("out of memory");
	else
		bench_row(
			&(struct bench_row){ .name = "inval_batch",
					     .unit = "ns",
					     .what = "a page of 4096 scattered ones in one batch,",
					     .floor = "a loop of madvise",
					     .at_most = 0.6,
					     .ours = batch,
					     .against = loop,
					     .ctx = &s });
	umbra_own_destroy(s.own);
	engine_destroy(&s.e);
	return bench_end();
}
