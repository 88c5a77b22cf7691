/* SPDX-License-Identifier: BSD-2-Clause */
/* Serial line, exit port, clock; called by the instruction emulator on the vCPU's thread with the
 * mmu unlocked. */
#ifndef VMM_DEVICES_H
#define VMM_DEVICES_H

#include <vmm/vm.h>

int devices_create(struct vm *vm, struct vm_error *err);
/* Did the reader of the guest's output go away, or its disk fill? Returns: 0, -errno of the first failed write. */
int devices_output_error(struct vm *vm);
/* Lines that the guest did not finish are written. */
void devices_flush(struct vm *vm);
void devices_destroy(struct vm *vm);

struct devices_stats {
	uint64_t serial_bytes, serial_lines, unknown_ports;
	bool exited; /* by the exit port */
	uint32_t exit_code;
};
void devices_stats(struct vm *vm, struct devices_stats *stats);

/* @bytes: 1, 2 or 4. A port that nobody answers swallows writes and reads as all ones. */
void dev_out(struct vm *vm, struct vcpu *vcpu, uint16_t port, unsigned int bytes, uint32_t value);
uint32_t dev_in(struct vm *vm, struct vcpu *vcpu, uint16_t port, unsigned int bytes);

/*
 * rep outs: @count values of @bytes from @from. Returns: how many were put out; less than @count where memory ends, or
 * when the machine stops.
 */
uint64_t dev_outs(struct vm *vm, struct vcpu *vcpu, uint16_t port, unsigned int bytes, gpa_t from,
		  uint64_t count);

#endif
