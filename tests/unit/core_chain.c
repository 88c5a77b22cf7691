/* SPDX-License-Identifier: BSD-2-Clause */
/* The notifier chain: who is told what, in which order, and that it always balances. */
#include <criterion/criterion.h>
#include <errno.h>

#include "tests/support/fakehost.h"

struct consumer {
	struct umbra_notifier n;
	int starts, ends, releases, youngs;
	int refuse; /* error that start answers */
	bool young;
	void (*in_start)(struct consumer *c);
	struct umbra_chain *chain;
	struct consumer *other;
};

static struct consumer *consumer_of(struct umbra_notifier *n)
{
	return (struct consumer *)n;
}

static int c_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct consumer *c = consumer_of(n);

	(void)r;
	if (c->in_start)
		c->in_start(c);
	if (c->refuse)
		return c->refuse;
	c->starts++;
	return 0;
}

static void c_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)r;
	consumer_of(n)->ends++;
}

static void c_release(struct umbra_notifier *n)
{
	consumer_of(n)->releases++;
}

static bool c_young(struct umbra_notifier *n, struct hva_range r)
{
	(void)r;
	consumer_of(n)->youngs++;
	return consumer_of(n)->young;
}

static const struct umbra_notifier_ops consumer_ops = {
	.invalidate_range_start = c_start,
	.invalidate_range_end = c_end,
	.release = c_release,
	.clear_flush_young = c_young,
	.clear_young = c_young,
	.test_young = c_young,
};

static struct consumer consumer(void)
{
	return (struct consumer){ .n = { .ops = &consumer_ops, .name = "test" } };
}

Test(chain, every_member_is_told_and_counts_balance)
{
	struct fake *f = fake_create(NULL);
	struct consumer a = consumer(), b = consumer();

	cr_assert_eq(umbra_chain_register(f->chain, &a.n), 0);
	cr_assert_eq(umbra_chain_register(f->chain, &b.n), 0);
	cr_assert_eq(umbra_chain_register(f->chain, &a.n), -EALREADY);
	fake_invalidate(f, 0, 1);
	fake_invalidate(f, 0, 1);
	cr_assert(a.starts == 2 && a.ends == 2 && b.starts == 2 && b.ends == 2);
	umbra_chain_unregister(f->chain, &a.n);
	cr_assert_eq(a.releases, 1);
	fake_invalidate(f, 0, 1);
	cr_assert(a.starts == 2 && b.starts == 3);
	umbra_chain_unregister(f->chain, &b.n);
	fake_destroy(f);
}

Test(chain, a_refusal_rolls_back_exactly_those_who_were_told)
{
	struct fake *f = fake_create(NULL);
	struct consumer a = consumer(), b = consumer(), c = consumer();
	const struct umbra_range r = fake_test_range(0, 1, 0);

	b.refuse = -EAGAIN;
	umbra_chain_register(f->chain, &a.n);
	umbra_chain_register(f->chain, &b.n);
	umbra_chain_register(f->chain, &c.n);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), -EAGAIN);
	cr_assert(a.starts == 1 && a.ends == 1);
	cr_assert(b.starts == 0 && b.ends == 0);
	cr_assert(c.starts == 0 && c.ends == 0);
	cr_assert_eq(fake_stats(f).starts, fake_stats(f).ends);
	cr_assert_eq(umbra_chain_counts(f->chain, UMBRA_SOURCE_TEST).begun,
		     umbra_chain_counts(f->chain, UMBRA_SOURCE_TEST).ended);
	umbra_chain_unregister(f->chain, &a.n);
	umbra_chain_unregister(f->chain, &b.n);
	umbra_chain_unregister(f->chain, &c.n);
	fake_destroy(f);
}

