/* SPDX-License-Identifier: BSD-2-Clause */
/* swap: pages leave memory and come back with their contents, read first or written first. n=ROUNDS
 */
#include "guest.h"

void guest_secondary(unsigned int cpu)
{
	company_reads(cpu);
}

void guest_main(void)
{
	uint64_t rounds = arg_number("n", 3), left = 0, wrong = 0;
	struct range r = memory_take(256 * PAGE, PAGE);

	if (!guest_boot->can_swap)
		guest_skip("the host has no swap");
	if (guest_boot->page_kind == GUEST_PAGES_HUGETLB)
		guest_skip("hugetlb pages are never swapped");
	for (uint64_t g = 1; g <= rounds; g++) {
		int64_t ret;

		fill(r, g);
		ret = host(GUEST_CALL_SWAPOUT, r.at, r.len);
		/* Before 6.12 the kernel keeps what was used since it last asked: it must ask twice. */
		for (unsigned int again = 0; ret == 0 && again < 4; again++)
			ret = host(GUEST_CALL_SWAPOUT, r.at, r.len);
		if (ret == -E_NOTSUP || ret == -E_INVAL)
			guest_skip("the host does not swap this memory");
		if (!check(ret >= 0, "SWAPOUT: %ld pages left", (long)ret))
			return;
		left += (uint64_t)ret;
		company_range(r);
		if (g & 1) {
			wrong += wrong_words(r, g);
		} else {
			/* One word a page is written while it is out: the others must come back. */
			for (uint64_t a = r.at; a < r.at + r.len; a += PAGE)
				store(a + 8, pattern(a + 8, g));
			wrong += wrong_words(r, g);
		}
		company_range((struct range){ 0, 0 });
	}
	/* Shared pages may count as in memory while they are still being written out. */
	if (guest_boot->backing == GUEST_BACKING_ANON)
		check(left > 0, "%lu pages left memory in %lu rounds", left, rounds);
	check(wrong == 0, "%lu wrong words after coming back", wrong);
}
