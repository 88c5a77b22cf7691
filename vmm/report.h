/* SPDX-License-Identifier: BSD-2-Clause */
/* What happened to guest memory and what it cost, as a table for people and as one JSON object for
 * programs. */
#ifndef VMM_REPORT_H
#define VMM_REPORT_H

#include <stdio.h>
#include <vmm/vm.h>

/* Counts every invalidation by source and cause from now on: a second consumer on the chain. */
struct report;
int report_create(struct vm *vm, struct vm_error *err);
void report_destroy(struct vm *vm);

/* A snapshot of what is gone when the machine is taken down. After all vCPUs have stopped. */
void report_collect(struct vm *vm);
/* The account as a table, or as one line of JSON. Returns: 0, -errno. */
int report_print_text(struct vm *vm, FILE *out);
int report_print_json(struct vm *vm, FILE *out);

#endif
