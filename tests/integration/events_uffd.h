/* SPDX-License-Identifier: BSD-2-Clause */
/* What tests of the userfaultfd reader stand on: a host, a userfaultfd, its reader, memory that is watched. */
#ifndef TESTS_INTEGRATION_EVENTS_UFFD_H
#define TESTS_INTEGRATION_EVENTS_UFFD_H

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

static char *watched(size_t bytes, uint32_t modes)
{
	char *p = host_anon(&h, bytes);

	cr_assert(p);
	madvise(p, bytes, MADV_NOHUGEPAGE);
	cr_assert(!umbra_uffd_register(uffd, hva_range_of(p, bytes), modes));
	return p;
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
