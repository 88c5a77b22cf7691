/* SPDX-License-Identifier: BSD-2-Clause */
/* Carrying out the privileged instructions of a guest that runs in ring 3. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <vmm/devices.h>
#include <vmm/emulate.h>
#include <vmm/memory.h>
#include <vmm/vm_private.h>

#define CR0_PE (1ULL << 0)
#define CR0_MP (1ULL << 1)
#define CR0_EM (1ULL << 2)
#define CR0_TS (1ULL << 3)
#define CR0_ET (1ULL << 4)
#define CR0_NE (1ULL << 5)
#define CR0_WP (1ULL << 16)
#define CR0_AM (1ULL << 18)
#define CR0_NW (1ULL << 29)
#define CR0_CD (1ULL << 30)
#define CR0_PG (1ULL << 31)
/* What a guest may change: without effect here, but read back. */
#define CR0_FREE  (CR0_MP | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_ET)
#define CR4_PAE   (1ULL << 5)
#define CR4_PGE   (1ULL << 7)
#define CR4_FXSR  (1ULL << 9)
#define CR4_XMM   (1ULL << 10)
#define CR4_FREE  (CR4_PGE | CR4_FXSR | CR4_XMM)
#define EFER_LONG 0x500ULL /* LME, LMA */
#define APIC_BASE 0xfee00000ULL
#define APIC_BSP  0x100ULL
#define FLAGS_DF  (1ULL << 10)
#define CANONICAL (1ULL << 47)
#define CHUNK     4096 /* elements of one string instruction done before the guest may be stopped */

void emulate_init(struct emulate_state *state)
{
	*state = (struct emulate_state){
		.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP,
		.cr4 = CR4_PAE | CR4_FXSR | CR4_XMM,
	};
}

__attribute__((format(printf, 2, 3))) static enum emulate_result refuse(struct emulate *e,
									const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(e->why, sizeof(e->why), fmt, ap);
	va_end(ap);
	return EMULATE_REFUSED;
}

static void set_low32(__u64 *reg, uint32_t value)
{
	*reg = value; /* a 32-bit result clears the upper half */
}

/* ---- ports --------------------------------------------------------------------------------- */

static uint16_t port_of(const struct emulate *e, const struct insn *insn)
{
	return insn->port_in_dx ? (uint16_t)e->regs->rdx : insn->port;
}

static enum emulate_result do_out(struct emulate *e, const struct insn *insn)
{
	uint32_t mask = insn->bytes == 4 ? ~0U : (1U << 8 * insn->bytes) - 1;

	dev_out(e->vm, e->vcpu, port_of(e, insn), insn->bytes, (uint32_t)e->regs->rax & mask);
	return EMULATE_DONE;
}

static enum emulate_result do_in(struct emulate *e, const struct insn *insn)
{
	uint32_t value = dev_in(e->vm, e->vcpu, port_of(e, insn), insn->bytes);

	if (insn->bytes == 4)
		set_low32(&e->regs->rax, value);
	else
		memcpy(&e->regs->rax, &value, insn->bytes);
	e->dirty |= KVM_SYNC_X86_REGS;
	return EMULATE_DONE;
}

/* How a string instruction walks: registers are 32 bits wide with an address-size prefix. */
struct string {
	__u64 *index, *count;
	uint64_t mask, n;
	int64_t step;
};

static struct string string_of(struct emulate *e, const struct insn *insn, __u64 *index)
{
	struct string s = {
		.index = index,
		.count = &e->regs->rcx,
		.mask = insn->addr32 ? 0xffffffffULL : ~0ULL,
		.n = 1,
		.step = e->frame->rflags & FLAGS_DF ? -(int64_t)insn->bytes : (int64_t)insn->bytes,
	};

	if (insn->rep)
		s.n = *s.count & s.mask;
	if (s.n > CHUNK)
		s.n = CHUNK;
	return s;
}

/* Moves the registers by @done elements. Returns: is the instruction complete? */
static bool string_advance(struct emulate *e, const struct insn *insn, const struct string *s,
			   uint64_t done)
{
	if (!done)
		return true; /* rep with a count of 0 */
	*s->index = (*s->index + (uint64_t)s->step * done) & s->mask;
	e->dirty |= KVM_SYNC_X86_REGS;
	if (!insn->rep)
		return true;
	*s->count = ((*s->count & s->mask) - done) & s->mask;
	return !*s->count;
}

/*
 * As on the CPU, what was done before an element failed stays done, and the registers say how far it came. A machine
 * that stops in between is no failure.
 * Returns: 0 complete, 1 more to do, -EFAULT.
 */
static int string_end(struct emulate *e, const struct insn *insn, const struct string *s,
		      uint64_t done)
{
	const bool complete = string_advance(e, insn, s, done);

	return done == s->n ? !complete : vm_stopping(e->vm) ? 1 : -EFAULT;
}

