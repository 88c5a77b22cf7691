/* SPDX-License-Identifier: BSD-2-Clause */
/* split_collapse: the host splits and collapses 2M; contents stay and later writes too. n=ROUNDS */
#include "guest.h"

void guest_secondary(unsigned int cpu)
{
	company_reads(cpu);
}

static void written_between(struct range r, uint64_t g, uint64_t *kept)
{
	*kept += wrong_words(r, g - 1) == 0;
	fill(r, g);
	*kept += wrong_words(r, g) == 0;
}

void guest_main(void)
{
	struct range r = memory_take(BLOCK, BLOCK);
	uint64_t rounds = arg_number("n", chaotic() ? 2 : 5), kept = 0, done[2] = { 0, 0 },
		 refused[2] = { 0, 0 };
	uint64_t g = 0;

	if (!r.len)
		guest_skip("no whole 2M to test on");
	fill(r, 0);
	company_range(r);
	for (uint64_t i = 0; i < 2 * rounds; i++) {
		bool split = i & 1;
		int64_t ret = host(split ? GUEST_CALL_SPLIT : GUEST_CALL_COLLAPSE, r.at, r.len);

		if (ret == 0)
			done[split]++;
		else if (ret == -E_NOTSUP || ret == -E_INVAL || chaotic())
			refused[split]++;
		else
			check(false, "%s answered %ld", split ? "SPLIT" : "COLLAPSE", (long)ret);
		written_between(r, ++g, &kept);
	}
	say("collapse: %lu done, %lu not possible; split: %lu done, %lu not possible\n", done[0],
	    refused[0], done[1], refused[1]);
	check(kept == 4 * rounds, "contents right %lu times of %lu", kept, 4 * rounds);
	if (guest_boot->page_kind == GUEST_PAGES_THP && !chaotic())
		check(done[1] == rounds, "every split was done");
}
