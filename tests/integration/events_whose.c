/* SPDX-License-Identifier: BSD-2-Clause */
/* userfaultfd: whose REMOVE is it? An own call's is bracketed already; an outside one never passes for it. */
#include "tests/integration/events_uffd.h"

TestSuite(uffd_whose, .init = init, .fini = fini, .timeout = 60);

/* Lets all return, when @removes are read. */
static void end_reading(struct caller *c, unsigned int n, uint64_t removes)
{
	start_reader();
	for (unsigned int i = 0; i < n; i++) {
		pthread_join(c[i].thread, NULL);
		cr_assert_eq(c[i].result, 0);
	}
	drain();
	cr_assert_eq(stats.removes, removes);
	cr_assert_eq(stats.own_removes + stats.settled, removes);
	stop_reader();
}

static void end_all(struct caller *c, unsigned int n)
{
	end_reading(c, n, n);
	cr_assert_eq(umbra_chain_counts(h.chain, UMBRA_SOURCE_UFFD).begun, stats.settled);
}

Test(uffd_whose, an_outside_remove_inside_an_own_range_gets_its_own_bracket)
{
	struct caller c[3];
	char *p;

	need_uffd();
	p = mapped(HUGE);
	begin(&c[0], false, p, 1);
	begin(&c[1], true, p, 64);
	begin(&c[2], false, p + 16 * PAGE, 1);
	end_all(c, 3);
	cr_assert_eq(stats.own_removes, 0);
	cr_assert_eq(host_leaves(&h, p, HUGE), 448);
}

Test(uffd_whose, an_outside_remove_of_the_same_range_is_not_taken_for_the_own_one)
{
	struct caller c[2];
	char *p;

	need_uffd();
	p = mapped(HUGE);
	begin(&c[0], false, p, 8);
	begin(&c[1], true, p, 8);
	end_all(c, 2);
	cr_assert_eq(stats.own_removes, 0);
}

Test(uffd_whose, an_outside_remove_after_the_own_one_takes_the_claim_back)
{
	struct caller c[2];
	char *p;

	need_uffd();
	p = mapped(HUGE);
	begin(&c[0], true, p, 8);
	begin(&c[1], false, p + 4 * PAGE, 8);
	end_all(c, 2);
	cr_assert_eq(stats.own_removes, 0);
}

Test(uffd_whose, own_calls_apart_from_each_other_are_each_known)
{
	struct caller c[3];
	char *p;

	need_uffd();
	p = mapped(HUGE);
	begin(&c[0], true, p, 8);
	begin(&c[1], true, p + 8 * PAGE, 8);
	begin(&c[2], false, p + 16 * PAGE, 8);
	end_all(c, 3);
	cr_assert_eq(stats.own_removes, 2);
}

Test(uffd_whose, an_own_call_that_fails_leaves_its_remove_to_the_grace_period)
{
	char *p;

	need_uffd();
	start_reader();
	p = mapped(HUGE);
	cr_assert_eq(discard_over_the_end(p), -ENOMEM);
	drain();
	cr_assert_eq(stats.removes, 1);
	cr_assert_eq(stats.own_removes, 0);
	cr_assert_eq(stats.settled, 1);
	stop_reader();
}

/* ---- more than one REMOVE for a call ----------------------------------------------------------- */

/* @p, 24 pages, is made of three mappings now. */
static void cut_in_three(char *p)
{
	cr_assert(!umbra_mprotect(h.own, hva_range_of(p + 8 * PAGE, 8 * PAGE), PROT_READ));
}

Test(uffd_whose, an_own_call_over_three_mappings_raises_three_that_are_all_known)
{
	char *p;

	need_uffd();
	start_reader();
	p = mapped(HUGE);
	cut_in_three(p);
	for (int i = 0; i < 20; i++)
		cr_assert(!umbra_madvise(h.own, hva_range_of(p, 24 * PAGE), MADV_DONTNEED));
	cr_assert(!umbra_madvise(h.own, hva_range_of(p, 24 * PAGE), MADV_FREE));
	drain();
	cr_assert_eq(stats.removes, 63);
	cr_assert_eq(stats.own_removes, 63);
	cr_assert_eq(umbra_chain_counts(h.chain, UMBRA_SOURCE_UFFD).begun, 0);
	stop_reader();
}

Test(uffd_whose, mappings_that_are_not_watched_raise_nothing_and_the_others_are_known)
{
	char *p;

	need_uffd();
	start_reader();
	p = mapped(HUGE);
	cr_assert(!umbra_uffd_unregister(uffd, hva_range_of(p + 8 * PAGE, 8 * PAGE)));
	cr_assert(!umbra_madvise(h.own, hva_range_of(p, 24 * PAGE), MADV_DONTNEED));
	drain();
	cr_assert_eq(stats.removes, 2);
	cr_assert_eq(stats.own_removes, 2);
	stop_reader();
}

