/* SPDX-License-Identifier: BSD-2-Clause */
/* Faults, zaps, rights and ageing with a real vCPU walking the tables. */
#include "../support/engine_test.h"

#include <string.h>
#include <sys/mman.h>
#include <vmm/window.h>

#define PAGE UMBRA_PAGE_SIZE
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

/* Page faults that an access takes. */
static uint64_t faults_of(unsigned int vcpu, enum engine_op op, uint64_t addr)
{
	uint64_t before = engine_faults(&e, vcpu);

	cr_assert(engine_do(&e, vcpu, op, addr, 7), "%s", e.vm.stop_why);
	return engine_faults(&e, vcpu) - before;
}

static struct gfn_range pages(uint64_t gpa, uint64_t n)
{
	return (struct gfn_range){ { gpa >> 12 }, { (gpa >> 12) + n } };
}

Test(engine_faults, first_access_faults_second_does_not)
{
	uint64_t value;

	begin(1, GUEST_PAGES_4K);
	cr_expect_eq(faults_of(0, ENGINE_WRITE, ENGINE_LOOSE), 1);
	cr_expect_eq(faults_of(0, ENGINE_WRITE, ENGINE_LOOSE), 0);
	cr_expect_eq(faults_of(0, ENGINE_READ, ENGINE_LOOSE + 8), 0);
	cr_expect_eq(faults_of(0, ENGINE_READ, ENGINE_LOOSE + PAGE), 1);
	cr_assert(engine_read(&e, 0, ENGINE_LOOSE, &value));
	cr_expect_eq(value, 7);
	cr_expect_eq(*(uint64_t *)engine_at(&e, ENGINE_LOOSE), 7);
	end();
}

Test(engine_faults, zap_makes_the_next_access_fault_and_keeps_neighbours)
{
	begin(1, GUEST_PAGES_4K);
	engine_sweep(&e, 0, ENGINE_WRITE, ENGINE_LOOSE, 3, PAGE);
	for (int i = 0; i < 50; i++) {
		umbra_zap(e.vm.mmu, pages(ENGINE_LOOSE + PAGE, 1));
		cr_assert_eq(faults_of(0, ENGINE_READ, ENGINE_LOOSE), 0, "round %d", i);
		cr_assert_eq(faults_of(0, ENGINE_READ, ENGINE_LOOSE + 2 * PAGE), 0, "round %d", i);
		cr_assert_eq(faults_of(0, ENGINE_WRITE, ENGINE_LOOSE + PAGE), 1, "round %d", i);
	}
	end();
}

Test(engine_faults, zap_is_obeyed_by_two_vcpus)
{
	begin(2, GUEST_PAGES_4K);
	for (int i = 0; i < 50; i++) {
		faults_of(0, ENGINE_WRITE, ENGINE_LOOSE);
		faults_of(1, ENGINE_WRITE, ENGINE_LOOSE);
		umbra_zap(e.vm.mmu, pages(ENGINE_LOOSE, 1));
		cr_assert_eq(faults_of(i & 1, ENGINE_READ, ENGINE_LOOSE), 1, "round %d", i);
		cr_assert_eq(faults_of(~i & 1, ENGINE_READ, ENGINE_LOOSE), 0, "round %d", i);
	}
	end();
}

Test(engine_faults, discarded_memory_reads_zero_on_both_vcpus)
{
	uint64_t value;

	begin(2, GUEST_PAGES_4K);
	for (unsigned int i = 0; i < 50; i++) {
		cr_assert(engine_do(&e, 0, ENGINE_WRITE, ENGINE_LOOSE, i + 1));
		cr_assert(engine_read(&e, 1, ENGINE_LOOSE, &value));
		cr_assert_eq(value, i + 1);
		engine_discard(&e, ENGINE_LOOSE, PAGE);
		cr_assert(engine_read(&e, ~i & 1, ENGINE_LOOSE, &value));
		cr_assert_eq(value, 0);
		cr_assert(engine_read(&e, i & 1, ENGINE_LOOSE, &value));
		cr_assert_eq(value, 0);
	}
	end();
}

Test(engine_faults, write_protect_catches_the_next_write_and_no_read)
{
	begin(2, GUEST_PAGES_4K);
	for (int i = 0; i < 50; i++) {
		faults_of(0, ENGINE_WRITE, ENGINE_LOOSE);
		faults_of(1, ENGINE_WRITE, ENGINE_LOOSE);
		umbra_write_protect(e.vm.mmu, pages(ENGINE_LOOSE, 1));
		cr_assert_eq(faults_of(0, ENGINE_READ, ENGINE_LOOSE), 0, "round %d", i);
		cr_assert_eq(faults_of(1, ENGINE_WRITE, ENGINE_LOOSE), 1, "round %d", i);
		cr_assert_eq(faults_of(0, ENGINE_WRITE, ENGINE_LOOSE), 0, "round %d", i);
	}
	end();
}

