/* SPDX-License-Identifier: BSD-2-Clause */
/* /dev/kvm: opening, capabilities, memory slots, and the ioctls each kind of thread needs
 * afterwards. */
#ifndef VMM_KVM_H
#define VMM_KVM_H

#include <vmm/vm.h>

/* KVM's slot numbers. Slot 0 is one spare page: deleting it makes KVM forget every shadow it holds.
 */
#define KVM_SLOT_SPARE  0
#define KVM_SLOT_WINDOW 1    /* + chunk of the hidden window */
#define KVM_SLOT_RAM    1024 /* + chunk of guest memory */

/*
 * kvm_open - open /dev/kvm (or take config.kvm_fd), check what is needed, create the VM.
 * Fills vm->kvm_fd and vm->vm_fd. Returns: 0, or vm_fail(). Pairs with: kvm_close().
 */
int kvm_open(struct vm *vm, struct vm_error *err);
void kvm_close(struct vm *vm);

/*
 * kvm_slot_set - [gpa, gpa + bytes) of the guest is memory at @hva; @bytes 0 deletes the slot.
 * Context: any thread, any time; adding disturbs no running vCPU. Returns: 0, -errno.
 */
int kvm_slot_set(int vm_fd, uint32_t slot, uint64_t gpa, uint64_t bytes, void *hva);

struct kvm_cpuid2;
struct kvm_cpuid_entry2;

/*
 * kvm_cpuid - what this host offers to guests, asked for once: a virtual machine's CPUID is slow. @cpuid: the
 * machine's, until kvm_close(). Context: set-up, one thread. Returns: 0, -errno.
 */
int kvm_cpuid(struct vm *vm, struct kvm_cpuid2 **cpuid);

/* Its entry for @function, subleaf 0, or NULL. */
const struct kvm_cpuid_entry2 *kvm_cpuid_find(const struct kvm_cpuid2 *cpuid, uint32_t function);

/* Guest-physical address bits that this host offers. Returns: bits, -errno. */
int kvm_phys_bits(struct vm *vm);

/* ioctls made after set-up, for the sandbox. OTHER: any thread that uses the MMU and runs no vCPU.
 */
enum kvm_thread { KVM_THREAD_VCPU, KVM_THREAD_OTHER, KVM_THREAD_NR };

struct kvm_ioctls {
	const unsigned long *nr;
	size_t n;
};
extern const struct kvm_ioctls kvm_ioctls[KVM_THREAD_NR];

#endif
