/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Prints the frequency of this processor's time stamp counter in kHz. TCG gives the lab's kernel that counter; the
 * kernel measures it against an emulated timer, and on a busy host is wrong by a factor of ten.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct pair {
	uint64_t ns, ticks;
};

/* Both clocks at one moment: the pair that was read quickest, so that nothing came between. */
static struct pair now(void)
{
	struct pair best = { 0, 0 };
	uint64_t least = UINT64_MAX;

	for (int i = 0; i < 1000; i++) {
		struct timespec t;
		uint64_t before = __rdtsc(), after;

		clock_gettime(CLOCK_MONOTONIC_RAW, &t);
		after = __rdtsc();
		if (after - before >= least)
			continue;
		least = after - before;
		best.ns = (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
		best.ticks = before + least / 2;
	}
	return best;
}

int main(void)
{
	const struct timespec while_ = { 0, 50000000 };
	struct pair a = now(), b;

	nanosleep(&while_, NULL);
	b = now();
	printf("%llu\n", (unsigned long long)((b.ticks - a.ticks) * 1000000ULL / (b.ns - a.ns)));
	return 0;
}
