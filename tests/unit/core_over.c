/* SPDX-License-Identifier: BSD-2-Clause */
/* What is over when it is told: umbra_invalidate_range(), a start and its end in one. On the fake host. */
#include <criterion/criterion.h>
#include <errno.h>

#include "tests/support/fakehost.h"

#define clean(f) cr_assert_eq(fake_check(f), 0)
#define OVER     (UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_FORCED)

static void over(struct fake *f, uint64_t first, uint64_t pages, uint32_t flags)
{
	const struct umbra_range r = fake_test_range(first, pages, flags);

	umbra_invalidate_range(f->chain, &r);
}

static void change(struct fake *f, void *arg)
{
	(void)arg;
	fake_move_page(f, 10);
	over(f, 10, 1, OVER);
}

static void change_elsewhere(struct fake *f, void *arg)
{
	(void)arg;
	over(f, 40, 1, OVER);
}

Test(over, drops_what_meets_the_range_leaves_nothing_open_and_counts_as_both)
{
	struct fake *f = fake_create(NULL);
	struct umbra_chain_counts counts;
	struct umbra_event event;

	for (uint64_t g = 8; g < 16; g++)
		cr_assert_eq(fake_access(f, 1, g, true, NULL), 0);
	over(f, 10, 3, OVER);
	for (uint64_t g = 8; g < 16; g++) {
		cr_assert_eq(fake_leaf(f, g), g < 10 || g > 12);
		cr_assert_eq(fake_cached(f, g), g < 10 || g > 12, "gfn %lu", g);
	}
	clean(f);
	counts = umbra_chain_counts(f->chain, UMBRA_SOURCE_TEST);
	cr_assert(counts.begun == 1 && counts.ended == 1);
	cr_assert(fake_stats(f).starts == 1 && fake_stats(f).ends == 1);
	cr_assert_eq(fake_stats(f).seq.v, 1);
	cr_assert_eq(umbra_history(f->mmu, fake_range(11, 1), &event, 1), 1);
	cr_assert(!event.open && event.zapped_4k == 3 && event.cause == UMBRA_CAUSE_DISCARD);
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_INSTALLED, "nothing is open");
	fake_destroy(f);
}

Test(over, a_fault_that_resolved_meanwhile_retries_and_one_elsewhere_does_not)
{
	struct fake *f = fake_create(NULL);

	f->in_resolve = change;
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_RETRY);
	cr_assert_eq(fake_leaf(f, 10), 0);
	f->in_resolve = change_elsewhere;
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_INSTALLED);
	clean(f);
	fake_destroy(f);
}

static void nothing_yet(struct fake *f)
{
	cr_assert_eq(fake_leaf(f, 10), 0);
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_RETRY,
		     "open until no vCPU uses it any more");
}

Test(over, it_stays_open_while_a_vcpu_still_uses_what_was)
{
	struct fake *f = fake_create(NULL);

	cr_assert_eq(fake_access(f, 0, 10, true, NULL), 0);
	f->in_guest = true;
	f->in_flush_wait = nothing_yet;
	over(f, 10, 1, OVER);
	cr_assert_eq(f->flush_waits, 1);
	cr_assert_not(fake_cached(f, 10));
	f->in_guest = false;
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_INSTALLED);
	clean(f);
	fake_destroy(f);
}

Test(over, what_must_not_wait_tells_the_vcpus_and_goes_on)
{
	struct fake *f = fake_create(NULL);

	cr_assert_eq(fake_access(f, 0, 10, true, NULL), 0);
	f->in_guest = true;
	over(f, 10, 1, UMBRA_RANGE_FORCED);
	cr_assert_eq(fake_leaf(f, 10), 0);
	cr_assert_eq(f->flush_waits, 1);
	f->in_guest = false;
	cr_assert(fake_stats(f).starts == 1 && fake_stats(f).ends == 1);
	fake_destroy(f);
}

