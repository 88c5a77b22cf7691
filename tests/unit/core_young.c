/* SPDX-License-Identifier: BSD-2-Clause */
/* Ageing: 4K and 2M callouts on 2M and 4K leaves. On the fake host. */
#include <criterion/criterion.h>

#include "tests/support/fakehost.h"

#define clean(f) cr_assert_eq(fake_check(f), 0)

static bool accessed(struct fake *f, uint64_t gfn)
{
	struct umbra_translation t;

	return !umbra_lookup(f->root, (gpa_t){ gfn << 12 }, &t) && t.accessed;
}

Test(young, d04_4k_callout_ages_the_whole_2m_leaf_and_invalidates_nothing)
{
	struct fake *f = fake_create(NULL);
	struct umbra_stats before, after;

	fake_make_huge(f, 1);
	cr_assert_eq(fake_access(f, 0, 512, true, NULL), 0);
	before = fake_stats(f);
	cr_assert(umbra_test_young(f->chain, fake_range(512 + 99, 1)));
	cr_assert(umbra_clear_flush_young(f->chain, fake_range(512 + 99, 1)));
	cr_assert_not(accessed(f, 512));
	cr_assert_not(umbra_clear_flush_young(f->chain, fake_range(512 + 3, 1)));
	after = fake_stats(f);
	cr_assert_eq(after.seq.v, before.seq.v);
	cr_assert_eq(after.zapped_2m, 0);
	cr_assert_eq(fake_leaf(f, 512), 2);
	cr_assert_eq(fake_access(f, 0, 600, false, NULL), 0);
	cr_assert_eq(fake_stats(f).faults, before.faults, "ageing makes no fault");
	cr_assert(accessed(f, 512), "the CPU sets it again");
	clean(f);
	fake_destroy(f);
}

Test(young, d05_2m_callout_over_4k_leaves_answers_their_or_and_clears_all)
{
	struct fake *f = fake_create(NULL);

	for (uint64_t g = 512; g < 1024; g++)
		cr_assert_eq(fake_access(f, 0, g, false, NULL), 0);
	cr_assert(umbra_clear_flush_young(f->chain, fake_range(512, 512)));
	for (uint64_t g = 512; g < 1024; g++)
		cr_assert_not(accessed(f, g));
	cr_assert_not(umbra_test_young(f->chain, fake_range(512, 512)));
	cr_assert_eq(fake_access(f, 0, 777, false, NULL), 0);
	cr_assert(umbra_clear_young(f->chain, fake_range(512, 512)));
	clean(f);
	fake_destroy(f);
}

Test(young, d06_nothing_there_is_not_young)
{
	struct fake *f = fake_create(NULL);

	cr_assert_not(umbra_clear_flush_young(f->chain, fake_range(512, 512)));
	cr_assert_not(umbra_test_young(f->chain, (struct hva_range){ { 0 }, { ~0ULL } }));
	cr_assert_eq(fake_stats(f).young_callouts, 2);
	fake_destroy(f);
}

Test(young, clearing_keeps_dirty_and_rights)
{
	struct fake *f = fake_create(NULL);
	struct umbra_translation t;

	cr_assert_eq(fake_access(f, 0, 5, true, NULL), 0);
	cr_assert(umbra_clear_young(f->chain, fake_range(5, 1)));
	cr_assert_eq(umbra_lookup(f->root, (gpa_t){ 5 << 12 }, &t), 0);
	cr_assert(t.dirty && t.writable && !t.accessed);
	fake_destroy(f);
}

Test(young, never_waits_for_a_vcpu)
{
	struct fake *f = fake_create(NULL);

	cr_assert_eq(fake_access(f, 0, 5, true, NULL), 0);
	f->in_guest = true;
	cr_assert(umbra_clear_flush_young(f->chain, fake_range(5, 1)));
	f->in_guest = false;
	fake_destroy(f);
}

Test(young, two_2m_leaves_are_both_cleared_and_keep_dirty)
{
	struct fake *f = fake_create(NULL);
	struct umbra_translation t;

	for (uint64_t block = 1; block < 3; block++) {
		fake_make_huge(f, block);
		cr_assert_eq(fake_access(f, 0, block * 512, true, NULL), 0);
	}
	cr_assert(umbra_clear_young(f->chain, fake_range(512, 1024)));
	for (uint64_t block = 1; block < 3; block++) {
		cr_assert_eq(umbra_lookup(f->root, (gpa_t){ block * 512 << 12 }, &t), 0);
		cr_expect_eq(t.level, UMBRA_LEVEL_2M);
		cr_expect(t.dirty && t.writable && !t.accessed);
	}
	clean(f);
	fake_destroy(f);
}
