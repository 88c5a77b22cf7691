/* SPDX-License-Identifier: BSD-2-Clause */
/* The module as a source, over shared pages that this test writes as the kernel would: brackets, the gate, loss, the end. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "shadow/events/module.h"
#include "tests/support/fakehost.h"

#define RECORDS 16U

/* The kernel's half. */
static struct umbra_ntf_record records[RECORDS];
static struct umbra_ntf_state state;
static struct umbra_ntf_consumer consumer;
static uint64_t bitmap[4096 / 64];
static struct umbra_ring_producer kernel;
static struct fake *f;
static struct umbra_module *m;

static void publish(uint8_t kind, uint64_t page, uint64_t pages)
{
	const struct hva_range r = fake_range(page, pages);
	const struct umbra_ntf_record rec = {
		.start = r.start.v,
		.end = r.end.v,
		.begun = state.begun,
		.kind = kind,
		.event = UMBRA_NTF_CLEAR,
		.flags = UMBRA_NTF_BLOCKABLE | UMBRA_NTF_OWNER,
	};

	umbra_ring_push(&kernel, &rec);
}

static void callout_start(uint64_t page, uint64_t pages)
{
	state.begun++;
	publish(UMBRA_NTF_START, page, pages);
}

static void callout_end(uint64_t page, uint64_t pages)
{
	state.ended++;
	publish(UMBRA_NTF_END, page, pages);
}

static void moves(uint64_t page)
{
	callout_start(page, 1);
	fake_move_page(f, page);
	callout_end(page, 1);
}

/* The consumer's half: nothing has been read. */
static struct umbra_ring_consumer ring_all(void)
{
	return (struct umbra_ring_consumer){
		.records = records, .mask = RECORDS - 1, .state = &state, .consumer = &consumer
	};
}

static void begin(void)
{
	struct umbra_ring_consumer ring;
	struct hva_range all;

	memset(&state, 0, sizeof(state));
	memset(&consumer, 0, sizeof(consumer));
	memset(bitmap, 0, sizeof(bitmap));
	state.bitmap_bits = sizeof(bitmap) * 8;
	kernel = (struct umbra_ring_producer){ records, RECORDS - 1, 0, 0, &state, &consumer };
	ring = ring_all();
	f = fake_create(NULL);
	all = fake_range(0, f->npages);
	cr_assert_eq(module_over(&m, f->chain, &ring, bitmap, &all, 1, UMBRA_PAGE_SHIFT), 0);
}

static void end(void)
{
	struct umbra_chain_counts counts;

	umbra_module_close(m);
	counts = umbra_chain_counts(f->chain, UMBRA_SOURCE_MODULE);
	cr_expect_eq(counts.begun, counts.ended);
	cr_expect_eq(fake_check(f), 0);
	fake_destroy(f);
}

static int access_page(uint64_t page)
{
	uint64_t pfn;

	return fake_access(f, 0, page, true, &pfn);
}

static enum umbra_fault_result fault(uint64_t page)
{
	struct umbra_fault fl = { .gpa = { page << UMBRA_PAGE_SHIFT },
				  .access = UMBRA_ACCESS_READ };

	return umbra_fault(f->root, &fl);
}

static struct umbra_module_stats stats(void)
{
	struct umbra_module_stats s;

	umbra_module_stats(m, &s);
	return s;
}

Test(module, a_start_drops_and_holds_off_until_its_end)
{
	begin();
	cr_assert_eq(access_page(10), 0);
	cr_assert_eq(access_page(11), 0);
	callout_start(10, 1);
	umbra_module_drain(m);
	cr_expect_eq(fake_leaf(f, 10), 0);
	cr_expect_eq(fake_leaf(f, 11), 1);
	cr_expect_eq(fault(10), UMBRA_FAULT_RETRY);
	callout_end(10, 1);
	cr_expect_eq(fault(10), UMBRA_FAULT_RETRY, "not told yet");
	umbra_module_drain(m);
	cr_expect_eq(fault(10), UMBRA_FAULT_INSTALLED);
	cr_expect_eq(stats().starts, 1);
	cr_expect_eq(stats().by_owner, 1);
	end();
}

