/* SPDX-License-Identifier: BSD-2-Clause */
/* Joining and leaving a chain whose callbacks sleep: nobody is held up who need not be, and counts balance. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <semaphore.h>

#include <umbra/notifier.h>

TestSuite(join, .timeout = 30);

/* Counts, and stops in its first start until it is let go. */
struct sleeper {
	struct umbra_notifier n;
	_Atomic int starts, ends;
	_Atomic bool negative, asleep;
	bool sleeps;
	sem_t go;
};

static int s_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct sleeper *s = (struct sleeper *)n;

	(void)r;
	if (s->sleeps) {
		s->sleeps = false;
		s->asleep = true;
		sem_wait(&s->go);
	}
	s->starts++;
	return 0;
}

static void s_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct sleeper *s = (struct sleeper *)n;

	(void)r;
	if (++s->ends > s->starts)
		s->negative = true;
}

static const struct umbra_notifier_ops ops = {
	.invalidate_range_start = s_start,
	.invalidate_range_end = s_end,
};

static struct umbra_chain *chain;
static struct sleeper s = { .n = { .ops = &ops, .name = "sleeper" }, .sleeps = true };
static struct umbra_os os;
static _Atomic int relaxed, waits;

static void relax(void)
{
	relaxed++;
	sched_yield();
}

/* Only now may the callback end: it has to wake who waits. */
static void wait_for_word(uint32_t *word, uint32_t value)
{
	waits++;
	sem_post(&s.go);
	umbra_os_posix.wait(word, value);
}

static void create(void)
{
	os = umbra_os_posix;
	os.relax = relax;
	os.wait = wait_for_word;
	sem_init(&s.go, 0, 0);
	cr_assert(!umbra_chain_create(&chain, &os));
}

static struct umbra_range range(uint64_t page, enum umbra_source source)
{
	return (struct umbra_range){
		.hull = { { page << 12 }, { (page + 1) << 12 } },
		.flags = UMBRA_RANGE_BLOCKABLE,
		.source = source,
	};
}

static void *join_chain(void *arg)
{
	(void)arg;
	return (void *)(intptr_t)umbra_chain_register(chain, &s.n);
}

static void let_go(pthread_t thread)
{
	void *rc;

	sem_post(&s.go);
	pthread_join(thread, &rc);
	cr_assert_null(rc);
}

static pthread_t join_asleep(void)
{
	pthread_t thread;

	cr_assert(!pthread_create(&thread, NULL, join_chain, NULL));
	while (!s.asleep)
		sched_yield();
	return thread;
}

Test(join, invalidations_go_on_while_a_consumer_that_joins_sleeps)
{
	const struct umbra_range open = range(1, UMBRA_SOURCE_TEST);
	const struct umbra_range more = range(2, UMBRA_SOURCE_TEST);
	pthread_t thread;

	create();
	umbra_invalidate_start(chain, &open);
	thread = join_asleep();
	/* begins and ends while it is asleep in the start of the other: each in its own time */
	cr_assert(!umbra_invalidate_start(chain, &more));
	cr_assert_eq(s.starts, 1);
	umbra_invalidate_end(chain, &more);
	umbra_invalidate_end(chain, &open);
	let_go(thread);
	cr_assert_eq(s.starts, 2);
	cr_assert_eq(s.ends, 2);
	cr_assert_not(s.negative);
	umbra_chain_unregister(chain, &s.n);
	umbra_chain_destroy(chain);
}

Test(join, an_end_before_its_start_was_told_is_told_after_it)
{
	struct umbra_range open[6];
	pthread_t thread;

	create();
	for (unsigned int i = 0; i < 6; i++) {
		open[i] = range(i, i % 2 ? UMBRA_SOURCE_TEST : UMBRA_SOURCE_OWN);
		umbra_invalidate_start(chain, &open[i]);
	}
	thread = join_asleep();
	for (unsigned int i = 0; i < 5; i++)
		umbra_invalidate_end(chain, &open[i]);
	cr_assert_eq(s.ends, 0);
	let_go(thread);
	cr_assert_eq(s.starts, 6, "what was refused until then is dropped all the same");
	cr_assert_eq(s.ends, 5);
	umbra_invalidate_end(chain, &open[5]);
	cr_assert_eq(s.ends, 6);
	cr_assert_not(s.negative);
	umbra_chain_unregister(chain, &s.n);
	umbra_chain_destroy(chain);
}

static void *invalidate(void *arg)
{
	const struct umbra_range r = range(1, UMBRA_SOURCE_TEST);

	(void)arg;
	umbra_invalidate_start(chain, &r);
	return NULL;
}

Test(join, who_leaves_sleeps_until_the_callback_is_over)
{
	const struct umbra_range r = range(1, UMBRA_SOURCE_TEST);
	pthread_t thread;

	create();
	cr_assert(!umbra_chain_register(chain, &s.n));
	cr_assert(!pthread_create(&thread, NULL, invalidate, NULL));
	while (!s.asleep)
		sched_yield();
	umbra_chain_unregister(chain, &s.n);
	cr_assert_eq(s.starts, 1);
	cr_assert_geq(waits, 1);
	cr_assert_eq(relaxed, 0);
	pthread_join(thread, NULL);
	umbra_invalidate_end(chain, &r);
	umbra_chain_destroy(chain);
}

Test(join, without_a_way_to_sleep_who_leaves_looks_again_and_again)
{
	const struct umbra_range r = range(1, UMBRA_SOURCE_TEST);
	pthread_t thread;

	create();
	os.wait = NULL;
	os.wake = NULL;
	cr_assert(!umbra_chain_register(chain, &s.n));
	cr_assert(!pthread_create(&thread, NULL, invalidate, NULL));
	while (!s.asleep)
		sched_yield();
	sem_post(&s.go);
	umbra_chain_unregister(chain, &s.n);
	cr_assert_eq(s.starts, 1);
	pthread_join(thread, NULL);
	umbra_invalidate_end(chain, &r);
	umbra_chain_destroy(chain);
}