Test(chain, who_joins_during_open_invalidations_gets_their_starts)
{
	struct fake *f = fake_create(NULL);
	struct consumer a = consumer();
	const struct umbra_range r1 = fake_test_range(0, 1, UMBRA_RANGE_BLOCKABLE);
	const struct umbra_range r2 = fake_test_range(100, 1, UMBRA_RANGE_BLOCKABLE);

	umbra_invalidate_start(f->chain, &r1);
	umbra_invalidate_start(f->chain, &r2);
	cr_assert_eq(umbra_chain_register(f->chain, &a.n), 0);
	cr_assert_eq(a.starts, 2);
	umbra_invalidate_end(f->chain, &r1);
	umbra_invalidate_end(f->chain, &r2);
	cr_assert_eq(a.ends, 2);
	umbra_chain_unregister(f->chain, &a.n);
	fake_destroy(f);
}

static void join_other(struct consumer *c)
{
	c->in_start = NULL;
	if (umbra_chain_register(c->chain, &c->other->n))
		abort();
}

Test(chain, who_joins_while_a_start_is_under_way_balances_even_if_it_is_refused)
{
	for (int refuse = 0; refuse < 2; refuse++) {
		struct fake *f = fake_create(NULL);
		struct consumer a = consumer(), late = consumer();
		const struct umbra_range r = fake_test_range(0, 1, 0);

		a.in_start = join_other;
		a.chain = f->chain;
		a.other = &late;
		a.refuse = refuse ? -EAGAIN : 0;
		umbra_chain_register(f->chain, &a.n);
		cr_assert_eq(umbra_invalidate_start(f->chain, &r), a.refuse);
		if (!refuse)
			umbra_invalidate_end(f->chain, &r);
		cr_assert_eq(late.starts, 1);
		cr_assert_eq(late.ends, 1);
		cr_assert_eq(a.starts, a.ends);
		umbra_chain_unregister(f->chain, &a.n);
		umbra_chain_unregister(f->chain, &late.n);
		fake_destroy(f);
	}
}

Test(chain, young_asks_everyone_and_ors)
{
	struct fake *f = fake_create(NULL);
	struct consumer a = consumer(), b = consumer();

	a.young = true;
	umbra_chain_register(f->chain, &a.n);
	umbra_chain_register(f->chain, &b.n);
	cr_assert(umbra_clear_flush_young(f->chain, fake_range(0, 1)));
	cr_assert(umbra_clear_young(f->chain, fake_range(0, 1)));
	cr_assert(umbra_test_young(f->chain, fake_range(0, 1)));
	cr_assert(a.youngs == 3 && b.youngs == 3);
	a.young = false;
	cr_assert_not(umbra_test_young(f->chain, fake_range(0, 1)));
	umbra_chain_unregister(f->chain, &a.n);
	umbra_chain_unregister(f->chain, &b.n);
	fake_destroy(f);
}

static void own_bracket(struct fake *f)
{
	struct umbra_range r = fake_test_range(0, 1, UMBRA_RANGE_BLOCKABLE);

	r.source = UMBRA_SOURCE_OWN;
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	umbra_invalidate_end(f->chain, &r);
}

Test(chain, who_is_deaf_to_a_source_is_told_of_all_else)
{
	struct fake *f = fake_create(NULL);
	struct consumer a = consumer();

	a.n.deaf = 1U << UMBRA_SOURCE_TEST;
	cr_assert_eq(umbra_chain_register(f->chain, &a.n), 0);
	fake_invalidate(f, 0, 1);
	cr_assert(a.starts == 0 && a.ends == 0);
	own_bracket(f);
	cr_assert(a.starts == 1 && a.ends == 1);
	cr_assert_eq(fake_stats(f).starts, 2, "the tables hear both");
	umbra_chain_unregister(f->chain, &a.n);

	a.n.deaf = UINT32_MAX;
	cr_assert_eq(umbra_chain_register(f->chain, &a.n), 0);
	own_bracket(f);
	umbra_test_young(f->chain, fake_range(0, 1));
	umbra_release(f->chain);
	cr_assert(a.starts == 1 && a.youngs == 1 && a.releases == 2);
	umbra_chain_unregister(f->chain, &a.n);
	fake_destroy(f);
}

