/* SPDX-License-Identifier: BSD-2-Clause */
/* Names for people and programs: sources, causes, fault results. */
#include <umbra/mmu.h>

const char *umbra_source_name(enum umbra_source source)
{
	static const char *const names[UMBRA_SOURCE_NR] = { "own",        "uffd", "module",
							    "tracepoint", "core", "test" };

	return (unsigned int)source < UMBRA_SOURCE_NR ? names[source] : "?";
}

const char *umbra_cause_name(enum umbra_cause cause)
{
	static const char *const names[UMBRA_CAUSE_NR] = {
		"unknown",    "unmap",    "discard", "free", "remove", "protect", "remap",
		"swap",       "collapse", "split",   "fork", "cow",    "migrate", "merge",
		"soft-dirty", "guard",    "memslot", "lost", "release"
	};

	return (unsigned int)cause < UMBRA_CAUSE_NR ? names[cause] : "?";
}

const char *umbra_fault_name(enum umbra_fault_result result)
{
	static const char *const names[] = { "installed",      "spurious", "retry",    "no slot",
					     "read-only slot", "denied",   "bad host", "no memory",
					     "released",       "error" };

	return (unsigned int)result < sizeof(names) / sizeof(names[0]) ? names[result] : "?";
}
