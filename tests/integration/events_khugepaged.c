/* SPDX-License-Identifier: BSD-2-Clause */
/* Row 53: khugepaged collapses by itself. Own calls and userfaultfd cannot see it, and the audit says so by name. */
#include <criterion/criterion.h>

#include "tests/integration/events_host.h"

#define HUGE UMBRA_HUGE_SIZE
#define DIR  "/sys/kernel/mm/transparent_hugepage/khugepaged/"

Test(khugepaged, d53_its_collapse_is_named_as_the_kernels_own_and_is_no_mismatch, .timeout = 60)
{
	char sleep_ms[32], pages[32], alloc_ms[32];
	struct umbra_audit_report report = { 0 };
	struct umbra_page page = { 0 };
	int64_t wrong = -1;
	struct host h;
	char *p;

	host_create(&h);
	if (!umbra_hostmap_has_scan(h.map) || !umbra_hostmap_has_pfns(h.map))
		cr_skip_test("needs PAGEMAP_SCAN and frames in pagemap (CAP_SYS_ADMIN)");
	if (!host_read(DIR "scan_sleep_millisecs", sleep_ms, sizeof(sleep_ms)) ||
	    !host_read(DIR "pages_to_scan", pages, sizeof(pages)) ||
	    !host_read(DIR "alloc_sleep_millisecs", alloc_ms, sizeof(alloc_ms)) ||
	    !host_write(DIR "scan_sleep_millisecs", "10") ||
	    !host_write(DIR "pages_to_scan", "100000") ||
	    !host_write(DIR "alloc_sleep_millisecs", "10"))
		cr_skip_test("khugepaged cannot be set here (root is needed)");
	p = host_anon(&h, HUGE);
	HOST_NEED(!madvise(p, HUGE, MADV_NOHUGEPAGE));
	cr_expect(host_touch(&h, p, HUGE, UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE));
	cr_expect_eq(umbra_audit(h.root, h.map, &report, stderr), 0);
	cr_expect_eq(report.moved_by_kernel, 0);
	HOST_NEED(!madvise(p, HUGE, MADV_HUGEPAGE));
	/* bounded by the test's timeout; khugepaged was told to hurry */
	for (int i = 0; i < 2000 && !(page.flags & UMBRA_PAGE_HUGE); i++) {
		usleep(20000);
		umbra_hostmap_query(h.map, (hva_t){ (uintptr_t)p }, &page);
	}
	if (page.flags & UMBRA_PAGE_HUGE)
		wrong = umbra_audit(h.root, h.map, &report, stderr);
	cr_expect(host_write(DIR "scan_sleep_millisecs", sleep_ms));
	cr_expect(host_write(DIR "pages_to_scan", pages));
	cr_expect(host_write(DIR "alloc_sleep_millisecs", alloc_ms));
	cr_assert(page.flags & UMBRA_PAGE_HUGE, "khugepaged did not come by");
	cr_expect_eq(wrong, 0);
	cr_expect_eq(report.moved_by_kernel, 512);
	/* and it heals: dropped and faulted in again, the leaf is 2M */
	umbra_zap_all(h.mmu);
	cr_expect(host_touch(&h, p, UMBRA_PAGE_SIZE, UMBRA_ACCESS_READ));
	cr_expect_eq(umbra_audit(h.root, h.map, &report, stderr), 0);
	cr_expect_eq(report.moved_by_kernel, 0);
	host_destroy(&h);
}
