/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fork_cow: after the host forks, private memory is copied on write: the child keeps the old
 * contents, the guest gets the new. Shared memory (memfd) stays one. n=ROUNDS
 */
#include "guest.h"

void guest_secondary(unsigned int cpu)
{
	company_reads(cpu);
}

void guest_main(void)
{
	uint64_t unit = host_page(), rounds = arg_number("n", 3);
	struct range r = memory_take(unit == PAGE ? 64 * PAGE : BLOCK, unit);
	bool shared = guest_boot->backing == GUEST_BACKING_MEMFD;

	fill(r, 0);
	company_range(r);
	for (uint64_t g = 1; g <= rounds; g++) {
		uint64_t old = sum(r), new, seen = 0;
		int64_t child = host(GUEST_CALL_FORK, r.at, r.len), ret;

		if (child == -E_NOTSUP || child == -E_INVAL)
			guest_skip("the host does not fork here");
		if (!check(child >= 0, "FORK answered %ld", (long)child))
			return;
		check(sum(r) == old, "contents unchanged by the fork");
		/* Part of the range only: the rest stays shared with the child. */
		for (uint64_t a = r.at; a < r.at + r.len; a += 2 * PAGE)
			store(a + 64, g);
		new = sum(r);
		check(new != old, "the guest sees its own writes");
		ret = host_call(GUEST_CALL_FORK_SUM, r.at, r.len, (uint64_t)child, &seen);
		if (!check(ret == 0, "FORK_SUM answered %ld", (long)ret))
			return;
		if (shared)
			check(seen == new, "shared memory: the child sees the new contents");
		else
			check(seen == old, "private memory: the child sees the old contents");
		check(sum(r) == new, "the guest still sees the new contents");
		fill(r, g);
		check(wrong_words(r, g) == 0, "writes after the child ended stay");
	}
}
