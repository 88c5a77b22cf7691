/* SPDX-License-Identifier: BSD-2-Clause */
/* Properties of tables: installing, dropping, splitting, collapsing, protecting; on the fake host.
 */
#include <criterion/criterion.h>
#include <errno.h>

#include "tests/support/fakehost.h"

static struct gfn_range gfns(uint64_t first, uint64_t n)
{
	return (struct gfn_range){ { first }, { first + n } };
}

#define clean(f) cr_assert_eq(fake_check(f), 0)

Test(map, fault_installs_one_4k_leaf_with_the_right_frame)
{
	struct fake *f = fake_create(NULL);
	uint64_t pfn;

	cr_assert_eq(fake_access(f, 0, 7, false, &pfn), 0);
	cr_assert_eq(pfn, 7);
	cr_assert_eq(fake_stats(f).installed_4k, 1);
	cr_assert_eq(fake_stats(f).leaves_4k, 1);
	cr_assert_eq(fake_leaf(f, 7), 1);
	cr_assert_eq(fake_leaf(f, 8), 0);
	clean(f);
	fake_destroy(f);
}

Test(map, huge_host_page_gives_one_2m_leaf_for_512_pages)
{
	struct fake *f = fake_create(NULL);
	uint64_t pfn;

	fake_make_huge(f, 2);
	cr_assert_eq(fake_access(f, 0, 1024 + 77, true, &pfn), 0);
	cr_assert_eq(pfn, 1024 + 77);
	cr_assert_eq(fake_access(f, 0, 1024 + 511, true, &pfn), 0);
	cr_assert_eq(fake_stats(f).faults, 1);
	cr_assert_eq(fake_stats(f).leaves_2m, 1);
	clean(f);
	fake_destroy(f);
}

Test(map, zap_4k_keeps_neighbours)
{
	struct fake *f = fake_create(NULL);

	for (uint64_t g = 0; g < 8; g++)
		cr_assert_eq(fake_access(f, 0, g, true, NULL), 0);
	umbra_zap(f->mmu, gfns(3, 1));
	for (uint64_t g = 0; g < 8; g++)
		cr_assert_eq(fake_leaf(f, g), g != 3, "gfn %lu", g);
	cr_assert_not(fake_cached(f, 3));
	clean(f);
	fake_destroy(f);
}

Test(map, zap_2m_keeps_neighbours)
{
	struct fake *f = fake_create(NULL);

	for (uint64_t b = 0; b < 3; b++) {
		fake_make_huge(f, b);
		cr_assert_eq(fake_access(f, 0, b * 512, true, NULL), 0);
	}
	umbra_zap(f->mmu, gfns(512 + 9, 1));
	cr_assert_eq(fake_leaf(f, 0), 2);
	cr_assert_eq(fake_leaf(f, 512), 0, "one page of a 2M leaf takes the whole leaf");
	cr_assert_eq(fake_leaf(f, 1024), 2);
	cr_assert_not(fake_cached(f, 512));
	clean(f);
	fake_destroy(f);
}

Test(map, zap_of_a_whole_table_costs_one_entry_and_frees_the_table)
{
	struct fake *f = fake_create(NULL);
	struct umbra_stats before, after;

	for (uint64_t g = 0; g < 512; g++)
		cr_assert_eq(fake_access(f, 0, g, false, NULL), 0);
	cr_assert_eq(fake_access(f, 0, 512, false, NULL), 0);
	before = fake_stats(f);
	umbra_zap(f->mmu, gfns(0, 512));
	after = fake_stats(f);
	cr_assert_eq(after.zapped_4k - before.zapped_4k, 512);
	cr_assert_leq(after.flushed_entries - before.flushed_entries, 2);
	cr_assert_eq(umbra_reclaim(f->mmu, 100), 0);
	cr_assert_eq(fake_stats(f).tables, before.tables - 1);
	cr_assert_eq(fake_leaf(f, 512), 1);
	clean(f);
	fake_destroy(f);
}

