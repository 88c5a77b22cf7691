/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Calls, our own and others', that cut a 2M page of a file. The kernel splits one by unmapping all of it, also what the call does not touch;
 * where our leaves of it are 4K they are not one leaf that goes as a whole. (So it is for guest addresses that disagree with
 * the host's modulo 2M, and for everybody before Linux 6.7, where the host's size is not known.)
 */
#include "tests/integration/events_uffd.h"

#define CUT 100 /* the page that is changed */
#define OFF 1   /* guest page of the first page of the block: disagrees modulo 2M */

static char *block;
static int fd = -1;

static void cuts_fini(void)
{
	if (fd >= 0)
		close(fd);
	fini();
}

TestSuite(cuts, .init = init, .fini = cuts_fini, .timeout = 60);

static bool leaf(uint64_t page)
{
	struct umbra_translation t;

	return !umbra_lookup(h.root, (gpa_t){ (OFF + page) * PAGE }, &t);
}

static uint64_t leaves(void)
{
	uint64_t n = 0;

	for (uint64_t page = 0; page < 512; page++)
		n += leaf(page);
	return n;
}

/* Where it is not told, what was collapsed is taken to be. */
static bool is_huge(const char *p)
{
	return !umbra_hostmap_has_scan(h.map) || (host_flags(&h, p) & UMBRA_PAGE_HUGE);
}

/* Four blocks, the second one mapped by 2M on the host and by 512 leaves of 4K here. */
static void map_block(char *p, bool huge)
{
	struct umbra_memslot off = { .id = 99, .gfn = { OFF }, .npages = 512, .out = { OFF } };

	block = p + HUGE;
	off.hva.v = (uintptr_t)block;
	memset(p, 1, 4 * HUGE);
	if (!huge)
		cr_skip_test("the host gives no page of 2M");
	cr_assert(is_huge(block));
	cr_assert(!umbra_memslot_add(h.mmu, &off));
	for (uint64_t page = 0; page < 512; page++) {
		struct umbra_fault f = { .gpa = { (OFF + page) * PAGE }, .access = RW };
		enum umbra_fault_result result = UMBRA_FAULT_RETRY;

		for (int i = 0; i < 100 && result == UMBRA_FAULT_RETRY; i++)
			result = umbra_fault(h.root, &f);
		cr_assert_eq(result, UMBRA_FAULT_INSTALLED);
		cr_assert_eq(f.level, UMBRA_LEVEL_4K);
	}
	cr_assert(is_huge(block));
	cr_assert(host_sound(&h));
}

static bool collapsed(char *p)
{
	int err = -EAGAIN;

	memset(p, 1, HUGE);
	for (int i = 0; i < 200 && (err == -EAGAIN || err == -EBUSY); i++)
		err = umbra_madvise(h.own, hva_range_of(p, HUGE), MADV_COLLAPSE);
	p[0] = 2;
	return !err && is_huge(p);
}

static void file_block(void)
{
	char *p = host_memfd(&h, 4 * HUGE, &fd);

	map_block(p, collapsed(p + HUGE));
}

static struct hva_range pages(uint64_t first, uint64_t n)
{
	return hva_range_of(block + first * PAGE, n * PAGE);
}

/* What the host has unmapped has no leaf. */
static void is_cut(void)
{
	cr_expect(host_sound(&h));
	cr_expect_eq(leaves(), 0);
}

Test(cuts, mprotect_of_a_page_of_a_file)
{
	file_block();
	cr_assert(!umbra_mprotect(h.own, pages(CUT, 1), PROT_READ));
	is_cut();
}

Test(cuts, discard_of_a_page_of_a_file)
{
	file_block();
	cr_assert(!umbra_madvise(h.own, pages(CUT, 1), MADV_DONTNEED));
	is_cut();
}

