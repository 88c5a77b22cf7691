/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls against the kernel's page tables: rows of catalogue D that the program does itself. */
#include <criterion/criterion.h>
#include "tests/integration/events_host.h"

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static struct host h;
static uint64_t starts;

static void fini(void)
{
	host_destroy(&h);
}

static void init(void)
{
	host_create(&h);
}

TestSuite(own, .init = init, .fini = fini, .timeout = 60);

#define sound() cr_assert(host_sound(&h))
#define mark()  (starts = host_starts(&h))
#define since() (host_starts(&h) - starts)

static int advise(const char *p, size_t bytes, int advice)
{
	return umbra_madvise(h.own, hva_range_of(p, bytes), advice);
}

static char *touched(size_t bytes)
{
	char *p = host_anon(&h, bytes);

	cr_assert(p);
	cr_assert(!madvise(p, bytes, MADV_NOHUGEPAGE));
	cr_assert(host_touch(&h, p, bytes, RW));
	sound();
	return p;
}

static char *thp(size_t blocks)
{
	char *p = host_anon(&h, blocks * HUGE);

	cr_assert(p);
	for (size_t i = 0; i < blocks; i++)
		if (!host_make_thp(&h, p + i * HUGE))
			cr_skip_test("the host gives no transparent hugepage");
	cr_assert(host_touch(&h, p, blocks * HUGE, RW));
	for (size_t i = 0; i < blocks; i++)
		cr_assert_eq(host_leaf(&h, p + i * HUGE), 2);
	sound();
	return p;
}

Test(own, read_fault_of_fresh_memory_is_writable_at_once)
{
	char *p = host_anon(&h, HUGE);

	cr_assert_eq(host_fault(&h, p, UMBRA_ACCESS_READ), UMBRA_FAULT_INSTALLED);
	cr_assert(host_writable(&h, p));
	cr_assert_eq(host_fault(&h, p, RW), UMBRA_FAULT_SPURIOUS);
	sound();
}

Test(own, write_over_the_zero_page_moves_it_and_is_announced)
{
	char *p = host_anon(&h, HUGE);

	madvise(p, HUGE, MADV_NOHUGEPAGE);
	cr_assert(!madvise(p, PAGE, MADV_POPULATE_READ));
	cr_assert_eq(host_fault(&h, p, UMBRA_ACCESS_READ), UMBRA_FAULT_INSTALLED);
	cr_assert_not(host_writable(&h, p));
	sound();
	mark();
	cr_assert_eq(host_fault(&h, p, RW), UMBRA_FAULT_INSTALLED);
	cr_assert_eq(since(), 1);
	cr_assert(host_writable(&h, p));
	sound();
}

Test(own, a_hole_is_bad_host_and_protections_are_denied)
{
	char *p = touched(HUGE);

	cr_assert(!umbra_mprotect(h.own, hva_range_of(p, PAGE), PROT_NONE));
	cr_assert(!umbra_mprotect(h.own, hva_range_of(p + PAGE, PAGE), PROT_READ));
	cr_assert(!umbra_munmap(h.own, hva_range_of(p + 2 * PAGE, PAGE)));
	cr_assert_eq(host_fault(&h, p, UMBRA_ACCESS_READ), UMBRA_FAULT_DENIED);
	cr_assert_eq(host_fault(&h, p, RW), UMBRA_FAULT_DENIED);
	cr_assert_eq(host_fault(&h, p + PAGE, RW), UMBRA_FAULT_DENIED);
	cr_assert_eq(host_fault(&h, p + PAGE, UMBRA_ACCESS_READ), UMBRA_FAULT_INSTALLED);
	cr_assert_eq(host_fault(&h, p + 2 * PAGE, UMBRA_ACCESS_READ), UMBRA_FAULT_BAD_HOST);
	cr_assert_eq(host_fault(&h, p + 2 * PAGE, RW), UMBRA_FAULT_BAD_HOST);
	sound();
}

