/* SPDX-License-Identifier: BSD-2-Clause */
/* Bugs that were found, each as the test that shows it. On the fake host. */
#include <criterion/criterion.h>
#include <errno.h>

#include "tests/support/fakehost.h"

#define clean(f) cr_assert_eq(fake_check(f), 0)

static void remove_and_add_elsewhere(struct fake *f)
{
	const struct umbra_memslot other = { .id = 1, .npages = 512, .hva = fake_hva(1024) };

	cr_assert_eq(umbra_memslot_remove(f->mmu, 1), 0);
	cr_assert_eq(umbra_memslot_add(f->mmu, &other), 0);
	cr_assert_eq(fake_access(f, 0, 7, true, NULL), 0);
}

/* The id and the gfn came back, the slot did not: its new leaves were left behind without a slot. */
Test(regress, a_slot_removed_and_added_again_meanwhile_is_another_slot)
{
	const struct umbra_memslot first = { .id = 1, .npages = 512, .hva = fake_hva(0) };
	struct fake *f = fake_create(&(struct fake_config){ .no_slot = true });

	cr_assert_eq(umbra_memslot_add(f->mmu, &first), 0);
	cr_assert_eq(fake_access(f, 0, 3, true, NULL), 0);
	f->in_flush_wait = remove_and_add_elsewhere;
	cr_assert_eq(umbra_memslot_remove(f->mmu, 1), 0);
	cr_assert_eq(fake_leaf(f, 7), 0);
	cr_assert_not(fake_cached(f, 7));
	clean(f);
	cr_assert_eq(fake_stats(f).slots, 0);
	cr_assert_eq(fake_stats(f).starts, fake_stats(f).ends);
	fake_destroy(f);
}

static void move_away(struct fake *f)
{
	cr_assert_eq(umbra_memslot_move(f->mmu, 1, (gfn_t){ 1 << 20 }, (pfn_t){ 1 << 20 }), 0);
}

Test(regress, a_slot_moved_while_it_is_removed_leaves_nothing_at_its_new_place)
{
	struct fake *f = fake_create(NULL);

	cr_assert_eq(fake_access(f, 0, 3, true, NULL), 0);
	f->in_flush_wait = move_away;
	cr_assert_eq(umbra_memslot_remove(f->mmu, 1), 0);
	cr_assert_eq(fake_leaf(f, (1 << 20) + 3), 0);
	clean(f);
	fake_destroy(f);
}

/* Rounding the start up wrapped to 0 and collapsed what was not asked for. */
Test(regress, collapse_of_a_range_at_the_end_of_everything_does_nothing)
{
	struct fake *f = fake_create(NULL);

	fake_make_huge(f, 0);
	f->block_huge[0] = false;
	for (uint64_t g = 0; g < 512; g++)
		cr_assert_eq(fake_access(f, 0, g, true, NULL), 0);
	f->block_huge[0] = true;
	cr_assert_eq(
		umbra_collapse(f->mmu, (struct gfn_range){ { UINT64_MAX - 100 }, { UINT64_MAX } }),
		0);
	cr_assert_eq(fake_stats(f).leaves_4k, 512);
	cr_assert_eq(umbra_collapse(f->mmu, (struct gfn_range){ { 0 }, { UINT64_MAX } }), 1);
	clean(f);
	fake_destroy(f);
}

/* The new frame lies inside a 2M page by now: the old record was not held against it. */
Test(regress, an_unannounced_move_into_a_2m_page_is_seen_at_the_next_write)
{
	struct fake *f = fake_create(&(struct fake_config){ .flags = UMBRA_MMU_RECORD_PFN });
	struct umbra_pin pin;

	f->pages[520].writable = false;
	cr_assert_eq(fake_access(f, 0, 520, false, NULL), 0);
	fake_make_huge(f, 1);
	cr_assert_eq(fake_access(f, 0, 520, true, NULL), 0);
	cr_assert_eq(fake_stats(f).zapped_4k, 1);
	/* and a pin is told of such a loss */
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 100 }, 1, &pin), 0);
	umbra_write_protect(f->mmu, (struct gfn_range){ { 100 }, { 101 } });
	fake_move_page(f, 100);
	cr_assert_eq(fake_access(f, 0, 100, true, NULL), 0);
	cr_assert_not(umbra_unpin(f->mmu, &pin));
	clean(f);
	fake_destroy(f);
}

/* Slots whose hva falls as their gfn rises were sorted in quadratic time for each one added. */
Test(regress, slots_in_falling_order_of_hva_are_sorted_right)
{
	struct fake *f = fake_create(&(struct fake_config){ .no_slot = true });
	gpa_t gpa;

	for (uint32_t i = 0; i < 2000; i++) {
		const struct umbra_memslot s = {
			.id = i, .gfn = { i }, .npages = 1, .hva = fake_hva(4000 - i), .out = { i }
		};

		cr_assert_eq(umbra_memslot_add(f->mmu, &s), 0);
	}
	for (uint32_t i = 0; i < 2000; i++) {
		cr_assert_eq(umbra_hva_to_gpas(f->mmu, fake_hva(4000 - i), &gpa, 1), 1);
		cr_assert_eq(gpa.v, (uint64_t)i << 12);
	}
	clean(f);
	fake_destroy(f);
}
