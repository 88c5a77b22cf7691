/* SPDX-License-Identifier: BSD-2-Clause */
/* The contract: start, end, retry, counts, sequences, non-blockable ranges, release. On the fake
 * host. */
#include <criterion/criterion.h>
#include <errno.h>

#include "tests/support/fakehost.h"

#define clean(f) cr_assert_eq(fake_check(f), 0)

static struct umbra_range blockable(uint64_t first, uint64_t pages)
{
	return fake_test_range(first, pages, UMBRA_RANGE_BLOCKABLE);
}

Test(invalidate, start_drops_what_meets_the_range_and_nothing_else)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range r = blockable(10, 3);

	for (uint64_t g = 8; g < 16; g++)
		cr_assert_eq(fake_access(f, 1, g, true, NULL), 0);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	for (uint64_t g = 8; g < 16; g++) {
		cr_assert_eq(fake_leaf(f, g), g < 10 || g > 12);
		cr_assert_eq(fake_cached(f, g), g < 10 || g > 12, "gfn %lu", g);
	}
	clean(f);
	umbra_invalidate_end(f->chain, &r);
	clean(f);
	fake_destroy(f);
}

Test(invalidate, one_byte_inside_a_2m_leaf_drops_all_of_it)
{
	struct fake *f = fake_create(NULL);
	struct umbra_range r = blockable(512, 1);

	fake_make_huge(f, 1);
	cr_assert_eq(fake_access(f, 0, 512, true, NULL), 0);
	r.hull.start.v += 12345 * 8;
	r.hull.end.v = r.hull.start.v + 1;
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	cr_assert_eq(fake_leaf(f, 512), 0);
	cr_assert_not(fake_cached(f, 1023));
	umbra_invalidate_end(f->chain, &r);
	fake_destroy(f);
}

Test(invalidate, d64_fault_on_an_open_range_retries_until_the_end)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range r = blockable(10, 1);

	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	for (unsigned int i = 0; i < 10; i++)
		cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_RETRY);
	cr_assert_eq(fake_stats(f).retried_open, 10);
	cr_assert_eq(f->resolves, 0, "the host is not asked while it changes");
	umbra_invalidate_end(f->chain, &r);
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_INSTALLED);
	clean(f);
	fake_destroy(f);
}

Test(invalidate, d65_fault_on_another_page_is_not_held_up)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range r = blockable(10, 1);

	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	cr_assert_eq(fake_write_fault(f, 9), UMBRA_FAULT_INSTALLED);
	cr_assert_eq(fake_write_fault(f, 11), UMBRA_FAULT_INSTALLED);
	umbra_invalidate_end(f->chain, &r);
	clean(f);
	fake_destroy(f);
}

static void discard_10(struct fake *f, void *arg)
{
	(void)arg;
	fake_invalidate(f, 10, 1);
	fake_move_page(f, 10);
}

static void open_10(struct fake *f, void *arg)
{
	if (umbra_invalidate_start(f->chain, arg))
		abort();
}

Test(invalidate, d66_start_and_end_between_snapshot_and_install_retries)
{
	struct fake *f = fake_create(NULL);

	f->in_resolve = discard_10;
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_RETRY);
	cr_assert_eq(fake_leaf(f, 10), 0);
	cr_assert_eq(fake_stats(f).retried_seq, 1);
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_INSTALLED);
	fake_destroy(f);
}

Test(invalidate, one_that_opens_between_snapshot_and_install_retries)
{
	struct fake *f = fake_create(NULL);
	struct umbra_range r = blockable(10, 1);

	f->in_resolve = open_10;
	f->in_resolve_arg = &r;
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_RETRY);
	cr_assert_eq(fake_leaf(f, 10), 0);
	umbra_invalidate_end(f->chain, &r);
	fake_destroy(f);
}

Test(invalidate, one_that_passes_elsewhere_does_not_hold_up)
{
	struct fake *f = fake_create(NULL);

	f->in_resolve = discard_10;
	cr_assert_eq(fake_write_fault(f, 11), UMBRA_FAULT_INSTALLED);
	fake_destroy(f);
}

