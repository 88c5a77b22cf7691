/* SPDX-License-Identifier: BSD-2-Clause */
/* What is said of a callout of the kernel: who, whether it could have waited, and whether anybody else had told of it. */
#include <criterion/criterion.h>
#include <errno.h>
#include <time.h>

#include "shadow/events/module.h"
#include "tests/support/fakehost.h"

#define RECORDS 256U
#define ME      77 /* the thread that makes own calls */
#define OWNER   (UMBRA_NTF_BLOCKABLE | UMBRA_NTF_OWNER)

static struct umbra_ntf_record records[RECORDS];
static struct umbra_ntf_state state;
static struct umbra_ntf_consumer consumer;
static struct umbra_ring_producer kernel;
static uint64_t bitmap[1];
static struct fake *f;
static struct umbra_module *m;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static void told(struct hva_range r, uint64_t time, uint16_t flags, int32_t who)
{
	struct umbra_ntf_record rec = {
		.start = r.start.v,
		.end = r.end.v,
		.time_ns = time,
		.begun = ++state.begun,
		.who = who,
		.kind = UMBRA_NTF_START,
		.event = UMBRA_NTF_CLEAR,
		.flags = flags,
	};

	umbra_ring_push(&kernel, &rec);
	state.ended++;
	rec.kind = UMBRA_NTF_END;
	umbra_ring_push(&kernel, &rec);
}

/* The newest invalidation of @page that the module told of. */
static struct umbra_event last(uint64_t page)
{
	struct umbra_event e[16];
	const unsigned int n = umbra_history(f->mmu, fake_range(page, 1), e, 16);

	for (unsigned int i = 0; i < n; i++) {
		if (e[i].source == UMBRA_SOURCE_MODULE)
			return e[i];
	}
	cr_assert_fail("the module told nothing of page %lu", page);
	return e[0];
}

static bool is_direct(uint64_t page)
{
	umbra_module_drain(m);
	return last(page).flags & UMBRA_RANGE_DIRECT;
}

static uint64_t directs(void)
{
	struct umbra_module_stats stats;

	umbra_module_stats(m, &stats);
	return stats.direct;
}

static struct umbra_range announced(enum umbra_source source, uint64_t page, uint64_t pages)
{
	return (struct umbra_range){
		.hull = fake_range(page, pages),
		.flags = UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_FORCED,
		.cause = UMBRA_CAUSE_DISCARD,
		.source = source,
		.who = source == UMBRA_SOURCE_OWN ? ME : 0,
	};
}

static void begin(void)
{
	const struct umbra_ring_consumer ring = {
		.records = records, .mask = RECORDS - 1, .state = &state, .consumer = &consumer
	};
	struct hva_range all;

	state.bitmap_bits = 64;
	kernel = (struct umbra_ring_producer){
		.records = records, .mask = RECORDS - 1, .state = &state, .consumer = &consumer
	};
	f = fake_create(NULL);
	all = fake_range(0, f->npages);
	cr_assert_eq(module_over(&m, f->chain, &ring, bitmap, &all, 1, UMBRA_PAGE_SHIFT), 0);
}

static void end(void)
{
	umbra_module_close(m);
	fake_destroy(f);
}

Test(module_direct, what_an_own_call_does_is_direct)
{
	struct umbra_range r;

	begin();
	r = announced(UMBRA_SOURCE_OWN, 4, 2);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	told(fake_range(4, 2), now_ns(), OWNER, ME);
	cr_expect(is_direct(4), "drained while the call is under way");
	told(fake_range(5, 1), now_ns(), OWNER, ME);
	umbra_invalidate_end(f->chain, &r);
	cr_expect(is_direct(5), "drained when it is over");
	cr_expect_eq(directs(), 2);
	cr_expect_eq(last(5).who, ME);
	end();
}

