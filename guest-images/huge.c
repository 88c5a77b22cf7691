/* SPDX-License-Identifier: BSD-2-Clause */
/* huge: a 2M page of the host gives a 2M leaf, a split gives 4K leaves, 4K memory never a 2M leaf.
 */
#include "guest.h"

struct leaves {
	uint64_t small, big;
};

static struct leaves leaves(struct range r)
{
	uint64_t val = 0;
	int64_t ret = host_call(GUEST_CALL_LEAVES, r.at, r.len, 0, &val);
	struct leaves l = { val & 0xffffffff, val >> 32 };

	check(ret == 0, "LEAVES: %lu of 4K, %lu of 2M", l.small, l.big);
	return l;
}

static void touch_all(struct range r)
{
	for (uint64_t a = r.at; a < r.at + r.len; a += PAGE)
		store(a, load(a));
}

void guest_main(void)
{
	struct range r = memory_take(2 * BLOCK, BLOCK);
	uint64_t blocks = r.len / BLOCK;
	struct leaves l;
	bool big;

	if (!blocks)
		guest_skip("no whole 2M to test on");
	fill(r, 1);
	l = leaves(r);
	check(l.small + 512 * l.big <= 512 * blocks, "not more leaves than memory");
	if (!guest_boot->sees_2m) {
		check(l.big == 0, "a host that does not tell 2M pages apart: no 2M leaf");
		check(wrong_words(r, 1) == 0, "contents");
		guest_skip("the host does not tell where it maps by 2M (before Linux 6.7)");
	}
	switch (guest_boot->page_kind) {
	case GUEST_PAGES_4K: check(l.big == 0, "4K memory has no 2M leaf"); break;
	case GUEST_PAGES_HUGETLB:
		check(chaotic() ? l.small == 0 : l.big == blocks && l.small == 0,
		      "hugetlb memory has 2M leaves only");
		check(wrong_words(r, 1) == 0, "contents");
		return;
	default: break;
	}
	big = host_does(GUEST_CALL_COLLAPSE, r.at, r.len, "collapse");
	check(wrong_words(r, 1) == 0, "contents after collapse");
	touch_all(r);
	l = leaves(r);
	if (big && !chaotic())
		check(l.big == blocks && l.small == 0, "after a collapse: 2M leaves");
	if (!host_does(GUEST_CALL_SPLIT, r.at, r.len, "split"))
		return;
	check(wrong_words(r, 1) == 0, "contents after split");
	touch_all(r);
	l = leaves(r);
	if (!chaotic())
		check(l.big == 0 && l.small == 512 * blocks, "after a split: 4K leaves");
	check(wrong_words(r, 1) == 0, "contents at the end");
}
