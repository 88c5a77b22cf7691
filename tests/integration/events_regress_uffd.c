/* SPDX-License-Identifier: BSD-2-Clause */
/* userfaultfd: what once went wrong. Many threads, other processes, closing. */
#include <dirent.h>
#include <signal.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include "tests/integration/events_uffd.h"

TestSuite(uffd_regress, .init = init, .fini = fini, .timeout = 60);

/* ---- many threads ---------------------------------------------------------------------------- */

#define THREADS 3000

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void *wait_at_gate(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	return NULL;
}

static size_t descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	size_t n = 0;

	cr_assert(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

Test(uffd_regress, an_outside_remove_settles_among_thousands_of_threads)
{
	static pthread_t t[THREADS];
	pthread_attr_t small;
	size_t n = 0, before;
	char *p;

	need_uffd();
	before = descriptors();
	start_reader();
	p = mapped(HUGE);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	pthread_mutex_lock(&gate);
	while (n < THREADS && !pthread_create(&t[n], &small, wait_at_gate, NULL))
		n++;
	if (n == THREADS) {
		for (size_t i = 0; i < 3; i++) {
			cr_assert(!madvise(p + i * PAGE, PAGE, MADV_DONTNEED));
			drain();
		}
		cr_assert_eq(stats.settled, 3);
		cr_assert_lt(descriptors(), before + 256, "the embedder needs some too");
	}
	pthread_mutex_unlock(&gate);
	for (size_t i = 0; i < n; i++)
		pthread_join(t[i], NULL);
	/* They are gone, and so is what was kept of them. */
	cr_assert(!madvise(p, PAGE, MADV_DONTNEED));
	drain();
	cr_assert_lt(descriptors(), before + 16);
	stop_reader();
	pthread_attr_destroy(&small);
	if (n < THREADS)
		cr_skip_test("this system gives no 3000 threads");
}

/* ---- another process with the same address space --------------------------------------------- */

static _Atomic bool let_go;
static _Atomic int sharer_result = -1;

/* Discards and then runs on in user mode, where nobody can see what it is in. */
static int discard_and_run_on(void *arg)
{
	syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL); /* should the test fail */
	sharer_result = (int)syscall(SYS_madvise, arg, PAGE, MADV_DONTNEED);
	while (!let_go)
		;
	syscall(SYS_exit, 0);
	return 0;
}

static int start_sharer(int (*fn)(void *), void *arg)
{
	const size_t bytes = 64 << 10;
	char *stack = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	cr_assert(stack != MAP_FAILED);
	return clone(fn, stack + bytes, CLONE_VM | SIGCHLD, arg);
}

static bool can_compare(void)
{
	return !syscall(SYS_kcmp, getpid(), getpid(), 1, 0, 0);
}

Test(uffd_regress, a_remove_by_a_process_that_shares_the_address_space_waits_for_it)
{
	const struct timespec tick = { .tv_nsec = 1000000 };
	char *p;
	int pid;

	need_uffd();
	if (!can_compare())
		cr_skip_test("this kernel compares no processes (kcmp)");
	start_reader();
	p = mapped(HUGE);
	pid = start_sharer(discard_and_run_on, p);
	cr_assert_gt(pid, 0);
	do
		umbra_uffd_stats(uffd, &stats);
	while (!stats.removes);
	for (int i = 0; i < 50; i++) {
		umbra_uffd_stats(uffd, &stats);
		cr_assert_eq(stats.unsettled, 1);
		cr_assert_eq(host_fault_once(&h, p, RW), UMBRA_FAULT_RETRY);
		nanosleep(&tick, NULL);
	}
	let_go = true;
	cr_assert_eq(waitpid(pid, NULL, 0), pid);
	drain();
	cr_assert_eq(sharer_result, 0);
	cr_assert_eq(stats.settled, 1);
	cr_assert(host_touch(&h, p, PAGE, RW));
	stop_reader();
}

static int sleep_until_let_go(void *arg)
{
	(void)arg;
	syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
	while (!let_go)
		syscall(SYS_nanosleep, &(struct timespec){ .tv_nsec = 1000000 }, NULL);
	syscall(SYS_exit, 0);
	return 0;
}