Test(module_direct, more_than_was_announced_is_collateral)
{
	struct umbra_range r;

	begin();
	r = announced(UMBRA_SOURCE_OWN, 5, 1);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	told(fake_range(5, 1), now_ns(), OWNER, ME);
	told(fake_range(0, 16), now_ns(), OWNER, ME); /* the split of the large page around it */
	umbra_module_drain(m);
	cr_expect_not(last(5).flags & UMBRA_RANGE_DIRECT);
	cr_expect_eq(directs(), 1);
	umbra_invalidate_end(f->chain, &r);
	end();
}

Test(module_direct, another_thread_and_another_time_are_collateral)
{
	struct umbra_range r;
	uint64_t before, after;

	begin();
	before = now_ns();
	r = announced(UMBRA_SOURCE_OWN, 4, 1);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	told(fake_range(4, 1), now_ns(), OWNER, ME + 1);
	cr_expect_not(is_direct(4), "not the thread that called");
	told(fake_range(4, 1), before - 1, OWNER, ME);
	cr_expect_not(is_direct(4), "before the call");
	umbra_invalidate_end(f->chain, &r);
	after = now_ns();
	told(fake_range(4, 1), after + 1, OWNER, ME);
	cr_expect_not(is_direct(4), "after it");
	cr_expect_eq(directs(), 0);
	end();
}

Test(module_direct, what_the_kernel_does_by_itself_is_collateral_and_says_who)
{
	static const struct {
		uint16_t flags;
		uint32_t expect;
	} kinds[] = {
		{ UMBRA_NTF_BLOCKABLE | UMBRA_NTF_KTHREAD, UMBRA_RANGE_KTHREAD },
		{ UMBRA_NTF_BLOCKABLE | UMBRA_NTF_RECLAIM, UMBRA_RANGE_RECLAIM },
		{ UMBRA_NTF_BLOCKABLE | UMBRA_NTF_RECLAIM | UMBRA_NTF_KTHREAD,
		  UMBRA_RANGE_RECLAIM | UMBRA_RANGE_KTHREAD },
		{ UMBRA_NTF_KTHREAD,
		  UMBRA_RANGE_KTHREAD | UMBRA_RANGE_NO_WAIT }, /* the OOM reaper */
		{ 0, UMBRA_RANGE_NO_WAIT },
		{ UMBRA_NTF_BLOCKABLE, 0 },
	};
	const uint32_t said = UMBRA_RANGE_KTHREAD | UMBRA_RANGE_RECLAIM | UMBRA_RANGE_NO_WAIT |
			      UMBRA_RANGE_DIRECT;
	struct umbra_range r;

	begin();
	/* an own call is under way on the same page all the while */
	r = announced(UMBRA_SOURCE_OWN, 4, 1);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		told(fake_range(4, 1), now_ns(), kinds[i].flags, 0);
		umbra_module_drain(m);
		cr_expect_eq(last(4).flags & said, kinds[i].expect, "kind %zu", i);
		cr_expect_eq(last(4).who,
			     kinds[i].flags & ~UMBRA_NTF_BLOCKABLE ? UMBRA_WHO_KERNEL : 0);
	}
	umbra_invalidate_end(f->chain, &r);
	cr_expect_eq(directs(), 0);
	end();
}

Test(module_direct, reclaim_that_an_own_call_asked_for_is_direct)
{
	struct umbra_range r;

	begin();
	r = announced(UMBRA_SOURCE_OWN, 4, 1);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	told(fake_range(4, 1), now_ns(), OWNER | UMBRA_NTF_RECLAIM, ME);
	cr_expect(is_direct(4));
	cr_expect(last(4).flags & UMBRA_RANGE_RECLAIM);
	umbra_invalidate_end(f->chain, &r);
	end();
}