Test(own, d01_d02_splitting_a_thp_by_mprotect_moves_no_page)
{
	char *p = thp(2);
	const uint64_t pfn = host_pfn(&h, p);

	mark();
	cr_assert(!umbra_mprotect(h.own, hva_range_of(p + 5 * PAGE, PAGE), PROT_READ));
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaf(&h, p), 0);
	cr_assert_eq(host_leaf(&h, p + HUGE), 2);
	sound();
	cr_assert(!umbra_mprotect(h.own, hva_range_of(p + 5 * PAGE, PAGE), PROT_READ | PROT_WRITE));
	cr_assert(host_touch(&h, p, HUGE, RW));
	for (size_t i = 0; i < 512; i++)
		cr_assert_eq(host_pfn(&h, p + i * PAGE), pfn + i);
	cr_assert_eq(host_leaf(&h, p), 1);
	sound();
}

Test(own, d03_cutting_a_4k_mapping_drops_nothing_and_moves_nothing)
{
	char *p = touched(HUGE);
	const uint64_t pfn = host_pfn(&h, p + 7 * PAGE);

	host_needs_sizes(&h);
	mark();
	cr_assert(!advise(p + 7 * PAGE, PAGE, MADV_DONTDUMP));
	cr_assert_eq(since(), 0);
	cr_assert_eq(host_leaves(&h, p, HUGE), 512);
	cr_assert_eq(host_pfn(&h, p + 7 * PAGE), pfn);
	sound();
}

Test(own, cutting_a_thp_by_any_advice_drops_only_the_blocks_cut)
{
	char *p = thp(4);

	mark();
	cr_assert(!advise(p + HUGE - PAGE, HUGE + 2 * PAGE, MADV_DONTDUMP));
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaf(&h, p), 0);
	cr_assert_eq(host_leaf(&h, p + HUGE), 2);
	cr_assert_eq(host_leaf(&h, p + 2 * HUGE), 0);
	cr_assert_eq(host_leaf(&h, p + 3 * HUGE), 2);
	sound();
}

Test(own, d17_discard_one_page_keeps_511_others)
{
	char *p = touched(HUGE);
	uint64_t pfn[512];

	for (size_t i = 0; i < 512; i++)
		pfn[i] = host_pfn(&h, p + i * PAGE);
	p[9 * PAGE] = 42;
	mark();
	cr_assert(!advise(p + 9 * PAGE, PAGE, MADV_DONTNEED));
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaf(&h, p + 9 * PAGE), 0);
	cr_assert_eq(host_leaves(&h, p, HUGE), 511);
	for (size_t i = 0; i < 512; i++)
		cr_assert(i == 9 || host_pfn(&h, p + i * PAGE) == pfn[i]);
	sound();
	cr_assert_eq(p[9 * PAGE], 0);
}

Test(own, d18_discard_of_an_unpopulated_page_balances)
{
	char *p = touched(HUGE);

	for (int i = 0; i < 2; i++) {
		mark();
		cr_assert(!advise(p + 9 * PAGE, PAGE, MADV_DONTNEED));
		cr_assert_eq(since(), 1);
		sound();
	}
	cr_assert_eq(host_leaves(&h, p, HUGE), 511);
}

Test(own, d19_discard_inside_a_thp_drops_its_2m_leaf_alone)
{
	char *p = thp(2);

	cr_assert(!advise(p + 3 * PAGE, PAGE, MADV_DONTNEED));
	cr_assert_eq(host_leaves(&h, p, HUGE), 0);
	cr_assert_eq(host_leaf(&h, p + HUGE), 2);
	sound();
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert_eq(host_leaf(&h, p), 1);
	sound();
}

Test(own, d20_discard_across_three_mappings_is_one_bracket)
{
	char *p = touched(HUGE);

	cr_assert(!umbra_munmap(h.own, hva_range_of(p + 10 * PAGE, PAGE)));
	cr_assert(!umbra_mprotect(h.own, hva_range_of(p + 12 * PAGE, PAGE), PROT_READ));
	mark();
	cr_assert_eq(advise(p + 8 * PAGE, 8 * PAGE, MADV_DONTNEED), -ENOMEM); /* the gap */
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaves(&h, p + 8 * PAGE, 8 * PAGE), 0);
	cr_assert_eq(host_leaves(&h, p, HUGE), 504);
	sound();
}

