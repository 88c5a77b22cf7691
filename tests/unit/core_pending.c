/* SPDX-License-Identifier: BSD-2-Clause */
/* An entry that somebody else dropped, and whose flush is not over: who finds nothing to drop waits for it all the same. */
#include <criterion/criterion.h>
#include <errno.h>

#include "tests/support/fakehost.h"

#define clean(f) cr_assert_eq(fake_check(f), 0)

/* A vCPU remembers page 10, the first of @pages; its entry is gone, and the flush was posted but not waited for. */
static struct fake *one_dropped_of(uint64_t pages, struct umbra_range *pending)
{
	struct fake *f = fake_create(NULL);

	*pending = fake_test_range(10, 1, UMBRA_RANGE_FORCED);
	for (uint64_t p = 10; p < 10 + pages; p++)
		cr_assert_eq(fake_access(f, 0, p, true, NULL), 0);
	f->in_guest = true;
	cr_assert_eq(umbra_invalidate_start(f->chain, pending), 0);
	cr_assert_eq(fake_leaf(f, 10), 0);
	cr_assert(fake_cached(f, 10), "a non-blockable start waits for nobody");
	return f;
}

static struct fake *dropped_but_not_flushed(struct umbra_range *pending)
{
	return one_dropped_of(1, pending);
}

static void finish(struct fake *f, const struct umbra_range *pending)
{
	umbra_invalidate_end(f->chain, pending);
	f->in_guest = false;
	clean(f);
	fake_destroy(f);
}

Test(pending, a_start_that_finds_nothing_waits_for_the_flush_under_way)
{
	const struct umbra_range r = fake_test_range(10, 1, UMBRA_RANGE_BLOCKABLE);
	struct umbra_range pending;
	struct fake *f = dropped_but_not_flushed(&pending);
	uint64_t waits;

	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	cr_assert_not(fake_cached(f, 10));
	umbra_invalidate_end(f->chain, &r);
	waits = f->flush_waits;
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	umbra_invalidate_end(f->chain, &r);
	cr_assert_eq(f->flush_waits, waits, "it is over: nobody is asked again");
	finish(f, &pending);
}

Test(pending, so_it_is_where_other_pages_of_the_table_stay)
{
	const struct umbra_range r = fake_test_range(10, 1, UMBRA_RANGE_BLOCKABLE);
	struct umbra_range pending;
	struct fake *f = one_dropped_of(2, &pending);

	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	cr_assert_not(fake_cached(f, 10));
	cr_assert(fake_cached(f, 11));
	umbra_invalidate_end(f->chain, &r);
	finish(f, &pending);
}

Test(pending, a_start_that_may_not_wait_for_it_is_refused)
{
	const struct umbra_range r = fake_test_range(10, 1, 0);
	struct umbra_range pending;
	struct fake *f = dropped_but_not_flushed(&pending);

	cr_assert_eq(umbra_invalidate_start(f->chain, &r), -EAGAIN);
	finish(f, &pending);
}

Test(pending, zap_waits_for_the_flush_under_way)
{
	struct umbra_range pending;
	struct fake *f = dropped_but_not_flushed(&pending);

	umbra_zap(f->mmu, (struct gfn_range){ { 10 }, { 11 } });
	cr_assert_not(fake_cached(f, 10));
	finish(f, &pending);
}

Test(pending, release_waits_for_the_flush_under_way)
{
	struct umbra_range pending;
	struct fake *f = dropped_but_not_flushed(&pending);

	umbra_release(f->chain);
	cr_assert_not(fake_cached(f, 10));
	finish(f, &pending);
}

Test(pending, ageing_is_not_waited_for)
{
	const struct umbra_range r = fake_test_range(20, 1, UMBRA_RANGE_BLOCKABLE);
	struct fake *f = fake_create(NULL);
	uint64_t waits;

	cr_assert_eq(fake_access(f, 0, 10, false, NULL), 0);
	cr_assert(umbra_clear_young(f->chain, fake_range(10, 1)));
	waits = f->flush_waits;
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	umbra_invalidate_end(f->chain, &r);
	cr_assert_eq(f->flush_waits, waits);
	cr_assert(fake_cached(f, 10));
	clean(f);
	fake_destroy(f);
}