Test(invalidate, the_check_covers_the_whole_candidate_leaf)
{
	struct fake *f = fake_create(NULL);
	struct umbra_range r = blockable(512 + 300, 1);

	fake_make_huge(f, 1);
	/* the fault is on page 512, the change on page 812 of the same 2M candidate */
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	cr_assert_eq(fake_write_fault(f, 512), UMBRA_FAULT_RETRY);
	cr_assert_eq(fake_leaf(f, 512), 0);
	umbra_invalidate_end(f->chain, &r);
	cr_assert_eq(fake_write_fault(f, 512), UMBRA_FAULT_INSTALLED);
	umbra_zap_all(f->mmu);

	f->in_resolve = open_10;
	f->in_resolve_arg = &r;
	cr_assert_eq(fake_write_fault(f, 512), UMBRA_FAULT_RETRY);
	umbra_invalidate_end(f->chain, &r);
	clean(f);
	fake_destroy(f);
}

static void end_it(struct fake *f, void *arg)
{
	umbra_invalidate_end(f->chain, arg);
}

static void lift_10(struct fake *f, void *arg)
{
	(void)arg;
	fake_invalidate(f, 10, 1);
	f->pages[10].writable = true;
}

Test(invalidate, one_open_at_the_snapshot_and_ended_before_the_install_retries)
{
	struct fake *f = fake_create(NULL);
	struct umbra_range r = blockable(512 + 300, 1);

	/* its start is older than the snapshot, its end newer than the look at the host: the 2M
	 * answer is old */
	fake_make_huge(f, 1);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	f->in_resolve = end_it;
	f->in_resolve_arg = &r;
	cr_assert_eq(fake_write_fault(f, 512), UMBRA_FAULT_RETRY);
	cr_assert_eq(fake_leaf(f, 512), 0);
	fake_destroy(f);
}

static void discard_many(struct fake *f, void *arg)
{
	const uint64_t n = *(const uint64_t *)arg;

	for (uint64_t i = 0; i < n; i++)
		fake_invalidate(f, 2000 + i % 100, 1);
}

Test(invalidate, a_no_from_the_host_counts_only_if_nothing_changed_meanwhile)
{
	struct fake *f = fake_create(NULL);

	/* write-protected when it is looked at, lifted before the fault is answered */
	f->pages[10].writable = false;
	f->in_resolve = lift_10;
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_RETRY);
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_INSTALLED);
	f->pages[11].writable = false;
	f->in_resolve = lift_10;
	cr_assert_eq(fake_write_fault(f, 11), UMBRA_FAULT_DENIED,
		     "a change elsewhere does not matter");
	clean(f);
	fake_destroy(f);
}

static void discard_20_then_10(struct fake *f, void *arg)
{
	(void)arg;
	fake_invalidate(f, 20, 1);
	discard_10(f, NULL);
}

Test(invalidate, of_many_that_pass_each_is_looked_at)
{
	struct fake *f = fake_create(NULL);

	f->in_resolve = discard_20_then_10;
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_RETRY);
	f->in_resolve = discard_20_then_10;
	cr_assert_eq(fake_write_fault(f, 20), UMBRA_FAULT_RETRY);
	f->in_resolve = discard_20_then_10;
	cr_assert_eq(fake_write_fault(f, 30), UMBRA_FAULT_INSTALLED);
	clean(f);
	fake_destroy(f);
}

Test(invalidate, what_fell_out_of_the_history_is_taken_to_matter)
{
	struct fake *f = fake_create(NULL);
	uint64_t n = UMBRA_HISTORY;

	f->in_resolve = discard_many;
	f->in_resolve_arg = &n;
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_INSTALLED);
	n++;
	f->in_resolve = discard_many;
	cr_assert_eq(fake_write_fault(f, 11), UMBRA_FAULT_RETRY);
	fake_destroy(f);
}

