/* SPDX-License-Identifier: BSD-2-Clause */
/* Files, fork, swap, KSM and hugetlb under own calls; and that the audit sees what nobody announced. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include "tests/integration/events_host.h"

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static struct host h;
static uint64_t starts;
static char *swap_file;
static char old_knob[64];
static const char *knob;

/* Whatever a test switched on goes off again, also when it failed. */
static void fini(void)
{
	if (swap_file) {
		host_swap_off(swap_file);
		free(swap_file);
		swap_file = NULL;
	}
	if (knob)
		host_write(knob, old_knob);
	knob = NULL;
	host_destroy(&h);
}

static void init(void)
{
	host_create(&h);
}

TestSuite(kernel, .init = init, .fini = fini, .timeout = 60);

#define sound() cr_assert(host_sound(&h))
#define mark()  (starts = host_starts(&h))
#define since() (host_starts(&h) - starts)

/* A failed assertion leaves by longjmp to the process's end, past fini: what must be undone is undone in a parent. */
static void guarded(void (*body)(void))
{
	const pid_t pid = fork();
	int status;

	cr_assert(pid >= 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		host_create(&h); /* its own: the files of the other show the parent's memory */
		body();
		_exit(0);
	}
	while (waitpid(pid, &status, 0) < 0)
		;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
		fprintf(stderr, "skipped: the kernel would not do it in time\n");
		return;
	}
	cr_expect(WIFEXITED(status) && !WEXITSTATUS(status), "status %x", (unsigned int)status);
}

/* In a forked child an assertion cannot report: say it and leave. */
#define must(what)                                                                 \
	do {                                                                       \
		if (!(what)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
			_exit(1);                                                  \
		}                                                                  \
	} while (0)

static int advise(const char *p, size_t bytes, int advice)
{
	return umbra_madvise(h.own, hva_range_of(p, bytes), advice);
}

static char *touched(size_t bytes)
{
	char *p = host_anon(&h, bytes);

	cr_assert(p);
	cr_assert(!madvise(p, bytes, MADV_NOHUGEPAGE));
	cr_assert(host_touch(&h, p, bytes, RW));
	return p;
}

/* ---- files ---------------------------------------------------------------------------------- */

static char *touched_memfd(int *fd)
{
	char *p = host_memfd(&h, HUGE, fd);

	cr_assert(p);
	cr_assert(host_touch(&h, p, HUGE, RW));
	sound();
	return p;
}

Test(kernel, d28_remove_on_memfd_leaves_zeroes)
{
	int fd;
	char *p = touched_memfd(&fd);

	p[PAGE] = 42;
	cr_assert(!advise(p + PAGE, PAGE, MADV_REMOVE));
	cr_assert(host_leaves(&h, p, HUGE) == 511 || !umbra_hostmap_has_scan(h.map));
	sound();
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert_eq(p[PAGE], 0);
	sound();
	close(fd);
}

Test(kernel, d58_punching_whole_pages_drops_them_in_every_mapping)
{
	int fd, other;
	char *p = touched_memfd(&fd), *q;

	q = host_map(&h, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	cr_assert(host_touch(&h, q, HUGE, RW));
	other = dup(fd); /* the file counts, not the descriptor */
	mark();
	cr_assert(!umbra_fallocate(h.own, other, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   3 * PAGE + 100, 3 * PAGE));
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 510);
	cr_assert_eq(host_leaves(&h, q, HUGE), 510);
	cr_assert_eq(host_leaf(&h, p + 3 * PAGE), 1);
	cr_assert_eq(host_leaf(&h, p + 6 * PAGE), 1);
	sound();
	close(other);
	close(fd);
}

Test(kernel, d59_sub_page_punch_shrink_inside_a_page_and_growth_drop_nothing)
{
	int fd;
	char *p = touched_memfd(&fd);

	p[PAGE] = 42;
	p[2 * PAGE - 1] = 43;
	mark();
	cr_assert(
		!umbra_fallocate(h.own, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, 16));
	cr_assert(!umbra_ftruncate(h.own, fd, HUGE - 16));
	cr_assert(!umbra_ftruncate(h.own, fd, 2 * HUGE));
	cr_assert(!umbra_fallocate(h.own, fd, 0, HUGE, PAGE));
	cr_assert_eq(since(), 0);
	cr_assert_eq(host_leaves(&h, p, HUGE), 512);
	cr_assert_eq(p[PAGE], 0);
	cr_assert_eq(p[2 * PAGE - 1], 43);
	sound();
	close(fd);
}