Test(map, empty_tables_are_freed_up_to_the_root)
{
	struct fake *f = fake_create(NULL);

	cr_assert_eq(fake_access(f, 0, 5, false, NULL), 0);
	cr_assert_eq(fake_stats(f).tables, 4);
	umbra_zap(f->mmu, gfns(5, 1));
	cr_assert_eq(umbra_reclaim(f->mmu, 100), 0);
	cr_assert_eq(fake_stats(f).tables, 1);
	clean(f);
	fake_destroy(f);
}

Test(map, zap_all_unlinks_in_one_entry_whatever_the_size)
{
	struct fake *f = fake_create(&(struct fake_config){ .npages = 512 * 40 });
	struct umbra_stats before, after;

	for (uint64_t g = 0; g < 512 * 40; g += 3)
		cr_assert_eq(fake_access(f, 0, g, false, NULL), 0);
	before = fake_stats(f);
	umbra_zap_all(f->mmu);
	after = fake_stats(f);
	cr_assert_eq(after.flushed_entries - before.flushed_entries, 1);
	cr_assert_eq(after.leaves_4k, 0);
	cr_assert_eq(fake_leaf(f, 3), 0);
	clean(f);
	cr_assert_gt(umbra_reclaim(f->mmu, 1), 0);
	clean(f);
	while (umbra_reclaim(f->mmu, 8))
		clean(f);
	cr_assert_eq(fake_stats(f).tables, 1);
	fake_destroy(f);
}

Test(map, table_pages_run_out_and_come_back)
{
	struct fake *f = fake_create(&(struct fake_config){ .npages = 512 * 8 });

	f->window_limit = 5; /* root, L3, L2, two tables of leaves */
	cr_assert_eq(fake_access(f, 0, 0, false, NULL), 0);
	cr_assert_eq(fake_access(f, 0, 512, false, NULL), 0);
	cr_assert_eq(fake_access(f, 0, 1024, false, NULL), UMBRA_FAULT_NO_MEMORY);
	clean(f);
	umbra_zap_all(f->mmu);
	/* nobody called reclaim: the fault itself gets the pages back */
	cr_assert_eq(fake_access(f, 0, 1024, false, NULL), 0);
	clean(f);
	fake_destroy(f);
}

Test(map, split_keeps_frames_rights_accessed_and_dirty)
{
	struct fake *f = fake_create(NULL);
	struct umbra_translation t;

	fake_make_huge(f, 1);
	cr_assert_eq(fake_access(f, 0, 512, true, NULL), 0);
	cr_assert_eq(umbra_split(f->mmu, gfns(512, 512)), 1);
	cr_assert_not(fake_cached(f, 512));
	for (uint64_t i = 0; i < 512; i++) {
		cr_assert_eq(umbra_lookup(f->root, (gpa_t){ (512 + i) << 12 }, &t), 0);
		cr_assert_eq(t.level, UMBRA_LEVEL_4K);
		cr_assert_eq(t.pfn.v, 512 + i);
		cr_assert(t.writable && t.accessed && t.dirty);
	}
	cr_assert_eq(fake_stats(f).leaves_4k, 512);
	cr_assert_eq(fake_stats(f).leaves_2m, 0);
	clean(f);
	fake_destroy(f);
}

Test(map, split_without_a_table_page_changes_nothing)
{
	struct fake *f = fake_create(NULL);

	fake_make_huge(f, 1);
	cr_assert_eq(fake_access(f, 0, 512, true, NULL), 0);
	f->window_limit = f->tables_out;
	cr_assert_eq(umbra_split(f->mmu, gfns(512, 512)), -ENOSPC);
	cr_assert_eq(fake_leaf(f, 512), 2);
	clean(f);
	fake_destroy(f);
}

Test(map, collapse_ors_accessed_and_dirty)
{
	struct fake *f = fake_create(NULL);
	struct umbra_translation t;

	fake_make_huge(f, 1);
	f->block_huge[1] = false;
	for (uint64_t i = 0; i < 512; i++)
		cr_assert_eq(fake_access(f, 0, 512 + i, i == 100, NULL), 0);
	cr_assert_eq(umbra_collapse(f->mmu, gfns(512, 512)), 0, "the host maps it by 4K");
	f->block_huge[1] = true;
	cr_assert_eq(umbra_collapse(f->mmu, gfns(512, 512)), 1);
	cr_assert_eq(umbra_lookup(f->root, (gpa_t){ 512ULL << 12 }, &t), 0);
	cr_assert_eq(t.level, UMBRA_LEVEL_2M);
	cr_assert(t.accessed && t.dirty);
	cr_assert_eq(fake_stats(f).leaves_4k, 0);
	cr_assert_eq(fake_stats(f).leaves_2m, 1);
	umbra_reclaim(f->mmu, 10);
	clean(f);
	fake_destroy(f);
}