Test(invalidate, d67_overlapping_opens_hold_until_the_last_end_in_either_order)
{
	for (int order = 0; order < 2; order++) {
		struct fake *f = fake_create(NULL);
		const struct umbra_range a = blockable(10, 10), b = blockable(15, 10);

		cr_assert_eq(umbra_invalidate_start(f->chain, &a), 0);
		cr_assert_eq(umbra_invalidate_start(f->chain, &b), 0);
		umbra_invalidate_end(f->chain, order ? &a : &b);
		cr_assert_eq(fake_write_fault(f, 12), UMBRA_FAULT_RETRY);
		cr_assert_eq(fake_write_fault(f, 22), UMBRA_FAULT_RETRY);
		umbra_invalidate_end(f->chain, order ? &b : &a);
		cr_assert_eq(fake_write_fault(f, 12), UMBRA_FAULT_INSTALLED);
		cr_assert_eq(fake_write_fault(f, 22), UMBRA_FAULT_INSTALLED);
		clean(f);
		fake_destroy(f);
	}
}

Test(invalidate, d19_an_inner_range_may_be_wider_than_the_outer)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range outer = blockable(512 + 7, 1), inner = blockable(512, 512);

	for (uint64_t g = 512; g < 540; g++)
		cr_assert_eq(fake_access(f, 0, g, true, NULL), 0);
	cr_assert_eq(umbra_invalidate_start(f->chain, &outer), 0);
	cr_assert_eq(umbra_invalidate_start(f->chain, &inner), 0);
	cr_assert_eq(fake_leaf(f, 530), 0);
	umbra_invalidate_end(f->chain, &inner);
	cr_assert_eq(fake_write_fault(f, 512 + 7), UMBRA_FAULT_RETRY);
	umbra_invalidate_end(f->chain, &outer);
	cr_assert_eq(fake_write_fault(f, 512 + 7), UMBRA_FAULT_INSTALLED);
	cr_assert_eq(fake_stats(f).starts, fake_stats(f).ends);
	clean(f);
	fake_destroy(f);
}

Test(invalidate, d80_ranges_to_the_last_byte_empty_and_unaligned)
{
	struct fake *f = fake_create(NULL);
	struct umbra_range all = blockable(0, 1), empty = blockable(5, 0), odd = blockable(5, 1);

	for (uint64_t g = 0; g < 20; g++)
		cr_assert_eq(fake_access(f, 0, g, true, NULL), 0);
	cr_assert_eq(umbra_invalidate_start(f->chain, &empty), 0);
	umbra_invalidate_end(f->chain, &empty);
	cr_assert_eq(fake_stats(f).leaves_4k, 20);
	odd.hull.start.v += 4095;
	odd.hull.end.v = odd.hull.start.v + 2; /* last byte of page 5, first of page 6 */
	cr_assert_eq(umbra_invalidate_start(f->chain, &odd), 0);
	umbra_invalidate_end(f->chain, &odd);
	cr_assert_eq(fake_leaf(f, 5) + fake_leaf(f, 6), 0);
	cr_assert_eq(fake_stats(f).leaves_4k, 18);
	all.hull = (struct hva_range){ { 0 }, { ~0ULL } };
	cr_assert_eq(umbra_invalidate_start(f->chain, &all), 0);
	cr_assert_eq(fake_stats(f).leaves_4k, 0);
	cr_assert_eq(fake_write_fault(f, 0), UMBRA_FAULT_RETRY);
	umbra_invalidate_end(f->chain, &all);
	cr_assert_eq(fake_write_fault(f, 0), UMBRA_FAULT_INSTALLED);
	clean(f);
	fake_destroy(f);
}

/* Nothing is taken by an empty range: what lies round the place where it is open is no violation. */
Test(invalidate, an_empty_one_that_is_open_inside_a_2m_leaf_takes_nothing)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range empty = blockable(700, 0);

	fake_make_huge(f, 1);
	cr_assert_eq(fake_access(f, 0, 600, true, NULL), 0);
	cr_assert_eq(fake_leaf(f, 600), 2);
	cr_assert_eq(umbra_invalidate_start(f->chain, &empty), 0);
	cr_assert_eq(fake_leaf(f, 600), 2);
	clean(f);
	umbra_invalidate_end(f->chain, &empty);
	clean(f);
	fake_destroy(f);
}