Test(chain, who_is_deaf_to_a_source_is_owed_nothing_of_it_on_joining)
{
	struct fake *f = fake_create(NULL);
	struct consumer a = consumer();
	const struct umbra_range test = fake_test_range(0, 1, UMBRA_RANGE_BLOCKABLE);
	struct umbra_range own = test;

	own.source = UMBRA_SOURCE_OWN;
	a.n.deaf = 1U << UMBRA_SOURCE_TEST;
	umbra_invalidate_start(f->chain, &test);
	umbra_invalidate_start(f->chain, &own);
	cr_assert_eq(umbra_chain_register(f->chain, &a.n), 0);
	cr_assert_eq(a.starts, 1);
	umbra_invalidate_end(f->chain, &test);
	cr_assert_eq(a.ends, 0);
	umbra_invalidate_end(f->chain, &own);
	cr_assert_eq(a.ends, 1);
	umbra_chain_unregister(f->chain, &a.n);
	fake_destroy(f);
}

/* The only one told of a source need not be the first of the chain, and may be another tomorrow. */
Test(chain, the_only_one_told_of_a_source_may_refuse_wherever_it_stands)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range r = fake_test_range(0, 1, 0);
	struct consumer deaf = consumer(), only = consumer(), second = consumer();
	struct umbra_chain *chain;

	cr_assert_eq(umbra_chain_create(&chain, &umbra_os_posix), 0);
	cr_assert_eq(umbra_invalidate_start(chain, &r), 0, "nobody is there");
	umbra_invalidate_end(chain, &r);
	deaf.n.deaf = 1U << UMBRA_SOURCE_TEST;
	umbra_chain_register(chain, &deaf.n);
	umbra_chain_register(chain, &only.n);
	only.refuse = -EAGAIN;
	cr_assert_eq(umbra_invalidate_start(chain, &r), -EAGAIN);
	cr_assert(only.starts == 0 && only.ends == 0);
	only.refuse = 0;
	cr_assert_eq(umbra_invalidate_start(chain, &r), 0);
	umbra_invalidate_end(chain, &r);
	cr_assert(only.starts == 1 && only.ends == 1);

	umbra_chain_register(chain, &second.n);
	cr_assert_eq(umbra_invalidate_start(chain, &r), 0);
	umbra_chain_unregister(chain, &only.n); /* in the middle: who is left hears the end */
	umbra_invalidate_end(chain, &r);
	cr_assert(only.starts == 2 && only.ends == 1);
	cr_assert(second.starts == 1 && second.ends == 1);
	cr_assert(deaf.starts == 0 && deaf.ends == 0);
	cr_assert_eq(umbra_chain_counts(chain, UMBRA_SOURCE_TEST).begun, 4);
	cr_assert_eq(umbra_chain_counts(chain, UMBRA_SOURCE_TEST).ended, 4);
	umbra_chain_unregister(chain, &second.n);
	umbra_chain_unregister(chain, &deaf.n);
	umbra_chain_destroy(chain);
	fake_destroy(f);
}

Test(chain, full_chain_is_said)
{
	struct fake *f = fake_create(NULL);
	struct consumer c[UMBRA_CHAIN_MAX];

	for (int i = 0; i < UMBRA_CHAIN_MAX; i++) {
		c[i] = consumer();
		/* the MMU is one member already */
		cr_assert_eq(umbra_chain_register(f->chain, &c[i].n),
			     i < UMBRA_CHAIN_MAX - 1 ? 0 : -ENOSPC);
	}
	for (int i = 0; i < UMBRA_CHAIN_MAX - 1; i++)
		umbra_chain_unregister(f->chain, &c[i].n);
	fake_destroy(f);
}

Test(chain, names_are_never_null)
{
	for (int i = -1; i < UMBRA_SOURCE_NR + 2; i++)
		cr_assert_not_null(umbra_source_name((enum umbra_source)i));
	for (int i = -1; i < UMBRA_CAUSE_NR + 2; i++)
		cr_assert_not_null(umbra_cause_name((enum umbra_cause)i));
	cr_assert_str_eq(umbra_cause_name(UMBRA_CAUSE_RELEASE), "release");
	cr_assert_str_eq(umbra_source_name(UMBRA_SOURCE_TEST), "test");
	cr_assert_str_eq(umbra_fault_name(UMBRA_FAULT_ERROR), "error");
}
