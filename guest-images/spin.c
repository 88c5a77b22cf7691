/* SPDX-License-Identifier: BSD-2-Clause */
/* spin: all vCPUs run for ever, for Ctrl-C; with n=MILLISECONDS vCPU 0 ends after them. */
#include "guest.h"

void guest_secondary(unsigned int cpu)
{
	(void)cpu;
	for (;;)
		cpu_relax();
}

void guest_main(void)
{
	uint64_t limit = arg_number("n", 0) * 1000000, begin = clock_ns();

	say("spinning on %u vCPUs\n", guest_boot->vcpus);
	for (;;) {
		for (int i = 0; i < 1000000; i++)
			cpu_relax();
		if (limit && clock_ns() - begin > limit)
			break;
	}
	check(true, "spun for %lu ms", (clock_ns() - begin) / 1000000);
}
