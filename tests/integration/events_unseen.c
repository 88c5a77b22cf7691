/* SPDX-License-Identifier: BSD-2-Clause */
/* What the kernel does by itself, unseen by own calls and userfaultfd: the audit says so by name. */
#include <criterion/criterion.h>

#include <sys/wait.h>

#include "tests/integration/events_host.h"

#define HUGE UMBRA_HUGE_SIZE
#define DIR  "/sys/kernel/mm/transparent_hugepage/khugepaged/"

Test(unseen, d53_a_collapse_by_khugepaged_is_named_as_the_kernels_own_and_is_no_mismatch,
     .timeout = 60)
{
	char sleep_ms[32], pages[32], alloc_ms[32];
	struct umbra_audit_report report = { 0 };
	struct umbra_page page = { 0 };
	struct hva_range part;
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
	/* a change of a part of it splits the huge page: the rest still lies where khugepaged put it */
	part = (struct hva_range){ { (uintptr_t)p }, { (uintptr_t)p + 64 * UMBRA_PAGE_SIZE } };
	HOST_NEED(!umbra_mprotect(h.own, part, PROT_READ));
	cr_expect_eq(umbra_audit(h.root, h.map, &report, stderr), 0);
	cr_expect_eq(report.moved_by_kernel, 448);
	HOST_NEED(!umbra_mprotect(h.own, part, PROT_READ | PROT_WRITE));
	HOST_NEED(!madvise(p, HUGE, MADV_COLLAPSE));
	/* and it heals: dropped and faulted in again, the leaf is 2M */
	umbra_zap_all(h.mmu);
	cr_expect(host_touch(&h, p, UMBRA_PAGE_SIZE, UMBRA_ACCESS_READ));
	cr_expect_eq(umbra_audit(h.root, h.map, &report, stderr), 0);
	cr_expect_eq(report.moved_by_kernel, 0);
	host_destroy(&h);
}

#define CGROUP "/sys/fs/cgroup/memory/umbra-test"

/* In a child that is put into a memory cgroup of its own: 0 done, 77 cannot be had, 1 wrong. */
static int reclaimed_child(void)
{
	const size_t bytes = 16 << 20;
	struct umbra_audit_report report = { 0 };
	char pid[16], usage[32], limit[32];
	struct host h;
	char *p;

	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	if (!host_write(CGROUP "/cgroup.procs", pid))
		return 77;
	host_create(&h);
	p = host_anon(&h, bytes);
	HOST_NEED(!madvise(p, bytes, MADV_NOHUGEPAGE));
	if (!host_touch(&h, p, bytes, UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE) || !host_sound(&h))
		return 1;
	memset(p, 7, bytes);
	/* half of it has to go */
	if (!host_read(CGROUP "/memory.usage_in_bytes", usage, sizeof(usage)))
		return 77;
	snprintf(limit, sizeof(limit), "%lu", strtoul(usage, NULL, 10) - bytes / 2);
	/* the kernel gives up early while the pages look young: each try ages them */
	for (int i = 0; i < 1000 && !host_write(CGROUP "/memory.limit_in_bytes", limit); i++)
		usleep(10000);
	host_write(CGROUP "/memory.limit_in_bytes", "-1"); /* enough has gone */
	if (umbra_audit(h.root, h.map, &report, stderr) || !report.moved_by_kernel ||
	    report.stale) {
		fprintf(stderr, "audit: %lu moved by the kernel, %lu stale\n",
			report.moved_by_kernel, report.stale);
		return 1;
	}
	/* contents are right all the same, and the tables heal */
	umbra_zap_all(h.mmu);
	for (size_t i = 0; i < bytes; i += UMBRA_PAGE_SIZE)
		if (p[i] != 7)
			return 1;
	return 0;
}

Test(unseen, d54_reclaim_by_the_kernel_is_named_as_its_own, .timeout = 60)
{
	char swap[HOST_SWAP_PATH];
	int status = -1;
	pid_t pid;

	if (mkdir(CGROUP, 0755) && errno != EEXIST)
		cr_skip_test("no memory cgroup (v1) can be made here");
	if (!host_swap_on(swap)) {
		rmdir(CGROUP);
		cr_skip_test("no swap file can be switched on here");
	}
	pid = fork();
	if (!pid)
		_exit(reclaimed_child());
	waitpid(pid, &status, 0);
	host_swap_off(swap);
	rmdir(CGROUP);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		cr_skip_test("the memory cgroup refuses a limit here");
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned int)status);
}

Test(unseen, d56_compaction_leaves_no_mismatch, .timeout = 60)
{
	const size_t bytes = 8 << 20;
	struct umbra_audit_report report = { 0 };
	struct host h;
	char *p;

	if (access("/proc/sys/vm/compact_memory", W_OK))
		cr_skip_test("this kernel has no compaction to ask for (root is needed)");
	host_create(&h);
	p = host_anon(&h, bytes);
	HOST_NEED(!madvise(p, bytes, MADV_NOHUGEPAGE));
	cr_expect(host_touch(&h, p, bytes, UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE));
	/* holes, so that there is something to compact */
	for (size_t i = 0; i < bytes; i += 2 * UMBRA_PAGE_SIZE)
		cr_expect_eq(
			umbra_madvise(h.own, hva_range_of(p + i, UMBRA_PAGE_SIZE), MADV_DONTNEED),
			0);
	cr_expect(host_write("/proc/sys/vm/compact_memory", "1"));
	cr_expect_eq(umbra_audit(h.root, h.map, &report, stderr), 0);
	cr_expect_eq(report.leaves, bytes / UMBRA_PAGE_SIZE / 2);
	fprintf(stderr, "compaction moved %lu of %lu pages\n", report.moved_by_kernel,
		report.pages);
	host_destroy(&h);
}
