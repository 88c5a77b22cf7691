/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * smp_hammer: all vCPUs add to the same counters, atomically, and to words of their own, plainly,
 * while vCPU 0 has the host remap, protect, split and collapse these pages. No addition may be lost
 * or doubled. n=CALLS
 */
#include "guest.h"

#define PAGES 64

/* In each page: word 0 is everybody's, word 8 + 8 * cpu belongs to one vCPU. */
static struct range field;
static uint32_t stop, left;
static struct barrier start;
static uint64_t added[8], torn[8];

static void hammer(unsigned int cpu, struct rng *rng)
{
	uint64_t page = field.at + rng_below(rng, field.len / PAGE) * PAGE;
	uint64_t own = page + 64 + 64 * cpu, was = load(own);

	__atomic_fetch_add((uint64_t *)page, 1, __ATOMIC_RELAXED);
	store(own, was + 1);
	torn[cpu] += load(own) != was + 1;
	added[cpu]++;
}

void guest_secondary(unsigned int cpu)
{
	struct rng rng = rng_seed(cpu);

	barrier_wait(&start);
	while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE))
		hammer(cpu, &rng);
	__atomic_add_fetch(&left, 1, __ATOMIC_RELEASE);
	cpu_park();
}

void guest_main(void)
{
	static const enum guest_hostcall_nr calls[] = { GUEST_CALL_REMAP,    GUEST_CALL_PROTECT,
							GUEST_CALL_SPLIT,    GUEST_CALL_REMAP,
							GUEST_CALL_COLLAPSE, GUEST_CALL_SWAPOUT };
	uint64_t n = arg_number("n", 60), done = 0, refused = 0, all = 0, own = 0, total = 0,
		 lost = 0;
	struct rng rng = rng_seed(0);

	field = memory_take(host_page() == PAGE ? PAGES * PAGE : BLOCK, host_page());
	barrier_wait(&start);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t units = field.len / host_page(), first = rng_below(&rng, units);
		uint64_t len = (1 + rng_below(&rng, units - first)) * host_page();
		enum guest_hostcall_nr nr = calls[i % (sizeof(calls) / sizeof(calls[0]))];
		int64_t ret;

		if (nr == GUEST_CALL_SWAPOUT && !guest_boot->can_swap)
			nr = GUEST_CALL_REMAP;
		if (nr == GUEST_CALL_SPLIT || nr == GUEST_CALL_COLLAPSE)
			ret = host(nr, field.at & ~(BLOCK - 1), BLOCK);
		else
			ret = host(nr, field.at + first * host_page(), len);
		done += ret >= 0;
		refused += ret < 0;
		for (int k = 0; k < 500; k++)
			hammer(0, &rng);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
	while (__atomic_load_n(&left, __ATOMIC_ACQUIRE) + 1 < guest_boot->vcpus)
		cpu_relax();
	for (uint64_t a = field.at; a < field.at + field.len; a += PAGE) {
		all += load(a);
		for (unsigned int cpu = 0; cpu < guest_boot->vcpus; cpu++)
			own += load(a + 64 + 64 * cpu);
	}
	for (unsigned int cpu = 0; cpu < guest_boot->vcpus; cpu++) {
		total += added[cpu];
		lost += torn[cpu];
	}
	say("%u vCPUs, %lu host calls done, %lu not possible\n", guest_boot->vcpus, done, refused);
	check(done > 0, "the host disturbed");
	check(all == total, "shared counters: %lu of %lu additions", all, total);
	check(own == total, "own counters: %lu of %lu additions", own, total);
	check(lost == 0, "%lu times a vCPU did not see its own write", lost);
}
