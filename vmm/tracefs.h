/* SPDX-License-Identifier: BSD-2-Clause */
/* What tracefs says of KVM's events, and the names of kernel functions: for the witness. */
#ifndef VMM_TRACEFS_H
#define VMM_TRACEFS_H

#include <umbra/tracepoint.h>

/*
 * tracefs_formats - where KVM's events have their fields.
 * @why: on error, what is missing and how to mend it. Returns: 0, -ENOENT, -EACCES, -ENOTSUP (a format that is not known).
 */
int tracefs_formats(struct umbra_tracepoint_format formats[UMBRA_TRACEPOINT_NR], char *why,
		    size_t size);

/* tracefs_no_witness - what mends @error of umbra_tracepoint_open(), as a sentence. */
void tracefs_no_witness(int error, char *why, size_t size);

/*
 * Names of kernel functions. tracefs_symbols_load() reads /proc/kallsyms once, which shows addresses to the privileged
 * only. Returns: NULL without. Pairs with: tracefs_symbols_free().
 */
struct tracefs_symbols;
struct tracefs_symbols *tracefs_symbols_load(void);
const char *tracefs_symbol(const struct tracefs_symbols *symbols, uint64_t address);
void tracefs_symbols_free(struct tracefs_symbols *symbols);

#endif
