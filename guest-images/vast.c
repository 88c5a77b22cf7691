/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vast: host calls over all of a large, sparse memory keep what is there, and the machine can be stopped in the middle
 * of them. call=split|collapse|swapout|all forever
 */
#include "guest.h"

#define TOUCHED 16

static struct range all;

static uint64_t place(uint64_t i)
{
	return all.at + (all.len / TOUCHED * i & ~(PAGE - 1));
}

static void ask(const char *name, enum guest_hostcall_nr nr)
{
	uint64_t begin, kept = 0;
	int64_t ret;

	if (arg_find("call") && !arg_is("call", name))
		return;
	begin = clock_ns();
	do
		ret = host(nr, all.at, all.len);
	while (arg_word("forever"));
	say("%s over %lu MiB: answered %ld after %lu us\n", name, all.len >> 20, (long)ret,
	    (clock_ns() - begin) / 1000);
	for (uint64_t i = 0; i < TOUCHED; i++)
		kept += load(place(i)) == pattern(place(i), 1);
	check(kept == TOUCHED, "%lu of %d values kept after %s", kept, TOUCHED, name);
}

void guest_main(void)
{
	all = memory_take(~0UL >> 1, BLOCK);
	if (all.len < TOUCHED * BLOCK)
		guest_skip("too little memory");
	for (uint64_t i = 0; i < TOUCHED; i++)
		store(place(i), pattern(place(i), 1));
	say("asking\n");
	ask("split", GUEST_CALL_SPLIT);
	ask("collapse", GUEST_CALL_COLLAPSE);
	ask("swapout", GUEST_CALL_SWAPOUT);
}
