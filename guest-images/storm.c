/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * storm: every vCPU makes host calls of every kind at once, sane and not, on the same memory, while the others write to
 * it. Requests lie anywhere in that memory: across pages, over each other, and in what the calls themselves discard,
 * protect, move and swap; so they change while the host reads them. Nothing outside of it may change, the tables stay
 * right, and the machine ends by itself. n=CALLS of each vCPU, seed=N
 */
#include "guest.h"

#define KEPT_PAGES 8

static struct range field, kept;
static uint32_t left;
static struct barrier start;
static uint64_t answered[8], agreed[8];

/* Somewhere in the field; half of them at the edges of pages. */
static uint64_t somewhere(struct rng *rng, uint64_t size)
{
	uint64_t at = field.at + rng_below(rng, field.len - PAGE - size);

	if (rng_next(rng) & 1)
		at = (at | (PAGE - 1)) + 1 - rng_below(rng, size);
	return at;
}

static uint64_t some_value(struct rng *rng)
{
	const uint64_t bits = rng_next(rng);

	switch (rng_below(rng, 8)) {
	case 0: return bits;
	case 1: return bits >> rng_below(rng, 64);
	case 2: return 0UL - rng_below(rng, 4) * PAGE;
	case 3: return guest_boot->memory + rng_below(rng, 3) * PAGE - PAGE;
	default: return rng_below(rng, 40);
	}
}

/* A call that could be meant, or one that could not: what is outside of the field is only looked at. */
static struct guest_hostcall some_call(struct rng *rng)
{
	struct guest_hostcall c = { .nr = (uint32_t)rng_below(rng, GUEST_CALL_NR) };
	const uint64_t pages = field.len / PAGE, first = rng_below(rng, pages);

	c.gpa = field.at + first * PAGE;
	c.len = (1 + rng_below(rng, rng_next(rng) & 3 ? 4 : pages - first)) * PAGE;
	if (c.gpa + c.len > field.at + field.len)
		c.len = PAGE;
	if (!(rng_next(rng) & 3)) {
		c.gpa &= ~(BLOCK - 1);
		c.len = BLOCK;
	}
	c.arg = c.nr == GUEST_CALL_LOG_READ ? somewhere(rng, 64) & ~7UL : some_value(rng);
	switch (rng_below(rng, 16)) {
	case 0: c.nr = (uint32_t)rng_next(rng) | GUEST_CALL_NR; break;
	case 1: c.reserved = (uint32_t)rng_next(rng) | 1; break;
	case 2: c.gpa |= 1 + rng_below(rng, PAGE - 1); break;
	case 3: c.gpa = guest_boot->memory + rng_below(rng, 1UL << 40) * PAGE; break;
	case 4: c.len = 0UL - c.gpa - rng_below(rng, 2) * PAGE; break;
	default: break;
	}
	return c;
}

static void one_call(unsigned int cpu, struct rng *rng)
{
	const struct guest_hostcall c = some_call(rng);
	const uint64_t at = somewhere(rng, sizeof(c)) & ~(rng_next(rng) & 15 ? 7UL : 0UL);
	int64_t ret = 1;

	memcpy((void *)at, &c, sizeof(c));
	port_out32(GUEST_PORT_HOSTCALL, (uint32_t)at);
	memcpy(&ret, (const void *)(at + offsetof(struct guest_hostcall, ret)), sizeof(ret));
	answered[cpu]++;
	agreed[cpu] += ret >= 0;
}

static void storm(unsigned int cpu)
{
	struct rng rng = rng_seed(arg_number("seed", guest_boot->seed) * 8 + cpu);
	const uint64_t n = arg_number("n", 150);

	barrier_wait(&start);
	for (uint64_t i = 0; i < n; i++) {
		one_call(cpu, &rng);
		for (int k = 0; k < 64; k++)
			store(field.at + rng_below(&rng, field.len / 8) * 8, rng_next(&rng));
	}
	__atomic_add_fetch(&left, 1, __ATOMIC_RELEASE);
}

void guest_secondary(unsigned int cpu)
{
	storm(cpu);
	cpu_park();
}

void guest_main(void)
{
	uint64_t calls = 0, done = 0;

	kept = memory_take(KEPT_PAGES * PAGE, PAGE);
	field = memory_take(4 * BLOCK, BLOCK);
	if (field.len < BLOCK)
		guest_skip("no 2M of memory are left");
	fill(kept, 1);
	storm(0);
	while (__atomic_load_n(&left, __ATOMIC_ACQUIRE) < guest_boot->vcpus)
		cpu_relax();
	for (unsigned int cpu = 0; cpu < guest_boot->vcpus; cpu++) {
		calls += answered[cpu];
		done += agreed[cpu];
	}
	say("%u vCPUs, %lu host calls, of which %lu were done\n", guest_boot->vcpus, calls, done);
	check(done > 0, "the host did some of them");
	check(wrong_words(kept, 1) == 0, "what lies beside is untouched");
	check(host(GUEST_CALL_CHECK, 0, 0) == 0, "the host finds no violation in its tables");
}