static bool bit(const uint64_t *map, uint64_t gpa)
{
	return map[gpa >> 18] >> (gpa >> 12 & 63) & 1;
}

Test(engine_faults, ageing_sees_every_new_access_and_write)
{
	static uint64_t accessed[(64 << 20) >> 18], dirty[(64 << 20) >> 18];

	begin(1, GUEST_PAGES_4K);
	engine_sweep(&e, 0, ENGINE_WRITE, ENGINE_LOOSE, 2, PAGE);
	umbra_log_collect(e.vm.mmu, VM_SLOT_ID_RAM, accessed, dirty);
	for (int i = 0; i < 50; i++) {
		uint64_t before = engine_faults(&e, 0);

		cr_assert(engine_do(&e, 0, ENGINE_READ, ENGINE_LOOSE, 0));
		cr_assert(engine_do(&e, 0, ENGINE_WRITE, ENGINE_LOOSE + PAGE, 1));
		umbra_log_collect(e.vm.mmu, VM_SLOT_ID_RAM, accessed, dirty);
		cr_assert(bit(accessed, ENGINE_LOOSE) && !bit(dirty, ENGINE_LOOSE), "round %d", i);
		cr_assert(bit(accessed, ENGINE_LOOSE + PAGE) && bit(dirty, ENGINE_LOOSE + PAGE),
			  "round %d", i);
		cr_assert(!bit(accessed, ENGINE_LOOSE + 2 * PAGE));
		cr_assert_eq(engine_faults(&e, 0), before, "ageing costs no fault of ours");
	}
	umbra_log_collect(e.vm.mmu, VM_SLOT_ID_RAM, accessed, dirty);
	cr_expect(!bit(accessed, ENGINE_LOOSE), "nothing touched it since");
	end();
}

Test(engine_faults, a_2m_leaf_serves_512_pages_with_one_fault)
{
	const uint64_t huge = 4ULL << 20;
	struct umbra_translation t;

	begin(2, GUEST_PAGES_THP);
	if (!umbra_hostmap_has_scan(e.vm.hostmap)) {
		end();
		cr_skip_test("no PAGEMAP_SCAN (Linux 6.7): leaves are 4K");
	}
	memset(engine_at(&e, huge), 1, UMBRA_HUGE_SIZE);
	cr_expect_eq(faults_of(0, ENGINE_WRITE, huge + 5 * PAGE), 1);
	cr_assert_eq(umbra_lookup(e.vm.root, (gpa_t){ huge }, &t), 0);
	if (t.level != UMBRA_LEVEL_2M) {
		engine_destroy(&e);
		cr_skip_test("the host gave no huge page");
	}
	cr_expect_eq(faults_of(1, ENGINE_WRITE, huge + 300 * PAGE), 0);
	for (int i = 0; i < 20; i++) {
		umbra_zap(e.vm.mmu, pages(huge + 7 * PAGE, 1)); /* one page of it: the leaf goes */
		cr_assert_eq(faults_of(i & 1, ENGINE_WRITE, huge + 400 * PAGE), 1, "round %d", i);
		cr_assert_eq(faults_of(~i & 1, ENGINE_READ, huge + 7 * PAGE), 0, "round %d", i);
	}
	cr_expect_eq(umbra_split(e.vm.mmu, pages(huge, 512)), 1);
	cr_expect_eq(faults_of(0, ENGINE_WRITE, huge + 9 * PAGE), 0,
		     "a split loses no translation");
	umbra_zap(e.vm.mmu, pages(huge + 9 * PAGE, 1));
	cr_expect_eq(faults_of(1, ENGINE_WRITE, huge + 8 * PAGE), 0);
	cr_expect_eq(faults_of(1, ENGINE_WRITE, huge + 9 * PAGE), 1);
	cr_expect_eq(umbra_collapse(e.vm.mmu, pages(huge, 512)), 1);
	cr_expect_eq(faults_of(0, ENGINE_WRITE, huge + 10 * PAGE), 0);
	umbra_zap(e.vm.mmu, pages(huge, 512));
	cr_expect_eq(faults_of(0, ENGINE_READ, huge + 11 * PAGE), 1);
	end();
}