Test(uffd_regress, a_process_that_shares_the_address_space_and_sleeps_is_seen_elsewhere)
{
	char *p;
	int pid;

	need_uffd();
	start_reader();
	p = mapped(HUGE);
	pid = start_sharer(sleep_until_let_go, NULL);
	cr_assert_gt(pid, 0);
	for (size_t i = 0; i < 5; i++) {
		cr_assert(!madvise(p + i * PAGE, PAGE, MADV_DONTNEED));
		drain();
	}
	cr_assert_eq(stats.settled, 5);
	let_go = true;
	cr_assert_eq(waitpid(pid, NULL, 0), pid);
	cr_assert(!madvise(p, PAGE, MADV_DONTNEED));
	drain();
	stop_reader();
}

/* ---- threads that come and go --------------------------------------------------------------------- */

static _Atomic bool done;

static void *nothing(void *arg)
{
	return arg;
}

static void *make_threads(void *arg)
{
	pthread_t t[8];

	while (!done) {
		for (int i = 0; i < 8; i++)
			HOST_NEED(!pthread_create(&t[i], NULL, nothing, arg));
		for (int i = 0; i < 8; i++)
			pthread_join(t[i], NULL);
	}
	return NULL;
}

Test(uffd_regress, removes_settle_while_threads_come_and_go)
{
	pthread_t t[2];
	char *p;

	need_uffd();
	start_reader();
	p = mapped(HUGE);
	for (int i = 0; i < 2; i++)
		cr_assert(!pthread_create(&t[i], NULL, make_threads, NULL));
	for (size_t i = 0; i < 50; i++) {
		cr_assert(!madvise(p + i * PAGE, PAGE, MADV_DONTNEED));
		drain();
		cr_assert(host_touch(&h, p + i * PAGE, PAGE, RW));
	}
	done = true;
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	cr_assert_eq(stats.settled, 50);
	stop_reader();
}

/* ---- closing --------------------------------------------------------------------------------- */

static void *discard_again(void *arg)
{
	while (!done)
		discard_over_the_end(arg);
	return NULL;
}

Test(uffd_regress, closing_under_own_calls_frees_nothing_that_they_use)
{
	pthread_t t[2];
	char *p[2];

	need_uffd();
	done = false;
	for (int i = 0; i < 2; i++) {
		p[i] = mapped(HUGE);
		cr_assert(!pthread_create(&t[i], NULL, discard_again, p[i]));
	}
	for (int i = 0; i < 30; i++) {
		start_reader();
		stop_reader();
		umbra_uffd_close(uffd);
		uffd = NULL;
		cr_assert(open_uffd());
		for (int k = 0; k < 2; k++)
			cr_assert(!umbra_uffd_register(uffd, hva_range_of(p[k], HUGE),
						       UMBRA_UFFD_WP));
	}
	start_reader();
	done = true;
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	drain();
	stop_reader();
}

/* More ranges than there is room for doubts: several share a bracket then, which only takes longer to close. */
Test(uffd_regress, closing_with_more_ranges_than_doubts_drops_each_and_nothing_between)
{
	const size_t n = 200;
	char *p;

	need_uffd();
	p = host_anon(&h, HUGE);
	cr_assert(p && !madvise(p, HUGE, MADV_NOHUGEPAGE));
	for (size_t i = 0; i < n; i++)
		cr_assert(!umbra_uffd_register(uffd, hva_range_of(p + 2 * i * PAGE, PAGE),
					       UMBRA_UFFD_WP));
	cr_assert(host_touch(&h, p, HUGE, RW));
	umbra_uffd_close(uffd);
	uffd = NULL;
	cr_assert(host_sound(&h)); /* every bracket is closed */
	for (size_t i = 0; i < n; i++) {
		cr_assert_eq(host_leaf(&h, p + 2 * i * PAGE), 0, "registered %zu", i);
		cr_assert_eq(host_leaf(&h, p + (2 * i + 1) * PAGE), 1, "between %zu", i);
	}
	cr_assert(host_touch(&h, p, HUGE, RW));
}

/* Takes no signal and is never seen elsewhere: nobody can say what it is in. */
static void *spin_deaf(void *arg)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	*(_Atomic bool *)arg = true;
	while (!done)
		;
	return NULL;
}

