/* SPDX-License-Identifier: BSD-2-Clause */
/* umbra_check notices what it says it checks: tables are broken on purpose, behind its back. */
#include <criterion/criterion.h>
#include <signal.h>
#include <string.h>

#include "shadow/core/private.h"
#include "tests/support/fakehost.h"

#define P  1ULL
#define PS (1ULL << 7)

struct lines {
	char first[160];
	unsigned int n;
};

static void keep_first(void *arg, const char *line)
{
	struct lines *l = arg;

	if (l->n++ == 0)
		strncpy(l->first, line, sizeof(l->first) - 1);
}

/* The entry of @gfn in the table of @level. */
static uint64_t *entry(struct fake *f, uint64_t gfn, unsigned int level)
{
	uint64_t table = umbra_root_phys(f->root);

	for (unsigned int l = 4;; l--) {
		uint64_t *e = (uint64_t *)((char *)f->window + (table - FAKE_WINDOW)) +
			      ((gfn >> (9 * (l - 1))) & 511);

		if (l == level)
			return e;
		table = *e & 0x000ffffffffff000ULL;
	}
}

/* A world with 4K leaves at 0..9 and a 2M leaf at 512. */
static struct fake *world(void)
{
	struct fake *f = fake_create(NULL);

	fake_make_huge(f, 1);
	for (uint64_t g = 0; g < 10; g++)
		cr_assert_eq(fake_access(f, 0, g, true, NULL), 0);
	cr_assert_eq(fake_access(f, 0, 512, true, NULL), 0);
	cr_assert_eq(fake_check(f), 0);
	return f;
}

static void expect_noticed(struct fake *f, const char *number, uint64_t *e, uint64_t broken)
{
	const uint64_t saved = *e;
	struct lines l = { .n = 0 };

	*e = broken;
	cr_assert_gt(umbra_check(f->mmu, keep_first, &l), 0, "%s: %lx not noticed", number, broken);
	cr_assert_eq(strncmp(l.first, number, strlen(number)), 0, "wanted %s, got: %s", number,
		     l.first);
	*e = saved;
	cr_assert_eq(fake_check(f), 0);
}

Test(check, notices_broken_entries)
{
	struct fake *f = world();
	uint64_t *leaf = entry(f, 3, 1), *huge = entry(f, 512, 2), *table = entry(f, 0, 2),
		 *top = entry(f, 0, 4);

	expect_noticed(f, "I4", leaf, *leaf + (5 << 12));
	expect_noticed(f, "I2", leaf, 0);
	expect_noticed(f, "I3", leaf, *leaf | 1ULL << 52);
	expect_noticed(f, "I3", leaf, *leaf & ~4ULL);
	expect_noticed(f, "I3", entry(f, 100, 1), 1ULL << 12);
	expect_noticed(f, "I4", huge, *huge + (512ULL << 12));
	expect_noticed(f, "I1", table, *table + (1ULL << 40));
	expect_noticed(f, "I1", table, (*table & ~0xfff000ULL) | (*top & 0xfff000ULL));
	expect_noticed(f, "I3", entry(f, 0, 3), *entry(f, 0, 3) | PS);
	expect_noticed(f, "I3", (uint64_t *)f->window + 300, 0x1000 | P);
	expect_noticed(f, "I2", entry(f, 200, 1), *leaf + (197 << 12));
	fake_destroy(f);
}

Test(check, notices_a_2m_leaf_that_the_slot_forbids)
{
	struct fake *f = fake_create(&(struct fake_config){ .slot_flags = UMBRA_SLOT_4K_ONLY });
	uint64_t *e, saved;
	struct lines l = { .n = 0 };

	cr_assert_eq(fake_access(f, 0, 0, true, NULL), 0);
	cr_assert_eq(fake_access(f, 0, 512, true, NULL), 0);
	e = entry(f, 512, 2);
	saved = *e;
	*e = (512ULL << 12) | PS | 7;
	umbra_check(f->mmu, keep_first, &l);
	cr_assert_eq(strncmp(l.first, "I6", 2), 0, "%s", l.first);
	*e = saved;
	fake_destroy(f);
}

