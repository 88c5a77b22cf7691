/* SPDX-License-Identifier: BSD-2-Clause */
/* Prints README's table of promises from the code: one row per source. */
#include <stdio.h>
#include <umbra/events.h>

static const char *const what[UMBRA_SOURCE_NR] = {
	[UMBRA_SOURCE_OWN] = "own calls (`umbra_madvise()` and its kin)",
	[UMBRA_SOURCE_UFFD] = "userfaultfd",
	[UMBRA_SOURCE_MODULE] = "kernel module",
	[UMBRA_SOURCE_TRACEPOINT] = "KVM tracepoints",
};

static const char *yes(bool b)
{
	return b ? "yes" : "no";
}

int main(void)
{
	printf("| source | start before the change | end after it | who changes waits | own calls | other threads "
	       "| the kernel | mprotect | exact | tier |\n"
	       "|---|---|---|---|---|---|---|---|---|---|\n");
	for (unsigned int i = 0; i < UMBRA_SOURCE_NR; i++) {
		const struct umbra_promises *p = umbra_source_promises((enum umbra_source)i);

		if (!what[i] || !p)
			continue;
		printf("| %s | %s | %s | %s | %s | %s | %s | %s | %s | ", what[i], yes(p->start_before_change),
		       yes(p->end_after_change), yes(p->caller_waits), yes(p->sees_own_calls),
		       yes(p->sees_other_threads), yes(p->sees_kernel), yes(p->sees_protect), yes(p->exact_range));
		if (p->tier < 0)
			printf("witness |\n");
		else
			printf("T%d |\n", p->tier);
	}
	return 0;
}