static void start_spinning(pthread_t *t)
{
	static _Atomic bool deaf;

	deaf = done = false;
	cr_assert(!pthread_create(t, NULL, spin_deaf, (void *)&deaf));
	while (!deaf)
		sched_yield();
}

static void *discard_and_let_go(void *arg)
{
	call(arg);
	done = true;
	return NULL;
}

Test(uffd_regress, closing_waits_for_a_thread_that_comes_back)
{
	struct caller c;
	pthread_t t;
	char *p;

	need_uffd();
	p = mapped(HUGE);
	start_spinning(&t);
	c = (struct caller){ .r = hva_range_of(p, PAGE) };
	cr_assert(!pthread_create(&c.thread, NULL, discard_and_let_go, &c));
	wait_in_call(&c);
	umbra_uffd_close(uffd); /* reads what was waited for, which ends the spinning */
	uffd = NULL;
	cr_assert(host_sound(&h)); /* every bracket is closed */
	cr_assert(host_touch(&h, p, HUGE, RW));
	pthread_join(c.thread, NULL);
	pthread_join(t, NULL);
}

/* The brackets that stay open are not sound at the end: not of the suite. */
Test(uffd_regress_close, what_cannot_be_settled_stays_refused_and_without_a_leaf, .init = init,
     .timeout = 60)
{
	struct caller c;
	pthread_t t;
	char *p;

	need_uffd();
	p = mapped(HUGE);
	start_spinning(&t);
	begin(&c, false, p, 1);
	umbra_uffd_close(uffd);
	pthread_join(c.thread, NULL);
	cr_assert_eq(host_leaf(&h, p), 0);
	cr_assert_eq(host_fault_once(&h, p, RW), UMBRA_FAULT_RETRY);
	done = true;
	pthread_join(t, NULL);
	cr_assert_eq(host_fault_once(&h, p, RW), UMBRA_FAULT_RETRY);
}

Test(uffd_regress, a_passed_descriptor_is_used_and_not_closed)
{
	const int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct umbra_uffd_config config = { .own = h.own, .fd = fd };
	struct umbra_uffd_tried tried;

	if (fd < 0)
		cr_skip_test("no userfaultfd for kernel faults here");
	cr_assert(!umbra_uffd_open(&uffd, h.chain, &config, &tried));
	cr_assert_eq(umbra_uffd_fd(uffd), fd);
	cr_assert_eq(tried.passed_fd, 0);
	cr_assert_eq(tried.dev, 1);
	umbra_uffd_close(uffd);
	uffd = NULL;
	cr_assert_geq(fcntl(fd, F_GETFD), 0);
	close(fd);
}

/* ---- moving out of a large folio ---------------------------------------------------------------- */

Test(uffd_regress, a_page_moved_out_of_a_large_folio_takes_the_whole_folio_along)
{
	struct gfn_range all;
	uint64_t moved;
	char *p, *q;

	need_uffd();
	if (!(umbra_uffd_features(uffd) & UFFD_FEATURE_MOVE))
		cr_skip_test("no UFFDIO_MOVE before 6.8");
	p = host_anon(&h, HUGE);
	q = host_anon(&h, HUGE);
	cr_assert(!umbra_uffd_register(uffd, hva_range_of(q, HUGE), UMBRA_UFFD_MISSING));
	if (!host_make_thp(&h, p))
		cr_skip_test("the host gives no transparent hugepage");
	memset(p, 0, HUGE); /* pages of zeroes: a split gives them the zero page's frame */
	p[5 * PAGE] = 42;
	cr_assert(host_touch(&h, p, HUGE, RW));
	all = (struct gfn_range){ { (uintptr_t)p / PAGE }, { (uintptr_t)p / PAGE + 512 } };
	cr_assert_eq(umbra_split(h.mmu, all), 1);
	cr_assert(host_sound(&h));
	start_reader();
	cr_assert(!umbra_uffd_move(uffd, (hva_t){ (uintptr_t)q },
				   (hva_t){ (uintptr_t)p + 5 * PAGE }, PAGE, &moved));
	cr_assert_eq(moved, PAGE);
	cr_assert_eq(host_leaves(&h, p, HUGE), 0);
	cr_assert(host_sound(&h));
	cr_assert_eq(q[0], 42);
	stop_reader();
}
