/* SPDX-License-Identifier: BSD-2-Clause */
/* hello: the machine starts, the boot information is sane, the console, clock and host calls
 * answer. */
#include "guest.h"

void guest_main(void)
{
	const struct guest_boot_info *b = guest_boot;
	static const char *const kinds[] = { "4k", "thp", "hugetlb" };
	static const char *const backings[] = { "anon", "memfd" };
	static uint64_t bss[64], data = 0x5eed;
	uint64_t zero = 0, before, after;

	/* Not known to the compiler: the loader is what is tested. */
	__asm__ __volatile__("" : "+m"(bss), "+m"(data));
	for (unsigned int i = 0; i < 64; i++)
		zero |= bss[i];
	say("hello from a guest: %lu KiB, %u vCPUs, %s, %s%s%s\n", b->memory >> 10, b->vcpus,
	    kinds[b->page_kind % 3], backings[b->backing % 2], b->args[0] ? ", args: " : "",
	    b->args);
	check(b->memory >= BLOCK && b->memory % BLOCK == 0, "memory is whole 2M");
	check(b->vcpus >= 1 && b->vcpus <= 8, "1 to 8 vCPUs");
	check(b->page_kind <= GUEST_PAGES_HUGETLB && b->backing <= GUEST_BACKING_MEMFD,
	      "page kind and backing are known");
	check(b->free_base % BLOCK == 0 && b->free_base <= b->memory, "free memory at 0x%lx",
	      b->free_base);
	check(zero == 0 && data == 0x5eed, "bss is zero and data is there");
	before = clock_ns();
	after = clock_ns();
	check(after >= before && before > 0, "the clock does not go back");
	check(host(GUEST_CALL_NOP, 0, 0) == 0, "the host answers a call");
	check(host(GUEST_CALL_CHECK, 0, 0) == 0, "the host finds no violation in its tables");
}