/* The outside one comes first, and fits where the own one is to come. */
Test(uffd_whose, an_outside_remove_of_one_of_three_mappings_is_not_taken_for_the_own_one)
{
	for (unsigned int which = 0; which < 3; which++) {
		struct caller c[2];
		char *p;

		if (!which)
			need_uffd();
		p = mapped(HUGE);
		cut_in_three(p);
		begin(&c[0], false, p + which * 8 * PAGE, 8);
		begin(&c[1], true, p, 24);
		end_reading(c, 2, 4 * (which + 1));
		cr_assert_eq(stats.own_removes, 0, "mapping %u", which);
		cr_assert_eq(host_leaves(&h, p, HUGE), 488);
	}
}

Test(uffd_whose, a_batch_raises_one_for_each_range_and_all_are_known)
{
	struct hva_range v[300];
	uint32_t done;
	char *p;

	need_uffd();
	start_reader();
	p = mapped(2 * HUGE);
	for (size_t i = 0; i < 300; i++) /* descending, with gaps */
		v[i] = hva_range_of(p + (2 * (299 - i)) * PAGE, PAGE);
	cr_assert(!umbra_madvise_batch(h.own, v, 300, MADV_DONTNEED, &done));
	cr_assert_eq(done, 300);
	cr_assert(!umbra_madvise_batch(h.own, v, 300, MADV_FREE, &done));
	drain();
	cr_assert_eq(stats.removes, 600);
	cr_assert_eq(stats.own_removes, 600);
	cr_assert_eq(umbra_chain_counts(h.chain, UMBRA_SOURCE_UFFD).begun, 0);
	cr_assert_eq(host_leaves(&h, p, 2 * HUGE), 2 * 512 - 300);
	stop_reader();
}

Test(uffd_whose, an_outside_remove_in_a_gap_of_a_batch_is_nobodys_but_its_own)
{
	struct hva_range v[20];
	struct caller c[2];
	char *p;

	need_uffd();
	p = mapped(HUGE);
	for (size_t i = 0; i < 20; i++)
		v[i] = hva_range_of(p + 2 * i * PAGE, PAGE);
	begin(&c[0], false, p + 5 * PAGE, 1);
	begin_batch(&c[1], v, 20);
	end_reading(c, 2, 21);
	cr_assert_eq(stats.own_removes, 20);
	cr_assert_eq(stats.settled, 1);
}

Test(uffd_whose, an_outside_remove_of_a_part_of_a_batch_takes_all_claims_back)
{
	struct hva_range v[20];
	struct caller c[2];
	char *p;

	need_uffd();
	p = mapped(HUGE);
	for (size_t i = 0; i < 20; i++)
		v[i] = hva_range_of(p + 2 * i * PAGE, PAGE);
	begin(&c[0], false, p + 10 * PAGE, 1);
	begin_batch(&c[1], v, 20);
	end_reading(c, 2, 21);
	cr_assert_eq(stats.own_removes, 0);
}

Test(uffd_whose, a_batch_that_names_a_range_twice_does_not_cover_a_third_by_another)
{
	struct hva_range v[4];
	struct caller c[2];
	char *p;

	need_uffd();
	p = mapped(HUGE);
	for (size_t i = 0; i < 4; i++)
		v[i] = hva_range_of(p + i / 2 * 2 * PAGE, PAGE);
	begin(&c[0], false, p + 2 * PAGE, 1);
	begin_batch(&c[1], v, 4);
	end_reading(c, 2, 5);
	cr_assert_eq(stats.own_removes, 0);
}

static void *move_in(void *arg)
{
	struct caller *c = arg;
	void *to = (void *)(uintptr_t)c->r.start.v;

	c->tid = gettid();
	c->result = mremap((char *)to + HUGE, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   to) != to;
	return NULL;
}

/* The own call has raised nothing for what was not watched when it came by. */
Test(uffd_whose, where_watched_memory_was_moved_to_meanwhile_no_remove_is_taken_for_own)
{
	struct caller c[2] = { 0 };
	char *p;

	need_uffd();
	p = mapped(2 * HUGE);
	cr_assert(!umbra_uffd_unregister(uffd, hva_range_of(p + 8 * PAGE, 8 * PAGE)));
	begin(&c[0], true, p, 24);
	c[1].r.start.v = (uintptr_t)p + 8 * PAGE;
	cr_assert(!pthread_create(&c[1].thread, NULL, move_in, &c[1]));
	wait_in_call(&c[1]);
	end_reading(c, 2, 3);
	cr_assert_eq(stats.own_removes, 0);
}
