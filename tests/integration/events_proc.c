/* SPDX-License-Identifier: BSD-2-Clause */
/* Where /proc says too little or too much: unknown folios, the /proc of another PID namespace, more processes than are remembered. */
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "shadow/events/hostmap.h"
#include "shadow/events/uffd.h"
#include "tests/integration/events_uffd.h"

TestSuite(proc, .init = init, .fini = fini, .timeout = 60);

/* ---- folios ------------------------------------------------------------------------------------ */

#define SEEN_PAGES 16
#define KPF_HEAD   (1ULL << 15)
#define KPF_TAIL   (1ULL << 16)
#define KPF_ANON   (1ULL << 12)

/* 4K leaves over 4K pages, and in place of what the kernel says of its frames an empty file. */
static char *with_other_flags(int *flags)
{
	char *p = host_anon(&h, HUGE);

	cr_assert(p);
	cr_assert(!madvise(p, HUGE, MADV_NOHUGEPAGE));
	cr_assert(host_touch(&h, p, SEEN_PAGES * PAGE, RW));
	if (h.map->kpageflags < 0)
		cr_skip_test("frames and their flags are root's to see");
	if (!h.map->scan)
		cr_skip_test("no PAGEMAP_SCAN (Linux 6.7): sizes of pages are not told");
	cr_assert(!umbra_madvise(h.own, hva_range_of(p + 3 * PAGE, PAGE), MADV_COLD));
	cr_assert_eq(host_leaves(&h, p, SEEN_PAGES * PAGE), SEEN_PAGES, "known to be small");
	*flags = memfd_create("flags", MFD_CLOEXEC);
	cr_assert_geq(*flags, 0);
	cr_assert_geq(dup2(*flags, h.map->kpageflags), 0);
	return p;
}

Test(proc, a_folio_of_which_nothing_is_told_is_taken_for_torn)
{
	int flags;
	char *p = with_other_flags(&flags);

	cr_assert(!umbra_madvise(h.own, hva_range_of(p + 3 * PAGE, PAGE), MADV_COLD));
	cr_expect_eq(host_leaves(&h, p, SEEN_PAGES * PAGE), 0);
	close(flags);
}

/* There is none so large that advice could split it; that its pages are elsewhere cannot be known. */
Test(proc, a_folio_larger_than_2m_is_taken_for_torn)
{
	uint64_t words[UMBRA_HUGE_PAGES + 1] = { KPF_HEAD | KPF_ANON };
	int flags;
	char *p = with_other_flags(&flags);
	const off_t at = (off_t)(host_pfn(&h, p + 3 * PAGE) * sizeof(*words));

	for (unsigned int i = 1; i <= UMBRA_HUGE_PAGES; i++)
		words[i] = KPF_TAIL | KPF_ANON;
	cr_assert_eq(ftruncate(flags, at + (off_t)sizeof(words) + 4096), 0);
	cr_assert_eq(pwrite(flags, words, sizeof(words), at), (ssize_t)sizeof(words));
	cr_assert(!umbra_madvise(h.own, hva_range_of(p + 2 * PAGE, 2 * PAGE), MADV_COLD));
	cr_expect_leq(host_leaves(&h, p, SEEN_PAGES * PAGE), 3, "the folio begins at the fourth");
	close(flags);
}

/* ---- who has the address space ------------------------------------------------------------------ */

static _Atomic bool let_go;

static int sleep_until_let_go(void *arg)
{
	(void)arg;
	syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
	while (!let_go)
		syscall(SYS_nanosleep, &(struct timespec){ .tv_nsec = 1000000 }, NULL);
	syscall(SYS_exit, 0);
	return 0;
}

static void *discard_page_by_page(void *p)
{
	for (size_t i = 1; i <= UFFD_PENDING; i++)
		if (madvise((char *)p + i * PAGE, PAGE, MADV_DONTNEED))
			return p;
	return NULL;
}

/*
 * As long as there are more than can be watched, a REMOVE stays refused. When as many are pending as are remembered, no more are
 * read: who caused them waits.
 */
