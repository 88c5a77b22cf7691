/* SPDX-License-Identifier: BSD-2-Clause */
/* What a fault asks of the host: a question that cannot matter is not put, for each costs a system call. */
#include <criterion/criterion.h>

#include "tests/support/fakehost.h"

#define BLOCK 1024ULL /* first page of a 2M block */

static struct gfn_range gfns(uint64_t first, uint64_t n)
{
	return (struct gfn_range){ { first }, { first + n } };
}

Test(resolve, a_page_beside_4k_leaves_is_not_asked_for_2m)
{
	struct fake *f = fake_create(NULL);

	cr_assert_eq(fake_access(f, 0, BLOCK, true, NULL), 0);
	cr_expect_eq(f->asked, UMBRA_LEVEL_2M, "nothing is there yet");
	cr_assert_eq(fake_access(f, 0, BLOCK + 1, true, NULL), 0);
	cr_expect_eq(f->asked, UMBRA_LEVEL_4K, "a table with 4K leaves stays");
	cr_assert_eq(fake_access(f, 0, BLOCK + 511, true, NULL), 0);
	cr_expect_eq(f->asked, UMBRA_LEVEL_4K);
	cr_assert_eq(fake_access(f, 0, BLOCK + 512, true, NULL), 0);
	cr_expect_eq(f->asked, UMBRA_LEVEL_2M, "another table");
	cr_expect_eq(fake_check(f), 0);
	fake_destroy(f);
}

Test(resolve, when_the_4k_leaves_are_gone_2m_is_asked_for_again)
{
	struct fake *f = fake_create(NULL);

	cr_assert_eq(fake_access(f, 0, BLOCK, true, NULL), 0);
	cr_assert_eq(fake_access(f, 0, BLOCK + 7, true, NULL), 0);
	umbra_zap(f->mmu, gfns(BLOCK, 1));
	cr_assert_eq(fake_access(f, 0, BLOCK + 1, true, NULL), 0);
	cr_expect_eq(f->asked, UMBRA_LEVEL_4K, "one is left");
	umbra_zap(f->mmu, gfns(BLOCK, 512));
	fake_make_huge(f, BLOCK / 512);
	cr_assert_eq(fake_access(f, 0, BLOCK + 1, true, NULL), 0);
	cr_expect_eq(f->asked, UMBRA_LEVEL_2M);
	cr_expect_eq(fake_leaf(f, BLOCK + 300), 2);
	cr_expect_eq(fake_check(f), 0);
	fake_destroy(f);
}

/* A leaf that lost its right to write is 2M still: its size is what the host must confirm. */
Test(resolve, a_2m_leaf_that_wants_the_right_to_write_is_asked_for_2m)
{
	struct fake *f = fake_create(NULL);

	fake_make_huge(f, BLOCK / 512);
	cr_assert_eq(fake_access(f, 0, BLOCK, true, NULL), 0);
	umbra_write_protect(f->mmu, gfns(BLOCK, 512));
	cr_assert_eq(fake_access(f, 0, BLOCK + 9, true, NULL), 0);
	cr_expect_eq(f->asked, UMBRA_LEVEL_2M);
	cr_expect_eq(fake_leaf(f, BLOCK), 2);
	cr_expect_eq(fake_check(f), 0);
	fake_destroy(f);
}

static void move_silently_and_read(struct fake *f, void *arg)
{
	(void)arg;
	fake_move_page(f, 10);
	cr_assert_eq(fake_access(f, 1, 10, false, NULL), 0);
}

/* A leaf that came meanwhile has another frame than this fault's answer: one of the two is old, and nobody said which. */
Test(resolve, answers_that_contradict_each_other_are_asked_for_again)
{
	struct umbra_fault read = { .gpa = { 10ULL << UMBRA_PAGE_SHIFT },
				    .access = UMBRA_ACCESS_READ };
	struct fake *f = fake_create(&(struct fake_config){ .flags = UMBRA_MMU_RECORD_PFN });

	f->in_resolve = move_silently_and_read;
	cr_assert_eq(umbra_fault(f->root, &read), UMBRA_FAULT_RETRY);
	cr_expect_eq(fake_leaf(f, 10), 0);
	cr_assert_eq(fake_access(f, 0, 10, false, NULL), 0);
	cr_expect_eq(fake_leaf(f, 10), 1);
	cr_expect_eq(fake_check(f), 0);
	fake_destroy(f);
}

static void zap_and_map_2m(struct fake *f, void *arg)
{
	(void)arg;
	umbra_zap(f->mmu, gfns(BLOCK, 512));
	cr_assert_eq(fake_access(f, 1, BLOCK, false, NULL), 0);
	cr_assert_eq(fake_leaf(f, BLOCK), 2);
}

/* One was asked for 4K, as there was a table, the other for 2M, as there was none any more: both say the same. */
Test(resolve, answers_of_two_sizes_that_agree_leave_the_2m_leaf)
{
	struct umbra_fault read = { .gpa = { (BLOCK + 9) << UMBRA_PAGE_SHIFT },
				    .access = UMBRA_ACCESS_READ };
	struct fake *f = fake_create(&(struct fake_config){ .flags = UMBRA_MMU_RECORD_PFN });

	fake_make_huge(f, BLOCK / 512);
	cr_assert_eq(fake_access(f, 0, BLOCK, false, NULL), 0);
	cr_assert_eq(umbra_split(f->mmu, gfns(BLOCK, 512)), 1);
	umbra_zap(f->mmu, gfns(BLOCK + 9, 1));
	f->in_resolve = zap_and_map_2m;
	cr_expect_eq(umbra_fault(f->root, &read), UMBRA_FAULT_SPURIOUS);
	cr_expect_eq(f->asked, UMBRA_LEVEL_2M, "by the other");
	cr_expect_eq(fake_leaf(f, BLOCK + 9), 2);
	cr_expect_eq(fake_check(f), 0);
	fake_destroy(f);
}
