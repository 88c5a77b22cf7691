/* SPDX-License-Identifier: BSD-2-Clause */
/* Kicks, batches and what is done when a batch is too large, with real vCPUs. */
#include "../support/engine_test.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <vmm/window.h>

#define PAGE UMBRA_PAGE_SIZE

static struct gfn_range pages(uint64_t gpa, uint64_t n)
{
	return (struct gfn_range){ { gpa >> 12 }, { (gpa >> 12) + n } };
}

static struct shootdown_stats counts(void)
{
	struct shootdown_stats stats;

	shootdown_stats(&e.vm, &stats);
	return stats;
}

static uint64_t sum_of(const char *what)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < e.vm.config.vcpus; i++) {
		struct vcpu_stats stats;

		vcpu_stats(e.vm.vcpus[i], &stats);
#define ADD(name) sum += strcmp(what, #name) ? 0 : stats.name;
		VCPU_STATS(ADD)
#undef ADD
	}
	return sum;
}

/* Until the vCPU has counted on; it would not if it were stuck. */
static void wait_for_progress(unsigned int vcpu)
{
	uint64_t *value = &engine_mailbox(&e, vcpu)->value;
	uint64_t from = __atomic_load_n(value, __ATOMIC_RELAXED);

	for (int i = 0; __atomic_load_n(value, __ATOMIC_RELAXED) == from; i++) {
		cr_assert(!vm_stopping(&e.vm), "%s", e.vm.stop_why);
		cr_assert_lt(i, 200000, "vCPU %u makes no progress", vcpu);
		engine_pause(20);
	}
}

Test(engine_shootdown, five_thousand_kicks_and_none_is_lost, .timeout = 600)
{
	begin(1, GUEST_PAGES_4K);
	engine_tell(&e, 0, ENGINE_HAMMER, ENGINE_LOOSE, 0);
	wait_for_progress(0);
	for (int i = 0; i < 5000; i++) {
		struct umbra_translation t;
		uint64_t faults;

		/* A fault is counted before its leaf is there. */
		while (umbra_lookup(e.vm.root, (gpa_t){ ENGINE_LOOSE }, &t))
			engine_pause(1);
		faults = engine_faults(&e, 0);

		/* Returns only when the vCPU is out or has flushed; then it must fault again. */
		umbra_zap(e.vm.mmu, pages(ENGINE_LOOSE, 1));
		for (int turn = 0; engine_faults(&e, 0) == faults; turn++) {
			cr_assert_lt(turn, 100000, "zap %d was not obeyed", i);
			engine_pause(1);
		}
	}
	cr_expect_geq(counts().kicks, 1000, "%llu kicks", (unsigned long long)counts().kicks);
	engine_tell_stop(&e, 0);
	cr_assert(engine_wait(&e, 0));
	end();
}

Test(engine_shootdown, foreign_signals_are_survived, .timeout = 60)
{
	begin(2, GUEST_PAGES_4K);
	for (unsigned int v = 0; v < 2; v++)
		engine_tell_random(&e, v, ENGINE_LOOSE, 63);
	/* as long as it takes until enough of them have met a vCPU in the guest */
	for (unsigned int i = 0; i < 2000 || sum_of("interrupted") <= 100; i++) {
		cr_assert_lt(i, 1000000, "signals do not reach the vCPUs");
		pthread_kill(e.threads[i & 1], VCPU_KICK_SIGNAL); /* with nothing to do */
		vcpu_kick_all(&e.vm);
		if (i % 8 == 0)
			cr_assert(
				engine_revoke_is_obeyed(&e, ENGINE_LOOSE + (i * 7 & 63) * PAGE, 1));
	}
	for (unsigned int v = 0; v < 2; v++) {
		engine_tell_stop(&e, v);
		cr_assert(engine_wait(&e, v));
	}
	end();
}

