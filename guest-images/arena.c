/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * arena: inside an arena the host may discard at any time: each word is its last value or zero,
 * never another page's and never an older one. Outside nothing changes. n=ROUNDS
 */
#include "guest.h"

void guest_secondary(unsigned int cpu)
{
	company_reads(cpu);
}

void guest_main(void)
{
	uint64_t unit = host_page(), rounds = arg_number("n", 20), foreign = 0, holes = 0, torn = 0;
	struct range left = memory_take(unit, unit);
	struct range r = memory_take(unit == PAGE ? 128 * PAGE : 4 * BLOCK, unit);
	struct range right = memory_take(unit, unit);

	if (!right.len)
		guest_skip("too little memory");
	check(host(GUEST_CALL_ARENA, r.at, r.len) == 0, "the host knows the arena");
	fill(left, 1);
	fill(right, 1);
	company_range(r);
	for (uint64_t g = 1; g <= rounds; g++) {
		fill(r, g);
		for (uint64_t page = r.at; page < r.at + r.len; page += PAGE) {
			uint64_t zero = 0;

			for (uint64_t a = page; a < page + PAGE; a += 8) {
				uint64_t value = load(a);

				foreign += value && value != pattern(a, g);
				zero += !value;
			}
			holes += zero != 0;
			torn += zero && zero != PAGE / 8;
		}
	}
	say("%lu rounds, %lu pages lost, %lu of them while being used\n", rounds, holes, torn);
	check(foreign == 0, "%lu words with neither their value nor zero", foreign);
	if (!chaotic())
		check(holes == 0, "calm: nothing is lost");
	check(wrong_words(left, 1) == 0 && wrong_words(right, 1) == 0,
	      "outside the arena nothing changed");
}