Test(module, the_gate_is_shut_from_the_callout_to_the_drain)
{
	const struct umbra_gate *gate;

	begin();
	gate = umbra_module_gate(m);
	cr_assert_eq(access_page(10), 0);
	cr_expect(umbra_gate_current(gate));
	callout_start(10, 1);
	cr_expect_not(umbra_gate_current(gate));
	umbra_module_drain(m);
	cr_expect(umbra_gate_current(gate));
	cr_expect_eq(fake_leaf(f, 10), 0, "what is found behind an open gate is not stale");
	callout_end(10, 1);
	cr_expect(umbra_gate_current(gate), "an end takes nothing away");
	umbra_module_drain(m);
	end();
}

Test(module, d72_a_full_ring_drops_everything_once_and_is_exact_again)
{
	begin();
	cr_assert_eq(access_page(10), 0);
	cr_assert_eq(access_page(500), 0);
	for (unsigned int i = 0; i < 20; i++)
		moves(10);
	cr_expect_gt(state.lost, 0);
	umbra_module_drain(m);
	cr_expect_eq(stats().recoveries, 1);
	cr_expect_eq(fake_leaf(f, 10), 0);
	cr_expect_eq(fake_leaf(f, 500), 0, "nobody knows what was lost");
	cr_expect(umbra_gate_current(umbra_module_gate(m)));
	cr_assert_eq(access_page(10), 0);
	cr_assert_eq(access_page(500), 0);
	moves(10);
	umbra_module_drain(m);
	cr_expect_eq(stats().recoveries, 1);
	cr_expect_eq(fake_leaf(f, 10), 0);
	cr_expect_eq(fake_leaf(f, 500), 1, "exact again");
	end();
}

Test(module, what_was_open_at_a_loss_is_refused_until_the_counters_say_it_ended)
{
	begin();
	callout_start(10, 1);
	umbra_module_drain(m);
	callout_start(20, 1);
	for (unsigned int i = 0; i < 20; i++)
		moves(30);
	umbra_module_drain(m);
	cr_expect_eq(fault(10), UMBRA_FAULT_RETRY);
	cr_expect_eq(fault(40), UMBRA_FAULT_RETRY);
	callout_end(10, 1);
	callout_start(50, 1);
	umbra_module_drain(m);
	cr_expect_eq(fault(20), UMBRA_FAULT_RETRY, "two are open still");
	callout_end(20, 1);
	umbra_module_drain(m);
	cr_expect_eq(fault(50), UMBRA_FAULT_RETRY);
	callout_end(50, 1);
	umbra_module_drain(m);
	for (uint64_t page = 10; page <= 50; page += 10)
		cr_expect_eq(fault(page), UMBRA_FAULT_INSTALLED);
	end();
}

Test(module, a_lost_end_does_not_stay_open_for_ever)
{
	begin();
	callout_start(10, 1);
	for (unsigned int i = 1; i < RECORDS; i++)
		i & 1 ? callout_end(10, 1) : callout_start(10, 1);
	callout_start(10, 1); /* no room, nor for its end */
	callout_end(10, 1);
	cr_expect_eq(state.lost, 2);
	umbra_module_drain(m);
	cr_expect_eq(fault(10), UMBRA_FAULT_INSTALLED);
	end();
}

Test(module, losses_in_a_row_are_one_bracket)
{
	begin();
	callout_start(10, 1);
	for (unsigned int round = 0; round < 5; round++) {
		for (unsigned int i = 0; i < 20; i++)
			moves(30);
		umbra_module_drain(m);
		cr_expect_eq(fault(40), UMBRA_FAULT_RETRY);
	}
	cr_expect_eq(stats().recoveries, 5);
	callout_end(10, 1);
	umbra_module_drain(m);
	cr_expect_eq(fault(40), UMBRA_FAULT_INSTALLED);
	end();
}

static void dies(void)
{
	state.dead = 1;
	state.begun++;
	state.ended++;
	publish(UMBRA_NTF_RELEASE, 0, 1);
}

Test(module, d63_release_drops_all_and_nothing_comes_back)
{
	begin();
	cr_assert_eq(access_page(10), 0);
	dies();
	cr_expect_not(umbra_gate_current(umbra_module_gate(m)));
	umbra_module_drain(m);
	cr_expect(umbra_gate_current(umbra_module_gate(m)));
	cr_expect_eq(fake_leaf(f, 10), 0);
	cr_expect_eq(fault(10), UMBRA_FAULT_RELEASED);
	cr_expect(stats().dead);
	end();
}

