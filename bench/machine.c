/* SPDX-License-Identifier: BSD-2-Clause */
/* Our machine in a benchmark: see machine.h. */
#include "machine.h"

#include "bench.h"

int machine_create(struct engine *e, unsigned int vcpus, uint64_t bytes, enum guest_page_kind pages)
{
	if (!engine_create(e, vcpus, bytes, pages))
		return 0;
	bench_fail("no usable KVM");
	return -1;
}

void machine_run(struct engine *e, unsigned int first_cpu)
{
	uint64_t word;

	if (!e->running) {
		atomic_store(&e->vm.stop_state, 0);
		engine_start(e);
	}
	for (unsigned int i = 0; i < e->vm.config.vcpus; i++)
		bench_pin(e->threads[i], first_cpu + i);
	for (unsigned int i = 0; i < e->vm.config.vcpus; i++)
		engine_read(e, i, ENGINE_MAILBOX, &word); /* it is there when it answers */
}

void machine_rest(struct engine *e)
{
	engine_stop(e);
}
