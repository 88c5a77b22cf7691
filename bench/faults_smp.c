/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * faults_smp: how many faults a second two vCPUs on two CPUs take together, each on memory of its own, against one
 * vCPU. What they share is the process: our lock, the kernel's locks of its address space, KVM's lock of the machine.
 */
#include <sys/mman.h>
#include "bench.h"
#include "machine.h"

#define PAGES    2048ULL
#define LOOK_US  1000         /* seldom: each look takes some 20 us from the vCPU on this CPU */
#define REGION   (8ULL << 20) /* of vCPU 0; that of vCPU 1 comes 8 MiB later */
#define DISTANCE (8ULL << 20)

static struct engine machines[2]; /* of 1 and of 2 vCPUs: the other CPU rests while 1 is measured */

static struct gfn_range pages(uint64_t gpa, uint64_t n)
{
	return (struct gfn_range){ { gpa >> 12 }, { (gpa >> 12) + n } };
}

/* Faults a second of all vCPUs, which begin and end together. */
static double rate(void *ctx)
{
	struct engine *e = ctx;
	const unsigned int n = e->vm.config.vcpus;
	uint64_t ns;

	machine_run(e, 0);
	bench_pin(pthread_self(), 1);
	for (unsigned int i = 0; i < n; i++) {
		umbra_zap(e->vm.mmu, pages(REGION + i * DISTANCE, PAGES));
		*engine_mailbox(e, i) = (struct engine_mailbox){
			.addr = REGION + i * DISTANCE,
			.count = PAGES,
			.stride = UMBRA_PAGE_SIZE,
			.value = 1,
		};
	}
	ns = bench_ns();
	for (unsigned int i = 0; i < n; i++)
		__atomic_store_n(&engine_mailbox(e, i)->op, ENGINE_WRITE, __ATOMIC_RELEASE);
	for (unsigned int i = 0; i < n; i++)
		while (__atomic_load_n(&engine_mailbox(e, i)->op, __ATOMIC_ACQUIRE)) {
			if (vm_stopping(&e->vm)) {
				bench_fail("the guest stopped: %s", e->vm.stop_why);
				return BENCH_FAILED;
			}
			engine_pause(LOOK_US);
		}
	ns = bench_ns() - ns;
	machine_rest(e);
	return (double)n * (double)PAGES * 1e9 / (double)ns;
}

static double two(void *ctx)
{
	(void)ctx;
	return rate(&machines[1]);
}

static double one(void *ctx)
{
	(void)ctx;
	return rate(&machines[0]);
}

int main(void)
{
	bench_begin("faults_smp", 1);
	bench_note("vCPU i on CPU no. i");
	if (bench_cpus() < 2) {
		bench_fail("one CPU only");
		return bench_end();
	}
	for (unsigned int i = 0; i < 2; i++) {
		if (machine_create(&machines[i], i + 1, 64ULL << 20, GUEST_PAGES_4K))
			return bench_end();
		madvise(engine_at(&machines[i], REGION), 2 * DISTANCE, MADV_POPULATE_WRITE);
	}
	bench_row(&(struct bench_row){ .name = "faults_smp",
				       .unit = "1/s",
				       .what = "faults of 2 vCPUs",
				       .floor = "of 1",
				       .at_least = 1.6,
				       .ours = two,
				       .against = one });
	engine_destroy(&machines[0]);
	engine_destroy(&machines[1]);
	return bench_end();
}