Test(over, a_pinned_page_is_reported_as_lost)
{
	struct fake *f = fake_create(NULL);
	struct umbra_pin pin;

	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 10 }, 1, &pin), 0);
	over(f, 10, 1, OVER);
	cr_assert_eq(f->pins_lost, 0, "nothing has moved");
	over(f, 10, 1, OVER | UMBRA_RANGE_RELOCATES);
	cr_assert_eq(f->pins_lost, 1);
	cr_assert_not(umbra_unpin(f->mmu, &pin));
	clean(f);
	fake_destroy(f);
}

Test(over, inside_an_open_one_it_opens_and_ends_nothing_of_it)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range r = fake_test_range(10, 2, UMBRA_RANGE_BLOCKABLE);

	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	over(f, 10, 1, OVER);
	over(f, 30, 1, OVER);
	cr_assert_eq(fake_write_fault(f, 11), UMBRA_FAULT_RETRY, "still open");
	umbra_invalidate_end(f->chain, &r);
	cr_assert_eq(fake_write_fault(f, 11), UMBRA_FAULT_INSTALLED);
	clean(f);
	fake_destroy(f);
}

/* ---- other consumers -------------------------------------------------------------------------- */

struct consumer {
	struct umbra_notifier n;
	int starts, ends, overs;
};

static int c_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)r;
	((struct consumer *)n)->starts++;
	return 0;
}

static void c_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)r;
	((struct consumer *)n)->ends++;
}

static void c_over(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)r;
	((struct consumer *)n)->overs++;
}

static const struct umbra_notifier_ops two_ops = { .invalidate_range_start = c_start,
						   .invalidate_range_end = c_end };
static const struct umbra_notifier_ops one_op = { .invalidate_range_start = c_start,
						  .invalidate_range_end = c_end,
						  .invalidate_range = c_over };

Test(over, who_has_no_call_for_it_gets_a_start_and_an_end)
{
	struct consumer two = { .n = { .ops = &two_ops, .name = "two" } };
	const struct umbra_range r = fake_test_range(10, 1, OVER);
	struct umbra_chain_counts counts;
	struct umbra_chain *chain;

	cr_assert_eq(umbra_chain_create(&chain, &umbra_os_posix), 0);
	umbra_invalidate_range(chain, &r);
	cr_assert_eq(umbra_chain_register(chain, &two.n), 0);
	umbra_invalidate_range(chain, &r);
	cr_assert(two.starts == 1 && two.ends == 1 && two.overs == 0);
	counts = umbra_chain_counts(chain, UMBRA_SOURCE_TEST);
	cr_assert(counts.begun == 2 && counts.ended == 2);
	umbra_chain_unregister(chain, &two.n);
	umbra_chain_destroy(chain);
}

Test(over, the_only_one_is_called_once_and_of_two_each_is_told)
{
	struct consumer one = { .n = { .ops = &one_op, .name = "one" } };
	struct consumer two = { .n = { .ops = &two_ops, .name = "two" } };
	const struct umbra_range r = fake_test_range(10, 1, OVER);
	struct umbra_chain *chain;

	cr_assert_eq(umbra_chain_create(&chain, &umbra_os_posix), 0);
	cr_assert_eq(umbra_chain_register(chain, &one.n), 0);
	umbra_invalidate_range(chain, &r);
	cr_assert(one.starts == 0 && one.ends == 0 && one.overs == 1);
	cr_assert_eq(umbra_chain_register(chain, &two.n), 0);
	umbra_invalidate_range(chain, &r);
	cr_assert_eq(one.starts + one.overs, 2);
	cr_assert_eq(one.starts, one.ends);
	cr_assert(two.starts == 1 && two.ends == 1);
	umbra_chain_unregister(chain, &one.n); /* would wait for ever for a call that never left */
	umbra_chain_unregister(chain, &two.n);
	umbra_chain_destroy(chain);
}
