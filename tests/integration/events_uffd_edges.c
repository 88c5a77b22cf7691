/* SPDX-License-Identifier: BSD-2-Clause */
/* userfaultfd where only one side of a change is watched, or a protection comes before the page. */
#include <sys/wait.h>
#include "tests/integration/events_uffd.h"

TestSuite(uffd_edges, .init = init, .fini = fini, .timeout = 60);

/* No UNMAP tells of what lay at the destination: it was not watched. */
Test(uffd_edges, an_outside_move_over_unwatched_memory_drops_what_lay_there)
{
	char *p, *to;

	need_uffd();
	start_reader();
	p = mapped(HUGE);
	to = host_anon(&h, HUGE);
	cr_assert(!madvise(to, HUGE, MADV_NOHUGEPAGE));
	cr_assert(host_touch(&h, to, 8 * PAGE, RW));
	cr_assert_eq(mremap(p, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	drain();
	cr_expect_eq(stats.remaps, 1);
	cr_expect_eq(host_leaves(&h, to, 8 * PAGE), 4);
	cr_expect_eq(host_leaves(&h, p, HUGE), 508);
	stop_reader();
}

/* A mark in the page table is all there is of the page; a read brings it, protected. */
Test(uffd_edges, a_page_protected_before_it_is_mapped_is_mapped_read_only)
{
	char *p;
	int fd;

	need_uffd();
	if (!(umbra_uffd_features(uffd) & UFFD_FEATURE_WP_HUGETLBFS_SHMEM))
		cr_skip_test("this kernel protects no shared memory");
	p = host_memfd(&h, HUGE, &fd);
	cr_assert_eq(pwrite(fd, "there", 5, 0), 5);
	cr_assert(!umbra_uffd_register(uffd, hva_range_of(p, HUGE), UMBRA_UFFD_WP));
	cr_assert(!umbra_uffd_writeprotect(uffd, hva_range_of(p, PAGE), true));
	cr_assert_eq(host_flags(&h, p) & UMBRA_PAGE_PRESENT, 0);
	cr_expect_eq(host_fault(&h, p, UMBRA_ACCESS_READ), UMBRA_FAULT_INSTALLED);
	cr_expect_not(host_writable(&h, p));
	cr_expect(host_sound(&h));
	cr_assert(!umbra_uffd_writeprotect(uffd, hva_range_of(p, PAGE), false));
	cr_expect(host_touch(&h, p, PAGE, RW));
	cr_expect(host_writable(&h, p));
	close(fd);
}

/* A second reader of one address space takes all it reads for other people's. */
Test(uffd_edges, a_second_userfaultfd_knows_no_own_calls)
{
	const struct umbra_uffd_config config = { .fd = -1, .own = h.own };
	struct umbra_uffd *first;
	char *p;

	need_uffd();
	first = uffd;
	cr_assert(!umbra_uffd_open(&uffd, h.chain, &config, NULL));
	start_reader();
	p = mapped(HUGE);
	cr_assert(!umbra_madvise(h.own, hva_range_of(p, PAGE), MADV_DONTNEED));
	drain();
	cr_expect_eq(stats.removes, 1);
	cr_expect_eq(stats.own_removes, 0);
	cr_expect_eq(stats.settled, 1);
	stop_reader();
	umbra_uffd_close(first);
}

/* More pieces than are remembered, and who knows no regions: a fork then touches everything. */
Test(uffd_edges, a_fork_of_more_pieces_than_are_remembered_drops_everything)
{
	const struct umbra_uffd_config config = { .fd = -1 };
	const size_t pieces = 300;
	char *p, *shared;
	pid_t child;
	int fd;

	if (umbra_uffd_open(&uffd, h.chain, &config, NULL) ||
	    !(umbra_uffd_features(uffd) & UFFD_FEATURE_EVENT_FORK))
		cr_skip_test("no userfaultfd with events of forks here");
	start_reader();
	p = host_anon(&h, 2 * pieces * PAGE);
	shared = host_memfd(&h, HUGE, &fd);
	for (size_t i = 0; i < pieces; i++)
		cr_assert(!umbra_uffd_register(uffd, hva_range_of(p + 2 * i * PAGE, PAGE),
					       UMBRA_UFFD_WP));
	cr_assert(host_touch(&h, p, 2 * pieces * PAGE, RW));
	cr_assert(host_touch(&h, shared, 4 * PAGE, RW));
	child = fork();
	if (!child)
		_exit(0);
	cr_assert_eq(waitpid(child, NULL, 0), child);
	drain();
	cr_expect_geq(stats.forks, 1);
	cr_expect_eq(host_leaves(&h, p, 2 * pieces * PAGE), 0);
	cr_expect_eq(host_leaves(&h, shared, 4 * PAGE), 0, "not known: everything");
	stop_reader();
	close(fd);
}
