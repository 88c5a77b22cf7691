/* SPDX-License-Identifier: BSD-2-Clause */
/* How long an audit waits for the kernel's counters, when many pages are not where they were. */
#include <criterion/criterion.h>
#include <stdatomic.h>

#include "tests/integration/events_host.h"

#define PAGES 256UL

static atomic_uint waits;

int usleep(useconds_t us)
{
	const struct timespec pause = { 0, (long)us * 1000 };

	waits++;
	return nanosleep(&pause, NULL);
}

/* All pages of @to get the frames of @from, and nobody is told. */
static void change_frames(char *from, char *to)
{
	cr_assert_eq((uintptr_t)mremap(from, PAGES * UMBRA_PAGE_SIZE, PAGES * UMBRA_PAGE_SIZE,
				       MREMAP_MAYMOVE | MREMAP_FIXED, to),
		     (uintptr_t)to);
}

Test(patience, many_pages_in_other_frames_are_waited_for_together, .timeout = 60)
{
	struct umbra_audit_report report = { 0 };
	struct host h;
	char *p, *other;
	int64_t wrong;

	host_create(&h);
	if (!umbra_hostmap_has_pfns(h.map))
		cr_skip_test("needs frames in pagemap (CAP_SYS_ADMIN)");
	p = host_anon(&h, PAGES * UMBRA_PAGE_SIZE);
	HOST_NEED(!madvise(p, PAGES * UMBRA_PAGE_SIZE, MADV_NOHUGEPAGE));
	other = mmap(NULL, PAGES * UMBRA_PAGE_SIZE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	cr_assert_neq((uintptr_t)other, (uintptr_t)MAP_FAILED);
	cr_expect(
		host_touch(&h, p, PAGES * UMBRA_PAGE_SIZE, UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE));
	cr_expect_eq(umbra_audit(h.root, h.map, &report, NULL), 0);
	cr_expect_eq(waits, 0, "nothing was wrong");
	change_frames(other, p);
	wrong = umbra_audit(h.root, h.map, &report, NULL);
	/* what the kernel moves by itself meanwhile, anywhere in this host, excuses them: that is not waited for */
	cr_expect_eq((uint64_t)wrong + report.moved_by_kernel, PAGES);
	cr_expect_leq(waits, 400, "%u waits for %lu pages", waits, PAGES);
	if (!report.moved_by_kernel)
		cr_expect_eq(waits, 400, "the first ones are waited for in full");
	umbra_zap_all(h.mmu);
	host_destroy(&h);
}
