/* SPDX-License-Identifier: BSD-2-Clause */
/* What each event source can promise. README's table and a test are made from this; change it only
 * with a reason. */
#include <umbra/events.h>

static const struct umbra_promises promises[UMBRA_SOURCE_NR] = {
	/* The bracket is in the calling thread, round the system call; nobody else's calls are seen. */
	[UMBRA_SOURCE_OWN] = {
		.start_before_change = true,
		.end_after_change = true,
		.caller_waits = true,
		.sees_own_calls = true,
		.sees_protect = true,
		.exact_range = true,
		.tier = 2,
	},
	/*
	 * REMOVE is read before the change but announced while the caller runs on; UNMAP, REMAP and FORK are read after it:
	 * so start comes before the change in no case that can be relied on. The end of a REMOVE does come after it.
	 */
	[UMBRA_SOURCE_UFFD] = {
		.end_after_change = true,
		.sees_own_calls = true,
		.sees_other_threads = true,
		.exact_range = true,
		.tier = 0,
	},
	/* Counters inside the callout; the records follow. The kernel's ranges are as wide as the kernel makes them. */
	[UMBRA_SOURCE_MODULE] = {
		.start_before_change = true,
		.end_after_change = true,
		.sees_own_calls = true,
		.sees_other_threads = true,
		.sees_kernel = true,
		.sees_protect = true,
		.tier = 1,
	},
	/* A record after the fact, start only. */
	[UMBRA_SOURCE_TRACEPOINT] = {
		.sees_own_calls = true,
		.sees_other_threads = true,
		.sees_kernel = true,
		.sees_protect = true,
		.tier = -1,
	},
	/* Slot changes and collapse inside the library: bracketed like own calls; the host is not changed. */
	[UMBRA_SOURCE_CORE] = {
		.start_before_change = true,
		.end_after_change = true,
		.caller_waits = true,
		.exact_range = true,
		.tier = 2,
	},
	/* Whatever a test injects; it promises nothing about the host. */
	[UMBRA_SOURCE_TEST] = {
		.tier = -1,
	},
};

const struct umbra_promises *umbra_source_promises(enum umbra_source source)
{
	return (unsigned int)source < UMBRA_SOURCE_NR ? &promises[source] : NULL;
}
