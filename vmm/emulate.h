/* SPDX-License-Identifier: BSD-2-Clause */
/* Privileged instructions of a guest that runs in ring 3: decoding as a pure function, and carrying
 * out. */
#ifndef VMM_EMULATE_H
#define VMM_EMULATE_H

#include <linux/kvm.h>
#include <vmm/monitor.h>
#include <vmm/vm.h>

enum insn_op {
	INSN_IN,
	INSN_OUT,
	INSN_INS,
	INSN_OUTS,
	INSN_HLT,
	INSN_CLI,
	INSN_STI,
	INSN_RDMSR,
	INSN_WRMSR,
	INSN_MOV_FROM_CR,
	INSN_MOV_TO_CR,
	INSN_INVLPG,
	INSN_WBINVD,
	INSN_CLTS,
	INSN_LGDT,
	INSN_LIDT,
	INSN_OTHER, /* decoded far enough to name it: @name */
};

struct insn {
	enum insn_op op;
	const char *name;
	unsigned int length;           /* bytes, 1..15 */
	unsigned int bytes;            /* of the operand: 1, 2, 4 */
	bool rep, addr32, far_segment; /* far_segment: an FS or GS override */
	bool port_in_dx;
	uint8_t port;         /* if not in DX */
	unsigned int cr, gpr; /* for moves to and from control registers */
};

#define INSN_MAX 15

/*
 * insn_decode - decode one instruction in 64-bit mode.
 * Returns: 0; -ENODATA (@len bytes are not the whole of it); -EINVAL (not one that we know).
 */
int insn_decode(const uint8_t *code, size_t len, struct insn *insn);

/* What a guest sees of registers that it does not really have. */
struct emulate_state {
	uint64_t cr0, cr2, cr4, cr8;
	bool interrupts; /* virtual IF */
};

enum emulate_result {
	EMULATE_DONE,   /* go on */
	EMULATE_HALT,   /* hlt: this vCPU waits for ever */
	EMULATE_REFUSED /* guest crash; @why says what */
};

/*
 * struct emulate - one instruction to carry out. @regs: the guest's general registers; rip, rsp and
 * rflags are in @frame. @sregs: FS and GS bases. @dirty: KVM_SYNC_X86_* of what was changed.
 */
struct emulate {
	struct vm *vm;
	struct vcpu *vcpu;
	int vcpu_fd;
	struct kvm_regs *regs;
	struct kvm_sregs *sregs;
	struct monitor_frame *frame;
	struct emulate_state *state;
	bool first_vcpu;
	uint64_t dirty;
	char why[160];
};
void emulate_init(struct emulate_state *state);
enum emulate_result emulate(struct emulate *e);

#endif
