/* SPDX-License-Identifier: BSD-2-Clause */
/* discard_zero: discarded memory reads zero, its neighbours keep their contents, new writes stay.
 * n=ROUNDS */
#include "guest.h"

void guest_secondary(unsigned int cpu)
{
	company_reads(cpu);
}

void guest_main(void)
{
	uint64_t unit = host_page(), rounds = arg_number("n", 40), zero = 0, kept = 0, fresh = 0;
	struct range r = memory_take(unit == PAGE ? 256 * PAGE : 8 * BLOCK, unit);
	uint64_t units = r.len / unit;
	struct rng rng = rng_seed(7);

	if (units < 3)
		guest_skip("too little memory");
	fill(r, 1);
	company_range(r);
	for (uint64_t i = 0; i < rounds; i++) {
		uint64_t first = 1 + rng_below(&rng, units - 2);
		uint64_t n = 1 + rng_below(&rng, units - 1 - first > 16 ? 16 : units - 1 - first);
		struct range d = { r.at + first * unit, n * unit };
		struct range left = { d.at - unit, unit }, right = { d.at + d.len, unit };
		int64_t ret = host(GUEST_CALL_DISCARD, d.at, d.len);

		if (ret < 0) {
			check(false, "DISCARD of %lu units: %ld", n, (long)ret);
			return;
		}
		zero += nonzero_words(d) == 0;
		kept += wrong_words(left, 1) == 0 && wrong_words(right, 1) == 0;
		fill(d, 1);
		fresh += wrong_words(d, 1) == 0;
	}
	check(zero == rounds, "%lu of %lu discarded ranges read zero", zero, rounds);
	check(kept == rounds, "%lu of %lu times both neighbours kept their contents", kept, rounds);
	check(fresh == rounds, "%lu of %lu times new contents stayed", fresh, rounds);
	check(wrong_words(r, 1) == 0, "all of the range is right at the end");
}
