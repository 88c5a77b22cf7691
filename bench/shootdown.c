/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * shootdown: start and end of an invalidation of one 4K page that the running vCPUs have in their TLBs, against one
 * port exit of guest code. start returns when no vCPU can use the page any more.
 */
#include <errno.h>
#include <string.h>
#include "bench.h"
#include "machine.h"
#include "minikvm.h"

#define EXITS  512U
#define ROUNDS 64U
#define GPA    (8ULL << 20)

static struct engine machines[2]; /* of 1 and of 2 vCPUs */
static struct minikvm mini;

/* us for one port exit of guest code. */
static double guest_exit(void *ctx)
{
	uint64_t t0;

	(void)ctx;
	bench_pin(pthread_self(), 0);
	if (minikvm_aim_exits(&mini, 3))
		return BENCH_FAILED;
	minikvm_run(&mini);
	t0 = bench_ns();
	for (unsigned int i = 0; i < EXITS; i++)
		if (minikvm_run(&mini) != MINIKVM_EXIT)
			return BENCH_FAILED;
	return (double)(bench_ns() - t0) / EXITS / 1e3;
}

static void wait_for_use(struct engine *e, unsigned int vcpu)
{
	uint64_t *value = &engine_mailbox(e, vcpu)->value;
	uint64_t from = __atomic_load_n(value, __ATOMIC_RELAXED);

	while (__atomic_load_n(value, __ATOMIC_RELAXED) - from < 1000 && !vm_stopping(&e->vm))
		engine_pause(20);
}

/* us for start and end, every vCPU hammering the page; between two of them all have it again. */
static double ours(void *ctx)
{
	struct engine *e = ctx;
	unsigned int n = e->vm.config.vcpus;
	const struct umbra_range r = {
		.hull = hva_range_of(engine_at(e, GPA), UMBRA_PAGE_SIZE),
		.flags = UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_FORCED | UMBRA_RANGE_RELOCATES,
		.cause = UMBRA_CAUSE_DISCARD,
		.source = UMBRA_SOURCE_OWN,
	};
	uint64_t sum = 0;

	/* Who invalidates is on the CPU that no vCPU, or the last one, is on. */
	bench_pin(pthread_self(), 1);
	machine_run(e, 0);
	for (unsigned int i = 0; i < n; i++)
		engine_tell(e, i, ENGINE_HAMMER, GPA + 64 * i, 0);
	for (unsigned int round = 0; round < ROUNDS; round++) {
		uint64_t t0;

		for (unsigned int i = 0; i < n; i++)
			wait_for_use(e, i);
		t0 = bench_ns();
		umbra_invalidate_start(e->vm.chain, &r);
		umbra_invalidate_end(e->vm.chain, &r);
		sum += bench_ns() - t0;
	}
	for (unsigned int i = 0; i < n; i++)
		engine_tell_stop(e, i);
	for (unsigned int i = 0; i < n; i++)
		engine_wait(e, i);
	if (vm_stopping(&e->vm)) {
		bench_fail("the guest stopped: %s", e->vm.stop_why);
		return BENCH_FAILED;
	}
	machine_rest(e);
	return (double)sum / ROUNDS / 1e3;
}

int main(void)
{
	int ret;

	bench_begin("shootdown", 0);
	bench_note("vCPU i on CPU no. i; who invalidates on no. 1");
	ret = minikvm_create(&mini, 32ULL << 20);
	ret = ret ? ret : minikvm_long_mode(&mini);
	if (ret)
		bench_fail("the floor: %s", strerror(-ret));
	else if (!machine_create(&machines[0], 1, 64ULL << 20, GUEST_PAGES_4K) &&
		 !machine_create(&machines[1], 2, 64ULL << 20, GUEST_PAGES_4K)) {
		bench_row(&(struct bench_row){ .name = "shootdown",
					       .unit = "us",
					       .what = "start and end, 4K, 1 vCPU running",
					       .floor = "one port exit of guest code",
					       .at_most = 2.5,
					       .ours = ours,
					       .against = guest_exit,
					       .ctx = &machines[0] });
		bench_row(&(struct bench_row){ .name = "shootdown_2",
					       .unit = "us",
					       .what = "start and end, 4K, 2 vCPUs running",
					       .floor = "one port exit of guest code",
					       .at_most = 3,
					       .ours = ours,
					       .against = guest_exit,
					       .ctx = &machines[1] });
		engine_destroy(&machines[0]);
		engine_destroy(&machines[1]);
	}
	minikvm_destroy(&mini);
	return bench_end();
}
