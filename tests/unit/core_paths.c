/* SPDX-License-Identifier: BSD-2-Clause */
/* The short ways that were taken for speed do what the long ways would. */
#include <criterion/criterion.h>
#include <errno.h>

#include "shadow/core/private.h"
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

/* What was queued for flushing when it was waited for. */
static struct umbra_flush_entry asked[1024];
static uint64_t nasked;

static void note_queue(struct fake *f)
{
	nasked = f->queued < 1024 ? f->queued : 1024;
	for (uint64_t i = 0; i < nasked; i++)
		asked[i] = f->queue[i];
}

/* The table that has 4K page @gfn, or NO_TABLE. */
static uint32_t table_of(struct fake *f, uint64_t gfn)
{
	uint32_t table = f->root->table;

	for (unsigned int level = UMBRA_LEVEL_512G; level > UMBRA_LEVEL_4K; level--) {
		const uint64_t e = spte_read(table_entries(f->mmu, table) + spte_slot(gfn, level));

		if (!spte_is_table(e, level))
			return NO_TABLE;
		table = spte_child(f->mmu, e);
	}
	return table;
}

/* The host frame that is on record for 4K page @gfn. */
static uint64_t on_record(struct fake *f, uint64_t gfn)
{
	const uint32_t table = table_of(f, gfn);

	return table == NO_TABLE ? UMBRA_HOST_PFN_UNKNOWN
				 : f->mmu->tables[table].host_pfns[gfn % 512];
}

static bool was_asked(uint64_t page)
{
	unsigned int n = 0;

	for (uint64_t i = 0; i < nasked; i++)
		n += !asked[i].table && asked[i].level == UMBRA_LEVEL_4K &&
		     asked[i].addr == page << UMBRA_PAGE_SHIFT &&
		     asked[i].index % 512 == page % 512;
	cr_assert_leq(n, 1);
	return n;
}

static bool is_hole(uint64_t page)
{
	return page % 7 == 3 || page % 64 == 0 || (page > 300 && page < 320);
}

/* A range that does not cover its table: every leaf in it goes and is flushed, no other, whatever holes there are. */
Test(paths, drop_in_part_of_a_table_is_exact)
{
	static const struct {
		uint64_t first, n;
	} parts[] = {
		{ 512, 1 },   { 1023, 1 }, { 515, 400 }, { 513, 511 },
		{ 512, 511 }, { 640, 64 }, { 643, 1 },   { 1020, 8 },
	};

	for (size_t k = 0; k < sizeof(parts) / sizeof(parts[0]); k++) {
		const uint64_t first = parts[k].first, end = first + parts[k].n;
		struct fake *f = fake_create(&(struct fake_config){ .flags = UMBRA_MMU_RECORD_PFN,
								    .slot_flags = UMBRA_SLOT_LOG });
		uint64_t accessed[64], dirty[64], dropped = 0;
		uint32_t table;

		for (uint64_t p = 510; p < 1026; p++)
			if (!is_hole(p))
				cr_assert_eq(fake_access(f, 0, p, p % 3 == 0, NULL), 0);
		table = table_of(f, 1023);
		f->in_flush_wait = note_queue;
		umbra_zap(f->mmu, (struct gfn_range){ { first }, { end } });
		for (uint64_t i = 0; i < nasked; i++)
			if (asked[i].level == UMBRA_LEVEL_4K)
				cr_assert_eq(asked[i].index / 512, table);
		for (uint64_t p = 510; p < 1026; p++) {
			const bool in = p >= first && p < end && !is_hole(p);

			dropped += in;
			cr_assert_eq(fake_leaf(f, p), in || is_hole(p) ? 0 : UMBRA_LEVEL_4K);
			cr_assert_not(in && fake_cached(f, p));
			cr_assert_eq(nasked && was_asked(p), in, "page %d of part %d", (int)p,
				     (int)k);
			cr_assert(is_hole(p) || on_record(f, p) == (in ? UMBRA_HOST_PFN_UNKNOWN
								       : f->pages[p].pfn),
				  "record of page %d of part %d", (int)p, (int)k);
		}
		cr_assert_eq(fake_stats(f).zapped_4k, dropped);
		cr_assert_eq(fake_check(f), 0);
		/* what the CPU had set in dropped leaves is in the log, with what it set in the others */
		cr_assert_eq(umbra_log_collect(f->mmu, 1, accessed, dirty), 0);
		for (uint64_t p = 510; p < 1026; p++) {
			cr_assert_eq(accessed[p / 64] >> (p % 64) & 1, !is_hole(p));
			cr_assert_eq(dirty[p / 64] >> (p % 64) & 1, !is_hole(p) && p % 3 == 0);
		}
		nasked = 0;
		fake_destroy(f);
	}
}

