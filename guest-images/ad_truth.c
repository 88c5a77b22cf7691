/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ad_truth: the host's report of accessed and dirty pages is what the guest did: on 4K memory
 * exactly, with 2M leaves by whole blocks of 2M, under chaos at least. n=ROUNDS
 */
#include "guest.h"

#define PAGES      2048
#define PAGES_TINY 128

static uint64_t did_access[PAGES / 64], did_write[PAGES / 64], told[2 * PAGES / 64];

static bool bit(const uint64_t *map, uint64_t i)
{
	return map[i / 64] >> i % 64 & 1;
}

static void set(uint64_t *map, uint64_t i)
{
	map[i / 64] |= 1UL << i % 64;
}

static bool block_has(const uint64_t *map, uint64_t i, uint64_t pages)
{
	uint64_t first = i & ~511UL;

	for (uint64_t k = first; k < first + 512 && k < pages; k++) {
		if (bit(map, k))
			return true;
	}
	return false;
}

struct verdict {
	uint64_t missing, extra, said;
};

/* @by_block: a bit may be set without an access of its page if its 2M block had one. */
static struct verdict compare(const uint64_t *did, const uint64_t *says, uint64_t pages,
			      bool by_block)
{
	struct verdict v = { 0, 0, 0 };

	for (uint64_t i = 0; i < pages; i++) {
		v.said += bit(says, i);
		if (bit(did, i) && !bit(says, i))
			v.missing++;
		if (bit(says, i) && !bit(did, i) && !(by_block && block_has(did, i, pages)))
			v.extra++;
	}
	return v;
}

void guest_main(void)
{
	bool by_block = guest_boot->page_kind != GUEST_PAGES_4K;
	struct range r = memory_take(by_block ? PAGES * PAGE : 512 * PAGE, by_block ? BLOCK : PAGE);
	uint64_t pages, rounds = arg_number("n", 3), words;

	if (r.len < PAGES_TINY * PAGE)
		guest_skip("too little memory");
	pages = r.len / PAGE;
	words = (pages + 63) / 64;
	fill((struct range){ r.at, r.len / 2 }, 1); /* some pages present before, some not */
	for (uint64_t round = 0; round < rounds; round++) {
		struct rng rng = rng_seed(round);
		struct verdict a, w;
		int64_t ret = host(GUEST_CALL_LOG_RESET, r.at, r.len);

		if (ret == -E_NOTSUP || ret == -E_INVAL)
			guest_skip("no log of accesses here");
		check(ret == 0, "LOG_RESET answered %ld", ret);
		memset(did_access, 0, sizeof(did_access));
		memset(did_write, 0, sizeof(did_write));
		for (uint64_t i = 0; i < pages; i++) {
			uint64_t what = rng_below(&rng, 8);

			/* With 2M leaves, leave whole blocks alone: else every bit would be right.
			 */
			if (by_block && (i / 512 + round) % 2)
				continue;
			if (what == 0) {
				store(r.at + i * PAGE + 8, round);
				set(did_write, i);
			} else if (what < 3) {
				load(r.at + i * PAGE + 16);
			}
			if (what < 3)
				set(did_access, i);
		}
		ret = host_call(GUEST_CALL_LOG_READ, r.at, r.len, (uint64_t)(uintptr_t)told, NULL);
		if (!check(ret >= 0, "LOG_READ answered %ld", ret))
			return;
		__asm__ __volatile__("" : "+m"(told)); /* written by the host */
		a = compare(did_access, told, pages, by_block);
		w = compare(did_write, told + words, pages, by_block);
		check(a.missing == 0, "accessed: no page missing (%lu of %lu reported)", a.said,
		      pages);
		check(w.missing == 0, "dirty: no page missing (%lu of %lu reported)", w.said,
		      pages);
		if (chaotic())
			continue;
		check(a.extra == 0, "accessed: %lu pages too many", a.extra);
		check(w.extra == 0, "dirty: %lu pages too many", w.extra);
	}
}
