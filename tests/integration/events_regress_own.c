/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls that once left an old translation behind: each test is one of those. */
#include <criterion/criterion.h>
#include <sys/wait.h>
#include "tests/integration/events_host.h"

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static struct host h;

static void fini(void)
{
	host_destroy(&h);
}

static void init(void)
{
	host_create(&h);
}

TestSuite(own_regress, .init = init, .fini = fini, .timeout = 8);

#define sound() cr_assert(host_sound(&h))

/* A forked child that lives until the tables were looked at: its pages stay shared. */
static void fork_is_sound(void)
{
	int pipes[2];
	pid_t pid;
	char c;

	cr_assert(!pipe(pipes));
	pid = umbra_fork(h.own);
	if (!pid) {
		close(pipes[1]);
		_exit(read(pipes[0], &c, 1) != 0);
	}
	cr_assert_gt(pid, 0);
	sound();
	close(pipes[0]);
	close(pipes[1]);
	cr_assert_eq(waitpid(pid, NULL, 0), pid);
}

static char *small(size_t bytes)
{
	char *p = host_anon(&h, bytes);

	cr_assert(p);
	cr_assert(!madvise(p, bytes, MADV_NOHUGEPAGE));
	return p;
}

Test(own_regress, a_region_shrunk_in_place_is_still_forked)
{
	char *p = small(2 * HUGE);
	hva_t now;

	cr_assert(!umbra_mremap(h.own, hva_range_of(p, 2 * HUGE), HUGE, 0, (hva_t){ 0 }, &now));
	cr_assert(host_touch(&h, p, 64 * PAGE, RW));
	fork_is_sound();
	cr_assert_eq(host_leaves(&h, p, 64 * PAGE), 0);
	cr_assert(!umbra_region_remove(h.own, hva_range_of(p, HUGE)));
}

Test(own_regress, a_region_grown_in_place_is_forked_to_its_end)
{
	char *p = small(2 * HUGE);
	hva_t now;

	cr_assert(!umbra_munmap(h.own, hva_range_of(p + HUGE, HUGE)));
	cr_assert(!umbra_mremap(h.own, hva_range_of(p, HUGE), 2 * HUGE, 0, (hva_t){ 0 }, &now));
	cr_assert_eq(now.v, (uintptr_t)p);
	cr_assert(host_touch(&h, p + HUGE - 8 * PAGE, 16 * PAGE, RW));
	fork_is_sound();
	cr_assert_eq(host_leaves(&h, p, 2 * HUGE), 0);
	cr_assert(!umbra_region_remove(h.own, hva_range_of(p, 2 * HUGE)));
}

Test(own_regress, what_dontunmap_leaves_is_forked_and_so_is_what_it_moved)
{
	char *p = small(HUGE), *to = host_reserve(HUGE);
	hva_t now;

	host_slot(&h, to, HUGE);
	cr_assert(host_touch(&h, p, 64 * PAGE, RW));
	cr_assert(!umbra_mremap(h.own, hva_range_of(p, HUGE), HUGE,
				MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
				(hva_t){ (uintptr_t)to }, &now));
	cr_assert(host_touch(&h, p, 64 * PAGE, RW));
	cr_assert(host_touch(&h, to, 64 * PAGE, RW));
	fork_is_sound();
	cr_assert_eq(host_leaves(&h, p, HUGE) + host_leaves(&h, to, HUGE), 0);
}

/* ---- a region moves while another call waits in its start ------------------------------------ */

static _Atomic bool inside, go;
static enum umbra_cause slow_cause;

/* Stands before the MMU's chain: while it waits, the MMU has not heard of the call yet. */
static int slow_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	if (r->cause == slow_cause && !atomic_exchange(&inside, true))
		while (!go)
			usleep(100);
	return umbra_invalidate_start(h.chain, r);
}

static void slow_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	umbra_invalidate_end(h.chain, r);
}

static const struct umbra_notifier_ops slow_ops = {
	.invalidate_range_start = slow_start,
	.invalidate_range_end = slow_end,
};
static struct umbra_notifier slow = { .ops = &slow_ops, .name = "slow" };

static void *fork_now(void *arg)
{
	(void)arg;
	fork_is_sound();
	return NULL;
}

static void *punch_now(void *arg)
{
	return umbra_fallocate(h.own, *(int *)arg, 3, 0, HUGE) ? &h : NULL;
}

/* Lets @call wait in its start, moves @p, touches it at the new place, and lets the call go on. */
static void moved_during(void *(*call)(void *), void *arg, char *p, int fd, enum umbra_cause cause)
{
	const struct umbra_region region = {
		.hva = hva_range_of(p, HUGE),
		.fd = fd,
		.is_private = fd < 0,
	};
	struct umbra_own *plain = h.own;
	char *to = host_reserve(HUGE);
	struct umbra_chain *front;
	pthread_t thread;
	void *result;
	hva_t now;

	cr_assert(!umbra_chain_create(&front, &umbra_os_posix));
	cr_assert(!umbra_chain_register(front, &slow));
	cr_assert(!umbra_own_create(&h.own, front, h.map));
	cr_assert(!umbra_region_add(h.own, &region));
	host_slot(&h, to, HUGE);
	cr_assert(host_touch(&h, p, 8 * PAGE, RW));
	slow_cause = cause;
	cr_assert(!pthread_create(&thread, NULL, call, arg));
	while (!inside)
		usleep(100);
	cr_assert(!umbra_mremap(h.own, hva_range_of(p, HUGE), HUGE, MREMAP_MAYMOVE | MREMAP_FIXED,
				(hva_t){ (uintptr_t)to }, &now));
	cr_assert(host_touch(&h, to, 8 * PAGE, RW));
	go = true;
	cr_assert(!pthread_join(thread, &result));
	cr_assert_null(result);
	sound();
	cr_assert_eq(host_leaf(&h, to), 0);
	umbra_own_destroy(h.own);
	umbra_chain_unregister(front, &slow);
	umbra_chain_destroy(front);
	h.own = plain;
}

Test(own_regress, a_fork_planned_before_a_move_covers_the_new_place)
{
	moved_during(fork_now, NULL, small(HUGE), -1, UMBRA_CAUSE_FORK);
}

Test(own_regress, a_punch_planned_before_a_move_covers_the_new_place)
{
	int fd;
	char *p = host_memfd(&h, HUGE, &fd);

	moved_during(punch_now, &fd, p, fd, UMBRA_CAUSE_REMOVE);
	close(fd);
}