Test(map, collapse_refuses_a_table_with_a_hole_or_unequal_rights)
{
	struct fake *f = fake_create(NULL);

	fake_make_huge(f, 1);
	f->block_huge[1] = false;
	for (uint64_t i = 0; i < 511; i++)
		cr_assert_eq(fake_access(f, 0, 512 + i, false, NULL), 0);
	f->block_huge[1] = true;
	cr_assert_eq(umbra_collapse(f->mmu, gfns(512, 512)), 0);
	f->block_huge[1] = false;
	cr_assert_eq(fake_access(f, 0, 512 + 511, false, NULL), 0);
	umbra_write_protect(f->mmu, gfns(600, 1));
	f->block_huge[1] = true;
	cr_assert_eq(umbra_collapse(f->mmu, gfns(512, 512)), 0);
	cr_assert_eq(fake_stats(f).leaves_4k, 512);
	clean(f);
	fake_destroy(f);
}

static void discard_block(struct fake *f, void *arg)
{
	(void)arg;
	fake_invalidate(f, 512 + 5, 1);
	fake_move_page(f, 512 + 5);
}

Test(map, collapse_gives_up_when_the_host_changes_its_mind_while_it_is_asked)
{
	struct fake *f = fake_create(NULL);

	fake_make_huge(f, 1);
	f->block_huge[1] = false;
	for (uint64_t i = 0; i < 512; i++)
		cr_assert_eq(fake_access(f, 0, 512 + i, false, NULL), 0);
	f->block_huge[1] = true;
	f->in_resolve = discard_block;
	cr_assert_eq(umbra_collapse(f->mmu, gfns(512, 512)), 0);
	cr_assert_eq(fake_stats(f).leaves_2m, 0);
	cr_assert_eq(fake_leaf(f, 512 + 5), 0);
	cr_assert_eq(fake_leaf(f, 512 + 6), 1);
	clean(f);
	fake_destroy(f);
}

Test(map, write_protect_makes_the_next_write_fault_and_keeps_dirty)
{
	struct fake *f = fake_create(NULL);
	struct umbra_translation t;

	cr_assert_eq(fake_access(f, 0, 9, true, NULL), 0);
	umbra_write_protect(f->mmu, gfns(0, 100));
	cr_assert_not(fake_cached(f, 9));
	cr_assert_eq(umbra_lookup(f->root, (gpa_t){ 9 << 12 }, &t), 0);
	cr_assert(!t.writable && t.dirty);
	cr_assert_eq(fake_access(f, 0, 9, false, NULL), 0);
	cr_assert_eq(fake_stats(f).faults, 1);
	cr_assert_eq(fake_access(f, 0, 9, true, NULL), 0);
	cr_assert_eq(fake_stats(f).faults, 2);
	cr_assert_eq(fake_stats(f).upgraded, 1);
	clean(f);
	fake_destroy(f);
}

Test(map, read_only_host_page_is_not_writable_and_says_denied)
{
	struct fake *f = fake_create(NULL);
	struct umbra_translation t;

	f->pages[4].writable = false;
	cr_assert_eq(fake_access(f, 0, 4, false, NULL), 0);
	cr_assert_eq(umbra_lookup(f->root, (gpa_t){ 4 << 12 }, &t), 0);
	cr_assert_not(t.writable);
	cr_assert_eq(fake_access(f, 0, 4, true, NULL), UMBRA_FAULT_DENIED);
	clean(f);
	fake_destroy(f);
}

Test(map, an_unannounced_new_frame_drops_the_leaf_instead_of_replacing_it)
{
	struct fake *f = fake_create(&(struct fake_config){ .flags = UMBRA_MMU_RECORD_PFN });
	uint64_t zaps;

	f->pages[4].writable = false;
	cr_assert_eq(fake_access(f, 0, 4, false, NULL), 0);
	fake_move_page(f, 4); /* copy-on-write that nobody told us of */
	f->pages[4].writable = true;
	zaps = fake_stats(f).zapped_4k;
	cr_assert_eq(fake_access(f, 0, 4, true, NULL), 0);
	cr_assert_eq(fake_stats(f).zapped_4k, zaps + 1);
	clean(f);
	fake_destroy(f);
}

