/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls over ranges with gaps: what the kernel leaves alone stays known. */
#include <criterion/criterion.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "tests/integration/events_host.h"

#define PAGE UMBRA_PAGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static struct host h;

static void init(void)
{
	host_create(&h);
}

static void fini(void)
{
	host_destroy(&h);
}

/* A fork takes the leaves away: it knows what is guest memory. */
static void is_copied_on_write(const char *p, size_t bytes)
{
	const pid_t pid = umbra_fork(h.own);

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	cr_assert_gt(pid, 0);
	cr_assert_eq(host_leaves(&h, p, bytes), 0, "all of it is copy-on-write now");
	cr_assert(host_sound(&h));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

TestSuite(gaps, .init = init, .fini = fini, .timeout = 60);

Test(gaps, what_lies_at_the_destination_of_a_gap_is_still_guest_memory)
{
	char *p = host_anon(&h, UMBRA_HUGE_SIZE), *q = host_anon(&h, UMBRA_HUGE_SIZE);
	hva_t at;

	cr_assert(host_touch(&h, p, 3 * PAGE, RW) && host_touch(&h, q, 8 * PAGE, RW));
	cr_assert(!umbra_munmap(h.own, hva_range_of(p + PAGE, PAGE)));
	if (umbra_mremap(h.own, hva_range_of(p, 3 * PAGE), 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			 (hva_t){ (uintptr_t)q }, &at))
		cr_skip_test("this kernel moves one mapping at a time (before 6.17)");
	cr_assert(host_touch(&h, q, 8 * PAGE, RW) && host_sound(&h));
	is_copied_on_write(q, 8 * PAGE);
}

/*
 * The kernel moves one mapping after the other, and stops at one that userfaultfd watches: what it has moved by then is
 * guest memory where it is now.
 */
Test(gaps, what_was_moved_before_a_move_failed_is_still_guest_memory)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	const int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	char *p = host_anon(&h, UMBRA_HUGE_SIZE), *q = host_reserve(UMBRA_HUGE_SIZE);
	unsigned char resident;
	hva_t at;

	cr_assert(uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api));
	reg.range.start = (uintptr_t)p + 2 * PAGE;
	reg.range.len = PAGE;
	cr_assert_eq(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);
	q = mmap(q, UMBRA_HUGE_SIZE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	cr_assert_neq(q, MAP_FAILED);
	host_slot(&h, q, UMBRA_HUGE_SIZE);
	cr_assert(host_touch(&h, p, 2 * PAGE, RW));
	cr_assert(umbra_mremap(h.own, hva_range_of(p, 3 * PAGE), 3 * PAGE,
			       MREMAP_MAYMOVE | MREMAP_FIXED, (hva_t){ (uintptr_t)q }, &at));
	close(uffd);
	if (!mincore(p, PAGE, &resident))
		cr_skip_test("this kernel moves all or nothing");
	cr_assert(host_touch(&h, q, 2 * PAGE, RW) && host_sound(&h));
	is_copied_on_write(q, 2 * PAGE);
	munmap(q, UMBRA_HUGE_SIZE);
}
