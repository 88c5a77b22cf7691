/* SPDX-License-Identifier: BSD-2-Clause */
/* A table page that was cut off stays what it is until the flush posted after that is over: a CPU may still be in it. */
#include <criterion/criterion.h>

#include "tests/support/fakehost.h"

#define ENTRY_DIRTY 0x40ULL

/*
 * One invalidation tidies up on its way out. While it waits, the vCPU enters the guest, so that its own flush is over;
 * then another invalidation, which may not wait, cuts off a table: that one's flush is only posted.
 */
static struct umbra_range late;

static void another_cuts_off_a_table(struct fake *f)
{
	cr_assert_eq(fake_access(f, 0, 2000, false, NULL), 0);
	cr_assert_eq(umbra_invalidate_start(f->chain, &late), 0);
}

static struct fake *prepare(uint64_t late_page, uint64_t late_pages)
{
	struct fake *f = fake_create(&(struct fake_config){ .slot_flags = UMBRA_SLOT_LOG });

	late = fake_test_range(late_page, late_pages, UMBRA_RANGE_FORCED);
	cr_assert_eq(fake_access(f, 0, 10, true, NULL), 0);    /* block 0 */
	cr_assert_eq(fake_access(f, 0, 600, false, NULL), 0);  /* block 1 */
	cr_assert_eq(fake_access(f, 0, 2000, false, NULL), 0); /* block 3 */
	return f;
}

static void tidy_up_while_it_is_posted(struct fake *f)
{
	f->in_guest = true;
	f->in_flush_wait = another_cuts_off_a_table;
	fake_invalidate(f, 10, 1);
	cr_assert_null(f->in_flush_wait);
	cr_assert_lt(f->done, f->posted, "the second flush is under way");
}

static void finish(struct fake *f)
{
	f->in_guest = false;
	umbra_invalidate_end(f->chain, &late);
	for (int level = 0; level < 4; level++)
		umbra_reclaim(f->mmu, ~0ULL);
	cr_assert_eq(fake_check(f), 0);
}

Test(tables, an_empty_one_is_given_back_only_when_no_cpu_can_be_in_it)
{
	struct fake *f = prepare(600, 1);
	const uint64_t tables = f->tables_out;

	tidy_up_while_it_is_posted(f);
	cr_assert_eq(f->tables_out, tables - 1, "the first one's goes, the second one's stays");
	finish(f);
	cr_assert_eq(f->tables_out, tables - 2);
	fake_destroy(f);
}

/* What a CPU that is in @f's tables for @page has in its hand: the last entry of its walk. */
static uint64_t *entry_of_walk(struct fake *f, uint64_t page)
{
	uint64_t table = umbra_root_phys(f->root);

	for (unsigned int level = 4;; level--) {
		uint64_t *e = (uint64_t *)((char *)f->window + (table - FAKE_WINDOW)) +
			      (page >> (9 * (level - 1)) & 511);

		cr_assert(*e & 1);
		if (level == 1)
			return e;
		table = *e & 0x000ffffffffff000ULL;
	}
}

Test(tables, one_with_leaves_is_read_only_when_no_cpu_sets_bits_in_it)
{
	struct fake *f = prepare(512, 512);
	uint64_t accessed[64] = { 0 }, dirty[64] = { 0 }, *entry;

	cr_assert_eq(fake_access(f, 0, 601, false, NULL), 0); /* two leaves: cut off in one piece */
	entry = entry_of_walk(f, 601);
	cr_assert_not(*entry & ENTRY_DIRTY);
	tidy_up_while_it_is_posted(f);
	cr_assert(*entry & 1, "nobody has cleared it");
	__atomic_fetch_or(entry, ENTRY_DIRTY, __ATOMIC_RELAXED); /* a CPU that is in it writes */
	finish(f);
	umbra_log_collect(f->mmu, 1, accessed, dirty);
	cr_assert(dirty[601 / 64] >> (601 % 64) & 1, "the write was counted");
	cr_assert_not(dirty[600 / 64] >> (600 % 64) & 1);
	fake_destroy(f);
}

static unsigned int reports(struct fake *f)
{
	return umbra_check(f->mmu, NULL, NULL);
}

Test(tables, a_stray_word_in_a_cleared_one_is_reported)
{
	struct fake *f = prepare(600, 1);
	uint64_t *entry = entry_of_walk(f, 600);

	tidy_up_while_it_is_posted(f);
	cr_assert_eq(reports(f), 0);
	*entry = 0x1000;
	cr_assert_eq(reports(f), 1);
	*entry = 0;
	finish(f);
	fake_destroy(f);
}

Test(tables, a_leaf_outside_every_slot_is_reported)
{
	const struct umbra_memslot slot = { .id = 1, .npages = 100, .hva = { FAKE_HVA } };
	struct fake *f = fake_create(&(struct fake_config){ .no_slot = true });
	uint64_t *entry;

	cr_assert_eq(umbra_memslot_add(f->mmu, &slot), 0);
	cr_assert_eq(fake_access(f, 0, 99, true, NULL), 0);
	entry = entry_of_walk(f, 99);
	cr_assert_eq(reports(f), 0);
	entry[1] = entry[0] + 0x1000;
	cr_assert_geq(reports(f), 1);
	entry[1] = 0;
	cr_assert_eq(reports(f), 0);
	fake_destroy(f);
}
