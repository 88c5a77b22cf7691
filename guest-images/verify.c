/* SPDX-License-Identifier: BSD-2-Clause */
/* verify: what is written stays, round after round, whatever the host does below it. n=ROUNDS
 * pages=N */
#include "guest.h"

void guest_secondary(unsigned int cpu)
{
	company_reads(cpu);
}

void guest_main(void)
{
	uint64_t rounds = arg_number("n", chaotic() ? 3 : 6), wrong = 0, sums = 0, moved = 0;
	struct range r = memory_take(arg_number("pages", chaotic() ? 256 : 1024) * PAGE, PAGE);
	struct rng rng = rng_seed(guest_boot->seed);
	uint64_t sparse_wrong = 0;

	fill(r, 0);
	company_range(r);
	for (uint64_t g = 1; g <= rounds; g++) {
		uint64_t before = sum(r);

		wrong += wrong_words(r, g - 1);
		sums += sum(r) == before;
		/* Single words too: a write to one page must not appear in another, nor get lost.
		 */
		for (int i = 0; i < 200; i++) {
			uint64_t a = r.at + (rng_below(&rng, r.len) & ~7ULL);

			store(a, ~pattern(a, g));
			sparse_wrong += load(a) != ~pattern(a, g);
			store(a, pattern(a, g - 1));
			moved++;
		}
		wrong += wrong_words(r, g - 1);
		fill(r, g);
	}
	wrong += wrong_words(r, rounds);
	check(wrong == 0, "%lu wrong words in %lu rounds over %lu pages", wrong, rounds,
	      r.len / PAGE);
	check(sums == rounds, "%lu of %lu checksums agree", sums, rounds);
	check(sparse_wrong == 0, "%lu of %lu single writes lost", sparse_wrong, moved);
}
