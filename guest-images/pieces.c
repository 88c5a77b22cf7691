/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pieces: protecting every other page makes the host's mapping as many pieces as it allows. Remaps at that border are
 * refused or done; none may lose what was there. Wants 300M of memory. n=REMAPS
 */
#include "guest.h"

void guest_main(void)
{
	struct range r = memory_take(guest_boot->memory, PAGE);
	uint64_t at, done = 0, refused = 0, n = arg_number("n", 24);
	int64_t ret = 0;

	if (guest_boot->page_kind == GUEST_PAGES_HUGETLB)
		guest_skip("the host protects whole 2M");
	for (at = r.at; at < r.at + r.len && !ret; at += 2 * PAGE)
		ret = host(GUEST_CALL_PROTECT, at, PAGE);
	if (!ret)
		guest_skip("the host did not run out of pieces");
	say("after %lu pages the host answered %ld\n", (at - r.at) / (2 * PAGE), ret);
	/* A protection lifted by a write makes two pieces fewer. */
	for (uint64_t i = 0; i < n; i++) {
		const uint64_t page = r.at + (64 + 2 * i) * PAGE + PAGE;

		store(page, i + 1);
		ret = host(GUEST_CALL_REMAP, page, PAGE);
		done += ret == 0;
		refused += ret != 0;
		if (ret && i % 3 == 0)
			store(r.at + (4096 + 2 * i) * PAGE, i);
		if (!check(load(page) == i + 1, "remap %lu: %s, contents kept", i,
			   ret ? "refused" : "done"))
			break;
	}
	check(done > 0 && refused > 0, "%lu remaps done, %lu refused", done, refused);
	check(host(GUEST_CALL_CHECK, 0, 0) == 0, "the host finds no violation in its tables");
}