Test(kernel, d10_truncation_takes_what_lies_beyond_the_new_end)
{
	int fd;
	char *p = touched_memfd(&fd);

	mark();
	cr_assert(!umbra_ftruncate(h.own, fd, 100 * PAGE + 5));
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 101);
	cr_assert_eq(host_fault(&h, p + 101 * PAGE, RW), UMBRA_FAULT_BAD_HOST);
	cr_assert_eq(host_fault(&h, p + 101 * PAGE, UMBRA_ACCESS_READ), UMBRA_FAULT_BAD_HOST);
	sound();
	close(fd);
}

Test(kernel, d60_punch_under_a_private_copy_keeps_the_data)
{
	int fd = memfd_create("guest", MFD_CLOEXEC);
	uint64_t pfn;
	char *p;

	cr_assert(fd >= 0 && !ftruncate(fd, HUGE));
	p = host_map(&h, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	cr_assert(host_touch(&h, p, 4 * PAGE, RW));
	p[0] = 42;
	pfn = host_pfn(&h, p);
	cr_assert(!umbra_fallocate(h.own, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE));
	cr_assert_eq(host_leaf(&h, p), 0);
	cr_assert(host_touch(&h, p, PAGE, RW));
	cr_assert_eq(p[0], 42);
	cr_assert_eq(host_pfn(&h, p), pfn);
	sound();
	close(fd);
}

Test(kernel, write_to_a_private_file_page_gets_its_copy_announced)
{
	int fd = memfd_create("guest", MFD_CLOEXEC);
	char *p;

	cr_assert(fd >= 0 && !ftruncate(fd, HUGE) && pwrite(fd, "x", 1, 0) == 1);
	p = host_map(&h, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	cr_assert(host_touch(&h, p, PAGE, UMBRA_ACCESS_READ));
	cr_assert_not(host_writable(&h, p));
	cr_assert(host_flags(&h, p) & UMBRA_PAGE_FILE);
	sound();
	mark();
	cr_assert(host_touch(&h, p, PAGE, RW));
	cr_assert_eq(since(), 1);
	cr_assert_not(host_flags(&h, p) & UMBRA_PAGE_FILE);
	sound();
	close(fd);
}

Test(kernel, d62_writeback_of_a_shared_file_leaves_no_wrong_leaf)
{
	char path[] = "/tmp/umbra-test-XXXXXX";
	int fd = mkstemp(path);
	char *p;

	cr_assert(fd >= 0 && !ftruncate(fd, HUGE));
	unlink(path);
	p = host_map(&h, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	cr_assert(host_touch(&h, p, 16 * PAGE, RW));
	memset(p, 1, 16 * PAGE);
	cr_assert(!msync(p, 16 * PAGE, MS_SYNC));
	sound();
	cr_assert(host_touch(&h, p, 16 * PAGE, RW));
	sound();
	close(fd);
}

Test(kernel, d27_collapse_of_shmem)
{
	int fd, err = -EAGAIN;
	char *p = host_memfd(&h, HUGE, &fd);

	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert_eq(host_leaf(&h, p), 1);
	for (int i = 0; i < 200 && (err == -EAGAIN || err == -EBUSY); i++)
		err = advise(p, HUGE, MADV_COLLAPSE);
	if (err)
		cr_skip_test("the host does not collapse shared memory: %s", strerror(-err));
	cr_assert_eq(host_leaves(&h, p, HUGE), 0);
	sound();
	cr_assert(host_touch(&h, p, HUGE, RW));
	sound();
	/* Zeroing a part of a page in place splits a shared hugepage. */
	mark();
	cr_assert(
		!umbra_fallocate(h.own, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, 16));
	sound();
	close(fd);
}

/* ---- fork ------------------------------------------------------------------------------------- */

static pid_t sleeping_child(void)
{
	const pid_t pid = umbra_fork(h.own);

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

static void reap(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

Test(kernel, d47_d49_fork_makes_private_memory_copy_on_write)
{
	char *p = touched(HUGE);
	const uint64_t pfn = host_pfn(&h, p);
	pid_t pid;

	mark();
	pid = sleeping_child();
	cr_assert_gt(pid, 0);
	cr_assert_eq(since(), 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 0);
	cr_assert_eq(host_fault(&h, p, UMBRA_ACCESS_READ), UMBRA_FAULT_INSTALLED);
	cr_assert_not(host_writable(&h, p));
	cr_assert_eq(host_pfn(&h, p), pfn);
	sound();
	mark();
	cr_assert_eq(host_fault(&h, p, RW), UMBRA_FAULT_INSTALLED);
	cr_assert_eq(since(), 1, "the copy is announced");
	cr_assert(host_writable(&h, p));
	cr_assert_neq(host_pfn(&h, p), pfn);
	sound();
	reap(pid);
}

Test(kernel, d48_fork_keeps_shared_and_dontfork_memory)
{
	int fd;
	char *p = touched(2 * HUGE), *q = host_memfd(&h, HUGE, &fd);
	pid_t pid;

	cr_assert(host_touch(&h, q, HUGE, RW));
	cr_assert(!advise(p + 10 * PAGE, HUGE, MADV_DONTFORK));
	cr_assert(!advise(p + 20 * PAGE, PAGE, MADV_DOFORK));
	pid = sleeping_child();
	cr_assert_gt(pid, 0);
	cr_assert_eq(host_leaves(&h, q, HUGE), 512);
	cr_assert(host_leaves(&h, p, 2 * HUGE) == 511 || !umbra_hostmap_has_scan(h.map));
	cr_assert_eq(host_leaf(&h, p + 20 * PAGE), 0);
	sound();
	cr_assert(host_touch(&h, p, 2 * HUGE, RW));
	sound();
	reap(pid);
	close(fd);
}

Test(kernel, d50_write_after_the_child_is_gone_stays_in_place)
{
	char *p = touched(HUGE);
	const uint64_t pfn = host_pfn(&h, p);
	const pid_t pid = sleeping_child();

	cr_assert_gt(pid, 0);
	cr_assert(host_touch(&h, p, PAGE, UMBRA_ACCESS_READ));
	reap(pid);
	mark();
	cr_assert_eq(host_fault(&h, p, RW), UMBRA_FAULT_INSTALLED);
	cr_assert_eq(since(), 0);
	cr_assert_eq(host_pfn(&h, p), pfn);
	sound();
}

Test(kernel, fork_of_a_thp_then_write_splits_it)
{
	char *p = host_anon(&h, HUGE);
	pid_t pid;

	if (!host_make_thp(&h, p))
		cr_skip_test("the host gives no transparent hugepage");
	cr_assert(host_touch(&h, p, PAGE, RW));
	cr_assert_eq(host_leaf(&h, p), 2);
	pid = sleeping_child();
	cr_assert_gt(pid, 0);
	cr_assert_eq(host_leaf(&h, p), 0);
	cr_assert(host_touch(&h, p, PAGE, UMBRA_ACCESS_READ));
	cr_assert_not(host_writable(&h, p));
	sound();
	cr_assert(host_touch(&h, p, PAGE, RW));
	sound();
	cr_assert(host_touch(&h, p, HUGE, RW));
	sound();
	reap(pid);
}

Test(kernel, the_audit_sees_what_nobody_announced)
{
	char *p = touched(HUGE), *q = touched(HUGE), *r = touched(HUGE);
	struct umbra_audit_report report;
	pid_t pid;

	cr_assert(!madvise(p, 2 * PAGE, MADV_DONTNEED));
	cr_assert(!mprotect(q, PAGE, PROT_READ));
	cr_assert(!munmap(q + PAGE, PAGE));
	cr_assert_eq(umbra_audit(h.root, h.map, &report, NULL), 4);
	cr_assert_eq(report.stale, 3);
	cr_assert_eq(report.wrong_perm, 1);
	p[0] = p[PAGE] = 1; /* other frames, very likely */
	cr_assert_geq(umbra_audit(h.root, h.map, &report, NULL), 2);
	pid = fork();
	if (!pid) {
		pause();
		_exit(0);
	}
	cr_assert_geq(umbra_audit(h.root, h.map, &report, NULL), 1500);
	cr_assert_geq(report.wrong_perm, 1500);
	reap(pid);
	(void)r;
}

Test(kernel, memory_that_may_only_be_written_is_no_mismatch)
{
	char *p = touched(HUGE);

	cr_assert(!umbra_mprotect(h.own, hva_range_of(p, PAGE), PROT_WRITE));
	cr_assert_eq(host_fault(&h, p, UMBRA_ACCESS_WRITE), UMBRA_FAULT_INSTALLED);
	sound();
	cr_assert(!mprotect(p, PAGE, PROT_NONE));
	cr_assert_not(host_sound(&h), "nobody announced that");
	cr_assert(!mprotect(p, PAGE, PROT_WRITE));
}

Test(kernel, the_audit_sees_2m_over_4k)
{
	char *p = host_anon(&h, HUGE);
	struct umbra_audit_report report;

	if (!host_make_thp(&h, p))
		cr_skip_test("the host gives no transparent hugepage");
	cr_assert(host_touch(&h, p, PAGE, RW));
	cr_assert(!mprotect(p + PAGE, PAGE, PROT_READ));
	cr_assert(!mprotect(p + PAGE, PAGE, PROT_READ | PROT_WRITE));
	umbra_audit(h.root, h.map, &report, NULL);
	cr_assert_eq(report.wrong_size, 512);
	cr_assert_eq(report.wrong_pfn, 0);
}

/* ---- swap ------------------------------------------------------------------------------------- */

static bool swap_on(void)
{
	char path[HOST_SWAP_PATH];

	if (!host_swap_on(path))
		return false;
	swap_file = strdup(path);
	return true;
}

static void body_swap(void)
{
	char *p = host_anon(&h, 2 * HUGE);

	must(p && !madvise(p, HUGE, MADV_NOHUGEPAGE));
	must(host_touch(&h, p, HUGE, RW));
	for (size_t i = 0; i < 512; i++)
		p[i * PAGE] = (char)(i | 1);
	must(host_sound(&h));
	mark();
	must(!advise(p, 64 * PAGE, MADV_PAGEOUT));
	must(since() == 1);
	must(host_leaves(&h, p, HUGE) == 448);
	must(host_sound(&h));
	must(host_flags(&h, p) & UMBRA_PAGE_SWAPPED);
	/* Back in, by read and by write. */
	must(host_touch(&h, p, 32 * PAGE, UMBRA_ACCESS_READ));
	must(host_touch(&h, p + 32 * PAGE, 32 * PAGE, RW));
	must(host_sound(&h));
	for (size_t i = 0; i < 512; i++)
		must(p[i * PAGE] == (char)(i | 1));
	/* d25: a THP. */
	if (!host_make_thp(&h, p + HUGE))
		return;
	must(host_touch(&h, p + HUGE, PAGE, RW) && host_leaf(&h, p + HUGE) == 2);
	must(!advise(p + HUGE, HUGE, MADV_PAGEOUT));
	must(host_leaf(&h, p + HUGE) == 0);
	must(host_sound(&h));
	must(host_touch(&h, p + HUGE, HUGE, RW));
	must(p[HUGE + 77 * PAGE] == 1);
	must(host_sound(&h));
}

Test(kernel, d16_d24_d25_d55_swap_out_and_in)
{
	if (!swap_on())
		cr_skip_test("no swap file can be switched on here");
	guarded(body_swap);
}

/* ---- KSM ---------------------------------------------------------------------------------------- */

static void body_ksm(void)
{
	const struct timespec tick = { .tv_nsec = 20000000 };
	char *p = host_anon(&h, HUGE);
	uint64_t pfn0;

	must(p && !madvise(p, HUGE, MADV_NOHUGEPAGE));
	for (size_t i = 0; i < 16; i++)
		memset(p + i * PAGE, 7, PAGE);
	mark();
	must(!advise(p, 16 * PAGE, MADV_MERGEABLE));
	must(since() == 0 || !umbra_hostmap_has_scan(h.map));
	for (int i = 0; i < 500 && host_pfn(&h, p) != host_pfn(&h, p + 15 * PAGE); i++)
		nanosleep(&tick, NULL);
	if (host_pfn(&h, p) != host_pfn(&h, p + 15 * PAGE))
		_exit(77);
	must(host_touch(&h, p, 16 * PAGE, UMBRA_ACCESS_READ));
	must(!host_writable(&h, p) && host_sound(&h));
	pfn0 = host_pfn(&h, p);
	mark();
	must(host_touch(&h, p, PAGE, RW));
	must(since() == 1 && host_pfn(&h, p) != pfn0);
	must(host_leaf(&h, p + PAGE) == 1 && host_sound(&h));
	mark();
	must(!advise(p, 16 * PAGE, MADV_UNMERGEABLE));
	must(since() == 1 && host_leaves(&h, p, 16 * PAGE) == 0);
	must(host_touch(&h, p, 16 * PAGE, RW));
	must(host_sound(&h) && p[PAGE] == 7);
}

Test(kernel, d52_ksm_merge_then_write)
{
	char scan[64] = "";

	knob = "/sys/kernel/mm/ksm/run";
	if (!host_read(knob, old_knob, sizeof(old_knob)) || !host_write(knob, "1")) {
		knob = NULL;
		cr_skip_test("KSM cannot be switched on here");
	}
	host_read("/sys/kernel/mm/ksm/pages_to_scan", scan, sizeof(scan));
	host_write("/sys/kernel/mm/ksm/pages_to_scan", "1000");
	guarded(body_ksm);
	host_write("/sys/kernel/mm/ksm/pages_to_scan", scan);
}

/* ---- hugetlb -------------------------------------------------------------------------------- */

static void body_hugetlb(void)
{
	char *p = host_map(&h, 2 * HUGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
	const int level = umbra_hostmap_has_scan(h.map) ? 2 : 1;
	int fd;

	if (!p)
		_exit(77);
	must(host_touch(&h, p, 2 * HUGE, RW));
	must(host_leaf(&h, p) == level && host_leaf(&h, p + HUGE) == level);
	must(host_sound(&h));
	p[0] = 42;
	mark();
	must(!advise(p, HUGE, MADV_DONTNEED));
	must(since() == 1);
	must(host_leaf(&h, p) == 0 && host_leaf(&h, p + HUGE) == level);
	must(host_sound(&h));
	must(host_touch(&h, p, PAGE, RW) && p[0] == 0 && host_leaf(&h, p) == level);
	must(host_sound(&h));
	/* d08, by our own hand: a file of hugepages, where less than one is zeroed in place. */
	fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);
	must(fd >= 0 && !ftruncate(fd, (off_t)(2 * HUGE)));
	p = host_map(&h, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_HUGETLB, fd);
	must(p && host_touch(&h, p, 2 * HUGE, RW));
	must(host_leaf(&h, p) == level && host_sound(&h));
	mark();
	must(!umbra_fallocate(h.own, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE));
	must(since() == 0 && host_leaf(&h, p) == level && host_sound(&h));
	must(!umbra_fallocate(h.own, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, HUGE));
	must(since() == 1 && host_leaf(&h, p) == 0 && host_leaf(&h, p + HUGE) == level);
	must(host_sound(&h));
}

Test(kernel, d07_d08_hugetlb_discard_and_punch)
{
	char more[32];

	knob = "/proc/sys/vm/nr_hugepages";
	if (!host_read(knob, old_knob, sizeof(old_knob))) {
		knob = NULL;
		cr_skip_test("no hugetlb here");
	}
	snprintf(more, sizeof(more), "%d", atoi(old_knob) + 4);
	if (!host_write(knob, more))
		cr_skip_test("hugepages cannot be reserved here");
	guarded(body_hugetlb);
}

Test(kernel, d61_soft_offline_moves_the_page)
{
	char *p = touched(HUGE);

	p[0] = 42;
	if (advise(p, PAGE, MADV_SOFT_OFFLINE))
		cr_skip_test("the kernel has no memory failure handling, or we no right to it");
	cr_assert_eq(host_leaf(&h, p), 0);
	cr_assert(host_touch(&h, p, PAGE, RW));
	cr_assert_eq(p[0], 42);
	sound();
}
