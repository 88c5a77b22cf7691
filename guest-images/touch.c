/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * touch: first touches read zero, and what was written is there, in any order of pages.
 * Arguments: pattern=seq|random|stride  step=4k|2m  n=PAGES
 */
#include "guest.h"

/* The i-th of @n places, each exactly once: n is a power of two for random (an odd multiplier
 * permutes it). */
static uint64_t place(uint64_t i, uint64_t n, bool random, bool stride)
{
	if (random)
		return (i * 0x9e3779b1ULL + 12345) & (n - 1);
	if (stride)
		return (i % 16) * (n / 16) + i / 16;
	return i;
}

void guest_main(void)
{
	bool random = arg_is("pattern", "random"), stride = arg_is("pattern", "stride");
	uint64_t step = arg_number("step", PAGE), n = arg_number("n", step < BLOCK ? 2048 : 512);
	struct range r = memory_take(~0UL >> 1, PAGE);
	uint64_t at = r.at, room = r.len, zero = 0, kept = 0, begin, end;

	if (step < PAGE || step % PAGE)
		step = PAGE;
	while (n > 1 && (n & (n - 1) || n * step > room))
		n = n & (n - 1) ? n & (n - 1) : n / 2;
	if (n * step > room)
		guest_skip("this step does not fit the memory");
	if (n < 16)
		stride = false;

	begin = clock_ns();
	for (uint64_t i = 0; i < n; i++) {
		uint64_t a = at + place(i, n, random, stride) * step;

		zero += load(a) == 0 && load(a + PAGE - 8) == 0;
		store(a, pattern(a, 1));
	}
	end = clock_ns();
	for (uint64_t i = 0; i < n; i++)
		kept += load(at + i * step) == pattern(at + i * step, 1);
	say("%s, step %lu KiB: %lu pages, %lu ns each\n",
	    random   ? "random"
	    : stride ? "stride"
		     : "sequential",
	    step >> 10, n, (end - begin) / n);
	check(zero == n, "%lu of %lu first reads were zero", zero, n);
	check(kept == n, "%lu of %lu values kept", kept, n);
}