Test(own, d21_free_drops_the_range)
{
	char *p = touched(HUGE);

	mark();
	cr_assert(!advise(p, 4 * PAGE, MADV_FREE));
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 508);
	sound();
	cr_assert(host_touch(&h, p, 4 * PAGE, RW));
	sound();
}

Test(own, d22_cold_4k_drops_nothing)
{
	char *p = touched(HUGE);

	mark();
	cr_assert(!advise(p + 3 * PAGE, PAGE, MADV_COLD));
	cr_assert_eq(since(), 0);
	cr_assert_eq(host_leaves(&h, p, HUGE), 512);
	sound();
}

Test(own, d23_cold_part_of_a_thp_drops_its_block)
{
	char *p = thp(2);
	const uint64_t pfn = host_pfn(&h, p);

	mark();
	cr_assert(!advise(p + 3 * PAGE, PAGE, MADV_COLD));
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaf(&h, p), 0);
	cr_assert_eq(host_leaf(&h, p + HUGE), 2);
	cr_assert_eq(host_pfn(&h, p), pfn);
	sound();
}

Test(own, d23_advice_to_a_folio_mapped_by_4k_moves_its_zero_pages_and_is_bracketed_whole)
{
	const int advices[] = { MADV_COLD, MADV_FREE, MADV_PAGEOUT };

	for (int i = 0; i < 3; i++) {
		char *p = thp(2);

		memset(p + 4 * PAGE, 0, 100 * PAGE);
		/* The PMD is split, the folio is not: 4K leaves over one large folio. */
		cr_assert(!umbra_mprotect(h.own, hva_range_of(p, PAGE), PROT_READ));
		cr_assert(!umbra_mprotect(h.own, hva_range_of(p, PAGE), PROT_READ | PROT_WRITE));
		cr_assert(host_touch(&h, p, HUGE, RW));
		cr_assert_eq(host_leaf(&h, p), 1);
		mark();
		cr_assert(!advise(p + 300 * PAGE, PAGE, advices[i]));
		cr_assert_eq(since(), 1);
		cr_assert_eq(host_leaf(&h, p + HUGE), 2);
		sound();
	}
}

Test(own, cold_of_a_whole_thp_drops_nothing)
{
	char *p = thp(1);

	cr_assert(!advise(p, HUGE, MADV_COLD));
	cr_assert_eq(host_leaf(&h, p), 2);
	sound();
}

Test(own, d26_collapse_moves_all_frames_and_gives_2m_back)
{
	char *p = touched(2 * HUGE);
	const uint64_t pfn = host_pfn(&h, p + 5 * PAGE);
	int err = -EAGAIN;

	cr_assert(!advise(p, 2 * HUGE, MADV_HUGEPAGE));
	/* the kernel gives up on the least disturbance, and says so */
	for (int i = 0; i < 200 && (err == -EAGAIN || err == -EBUSY); i++) {
		mark();
		err = advise(p, HUGE, MADV_COLLAPSE);
	}
	if (err)
		cr_skip_test("the host does not collapse: %s", strerror(-err));
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaves(&h, p, 2 * HUGE), 512);
	cr_assert_neq(host_pfn(&h, p + 5 * PAGE), pfn);
	sound();
	host_needs_sizes(&h);
	cr_assert(host_touch(&h, p, PAGE, RW));
	cr_assert_eq(host_leaf(&h, p), 2);
	mark();
	cr_assert(!advise(p, HUGE, MADV_COLLAPSE));
	cr_assert_eq(since(), 0, "huge already: nothing changes");
	cr_assert_eq(host_leaf(&h, p), 2);
	sound();
}

Test(own, d29_populate_write_of_fresh_or_owned_memory_drops_nothing)
{
	char *p = host_anon(&h, HUGE);

	mark();
	cr_assert(!advise(p, HUGE, MADV_POPULATE_WRITE));
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(!advise(p, HUGE, MADV_POPULATE_WRITE));
	cr_assert_eq(host_leaves(&h, p, HUGE), 512);
	cr_assert_leq(since(), 2, "held against faults, each time");
	mark();
	cr_assert(!advise(p, HUGE, MADV_POPULATE_READ));
	cr_assert(!advise(p, HUGE, MADV_WILLNEED));
	cr_assert_eq(since(), 0);
	sound();
}

