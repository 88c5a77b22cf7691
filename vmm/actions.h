/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the host does to guest memory, for host calls and for --chaos alike. An action works on
 * whole pages of RAM, through bracketed calls only, and returns 0, a count, or a negative errno.
 */
#ifndef VMM_ACTIONS_H
#define VMM_ACTIONS_H

#include <vmm/vm.h>

int actions_create(struct vm *vm, struct vm_error *err);
void actions_destroy(struct vm *vm);

/* Who protected a page: only what the guest asked for is counted when it is lifted. */
enum action_by { ACTION_BY_GUEST, ACTION_BY_CHAOS, ACTION_BY_NR };

/* All: @r is page aligned and all RAM; hugetlb: 2M aligned, or -EINVAL. */
/* These and split, collapse, swapout can be long: -EINTR when the machine stops in between. */
int64_t action_discard(struct vm *vm, struct hva_range r);
int64_t action_free(struct vm *vm, struct hva_range r);
int64_t action_protect(struct vm *vm, struct hva_range r, enum action_by by);
/* Puts back what @by still has protected in @r. Not counted. */
int64_t action_unprotect(struct vm *vm, struct hva_range r, enum action_by by);
int64_t action_split(struct vm *vm, struct hva_range r);
/* Blocks of 2M that hold something become one page each. Returns: -EINVAL where there is no such block. */
int64_t action_collapse(struct vm *vm, struct hva_range r);
/* Returns: pages that left memory. Without swap on the host: -ENOTSUP, or 0 for a file, whose pages are unmapped only. */
int64_t action_swapout(struct vm *vm, struct hva_range r);
int64_t action_remap(struct vm *vm, struct hva_range r);
/* The child ends at once; what stays is that private pages had become copy-on-write. */
int64_t action_fork(struct vm *vm);

/* umbra_check and umbra_audit now; each violation is printed. Returns: how many. */
uint64_t action_check(struct vm *vm);

/*
 * hostcall_lift_protection - a write to @gpa was denied by the host's mapping. Was that a
 * protection of ours? Context: a vCPU's thread or any other, mmu unlocked. Returns: true when the
 * page can be written now (lifted, or somebody else was quicker): run again.
 */
bool hostcall_lift_protection(struct vm *vm, gpa_t gpa);

struct action_stats {
	uint64_t protect_hits; /* writes that met the guest's own PROTECT */
	uint64_t chaos_hits;   /* writes that met chaos's                 */
	uint64_t checks, violations;
	uint64_t audited_leaves, audited_pages, audited_pfns, audit_skipped;
	uint64_t audits_inconclusive; /* of checks, see sources_audit() */
	uint64_t
		moved_by_kernel; /* most pages in one audit that the kernel moved, unseen by our sources */
};
void action_stats(struct vm *vm, struct action_stats *stats);

#endif
