/* SPDX-License-Identifier: BSD-2-Clause */
/* Memslots, aliases, moves, and the log of accessed and dirty. On the fake host. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/support/fakehost.h"

#define clean(f) cr_assert_eq(fake_check(f), 0)

static struct fake *bare(void)
{
	return fake_create(&(struct fake_config){ .no_slot = true });
}

static struct umbra_memslot slot(uint32_t id, uint64_t gfn, uint64_t npages, uint64_t page)
{
	return (struct umbra_memslot){
		.id = id, .gfn = { gfn }, .npages = npages, .hva = fake_hva(page), .out = { gfn }
	};
}

static int add(struct fake *f, struct umbra_memslot s)
{
	return umbra_memslot_add(f->mmu, &s);
}

Test(slots, overlap_overflow_and_nonsense_are_refused)
{
	struct fake *f = bare();
	struct umbra_memslot bad;

	cr_assert_eq(add(f, slot(1, 100, 10, 0)), 0);
	cr_assert_eq(add(f, slot(1, 500, 10, 0)), -EEXIST, "same id");
	cr_assert_eq(add(f, slot(2, 109, 1, 0)), -EEXIST);
	cr_assert_eq(add(f, slot(2, 91, 10, 0)), -EEXIST);
	cr_assert_eq(add(f, slot(2, 90, 30, 0)), -EEXIST);
	cr_assert_eq(add(f, slot(2, 104, 2, 0)), -EEXIST);
	cr_assert_eq(add(f, slot(2, 110, 0, 0)), -EINVAL, "empty");
	cr_assert_eq(add(f, slot(2, 1ULL << 35, 1, 0)), -EINVAL, "beyond 2^47");
	cr_assert_eq(add(f, slot(2, (1ULL << 35) - 1, 2, 0)), -EINVAL);
	cr_assert_eq(add(f, slot(2, UINT64_MAX, 2, 0)), -EINVAL);
	bad = slot(2, 110, 10, 0);
	bad.hva.v += 8;
	cr_assert_eq(add(f, bad), -EINVAL, "misaligned");
	bad.hva.v = UINT64_MAX - 4095;
	cr_assert_eq(add(f, bad), -EINVAL, "hva overflow");
	bad = slot(2, 110, 10, 0);
	bad.flags = 1U << 30;
	cr_assert_eq(add(f, bad), -EINVAL, "unknown flag");
	bad = slot(2, 110, 10, 0);
	bad.out.v = (1ULL << 40) - 5;
	cr_assert_eq(add(f, bad), -EINVAL, "output frame does not fit an entry");
	cr_assert_eq(fake_stats(f).slots, 1);
	cr_assert_eq(add(f, slot(2, 110, 10, 0)), 0);
	cr_assert_eq(add(f, slot(3, 90, 10, 0)), 0);
	clean(f);
	fake_destroy(f);
}

Test(slots, translate_both_ways_and_find_every_alias)
{
	struct fake *f = bare();
	struct umbra_memslot s;
	gpa_t gpas[4];
	hva_t hva;

	cr_assert_eq(add(f, slot(1, 100, 10, 50)), 0);
	cr_assert_eq(add(f, slot(2, 200, 10, 55)), 0);
	cr_assert_eq(umbra_gpa_to_hva(f->mmu, (gpa_t){ (103ULL << 12) | 77 }, &hva), 0);
	cr_assert_eq(hva.v, fake_hva(53).v + 77);
	cr_assert_eq(umbra_gpa_to_hva(f->mmu, (gpa_t){ 110ULL << 12 }, &hva), -ENOENT);
	cr_assert_eq(umbra_hva_to_gpas(f->mmu, (hva_t){ fake_hva(57).v + 5 }, gpas, 4), 2);
	cr_assert_eq(gpas[0].v, (107ULL << 12) + 5);
	cr_assert_eq(gpas[1].v, (202ULL << 12) + 5);
	cr_assert_eq(umbra_hva_to_gpas(f->mmu, fake_hva(52), gpas, 4), 1);
	cr_assert_eq(umbra_hva_to_gpas(f->mmu, fake_hva(65), gpas, 4), 0);
	cr_assert_eq(umbra_memslot_find(f->mmu, (gfn_t){ 209 }, &s), 0);
	cr_assert_eq(s.id, 2);
	cr_assert_eq(umbra_memslot_find(f->mmu, (gfn_t){ 210 }, &s), -ENOENT);
	fake_destroy(f);
}

/* A slot that begins before the page and ends before it shows it nowhere, whatever reaches further. */
Test(slots, a_page_is_not_found_in_slots_that_end_before_it)
{
	struct fake *f = bare();
	gpa_t gpas[4];

	cr_assert_eq(umbra_hva_to_gpas(f->mmu, fake_hva(0), gpas, 4), 0);
	cr_assert_eq(add(f, slot(1, 100, 10, 50)), 0);
	cr_assert_eq(umbra_hva_to_gpas(f->mmu, fake_hva(49), gpas, 4), 0);
	cr_assert_eq(umbra_hva_to_gpas(f->mmu, fake_hva(59), gpas, 4), 1);
	cr_assert_eq(umbra_hva_to_gpas(f->mmu, fake_hva(60), gpas, 4), 0);
	cr_assert_eq(add(f, slot(2, 1000, 100, 0)), 0);
	cr_assert_eq(add(f, slot(3, 200, 10, 70)), 0);
	cr_assert_eq(umbra_hva_to_gpas(f->mmu, fake_hva(65), gpas, 4), 1);
	cr_assert_eq(gpas[0].v, 1065ULL << 12);
	cr_assert_eq(umbra_hva_to_gpas(f->mmu, fake_hva(75), gpas, 4), 2);
	gpas[1].v = 1;
	cr_assert_eq(umbra_hva_to_gpas(f->mmu, fake_hva(75), gpas, 1), 2);
	cr_assert_eq(gpas[1].v, 1, "no more is written than there is room for");
	cr_assert_eq(umbra_hva_to_gpas(f->mmu, fake_hva(100), gpas, 4), 0);
	clean(f);
	fake_destroy(f);
}

