/* SPDX-License-Identifier: BSD-2-Clause */
/* Where the kernel, or a sandbox, has not what is asked for: older ways are taken, and errors leave nothing behind. */
#include <criterion/criterion.h>
#include <linux/userfaultfd.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "events_host.h"

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static struct host h;

/* In a child: what fails is the line that is told. */
#define CHECK(x)                         \
	do {                             \
		if (!(x))                \
			return __LINE__; \
	} while (0)

/* A rule of a filter: system call @nr with @value as its argument @arg (-1: any) answers @err. */
struct refusal {
	int nr, arg;
	uint64_t value;
	int err;
};

static int with_refusals(const struct refusal *v, size_t n, int (*fn)(void))
{
	int status;
	const pid_t pid = fork();

	if (!pid) {
		scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
		int rc = 0;

		for (size_t i = 0; !rc && i < n; i++)
			rc = v[i].arg < 0
				     ? seccomp_rule_add(filter, SCMP_ACT_ERRNO((uint16_t)v[i].err),
							v[i].nr, 0)
				     : seccomp_rule_add(filter, SCMP_ACT_ERRNO((uint16_t)v[i].err),
							v[i].nr, 1,
							SCMP_CMP((unsigned int)v[i].arg,
								 SCMP_CMP_EQ, v[i].value, 0));
		if (rc || seccomp_load(filter))
			_exit(255);
		rc = fn();
		if (rc)
			fprintf(stderr, "line %d\n", rc);
		_exit(rc != 0);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static const struct refusal no_scan[] = {
	{ SCMP_SYS(ioctl), 1, UMBRA_PAGEMAP_SCAN, ENOTTY },
	{ SCMP_SYS(ioctl), 1, UMBRA_PROCMAP_QUERY, ENOTTY },
};

/* ---- before Linux 6.7 and 6.11 ----------------------------------------------------------------- */

static int advise(const char *p, size_t bytes, int advice)
{
	return umbra_madvise(h.own, hva_range_of(p, bytes), advice);
}

static int without_scan(void)
{
	static const int advices[] = { MADV_COLD,          MADV_FREE,           MADV_HUGEPAGE,
				       MADV_NOHUGEPAGE,    MADV_POPULATE_WRITE, MADV_COLLAPSE,
				       MADV_POPULATE_READ, MADV_DONTNEED };
	char *p, *file;
	int fd;

	host_create(&h);
	CHECK(!umbra_hostmap_has_scan(h.map));
	p = host_anon(&h, 4 * HUGE);
	file = host_memfd(&h, HUGE, &fd);
	host_make_thp(&h, p); /* whether it is one nobody can see */
	memset(p, 1, 4 * HUGE);
	CHECK(host_touch(&h, p, 4 * PAGE, RW));
	CHECK(host_leaf(&h, p) == UMBRA_LEVEL_4K);
	CHECK(host_touch(&h, file, 4 * PAGE, UMBRA_ACCESS_READ));
	CHECK(host_touch(&h, file, 4 * PAGE, RW));
	for (size_t i = 0; i < sizeof(advices) / sizeof(advices[0]); i++) {
		/* what it answers is the kernel's business; what is left is right */
		advise(p + PAGE, HUGE + PAGE, advices[i]);
		CHECK(host_sound(&h));
		CHECK(host_touch(&h, p, 4 * PAGE, RW));
	}
	CHECK(!umbra_mprotect(h.own, hva_range_of(p, PAGE), PROT_READ));
	CHECK(host_fault(&h, p, UMBRA_ACCESS_WRITE) == UMBRA_FAULT_DENIED);
	CHECK(host_fault(&h, p, UMBRA_ACCESS_READ) == UMBRA_FAULT_INSTALLED);
	CHECK(!host_writable(&h, p));
	CHECK(!umbra_munmap(h.own, hva_range_of(p + 2 * PAGE, PAGE)));
	CHECK(host_fault(&h, p + 2 * PAGE, UMBRA_ACCESS_READ) == UMBRA_FAULT_BAD_HOST);
	CHECK(host_sound(&h));
	host_destroy(&h);
	return 0;
}

Test(older, without_pagemap_scan_and_procmap_query_leaves_are_4k_and_right, .timeout = 60)
{
	cr_assert_eq(with_refusals(no_scan, 2, without_scan), 0);
}

Test(older, the_tables_of_a_process_by_its_number_are_the_same)
{
	struct umbra_hostmap *mine, *numbered;
	struct umbra_page a, b;
	const hva_t hva = { (uintptr_t)&h };

	h.next_slot = 1;
	cr_assert_eq(umbra_hostmap_open(&mine, 0), 0);
	cr_assert_eq(umbra_hostmap_open(&numbered, getpid()), 0);
	cr_assert_eq(umbra_hostmap_has_scan(mine), umbra_hostmap_has_scan(numbered));
	cr_assert_eq(umbra_hostmap_query(mine, hva, &a), 0);
	cr_assert_eq(umbra_hostmap_query(numbered, hva, &b), 0);
	cr_assert_eq(a.flags, b.flags);
	cr_assert_eq(a.host_pfn, b.host_pfn);
	umbra_hostmap_close(numbered);
	umbra_hostmap_close(mine);
	umbra_hostmap_close(NULL);
	cr_assert_eq(umbra_hostmap_open(&mine, 0x3fffffff), -ENOENT);
}

/* ---- a populate that is interrupted -------------------------------------------------------------- */

static int without_populate(void)
{
	char *p;

	host_create(&h);
	p = host_anon(&h, HUGE);
	CHECK(host_fault(&h, p, UMBRA_ACCESS_WRITE) == UMBRA_FAULT_RETRY);
	CHECK(!host_leaf(&h, p));
	CHECK(host_sound(&h));
	host_destroy(&h);
	return 0;
}

Test(older, a_fault_whose_populate_is_interrupted_is_asked_again)
{
	static const struct refusal r = { SCMP_SYS(madvise), 2, MADV_POPULATE_WRITE, EINTR };

	cr_assert_eq(with_refusals(&r, 1, without_populate), 0);
}

/* ---- userfaultfd -------------------------------------------------------------------------------- */

static int open_uffd(int fd, struct umbra_uffd **u, struct umbra_uffd_tried *tried)
{
	const struct umbra_uffd_config config = { .fd = fd, .own = h.own };

	return umbra_uffd_open(u, h.chain, &config, tried);
}

static int by_system_call(void)
{
	struct umbra_uffd_tried tried;
	struct umbra_uffd *u;

	host_create(&h);
	CHECK(!open_uffd(-1, &u, &tried));
	CHECK(tried.passed_fd == 1 && tried.dev < 0 && !tried.syscall);
	umbra_uffd_close(u);
	host_destroy(&h);
	return 0;
}

static int by_no_way(void)
{
	const int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct umbra_uffd_tried tried = { 7, 7, 7 };
	struct umbra_uffd *u;

	host_create(&h);
	CHECK(open_uffd(fd, &u, &tried) < 0);
	CHECK(tried.passed_fd < 0 && tried.dev < 0 && tried.syscall < 0);
	CHECK(fcntl(fd, F_GETFD) >= 0);
	CHECK(open_uffd(10000, &u, NULL) < 0); /* no descriptor at all */
	umbra_own_destroy(NULL);
	host_destroy(&h);
	return 0;
}

static int without_fork_events(void)
{
	struct umbra_uffd *u;

	host_create(&h);
	CHECK(!open_uffd(-1, &u, NULL) && u);
	umbra_uffd_close(u);
	host_destroy(&h);
	return 0;
}

Test(older, a_userfaultfd_is_had_by_whichever_way_there_is)
{
	static const struct refusal no_device = { SCMP_SYS(ioctl), 1, USERFAULTFD_IOC_NEW, EPERM };
	static const struct refusal no_handshake = { SCMP_SYS(ioctl), 1, UFFDIO_API, EINVAL };
	static const struct refusal nothing[] = {
		{ SCMP_SYS(ioctl), 1, USERFAULTFD_IOC_NEW, EPERM },
		{ SCMP_SYS(ioctl), 1, UFFDIO_API, EPERM },
	};

	if (geteuid())
		cr_skip_test("not root: this host gives no userfaultfd for kernel faults");
	cr_expect_eq(with_refusals(NULL, 0, without_fork_events), 0);
	cr_expect_eq(with_refusals(&no_device, 1, by_system_call), 0);
	cr_expect_eq(with_refusals(&no_handshake, 1, by_no_way), 0);
	cr_expect_eq(with_refusals(nothing, 2, by_no_way), 0);
}

/* ---- descriptors -------------------------------------------------------------------------------- */

static int lowest_free(void)
{
	const int fd = dup(0);

	close(fd);
	return fd;
}

/* How many descriptors beyond those open are allowed. */
static void allow(int more)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = (rlim_t)(lowest_free() + more);
	setrlimit(RLIMIT_NOFILE, &limit);
}

static int with_few_descriptors(void)
{
	struct umbra_hostmap *map;
	struct umbra_uffd *u;
	int rc = -EMFILE, free_fd, n;

	host_create(&h);
	free_fd = lowest_free();
	for (n = 0; rc; n++) {
		allow(n);
		rc = umbra_hostmap_open(&map, 0);
		CHECK(!rc || rc == -EMFILE);
		CHECK(n < 20);
		allow(20);
		CHECK(!rc || lowest_free() == free_fd); /* nothing is left open */
	}
	CHECK(n > 2);
	umbra_hostmap_close(map);
	rc = -EMFILE;
	for (n = 0; rc; n++) {
		allow(n);
		rc = open_uffd(-1, &u, NULL);
		CHECK(!rc || rc == -EMFILE);
		CHECK(n < 20);
		allow(20);
		CHECK(!rc || lowest_free() == free_fd);
	}
	CHECK(n > 2);
	umbra_uffd_close(u);
	host_destroy(&h);
	return 0;
}

Test(older, with_too_few_descriptors_nothing_is_left_open)
{
	if (geteuid())
		cr_skip_test("not root: this host gives no userfaultfd for kernel faults");
	cr_assert_eq(with_refusals(NULL, 0, with_few_descriptors), 0);
}
