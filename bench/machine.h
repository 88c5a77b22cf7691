/* SPDX-License-Identifier: BSD-2-Clause */
/* Our machine in a benchmark: the engine's guest, which waits in a busy loop, and so is stopped while the floor is measured. */
#ifndef BENCH_MACHINE_H
#define BENCH_MACHINE_H

#include "tests/support/engine.h"

/* Returns: 0; -1, and bench_fail() has said why. The vCPUs do not run yet. Pairs with: engine_destroy(). */
int machine_create(struct engine *e, unsigned int vcpus, uint64_t bytes,
		   enum guest_page_kind pages);

/* vCPU i runs on CPU first + i until machine_rest(), in as many threads. Both may be called in any state. */
void machine_run(struct engine *e, unsigned int first_cpu);
void machine_rest(struct engine *e);

#endif
