/* SPDX-License-Identifier: BSD-2-Clause */
/* protect_write: after PROTECT the first write to each page is caught once, reads and second writes
 * are not. */
#include "guest.h"

static uint64_t hits(void)
{
	return (uint64_t)host(GUEST_CALL_PROTECT_HITS, 0, 0);
}

/* Under chaos others protect too: more may be caught, never fewer. */
static bool counted(uint64_t got, uint64_t expected)
{
	return chaotic() ? got >= expected : got == expected;
}

void guest_secondary(unsigned int cpu)
{
	company_reads(cpu);
}

void guest_main(void)
{
	uint64_t unit = host_page(), rounds = arg_number("n", 3);
	struct range r = memory_take(unit == PAGE ? 128 * PAGE : 4 * BLOCK, unit);
	uint64_t units = r.len / unit;

	fill(r, 0);
	company_range(r);
	for (uint64_t g = 1; g <= rounds; g++) {
		uint64_t h0 = hits(), h1, h2, h3;

		if (!host_does(GUEST_CALL_PROTECT, r.at, r.len, "protect"))
			return;
		check(wrong_words(r, g - 1) == 0, "contents are readable and unchanged");
		h1 = hits();
		check(counted(h1 - h0, 0), "%lu writes caught while only reading", h1 - h0);
		for (uint64_t u = 0; u < units; u++)
			store(r.at + u * unit + 8 * u % unit, 1);
		h2 = hits();
		check(counted(h2 - h1, units), "%lu first writes caught, %lu pages written",
		      h2 - h1, units);
		fill(r, g);
		h3 = hits();
		check(counted(h3 - h2, 0), "%lu second writes caught", h3 - h2);
		check(wrong_words(r, g) == 0, "what was written is there");
	}
	/* Every other page: the pages between stay protected. */
	if (host(GUEST_CALL_PROTECT, r.at, r.len) == 0) {
		uint64_t h0 = hits(), h1;

		for (uint64_t u = 0; u < units; u += 2)
			store(r.at + u * unit, 1);
		h1 = hits();
		for (uint64_t u = 1; u < units; u += 2)
			store(r.at + u * unit, 1);
		check(counted(h1 - h0, (units + 1) / 2), "even pages: %lu caught", h1 - h0);
		check(counted(hits() - h1, units / 2),
		      "odd pages after them: as many as there are");
	}
}
