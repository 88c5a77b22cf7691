/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between the kernels this module is built for: 6.1 and later. */
#ifndef UMBRA_COMPAT_H
#define UMBRA_COMPAT_H

#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/version.h>

#include <abi/notifier.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags |= flags;
}

static inline void vm_flags_clear(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags &= ~flags;
}
#endif

/* The young callouts return bool from 7.1 on. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 1, 0)
#define umbra_young_t int
#else
#define umbra_young_t bool
#endif

/* The kernel's numbers are those of the ABI; a kernel where they are not does not build. */
static inline u8 umbra_event_of(const struct mmu_notifier_range *range)
{
	static_assert((int)MMU_NOTIFY_UNMAP == (int)UMBRA_NTF_UNMAP &&
		      (int)MMU_NOTIFY_CLEAR == (int)UMBRA_NTF_CLEAR &&
		      (int)MMU_NOTIFY_PROTECTION_VMA == (int)UMBRA_NTF_PROTECTION_VMA &&
		      (int)MMU_NOTIFY_PROTECTION_PAGE == (int)UMBRA_NTF_PROTECTION_PAGE &&
		      (int)MMU_NOTIFY_SOFT_DIRTY == (int)UMBRA_NTF_SOFT_DIRTY &&
		      (int)MMU_NOTIFY_RELEASE == (int)UMBRA_NTF_EVENT_RELEASE &&
		      (int)MMU_NOTIFY_MIGRATE == (int)UMBRA_NTF_MIGRATE &&
		      (int)MMU_NOTIFY_EXCLUSIVE == (int)UMBRA_NTF_EXCLUSIVE);
	return range->event <= MMU_NOTIFY_EXCLUSIVE ? range->event : UMBRA_NTF_OTHER;
}

#endif
