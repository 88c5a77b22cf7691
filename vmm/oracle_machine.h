/* SPDX-License-Identifier: BSD-2-Clause */
/* The actions of the oracle that need the machine: oracle_machine has them, oracle_rows the table. */
#ifndef VMM_ORACLE_MACHINE_H
#define VMM_ORACLE_MACHINE_H

#include <vmm/oracle.h>

/* Is there swap? */
bool oracle_host_swaps(void);

/* As prepare() and act() of a row: return 0, or -errno with o->why set where it helps. Those with a keeper need ORACLE_SETTINGS. */
int oracle_other_node(struct oracle *o); /* without a keeper */
int oracle_numa_scan(struct oracle *o);
int oracle_same_twice(struct oracle *o); /* without */
int oracle_merge(struct oracle *o);
int oracle_khugepaged(struct oracle *o);
int oracle_kswapd(struct oracle *o);
int oracle_join_group(struct oracle *o);
int oracle_group_reclaim(struct oracle *o);
int oracle_fragment(struct oracle *o);
int oracle_compact(struct oracle *o);

#endif
