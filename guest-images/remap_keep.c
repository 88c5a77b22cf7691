/* SPDX-License-Identifier: BSD-2-Clause */
/* remap_keep: the host moves memory away and back; contents stay, in the range and around it.
 * n=ROUNDS */
#include "guest.h"

void guest_secondary(unsigned int cpu)
{
	company_reads(cpu);
}

void guest_main(void)
{
	uint64_t unit = host_page(), rounds = arg_number("n", 30), kept = 0, written = 0;
	struct range r = memory_take(unit == PAGE ? 128 * PAGE : 4 * BLOCK, unit);
	uint64_t units = r.len / unit;
	struct rng rng = rng_seed(3);

	fill(r, 0);
	company_range(r);
	for (uint64_t g = 0; g < rounds; g++) {
		uint64_t first = rng_below(&rng, units);
		struct range m = { r.at + first * unit,
				   unit * (1 + rng_below(&rng, units - first)) };
		int64_t ret;

		/* Written just before and read just after: the newest value must move along. */
		store(m.at, g);
		ret = host(GUEST_CALL_REMAP, m.at, m.len);
		if (ret == -E_NOTSUP || ret == -E_INVAL)
			guest_skip("this memory cannot be remapped");
		if (ret < 0) {
			check(false, "REMAP answered %ld", (long)ret);
			return;
		}
		written += load(m.at) == g;
		store(m.at, pattern(m.at, 0));
		kept += wrong_words(m, 0) == 0;
	}
	check(written == rounds, "%lu of %lu last writes moved along", written, rounds);
	check(kept == rounds, "%lu of %lu remapped ranges kept their contents", kept, rounds);
	check(wrong_words(r, 0) == 0, "all of the range is right at the end");
}
