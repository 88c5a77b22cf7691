/* SPDX-License-Identifier: BSD-2-Clause */
/* userfaultfd: events by anyone become brackets, faults are served, orderings hold. */
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include "tests/integration/events_uffd.h"

TestSuite(uffd, .init = init, .fini = fini, .timeout = 60);

#define sound() cr_assert(host_sound(&h))

Test(uffd, an_outside_discard_drops_its_leaves_and_settles)
{
	char *p;

	need_uffd();
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_WP);
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(!madvise(p + 3 * PAGE, 2 * PAGE, MADV_DONTNEED));
	drain();
	cr_assert_eq(host_leaves(&h, p, HUGE), 510);
	cr_assert_eq(stats.removes, 1);
	cr_assert_eq(stats.own_removes, 0);
	cr_assert_eq(stats.settled, 1);
	cr_assert(host_touch(&h, p, HUGE, RW));
	sound();
	stop_reader();
}

Test(uffd, an_own_discard_is_known_as_own_and_not_bracketed_twice)
{
	char *p;

	need_uffd();
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_WP);
	cr_assert(host_touch(&h, p, HUGE, RW));
	for (size_t i = 0; i < 50; i++)
		cr_assert(!umbra_madvise(h.own, hva_range_of(p + i * PAGE, PAGE), MADV_DONTNEED));
	drain();
	cr_assert_eq(host_leaves(&h, p, HUGE), 462);
	cr_assert_eq(stats.removes, 50);
	cr_assert_eq(stats.own_removes, 50);
	cr_assert_eq(umbra_chain_counts(h.chain, UMBRA_SOURCE_OWN).begun, 50);
	cr_assert_eq(umbra_chain_counts(h.chain, UMBRA_SOURCE_UFFD).begun, stats.settled);
	stop_reader();
}

Test(uffd, free_and_remove_raise_remove)
{
	int fd;
	char *p, *q;

	need_uffd();
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_WP);
	q = host_memfd(&h, HUGE, &fd);
	if (umbra_uffd_register(uffd, hva_range_of(q, HUGE), UMBRA_UFFD_WP) == -ENOTSUP)
		cr_skip_test("no write-protection of shared memory before 5.19");
	cr_assert(host_touch(&h, p, 8 * PAGE, RW) && host_touch(&h, q, 8 * PAGE, RW));
	cr_assert(!madvise(p, PAGE, MADV_FREE));
	cr_assert(!madvise(q, PAGE, MADV_REMOVE));
	drain();
	cr_assert_eq(stats.removes, 2);
	cr_assert_eq(host_leaves(&h, p, 8 * PAGE), 7);
	cr_assert_eq(host_leaves(&h, q, 8 * PAGE), 7);
	stop_reader();
	close(fd);
}

Test(uffd, d31_d33_outside_unmap_and_mmap_over_drop)
{
	char *p;

	need_uffd();
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_WP);
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(!munmap(p + PAGE, PAGE));
	cr_assert(mmap(p + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	drain();
	cr_assert_eq(stats.unmaps, 2);
	cr_assert_eq(host_leaves(&h, p, HUGE), 510);
	stop_reader();
}

Test(uffd, d34_d37_outside_mremap_drops_both_ranges)
{
	char *p, *to;

	need_uffd();
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_WP);
	to = watched(HUGE, UMBRA_UFFD_WP);
	cr_assert(host_touch(&h, p, HUGE, RW) && host_touch(&h, to, HUGE, RW));
	cr_assert(mremap(p, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	drain();
	cr_assert_eq(stats.remaps, 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 508);
	cr_assert_eq(host_leaves(&h, to, HUGE), 508);
	/* What was moved is still watched at its new place, and the events still come. */
	cr_assert(!madvise(to, PAGE, MADV_DONTNEED));
	drain();
	cr_assert_eq(stats.removes, 1);
	stop_reader();
}

Test(uffd, d38_outside_shrink_drops_the_tail)
{
	char *p;

	need_uffd();
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_WP);
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(mremap(p, HUGE, 100 * PAGE, 0) == p);
	drain();
	cr_assert_eq(host_leaves(&h, p, HUGE), 100);
	stop_reader();
}

Test(uffd, d47_outside_fork_drops_private_and_keeps_shared)
{
	char *p, *q;
	int fd;
	pid_t pid;

	need_uffd();
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_WP);
	q = host_memfd(&h, HUGE, &fd);
	cr_assert(!umbra_uffd_register(uffd, hva_range_of(q, HUGE), UMBRA_UFFD_WP));
	cr_assert(host_touch(&h, p, HUGE, RW) && host_touch(&h, q, HUGE, RW));
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	drain();
	cr_assert_eq(stats.forks, 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 0);
	cr_assert_eq(host_leaves(&h, q, HUGE), 512);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	stop_reader();
	close(fd);
}