Test(engine_shootdown, no_page_is_written_while_its_invalidation_is_open, .timeout = 60)
{
	begin(2, GUEST_PAGES_4K);
	for (unsigned int v = 0; v < 2; v++)
		engine_tell_random(&e, v, ENGINE_LOOSE, 15);
	for (unsigned int i = 0; i < 1500; i++)
		cr_assert(engine_revoke_is_obeyed(&e, ENGINE_LOOSE + (i * 11 & 15) * PAGE, 30),
			  "written to in round %u", i);
	for (unsigned int v = 0; v < 2; v++) {
		engine_tell_stop(&e, v);
		cr_assert(engine_wait(&e, v));
	}
	end();
}

Test(engine_shootdown, no_kick_and_no_wait_when_nothing_runs)
{
	struct shootdown_stats before, after;

	begin(1, GUEST_PAGES_4K);
	engine_sweep(&e, 0, ENGINE_WRITE, ENGINE_LOOSE, 300, PAGE);
	engine_tell(&e, 0, ENGINE_HALT, 0, 0);
	pthread_join(e.threads[0], NULL);
	e.running = false;
	cr_expect_eq(e.vm.stop_code, VMM_EXIT_GUEST_FAIL, "all halted");
	before = counts();
	for (unsigned int i = 0; i < 300; i++)
		engine_discard(&e, ENGINE_LOOSE + i * PAGE, PAGE);
	after = counts();
	cr_expect_eq(after.posts - before.posts, 300);
	cr_expect_eq(after.kicks, before.kicks);
	cr_expect_eq(after.waits, before.waits);
	cr_expect_geq(after.pending - before.pending, 300, "kept until a vCPU runs again");
	cr_expect_eq(engine_check(&e), 0);
	engine_destroy(&e);
}

Test(engine_shootdown, a_non_blockable_range_is_refused_then_obeyed)
{
	struct umbra_range r = {
		.cause = UMBRA_CAUSE_DISCARD,
		.source = UMBRA_SOURCE_TEST,
	};
	int refused = 0, ret;

	begin(1, GUEST_PAGES_4K);
	r.hull = hva_range_of(engine_at(&e, ENGINE_LOOSE), PAGE);
	engine_tell(&e, 0, ENGINE_HAMMER, ENGINE_LOOSE, 0);
	wait_for_progress(0);
	while ((ret = umbra_invalidate_start(e.vm.chain, &r)) == -EAGAIN) {
		cr_assert_lt(refused++, 100000);
		engine_pause(20);
	}
	cr_assert_eq(ret, 0);
	umbra_invalidate_end(e.vm.chain, &r);
	wait_for_progress(0);
	engine_tell_stop(&e, 0);
	cr_assert(engine_wait(&e, 0));
	end();
}

/* @n leaves lose a right in one batch; every one must fault at its next write. */
static void protect_many(uint64_t gpa, uint64_t n)
{
	uint64_t before;

	cr_assert(engine_sweep(&e, 0, ENGINE_WRITE, gpa, n, PAGE), "%s", e.vm.stop_why);
	umbra_write_protect(e.vm.mmu, pages(gpa, n));
	before = engine_faults(&e, 0);
	cr_assert(engine_sweep(&e, 0, ENGINE_WRITE, gpa, n, PAGE), "%s", e.vm.stop_why);
	cr_assert_eq(engine_faults(&e, 0) - before, n);
}

Test(engine_shootdown, batches_of_every_size_are_complete, .timeout = 60)
{
	static const uint64_t sizes[] = { 1, 2, 7, 8, 9, 100, 507, 508, 509, 1016, 1017, 1500 };

	begin(2, GUEST_PAGES_4K);
	engine_tell(&e, 1, ENGINE_HAMMER, ENGINE_LOOSE, 0);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		protect_many(8ULL << 20, sizes[i]);
	cr_expect_eq(counts().recycles, 0);
	cr_expect_geq(sum_of("flushed_entries"),
		      1 + 2 + 7 + 8 + 9 + 100 + 507 + 508 + 509 + 1016 + 1017 + 1500);
	engine_tell_stop(&e, 1);
	cr_assert(engine_wait(&e, 1));
	end();
}

