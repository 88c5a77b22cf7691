/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a guest may ask the host to do with its memory, and the same actions for --chaos. An action
 * works on whole pages of RAM, through bracketed calls only, and returns 0, a count, or a negative
 * errno.
 */
#ifndef VMM_HOSTCALL_H
#define VMM_HOSTCALL_H

#include <vmm/vm.h>

#define HOSTCALL_CHILDREN_MAX 8
#define HOSTCALL_ARENAS_MAX   16

int hostcalls_create(struct vm *vm, struct vm_error *err);
/* Ends the forked children, so that nobody waits for one any more. Callable more than once. */
void hostcalls_stop(struct vm *vm);
void hostcalls_destroy(struct vm *vm);

/* A guest's request at @request; its answer is written there. Never fails towards the caller. On
 * the vCPU's thread. */
void hostcall(struct vm *vm, struct vcpu *vcpu, gpa_t request);

/* hostcall_lift_protection, which the run loop calls, is with the actions. */
#include <vmm/actions.h>

/* The @i-th arena (modulo their number) as the guest declared it; false when there is none. */
bool hostcall_arena(struct vm *vm, uint64_t i, struct hva_range *r);

/* hostcall_age - tells the kernel module what the CPU has marked as accessed; the guest's log loses nothing by it. */
void hostcall_age(struct vm *vm);

struct hostcall_stats {
	uint64_t calls[GUEST_CALL_NR], failed[GUEST_CALL_NR], unknown;
};
void hostcall_stats(struct vm *vm, struct hostcall_stats *stats);
const char *hostcall_name(uint32_t nr);

#endif