Test(uffd, missing_faults_are_served_by_copy)
{
	char *p;

	need_uffd();
	start_reader();
	memset(source, 42, sizeof(source));
	p = watched(HUGE, UMBRA_UFFD_MISSING);
	cr_assert(host_touch(&h, p, 20 * PAGE, UMBRA_ACCESS_READ));
	cr_assert_eq(p[19 * PAGE], 42);
	drain();
	cr_assert_eq(stats.faults_missing, 20);
	stop_reader();
}

static struct {
	hva_t hva;
	uint32_t flags, tid;
	int nr;
} handed;

static void note_and_serve(void *ctx, struct umbra_uffd *u, hva_t hva, uint32_t flags, uint32_t tid)
{
	handed.hva = hva, handed.flags = flags, handed.tid = tid;
	handed.nr++;
	on_fault(ctx, u, hva, flags, tid);
}

Test(uffd, a_fault_is_handed_over_as_the_kernel_told_it)
{
	const struct umbra_uffd_config config = { .fd = -1, .own = h.own, .fault = note_and_serve };
	char *p;

	if (umbra_uffd_open(&uffd, h.chain, &config, NULL))
		cr_skip_test("no userfaultfd for kernel faults here");
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_MISSING);
	*(volatile char *)(p + 3 * PAGE + 123) = 1;
	drain();
	cr_assert_eq(handed.nr, 1);
	cr_assert_eq(handed.hva.v, (uintptr_t)p + 3 * PAGE);
	cr_assert_eq(handed.flags, UFFD_PAGEFAULT_FLAG_WRITE);
	cr_assert_eq(handed.tid, (uint32_t)gettid());
	stop_reader();
}

Test(uffd, minor_faults_are_served_by_continue)
{
	int fd, err;
	char *p, *alias;

	need_uffd();
	start_reader();
	p = host_memfd(&h, HUGE, &fd);
	alias = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert(alias != MAP_FAILED);
	memset(alias, 42, 4 * PAGE);
	err = umbra_uffd_register(uffd, hva_range_of(p, HUGE), UMBRA_UFFD_MINOR);
	if (err == -ENOTSUP)
		cr_skip_test("no minor faults of shared memory before 5.14");
	cr_assert(host_touch(&h, p, 4 * PAGE, RW));
	cr_assert_eq(p[3 * PAGE], 42);
	drain();
	cr_assert_eq(stats.faults_minor, 4);
	cr_assert_eq(umbra_uffd_continue(uffd, hva_range_of(p, PAGE), NULL), -EEXIST);
	stop_reader();
	munmap(alias, HUGE);
	close(fd);
}

Test(uffd, d39_write_protect_drops_and_a_write_is_asked_for)
{
	char *p;

	need_uffd();
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_WP);
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(!umbra_uffd_writeprotect(uffd, hva_range_of(p, 4 * PAGE), true));
	cr_assert_eq(host_leaves(&h, p, HUGE), 508);
	cr_assert(host_touch(&h, p, 4 * PAGE, UMBRA_ACCESS_READ));
	cr_assert_not(host_writable(&h, p));
	sound();
	cr_assert(host_touch(&h, p, PAGE, RW));
	drain();
	cr_assert_eq(stats.faults_wp, 1);
	cr_assert(host_writable(&h, p));
	cr_assert_not(host_writable(&h, p + PAGE));
	stop_reader();
}