Test(proc, more_processes_with_the_address_space_than_are_remembered)
{
	const struct timespec tick = { .tv_nsec = 1000000 };
	const size_t bytes = 64 << 10;
	pthread_t discarder;
	void *failed;
	int pid[17];
	char *p, *stacks;

	need_uffd();
	if (syscall(SYS_kcmp, getpid(), getpid(), 1, 0, 0))
		cr_skip_test("this kernel compares no processes (kcmp)");
	start_reader();
	p = mapped(HUGE);
	stacks = mmap(NULL, 17 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert(stacks != MAP_FAILED);
	for (size_t i = 0; i < 17; i++) {
		pid[i] = clone(sleep_until_let_go, stacks + (i + 1) * bytes, CLONE_VM | SIGCHLD,
			       NULL);
		cr_assert_gt(pid[i], 0);
	}
	cr_assert(!madvise(p, PAGE, MADV_DONTNEED));
	do
		umbra_uffd_stats(uffd, &stats);
	while (!stats.removes);
	for (int i = 0; i < 30; i++) {
		umbra_uffd_stats(uffd, &stats);
		cr_assert_eq(stats.unsettled, 1);
		cr_assert_eq(host_fault_once(&h, p, RW), UMBRA_FAULT_RETRY);
		nanosleep(&tick, NULL);
	}
	cr_assert(!pthread_create(&discarder, NULL, discard_page_by_page, p));
	do {
		nanosleep(&tick, NULL);
		umbra_uffd_stats(uffd, &stats);
	} while (stats.unsettled < UFFD_PENDING);
	for (int i = 0; i < 30; i++) {
		umbra_uffd_stats(uffd, &stats);
		cr_assert_eq(stats.removes, UFFD_PENDING, "the last one is not read");
		nanosleep(&tick, NULL);
	}
	let_go = true;
	for (size_t i = 0; i < 17; i++)
		cr_assert_eq(waitpid(pid[i], NULL, 0), pid[i]);
	pthread_join(discarder, &failed);
	cr_assert_null(failed);
	drain();
	cr_assert_eq(stats.settled, UFFD_PENDING + 1);
	cr_assert(host_touch(&h, p, HUGE, RW));
	stop_reader();
	munmap(stacks, 17 * bytes);
}

/* The numbers in /proc are other ones than the program's: its threads are seen all the same. */
static int settle_in_a_namespace(void)
{
	char *p;

	host_create(&h); /* what was made before the fork looks at the parent */
	p = host_anon(&h, HUGE);
	if (!open_uffd())
		return 77;
	madvise(p, HUGE, MADV_NOHUGEPAGE);
	if (umbra_uffd_register(uffd, hva_range_of(p, HUGE), UMBRA_UFFD_WP) ||
	    !host_touch(&h, p, HUGE, RW) || pthread_create(&reader, NULL, read_events, NULL))
		return 1;
	while (umbra_uffd_drain(uffd))
		sched_yield();
	for (size_t i = 0; i < 3; i++) {
		if (madvise(p + i * PAGE, PAGE, MADV_DONTNEED) || umbra_uffd_drain(uffd))
			return 2;
		umbra_uffd_stats(uffd, &stats);
		if (stats.settled != i + 1 || stats.unsettled)
			return 3;
	}
	if (!host_touch(&h, p, HUGE, RW))
		return 4;
	umbra_uffd_stop(uffd);
	pthread_join(reader, NULL);
	return host_sound(&h) ? 0 : 5;
}

Test(proc, a_remove_settles_with_the_proc_of_another_pid_namespace)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		if (unshare(CLONE_NEWPID))
			_exit(77);
		pid = fork();
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			_exit(settle_in_a_namespace());
		}
		_exit(waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status)
									   : 9);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		cr_skip_test("no PID namespace or no userfaultfd here");
	cr_assert(WIFEXITED(status) && !WEXITSTATUS(status), "status %x", (unsigned int)status);
}

/* ---- threads ----------------------------------------------------------------------------------- */

#define BUCKETS 4096 /* SETTLE_BUCKETS of shadow/events/uffd.h */

static _Atomic int last_tid;
static int leave[2][2];

static void *wait_to_leave(void *arg)
{
	char byte;

	last_tid = gettid();
	return read(((const int *)arg)[0], &byte, 1) ? arg : NULL;
}

static int start_waiting(pthread_t *t, int *pair)
{
	last_tid = 0;
	cr_assert_eq(pipe(pair), 0);
	cr_assert(!pthread_create(t, NULL, wait_to_leave, pair));
	while (!last_tid)
		sched_yield();
	return last_tid;
}

static void end_waiting(pthread_t t, const int *pair)
{
	close(pair[1]);
	pthread_join(t, NULL);
	close(pair[0]);
}

/* A thread whose number falls where that of @tid does. */
static bool start_beside(pthread_t *t, int *pair, int tid)
{
	char number[16];

	for (int i = 0; i < 100; i++) {
		const int wanted = tid % BUCKETS + BUCKETS * (i % 6 + 1);

		if (wanted == tid)
			continue;
		snprintf(number, sizeof(number), "%d", wanted - 1);
		if (!host_write("/proc/sys/kernel/ns_last_pid", number))
			return false;
		if (start_waiting(t, pair) % BUCKETS == tid % BUCKETS)
			return true;
		end_waiting(*t, pair);
	}
	return false;
}

static void discard_and_settle(char *p, uint64_t times)
{
	cr_assert(!madvise(p, PAGE, MADV_DONTNEED));
	drain();
	cr_assert_eq(stats.settled, times);
}

Test(proc, of_two_threads_in_one_bucket_the_older_one_leaves_first)
{
	pthread_t older, younger;
	int tid;
	char *p;

	need_uffd();
	start_reader();
	p = mapped(HUGE);
	tid = start_waiting(&older, leave[0]);
	if (!start_beside(&younger, leave[1], tid))
		cr_skip_test("the next number of a thread cannot be chosen here");
	discard_and_settle(p, 1);
	end_waiting(older, leave[0]);
	discard_and_settle(p + PAGE, 2);
	end_waiting(younger, leave[1]);
	discard_and_settle(p + 2 * PAGE, 3);
	stop_reader();
}