Test(own, populate_write_over_zero_pages_is_bracketed_there)
{
	char *p = host_anon(&h, HUGE);

	madvise(p, HUGE, MADV_NOHUGEPAGE);
	cr_assert(!madvise(p + 4 * PAGE, 2 * PAGE, MADV_POPULATE_READ));
	cr_assert(host_touch(&h, p, 8 * PAGE, UMBRA_ACCESS_READ));
	mark();
	cr_assert(!advise(p, 8 * PAGE, MADV_POPULATE_WRITE));
	cr_assert_eq(since(), 2, "the hold, and the two pages");
	cr_assert_eq(host_leaves(&h, p, 8 * PAGE), 6);
	cr_assert_eq(host_leaf(&h, p + 4 * PAGE), 0);
	sound();
}

Test(own, d30_after_mprotect_a_write_faults)
{
	char *p = touched(HUGE);

	cr_assert(!umbra_mprotect(h.own, hva_range_of(p, 4 * PAGE), PROT_READ));
	cr_assert_eq(host_leaves(&h, p, HUGE), 508);
	cr_assert_eq(host_fault(&h, p, UMBRA_ACCESS_READ), UMBRA_FAULT_INSTALLED);
	cr_assert_not(host_writable(&h, p));
	cr_assert_eq(host_fault(&h, p, RW), UMBRA_FAULT_DENIED);
	sound();
	cr_assert(!umbra_mprotect(h.own, hva_range_of(p, 4 * PAGE), PROT_READ | PROT_WRITE));
	cr_assert(host_touch(&h, p, 4 * PAGE, RW));
	sound();
}

Test(own, d31_munmap_in_the_middle)
{
	char *p = thp(3);

	mark();
	cr_assert(!umbra_munmap(h.own, hva_range_of(p + HUGE + PAGE, PAGE)));
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaf(&h, p), 2);
	cr_assert_eq(host_leaf(&h, p + HUGE), 0);
	cr_assert_eq(host_leaf(&h, p + 2 * HUGE), 2);
	cr_assert_eq(host_fault(&h, p + HUGE + PAGE, RW), UMBRA_FAULT_BAD_HOST);
	sound();
}

Test(own, d33_mmap_over_serves_the_new_mapping)
{
	char *p = touched(HUGE);
	int fd = memfd_create("over", MFD_CLOEXEC);

	cr_assert(fd >= 0 && !ftruncate(fd, 4 * PAGE));
	mark();
	cr_assert(!umbra_mmap_over(h.own, hva_range_of(p, 4 * PAGE), PROT_READ | PROT_WRITE,
				   MAP_SHARED, fd, 0));
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 508);
	cr_assert(host_touch(&h, p, 4 * PAGE, RW));
	sound();
	/* The region is the file's now: a hole in the file is a hole here. */
	cr_assert(!umbra_fallocate(h.own, fd, 3, 0, PAGE));
	cr_assert_eq(host_leaves(&h, p, HUGE), 511);
	sound();
	close(fd);
}

static hva_t move(char *from, size_t bytes, char *to, int flags)
{
	hva_t now = { 0 };

	cr_assert(!umbra_mremap(h.own, hva_range_of(from, bytes), bytes,
				flags | MREMAP_MAYMOVE | MREMAP_FIXED, (hva_t){ (uintptr_t)to },
				&now));
	cr_assert_eq(now.v, (uintptr_t)to);
	return now;
}

Test(own, d34_mremap_moves_pages_and_drops_both_ranges)
{
	char *p = touched(HUGE);
	const uint64_t pfn = host_pfn(&h, p);

	mark();
	move(p, PAGE, p + 100 * PAGE, 0);
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 510);
	cr_assert_eq(host_pfn(&h, p + 100 * PAGE), pfn);
	cr_assert_eq(host_fault(&h, p, RW), UMBRA_FAULT_BAD_HOST);
	cr_assert(host_touch(&h, p + 100 * PAGE, PAGE, RW));
	sound();
}

