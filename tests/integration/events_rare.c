/* SPDX-License-Identifier: BSD-2-Clause */
/* Advice that is rarely given, to much memory, to memory under two guest addresses, or that this kernel may not know. */
#include <criterion/criterion.h>
#include "tests/integration/events_host.h"

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define GIB  (1UL << 30)
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static struct host h;

static void fini(void)
{
	host_destroy(&h);
}

static void init(void)
{
	host_create(&h);
}

TestSuite(rare, .init = init, .fini = fini, .timeout = 60);

#define sound() cr_assert(host_sound(&h))

static int advise(const char *p, size_t bytes, int advice)
{
	return umbra_madvise(h.own, hva_range_of(p, bytes), advice);
}

/* ---- aliases -------------------------------------------------------------------------------- */

Test(rare, d21_free_drops_both_guest_addresses_of_a_page)
{
	char *p = host_anon(&h, HUGE);
	const struct umbra_memslot alias = {
		.id = 99,
		.gfn = { 0 },
		.npages = 512,
		.hva = { (uintptr_t)p },
		.out = { 0 },
	};
	struct umbra_fault f = { .access = RW };

	cr_assert(!madvise(p, HUGE, MADV_NOHUGEPAGE));
	cr_assert(!umbra_memslot_add(h.mmu, &alias));
	for (uint64_t i = 0; i < 4; i++) {
		f.gpa.v = i * PAGE;
		cr_assert_eq(umbra_fault(h.root, &f), UMBRA_FAULT_INSTALLED);
	}
	cr_assert(host_touch(&h, p, 4 * PAGE, RW));
	cr_assert(!advise(p + PAGE, 2 * PAGE, MADV_FREE));
	cr_assert_eq(host_leaves(&h, p, 4 * PAGE), 2);
	cr_assert_eq(host_leaves(&h, NULL, 4 * PAGE), 2);
	cr_assert_eq(host_leaf(&h, (char *)(3 * PAGE)), 1);
	sound();
}

Test(rare, free_of_shared_memory_is_refused_and_leaves_both_mappings_right)
{
	int fd;
	char *p = host_memfd(&h, HUGE, &fd);
	char *q = host_map(&h, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	cr_assert(p && q);
	cr_assert(host_touch(&h, p, 8 * PAGE, RW) && host_touch(&h, q, 8 * PAGE, RW));
	p[PAGE] = 42;
	cr_assert_eq(advise(q, 4 * PAGE, MADV_FREE), -EINVAL);
	cr_assert_eq(q[PAGE], 42);
	sound();
	cr_assert(host_touch(&h, p, 8 * PAGE, RW) && host_touch(&h, q, 8 * PAGE, RW));
	sound();
	close(fd);
}

/* ---- memory failure --------------------------------------------------------------------------- */

/* A kernel that has it would really take the page away, or out of use: not in a test. */
static bool kernel_has_memory_failure(void)
{
	return !access("/proc/sys/vm/memory_failure_recovery", F_OK);
}

Test(rare, soft_offline_and_poison_are_announced_in_every_mapping_and_answered_as_the_kernel_does)
{
	const int advices[] = { MADV_SOFT_OFFLINE, MADV_HWPOISON };
	int fd;
	char *p = host_memfd(&h, HUGE, &fd);
	char *q = host_map(&h, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	if (kernel_has_memory_failure())
		cr_skip_test("this kernel would really take a page of memory out of use");
	cr_assert(p && q);
	for (int i = 0; i < 2; i++) {
		cr_assert(host_touch(&h, p, HUGE, RW) && host_touch(&h, q, HUGE, RW));
		cr_assert_eq(advise(p + 3 * PAGE, PAGE, advices[i]), -EINVAL);
		cr_assert_eq(host_leaf(&h, p + 3 * PAGE), 0);
		cr_assert_eq(host_leaf(&h, q + 3 * PAGE), 0);
		cr_assert(host_leaf(&h, p + 4 * PAGE) == 1 || !umbra_hostmap_has_scan(h.map));
		sound();
	}
	close(fd);
}

/* ---- much memory ------------------------------------------------------------------------------ */

/* Sparse; three blocks of it are there, in 4K pages. */
static char *sparse(size_t bytes, char *block[3])
{
	char *p = host_map(&h, bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);

	if (!p)
		cr_skip_test("so much address space is not given here");
	for (size_t i = 0; i < 3; i++) {
		block[i] = p + i * (bytes / 2 - HUGE);
		cr_assert(!madvise(block[i], HUGE, MADV_NOHUGEPAGE));
		cr_assert(host_touch(&h, block[i], HUGE, RW));
		cr_assert(!madvise(block[i], HUGE, MADV_HUGEPAGE));
	}
	sound();
	return p;
}

Test(rare, d26_collapse_of_80_gib_of_sparse_memory_ends_and_leaves_no_old_leaf)
{
	char *block[3], *p = sparse(80 * GIB, block);
	uint64_t starts = host_starts(&h);

	advise(p, 80 * GIB, MADV_COLLAPSE);
	sound();
	cr_assert_leq(host_starts(&h) - starts, 80 + 3, "a bracket for each GiB at most");
	for (int i = 0; i < 3; i++) {
		/* What was collapsed has no leaf of before. */
		if (host_flags(&h, block[i]) & UMBRA_PAGE_HUGE)
			cr_assert_eq(host_leaf(&h, block[i]), 0);
		cr_assert(host_touch(&h, block[i], HUGE, RW));
	}
	sound();
}

Test(rare, cold_of_80_gib_of_sparse_memory_ends_and_leaves_no_old_leaf)
{
	char *block[3], *p = sparse(80 * GIB, block);

	cr_assert(!advise(p + PAGE, 80 * GIB - PAGE, MADV_COLD));
	sound();
	cr_assert(host_touch(&h, block[2], HUGE, RW));
	sound();
}

Test(rare, a_folio_that_the_end_of_a_vast_range_cuts_is_bracketed_whole)
{
	char *p = host_map(&h, 80 * GIB, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);

	if (!p || !host_make_thp(&h, p))
		cr_skip_test("no transparent hugepage, or not so much address space");
	memset(p, 0, HUGE);
	p[0] = 1;
	cr_assert(!umbra_mprotect(h.own, hva_range_of(p, PAGE), PROT_READ));
	cr_assert(!umbra_mprotect(h.own, hva_range_of(p, PAGE), PROT_READ | PROT_WRITE));
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(!advise(p + 100 * PAGE, 80 * GIB - 100 * PAGE, MADV_COLD));
	sound();
}