Test(slots, an_invalidation_reaches_every_alias)
{
	struct fake *f = bare();

	/* one long slot that sorts first and reaches over many short ones */
	cr_assert_eq(add(f, slot(1, 10000, 1000, 0)), 0);
	for (uint32_t i = 0; i < 50; i++)
		cr_assert_eq(add(f, slot(2 + i, 100 + 20 * i, 10, 10 * i)), 0);
	cr_assert_eq(fake_access(f, 0, 10000 + 333, true, NULL), 0);
	cr_assert_eq(fake_access(f, 1, 100 + 20 * 33 + 3, true, NULL), 0);
	cr_assert_eq(fake_access(f, 2, 100 + 20 * 33 + 4, true, NULL), 0);
	fake_invalidate(f, 333, 1);
	cr_assert_eq(fake_leaf(f, 10000 + 333), 0);
	cr_assert_eq(fake_leaf(f, 100 + 20 * 33 + 3), 0);
	cr_assert_eq(fake_leaf(f, 100 + 20 * 33 + 4), 1);
	clean(f);
	fake_destroy(f);
}

Test(slots, thousand_slots_stay_sorted_and_found)
{
	struct fake *f = bare();
	struct umbra_memslot s;

	for (uint32_t i = 0; i < 1000; i++) {
		const uint32_t k = i * 619 % 1000; /* a permutation */

		cr_assert_eq(add(f, slot(k, 4 * k, 3, k)), 0);
	}
	clean(f);
	for (uint32_t k = 0; k < 1000; k += 2)
		cr_assert_eq(umbra_memslot_remove(f->mmu, k), 0);
	clean(f);
	for (uint32_t k = 0; k < 1000; k++) {
		cr_assert_eq(umbra_memslot_find(f->mmu, (gfn_t){ 4 * k + 2 }, &s),
			     k % 2 ? 0 : -ENOENT);
		cr_assert_eq(umbra_memslot_find(f->mmu, (gfn_t){ 4 * k + 3 }, &s), -ENOENT);
	}
	fake_destroy(f);
}

Test(slots, d79_no_2m_leaf_without_congruence_or_across_a_slot_edge)
{
	struct fake *f = bare();
	struct umbra_memslot s;

	for (uint64_t b = 0; b < 8; b++)
		fake_make_huge(f, b);
	cr_assert_eq(add(f, slot(1, 0, 512, 0)), 0);
	cr_assert_eq(add(f, slot(2, 1024 + 1, 1024, 512)), 0); /* gpa and hva differ by one page */
	cr_assert_eq(add(f, slot(3, 4096, 512 + 511, 1536)),
		     0); /* second block is one page short */
	s = slot(4, 8192, 512, 2560);
	s.out.v++; /* output frame not congruent */
	cr_assert_eq(add(f, s), 0);
	s = slot(5, 16384, 512, 3072);
	s.flags = UMBRA_SLOT_4K_ONLY;
	cr_assert_eq(add(f, s), 0);
	cr_assert_eq(fake_access(f, 0, 9, true, NULL), 0);
	cr_assert_eq(fake_leaf(f, 9), 2);
	cr_assert_eq(fake_access(f, 0, 1024 + 512, true, NULL), 0);
	cr_assert_eq(fake_leaf(f, 1024 + 512), 1);
	cr_assert_eq(fake_access(f, 0, 4096 + 5, true, NULL), 0);
	cr_assert_eq(fake_leaf(f, 4096 + 5), 2);
	cr_assert_eq(fake_access(f, 0, 4096 + 512 + 5, true, NULL), 0);
	cr_assert_eq(fake_leaf(f, 4096 + 512 + 5), 1);
	cr_assert_eq(fake_access(f, 0, 8192, true, NULL), 0);
	cr_assert_eq(fake_leaf(f, 8192), 1);
	cr_assert_eq(fake_access(f, 0, 16384, true, NULL), 0);
	cr_assert_eq(fake_leaf(f, 16384), 1);
	clean(f);
	fake_destroy(f);
}

