/* SPDX-License-Identifier: BSD-2-Clause */
/* Tickets step by step: this test is the poster and the vCPU at once, so that each order of steps is had when wanted. */
#include "../support/engine_test.h"

#include <errno.h>
#include <vmm/window.h>

/* A page of the monitor's that serves nothing: touching it does nothing. */
static const struct umbra_flush_entry harmless = {
	.index = (WINDOW_MONITOR_PAGES - 1) * 512,
	.level = UMBRA_LEVEL_4K,
};

static struct monitor_flush command;

static struct shootdown_stats counts(void)
{
	struct shootdown_stats stats;

	shootdown_stats(&e.vm, &stats);
	return stats;
}

static void queue(unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		shootdown_queue(&e.vm, &harmless);
}

static uint64_t post(unsigned int n)
{
	queue(n);
	return shootdown_post(&e.vm);
}

static uint64_t collect(unsigned int vcpu, bool *needed)
{
	return shootdown_collect(&e.vm, vcpu, &command, needed);
}

/* No thread runs a vCPU. Each was in the guest once: from then on what is posted has to be flushed. */
static void begin_by_hand(unsigned int vcpus)
{
	bool needed;

	if (engine_create(&e, vcpus, 64ULL << 20, GUEST_PAGES_4K)) {
		if (getenv("REQUIRE_KVM"))
			cr_assert(0, "KVM is required and not usable");
		cr_skip_test("no usable KVM");
	}
	for (unsigned int i = 0; i < vcpus; i++) {
		cr_assert(shootdown_enter(&e.vm, i, collect(i, &needed)));
		shootdown_exit(&e.vm, i);
	}
}

Test(engine_tickets, what_is_posted_after_the_command_was_built_keeps_the_vcpu_out)
{
	uint64_t covers, ticket;
	bool needed;

	begin_by_hand(1);
	covers = collect(0, &needed);
	cr_assert_not(needed);
	ticket = post(1);
	cr_expect_eq(shootdown_wait(&e.vm, ticket, false), 0, "it is out");
	cr_expect_not(shootdown_enter(&e.vm, 0, covers));
	cr_expect_eq(shootdown_wait(&e.vm, ticket, false), 0, "it is out still");
	cr_expect_eq(collect(0, &needed), ticket);
	cr_expect(needed);
	cr_expect(shootdown_enter(&e.vm, 0, ticket));
	cr_expect_eq(shootdown_wait(&e.vm, ticket, false), 0, "it flushes before it goes on");
	shootdown_exit(&e.vm, 0);
	engine_destroy(&e);
}

Test(engine_tickets, one_that_is_in_with_less_is_waited_for_whichever_it_is)
{
	bool needed;

	begin_by_hand(3);
	for (unsigned int i = 0; i < 3; i++) {
		const uint64_t kicks = counts().kicks;
		uint64_t ticket;

		cr_assert(shootdown_enter(&e.vm, i, collect(i, &needed)));
		ticket = post(1);
		cr_expect_eq(shootdown_wait(&e.vm, ticket, false), -EAGAIN, "vCPU %u", i);
		cr_expect_not(shootdown_done(&e.vm, ticket));
		cr_expect_eq(counts().kicks - kicks, 1);
		cr_expect_eq(shootdown_wait(&e.vm, ticket, false), -EAGAIN);
		cr_expect_eq(counts().kicks - kicks, 1, "one kick is enough for one stay");
		shootdown_exit(&e.vm, i);
		cr_expect_eq(shootdown_wait(&e.vm, ticket, false), 0);
	}
	engine_destroy(&e);
}

Test(engine_tickets, each_stay_has_a_kick_of_its_own)
{
	bool needed;

	begin_by_hand(1);
	for (uint64_t stay = 1; stay <= 3; stay++) {
		cr_assert(shootdown_enter(&e.vm, 0, collect(0, &needed)));
		cr_expect_eq(shootdown_wait(&e.vm, post(1), false), -EAGAIN);
		cr_expect_eq(counts().kicks, stay);
		shootdown_exit(&e.vm, 0);
	}
	engine_destroy(&e);
}

/* That a vCPU went in with a command says nothing: only what the monitor acknowledges does. */
Test(engine_tickets, a_command_that_was_not_carried_out_is_not_done)
{
	uint64_t ticket;
	bool needed;

	begin_by_hand(1);
	ticket = post(3);
	cr_expect_eq(collect(0, &needed), ticket);
	cr_expect(needed);
	cr_assert(shootdown_enter(&e.vm, 0, ticket));
	shootdown_exit(&e.vm, 0); /* KVM_RUN came back at once */
	cr_expect_not(shootdown_done(&e.vm, ticket));
	cr_expect_eq(counts().pending, 3);
	cr_expect_eq(collect(0, &needed), ticket);
	cr_expect(needed, "again");
	cr_expect_eq(command.entries, 3);
	engine_destroy(&e);
}

/* A vCPU that was away flushes everything, also what another one has touched since. */
Test(engine_tickets, what_another_vcpu_has_touched_is_flushed_all_the_same)
{
	bool needed;
	uint64_t ticket;

	begin_by_hand(2);
	shootdown_set_recycle_at(&e.vm,
				 1); /* two records: touched at once, by the first that comes */
	ticket = post(2);
	cr_expect_eq(collect(0, &needed), ticket);
	cr_expect_eq(counts().recycles, 1);
	cr_expect_eq(counts().pending, 0);
	cr_expect_eq(collect(1, &needed), ticket);
	cr_expect(needed, "its own TLB was not flushed by that");
	cr_expect_eq(command.entries + command.tables + command.pages, 0, "the whole TLB");
	cr_expect_eq(command.ticket, ticket);
	engine_destroy(&e);
}

/*
 * A batch finds the ring full, for an older one is pending. A vCPU drops all shadows for that one, which makes room; but
 * what had found none is not there. It must be answered by dropping all shadows again.
 */
Test(engine_tickets, records_that_found_no_room_count_when_their_batch_is_posted_later)
{
	uint64_t ticket;
	bool needed;

	begin_by_hand(1);
	ticket = post(60000);
	queue(6000);
	cr_expect_eq(collect(0, &needed), ticket);
	cr_expect_eq(counts().recycles, 1);
	cr_expect_eq(counts().pending, 0);
	ticket = shootdown_post(&e.vm);
	cr_expect_eq(counts().pending, 6000, "fewer than what is dropped at once for its number");
	cr_expect_not(shootdown_done(&e.vm, ticket));
	cr_expect_eq(collect(0, &needed), ticket);
	cr_expect_eq(counts().recycles, 2);
	cr_expect(needed);
	/* and then it is over: the next ones go one by one */
	ticket = post(3);
	cr_expect_eq(collect(0, &needed), ticket);
	cr_expect_eq(counts().recycles, 2);
	cr_expect_eq(command.entries, 3);
	engine_destroy(&e);
}
