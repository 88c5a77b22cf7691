/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the module's tests share: each test is one process of its own, that ends by falling off its end, by fail() or
 * by skip().
 */
#ifndef TESTS_KMOD_TEST_H
#define TESTS_KMOD_TEST_H

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#include <abi/notifier_ring.h>

#define PAGE 4096UL
#define HUGE (2UL << 20)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* ---- the tests -------------------------------------------------------------------------------- */
struct test {
	const char *name;
	void (*run)(void);
};

extern const struct test callout_tests[], event_tests[], row_tests[], ring_tests[], attach_tests[],
	hostile_tests[], life_tests[], rest_tests[], inject_tests[];

/* Ends the test as failed or skipped; the text says of what. */
_Noreturn void fail(const char *file, int line, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
_Noreturn void skip(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define FAIL(...) fail(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(x)                        \
	do {                            \
		if (!(x))               \
			FAIL("%s", #x); \
	} while (0)
#define EQUAL(a, b)                                                         \
	do {                                                                \
		const unsigned long long a_ = (unsigned long long)(a),      \
					 b_ = (unsigned long long)(b);      \
		if (a_ != b_)                                               \
			FAIL("%s is %#llx, not %s, %#llx", #a, a_, #b, b_); \
	} while (0)
/* @call must fail with @error. */
#define REFUSED(call, error)                                                                \
	do {                                                                                \
		errno = 0;                                                                  \
		if ((call) != -1 || errno != (error))                                       \
			FAIL("%s: %s, not %s", #call, errno ? strerror(errno) : "succeeds", \
			     strerror(error));                                              \
	} while (0)

/* ---- a subscription --------------------------------------------------------------------------- */
struct sub {
	int fd;
	struct umbra_ntf_attach a;
	struct umbra_ntf_state *state;
	struct umbra_ntf_consumer *consumer;
	uint64_t *bitmap;
	struct umbra_ring_consumer ring;
};

int device_open(void);
/* An attachment that is right in every field, to one range. */
struct umbra_ntf_attach attach_to(const struct umbra_ntf_range *range);
/* Maps the shared pages of @fd, whoever attached it. */
void sub_map(struct sub *s, int fd);
/* Opens, attaches to the caller's own [@p, @p + @bytes) with 1 << @order records, maps. */
void subscribe(struct sub *s, const void *p, size_t bytes, uint32_t order);
int set_ranges(const struct sub *s, const struct umbra_ntf_range *ranges, uint32_t nr);
struct umbra_ntf_snapshot now(const struct sub *s);

/* ---- what was recorded ------------------------------------------------------------------------ */
#define SEEN_MAX 4096
struct seen {
	unsigned int nr;
	struct umbra_ntf_record v[SEEN_MAX];
};

/* Everything in the ring; checks that nothing is open or lost, and that starts and ends balance. */
void drain(struct sub *s, struct seen *seen);
/* The first start of exactly this range at or after @from, or -1; its end must follow it. */
int find_pair(const struct seen *seen, unsigned int from, const void *start, size_t bytes);
/* The first start that covers this range, or -1. */
int find_cover(const struct seen *seen, const void *start, size_t bytes);
/* As find_pair(), but there must be one, and it must say @event. */
const struct umbra_ntf_record *want_pair(const struct seen *seen, const void *start, size_t bytes,
					 enum umbra_ntf_event event);
/* Exactly one pair, of this range. */
void want_only(const struct seen *seen, const void *start, size_t bytes);

/* ---- memory and the machine ------------------------------------------------------------------- */
/* Private anonymous memory, 2M aligned, written, by 4K; or by 2M: skips when the kernel gives none. */
char *memory(size_t bytes);
char *huge_memory(size_t bytes);
/* 2M of a memfd, shared and written; @fd: the file. */
char *file_memory(int *fd);
bool is_huge(const void *p);
/* Writes @text to a file of /proc or /sys; false when it cannot. */
bool put(const char *path, const char *text);
/* A number in such a file, -1 when there is none. */
long get(const char *path);
/* Another process runs @run(@arg) and is waited for; what it returns must be 0. */
void by_another(int (*run)(void *arg), void *arg);
pid_t child_of(int (*run)(void *arg), void *arg);
int wait_for(pid_t pid);

#endif