Test(module_direct, the_ranges_of_a_batch_together_are_announced)
{
	struct hva_range v[3];
	struct umbra_range r;

	begin();
	r = announced(UMBRA_SOURCE_OWN, 2, 8);
	for (uint64_t i = 0; i < 3; i++)
		v[i] = fake_range(2 + 2 * i, i == 1 ? 1 : 2);
	r.v = v;
	r.nr = 3;
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	told(fake_range(2, 3), now_ns(), OWNER, ME);
	cr_expect(is_direct(2), "two that touch");
	told(fake_range(4, 4), now_ns(), OWNER, ME);
	cr_expect_not(is_direct(5), "one page in between was not announced");
	umbra_invalidate_end(f->chain, &r);
	end();
}

Test(module_direct, what_lies_outside_of_what_is_watched_does_not_count)
{
	struct umbra_range r;

	begin();
	r = announced(UMBRA_SOURCE_OWN, 0, f->npages);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	told((struct hva_range){ { 0 }, { ~0ULL } }, now_ns(), OWNER, ME);
	cr_expect(is_direct(4));
	umbra_invalidate_end(f->chain, &r);
	end();
}

Test(module_direct, what_userfaultfd_tells_afterwards_counts)
{
	struct umbra_range r;

	begin();
	told(fake_range(4, 2), now_ns(), OWNER, ME); /* a munmap, say: its event comes after it */
	told(fake_range(9, 1), now_ns(), OWNER, ME);
	cr_expect_not(is_direct(4));
	cr_expect_eq(directs(), 0);
	r = announced(UMBRA_SOURCE_UFFD, 4, 2);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	umbra_invalidate_end(f->chain, &r);
	cr_expect_eq(directs(), 1);
	told(fake_range(4, 1), now_ns(), OWNER, ME + 1);
	cr_expect(is_direct(4), "and a little later still: whose event it was is not said");
	cr_expect_eq(directs(), 2);
	told(fake_range(4, 1), now_ns() + 5000000000ULL, OWNER, ME);
	cr_expect_not(is_direct(4), "not for ever");
	end();
}

Test(module_direct, what_is_long_ago_is_forgotten_and_nothing_breaks)
{
	struct umbra_range r, other;

	begin();
	r = announced(UMBRA_SOURCE_OWN, 4, 1);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	for (int i = 0; i < 200; i++) {
		other = announced(UMBRA_SOURCE_OWN, 8, 1);
		cr_assert_eq(umbra_invalidate_start(f->chain, &other), 0);
		umbra_invalidate_end(f->chain, &other);
	}
	told(fake_range(4, 1), now_ns(), OWNER, ME);
	cr_expect_not(is_direct(4));
	for (int i = 0; i < 100; i++)
		told(fake_range(8, 1), now_ns(), OWNER, ME);
	cr_expect_not(is_direct(8));
	umbra_invalidate_end(f->chain, &r);
	cr_expect_eq(directs(), 0);
	end();
}

Test(module_direct, a_chain_that_is_full_has_no_room_for_a_source)
{
	static const struct umbra_notifier_ops deaf;
	static struct umbra_notifier others[UMBRA_CHAIN_MAX];
	const struct umbra_ring_consumer ring = {
		.records = records, .mask = RECORDS - 1, .state = &state, .consumer = &consumer
	};
	const struct hva_range all = fake_range(0, 64);
	unsigned int n = 0;

	f = fake_create(NULL);
	for (; n < UMBRA_CHAIN_MAX; n++) {
		others[n] = (struct umbra_notifier){ .ops = &deaf, .name = "another" };
		if (umbra_chain_register(f->chain, &others[n]))
			break;
	}
	cr_assert_eq(n, UMBRA_CHAIN_MAX - 1, "and the tables");
	cr_expect_eq(module_over(&m, f->chain, &ring, bitmap, &all, 1, UMBRA_PAGE_SHIFT), -ENOSPC);
	while (n)
		umbra_chain_unregister(f->chain, &others[--n]);
	cr_expect_eq(module_over(&m, f->chain, &ring, bitmap, &all, 1, UMBRA_PAGE_SHIFT), 0);
	end();
}
