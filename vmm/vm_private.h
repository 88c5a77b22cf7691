/* SPDX-License-Identifier: BSD-2-Clause */
/* struct vm itself: included by the parts of vmm/ only. */
#ifndef VMM_VM_PRIVATE_H
#define VMM_VM_PRIVATE_H

#include <pthread.h>
#include <vmm/vm.h>

struct kvm_cpuid2;
struct window;    /* vmm/window.h    */
struct shootdown; /* vmm/shootdown.h */
struct devices;   /* vmm/devices.h   */
struct hostcalls; /* vmm/hostcall.h  */
struct chaos;     /* vmm/chaos.h     */
struct witness;   /* vmm/witness.h   */

struct vm {
	struct vm_config config;

	int kvm_fd, vm_fd;
	struct kvm_cpuid2 *cpuid; /* see kvm_cpuid() */
	hva_t ram;                /* gpa 0 */
	int ram_fd;               /* memfd or hugetlb memfd, -1 for anon */

	struct umbra_chain *chain;
	struct umbra_mmu *mmu;
	struct umbra_root *root;
	struct umbra_hostmap *hostmap;
	struct umbra_own *own;
	struct umbra_uffd *uffd;     /* NULL without uffd in --source   */
	struct umbra_module *module; /* NULL without module in --source */
	struct witness *witness;     /* NULL without tracepoints        */

	struct window *window;
	struct shootdown *shootdown;
	struct vcpu *vcpus[VM_VCPUS_MAX];
	struct devices *devices;
	struct hostcalls *hostcalls;
	struct chaos *chaos;
	struct memory *memory;
	struct actions *actions;
	struct report *report;

	gpa_t boot_info, entry; /* set by boot */
	uint64_t start_ns;      /* CLOCK_MONOTONIC at creation */

	_Atomic unsigned int warnings; /* said so far, see vm_log() */
	_Atomic int stop_state;        /* 0 running, 1 stopping */
	enum vmm_exit stop_code;
	char stop_why[512];
	pthread_mutex_t stop_lock;
	int signal_fd;  /* SIGINT and SIGTERM, for the main thread */
	int stop_event; /* eventfd: vm_stop() wakes the main thread */
};

#endif