Test(check, notices_a_writable_leaf_in_a_read_only_slot)
{
	struct fake *f = fake_create(&(struct fake_config){ .slot_flags = UMBRA_SLOT_READONLY });

	cr_assert_eq(fake_access(f, 0, 0, false, NULL), 0);
	expect_noticed(f, "I5", entry(f, 0, 1), *entry(f, 0, 1) | 2);
	fake_destroy(f);
}

Test(check, notices_a_leaf_in_an_open_invalidation)
{
	struct fake *f = world();
	const struct umbra_range r = fake_test_range(3, 1, UMBRA_RANGE_BLOCKABLE);
	const uint64_t leaf = *entry(f, 3, 1);
	struct lines l = { .n = 0 };

	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	*entry(f, 3, 1) = leaf;
	umbra_check(f->mmu, keep_first, &l);
	cr_assert_eq(strncmp(l.first, "I7", 2), 0, "%s", l.first);
	*entry(f, 3, 1) = 0;
	umbra_invalidate_end(f->chain, &r);
	cr_assert_eq(fake_check(f), 0);
	fake_destroy(f);
}

/* Our own broken invariants stop the program, in every build: each of these must abort. */
Test(bug, an_end_without_a_start_stops_the_program, .signal = SIGABRT)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range r = fake_test_range(3, 1, UMBRA_RANGE_BLOCKABLE);

	umbra_invalidate_end(f->chain, &r);
}

Test(bug, a_table_entry_out_of_the_window_stops_the_program, .signal = SIGABRT)
{
	struct fake *f = world();

	*entry(f, 0, 2) += 1ULL << 40; /* somebody wrote to our table */
	umbra_zap(f->mmu, (struct gfn_range){ { 3 }, { 4 } });
}

Test(bug, a_leaf_dropped_from_a_table_that_is_cut_off_stops_the_program, .signal = SIGABRT)
{
	struct fake *f = world();

	f->mmu->tables[spte_child(f->mmu, *entry(f, 3, 2))].state = TABLE_UNLINKED;
	umbra_zap(f->mmu, (struct gfn_range){ { 3 }, { 4 } });
}

Test(bug, a_chain_destroyed_with_a_member_stops_the_program, .signal = SIGABRT)
{
	struct fake *f = fake_create(NULL);

	umbra_chain_destroy(f->chain);
}

/* What stands beside the tables: counts, and the slots by host address. */
Test(check, notices_broken_books)
{
	struct fake *f = fake_create(&(struct fake_config){ .flags = UMBRA_MMU_RECORD_PFN });
	struct umbra_mmu *mmu = f->mmu;
	struct source_state *source = &mmu->sources[UMBRA_SOURCE_TEST];
	struct table *leaves;

	cr_assert_eq(fake_access(f, 0, 3, true, NULL), 0);
	leaves = &mmu->tables[spte_child(mmu, *entry(f, 3, 2))];
	expect_noticed(f, "I9", &f->root->leaves_4k, 2);
	expect_noticed(f, "I9", &f->root->leaves_2m, 1);
	expect_noticed(f, "I9", &mmu->stats.tables, mmu->stats.tables + 1);
	expect_noticed(f, "I10", &source->ended, source->begun + 1);
	expect_noticed(f, "I12", &mmu->by_hva[0].start, mmu->by_hva[0].start + 4096);
	expect_noticed(f, "I12", &mmu->by_hva[0].end, mmu->by_hva[0].end - 4096);
	expect_noticed(f, "I12", &mmu->by_hva[0].max_end, 0);
	expect_noticed(f, "I12", &mmu->by_hva[0].gfn, 1);
	expect_noticed(f, "I12", &mmu->by_hva[0].gfn, 1ULL << 30);
	mmu->by_hva[0].end = mmu->by_hva[0].max_end -=
		4096; /* agree with each other, not with the slot */
	cr_expect_eq(umbra_check(mmu, NULL, NULL), 1, "I12");
	mmu->by_hva[0].end = mmu->by_hva[0].max_end += 4096;
	expect_noticed(f, "I13", &mmu->cleared.count, 1);
	expect_noticed(f, "I14", (uint64_t *)&leaves->host_pfns, 0);
	expect_noticed(f, "I15", &mmu->queued, 1);
	mmu->released = true;
	cr_expect_eq(umbra_check(mmu, NULL, NULL), 1, "I11");
	mmu->released = false;
	fake_destroy(f);
}