Test(slots, remove_drops_its_leaves_and_only_them)
{
	struct fake *f = bare();

	cr_assert_eq(add(f, slot(1, 0, 600, 0)), 0);
	cr_assert_eq(add(f, slot(2, 600, 600, 600)), 0);
	for (uint64_t g = 0; g < 1200; g += 7)
		cr_assert_eq(fake_access(f, 0, g, true, NULL), 0);
	cr_assert_eq(umbra_memslot_remove(f->mmu, 1), 0);
	cr_assert_eq(umbra_memslot_remove(f->mmu, 1), -ENOENT);
	for (uint64_t g = 0; g < 1200; g += 7) {
		cr_assert_eq(fake_leaf(f, g), g >= 600);
		cr_assert(g >= 600 || !fake_cached(f, g));
	}
	cr_assert_eq(fake_access(f, 0, 5, false, NULL), UMBRA_FAULT_NO_SLOT);
	cr_assert_eq(fake_stats(f).starts, fake_stats(f).ends);
	clean(f);
	fake_destroy(f);
}

Test(slots, move_takes_contents_and_leaves_nothing_behind)
{
	struct fake *f = bare();
	uint64_t pfn;
	hva_t hva;

	cr_assert_eq(add(f, slot(1, 0, 100, 0)), 0);
	cr_assert_eq(add(f, slot(2, 1000, 100, 500)), 0);
	cr_assert_eq(fake_access(f, 0, 7, true, NULL), 0);
	cr_assert_eq(umbra_memslot_move(f->mmu, 1, (gfn_t){ 950 }, (pfn_t){ 950 }), -EEXIST);
	cr_assert_eq(fake_access(f, 0, 7, true, NULL), 0, "a refused move leaves the slot");
	cr_assert_eq(umbra_memslot_move(f->mmu, 1, (gfn_t){ 5000 }, (pfn_t){ 5000 }), 0);
	cr_assert_eq(fake_leaf(f, 7), 0);
	cr_assert_eq(fake_access(f, 0, 7, true, NULL), UMBRA_FAULT_NO_SLOT);
	cr_assert_eq(fake_access(f, 0, 5007, true, &pfn), 0);
	cr_assert_eq(pfn, 5007);
	cr_assert_eq(umbra_gpa_to_hva(f->mmu, (gpa_t){ 5007ULL << 12 }, &hva), 0);
	cr_assert_eq(hva.v, fake_hva(7).v);
	cr_assert_eq(umbra_memslot_move(f->mmu, 1, (gfn_t){ 5010 }, (pfn_t){ 5010 }), 0,
		     "onto its own old place");
	cr_assert_eq(umbra_memslot_move(f->mmu, 3, (gfn_t){ 1 }, (pfn_t){ 1 }), -ENOENT);
	clean(f);
	fake_destroy(f);
}

static void move_slot(struct fake *f, void *arg)
{
	(void)arg;
	if (umbra_memslot_move(f->mmu, 1, (gfn_t){ 5000 }, (pfn_t){ 5000 }))
		abort();
}

Test(slots, a_fault_that_resolved_against_the_old_slots_retries)
{
	struct fake *f = bare();
	struct umbra_fault fault = { .gpa = { 7 << 12 }, .access = UMBRA_ACCESS_READ };

	cr_assert_eq(add(f, slot(1, 0, 100, 0)), 0);
	f->in_resolve = move_slot;
	cr_assert_eq(umbra_fault(f->root, &fault), UMBRA_FAULT_RETRY);
	cr_assert_eq(umbra_fault(f->root, &fault), UMBRA_FAULT_NO_SLOT);
	clean(f);
	fake_destroy(f);
}

static void slot_of_other_memory(struct fake *f, void *arg)
{
	(void)arg;
	if (umbra_memslot_remove(f->mmu, 1) || add(f, slot(1, 0, 100, 1024)))
		abort();
}

