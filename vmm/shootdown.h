/* SPDX-License-Identifier: BSD-2-Clause */
/* TLB shootdown: what the MMU changed and vCPUs must still forget; who is running; kicks. */
#ifndef VMM_SHOOTDOWN_H
#define VMM_SHOOTDOWN_H

#include <vmm/monitor.h>
#include <vmm/vm.h>

struct shootdown_stats {
	uint64_t posts;    /* tickets handed out with something in them */
	uint64_t kicks;    /* signals sent */
	uint64_t waits;    /* times a thread had to wait for a vCPU */
	uint64_t recycles; /* everything dropped at once instead of entry by entry */
	uint64_t pending;  /* records not yet touched, now */
};

/* Fills vm->shootdown. Needs the window and monitor. Returns: 0, or vm_fail(). */
int shootdown_create(struct vm *vm, struct vm_error *err);
void shootdown_destroy(struct vm *vm);

/*
 * From how many untouched entries on a vCPU drops all of KVM's shadows at once instead of touching
 * them. Default 8192: 38 ms of touching, against 74 us and the faults of KVM that follow. At most
 * 65536.
 */
void shootdown_set_recycle_at(struct vm *vm, uint64_t entries);
void shootdown_stats(const struct vm *vm, struct shootdown_stats *stats);

/* The MMU's flush ops; see umbra/mmu.h for what they promise. */
void shootdown_queue(struct vm *vm, const struct umbra_flush_entry *e);
void shootdown_queue_run(struct vm *vm, const struct umbra_flush_entry *first, uint32_t n);
uint64_t shootdown_post(struct vm *vm);
int shootdown_wait(struct vm *vm, uint64_t ticket, bool may_wait);
bool shootdown_done(struct vm *vm, uint64_t ticket);

/* ---- the vCPU's side ------------------------------------------------------------------------ */

/*
 * shootdown_collect - what vCPU @index must carry out before it may run guest code.
 * @flush: filled when there is something. May recycle, and then waits for the other vCPUs.
 * Returns: the ticket it covers; *@needed says whether @flush is to be run.
 */
uint64_t shootdown_collect(struct vm *vm, unsigned int index, struct monitor_flush *flush,
			   bool *needed);

/*
 * shootdown_enter - the vCPU is about to run guest code, having covered @ticket.
 * Returns: true: IN, run. False: something newer was posted; still OUT, collect again.
 * Pairs with: shootdown_exit().
 */
bool shootdown_enter(struct vm *vm, unsigned int index, uint64_t ticket);

/* Back from KVM_RUN, entered or not: reads what the monitor acknowledged, wakes who waits. */
void shootdown_exit(struct vm *vm, unsigned int index);

#endif
