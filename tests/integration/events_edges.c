/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls and the map of the host at their edges: the top of the address space, vast ranges, descriptors that are not. */
#include <criterion/criterion.h>
#include <sys/wait.h>
#include "events_host.h"
#include "shadow/events/hostmap.h"

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static struct host h;

static void init(void)
{
	host_create(&h);
}

static void fini(void)
{
	cr_expect(host_sound(&h));
	host_destroy(&h);
}

TestSuite(edges, .init = init, .fini = fini, .timeout = 30);

Test(edges, advice_to_the_last_pages_of_all_is_the_kernels_to_refuse)
{
	const struct hva_range last = { { ~0ULL - 8191 }, { ~0ULL - 4095 } };

	cr_expect_eq(umbra_madvise(h.own, last, MADV_COLD), -ENOMEM);
	cr_expect_eq(umbra_madvise(h.own, last, MADV_FREE), -ENOMEM);
}

Test(edges, a_batch_of_populates_with_a_vast_range_does_the_rest)
{
	char *p = host_anon(&h, HUGE), *nothing = host_reserve(80UL << 30);
	const struct hva_range v[] = { hva_range_of(nothing, 80UL << 30), hva_range_of(p, HUGE) };
	uint32_t done = 7;

	cr_assert(host_touch(&h, p, 4 * PAGE, RW));
	cr_expect_eq(umbra_madvise_batch(h.own, v, 2, MADV_POPULATE_WRITE, &done), -ENOMEM);
	cr_expect_eq(done, 1);
	cr_expect(host_flags(&h, p + HUGE - PAGE) & UMBRA_PAGE_PRESENT);
}

