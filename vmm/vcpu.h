/* SPDX-License-Identifier: BSD-2-Clause */
/* A virtual CPU: its thread's run loop, faults, crashes. */
#ifndef VMM_VCPU_H
#define VMM_VCPU_H

#include <signal.h>
#include <stdio.h>
#include <vmm/vm.h>

/*
 * Sent to a vCPU's thread to make KVM_RUN return. Its handler does nothing. Not a real-time signal: those are queued,
 * and refused once the user has too many pending (ulimit -i); this one always arrives.
 */
#define VCPU_KICK_SIGNAL SIGUSR1

/* clang-format off */
#define VCPU_STATS(X)                                                                             \
	X(exits)	 /* returns of KVM_RUN                                                  */ \
	X(interrupted)	 /* of these, by a signal                                               */ \
	X(faults)	 /* page faults served                                                  */ \
	X(retries)	 /* answers UMBRA_FAULT_RETRY                                           */ \
	X(emulated)	 /* privileged instructions                                             */ \
	X(flushes)	 /* flush commands carried out in the monitor                           */ \
	X(flushed_entries) /* entries and tables touched by them                                */ \
	X(restarts)	 /* flush commands begun anew because something newer was posted         */ \
	X(deferred)	 /* flushes put off until an exception in delivery had arrived           */ \
	X(host_faults)	 /* KVM_RUN returned EFAULT: host page gone under a present leaf         */
/* clang-format on */

struct vcpu_stats {
#define VCPU_STATS_FIELD(name) uint64_t name;
	VCPU_STATS(VCPU_STATS_FIELD)
#undef VCPU_STATS_FIELD
};

/*
 * vcpu_create - vCPU @index of @vm, ready to start at vm->entry. Fills vm->vcpus[index] too.
 * Needs monitor_create() and shootdown_create(). Returns: 0, or vm_fail(). Pairs with:
 * vcpu_destroy().
 */
int vcpu_create(struct vm *vm, unsigned int index, struct vcpu **vcpu, struct vm_error *err);
void vcpu_destroy(struct vcpu *vcpu);

/*
 * vcpu_thread_run - run until vm_stopping(), or until this vCPU halted for good.
 * Context: the vCPU's own thread. VCPU_KICK_SIGNAL must not be blocked. Returns: 0.
 */
int vcpu_thread_run(struct vcpu *vcpu);

/* This one leaves the guest at once if it is there, else right after it enters. Any thread. */
void vcpu_kick(struct vcpu *vcpu);

/* All vCPUs leave the guest soon, and those that see vm_stopping() do not go back. Any thread. */
void vcpu_kick_all(struct vm *vm);

unsigned int vcpu_index(const struct vcpu *vcpu);

/* May be stale while the vCPU runs. */
void vcpu_stats(const struct vcpu *vcpu, struct vcpu_stats *stats);

/* Registers, instruction bytes and the last invalidations of the page, as of the last exit. */
void vcpu_print_state(FILE *out, struct vcpu *vcpu);

#endif