Test(cuts, discard_of_a_batch_of_pages_of_a_file)
{
	struct hva_range v[2];
	uint32_t done;

	file_block();
	v[0] = pages(CUT, 1);
	v[1] = pages(CUT + 20, 2);
	cr_assert(!umbra_madvise_batch(h.own, v, 2, MADV_DONTNEED, &done));
	cr_assert_eq(done, 2);
	is_cut();
}

Test(cuts, munmap_of_a_page_of_a_file)
{
	file_block();
	cr_assert(!umbra_munmap(h.own, pages(CUT, 1)));
	is_cut();
}

Test(cuts, mmap_over_a_page_of_a_file)
{
	file_block();
	cr_assert(!umbra_mmap_over(h.own, pages(CUT, 1), PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	is_cut();
}

Test(cuts, mremap_of_a_page_of_a_file_away)
{
	hva_t now;

	file_block();
	cr_assert(!umbra_mremap(h.own, pages(CUT, 1), PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
				(hva_t){ (uintptr_t)(block + 2 * HUGE) }, &now));
	is_cut();
}

/* Grown, so it moves: to a place of the kernel's choice, where faults are held off until calls that do not know it are through. */
Test(cuts, mremap_of_a_page_of_a_file_to_wherever_there_is_room)
{
	hva_t now = { 0 };

	file_block();
	cr_assert(
		!umbra_mremap(h.own, pages(CUT, 1), 2 * PAGE, MREMAP_MAYMOVE, (hva_t){ 0 }, &now));
	cr_assert(now.v && now.v != (uintptr_t)(block + CUT * PAGE));
	is_cut();
}

Test(cuts, mremap_of_another_page_onto_a_page_of_a_file)
{
	hva_t now;

	file_block();
	cr_assert(!umbra_mremap(h.own, hva_range_of(block + 2 * HUGE, PAGE), PAGE,
				MREMAP_MAYMOVE | MREMAP_FIXED,
				(hva_t){ (uintptr_t)(block + CUT * PAGE) }, &now));
	is_cut();
}

Test(cuts, a_range_from_the_middle_of_one_2m_page_into_the_next)
{
	file_block();
	cr_assert(!umbra_mprotect(h.own, pages(500, 512), PROT_READ));
	is_cut();
}

Test(cuts, a_pin_in_the_2m_page_refuses_nothing_and_one_in_the_range_does)
{
	struct umbra_pin pin;

	file_block();
	cr_assert(!umbra_pin(h.root, (gfn_t){ OFF + CUT + 7 }, 1, &pin));
	cr_assert(!umbra_madvise(h.own, pages(CUT, 1), MADV_DONTNEED));
	cr_assert_eq(umbra_madvise(h.own, pages(CUT, 16), MADV_DONTNEED), -EBUSY);
	cr_assert(umbra_unpin(h.mmu, &pin), "it was not taken");
	cr_expect(host_sound(&h));
}

/* A 2M page of anonymous memory stays mapped, by 4K: its other leaves are right, and stay. */
Test(cuts, a_page_of_anonymous_memory_leaves_the_others)
{
	char *p = host_anon(&h, 4 * HUGE);

	map_block(p, host_make_thp(&h, p + HUGE));
	cr_assert(!umbra_madvise(h.own, pages(CUT, 1), MADV_DONTNEED));
	cr_expect(host_sound(&h));
	cr_expect_eq(leaves(), 511);
	cr_assert(!umbra_mprotect(h.own, pages(CUT + 1, 1), PROT_READ));
	cr_expect(host_sound(&h));
	cr_expect_eq(leaves(), 510);
}

/* Nor does a file whose pages are small lose more than was asked for. */
Test(cuts, a_small_page_of_a_file_leaves_the_others)
{
	char *p = host_memfd(&h, 4 * HUGE, &fd);

	cr_assert(host_touch(&h, p, 4 * HUGE, RW));
	cr_assert(!umbra_madvise(h.own, hva_range_of(p + CUT * PAGE, PAGE), MADV_DONTNEED));
	cr_expect(host_sound(&h));
	if (!umbra_hostmap_has_scan(h.map))
		cr_skip_test("the host does not tell what it maps by 2M (Linux 6.7)");
	cr_expect_eq(host_leaves(&h, p, 4 * HUGE), 2047);
}

/* ---- another thread cuts: userfaultfd tells ------------------------------------------------------ */

/* As file_block(), watched. */
static void watched_block(void)
{
	file_block();
	cr_assert(!umbra_uffd_register(uffd, hva_range_of(block - HUGE, 4 * HUGE),
				       UMBRA_UFFD_MISSING));
	cr_assert_eq(leaves(), 512);
}

static void *page_at(uint64_t page)
{
	return block + page * PAGE;
}

static void is_cut_by_others(void)
{
	drain();
	is_cut();
	stop_reader();
}

TestSuite(cuts_by_others, .init = init, .fini = cuts_fini, .timeout = 60);

Test(cuts_by_others, discard_of_a_page_of_a_file)
{
	need_uffd();
	start_reader();
	watched_block();
	cr_assert(!madvise(page_at(CUT), PAGE, MADV_DONTNEED));
	is_cut_by_others();
}

Test(cuts_by_others, discard_from_the_middle_of_one_2m_page_into_the_next)
{
	need_uffd();
	start_reader();
	watched_block();
	cr_assert(!madvise(page_at(500), 512 * PAGE, MADV_DONTNEED));
	is_cut_by_others();
}

Test(cuts_by_others, munmap_of_a_page_of_a_file)
{
	need_uffd();
	start_reader();
	watched_block();
	cr_assert(!munmap(page_at(CUT), PAGE));
	is_cut_by_others();
}

Test(cuts_by_others, mremap_of_a_page_of_a_file_away)
{
	need_uffd();
	start_reader();
	watched_block();
	cr_assert_neq(
		mremap(page_at(CUT), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, block + 2 * HUGE),
		MAP_FAILED);
	is_cut_by_others();
}

Test(cuts_by_others, mremap_of_another_page_onto_a_page_of_a_file)
{
	need_uffd();
	start_reader();
	watched_block();
	cr_assert_neq(
		mremap(block + 2 * HUGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, page_at(CUT)),
		MAP_FAILED);
	is_cut_by_others();
}

/* What is small loses no more than was discarded. */
Test(cuts_by_others, a_small_page_of_a_file_leaves_the_others)
{
	char *p;

	need_uffd();
	start_reader();
	p = host_memfd(&h, 4 * HUGE, &fd);
	cr_assert(host_touch(&h, p, 4 * HUGE, RW));
	cr_assert(!umbra_uffd_register(uffd, hva_range_of(p, 4 * HUGE), UMBRA_UFFD_MISSING));
	cr_assert(!madvise(p + CUT * PAGE, PAGE, MADV_DONTNEED));
	drain();
	if (umbra_hostmap_has_scan(h.map))
		cr_expect_eq(host_leaves(&h, p, 4 * HUGE), 2047);
	cr_expect(host_sound(&h));
	stop_reader();
}

/* Of a private mapping what is there may be a copy that was written meanwhile: it is not kept for being there. */
Test(cuts_by_others, a_page_of_a_private_file_takes_the_2m_with_it)
{
	char *p;

	need_uffd();
	start_reader();
	fd = memfd_create("guest", MFD_CLOEXEC);
	cr_assert(fd >= 0 && !ftruncate(fd, 2 * HUGE));
	p = host_map(&h, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	cr_assert(p);
	cr_assert(host_touch(&h, p, 2 * HUGE, RW));
	cr_assert(!umbra_uffd_register(uffd, hva_range_of(p, 2 * HUGE), UMBRA_UFFD_MISSING));
	cr_assert_eq(host_leaves(&h, p, 2 * HUGE), 1024);
	cr_assert(!madvise(p + CUT * PAGE, PAGE, MADV_DONTNEED));
	drain();
	cr_expect_eq(host_leaves(&h, p, 2 * HUGE), 512);
	stop_reader();
}