/* Pages of a file that two mappings share look as if a write moved them: it does not. */
Test(edges, populate_of_a_file_mapped_twice_drops_nothing)
{
	int fd;
	char *a = host_memfd(&h, HUGE, &fd), *b;

	b = host_map(&h, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	cr_assert(b && host_touch(&h, a, 8 * PAGE, RW) && host_touch(&h, b, 8 * PAGE, RW));
	cr_expect_eq(umbra_madvise(h.own, hva_range_of(a, 8 * PAGE), MADV_POPULATE_WRITE), 0);
	cr_expect_eq(host_leaves(&h, a, HUGE), 8);
	cr_expect_eq(host_leaves(&h, b, HUGE), 8);
	close(fd);
}

/* All 512 pages of a hugepage that a child shares are moved by one write. */
Test(edges, populate_of_a_hugepage_that_a_child_shares_drops_it_once)
{
	char *p = host_anon(&h, HUGE);
	int hold[2];
	char byte;
	pid_t child;

	if (!host_make_thp(&h, p))
		cr_skip_test("the host gives no transparent hugepage");
	cr_assert_eq(pipe(hold), 0);
	child = umbra_fork(h.own);
	if (!child) {
		close(hold[1]);
		_exit(read(hold[0], &byte, 1) != 0);
	}
	cr_assert(host_touch(&h, p, HUGE, UMBRA_ACCESS_READ));
	cr_expect_eq(umbra_madvise(h.own, hva_range_of(p, HUGE), MADV_POPULATE_WRITE), 0);
	cr_expect_eq(host_leaves(&h, p, HUGE), 0);
	cr_expect(host_sound(&h));
	close(hold[1]);
	cr_expect_eq(waitpid(child, NULL, 0), child);
}

Test(edges, a_region_that_was_split_goes_as_one)
{
	char *p = host_anon(&h, HUGE);

	cr_assert_eq(umbra_madvise(h.own, hva_range_of(p + 4 * PAGE, PAGE), MADV_DONTFORK), 0);
	cr_expect_eq(umbra_region_remove(h.own, hva_range_of(p, HUGE - PAGE)), -ENOENT);
	cr_expect_eq(umbra_region_remove(h.own, hva_range_of(p, HUGE)), 0);
	cr_expect_eq(umbra_region_remove(h.own, hva_range_of(p, HUGE)), -ENOENT);
}

/* ---- a map that answers nothing -------------------------------------------------------------------- */

Test(edges, a_pagemap_that_cannot_be_scanned_is_said_and_everything_is_bracketed)
{
	const int held = h.map->pagemap, file = memfd_create("no pagemap", MFD_CLOEXEC);
	char *p = host_anon(&h, HUGE);
	struct umbra_page pages[2];
	struct hva_range r;
	const int closed = 10000;
	uint32_t flags;

	if (!umbra_hostmap_has_scan(h.map))
		cr_skip_test("nothing is scanned on this kernel");
	cr_assert(host_touch(&h, p, 4 * PAGE, RW));
	h.map->pagemap = file;
	cr_expect_eq(umbra_hostmap_query(h.map, (hva_t){ (uintptr_t)p }, pages), -ENOTTY);
	cr_expect_eq(umbra_hostmap_query_range(h.map, (hva_t){ (uintptr_t)p }, pages, 2), -ENOTTY);
	cr_expect_eq(hostmap_peek(h.map, (hva_t){ (uintptr_t)p }, &flags), -ENOTTY);
	cr_expect_eq(hostmap_next(h.map, 0, PAGE, false, &r), -ENOTTY);
	cr_expect_eq(hostmap_next(h.map, PAGE, PAGE, false, &r), 0);
	cr_expect_eq(umbra_madvise(h.own, hva_range_of(p, 4 * PAGE), MADV_POPULATE_WRITE), 0);
	h.map->pagemap = closed;
	cr_expect_eq(umbra_hostmap_query(h.map, (hva_t){ (uintptr_t)p }, pages), -EBADF);
	h.map->pagemap = held;
	close(file);
	cr_expect_eq(host_leaves(&h, p, HUGE), 0, "not known: taken for moved");
	h.map->scan = false;
	cr_expect_eq(hostmap_next(h.map, 0, PAGE, false, &r), -EOPNOTSUPP);
	h.map->scan = true;
}

Test(edges, maps_that_are_no_text_of_maps)
{
	const int held = h.map->maps, file = memfd_create("no maps", MFD_CLOEXEC);
	const bool procmap = h.map->procmap;
	struct host_vma vma;
	int ends[2];

	cr_assert_eq(pipe(ends), 0);
	cr_assert_eq(write(file, "what is this\n", 13), 13);
	h.map->procmap = false;
	h.map->maps = file;
	cr_expect_eq(hostmap_vma(h.map, (hva_t){ PAGE }, &vma), -ENOENT);
	h.map->maps = ends[0];
	cr_expect_eq(hostmap_vma(h.map, (hva_t){ PAGE }, &vma), -ESPIPE);
	h.map->maps = held;
	cr_expect_eq(hostmap_vma(h.map, (hva_t){ (uintptr_t)&h }, &vma), 0);
	cr_expect(vma.hva.start.v <= (uintptr_t)&h && vma.hva.end.v > (uintptr_t)&h);
	h.map->procmap = procmap;
	close(file);
	close(ends[0]);
	close(ends[1]);
}

/* A batch that is open closes its hull to faults, not to leaves that were there: an audit leaves them alone. */
Test(edges, an_audit_leaves_out_what_is_open)
{
	char *p = host_anon(&h, HUGE);
	const struct hva_range none = { { (uintptr_t)p }, { (uintptr_t)p } };
	const struct umbra_range r = { .hull = hva_range_of(p, HUGE),
				       .v = &none,
				       .nr = 1,
				       .flags = UMBRA_RANGE_BLOCKABLE,
				       .source = UMBRA_SOURCE_TEST };
	struct umbra_audit_report report;

	cr_assert(!madvise(p, HUGE, MADV_NOHUGEPAGE));
	cr_assert(host_touch(&h, p, 4 * PAGE, RW));
	cr_assert_eq(umbra_invalidate_start(h.chain, &r), 0);
	cr_assert_eq(madvise(p, PAGE, MADV_DONTNEED), 0);
	cr_expect_eq(umbra_audit(h.root, h.map, &report, NULL), 0);
	cr_expect_eq(report.skipped, 4);
	umbra_invalidate_end(h.chain, &r);
	cr_expect_eq(umbra_audit(h.root, h.map, &report, NULL), 1);
	umbra_zap_all(h.mmu);
}
