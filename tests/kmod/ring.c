/* SPDX-License-Identifier: BSD-2-Clause */
/* The shared pages: when counters are published, what an overflow costs, who is woken. */
#include <pthread.h>
#include <time.h>

#include "kmod_test.h"

static struct seen seen;
static struct sub sub;
static _Atomic bool stop;

static void published_before_the_call_returns(void)
{
	char *p = memory(HUGE);
	uint64_t begun;

	subscribe(&sub, p, HUGE, 12);
	begun = sub.state->begun;
	for (unsigned int i = 1; i <= 1000; i++) {
		CHECK(madvise(p, PAGE, MADV_DONTNEED) == 0);
		EQUAL(umbra_ring_load(&sub.state->begun), begun + i);
		EQUAL(umbra_ring_load(&sub.state->ended), begun + i);
		EQUAL(umbra_ring_load(&sub.state->head), 2 * i);
	}
	EQUAL(sub.consumer->tail, 0); /* the ring was not read */
	EQUAL(now(&sub).lost, 0);
}

struct work {
	char *p;
	size_t bytes;
	pthread_t thread;
};

static void *discard(void *arg)
{
	const struct work *w = arg;

	while (!stop)
		madvise(w->p, w->bytes, MADV_DONTNEED);
	return NULL;
}

static void start_work(struct work *w)
{
	CHECK(pthread_create(&w->thread, NULL, discard, w) == 0);
}

static void snapshots_are_consistent(void)
{
	char *p = memory(HUGE);
	struct work w[2] = { { .p = p, .bytes = PAGE }, { .p = p + PAGE, .bytes = PAGE } };
	struct umbra_ntf_snapshot last = { 0 };

	subscribe(&sub, p, HUGE, 4);
	start_work(&w[0]);
	start_work(&w[1]);
	for (unsigned int i = 0; i < 30000 || last.begun < 1000; i++) {
		const struct umbra_ntf_snapshot n = now(&sub);

		/* every callout is one record, written or lost */
		EQUAL(n.head + n.lost, n.begun + n.ended);
		CHECK(n.ended <= n.begun && n.begun - n.ended <= 2);
		CHECK(n.begun >= last.begun && n.ended >= last.ended && n.head >= last.head);
		if (n.begun != n.ended)
			CHECK(n.open_lo >= (uintptr_t)p && n.open_hi <= (uintptr_t)p + 2 * PAGE &&
			      n.open_lo < n.open_hi);
		last = n;
	}
	stop = true;
	pthread_join(w[0].thread, NULL);
	pthread_join(w[1].thread, NULL);
	EQUAL(now(&sub).begun, now(&sub).ended);
}

static pthread_barrier_t together;

/* Both of them discard at the same time, over and over: populated, so that it takes a while. */
static void *discard_together(void *arg)
{
	const struct work *w = arg;

	while (!stop) {
		for (size_t i = 0; i < w->bytes; i += PAGE)
			w->p[i] = 1;
		pthread_barrier_wait(&together);
		madvise(w->p, w->bytes, MADV_DONTNEED);
		pthread_barrier_wait(&together);
	}
	return NULL;
}

static void open_union(void)
{
	const size_t bytes = 8 * HUGE;
	char *p = memory(3 * bytes);
	struct work w[2] = { { .p = p, .bytes = bytes }, { .p = p + 2 * bytes, .bytes = bytes } };
	unsigned int one = 0, both = 0;

	subscribe(&sub, p, 3 * bytes, 4);
	pthread_barrier_init(&together, NULL, 2);
	for (unsigned int i = 0; i < 2; i++)
		CHECK(pthread_create(&w[i].thread, NULL, discard_together, &w[i]) == 0);
	while (!both) {
		const struct umbra_ntf_snapshot n = now(&sub);
		const uint64_t lo = n.open_lo - (uintptr_t)p, hi = n.open_hi - (uintptr_t)p;

		if (n.begun - n.ended == 1) {
			/* one of them, or what is left of both */
			CHECK((lo == 0 && (hi == bytes || hi == 3 * bytes)) ||
			      (lo == 2 * bytes && hi == 3 * bytes));
			one++;
		} else if (n.begun - n.ended == 2) {
			CHECK(lo == 0 && hi == 3 * bytes);
			both++;
		}
	}
	printf("# seen open: one %u times, both %u\n", one, both);
}

