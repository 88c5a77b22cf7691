/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between the kernels this module is built for: 6.1 and later. */
#ifndef UMBRA_COMPAT_H
#define UMBRA_COMPAT_H

#include <linux/mm.h>
#include <linux/version.h>

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
typedef int umbra_young_t;
#else
typedef bool umbra_young_t;
#endif

#endif
