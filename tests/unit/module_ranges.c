/* SPDX-License-Identifier: BSD-2-Clause */
/* Other ranges for the module's source, while the kernel refuses them: what is waited for, how, and for how long. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shadow/events/module.h"
#include "tests/support/fakehost.h"

#define RECORDS 16U

static struct umbra_ntf_record records[RECORDS];
static struct umbra_ntf_state state;
static struct umbra_ntf_consumer consumer;
static uint64_t bitmap[1];
static struct fake *f;
static struct umbra_module *m;

/* The kernel's side of UMBRA_NTF_RANGES: EBUSY while an invalidation is open, or whatever else @answer is. */
static atomic_bool open_somewhere;
static atomic_int answer;
static atomic_uint asked;

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	long arg, rc;

	va_start(ap, request);
	arg = va_arg(ap, long);
	va_end(ap);
	if (request != UMBRA_NTF_RANGES) {
		rc = syscall(SYS_ioctl, fd, request, arg);
		return (int)rc;
	}
	asked++;
	errno = open_somewhere ? EBUSY : answer;
	return errno ? -1 : 0;
}

static void begin(void)
{
	struct umbra_ring_consumer ring;
	struct hva_range all;

	state.bitmap_bits = 64;
	ring = (struct umbra_ring_consumer){
		.records = records, .mask = RECORDS - 1, .state = &state, .consumer = &consumer
	};
	f = fake_create(NULL);
	all = fake_range(0, 8);
	cr_assert_eq(module_over(&m, f->chain, &ring, bitmap, &all, 1, UMBRA_PAGE_SHIFT), 0);
}

static void end(void)
{
	umbra_module_close(m);
	fake_destroy(f);
}

/* The thread whose invalidation is open needs a while, and then a CPU. */
static void *ends_later(void *arg)
{
	const struct timespec while_open = { 0, 30 * 1000 * 1000 };

	(void)arg;
	nanosleep(&while_open, NULL);
	open_somewhere = false;
	return NULL;
}

Test(module_ranges, an_open_invalidation_is_waited_for_and_not_by_spinning)
{
	const struct hva_range other = fake_range(16, 4);
	pthread_t t;

	begin();
	open_somewhere = true;
	cr_assert_eq(pthread_create(&t, NULL, ends_later, NULL), 0);
	cr_expect_eq(umbra_module_ranges(m, &other, 1), 0);
	pthread_join(t, NULL);
	/* 16 tries that yield, then pauses that grow to a millisecond: the most is what a second has room for */
	cr_expect_lt(asked, 1100, "asked %u times", asked);
	umbra_module_young(m, fake_range(18, 1));
	cr_expect_eq(bitmap[0], 1U << 2, "bits count from the new range");
	end();
}

Test(module_ranges, what_never_ends_is_an_error_after_a_while)
{
	const struct hva_range other = fake_range(16, 4);

	begin();
	open_somewhere = true;
	cr_expect_eq(umbra_module_ranges(m, &other, 1), -EBUSY);
	cr_expect_gt(asked, 16U);
	cr_expect_lt(asked, 1100, "asked %u times", asked);
	umbra_module_young(m, fake_range(2, 1));
	cr_expect_eq(bitmap[0], 1U << 2, "the old range holds");
	end();
}

static void *marks_young(void *arg)
{
	atomic_bool *done = arg;

	umbra_module_young(m, fake_range(2, 1));
	*done = true;
	open_somewhere = false;
	return NULL;
}

/* The reading thread does that, and whoever has an invalidation open may be waiting for what it reads. */
Test(module_ranges, pages_are_marked_young_while_it_waits)
{
	const struct hva_range other = fake_range(16, 4);
	atomic_bool done = false;
	pthread_t t;

	begin();
	open_somewhere = true;
	cr_assert_eq(pthread_create(&t, NULL, marks_young, &done), 0);
	cr_expect_eq(umbra_module_ranges(m, &other, 1), 0, "ended by who could mark its page");
	pthread_join(t, NULL);
	cr_expect(done);
	end();
}

Test(module_ranges, another_error_is_not_waited_for)
{
	const struct hva_range other = fake_range(16, 4);

	begin();
	answer = ENOSPC;
	cr_expect_eq(umbra_module_ranges(m, &other, 1), -ENOSPC);
	cr_expect_eq(asked, 1);
	end();
}

Test(module_ranges, a_signal_is_no_reason_to_give_up)
{
	const struct hva_range other = fake_range(16, 4);

	begin();
	answer = EINTR;
	cr_expect_eq(umbra_module_ranges(m, &other, 1), -EBUSY,
		     "one that comes without an end is one");
	cr_expect_gt(asked, 1);
	end();
}