static const uint64_t seq_starts[] = { 0, (1ULL << 31) - 3, (1ULL << 32) - 3, UINT64_MAX - 2 };

Test(invalidate, sequences_do_not_wrap_into_an_old_snapshot)
{
	for (size_t i = 0; i < sizeof(seq_starts) / sizeof(seq_starts[0]); i++) {
		struct fake *f = fake_create(&(struct fake_config){ .first_seq = seq_starts[i] });
		uint64_t n = 8; /* crosses the border while the fault resolves */

		for (unsigned int k = 0; k < 8; k++) {
			umbra_zap_all(f->mmu);
			f->in_resolve = discard_10;
			cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_RETRY, "from %lx",
				     seq_starts[i]);
			cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_INSTALLED);
		}
		cr_assert_eq(fake_stats(f).seq.v, seq_starts[i] + 8);
		f->in_resolve = discard_many;
		f->in_resolve_arg = &n;
		cr_assert_eq(fake_write_fault(f, 11), UMBRA_FAULT_INSTALLED);
		clean(f);
		fake_destroy(f);
	}
}

Test(invalidate, a_batch_drops_its_parts_and_holds_up_its_hull)
{
	struct fake *f = fake_create(NULL);
	const struct hva_range parts[] = { fake_range(30, 1), fake_range(10, 2) };
	struct umbra_range r = blockable(10, 21);
	uint64_t flushes;

	r.v = parts;
	r.nr = 2;
	for (uint64_t g = 8; g < 32; g++)
		cr_assert_eq(fake_access(f, 0, g, true, NULL), 0);
	flushes = fake_stats(f).flushes;
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	cr_assert_eq(fake_stats(f).flushes, flushes + 1, "one shootdown");
	for (uint64_t g = 8; g < 32; g++)
		cr_assert_eq(fake_leaf(f, g), g != 10 && g != 11 && g != 30, "gfn %lu", g);
	umbra_zap(f->mmu, (struct gfn_range){ { 20 }, { 21 } });
	cr_assert_eq(fake_write_fault(f, 20), UMBRA_FAULT_RETRY);
	clean(f);
	umbra_invalidate_end(f->chain, &r);
	cr_assert_eq(fake_write_fault(f, 20), UMBRA_FAULT_INSTALLED);
	clean(f);
	fake_destroy(f);
}

Test(invalidate, nothing_present_costs_no_flush)
{
	struct fake *f = fake_create(NULL);

	fake_invalidate(f, 0, 4096);
	cr_assert_eq(fake_stats(f).flushes, 0);
	cr_assert_eq(f->flush_waits, 0);
	cr_assert_eq(fake_stats(f).seq.v, 1);
	fake_destroy(f);
}

Test(invalidate, non_blockable_is_refused_while_a_vcpu_runs_and_leaves_nothing_open)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range r = fake_test_range(10, 1, 0);

	cr_assert_eq(fake_access(f, 0, 10, true, NULL), 0);
	f->in_guest = true;
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), -EAGAIN);
	cr_assert_eq(fake_stats(f).refused, 1);
	f->in_guest = false;
	cr_assert_eq(umbra_chain_counts(f->chain, UMBRA_SOURCE_TEST).begun, 1);
	cr_assert_eq(umbra_chain_counts(f->chain, UMBRA_SOURCE_TEST).ended, 1);
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_INSTALLED, "nothing stayed open");
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0, "again, with nobody in the guest");
	umbra_invalidate_end(f->chain, &r);
	clean(f);
	fake_destroy(f);
}