static void overflow_raises_lost_and_nothing_else(void)
{
	char *p = memory(HUGE);
	struct umbra_ntf_record rec;
	struct umbra_ntf_snapshot n;

	subscribe(&sub, p, HUGE, 4);
	for (unsigned int i = 0; i < 100; i++)
		madvise(p + i * PAGE, PAGE, MADV_DONTNEED);
	n = now(&sub);
	EQUAL(n.begun, 100);
	EQUAL(n.ended, 100);
	EQUAL(n.head, 16);
	EQUAL(n.lost, 184);
	EQUAL(n.dead, 0);
	/* what was written before is still what it was */
	for (unsigned int i = 0; i < 16; i++) {
		CHECK(umbra_ring_pop(&sub.ring, &rec));
		EQUAL(rec.start, (uintptr_t)p + i / 2 * PAGE);
		EQUAL(rec.kind, i % 2 ? UMBRA_NTF_END : UMBRA_NTF_START);
		EQUAL(rec.begun, i / 2 + 1);
	}
	CHECK(!umbra_ring_pop(&sub.ring, &rec));
	/* and after that it is exact again, round and round */
	for (unsigned int i = 0; i < 100; i++) {
		madvise(p + i * PAGE, PAGE, MADV_DONTNEED);
		CHECK(umbra_ring_pop(&sub.ring, &rec));
		EQUAL(rec.start, (uintptr_t)p + i * PAGE);
		EQUAL(rec.begun, 101 + i);
		CHECK(umbra_ring_pop(&sub.ring, &rec));
		EQUAL(rec.kind, UMBRA_NTF_END);
	}
	EQUAL(now(&sub).lost, 184);
}

static void a_full_ring_is_readable_in_between(void)
{
	char *p = memory(HUGE);
	struct umbra_ntf_record rec;

	subscribe(&sub, p, HUGE, 4);
	for (unsigned int i = 0; i < 8; i++)
		madvise(p + i * PAGE, PAGE, MADV_DONTNEED);
	EQUAL(now(&sub).lost, 0);
	CHECK(umbra_ring_pop(&sub.ring, &rec));
	madvise(p, PAGE, MADV_DONTNEED); /* room for its start alone */
	EQUAL(now(&sub).lost, 1);
	EQUAL(now(&sub).head, 17);
	EQUAL(now(&sub).begun, 9);
	EQUAL(now(&sub).ended, 9);
}

static int ready(const struct sub *s, int ms)
{
	struct pollfd fd = { .fd = s->fd, .events = POLLIN };

	return poll(&fd, 1, ms) == 1 ? fd.revents : 0;
}

static void watermark(void)
{
	char *p = memory(HUGE);
	const struct umbra_ntf_range range = { (uintptr_t)p, (uintptr_t)p + HUGE };
	struct umbra_ntf_attach a = attach_to(&range);
	const int fd = device_open();

	EQUAL(ready(&(struct sub){ .fd = fd }, 0), POLLERR); /* not attached */
	a.watermark = 6;
	CHECK(ioctl(fd, UMBRA_NTF_ATTACH, &a) == 0);
	sub_map(&sub, fd);
	EQUAL(ready(&sub, 0), 0);
	madvise(p, PAGE, MADV_DONTNEED);
	madvise(p, PAGE, MADV_DONTNEED);
	EQUAL(ready(&sub, 0), 0);
	madvise(p, PAGE, MADV_DONTNEED);
	EQUAL(ready(&sub, 0), POLLIN);
	drain(&sub, &seen);
	EQUAL(seen.nr, 6);
	EQUAL(ready(&sub, 0), 0);
}

static _Atomic unsigned int answered;

static void *answer(void *arg)
{
	struct sub *s = arg;
	struct umbra_ntf_record rec;

	while (!stop) {
		if (!(ready(s, 20000) & POLLIN))
			FAIL("a sleeper was not woken");
		while (umbra_ring_pop(&s->ring, &rec))
			answered += rec.kind == UMBRA_NTF_END;
	}
	return NULL;
}

static void no_wake_up_is_lost(void)
{
	char *p = memory(HUGE);
	pthread_t thread;

	subscribe(&sub, p, HUGE, 4);
	CHECK(pthread_create(&thread, NULL, answer, &sub) == 0);
	for (unsigned int i = 1; i <= 2000; i++) {
		stop = i == 2000;
		madvise(p, PAGE, MADV_DONTNEED);
		while (answered < i && !stop)
			sched_yield();
	}
	pthread_join(thread, NULL);
	EQUAL(now(&sub).lost, 0);
}

const struct test ring_tests[] = {
	{ "published_before_the_call_returns", published_before_the_call_returns },
	{ "snapshots_are_consistent", snapshots_are_consistent },
	{ "d67_open_union", open_union },
	{ "d72_overflow_raises_lost_and_nothing_else", overflow_raises_lost_and_nothing_else },
	{ "a_full_ring_is_readable_in_between", a_full_ring_is_readable_in_between },
	{ "watermark", watermark },
	{ "no_wake_up_is_lost", no_wake_up_is_lost },
	{ NULL, NULL },
};
