/* SPDX-License-Identifier: BSD-2-Clause */
/* What tests of the userfaultfd reader stand on: a host, a userfaultfd, its reader, memory that is watched. */
#ifndef TESTS_INTEGRATION_EVENTS_UFFD_H
#define TESTS_INTEGRATION_EVENTS_UFFD_H

#include <sched.h>
#include <time.h>
#include <criterion/criterion.h>
#include "tests/integration/events_host.h"

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static struct host h;
static struct umbra_uffd *uffd;
static pthread_t reader;
static struct umbra_uffd_stats stats;
static char source[UMBRA_PAGE_SIZE]; /* what missing pages are filled with */

static void *read_events(void *arg)
{
	(void)arg;
	umbra_uffd_run(uffd);
	return NULL;
}

static void on_fault(void *ctx, struct umbra_uffd *u, hva_t hva, uint32_t flags, uint32_t tid)
{
	const struct hva_range page = { { hva.v & ~(PAGE - 1) }, { (hva.v & ~(PAGE - 1)) + PAGE } };

	(void)ctx;
	(void)tid;
	if (flags & UFFD_PAGEFAULT_FLAG_WP)
		umbra_uffd_writeprotect(u, page, false);
	else if (flags & UFFD_PAGEFAULT_FLAG_MINOR)
		umbra_uffd_continue(u, page, NULL);
	else
		umbra_uffd_copy(u, page.start, source, PAGE, NULL);
}

static bool open_uffd(void)
{
	const struct umbra_uffd_config config = { .fd = -1, .own = h.own, .fault = on_fault };
	struct umbra_uffd_tried tried;
	int err = umbra_uffd_open(&uffd, h.chain, &config, &tried);

	if (err)
		fprintf(stderr, "userfaultfd: %d %d %d\n", tried.passed_fd, tried.dev,
			tried.syscall);
	return !err;
}

#define need_uffd()                                                            \
	do {                                                                   \
		if (!open_uffd())                                              \
			cr_skip_test("no userfaultfd for kernel faults here"); \
	} while (0)

static void start_reader(void)
{
	cr_assert(!pthread_create(&reader, NULL, read_events, NULL));
	while (umbra_uffd_drain(uffd)) /* until it runs */
		sched_yield();
}

static void stop_reader(void)
{
	umbra_uffd_stop(uffd);
	pthread_join(reader, NULL);
}

static void init(void)
{
	host_create(&h);
}

static void fini(void)
{
	umbra_uffd_close(uffd);
	cr_assert(host_sound(&h));
	host_destroy(&h);
}

static inline char *watched(size_t bytes, uint32_t modes)
{
	char *p = host_anon(&h, bytes);

	cr_assert(p);
	madvise(p, bytes, MADV_NOHUGEPAGE);
	cr_assert(!umbra_uffd_register(uffd, hva_range_of(p, bytes), modes));
	return p;
}

/* Watched, and mapped by the guest. */
static inline char *mapped(size_t bytes)
{
	char *p = watched(bytes, UMBRA_UFFD_WP);

	cr_assert(host_touch(&h, p, bytes, RW));
	return p;
}

/* A thread that discards: @r, or as an own call a batch of @n. */
struct caller {
	pthread_t thread;
	struct hva_range r;
	const struct hva_range *v;
	uint32_t n;
	bool own;
	_Atomic int tid;
	int result;
};

static inline void *call(void *arg)
{
	struct caller *c = arg;

	c->tid = gettid();
	if (c->n)
		c->result = umbra_madvise_batch(h.own, c->v, c->n, MADV_DONTNEED, NULL);
	else if (c->own)
		c->result = umbra_madvise(h.own, c->r, MADV_DONTNEED);
	else
		c->result = madvise((void *)(uintptr_t)c->r.start.v, c->r.end.v - c->r.start.v,
				    MADV_DONTNEED);
	return NULL;
}

/* Until the thread is in madvise, process_madvise or mremap: it waits for its event to be read then, as nobody reads. */
static inline void wait_in_call(struct caller *c)
{
	const struct timespec tick = { .tv_nsec = 1000000 };
	char path[64], word[32];

	while (!c->tid)
		sched_yield();
	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", c->tid);
	while (!host_read(path, word, sizeof(word)) ||
	       (strcmp(word, "28") && strcmp(word, "440") && strcmp(word, "25")))
		nanosleep(&tick, NULL);
}

static inline void begin_batch(struct caller *c, const struct hva_range *v, uint32_t n)
{
	*c = (struct caller){ .v = v, .n = n, .own = true };
	cr_assert(!pthread_create(&c->thread, NULL, call, c));
	wait_in_call(c);
}

static inline void begin(struct caller *c, bool own, char *p, size_t pages)
{
	*c = (struct caller){ .r = hva_range_of(p, pages * PAGE), .own = own };
	cr_assert(!pthread_create(&c->thread, NULL, call, c));
	wait_in_call(c);
}

/* Fails with its REMOVE raised: a mapping ends in the middle of the range. */
static inline int discard_over_the_end(char *p)
{
	return umbra_madvise(h.own, hva_range_of(p + HUGE - PAGE, 2 * PAGE), MADV_DONTNEED);
}

/* All events announced, all REMOVEs settled, and the tables right. */
static void drain(void)
{
	cr_assert(!umbra_uffd_drain(uffd));
	umbra_uffd_stats(uffd, &stats);
	cr_assert_eq(stats.unsettled, 0);
	cr_assert(host_sound(&h));
}

#endif
