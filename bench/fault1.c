/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fault1: a guest touches a page that has no entry but host memory behind it; how long until it runs on? Against one
 * port exit, and against the least that a program can do about a page fault of a de-privileged guest.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include "bench.h"
#include "machine.h"
#include "minikvm.h"

#define PAGES   512ULL
#define EXITS   512U
#define REGION  (8ULL << 20)
#define VCPU_AT 0 /* both guests run there; who tells ours what to do waits elsewhere */

static struct engine e;
static struct minikvm mini;

static double port_exit(unsigned int ring)
{
	uint64_t t0;

	bench_pin(pthread_self(), VCPU_AT);
	if (minikvm_aim_exits(&mini, ring))
		return BENCH_FAILED;
	minikvm_run(&mini);
	t0 = bench_ns();
	for (unsigned int i = 0; i < EXITS; i++)
		if (minikvm_run(&mini) != MINIKVM_EXIT)
			return BENCH_FAILED;
	return (double)(bench_ns() - t0) / EXITS / 1e3;
}

/* us for one port exit of guest code, which runs in ring 3 here. */
static double guest_exit(void *ctx)
{
	(void)ctx;
	return port_exit(3);
}

/* us for one of ring-0 code. */
static double ring0_exit(void *ctx)
{
	(void)ctx;
	return port_exit(0);
}

/* us for one fault, the VMM storing the entry and nothing else. */
static double bare_fault(void *ctx)
{
	static uint64_t block;
	unsigned int faults = 0;
	uint64_t t0;
	int port;

	(void)ctx;
	bench_pin(pthread_self(), VCPU_AT);
	if (block == MINIKVM_BLOCKS || minikvm_aim_sweep(&mini, block++))
		return BENCH_FAILED;
	t0 = bench_ns();
	while ((port = minikvm_run(&mini)) == MINIKVM_FAULT && minikvm_install(&mini))
		faults++;
	if (port != MINIKVM_FAULT || faults != MINIKVM_PAGES) {
		bench_fail("the floor's guest took %u faults and left by %d", faults, port);
		return BENCH_FAILED;
	}
	return (double)(bench_ns() - t0) / (double)faults / 1e3;
}

/* us for one page that has no entry, in a sweep of the guest over all of them. */
static double our_fault(void *ctx)
{
	uint64_t t0;
	bool ok;

	(void)ctx;
	bench_pin(pthread_self(), VCPU_AT + 1);
	machine_run(&e, VCPU_AT);
	umbra_zap(e.vm.mmu, (struct gfn_range){ { REGION >> 12 }, { (REGION >> 12) + PAGES } });
	t0 = bench_ns();
	ok = engine_sweep(&e, 0, ENGINE_WRITE, REGION, PAGES, UMBRA_PAGE_SIZE);
	t0 = bench_ns() - t0;
	machine_rest(&e);
	if (!ok)
		bench_fail("the guest stopped: %s", e.vm.stop_why);
	return ok ? (double)t0 / (double)PAGES / 1e3 : BENCH_FAILED;
}

static void rows(void)
{
	const char *fault = "fault on a page with host memory",
		   *bare = "#PF, out, store, iretq, no more";

	bench_row(&(struct bench_row){ .name = "fault1",
				       .unit = "us",
				       .what = fault,
				       .floor = "one port exit of guest code",
				       .at_most = 1.6,
				       .ours = our_fault,
				       .against = guest_exit });
	bench_row(&(struct bench_row){ .name = "fault1_bare",
				       .unit = "us",
				       .what = fault,
				       .floor = bare,
				       .ours = our_fault,
				       .against = bare_fault });
	bench_row(&(struct bench_row){ .name = "fault1_floor",
				       .unit = "us",
				       .what = bare,
				       .floor = "one port exit of guest code",
				       .ours = bare_fault,
				       .against = guest_exit });
	bench_row(&(struct bench_row){ .name = "fault1_exits",
				       .unit = "us",
				       .what = "one port exit of guest code",
				       .floor = "one of ring 0",
				       .ours = guest_exit,
				       .against = ring0_exit });
}

int main(void)
{
	int ret;

	bench_begin("fault1", VCPU_AT);
	bench_note("both guests on CPU no. %d; who gives ours its work waits on no. %d", VCPU_AT,
		   VCPU_AT + 1);
	ret = minikvm_create(&mini, 32ULL << 20);
	ret = ret ? ret : minikvm_long_mode(&mini);
	if (ret) {
		bench_fail("the floor: %s", strerror(-ret));
		minikvm_destroy(&mini);
		return bench_end();
	}
	if (machine_create(&e, 1, 64ULL << 20, GUEST_PAGES_4K)) {
		minikvm_destroy(&mini);
		return bench_end();
	}
	madvise(engine_at(&e, REGION), PAGES * UMBRA_PAGE_SIZE, MADV_POPULATE_WRITE);
	rows();
	engine_destroy(&e);
	minikvm_destroy(&mini);
	return bench_end();
}