Test(invalidate, forced_is_never_refused)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range r =
		fake_test_range(10, 1, UMBRA_RANGE_FORCED | UMBRA_RANGE_RELOCATES);
	struct umbra_pin pin;

	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 10 }, 1, &pin), 0);
	f->in_guest = true;
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	cr_assert_eq(fake_leaf(f, 10), 0);
	umbra_invalidate_end(f->chain, &r);
	f->in_guest = false;
	cr_assert_eq(f->pins_lost, 1);
	cr_assert_not(umbra_unpin(f->mmu, &pin));
	clean(f);
	fake_destroy(f);
}

Test(invalidate, d63_release_drops_all_once_and_refuses_for_ever)
{
	struct fake *f = fake_create(NULL);
	struct umbra_root *root;

	for (uint64_t g = 0; g < 600; g++)
		cr_assert_eq(fake_access(f, 0, g, true, NULL), 0);
	umbra_release(f->chain);
	cr_assert_eq(fake_stats(f).leaves_4k, 0);
	cr_assert_not(fake_cached(f, 5));
	umbra_release(f->chain);
	cr_assert_eq(fake_write_fault(f, 5), UMBRA_FAULT_RELEASED);
	cr_assert_eq(umbra_root_create(f->mmu, UMBRA_ROOT_DIRECT, &root), -ESHUTDOWN);
	cr_assert_eq(
		umbra_memslot_add(
			f->mmu, &(struct umbra_memslot){ .id = 9, .gfn = { 99999 }, .npages = 1 }),
		-ESHUTDOWN);
	fake_invalidate(f, 0, 10);
	clean(f);
	fake_destroy(f);
}

static void do_release(struct fake *f, void *arg)
{
	(void)arg;
	umbra_release(f->chain);
}

Test(invalidate, release_while_a_fault_resolves_installs_nothing)
{
	struct fake *f = fake_create(NULL);

	f->in_resolve = do_release;
	cr_assert_eq(fake_write_fault(f, 5), UMBRA_FAULT_RELEASED);
	cr_assert_eq(fake_stats(f).leaves_4k, 0);
	fake_destroy(f);
}

Test(invalidate, history_says_which_invalidation_took_a_page)
{
	struct fake *f = fake_create(NULL);
	struct umbra_range r = blockable(10, 2);
	struct umbra_event e[4];

	cr_assert_eq(fake_access(f, 0, 11, true, NULL), 0);
	r.cause = UMBRA_CAUSE_SWAP;
	r.who = 4711;
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	fake_invalidate(f, 100, 1);
	cr_assert_eq(umbra_history(f->mmu, fake_range(11, 1), e, 4), 1);
	cr_assert(e[0].open);
	umbra_invalidate_end(f->chain, &r);
	cr_assert_eq(umbra_history(f->mmu, fake_range(11, 1), e, 4), 1);
	cr_assert_not(e[0].open);
	cr_assert_eq(e[0].cause, UMBRA_CAUSE_SWAP);
	cr_assert_eq(e[0].source, UMBRA_SOURCE_TEST);
	cr_assert_eq(e[0].who, 4711);
	cr_assert_eq(e[0].zapped_4k, 1);
	cr_assert_eq(umbra_history(f->mmu, fake_range(12, 1), e, 4), 0);
	fake_destroy(f);
}

Test(invalidate, the_same_range_from_three_sources_is_harmless)
{
	struct fake *f = fake_create(NULL);

	cr_assert_eq(fake_access(f, 0, 10, true, NULL), 0);
	for (int s = UMBRA_SOURCE_OWN; s <= UMBRA_SOURCE_MODULE; s++) {
		struct umbra_range r = blockable(10, 1);

		r.source = (enum umbra_source)s;
		cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	}
	for (int s = UMBRA_SOURCE_OWN; s <= UMBRA_SOURCE_MODULE; s++) {
		struct umbra_range r = blockable(10, 1);

		cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_RETRY);
		r.source = (enum umbra_source)s;
		umbra_invalidate_end(f->chain, &r);
	}
	cr_assert_eq(fake_write_fault(f, 10), UMBRA_FAULT_INSTALLED);
	clean(f);
	fake_destroy(f);
}
