/* SPDX-License-Identifier: BSD-2-Clause */
/* crash: an invalid instruction: the machine ends as a guest crash that shows registers and code.
 * cpu=N */
#include "guest.h"

static void crash(void)
{
	__asm__ __volatile__("mov $0xc0ffee, %%eax\n\tud2" ::: "rax", "memory");
}

void guest_secondary(unsigned int cpu)
{
	if (arg_number("cpu", 0) == cpu)
		crash();
}

void guest_main(void)
{
	say("crashing on vCPU %lu\n", arg_number("cpu", 0));
	if (arg_number("cpu", 0) == 0)
		crash();
	for (;;)
		cpu_relax();
}