Test(map, what_resolve_says_reaches_the_faulter)
{
	static const struct {
		int error;
		enum umbra_fault_result result;
	} cases[] = {
		{ -EFAULT, UMBRA_FAULT_BAD_HOST }, { -EHWPOISON, UMBRA_FAULT_BAD_HOST },
		{ -EACCES, UMBRA_FAULT_DENIED },   { -ENOMEM, UMBRA_FAULT_NO_MEMORY },
		{ -EIO, UMBRA_FAULT_ERROR },       { -EAGAIN, UMBRA_FAULT_RETRY },
	};
	struct fake *f = fake_create(NULL);

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct umbra_fault fault = { .gpa = { 0 }, .access = UMBRA_ACCESS_READ };

		f->resolve_error = cases[i].error;
		cr_assert_eq(umbra_fault(f->root, &fault), cases[i].result);
		cr_assert_eq(fault.error, cases[i].error);
	}
	cr_assert_eq(fake_stats(f).leaves_4k, 0);
	fake_destroy(f);
}

Test(map, walks_skip_absent_terabytes)
{
	struct fake *f = fake_create(NULL);

	/* with every 4K slot looked at, these would be 2^35 steps each */
	umbra_zap(f->mmu, gfns(0, 1ULL << 35));
	umbra_write_protect(f->mmu, gfns(0, 1ULL << 35));
	cr_assert_eq(fake_access(f, 0, 4095, false, NULL), 0);
	umbra_zap(f->mmu, gfns(0, UINT64_MAX));
	cr_assert_eq(fake_leaf(f, 4095), 0);
	clean(f);
	fake_destroy(f);
}

Test(map, two_roots_over_one_memory_are_both_invalidated)
{
	struct fake *f = fake_create(NULL);
	struct umbra_translation t;
	struct umbra_root *second;
	struct umbra_fault fault = { .gpa = { 3 << 12 }, .access = UMBRA_ACCESS_WRITE };

	cr_assert_eq(umbra_root_create(f->mmu, UMBRA_ROOT_MIRROR, &second), 0);
	cr_assert_eq(fake_access(f, 0, 3, true, NULL), 0);
	cr_assert_eq(umbra_fault(second, &fault), UMBRA_FAULT_INSTALLED);
	fake_invalidate(f, 3, 1);
	cr_assert_eq(fake_leaf(f, 3), 0);
	cr_assert_eq(umbra_lookup(second, fault.gpa, &t), -ENOENT);
	clean(f);
	umbra_root_destroy(second);
	fake_destroy(f);
}

Test(map, composed_roots_are_refused_not_pretended)
{
	struct fake *f = fake_create(NULL);
	struct umbra_root *root;

	cr_assert_eq(umbra_root_create(f->mmu, UMBRA_ROOT_COMPOSED, &root), -ENOTSUP);
	fake_destroy(f);
}

Test(map, reserved_top_entries_survive_everything)
{
	struct fake *f = fake_create(NULL);
	const uint64_t *root = f->window;

	cr_assert_eq(umbra_root_reserve(f->root, 511, 0x123003), 0);
	cr_assert_eq(umbra_root_reserve(f->root, 255, 0x123003), -EINVAL);
	cr_assert_eq(umbra_root_reserve(f->root, 512, 0x123003), -EINVAL);
	cr_assert_eq(fake_access(f, 0, 3, true, NULL), 0);
	umbra_zap_all(f->mmu);
	umbra_release(f->chain);
	cr_assert_eq(root[511], 0x123003);
	clean(f);
	fake_destroy(f);
}

Test(map, bad_configurations_are_refused)
{
	struct fake *f = fake_create(NULL);
	struct umbra_mmu_config c = { 0 };
	struct umbra_mmu *mmu;

	cr_assert_eq(umbra_mmu_create(&mmu, &c), -EINVAL);
	fake_destroy(f);
}
