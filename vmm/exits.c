/* SPDX-License-Identifier: BSD-2-Clause */
/* What the VMM does about a guest's exceptions: page faults, privileged instructions, crashes. */
#include <errno.h>
#include <string.h>
#include <time.h>
#include <vmm/exits.h>
#include <vmm/hostcall.h>
#include <vmm/vcpu_private.h>
#include <vmm/vm_private.h>

#define PF_PRESENT      (1U << 0)
#define PF_WRITE        (1U << 1)
#define PF_USER         (1U << 2)
#define PF_RESERVED     (1U << 3)
#define PF_EXEC         (1U << 4)
#define GUEST_END       (1ULL << 47)
#define RETRY_FIRST_NS  20000L
#define RETRY_MOST_NS   1000000L
#define RECLAIM_EVERY   256 /* faults */
#define RECLAIM_TABLES  32
#define NO_MEMORY_TRIES 64

static const char *access_name(uint32_t access)
{
	if (access & UMBRA_ACCESS_WRITE)
		return "write to";
	return access & UMBRA_ACCESS_EXEC ? "jump to" : "read of";
}

/* Sleeps a little longer each time. The vCPU is OUT, so nobody waits for it. */
static void back_off(unsigned int turn)
{
	struct timespec t = { 0, RETRY_MOST_NS };

	if (!turn)
		return; /* once at once: most retries are answered by then */
	if (turn < 7)
		t.tv_nsec = RETRY_FIRST_NS << (turn - 1);
	nanosleep(&t, NULL);
}

/* A page table could not be had: free those that were unlinked, then let the guest fault again. */
static void make_room(struct vcpu *v, gpa_t gpa)
{
	umbra_reclaim(v->vm->mmu, ~0ULL);
	if (++v->no_memory_in_a_row > NO_MEMORY_TRIES)
		vcpu_bug(v, "no table page left for gpa %#llx", (unsigned long long)gpa.v);
}

/* Returns: true when the question may be put again at once. */
static bool failed(struct vcpu *v, enum umbra_fault_result result, const struct umbra_fault *f)
{
	const char *what = access_name(f->access);
	unsigned long long gpa = f->gpa.v;

	switch (result) {
	case UMBRA_FAULT_NO_SLOT:
		vcpu_crash(v, NULL, "%s gpa %#llx, where there is no memory", what, gpa);
		return false;
	case UMBRA_FAULT_READONLY:
	case UMBRA_FAULT_DENIED:
		if (f->access & UMBRA_ACCESS_WRITE && hostcall_lift_protection(v->vm, f->gpa))
			return true;
		vcpu_crash(v, &f->gpa, "%s gpa %#llx, which the host forbids", what, gpa);
		return false;
	case UMBRA_FAULT_BAD_HOST:
		vcpu_crash(v, &f->gpa, "%s gpa %#llx, behind which the host has nothing (%s)", what,
			   gpa, strerror(-f->error));
		return false;
	case UMBRA_FAULT_NO_MEMORY: make_room(v, f->gpa); return false;
	case UMBRA_FAULT_RELEASED:
		vcpu_crash(v, &f->gpa, "%s gpa %#llx after the memory was released", what, gpa);
		return false;
	default:
		vcpu_bug(v, "%s gpa %#llx: %s (%s)", what, gpa, umbra_fault_name(result),
			 strerror(-f->error));
		return false;
	}
}

static void resolve_fault(struct vcpu *v, uint64_t address, uint32_t access)
{
	struct umbra_fault f = { .gpa = { address }, .access = access };

	VCPU_COUNT(v, faults, 1);
	for (unsigned int turn = 0; !vm_stopping(v->vm);) {
		enum umbra_fault_result result = umbra_fault(v->vm->root, &f);

		if (result == UMBRA_FAULT_INSTALLED || result == UMBRA_FAULT_SPURIOUS) {
			v->no_memory_in_a_row = 0;
			break;
		}
		if (result == UMBRA_FAULT_RETRY) {
			VCPU_COUNT(v, retries, 1);
			back_off(turn++);
			continue;
		}
		if (!failed(v, result, &f))
			break;
	}
	if (v->stats.faults % RECLAIM_EVERY == 0)
		umbra_reclaim(v->vm->mmu, RECLAIM_TABLES);
}

static void page_fault(struct vcpu *v, const struct monitor_frame *frame)
{
	uint64_t address = v->run->s.regs.sregs.cr2;
	unsigned int error = (unsigned int)frame->error;
	uint32_t access = error & PF_WRITE  ? UMBRA_ACCESS_WRITE
			  : error & PF_EXEC ? UMBRA_ACCESS_EXEC
					    : UMBRA_ACCESS_READ;

	if (frame->rip == monitor_lstar())
		vcpu_crash(v, NULL, "syscall, which this version does not offer to guests");
	else if (address >= GUEST_END)
		vcpu_crash(v, NULL, "escape attempt: %s %#llx, outside of guest memory",
			   access_name(access), (unsigned long long)address);
	else if (error & PF_RESERVED) /* above, a KVM may have entries of its own */
		vcpu_bug(v, "reserved bits in a table entry for %#llx",
			 (unsigned long long)address);
	else if (!(error & PF_USER))
		vcpu_bug(v, "page fault of ring 0 at %#llx", (unsigned long long)address);
	else
		resolve_fault(v, address, access);
}

/* The last vCPU to halt ends the machine: nothing can wake any of them. */
static void halt(struct vcpu *v)
{
	struct vm *vm = v->vm;

	atomic_store(&v->halted, true);
	for (unsigned int i = 0; i < vm->config.vcpus; i++)
		if (vm->vcpus[i] && !atomic_load(&vm->vcpus[i]->halted))
			return;
	vm_stop(vm, VMM_EXIT_GUEST_FAIL, "all vCPUs halted without an exit code");
}

static void privileged(struct vcpu *v, struct monitor_frame *frame)
{
	struct emulate e = {
		.vm = v->vm,
		.vcpu = v,
		.vcpu_fd = v->fd,
		.regs = &v->run->s.regs.regs,
		.sregs = &v->run->s.regs.sregs,
		.frame = frame,
		.state = &v->emulate,
		.first_vcpu = v->index == 0,
	};

	switch (emulate(&e)) {
	case EMULATE_DONE:
		VCPU_COUNT(v, emulated, 1);
		v->run->kvm_dirty_regs |= e.dirty;
		break;
	case EMULATE_HALT:
		VCPU_COUNT(v, emulated, 1);
		halt(v);
		break;
	case EMULATE_REFUSED: vcpu_crash(v, &(gpa_t){ frame->rip }, "%s", e.why); break;
	}
}

void exits_vector(struct vcpu *v, unsigned int vector)
{
	struct monitor_frame *frame = monitor_frame(v->vm, v->index);

	if ((frame->cs & 3) != 3)
		vcpu_bug(v, "%s inside the monitor at %#llx", monitor_vector_name(vector),
			 (unsigned long long)frame->rip);
	else if (vector == 14)
		page_fault(v, frame);
	else if (vector == 13 && !frame->error)
		privileged(v, frame);
	else if (monitor_vector_has_error(vector))
		vcpu_crash(v, &(gpa_t){ frame->rip }, "%s, error code %#llx",
			   monitor_vector_name(vector), (unsigned long long)frame->error);
	else
		vcpu_crash(v, &(gpa_t){ frame->rip }, "%s", monitor_vector_name(vector));
}
