/* SPDX-License-Identifier: BSD-2-Clause */
/* chaos_plan: a pure function of the seed, inside memory, true to the mix; chaos_parse fills what it is made of. */
#include <criterion/criterion.h>
#include <string.h>
#include <vmm/chaos.h>

#define PAGES_2M   512ULL
#define PAGES_256M 65536ULL
#define PAGES_64G  16777216ULL

static struct chaos_spec spec_of(const char *text)
{
	struct chaos_spec spec = { 0 };
	struct vm_error err = { 0 };

	cr_assert_eq(chaos_parse(text, &spec, &err), 0, "%s: %s", text, err.text);
	return spec;
}

static bool same(const struct chaos_step *a, const struct chaos_step *b)
{
	return a->action == b->action && a->start == b->start && a->pages == b->pages &&
	       a->arena == b->arena && a->where == b->where;
}

Test(chaos, a_specification_is_read_whole_and_in_any_order)
{
	struct chaos_spec s =
		spec_of("count=5,mix=discard+fork,seed=18446744073709551615,rate=100000");

	cr_expect_eq(s.rate, 100000);
	cr_expect_eq(s.seed, ~0ULL);
	cr_expect_eq(s.mix, 1U << CHAOS_DISCARD | 1U << CHAOS_FORK);
	cr_expect_eq(s.count, 5);
	s = spec_of("on");
	cr_expect_gt(s.rate, 0);
	cr_expect_eq(s.mix, (1U << CHAOS_ACTION_NR) - 1);
	s = spec_of("seed=9");
	cr_expect_gt(s.rate, 0);
	cr_expect_eq(s.seed, 9);
}

Test(chaos, every_action_can_be_asked_for_by_the_name_it_is_reported_under)
{
	for (unsigned int a = 0; a < CHAOS_ACTION_NR; a++) {
		char text[64];

		snprintf(text, sizeof(text), "mix=%s", chaos_action_name((enum chaos_action)a));
		cr_expect_eq(spec_of(text).mix, 1U << a);
	}
	cr_expect(chaos_action_destroys(CHAOS_DISCARD));
	cr_expect(chaos_action_destroys(CHAOS_FREE));
	cr_expect_not(chaos_action_destroys(CHAOS_REMAP));
	cr_expect_not(chaos_action_destroys(CHAOS_SWAP));
}

Test(chaos, a_seed_repeats_its_plan_from_any_step)
{
	struct chaos_spec spec = spec_of("seed=7");
	struct chaos_step first[100];

	for (uint64_t i = 0; i < 100; i++)
		first[i] = chaos_plan(&spec, i, PAGES_256M);
	for (uint64_t i = 100; i-- > 0;) {
		struct chaos_step again = chaos_plan(&spec, i, PAGES_256M);

		cr_expect(same(&first[i], &again), "step %lu differs", i);
	}
}

Test(chaos, two_seeds_make_two_plans)
{
	struct chaos_spec a = spec_of("seed=7"), b = spec_of("seed=8");
	unsigned int equal = 0;

	for (uint64_t i = 0; i < 100; i++) {
		struct chaos_step x = chaos_plan(&a, i, PAGES_256M),
				  y = chaos_plan(&b, i, PAGES_256M);

		equal += same(&x, &y);
	}
	cr_expect_eq(equal, 0);
}

Test(chaos, steps_stay_in_memory_and_in_the_mix)
{
	static const uint64_t sizes[] = { PAGES_2M, 2 * PAGES_2M, PAGES_256M, PAGES_64G };
	struct chaos_spec spec = spec_of("seed=3,mix=protect+collapse+swap");

	for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
		for (uint64_t i = 0; i < 20000; i++) {
			struct chaos_step step = chaos_plan(&spec, i, sizes[s]);

			cr_assert(spec.mix & 1U << step.action);
			cr_assert_gt(step.pages, 0);
			cr_assert_leq(step.pages, sizes[s]);
			cr_assert_leq(step.start, sizes[s] - step.pages);
			if (step.action == CHAOS_COLLAPSE) {
				cr_assert_eq(step.start % PAGES_2M, 0);
				cr_assert_eq(step.pages % PAGES_2M, 0);
			}
		}
	}
}

Test(chaos, the_plan_reaches_everything)
{
	struct chaos_spec spec = spec_of("seed=5");
	uint64_t count[CHAOS_ACTION_NR] = { 0 }, low = 0, high = 0, blocks = 0, single = 0;

	for (uint64_t i = 0; i < 8000; i++) {
		struct chaos_step step = chaos_plan(&spec, i, PAGES_256M);

		count[step.action]++;
		low += step.start < PAGES_256M / 8;
		high += step.start >= PAGES_256M / 8 * 7;
		blocks += step.pages % PAGES_2M == 0;
		single += step.pages == 1;
	}
	for (unsigned int a = 0; a < CHAOS_ACTION_NR; a++)
		cr_expect_gt(count[a], 8000 / CHAOS_ACTION_NR / 2, "%s: %lu of 8000",
			     chaos_action_name((enum chaos_action)a), count[a]);
	cr_expect_gt(low, 400);
	cr_expect_gt(high, 400);
	cr_expect_gt(blocks, 400);
	cr_expect_gt(single, 100);
}

Test(sum, is_fnv1a_over_words)
{
	const uint64_t zeros[2] = { 0, 0 }, ab[2] = { 1, 2 }, ba[2] = { 2, 1 };

	cr_expect_eq(guest_sum(zeros, 0), 0xcbf29ce484222325ULL);
	/* 0xcbf29ce484222325 * 0x100000001b3 modulo 2^64 */
	cr_expect_eq(guest_sum(zeros, 1), 0xaf63bd4c8601b7dfULL);
	cr_expect_neq(guest_sum(zeros, 1), guest_sum(zeros, 2));
	cr_expect_neq(guest_sum(ab, 2), guest_sum(ba, 2));
}
