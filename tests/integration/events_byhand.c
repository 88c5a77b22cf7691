/* SPDX-License-Identifier: BSD-2-Clause */
/* Changes that no own call knows, bracketed by hand or by resolve: clear_refs, PAGEMAP_SCAN, zero pages, wide hugetlb. */
#include <criterion/criterion.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/integration/events_host.h"

#define HUGE UMBRA_HUGE_SIZE
#define PAGE UMBRA_PAGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)
#define GIB  (1UL << 30)

#define PM_SCAN_WP_MATCHING   (1ULL << 0)
#define PM_SCAN_CHECK_WPASYNC (1ULL << 1)

static struct host h;

static void init(void)
{
	host_create(&h);
}

static void fini(void)
{
	host_destroy(&h);
}

TestSuite(byhand, .init = init, .fini = fini, .timeout = 60);

#define sound() cr_assert(host_sound(&h))

static char *touched(size_t bytes)
{
	char *p = host_anon(&h, bytes);

	cr_assert_not_null(p);
	cr_assert(!madvise(p, bytes, MADV_NOHUGEPAGE));
	cr_assert(host_touch(&h, p, bytes, RW));
	sound();
	return p;
}

Test(byhand, d44_clear_refs_4_is_a_bracket_over_everything)
{
	const struct hva_range all = { { 0 }, { ~0ULL } };
	char *p = touched(HUGE);
	uint64_t pfn[512];

	for (size_t i = 0; i < 512; i++)
		pfn[i] = host_pfn(&h, p + i * PAGE);
	cr_assert_eq(umbra_own_start(h.own, all, UMBRA_CAUSE_SOFT_DIRTY, false), 0);
	cr_assert_eq(host_leaves(&h, p, HUGE), 0);
	cr_assert_eq(host_fault_once(&h, p, RW), UMBRA_FAULT_RETRY);
	cr_expect(host_write("/proc/self/clear_refs", "4"));
	umbra_own_end(h.own, all, UMBRA_CAUSE_SOFT_DIRTY, false);
	sound();
	cr_assert(host_touch(&h, p, HUGE, RW));
	for (size_t i = 0; i < 512; i++)
		cr_assert_eq(host_pfn(&h, p + i * PAGE), pfn[i], "page %zu", i);
	sound();
}

Test(byhand, d43_pagemap_scan_write_protects_what_it_reports)
{
	const int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED |
			    UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	const int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct umbra_pm_region regions[16];
	struct umbra_pm_scan scan = { .size = sizeof(scan),
				      .flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC };
	char *p = touched(HUGE);
	const struct hva_range r = hva_range_of(p, HUGE);

	if (fd < 0 || map < 0 || ioctl(fd, UFFDIO_API, &api))
		cr_skip_test("no asynchronous write protection here (Linux 6.7 has it)");
	reg.range.start = r.start.v;
	reg.range.len = HUGE;
	cr_assert(!ioctl(fd, UFFDIO_REGISTER, &reg));
	scan.start = r.start.v;
	scan.end = r.end.v;
	scan.vec = (uintptr_t)regions;
	scan.vec_len = 16;
	scan.category_mask = UMBRA_PM_IS_WRITTEN;
	scan.return_mask = UMBRA_PM_IS_WRITTEN;
	cr_assert_eq(umbra_own_start(h.own, r, UMBRA_CAUSE_PROTECT, false), 0);
	cr_assert_eq(ioctl(map, UMBRA_PAGEMAP_SCAN, &scan), 1, "one region, all written");
	umbra_own_end(h.own, r, UMBRA_CAUSE_PROTECT, false);
	cr_assert_eq(host_leaves(&h, p, HUGE), 0);
	sound();
	/* read: the leaf must not allow a write, or the next scan would miss it */
	cr_assert(host_touch(&h, p, 4 * PAGE, UMBRA_ACCESS_READ));
	cr_assert_not(host_writable(&h, p));
	sound();
	cr_assert(host_touch(&h, p + PAGE, PAGE, RW));
	sound();
	cr_assert(host_writable(&h, p + PAGE));
	cr_assert_eq(ioctl(map, UMBRA_PAGEMAP_SCAN, &scan), 1);
	cr_assert_eq(regions[0].start, r.start.v + PAGE);
	cr_assert_eq(regions[0].end, r.start.v + 2 * PAGE);
	close(fd);
	close(map);
}

Test(byhand, d51_a_write_to_a_zero_page_is_announced_before_the_frame_changes)
{
	char *p = host_anon(&h, HUGE);
	uint64_t zero, starts;

	cr_assert(!madvise(p, HUGE, MADV_NOHUGEPAGE));
	cr_assert_eq(p[3 * PAGE], 0); /* read by the host first: the shared zero page */
	cr_assert(host_flags(&h, p + 3 * PAGE) & UMBRA_PAGE_ZERO || !umbra_hostmap_has_scan(h.map));
	cr_assert(host_touch(&h, p + 3 * PAGE, PAGE, UMBRA_ACCESS_READ));
	zero = host_pfn(&h, p + 3 * PAGE);
	sound();
	starts = host_starts(&h);
	cr_assert(host_touch(&h, p + 3 * PAGE, PAGE, RW));
	cr_assert_leq(host_starts(&h) - starts, 1);
	cr_assert_neq(host_pfn(&h, p + 3 * PAGE), zero);
	cr_assert_not(host_flags(&h, p + 3 * PAGE) & UMBRA_PAGE_ZERO);
	sound();
}

/* Row 9's callout may be a gigabyte wide; by our own call only the page goes. */
static int wide_hugetlb(void)
{
	char *p;
	int fd;

	host_create(&h);
	fd = memfd_create("wide", MFD_CLOEXEC | MFD_HUGETLB);
	if (fd < 0 || ftruncate(fd, 2 * GIB))
		return 77;
	p = mmap(NULL, 3 * GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	p = (char *)(((uintptr_t)p + GIB - 1) & ~(GIB - 1));
	if (mmap(p, 2 * GIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd,
		 0) == MAP_FAILED)
		return 77;
	host_slot(&h, p, 2 * GIB);
	for (size_t i = 0; i < 3; i++)
		if (!host_touch(&h, p + i * (GIB / 2 + HUGE), PAGE, RW) ||
		    host_leaf(&h, p + i * (GIB / 2 + HUGE)) != 2)
			return 1;
	if (umbra_mprotect(h.own, hva_range_of(p, HUGE), PROT_READ) || !host_sound(&h))
		return 1;
	if (host_leaf(&h, p) || host_leaf(&h, p + GIB / 2 + HUGE) != 2 ||
	    host_leaf(&h, p + GIB + 2 * HUGE) != 2)
		return 1;
	if (host_fault(&h, p, RW) != UMBRA_FAULT_DENIED ||
	    !host_touch(&h, p, PAGE, UMBRA_ACCESS_READ))
		return 1;
	return host_sound(&h) ? 0 : 1;
}

Test(byhand, d09_mprotect_of_one_hugetlb_page_keeps_the_gigabyte_around_it)
{
	static const char knob[] = "/proc/sys/vm/nr_hugepages";
	char old[32], more[32];
	int status = -1;
	pid_t pid;

	host_needs_sizes(&h);
	if (!host_read(knob, old, sizeof(old)))
		cr_skip_test("no hugetlb here");
	snprintf(more, sizeof(more), "%d", atoi(old) + 3);
	if (!host_write(knob, more))
		cr_skip_test("hugepages cannot be reserved here (root is needed)");
	pid = fork();
	if (!pid)
		_exit(wide_hugetlb());
	waitpid(pid, &status, 0);
	host_write(knob, old);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned int)status);
}