/* Entries side by side are one record, up to a length; a vCPU must forget each of them. */
Test(engine_shootdown, runs_of_every_length_are_complete, .timeout = 60)
{
	static const uint64_t lengths[] = { 1, 2, 8, 9, 126, 127, 128, 254, 255, 381, 508, 510 };
	const uint64_t first = 8ULL << 20;

	begin(1, GUEST_PAGES_4K);
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		const uint64_t n = lengths[i];
		uint64_t faults;

		/* one page more: the table stays, and with it each entry has to go by itself */
		cr_assert(engine_sweep(&e, 0, ENGINE_WRITE, first, n + 1, PAGE));
		umbra_zap(e.vm.mmu, pages(first + PAGE, n));
		faults = engine_faults(&e, 0);
		cr_assert(engine_sweep(&e, 0, ENGINE_WRITE, first, n + 1, PAGE));
		cr_assert_eq(engine_faults(&e, 0) - faults, n, "%d pages", (int)n);
	}
	cr_expect_eq(counts().recycles, 0);
	end();
}

Test(engine_shootdown, a_large_batch_is_answered_by_dropping_all_shadows, .timeout = 60)
{
	begin(2, GUEST_PAGES_4K);
	shootdown_set_recycle_at(&e.vm, 200);
	engine_tell(&e, 1, ENGINE_HAMMER, ENGINE_LOOSE, 0);
	wait_for_progress(1);
	for (int i = 0; i < 5; i++) {
		uint64_t recycles = counts().recycles;

		protect_many(8ULL << 20, 400);
		cr_assert_gt(counts().recycles, recycles, "round %d", i);
		wait_for_progress(1);
	}
	protect_many(8ULL << 20, 50);
	engine_tell_stop(&e, 1);
	cr_assert(engine_wait(&e, 1));
	end();
}

/* More records than are kept: all of them count, although they are not there any more. */
Test(engine_shootdown, records_that_found_no_room_are_not_forgotten, .timeout = 60)
{
	/* A page of the monitor's that serves nothing: touching it does nothing. */
	const struct umbra_flush_entry harmless = {
		.index = (WINDOW_MONITOR_PAGES - 1) * 512,
		.level = UMBRA_LEVEL_4K,
	};
	uint64_t ticket;

	begin(1, GUEST_PAGES_4K);
	shootdown_set_recycle_at(&e.vm, 65536);
	engine_tell(&e, 0, ENGINE_HAMMER, ENGINE_LOOSE, 0);
	wait_for_progress(0);
	/* Stands in for the MMU, which asks for nothing meanwhile: the guest does not fault. */
	for (unsigned int i = 0; i < 70000; i++)
		shootdown_queue(&e.vm, &harmless);
	ticket = shootdown_post(&e.vm);
	cr_expect(!shootdown_done(&e.vm, ticket));
	cr_assert_eq(shootdown_wait(&e.vm, ticket, true), 0);
	wait_for_progress(0);
	cr_expect_eq(counts().recycles, 1);
	cr_expect(shootdown_done(&e.vm, ticket));
	cr_expect_eq(counts().pending, 0);
	engine_tell_stop(&e, 0);
	cr_assert(engine_wait(&e, 0));
	protect_many(8ULL << 20, 20);
	cr_expect_eq(counts().recycles, 1, "small batches go the ordinary way again");
	end();
}

Test(engine_shootdown, before_the_first_run_nothing_is_waited_for)
{
	struct umbra_fault f = { .gpa = { ENGINE_LOOSE }, .access = UMBRA_ACCESS_WRITE };
	uint64_t left = 1;

	if (engine_create(&e, 1, 64ULL << 20, GUEST_PAGES_4K))
		cr_skip_test("no usable KVM");
	cr_assert_eq(umbra_fault(e.vm.root, &f), UMBRA_FAULT_INSTALLED);
	umbra_zap_all(e.vm.mmu);
	for (int i = 0; i < 4; i++) /* a level each time */
		left = umbra_reclaim(e.vm.mmu, ~0ULL);
	cr_expect_eq(left, 0, "no vCPU can have cached a table");
	cr_expect_eq(counts().kicks, 0);
	engine_start(&e);
	cr_assert(engine_do(&e, 0, ENGINE_WRITE, ENGINE_LOOSE, 1));
	end();
}
