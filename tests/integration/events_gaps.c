/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls over ranges with gaps: what the kernel leaves alone stays known. */
#include <criterion/criterion.h>
#include <signal.h>
#include <sys/prctl.h>
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

TestSuite(gaps, .init = init, .fini = fini, .timeout = 60);

Test(gaps, what_lies_at_the_destination_of_a_gap_is_still_guest_memory)
{
	char *p = host_anon(&h, UMBRA_HUGE_SIZE), *q = host_anon(&h, UMBRA_HUGE_SIZE);
	hva_t at;
	pid_t pid;

	cr_assert(host_touch(&h, p, 3 * PAGE, RW) && host_touch(&h, q, 8 * PAGE, RW));
	cr_assert(!umbra_munmap(h.own, hva_range_of(p + PAGE, PAGE)));
	if (umbra_mremap(h.own, hva_range_of(p, 3 * PAGE), 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			 (hva_t){ (uintptr_t)q }, &at))
		cr_skip_test("this kernel moves one mapping at a time (before 6.17)");
	cr_assert(host_touch(&h, q, 8 * PAGE, RW) && host_sound(&h));
	pid = umbra_fork(h.own);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	cr_assert_gt(pid, 0);
	cr_assert_eq(host_leaves(&h, q, 8 * PAGE), 0, "all of it is copy-on-write now");
	cr_assert(host_sound(&h));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}