static int do_outs(struct emulate *e, const struct insn *insn)
{
	struct string s = string_of(e, insn, &e->regs->rsi);
	uint64_t from = *s.index & s.mask, done = 0;

	if (s.step > 0 && from + s.n * insn->bytes - 1 <= s.mask) {
		if (s.n)
			done = dev_outs(e->vm, e->vcpu, port_of(e, insn), insn->bytes,
					(gpa_t){ from }, s.n);
	} else {
		while (done < s.n &&
		       dev_outs(e->vm, e->vcpu, port_of(e, insn), insn->bytes,
				(gpa_t){ (from + (uint64_t)s.step * done) & s.mask }, 1))
			done++;
	}
	return string_end(e, insn, &s, done);
}

static int do_ins(struct emulate *e, const struct insn *insn)
{
	struct string s = string_of(e, insn, &e->regs->rdi);
	uint64_t done;

	for (done = 0; done < s.n; done++) {
		uint32_t value = dev_in(e->vm, e->vcpu, port_of(e, insn), insn->bytes);
		gpa_t to = { (*s.index + (uint64_t)s.step * done) & s.mask };

		if (guest_write(e->vm, to, &value, insn->bytes))
			break;
	}
	return string_end(e, insn, &s, done);
}

static enum emulate_result do_string(struct emulate *e, struct insn *insn)
{
	int ret;

	if (insn->op == INSN_OUTS && insn->far_segment)
		return refuse(e, "outs with an FS or GS prefix is not supported");
	ret = insn->op == INSN_OUTS ? do_outs(e, insn) : do_ins(e, insn);
	if (ret < 0)
		return refuse(
			e, "%s at address %#llx, which is not memory or may not be used so",
			insn->name,
			(unsigned long long)(insn->op == INSN_OUTS ? e->regs->rsi : e->regs->rdi));
	if (ret > 0)
		insn->length = 0; /* comes again for the rest */
	return EMULATE_DONE;
}

/* ---- model-specific registers -------------------------------------------------------------- */

static int read_tsc(struct emulate *e, uint64_t *value)
{
	struct kvm_msrs *msrs = calloc(1, sizeof(*msrs) + sizeof(msrs->entries[0]));
	int ret;

	if (!msrs)
		return -ENOMEM;
	msrs->nmsrs = 1;
	msrs->entries[0].index = GUEST_MSR_TSC;
	ret = ioctl(e->vcpu_fd, KVM_GET_MSRS, msrs) == 1 ? 0 : -EIO;
	*value = msrs->entries[0].data;
	free(msrs);
	return ret;
}

static enum emulate_result do_rdmsr(struct emulate *e)
{
	uint64_t value = 0;

	switch ((uint32_t)e->regs->rcx) {
	case GUEST_MSR_EFER: value = EFER_LONG; break;
	case GUEST_MSR_FS_BASE: value = e->sregs->fs.base; break;
	case GUEST_MSR_GS_BASE: value = e->sregs->gs.base; break;
	case GUEST_MSR_APIC_BASE: value = APIC_BASE | (e->first_vcpu ? APIC_BSP : 0); break;
	case GUEST_MSR_TSC:
		if (read_tsc(e, &value))
			return refuse(e, "rdmsr of the TSC: KVM_GET_MSRS failed");
		break;
	default:
		return refuse(e, "rdmsr of %#x, which guests do not have (see abi/guest.h)",
			      (uint32_t)e->regs->rcx);
	}
	set_low32(&e->regs->rax, (uint32_t)value);
	set_low32(&e->regs->rdx, (uint32_t)(value >> 32));
	e->dirty |= KVM_SYNC_X86_REGS;
	return EMULATE_DONE;
}

static enum emulate_result do_wrmsr(struct emulate *e)
{
	uint64_t value = (e->regs->rax & 0xffffffff) | e->regs->rdx << 32;
	uint32_t msr = (uint32_t)e->regs->rcx;

	switch (msr) {
	case GUEST_MSR_EFER:
		if (value == EFER_LONG)
			return EMULATE_DONE;
		return refuse(e, "wrmsr: EFER stays %#llx, not %#llx",
			      (unsigned long long)EFER_LONG, (unsigned long long)value);
	case GUEST_MSR_FS_BASE:
	case GUEST_MSR_GS_BASE:
		/* Not canonical is #GP on the CPU too; a base in the upper half reaches only the
		 * monitor. */
		if (value >= CANONICAL)
			return refuse(e, "wrmsr of %#x: base %#llx is outside of guest memory", msr,
				      (unsigned long long)value);
		if (msr == GUEST_MSR_FS_BASE)
			e->sregs->fs.base = value;
		else
			e->sregs->gs.base = value;
		e->dirty |= KVM_SYNC_X86_SREGS;
		return EMULATE_DONE;
	default:
		return refuse(e,
			      "wrmsr of %#x, which guests do not have or may only read "
			      "(see abi/guest.h)",
			      msr);
	}
}

/* ---- control registers --------------------------------------------------------------------- */