Test(uffd, d40_move_drops_source_and_destination)
{
	uint64_t pfn, done;
	char *p, *q;

	need_uffd();
	if (!(umbra_uffd_features(uffd) & UFFD_FEATURE_MOVE))
		cr_skip_test("no UFFDIO_MOVE before 6.8");
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_WP);
	q = watched(HUGE, UMBRA_UFFD_MISSING);
	cr_assert(host_touch(&h, p, HUGE, RW));
	p[0] = 42;
	pfn = host_pfn(&h, p);
	cr_assert(!umbra_uffd_move(uffd, (hva_t){ (uintptr_t)q }, (hva_t){ (uintptr_t)p }, 2 * PAGE,
				   &done));
	cr_assert_eq(done, 2 * PAGE);
	cr_assert_eq(host_leaves(&h, p, HUGE), 510);
	cr_assert_eq(host_pfn(&h, q), pfn);
	cr_assert(host_touch(&h, q, 2 * PAGE, RW));
	cr_assert_eq(q[0], 42);
	sound();
	stop_reader();
}

Test(uffd, d41_resolving_says_eexist_enoent_and_how_far_it_got)
{
	static _Alignas(4096) char many[4 * UMBRA_PAGE_SIZE];
	uint64_t done;
	char *p;

	need_uffd();
	p = watched(HUGE, UMBRA_UFFD_MISSING);
	cr_assert(!umbra_uffd_copy(uffd, (hva_t){ (uintptr_t)p + 2 * PAGE }, many, PAGE, &done));
	cr_assert_eq(umbra_uffd_copy(uffd, (hva_t){ (uintptr_t)p }, many, 4 * PAGE, &done),
		     -EEXIST);
	cr_assert_eq(done, 2 * PAGE);
	cr_assert(!umbra_uffd_zeropage(uffd, hva_range_of(p + 3 * PAGE, PAGE), &done));
	cr_assert_eq(done, PAGE);
	cr_assert_eq(umbra_uffd_copy(uffd, (hva_t){ (uintptr_t)many }, many, PAGE, &done), -ENOENT);
	cr_assert(host_touch(&h, p, 4 * PAGE, RW));
	sound();
	if (umbra_uffd_features(uffd) & UFFD_FEATURE_POISON) {
		cr_assert(!umbra_uffd_poison(uffd, hva_range_of(p + 5 * PAGE, PAGE)));
		cr_assert_eq(host_fault(&h, p + 5 * PAGE, RW), UMBRA_FAULT_BAD_HOST);
		sound();
	}
}

Test(uffd, modes_that_do_not_exist_are_refused)
{
	char *p;

	need_uffd();
	p = host_anon(&h, HUGE);
	cr_assert_eq(umbra_uffd_register(uffd, hva_range_of(p, HUGE), 0), -EINVAL);
	cr_assert_eq(umbra_uffd_register(uffd, hva_range_of(p, HUGE), UMBRA_UFFD_MINOR), -ENOTSUP);
	cr_assert_lt(umbra_uffd_register(uffd, hva_range_of(p + 1, PAGE), UMBRA_UFFD_WP), 0);
	munmap(p, PAGE);
	cr_assert_eq(umbra_uffd_register(uffd, hva_range_of(p, PAGE), UMBRA_UFFD_WP), -EINVAL);
}

/* ---- orderings ------------------------------------------------------------------------------ */

static void *discard(void *arg)
{
	return (void *)(intptr_t)madvise(arg, PAGE, MADV_DONTNEED);
}

/* Until there is something to read: who has caused it waits for that. */
static void wait_blocked(void)
{
	struct pollfd readable = { .fd = umbra_uffd_fd(uffd), .events = POLLIN };

	cr_assert_eq(poll(&readable, 1, -1), 1);
}