Test(own, d35_mremap_of_a_thp_stays_2m)
{
	char *p = thp(2), *to = host_reserve(HUGE);
	const uint64_t pfn = host_pfn(&h, p);

	host_slot(&h, to, HUGE);
	move(p, HUGE, to, 0);
	cr_assert_eq(host_pfn(&h, to), pfn);
	cr_assert_eq(host_leaf(&h, p), 0);
	cr_assert_eq(host_leaf(&h, p + HUGE), 2);
	cr_assert(host_touch(&h, to, PAGE, RW));
	cr_assert_eq(host_leaf(&h, to), 2);
	sound();
}

Test(own, d36_mremap_of_a_thp_off_its_alignment_is_4k)
{
	char *p = thp(1), *to = host_reserve(2 * HUGE);

	host_slot(&h, to, 2 * HUGE);
	move(p, HUGE, to + PAGE, 0);
	cr_assert(host_touch(&h, to + PAGE, HUGE, RW));
	cr_assert_eq(host_leaf(&h, to + PAGE), 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 0);
	sound();
}

Test(own, d37_mremap_dontunmap_leaves_an_empty_range)
{
	char *p = touched(HUGE), *to = host_reserve(HUGE);
	const uint64_t pfn = host_pfn(&h, p);

	host_slot(&h, to, HUGE);
	p[0] = 42;
	move(p, HUGE, to, MREMAP_DONTUNMAP);
	cr_assert_eq(host_leaves(&h, p, HUGE), 0);
	cr_assert(host_touch(&h, to, HUGE, RW));
	cr_assert_eq(host_pfn(&h, to), pfn);
	cr_assert(host_touch(&h, p, PAGE, RW));
	cr_assert_eq(p[0], 0);
	cr_assert_eq(to[0], 42);
	sound();
}

Test(own, d38_mremap_grow_in_place_drops_nothing_shrink_drops_the_tail)
{
	char *p = touched(HUGE);
	hva_t now;

	/* Room to grow into: unmap the tail first. */
	cr_assert(!umbra_mremap(h.own, hva_range_of(p, HUGE), HUGE / 2, 0, (hva_t){ 0 }, &now));
	cr_assert_eq(host_leaves(&h, p, HUGE), 256);
	sound();
	mark();
	cr_assert(!umbra_mremap(h.own, hva_range_of(p, HUGE / 2), HUGE, MREMAP_MAYMOVE,
				(hva_t){ 0 }, &now));
	cr_assert_eq(since(), 0);
	cr_assert_eq(now.v, (uintptr_t)p);
	cr_assert_eq(host_leaves(&h, p, HUGE), 256);
	cr_assert(host_touch(&h, p, HUGE, RW));
	sound();
}

Test(own, d45_reading_the_kernels_tables_changes_nothing)
{
	char *p = touched(HUGE);
	unsigned char resident[512];

	mark();
	cr_assert(!mincore(p, HUGE, resident));
	cr_assert(!advise(p, HUGE, MADV_WILLNEED));
	cr_assert(host_write("/proc/self/clear_refs", "1"));
	cr_assert_eq(since(), 0);
	cr_assert_eq(host_leaves(&h, p, HUGE), 512);
	sound();
}

Test(own, d46_guard_drops_and_forbids)
{
	char *p = touched(HUGE);

	mark();
	if (advise(p + PAGE, 2 * PAGE, MADV_GUARD_INSTALL))
		cr_skip_test("no MADV_GUARD_INSTALL before 6.13");
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 510);
	cr_assert_eq(host_fault(&h, p + PAGE, RW), UMBRA_FAULT_BAD_HOST);
	cr_assert_eq(host_fault(&h, p + PAGE, UMBRA_ACCESS_READ), UMBRA_FAULT_BAD_HOST);
	mark();
	cr_assert(!advise(p + PAGE, 2 * PAGE, MADV_GUARD_REMOVE));
	cr_assert_eq(since(), 0);
	cr_assert(host_touch(&h, p, HUGE, RW));
	sound();
}

