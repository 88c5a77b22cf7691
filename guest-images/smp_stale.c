/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * smp_stale: once DISCARD has returned, no vCPU sees an old value. vCPU 0 writes round numbers into
 * pages, has them discarded and only then publishes the round; a vCPU that knows of the round and
 * still reads a number not above it has used a dead translation. n=ROUNDS, at most;
 * ms=LIMIT, after which it ends when every vCPU was a witness once
 */
#include "guest.h"

#define WORDS_MANY 64

static uint64_t words[WORDS_MANY]; /* the addresses all read; set before the start barrier */
static uint64_t published;         /* the last round whose discard has returned */
static uint64_t seen[8];           /* the newest round number each vCPU has read */
static uint64_t passed[8];         /* the newest published round each vCPU has checked against */
static uint64_t stale[8], reads[8];
static uint32_t stop, left;
static struct barrier start;

static void look(unsigned int cpu)
{
	uint64_t known = __atomic_load_n(&published, __ATOMIC_ACQUIRE);

	for (unsigned int i = 0; i < WORDS_MANY; i++) {
		uint64_t value = load(words[i]);

		if (value && value <= known)
			stale[cpu]++;
		if (value > seen[cpu])
			__atomic_store_n(&seen[cpu], value, __ATOMIC_RELAXED);
	}
	reads[cpu] += WORDS_MANY;
	__atomic_store_n(&passed[cpu], known, __ATOMIC_RELEASE);
}

void guest_secondary(unsigned int cpu)
{
	barrier_wait(&start);
	while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE))
		look(cpu);
	__atomic_add_fetch(&left, 1, __ATOMIC_RELEASE);
	cpu_park();
}

/* All others have @what[cpu] >= @round; bounded, because they may be kept from running for long. */
static bool all_reached(const uint64_t *what, uint64_t round)
{
	for (unsigned int cpu = 1; cpu < guest_boot->vcpus; cpu++) {
		for (uint64_t i = 0; __atomic_load_n(&what[cpu], __ATOMIC_ACQUIRE) < round; i++) {
			if (i > 200000)
				return false;
			cpu_relax();
		}
	}
	return true;
}

void guest_main(void)
{
	uint64_t n = arg_number("n", 400), limit = arg_number("ms", 250) * 1000000;
	uint64_t unit = host_page(), began, rounds, watched = 0, bad = 0, count = 0, nonzero = 0;
	struct range r = memory_take(unit == PAGE ? WORDS_MANY * PAGE : BLOCK, unit);

	for (unsigned int i = 0; i < WORDS_MANY; i++)
		words[i] = r.at + i * r.len / WORDS_MANY;
	barrier_wait(&start);
	began = clock_ns();
	for (rounds = 1; rounds <= n; rounds++) {
		/* One page, or all of them: single invalidations and batches take different ways.
		 */
		bool many = rounds % 4 == 0 || unit == BLOCK;
		bool all_saw;
		int64_t ret;

		for (unsigned int i = 0; i < (many ? WORDS_MANY : 1); i++)
			store(words[i], rounds);
		all_saw = all_reached(seen, rounds);
		ret = host(GUEST_CALL_DISCARD, r.at, many ? r.len : unit);
		__atomic_store_n(&published, rounds, __ATOMIC_RELEASE);
		if (ret) {
			check(false, "DISCARD answered %ld", ret);
			break;
		}
		look(0);
		nonzero += load(words[0]) != 0;
		watched += all_reached(passed, rounds) && all_saw;
		/* On a busy host it may take longer until all vCPUs run in one round. */
		if (rounds % 4 == 0 && clock_ns() - began > limit && watched)
			break;
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
	while (__atomic_load_n(&left, __ATOMIC_ACQUIRE) + 1 < guest_boot->vcpus)
		cpu_relax();
	for (unsigned int cpu = 0; cpu < guest_boot->vcpus; cpu++) {
		bad += stale[cpu];
		count += reads[cpu];
	}
	say("%u vCPUs, %lu rounds, %lu with every vCPU a witness, %lu reads\n", guest_boot->vcpus,
	    rounds, watched, count);
	check(bad == 0, "%lu stale values seen", bad);
	check(nonzero == 0, "%lu times the discarding vCPU itself read a number", nonzero);
	check(watched > 0, "at least one round was watched by all");
}