/* What an invalidation of one page says it took, where others of the table stay: to the statistics, and to the history. */
Test(paths, one_page_of_a_table_is_told_as_one)
{
	struct fake *f = fake_create(NULL);

	for (uint64_t p = 10; p < 13; p++)
		cr_assert_eq(fake_access(f, 0, p, true, NULL), 0);
	for (uint64_t n = 1; n <= 3; n++) { /* the last takes the table along */
		fake_invalidate(f, 9 + n, 1);
		cr_assert_eq(newest(f, 9 + n).zapped_4k, 1);
		cr_assert_eq(newest(f, 9 + n).zapped_2m, 0);
		cr_assert_eq(fake_stats(f).zapped_4k, n);
		cr_assert_eq(fake_stats(f).leaves_4k, 3 - n);
		cr_assert_eq(fake_check(f), 0);
	}
	fake_invalidate(f, 10, 1);
	cr_assert_eq(newest(f, 10).zapped_4k, 0);
	fake_destroy(f);
}

/* Written, then made old: that it was written is all the leaf still says when it is dropped, alone or among others. */
Test(paths, what_was_written_and_made_old_is_logged_when_it_is_dropped)
{
	for (uint64_t n = 1; n <= 2; n++) {
		struct fake *f = fake_create(&(struct fake_config){ .slot_flags = UMBRA_SLOT_LOG });
		uint64_t accessed[64], dirty[64];

		for (uint64_t p = 10; p < 14; p++)
			cr_assert_eq(fake_access(f, 0, p, true, NULL), 0);
		cr_assert(umbra_clear_flush_young(f->chain, fake_range(10, 4)));
		cr_assert_eq(umbra_log_collect(f->mmu, 1, accessed, NULL), 0);
		cr_assert_eq(accessed[0], 0xfULL << 10);
		fake_invalidate(f, 10, n);
		cr_assert_eq(fake_leaf(f, 10), 0);
		cr_assert_eq(fake_leaf(f, 13), 1);
		cr_assert_eq(umbra_log_collect(f->mmu, 1, accessed, dirty), 0);
		cr_assert_eq(accessed[0], 0);
		cr_assert_eq(dirty[0], 0xfULL << 10);
		fake_destroy(f);
	}
}

/* Nobody walks a mirror: what changes in it is dropped and counted, and nobody is told to forget it. */
Test(paths, one_page_of_a_mirror_asks_for_no_flush)
{
	struct fake *f = fake_create(NULL);
	struct umbra_root *mirror;
	struct umbra_translation t;

	cr_assert_eq(umbra_root_create(f->mmu, UMBRA_ROOT_MIRROR, &mirror), 0);
	for (uint64_t p = 10; p < 14; p++) {
		struct umbra_fault fault = { .gpa = { p << UMBRA_PAGE_SHIFT },
					     .access = UMBRA_ACCESS_WRITE };

		cr_assert_eq(umbra_fault(mirror, &fault), UMBRA_FAULT_INSTALLED);
	}
	for (uint64_t n = 1; n <= 2; n++) {
		fake_invalidate(f, 10, n);
		cr_assert_eq(umbra_lookup(mirror, (gpa_t){ 10 << UMBRA_PAGE_SHIFT }, &t), -ENOENT);
		cr_assert_eq(umbra_lookup(mirror, (gpa_t){ 12 << UMBRA_PAGE_SHIFT }, &t), 0);
		cr_assert_eq(fake_stats(f).leaves_4k, 4 - n);
		cr_assert_eq(fake_stats(f).flushed_entries, 0);
		cr_assert_eq(f->flush_waits, 0);
		cr_assert_eq(fake_check(f), 0);
	}
	umbra_root_destroy(mirror);
	fake_destroy(f);
}

/* Only leaves that are young are made old, counted and flushed. */
Test(paths, ageing_a_part_is_exact)
{
	struct fake *f = fake_create(NULL);
	const struct hva_range part = fake_range(600, 300);

	for (uint64_t p = 512; p < 1024; p++)
		if (!is_hole(p))
			cr_assert_eq(fake_access(f, 0, p, false, NULL), 0);
	cr_assert(umbra_clear_flush_young(f->chain, fake_range(700, 50)));
	cr_assert(umbra_test_young(f->chain, part));
	f->in_flush_wait = note_queue;
	cr_assert(umbra_clear_flush_young(f->chain, part));
	for (uint64_t p = 512; p < 1024; p++) {
		const bool in = p >= 600 && p < 900 && !(p >= 700 && p < 750) && !is_hole(p);

		cr_assert_eq(was_asked(p), in, "page %d", (int)p);
		cr_assert_eq(umbra_test_young(f->chain, fake_range(p, 1)),
			     !is_hole(p) && (p < 600 || p >= 900));
	}
	cr_assert_not(umbra_test_young(f->chain, part));
	cr_assert_not(umbra_clear_young(f->chain, part));
	cr_assert_eq(fake_check(f), 0);
	fake_destroy(f);
}