/* The 16 general registers by number. rsp is the guest's, in the frame. */
static __u64 *gpr(struct emulate *e, unsigned int number)
{
	struct kvm_regs *r = e->regs;
	__u64 *const table[16] = {
		&r->rax, &r->rcx, &r->rdx, &r->rbx, &e->frame->rsp, &r->rbp, &r->rsi, &r->rdi,
		&r->r8,  &r->r9,  &r->r10, &r->r11, &r->r12,        &r->r13, &r->r14, &r->r15,
	};

	return table[number & 15];
}

static enum emulate_result do_mov_from_cr(struct emulate *e, const struct insn *insn)
{
	uint64_t value = 0; /* CR3: no table, paging is off for the guest */

	if (insn->cr == 0)
		value = e->state->cr0;
	else if (insn->cr == 2)
		value = e->state->cr2;
	else if (insn->cr == 4)
		value = e->state->cr4;
	else if (insn->cr == 8)
		value = e->state->cr8;
	*gpr(e, insn->gpr) = value;
	e->dirty |= KVM_SYNC_X86_REGS;
	return EMULATE_DONE;
}

static enum emulate_result set_cr0(struct emulate *e, uint64_t value)
{
	if (value & CR0_PG)
		return refuse(e, "mov to cr0: a guest cannot turn paging on in this version");
	if (!(value & CR0_PE))
		return refuse(e, "mov to cr0: a guest cannot leave protected mode");
	if ((value ^ e->state->cr0) & ~CR0_FREE)
		return refuse(e, "mov to cr0: bits %#llx cannot be changed",
			      (unsigned long long)((value ^ e->state->cr0) & ~CR0_FREE));
	e->state->cr0 = value;
	return EMULATE_DONE;
}

static enum emulate_result do_mov_to_cr(struct emulate *e, const struct insn *insn)
{
	uint64_t value = *gpr(e, insn->gpr);

	switch (insn->cr) {
	case 0: return set_cr0(e, value);
	case 2: e->state->cr2 = value; return EMULATE_DONE;
	case 3:
		if (value)
			return refuse(e,
				      "mov to cr3: a guest cannot have page tables of its own in "
				      "this version (asked for %#llx)",
				      (unsigned long long)value);
		return EMULATE_DONE;
	case 4:
		if ((value ^ e->state->cr4) & ~CR4_FREE)
			return refuse(e, "mov to cr4: bits %#llx cannot be changed",
				      (unsigned long long)((value ^ e->state->cr4) & ~CR4_FREE));
		e->state->cr4 = value;
		return EMULATE_DONE;
	default:
		if (value > 15)
			return refuse(e, "mov to cr8: %#llx is no priority",
				      (unsigned long long)value);
		e->state->cr8 = value;
		return EMULATE_DONE;
	}
}

/* ---- one instruction ----------------------------------------------------------------------- */

/* As many of the bytes at rip as there are: an instruction may end where memory ends. */
static size_t fetch(struct emulate *e, uint8_t *bytes)
{
	uint64_t rip = e->frame->rip;
	size_t n = INSN_MAX;
	size_t first = UMBRA_PAGE_SIZE - (rip & (UMBRA_PAGE_SIZE - 1));

	if (!guest_read(e->vm, (gpa_t){ rip }, bytes, n))
		return n;
	n = first < n ? first : n;
	return guest_read(e->vm, (gpa_t){ rip }, bytes, n) ? 0 : n;
}

static enum emulate_result carry_out(struct emulate *e, struct insn *insn)
{
	switch (insn->op) {
	case INSN_IN: return do_in(e, insn);
	case INSN_OUT: return do_out(e, insn);
	case INSN_INS:
	case INSN_OUTS: return do_string(e, insn);
	case INSN_HLT: return EMULATE_HALT;
	case INSN_CLI:
	case INSN_STI: e->state->interrupts = insn->op == INSN_STI; return EMULATE_DONE;
	case INSN_RDMSR: return do_rdmsr(e);
	case INSN_WRMSR: return do_wrmsr(e);
	case INSN_MOV_FROM_CR: return do_mov_from_cr(e, insn);
	case INSN_MOV_TO_CR: return do_mov_to_cr(e, insn);
	case INSN_INVLPG: /* the guest has no entries of its own */
	case INSN_WBINVD: return EMULATE_DONE;
	case INSN_CLTS: return EMULATE_DONE; /* TS is never set */
	case INSN_LGDT:
	case INSN_LIDT:
		return refuse(e, "%s: a guest cannot have descriptor tables in this version",
			      insn->name);
	case INSN_OTHER: break;
	}
	return refuse(e, "%s, which is not emulated", insn->name);
}

enum emulate_result emulate(struct emulate *e)
{
	uint64_t rip = e->frame->rip;
	enum emulate_result result;
	uint8_t bytes[INSN_MAX];
	struct insn insn;
	size_t n = fetch(e, bytes);
	int ret = insn_decode(bytes, n, &insn);

	e->dirty = 0;
	if (ret)
		return refuse(e, "%s at rip %#llx",
			      ret == -ENODATA ? "an instruction that goes beyond memory"
					      : "general protection fault (#GP)",
			      (unsigned long long)rip);
	result = carry_out(e, &insn);
	if (result == EMULATE_DONE)
		e->frame->rip = rip + insn.length;
	return result;
}
