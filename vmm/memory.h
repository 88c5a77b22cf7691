/* SPDX-License-Identifier: BSD-2-Clause */
/* Guest memory: its backing, its registration with everyone who must know it, and safe access to it
 * from the host. */
#ifndef VMM_MEMORY_H
#define VMM_MEMORY_H

#include <vmm/vm.h>

/*
 * memory_create - map the guest's RAM; nothing of it is touched, so that the cost does not grow
 * with its size. Fills vm->ram and vm->ram_fd. Returns: 0, or the exit code with @err filled. Pairs
 * with: memory_destroy().
 */
int memory_create(struct vm *vm, struct vm_error *err);
void memory_destroy(struct vm *vm);

/* memory_publish - tell the MMU (memslot), own calls (region) and userfaultfd. Returns: as
 * memory_create. */
int memory_publish(struct vm *vm, struct vm_error *err);

/* The RAM that holds [gpa, gpa + len), as host-virtual bytes. Returns: 0, -EFAULT when it is not
 * all RAM. */
int memory_range(const struct vm *vm, uint64_t gpa, uint64_t len, struct hva_range *r);

/* What --pages really gives, for the log and the report ("4k", "thp", "thp (by collapse only)",
 * "hugetlb"). */
const char *memory_pages_effective(const struct vm *vm);

/*
 * guest_read, guest_write - copy from and to guest memory. Memory that is missing, poisoned or not
 * accessible is an answer, never a signal. A write to a page that GUEST_CALL_PROTECT protected
 * lifts that and counts, like a guest's. Context: any thread, mmu unlocked. Returns: 0, -EFAULT
 * (then part of it may have been copied).
 */
int guest_read(struct vm *vm, gpa_t gpa, void *to, size_t len);
int guest_write(struct vm *vm, gpa_t gpa, const void *from, size_t len);

/*
 * memory_access_close, open - between them the pages of the guest may be away from their place, and a store would hit
 * the wrong page (mremap leaves zeros behind, fork makes pages copy-on-write): guest_read and guest_write wait.
 * memory_access_enter, leave - between them they are not away: for host actions whose effect is on what is there. What
 * is discarded while it is away comes back. Any number may be inside; who is inside must not enter or close again.
 */
void memory_access_close(struct vm *vm);
void memory_access_open(struct vm *vm);
void memory_access_enter(struct vm *vm);
void memory_access_leave(struct vm *vm);

#endif