/* What it has resolved is no page of the slot that is there now. */
Test(slots, a_fault_that_resolved_in_a_slot_that_was_replaced_retries)
{
	struct fake *f = bare();
	struct umbra_fault fault = { .gpa = { 7 << 12 }, .access = UMBRA_ACCESS_READ };

	cr_assert_eq(add(f, slot(1, 0, 100, 0)), 0);
	f->in_resolve = slot_of_other_memory;
	cr_expect_eq(umbra_fault(f->root, &fault), UMBRA_FAULT_RETRY);
	cr_expect_eq(fake_leaf(f, 7), 0);
	cr_assert_eq(umbra_fault(f->root, &fault), UMBRA_FAULT_INSTALLED);
	cr_expect_eq(fault.hva.v, fake_hva(1024 + 7).v);
	clean(f);
	fake_destroy(f);
}

Test(slots, a_slot_added_under_an_open_invalidation_waits_for_its_end)
{
	struct fake *f = bare();
	const struct umbra_range r = fake_test_range(10, 5, UMBRA_RANGE_BLOCKABLE);
	struct umbra_fault fault = { .gpa = { 12 << 12 }, .access = UMBRA_ACCESS_READ };

	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	cr_assert_eq(add(f, slot(1, 0, 100, 0)), 0);
	cr_assert_eq(umbra_fault(f->root, &fault), UMBRA_FAULT_RETRY);
	umbra_invalidate_end(f->chain, &r);
	cr_assert_eq(umbra_fault(f->root, &fault), UMBRA_FAULT_INSTALLED);
	clean(f);
	fake_destroy(f);
}

Test(slots, read_only_slot_answers_writes_by_name)
{
	struct fake *f = bare();
	struct umbra_memslot s = slot(1, 0, 100, 0);
	struct umbra_translation t;

	s.flags = UMBRA_SLOT_READONLY;
	cr_assert_eq(add(f, s), 0);
	cr_assert_eq(fake_access(f, 0, 3, false, NULL), 0);
	cr_assert_eq(umbra_lookup(f->root, (gpa_t){ 3 << 12 }, &t), 0);
	cr_assert_not(t.writable);
	cr_assert_eq(fake_access(f, 0, 3, true, NULL), UMBRA_FAULT_READONLY);
	clean(f);
	fake_destroy(f);
}

static bool bit(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

Test(log, reports_exactly_what_was_touched_and_written_over_zaps_and_twice)
{
	struct fake *f = fake_create(&(struct fake_config){ .slot_flags = UMBRA_SLOT_LOG });
	uint64_t *a = calloc(64, 8), *d = calloc(64, 8);

	for (int round = 0; round < 3; round++) {
		for (uint64_t g = 0; g < 4096; g++)
			if (g % 5 == 0 || g % 7 == 0)
				cr_assert_eq(
					fake_access(f, (unsigned int)(g % 3), g, g % 7 == 0, NULL),
					0);
		/* some leaves are gone before the collect: one by one, by table, and all */
		if (round == 0)
			umbra_zap(f->mmu, (struct gfn_range){ { 100 }, { 1300 } });
		if (round == 1)
			umbra_zap_all(f->mmu);
		cr_assert_eq(umbra_log_collect(f->mmu, 1, a, d), 0);
		for (uint64_t g = 0; g < 4096; g++) {
			cr_assert_eq(bit(a, g), g % 5 == 0 || g % 7 == 0, "round %d gfn %lu", round,
				     g);
			cr_assert_eq(bit(d, g), g % 7 == 0, "round %d gfn %lu", round, g);
		}
		cr_assert_eq(umbra_log_collect(f->mmu, 1, a, d), 0);
		for (uint64_t i = 0; i < 64; i++)
			cr_assert(!a[i] && !d[i], "cleared by the collect");
		clean(f);
	}
	cr_assert_eq(umbra_log_collect(f->mmu, 2, a, d), -ENOENT);
	free(a);
	free(d);
	fake_destroy(f);
}

Test(log, only_the_bits_asked_for_are_cleared)
{
	struct fake *f = fake_create(&(struct fake_config){ .slot_flags = UMBRA_SLOT_LOG });
	uint64_t a[64], d[64];

	cr_assert_eq(fake_access(f, 0, 3, true, NULL), 0);
	cr_assert_eq(umbra_log_collect(f->mmu, 1, NULL, d), 0);
	cr_assert(bit(d, 3));
	cr_assert_eq(umbra_log_collect(f->mmu, 1, a, NULL), 0);
	cr_assert(bit(a, 3));
	fake_destroy(f);
}

Test(log, a_2m_leaf_stands_for_its_512_pages)
{
	struct fake *f = fake_create(&(struct fake_config){ .slot_flags = UMBRA_SLOT_LOG });
	uint64_t a[64], d[64];

	fake_make_huge(f, 1);
	cr_assert_eq(fake_access(f, 0, 700, true, NULL), 0);
	cr_assert_eq(umbra_log_collect(f->mmu, 1, a, d), 0);
	for (uint64_t g = 0; g < 4096; g++)
		cr_assert_eq(bit(d, g), g >= 512 && g < 1024);
	fake_destroy(f);
}