Test(module, a_release_whose_record_was_lost_is_seen)
{
	begin();
	callout_start(10, 1);
	umbra_module_drain(m);
	for (unsigned int i = 0; i < 20; i++)
		moves(30);
	dies();
	umbra_module_drain(m);
	cr_expect_eq(fault(40), UMBRA_FAULT_RELEASED);
	end();
}

Test(module, a_source_taken_over_late_knows_what_is_open)
{
	struct umbra_ring_consumer ring = ring_all();
	struct hva_range all;

	begin();
	all = fake_range(0, f->npages);
	umbra_module_close(m);
	cr_assert_eq(access_page(10), 0);
	callout_start(10, 1);
	moves(20);
	cr_assert_eq(module_over(&m, f->chain, &ring, bitmap, &all, 1, UMBRA_PAGE_SHIFT), 0);
	cr_expect_eq(fake_leaf(f, 10), 0);
	cr_expect_eq(fault(10), UMBRA_FAULT_RETRY);
	callout_end(10, 1);
	umbra_module_drain(m);
	cr_expect_eq(fault(10), UMBRA_FAULT_INSTALLED);
	end();
}

Test(module, accessed_pages_are_bits_of_their_range)
{
	const struct hva_range two[2] = { fake_range(10, 2), fake_range(100, 1) };
	struct umbra_ring_consumer ring = ring_all();

	begin();
	umbra_module_close(m);
	cr_assert_eq(module_over(&m, f->chain, &ring, bitmap, two, 2, UMBRA_PAGE_SHIFT), 0);
	umbra_module_young(m, fake_range(11, 1));
	cr_expect_eq(bitmap[0], 2);
	umbra_module_young(m, fake_range(50, 10));
	cr_expect_eq(bitmap[0], 2, "not watched");
	umbra_module_young(m, fake_range(0, 4096));
	cr_expect_eq(bitmap[0], 7);
	end();
}

static void publish_by(uint8_t kind, uint64_t page, uint64_t pages, int32_t who, uint16_t flags)
{
	const struct hva_range r = fake_range(page, pages);
	const struct umbra_ntf_record rec = {
		.start = r.start.v,
		.end = r.end.v,
		.begun = kind == UMBRA_NTF_START ? ++state.begun : state.begun,
		.who = who,
		.kind = kind,
		.event = UMBRA_NTF_CLEAR,
		.flags = flags,
	};

	state.ended += kind == UMBRA_NTF_END;
	umbra_ring_push(&kernel, &rec);
}

Test(module, the_history_says_who_and_why)
{
	struct umbra_event e;

	begin();
	publish_by(UMBRA_NTF_START, 10, 1, 77, UMBRA_NTF_OWNER | UMBRA_NTF_BLOCKABLE);
	umbra_module_drain(m);
	cr_assert_eq(umbra_history(f->mmu, fake_range(10, 1), &e, 1), 1);
	cr_expect_eq(e.who, 77);
	cr_expect_eq(e.source, UMBRA_SOURCE_MODULE);
	cr_expect(e.open);
	publish_by(UMBRA_NTF_END, 10, 1, 77, UMBRA_NTF_OWNER | UMBRA_NTF_BLOCKABLE);
	publish_by(UMBRA_NTF_START, 10, 1, 0, UMBRA_NTF_KTHREAD | UMBRA_NTF_RECLAIM);
	publish_by(UMBRA_NTF_END, 10, 1, 0, UMBRA_NTF_KTHREAD | UMBRA_NTF_RECLAIM);
	umbra_module_drain(m);
	cr_assert_eq(umbra_history(f->mmu, fake_range(10, 1), &e, 1), 1);
	cr_expect_eq(e.who, UMBRA_WHO_KERNEL);
	cr_expect_eq(e.cause, UMBRA_CAUSE_SWAP);
	publish_by(UMBRA_NTF_START, 10, 1, 0, 0);
	publish_by(UMBRA_NTF_END, 10, 1, 0, 0);
	umbra_module_drain(m);
	cr_assert_eq(umbra_history(f->mmu, fake_range(10, 1), &e, 1), 1);
	cr_expect_eq(e.who, 0);
	cr_expect_eq(stats().by_owner, 1);
	cr_expect_eq(stats().by_reclaim, 1);
	cr_expect_eq(stats().by_others, 1);
	cr_expect_eq(stats().not_blockable, 2);
	end();
}