Test(own, a_batch_is_one_bracket_and_drops_only_its_ranges)
{
	char *p = touched(HUGE);
	const struct hva_range v[] = { hva_range_of(p + 400 * PAGE, PAGE), hva_range_of(p, PAGE),
				       hva_range_of(p + 100 * PAGE, 3 * PAGE) };
	uint32_t done;

	mark();
	cr_assert(!umbra_madvise_batch(h.own, v, 3, MADV_DONTNEED, &done));
	cr_assert_eq(done, 3);
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 507);
	cr_assert_eq(host_leaf(&h, p + 200 * PAGE), 1);
	sound();
}

Test(own, a_batch_goes_on_after_an_error_and_says_the_first)
{
	char *p = touched(HUGE);
	const struct hva_range v[] = { hva_range_of(p, PAGE), hva_range_of(p + 1, PAGE),
				       hva_range_of(p + 8 * PAGE, PAGE) };
	uint32_t done;

	cr_assert_eq(umbra_madvise_batch(h.own, v, 3, MADV_DONTNEED, &done), -EINVAL);
	cr_assert_eq(done, 2);
	sound();
}

Test(own, d80_ranges_that_make_no_sense_are_the_kernels_to_refuse)
{
	char *p = touched(HUGE);
	const struct hva_range backward = { { (uintptr_t)p + PAGE }, { (uintptr_t)p } };
	const struct hva_range top = { { ~0xfffULL }, { ~0ULL } };

	mark();
	cr_assert(!umbra_madvise(h.own, hva_range_of(p, 0), MADV_DONTNEED));
	cr_assert_eq(since(), 0);
	cr_assert_leq(umbra_munmap(h.own, backward), 0);
	cr_assert_lt(umbra_madvise(h.own, top, MADV_DONTNEED), 0);
	cr_assert_eq(advise(p + 1, PAGE, MADV_DONTNEED), -EINVAL);
	cr_assert_eq(advise(p, PAGE, 9999), -EINVAL);
	cr_assert_eq(umbra_own_start(h.own, backward, UMBRA_CAUSE_UNKNOWN, false), -EINVAL);
	sound();
	cr_assert(host_leaves(&h, p + 2 * PAGE, HUGE - 2 * PAGE) == 510 ||
		  !umbra_hostmap_has_scan(h.map));
}

Test(own, d79_no_2m_leaf_where_gpa_and_hva_disagree_or_the_slot_ends)
{
	char *p = host_anon(&h, 2 * HUGE);
	const struct umbra_memslot off = {
		.id = 99,
		.gfn = { 1 },
		.npages = 1023,
		.hva = { (uintptr_t)p },
		.out = { 1 },
	};
	struct umbra_fault f = { .gpa = { PAGE }, .access = RW };

	if (!host_make_thp(&h, p))
		cr_skip_test("the host gives no transparent hugepage");
	cr_assert(!umbra_memslot_add(h.mmu, &off));
	cr_assert_eq(umbra_fault(h.root, &f), UMBRA_FAULT_INSTALLED);
	cr_assert_eq(f.level, UMBRA_LEVEL_4K);
	cr_assert_eq(host_fault(&h, p, RW), UMBRA_FAULT_INSTALLED);
	cr_assert_eq(host_leaf(&h, p), 2);
	sound();
	/* Both aliases go. */
	cr_assert(!advise(p, PAGE, MADV_DONTNEED));
	cr_assert_eq(host_leaf(&h, p), 0);
	cr_assert_eq(host_leaf(&h, (char *)PAGE), 0);
	sound();
}

Test(own, a_pinned_page_is_not_discarded)
{
	char *p = touched(HUGE);
	struct umbra_pin pin;

	cr_assert(!umbra_pin(h.root, (gfn_t){ (uintptr_t)(p + PAGE) >> 12 }, 1, &pin));
	p[PAGE] = 42;
	cr_assert_eq(advise(p, 4 * PAGE, MADV_DONTNEED), -EBUSY);
	cr_assert_eq(p[PAGE], 42);
	cr_assert(!umbra_mprotect(h.own, hva_range_of(p + PAGE, PAGE), PROT_READ));
	cr_assert(umbra_unpin(h.mmu, &pin));
	cr_assert(!advise(p, 4 * PAGE, MADV_DONTNEED));
	cr_assert_eq(p[PAGE], 0);
	sound();
}
