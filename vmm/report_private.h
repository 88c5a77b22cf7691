/* SPDX-License-Identifier: BSD-2-Clause */
/* What the two forms of the report share. */
#ifndef VMM_REPORT_PRIVATE_H
#define VMM_REPORT_PRIVATE_H

#include <vmm/actions.h>
#include <umbra/module.h>
#include <vmm/chaos.h>
#include <vmm/devices.h>
#include <vmm/hostcall.h>
#include <vmm/report.h>
#include <vmm/shootdown.h>
#include <vmm/sources.h>
#include <vmm/vcpu.h>
#include <vmm/witness.h>

/* Invalidations of one source for one cause, counted as they start. */
struct report_cell {
	_Atomic uint64_t n, bytes;
};

struct report {
	struct umbra_notifier notifier;
	struct report_cell cell[UMBRA_SOURCE_NR][UMBRA_CAUSE_NR];
	/* The module's once more: by whom, direct or not, whether they could have waited. */
	struct report_cell callout[UMBRA_CAUSE_NR][SOURCES_DOER_NR][2][2];
	struct vm *vm;
	/* by report_collect() */
	double seconds;
	uint64_t peak_rss; /* bytes */
	struct umbra_stats mmu;
	struct shootdown_stats shootdown;
	struct vcpu_stats vcpu; /* of all */
	struct action_stats action;
	struct chaos_stats chaos;
	struct hostcall_stats hostcall;
	struct devices_stats devices;
	struct umbra_uffd_stats uffd;
	struct umbra_module_stats module;
	struct witness_stats witness;
};

/* What the checks and audits found, in either form. */
struct json_t;
void report_print_checks(const struct action_stats *s, FILE *out);
struct json_t *report_checks_json(const struct action_stats *from);

#endif