Test(uffd, d70_a_copy_elsewhere_while_an_event_is_unread_is_repeated)
{
	pthread_t t;
	char *p;

	need_uffd();
	p = watched(HUGE, UMBRA_UFFD_MISSING);
	cr_assert(!pthread_create(&t, NULL, discard, p));
	wait_blocked();
	/* Nobody reads: it says so instead of waiting for ever. */
	cr_assert_eq(umbra_uffd_copy(uffd, (hva_t){ (uintptr_t)p + 9 * PAGE }, source, PAGE, NULL),
		     -EAGAIN);
	start_reader();
	cr_assert(!umbra_uffd_copy(uffd, (hva_t){ (uintptr_t)p + 9 * PAGE }, source, PAGE, NULL));
	pthread_join(t, NULL);
	drain();
	cr_assert_geq(stats.eagain, 1);
	stop_reader();
}

static void *unmap(void *arg)
{
	return (void *)(intptr_t)munmap(arg, PAGE);
}

Test(uffd, d32_a_page_mapped_again_before_its_unmap_is_read_is_not_served_from_the_old_leaf)
{
	pthread_t t;
	char *p;

	need_uffd();
	p = watched(HUGE, UMBRA_UFFD_WP);
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(!pthread_create(&t, NULL, unmap, p));
	wait_blocked();
	cr_assert(mmap(p, PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == p);
	*p = 42;
	start_reader();
	pthread_join(t, NULL);
	drain();
	cr_assert_eq(stats.unmaps, 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 511);
	cr_assert(host_touch(&h, p, PAGE, RW));
	sound();
	stop_reader();
}

Test(uffd, d42_closing_with_write_protection_set_leaves_no_wrong_leaf)
{
	char *p;

	need_uffd();
	p = watched(HUGE, UMBRA_UFFD_WP);
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(!umbra_uffd_writeprotect(uffd, hva_range_of(p, HUGE), true));
	cr_assert(host_touch(&h, p, HUGE, UMBRA_ACCESS_READ));
	umbra_uffd_close(uffd);
	uffd = NULL;
	sound();
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(host_writable(&h, p));
	sound();
}

static _Atomic int toucher;
static _Atomic unsigned int too_early;

static void *touch_page(void *arg)
{
	toucher = gettid();
	*(volatile char *)arg = 1;
	return NULL;
}

/* Until it waits, and in no system call: in its fault. */
static void wait_faulted(void)
{
	const struct timespec tick = { .tv_nsec = 1000000 };
	char path[64], word[32];

	while (!toucher)
		sched_yield();
	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", toucher);
	while (!host_read(path, word, sizeof(word)) || strcmp(word, "-1"))
		nanosleep(&tick, NULL);
}

/* A fault that is served too early is not served: what it would do then is not at issue. */
static void fill_after_the_remove(void *ctx, struct umbra_uffd *u, hva_t hva, uint32_t flags,
				  uint32_t tid)
{
	struct umbra_uffd_stats now;

	umbra_uffd_stats(u, &now);
	if (now.removes) {
		on_fault(ctx, u, hva, flags, tid);
		return;
	}
	too_early++;
	umbra_uffd_wake(u, (struct hva_range){ { hva.v & -PAGE }, { (hva.v & -PAGE) + PAGE } });
}

/* read() gives the fault first, whatever came first. */
Test(uffd, d69_a_fault_that_overtakes_a_remove_is_served_after_it)
{
	const struct umbra_uffd_config config = { .fd = -1,
						  .own = h.own,
						  .fault = fill_after_the_remove };
	pthread_t t, f;
	char *p;

	if (umbra_uffd_open(&uffd, h.chain, &config, NULL))
		cr_skip_test("no userfaultfd for kernel faults here");
	p = watched(HUGE, UMBRA_UFFD_MISSING);
	cr_assert(!umbra_uffd_copy(uffd, (hva_t){ (uintptr_t)p }, source, PAGE, NULL));
	cr_assert(!pthread_create(&t, NULL, discard, p));
	wait_blocked();
	cr_assert(!pthread_create(&f, NULL, touch_page, p + PAGE));
	wait_faulted();
	start_reader();
	pthread_join(t, NULL);
	pthread_join(f, NULL);
	drain();
	cr_assert_eq(stats.removes, 1);
	cr_assert_eq(stats.faults_missing, 1);
	cr_assert_eq(too_early, 0);
	cr_assert_eq(p[PAGE], 1);
	stop_reader();
}

Test(uffd, d71_closing_frees_callers_that_nobody_reads_and_drops_their_leaves)
{
	pthread_t t;
	void *result;
	char *p;

	need_uffd();
	p = watched(HUGE, UMBRA_UFFD_WP);
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(!pthread_create(&t, NULL, discard, p));
	wait_blocked();
	umbra_uffd_close(uffd);
	uffd = NULL;
	pthread_join(t, &result);
	cr_assert_null(result);
	cr_assert_eq(host_leaf(&h, p), 0);
	sound();
}

Test(uffd, an_event_after_unregister_is_still_announced)
{
	pthread_t t;
	char *p;

	need_uffd();
	p = watched(HUGE, UMBRA_UFFD_WP);
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(!pthread_create(&t, NULL, discard, p));
	wait_blocked();
	cr_assert(!umbra_uffd_unregister(uffd, hva_range_of(p, HUGE)));
	start_reader();
	pthread_join(t, NULL);
	drain();
	cr_assert_eq(stats.removes, 1);
	cr_assert_eq(host_leaf(&h, p), 0);
	stop_reader();
}

static _Atomic bool hold;

/* A caller that takes no signal of ours: only being seen elsewhere can settle it. */
static void *discard_deaf(void *arg)
{
	const struct timespec tick = { .tv_nsec = 1000000 };
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	madvise(arg, PAGE, MADV_DONTNEED);
	while (hold)
		nanosleep(&tick, NULL);
	return NULL;
}

Test(uffd, a_caller_that_blocks_the_signal_settles_when_seen_elsewhere)
{
	pthread_t t;
	char *p;

	need_uffd();
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_WP);
	cr_assert(host_touch(&h, p, HUGE, RW));
	hold = true;
	cr_assert(!pthread_create(&t, NULL, discard_deaf, p));
	for (;;) {
		umbra_uffd_stats(uffd, &stats);
		if (stats.removes)
			break;
		sched_yield();
	}
	drain();
	cr_assert_eq(stats.settled, 1);
	hold = false;
	pthread_join(t, NULL);
	stop_reader();
}

