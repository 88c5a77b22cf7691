/* SPDX-License-Identifier: BSD-2-Clause */
/* What the VMM does about a guest's exceptions. */
#ifndef VMM_EXITS_H
#define VMM_EXITS_H

#include <vmm/vm.h>

/* Exception @vector of the guest, which is in the monitor's frame. On the vCPU's thread. */
void exits_vector(struct vcpu *v, unsigned int vector);

#endif
