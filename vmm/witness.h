/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The witness: what KVM was told of the guest's memory, held against what vmm's sources announced. It watches, and
 * nothing depends on it.
 */
#ifndef VMM_WITNESS_H
#define VMM_WITNESS_H

#include <umbra/tracepoint.h>
#include <vmm/vm.h>

#define WITNESS_KINDS 24

struct witness_stats {
	struct umbra_tracepoint_stats seen;
	uint64_t compared;     /* unmaps that were held against what was announced        */
	uint64_t unannounced;  /* of these, announced by nobody                           */
	uint64_t wider;        /* of these, announced in part: the kernel said more       */
	uint64_t not_compared; /* too many at once to remember                            */
	/* of the two: which kernel thread, process or, with --stacks, path it was */
	struct {
		char name[48];
		bool wider;
		uint64_t n;
		uint32_t nr_stack; /* of the first one */
		uint64_t stack[UMBRA_TRACEPOINT_STACK_MAX];
	} by[WITNESS_KINDS];
	unsigned int nr;
};

/* witness_create - listens from now on. After memory_publish(). Returns: 0, or the exit code with @err filled. */
struct witness;
int witness_create(struct vm *vm, struct vm_error *err);
void witness_destroy(struct vm *vm);

/* The body of its thread; returns when witness_stop() was called. */
void witness_run(struct vm *vm);
void witness_stop(struct vm *vm);

/* Everything, once all sources are drained and its thread has ended. */
void witness_collect(struct vm *vm, struct witness_stats *stats);
const char *witness_symbol(const struct vm *vm, uint64_t address);

#endif
