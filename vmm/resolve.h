/* SPDX-License-Identifier: BSD-2-Clause */
/* The MMU's ops as the machine implements them; their ctx is struct vm. */
#ifndef VMM_RESOLVE_H
#define VMM_RESOLVE_H

#include <vmm/vm.h>

extern const struct umbra_mmu_ops vm_mmu_ops;

#endif
