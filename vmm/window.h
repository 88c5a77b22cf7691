/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The hidden window: guest-physical memory far above the guest's own, holding the monitor and every
 * table page. One linear reservation; KVM learns of it chunk by chunk as pages come into use.
 */
#ifndef VMM_WINDOW_H
#define VMM_WINDOW_H

#include <vmm/vm.h>

#define WINDOW_MONITOR_PAGES 32 /* the first pages belong to the monitor */

/* Virtual address, for ring 0 only, of page @index: top-level entry 511. */
#define WINDOW_VIRT       0xffffff8000000000ULL
#define WINDOW_ROOT_INDEX 511

/*
 * window_create - reserve the window (vm->window) and add its first chunk. Needs kvm_open().
 * Returns: 0, or vm_fail(). Pairs with: window_destroy(), after every vCPU and the MMU.
 */
int window_create(struct vm *vm, struct vm_error *err);
void window_destroy(struct vm *vm);

/* Fills @config's window, window_phys and window_pages. */
void window_configure(const struct vm *vm, struct umbra_mmu_config *config);

/* Page @index as the VMM sees it, and its guest-physical address. */
void *window_page(const struct vm *vm, uint64_t index);
uint64_t window_phys(const struct vm *vm, uint64_t index);

/* The MMU's table_alloc and table_free: -ENOSPC when full. Locks: the mmu lock is held. */
int window_table_alloc(struct vm *vm, uint64_t *index);
void window_table_free(struct vm *vm, uint64_t index);

/*
 * window_expose_ram - make sure that KVM has a slot for the chunk of guest memory that holds @gpa.
 * Context: any thread, no lock held; adding disturbs no running vCPU. Returns: 0, -errno.
 */
int window_expose_ram(struct vm *vm, gpa_t gpa);

/*
 * window_forget_shadows - make KVM drop every shadow of every table it has cached (74 us measured).
 * Context: no vCPU is running guest code. Returns: 0, -errno.
 */
int window_forget_shadows(struct vm *vm);

#endif