Test(module, d19_a_callout_inside_another_of_the_same_thread_is_counted)
{
	begin();
	publish_by(UMBRA_NTF_START, 10, 1, 77, UMBRA_NTF_OWNER);
	publish_by(UMBRA_NTF_START, 0, 512, 77, UMBRA_NTF_OWNER);
	publish_by(UMBRA_NTF_END, 0, 512, 77, UMBRA_NTF_OWNER);
	publish_by(UMBRA_NTF_END, 10, 1, 77, UMBRA_NTF_OWNER);
	umbra_module_drain(m);
	cr_expect_eq(stats().nested, 1);
	publish_by(UMBRA_NTF_START, 10, 1, 77, UMBRA_NTF_OWNER);
	publish_by(UMBRA_NTF_END, 10, 1, 77, UMBRA_NTF_OWNER);
	publish_by(UMBRA_NTF_START, 10, 1, 77, UMBRA_NTF_OWNER);
	publish_by(UMBRA_NTF_START, 20, 1, 78, UMBRA_NTF_OWNER);
	publish_by(UMBRA_NTF_END, 10, 1, 77, UMBRA_NTF_OWNER);
	publish_by(UMBRA_NTF_END, 20, 1, 78, UMBRA_NTF_OWNER);
	umbra_module_drain(m);
	cr_expect_eq(stats().nested, 1, "one after the other, or of another thread");
	end();
}

Test(module, one_that_ended_before_it_was_read_is_told_at_once_and_leaves_nothing_open)
{
	struct umbra_event event;

	begin();
	cr_assert_eq(access_page(10), 0);
	cr_assert_eq(access_page(11), 0);
	moves(10);
	umbra_module_drain(m);
	cr_expect_eq(fake_leaf(f, 10), 0);
	cr_expect_eq(fake_leaf(f, 11), 1);
	cr_expect(umbra_gate_current(umbra_module_gate(m)), "what was announced is applied");
	cr_assert_eq(umbra_history(f->mmu, fake_range(10, 1), &event, 1), 1);
	cr_expect(!event.open && event.zapped_4k == 1);
	cr_expect(stats().starts == 1 && stats().ends == 1);
	cr_expect_eq(fault(10), UMBRA_FAULT_INSTALLED);
	end();
}

/* Ends are counted, not matched: one that is of another must not stand for it. */
Test(module, an_end_of_another_leaves_it_open)
{
	begin();
	publish_by(UMBRA_NTF_START, 10, 1, 77, UMBRA_NTF_OWNER);
	publish_by(UMBRA_NTF_START, 20, 1, 78, UMBRA_NTF_OWNER);
	publish_by(UMBRA_NTF_END, 20, 1, 78, UMBRA_NTF_OWNER);
	umbra_module_drain(m);
	cr_expect_eq(fault(10), UMBRA_FAULT_RETRY);
	publish_by(UMBRA_NTF_START, 30, 1, 78, UMBRA_NTF_OWNER);
	publish_by(UMBRA_NTF_END, 10, 1, 77, UMBRA_NTF_OWNER);
	umbra_module_drain(m);
	cr_expect_eq(fault(30), UMBRA_FAULT_RETRY);
	publish_by(UMBRA_NTF_END, 30, 1, 78, UMBRA_NTF_OWNER);
	umbra_module_drain(m);
	cr_expect_eq(fault(10), UMBRA_FAULT_INSTALLED);
	cr_expect_eq(fault(30), UMBRA_FAULT_INSTALLED);
	cr_expect(stats().starts == 3 && stats().ends == 3);
	end();
}

static _Atomic unsigned int aged;

static void age(void *ctx)
{
	umbra_module_young(m, fake_range(3, 1));
	if (++aged == 3)
		umbra_module_stop(*(struct umbra_module **)ctx);
}

Test(module, the_reader_asks_again_and_again_what_was_accessed)
{
	begin();
	module_age_by(m, 1, age, &m);
	cr_expect_eq(umbra_module_run(m), 0);
	cr_expect_eq(aged, 3);
	cr_expect_eq(bitmap[0], 8);
	end();
}