/* A table page that served one region serves another: nothing of its first life may show. */
Test(engine_faults, table_pages_are_reused_without_ghosts)
{
	const uint64_t a = 8ULL << 20, b = 12ULL << 20;
	struct umbra_stats stats;
	uint64_t value, tables;

	begin(2, GUEST_PAGES_4K);
	for (unsigned int i = 0; i < 512; i++) {
		*(uint64_t *)engine_at(&e, a + i * PAGE) = 1000 + i;
		*(uint64_t *)engine_at(&e, b + i * PAGE) = 2000 + i;
	}
	umbra_mmu_stats(e.vm.mmu, &stats);
	tables = stats.tables;
	for (unsigned int round = 0; round < 12; round++) {
		uint64_t on = round & 1 ? b : a, off = round & 1 ? a : b;
		uint64_t before = engine_faults(&e, ~0U);

		cr_assert(engine_sweep(&e, round & 1, ENGINE_READ, on, 512, PAGE));
		value = engine_mailbox(&e, round & 1)->value;
		cr_assert_eq(value, (round & 1 ? 2000 : 1000) * 512 + 511 * 256, "round %u", round);
		cr_assert_eq(engine_faults(&e, ~0U) - before, 512, "round %u", round);
		umbra_zap(e.vm.mmu, pages(on, 512));
		umbra_reclaim(e.vm.mmu, ~0ULL);
		cr_assert(engine_read(&e, 0, off, &value)); /* lets a vCPU touch what is pending */
		umbra_reclaim(e.vm.mmu, ~0ULL);
		umbra_zap(e.vm.mmu, pages(off, 512));
	}
	umbra_mmu_stats(e.vm.mmu, &stats);
	cr_expect_leq(stats.tables, tables + 4, "%llu tables, %llu before",
		      (unsigned long long)stats.tables, (unsigned long long)tables);
	end();
}

Test(engine_faults, zap_all_drops_every_translation)
{
	begin(2, GUEST_PAGES_4K);
	for (int i = 0; i < 20; i++) {
		uint64_t before;

		engine_sweep(&e, 0, ENGINE_WRITE, ENGINE_LOOSE, 64, PAGE);
		umbra_zap_all(e.vm.mmu);
		before = engine_faults(&e, 1);
		cr_assert(engine_sweep(&e, 1, ENGINE_READ, ENGINE_LOOSE, 64, PAGE));
		/* and the guest's code and mailbox, unless the other vCPU was quicker there */
		cr_assert_geq(engine_faults(&e, 1) - before, 64, "round %d", i);
		umbra_reclaim(e.vm.mmu, ~0ULL);
	}
	end();
}

/* The read maps the shared zero page; the write gives the page a frame, announced by the vCPU's own thread. */
Test(engine_faults, vcpu_threads_that_invalidate_do_not_deadlock)
{
	const uint64_t a = 16ULL << 20;

	begin(2, GUEST_PAGES_4K);
	for (unsigned int round = 0; round < 4; round++) {
		uint64_t zapped;
		struct umbra_stats stats;

		cr_assert_eq(madvise(engine_at(&e, a), 256 * PAGE, MADV_POPULATE_READ), 0);
		engine_sweep(&e, 0, ENGINE_READ, a, 256, PAGE);
		umbra_mmu_stats(e.vm.mmu, &stats);
		zapped = stats.zapped_4k;
		for (unsigned int v = 0; v < 2; v++)
			*engine_mailbox(&e, v) =
				(struct engine_mailbox){ 0, a + v * 8, 256, PAGE, v + 1, { 0 } };
		for (unsigned int v = 0; v < 2; v++)
			__atomic_store_n(&engine_mailbox(&e, v)->op, ENGINE_WRITE,
					 __ATOMIC_RELEASE);
		cr_assert(engine_wait(&e, 0) && engine_wait(&e, 1));
		umbra_mmu_stats(e.vm.mmu, &stats);
		cr_expect_geq(stats.zapped_4k - zapped, 256, "every page was invalidated");
		for (unsigned int i = 0; i < 256; i++) {
			uint64_t *word = engine_at(&e, a + i * PAGE);

			cr_assert(word[0] == 1 && word[1] == 2, "page %u", i);
		}
		engine_discard(&e, a, 256 * PAGE);
	}
	end();
}

Test(engine_faults, wild_accesses_are_guest_crashes_that_name_the_address)
{
	begin(1, GUEST_PAGES_4K);
	cr_expect(!engine_do(&e, 0, ENGINE_READ, 65ULL << 20, 0));
	engine_stop(&e);
	cr_expect_eq(e.vm.stop_code, VMM_EXIT_GUEST_CRASH);
	cr_expect_not_null(strstr(e.vm.stop_why, "0x4100000"), "%s", e.vm.stop_why);
	engine_destroy(&e);

	begin(1, GUEST_PAGES_4K);
	cr_expect(!engine_do(&e, 0, ENGINE_WRITE, WINDOW_VIRT + 0x2000, 0));
	engine_stop(&e);
	cr_expect_eq(e.vm.stop_code, VMM_EXIT_GUEST_CRASH);
	cr_expect_not_null(strstr(e.vm.stop_why, "escape"), "%s", e.vm.stop_why);
	engine_destroy(&e);
}
