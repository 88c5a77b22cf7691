/* SPDX-License-Identifier: BSD-2-Clause */
/* free_lazy: lazily freed pages hold their old contents or zero, page by page; a write makes them
 * stay. */
#include "guest.h"

void guest_main(void)
{
	struct range r = memory_take(128 * PAGE, PAGE);
	uint64_t mixed = 0, old = 0, lost = 0;

	fill(r, 1);
	if (!host_does(GUEST_CALL_FREE, r.at, r.len, "free")) {
		check(guest_boot->backing == GUEST_BACKING_MEMFD ||
			      guest_boot->page_kind == GUEST_PAGES_HUGETLB,
		      "refused for shared memory and hugetlb only");
		check(wrong_words(r, 1) == 0, "a refusal changes nothing");
		return;
	}
	/* Written before it is read: from then on the page is wanted again. */
	for (uint64_t a = r.at; a < r.at + r.len; a += 2 * PAGE)
		store(a, 42);
	for (uint64_t a = r.at; a < r.at + r.len; a += PAGE) {
		struct range page = { a + 8, PAGE - 8 };
		bool is_old = wrong_words(page, 1) == 0;

		mixed += !is_old && nonzero_words(page) != 0;
		old += is_old;
	}
	host(GUEST_CALL_SWAPOUT, r.at, r.len);
	for (uint64_t a = r.at; a < r.at + r.len; a += 2 * PAGE)
		lost += load(a) != 42;
	check(mixed == 0, "each page is old or zero as a whole (%lu old, %lu mixed)", old, mixed);
	check(lost == 0, "%lu pages written afterwards were lost", lost);
}
