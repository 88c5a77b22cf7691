/* SPDX-License-Identifier: BSD-2-Clause */
/* The short ways that were taken for speed do what the long ways would. */
#include <criterion/criterion.h>

#include "tests/support/fakehost.h"

static struct umbra_event newest(struct fake *f, uint64_t page)
{
	struct umbra_event e = { .nr = 0 };

	cr_assert_eq(umbra_history(f->mmu, fake_range(page, 1), &e, 1), 1);
	return e;
}

/* An end stops looking once it has seen as many open events as there are. */
Test(paths, history_closes_what_ends_whatever_fell_out_before)
{
	const uint32_t flags = UMBRA_RANGE_BLOCKABLE;
	struct fake *f = fake_create(NULL);
	const struct umbra_range a = fake_test_range(1, 1, flags);
	const struct umbra_range b = fake_test_range(2, 1, flags);
	const struct umbra_range c = fake_test_range(3, 1, flags);

	cr_assert_eq(umbra_invalidate_start(f->chain, &a), 0);
	for (unsigned int i = 0; i < UMBRA_HISTORY - 1; i++)
		fake_invalidate(f, 10, 1);
	cr_assert_eq(umbra_invalidate_start(f->chain, &b), 0); /* the first falls out, still open */
	cr_assert_eq(umbra_invalidate_start(f->chain, &c), 0);
	umbra_invalidate_end(f->chain, &a);
	cr_assert(newest(f, 2).open);
	cr_assert(newest(f, 3).open);
	umbra_invalidate_end(f->chain, &b);
	cr_assert_not(newest(f, 2).open);
	cr_assert(newest(f, 3).open);
	umbra_invalidate_end(f->chain, &c);
	cr_assert_not(newest(f, 3).open);
	fake_invalidate(f, 4, 1);
	cr_assert_not(newest(f, 4).open);
	cr_assert_eq(fake_check(f), 0);
	fake_destroy(f);
}

/* Ends need not match their starts one by one: with the last of them, none is open. */
Test(paths, history_closes_all_with_the_last_end)
{
	const uint32_t flags = UMBRA_RANGE_BLOCKABLE;
	struct fake *f = fake_create(NULL);
	const struct umbra_range a = fake_test_range(1, 1, flags);
	const struct umbra_range b = fake_test_range(2, 1, flags);
	const struct umbra_range both = fake_test_range(1, 2, flags);

	cr_assert_eq(umbra_invalidate_start(f->chain, &a), 0);
	cr_assert_eq(umbra_invalidate_start(f->chain, &b), 0);
	umbra_invalidate_end(f->chain, &both); /* as a consumer is told that joined late */
	cr_assert(newest(f, 1).open);
	umbra_invalidate_end(f->chain, &both);
	cr_assert_not(newest(f, 1).open);
	cr_assert_not(newest(f, 2).open);
	fake_destroy(f);
}