Test(uffd, a_reader_that_is_not_there_is_said)
{
	need_uffd();
	cr_assert_eq(umbra_uffd_drain(uffd), -ESRCH);
}

static int descriptor(void)
{
	const int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		cr_skip_test("no userfaultfd for kernel faults here");
	return fd;
}

Test(uffd, a_passed_descriptor_serves_without_any_right)
{
	struct umbra_uffd_config config = { .own = h.own, .fault = on_fault, .fd = descriptor() };
	char *p;

	if (geteuid() || setresuid(65534, 65534, 65534))
		cr_skip_test("not root: there is no right to give up");
	cr_assert(!umbra_uffd_open(&uffd, h.chain, &config, NULL));
	cr_assert_not(umbra_uffd_features(uffd) & UFFD_FEATURE_EVENT_FORK);
	cr_assert(umbra_uffd_features(uffd) & UFFD_FEATURE_EVENT_REMOVE);
	start_reader();
	p = watched(HUGE, UMBRA_UFFD_MISSING);
	cr_assert(host_touch(&h, p, 8 * PAGE, RW));
	cr_assert(!madvise(p, PAGE, MADV_DONTNEED));
	drain();
	cr_assert_eq(stats.settled, 1);
	cr_assert_eq(host_leaves(&h, p, HUGE), 7);
	stop_reader();
}
