/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls that once left an old translation behind: each test is one of those. */
#include <criterion/criterion.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "tests/integration/events_host.h"

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static struct host h;

static void fini(void)
{
	host_destroy(&h);
}

static void init(void)
{
	host_create(&h);
}

TestSuite(own_regress, .init = init, .fini = fini, .timeout = 8);

#define sound() cr_assert(host_sound(&h))

/* A forked child that lives until the tables were looked at: its pages stay shared. */
static pid_t child;
static int pipes[2];

static bool begin_child(void)
{
	char c;

	if (pipe(pipes))
		return false;
	child = umbra_fork(h.own);
	if (!child) {
		close(pipes[1]);
		_exit(read(pipes[0], &c, 1) != 0);
	}
	return child > 0;
}

static void end_child(void)
{
	close(pipes[0]);
	close(pipes[1]);
	cr_assert_eq(waitpid(child, NULL, 0), child);
	child = 0;
}

static void fork_is_sound(void)
{
	cr_assert(begin_child());
	sound();
	end_child();
}

static char *small(size_t bytes)
{
	char *p = host_anon(&h, bytes);

	cr_assert(p);
	cr_assert(!madvise(p, bytes, MADV_NOHUGEPAGE));
	return p;
}

Test(own_regress, a_region_shrunk_in_place_is_still_forked)
{
	char *p = small(2 * HUGE);
	hva_t now;

	cr_assert(!umbra_mremap(h.own, hva_range_of(p, 2 * HUGE), HUGE, 0, (hva_t){ 0 }, &now));
	cr_assert(host_touch(&h, p, 64 * PAGE, RW));
	fork_is_sound();
	cr_assert_eq(host_leaves(&h, p, 64 * PAGE), 0);
	cr_assert(!umbra_region_remove(h.own, hva_range_of(p, HUGE)));
}

Test(own_regress, a_region_grown_in_place_is_forked_to_its_end)
{
	char *p = small(2 * HUGE);
	hva_t now;

	cr_assert(!umbra_munmap(h.own, hva_range_of(p + HUGE, HUGE)));
	cr_assert(!umbra_mremap(h.own, hva_range_of(p, HUGE), 2 * HUGE, 0, (hva_t){ 0 }, &now));
	cr_assert_eq(now.v, (uintptr_t)p);
	cr_assert(host_touch(&h, p + HUGE - 8 * PAGE, 16 * PAGE, RW));
	fork_is_sound();
	cr_assert_eq(host_leaves(&h, p, 2 * HUGE), 0);
	cr_assert(!umbra_region_remove(h.own, hva_range_of(p, 2 * HUGE)));
}

Test(own_regress, what_dontunmap_leaves_is_forked_and_so_is_what_it_moved)
{
	char *p = small(HUGE), *to = host_reserve(HUGE);
	hva_t now;

	host_slot(&h, to, HUGE);
	cr_assert(host_touch(&h, p, 64 * PAGE, RW));
	cr_assert(!umbra_mremap(h.own, hva_range_of(p, HUGE), HUGE,
				MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
				(hva_t){ (uintptr_t)to }, &now));
	cr_assert(host_touch(&h, p, 64 * PAGE, RW));
	cr_assert(host_touch(&h, to, 64 * PAGE, RW));
	fork_is_sound();
	cr_assert_eq(host_leaves(&h, p, HUGE) + host_leaves(&h, to, HUGE), 0);
}

/* ---- a region changes while another call waits in its start ------------------------------------- */

static _Atomic bool inside, go;
static enum umbra_cause slow_cause;

/* Stands before the MMU's chain: while it waits, the MMU has not heard of the call yet. */
static int slow_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	if (r->cause == slow_cause && !atomic_exchange(&inside, true))
		while (!go)
			usleep(100);
	return umbra_invalidate_start(h.chain, r);
}

static void slow_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	umbra_invalidate_end(h.chain, r);
}

static const struct umbra_notifier_ops slow_ops = {
	.invalidate_range_start = slow_start,
	.invalidate_range_end = slow_end,
};
static struct umbra_notifier slow = { .ops = &slow_ops, .name = "slow" };

static void *fork_now(void *arg)
{
	(void)arg;
	return begin_child() ? NULL : &h;
}

static void *punch_now(void *arg)
{
	return umbra_fallocate(h.own, *(int *)arg, 3, 0, HUGE) ? &h : NULL;
}

/* from [from, from + len) to [to, to + new_len) */
struct move {
	char *from, *to;
	size_t len, new_len;
};

static void *move_now(void *arg)
{
	const struct move *m = arg;
	hva_t now;

	return umbra_mremap(h.own, hva_range_of(m->from, m->len), m->new_len,
			    m->from == m->to ? 0 : MREMAP_MAYMOVE | MREMAP_FIXED,
			    (hva_t){ (uintptr_t)m->to }, &now)
		       ? &h
		       : NULL;
}

/*
 * Lets @call wait in its start, moves or grows memory meanwhile, and lets the call go on. Until it is through, nothing
 * is installed at the new place @look: the call was planned without it.
 */
static void moved_during(void *(*call)(void *), void *arg, struct move *m, const char *look, int fd)
{
	const struct umbra_region region = {
		.hva = hva_range_of(m->from, m->len),
		.fd = fd,
		.is_private = fd < 0,
	};
	struct umbra_own *plain = h.own;
	struct umbra_chain *front;
	pthread_t caller, mover;
	unsigned char resident;
	void *result;

	cr_assert(!umbra_chain_create(&front, &umbra_os_posix));
	cr_assert(!umbra_chain_register(front, &slow));
	cr_assert(!umbra_own_create(&h.own, front, h.map));
	cr_assert(!umbra_region_add(h.own, &region));
	cr_assert(host_touch(&h, m->from, 8 * PAGE, RW));
	slow_cause = fd < 0 ? UMBRA_CAUSE_FORK : UMBRA_CAUSE_REMOVE;
	cr_assert(!pthread_create(&caller, NULL, call, arg));
	while (!inside)
		usleep(100);
	cr_assert(!pthread_create(&mover, NULL, move_now, m));
	while (mincore((void *)(uintptr_t)look, PAGE, &resident)) /* until it is there */
		usleep(100);
	for (int i = 0; i < 50; i++) {
		cr_assert_neq(host_fault_once(&h, look, RW), UMBRA_FAULT_INSTALLED);
		usleep(1000);
	}
	go = true;
	cr_assert(!pthread_join(caller, &result));
	cr_assert_null(result);
	cr_assert(!pthread_join(mover, &result));
	cr_assert_null(result);
	sound();
	cr_assert(host_touch(&h, look, PAGE, RW));
	sound();
	if (child)
		end_child();
	umbra_own_destroy(h.own);
	umbra_chain_unregister(front, &slow);
	umbra_chain_destroy(front);
	h.own = plain;
}

static struct move to_a_new_place(char *p)
{
	char *to = host_reserve(HUGE);

	host_slot(&h, to, HUGE);
	return (struct move){ p, to, HUGE, HUGE };
}

Test(own_regress, what_moves_after_a_fork_was_planned_waits_for_it)
{
	struct move m = to_a_new_place(small(HUGE));

	moved_during(fork_now, NULL, &m, m.to, -1);
}

Test(own_regress, what_moves_after_a_punch_was_planned_waits_for_it)
{
	struct move m;
	int fd;

	m = to_a_new_place(host_memfd(&h, HUGE, &fd));
	moved_during(punch_now, &fd, &m, m.to, fd);
	close(fd);
}

Test(own_regress, what_grows_after_a_fork_was_planned_waits_for_it)
{
	char *p = small(2 * HUGE);
	struct move m = { p, p, HUGE, 2 * HUGE };

	cr_assert(!umbra_munmap(h.own, hva_range_of(p + HUGE, HUGE)));
	moved_during(fork_now, NULL, &m, p + HUGE, -1);
}

/* ---- files ---------------------------------------------------------------------------------- */

/*
 * @bytes of a file, in two mappings with a region each; the first block is one large folio. The leaves are of 4K all the
 * same: one of 2M would go with any page of it, and so say nothing of what is dropped beside that page.
 */
static void two_mappings(size_t bytes, int *fd, char *p[2])
{
	h.slot_flags = UMBRA_SLOT_4K_ONLY;
	p[0] = host_memfd(&h, bytes, fd);
	p[1] = host_map(&h, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd);
	cr_assert(p[0] && p[1]);
	for (size_t at = 0; at < bytes; at += PAGE)
		p[0][at] = 1;
	if (madvise(p[0], HUGE, MADV_COLLAPSE))
		cr_skip_test("the host does not collapse files");
	cr_assert(host_touch(&h, p[0], bytes, RW));
	cr_assert(host_touch(&h, p[1], bytes, RW));
	cr_assert(host_flags(&h, p[1]) & UMBRA_PAGE_HUGE || !umbra_hostmap_has_scan(h.map));
	cr_assert_eq(host_leaf(&h, p[1]), 1);
	sound();
}

Test(own_regress, a_punch_in_a_large_folio_drops_it_in_every_mapping)
{
	char *p[2];
	int fd;

	two_mappings(2 * HUGE, &fd, p);
	cr_assert(!umbra_fallocate(h.own, fd, 3, 8 * PAGE, PAGE));
	sound();
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(host_leaf(&h, p[i] + 9 * PAGE), 0);
		cr_assert_eq(host_leaves(&h, p[i] + HUGE, HUGE), 512);
	}
}

Test(own_regress, truncation_in_a_large_folio_drops_it_in_every_mapping)
{
	char *p[2];
	int fd;

	two_mappings(HUGE, &fd, p);
	cr_assert(!umbra_ftruncate(h.own, fd, HUGE / 2));
	sound();
	for (int i = 0; i < 2; i++)
		cr_assert_eq(host_leaf(&h, p[i] + HUGE / 2 - PAGE), 0);
}

Test(own_regress, advice_through_one_mapping_is_announced_for_the_other)
{
	const int advices[] = { MADV_REMOVE, MADV_COLD, MADV_PAGEOUT };

	for (int i = 0; i < 3; i++) {
		char *p[2];
		int fd;

		two_mappings(HUGE, &fd, p);
		umbra_madvise(h.own, hva_range_of(p[0] + 8 * PAGE, PAGE), advices[i]);
		sound();
		cr_assert_eq(host_leaf(&h, p[1] + 8 * PAGE), 0);
	}
}

Test(own_regress, collapse_through_one_mapping_is_announced_for_the_other)
{
	int fd;
	char *p = host_memfd(&h, HUGE, &fd);
	char *q = host_map(&h, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	cr_assert(p && q);
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(host_touch(&h, q, HUGE, RW));
	umbra_madvise(h.own, hva_range_of(p, HUGE), MADV_COLLAPSE);
	sound();
	cr_assert_eq(host_leaf(&h, q), 0);
}

/* ---- anonymous folios ------------------------------------------------------------------------ */

Test(own_regress, advice_to_a_folio_off_its_alignment_reaches_all_of_it)
{
	const int advices[] = { MADV_COLD, MADV_FREE, MADV_PAGEOUT };

	for (int i = 0; i < 3; i++) {
		char *p = host_anon(&h, 3 * HUGE), *to = p + HUGE;
		hva_t now;

		if (!host_make_thp(&h, p))
			cr_skip_test("the host gives no transparent hugepage");
		memset(p + PAGE, 0, HUGE - PAGE);
		cr_assert(!umbra_mremap(h.own, hva_range_of(p, HUGE), HUGE,
					MREMAP_MAYMOVE | MREMAP_FIXED,
					(hva_t){ (uintptr_t)to + HUGE / 2 }, &now));
		cr_assert(host_touch(&h, to + HUGE / 2, HUGE, RW));
		cr_assert(!umbra_madvise(h.own, hva_range_of(to + HUGE / 2, PAGE), advices[i]));
		sound();
		cr_assert_eq(host_leaf(&h, to + HUGE + PAGE), 0);
	}
}

/* A folio whose second half was moved @gap bytes away, with pages of zeroes in both, under 4K leaves. */
static char *torn(char **far)
{
	char *p = host_anon(&h, HUGE);
	hva_t now;

	if (!host_make_thp(&h, p))
		cr_skip_test("the host gives no transparent hugepage");
	memset(p + 10 * PAGE, 0, 20 * PAGE);
	memset(p + 300 * PAGE, 0, 20 * PAGE);
	*far = host_reserve(HUGE);
	host_slot(&h, *far, HUGE);
	cr_assert(!umbra_mremap(h.own, hva_range_of(p + HUGE / 2, HUGE / 2), HUGE / 2,
				MREMAP_MAYMOVE | MREMAP_FIXED, (hva_t){ (uintptr_t)*far }, &now));
	cr_assert(host_touch(&h, p, HUGE / 2, RW));
	cr_assert(host_touch(&h, *far, HUGE / 2, RW));
	sound();
	return p;
}

Test(own_regress, advice_to_a_torn_folio_reaches_its_far_part_and_nothing_else)
{
	const int advices[] = { MADV_COLD, MADV_FREE, MADV_PAGEOUT };
	char *apart = small(HUGE), *far, *p;

	cr_assert(host_touch(&h, apart, HUGE, RW));
	for (int i = 0; i < 3; i++) {
		p = torn(&far);
		cr_assert(!umbra_madvise(h.own, hva_range_of(p + 5 * PAGE, PAGE), advices[i]));
		sound();
		cr_assert_eq(host_leaf(&h, far + 44 * PAGE), 0);
		cr_assert_eq(host_leaves(&h, apart, HUGE), 512);
	}
}

Test(own_regress, who_cannot_see_frames_brackets_everything_for_a_torn_folio)
{
	char *far, *p = torn(&far);

	if (geteuid() || setresuid(65534, 65534, 65534) || prctl(PR_SET_DUMPABLE, 1))
		cr_skip_test("not root: there is no right to give up");
	umbra_hostmap_close(h.map);
	cr_assert(!umbra_hostmap_open(&h.map, 0));
	umbra_own_destroy(h.own);
	cr_assert(!umbra_own_create(&h.own, h.chain, h.map));
	/* The new one has not seen that the folio was torn; it is again, by a move of a page. */
	cr_assert(!umbra_mremap(h.own, hva_range_of(p + 100 * PAGE, PAGE), PAGE,
				MREMAP_MAYMOVE | MREMAP_FIXED, (hva_t){ (uintptr_t)far + HUGE / 2 },
				&(hva_t){ 0 }));
	cr_assert(!umbra_madvise(h.own, hva_range_of(p + 5 * PAGE, PAGE), MADV_COLD));
	cr_assert_eq(host_leaf(&h, far + 44 * PAGE), 0);
	sound();
}

Test(own_regress, a_page_moved_far_out_of_a_folio_is_a_part_of_it_still)
{
	char *far, *p = torn(&far);

	/* Advice to the far part reaches back. */
	cr_assert(!umbra_madvise(h.own, hva_range_of(far + 5 * PAGE, PAGE), MADV_COLD));
	sound();
	cr_assert_eq(host_leaf(&h, p + 15 * PAGE), 0);
}

Test(own_regress, a_folio_discarded_in_part_is_not_taken_for_torn)
{
	char *apart = small(HUGE), *p = host_anon(&h, HUGE);

	if (!host_make_thp(&h, p))
		cr_skip_test("the host gives no transparent hugepage");
	cr_assert(host_touch(&h, apart, HUGE, RW));
	cr_assert(!umbra_madvise(h.own, hva_range_of(p + 9 * PAGE, PAGE), MADV_DONTNEED));
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(!umbra_madvise(h.own, hva_range_of(p + 5 * PAGE, PAGE), MADV_COLD));
	sound();
	cr_assert_eq(host_leaves(&h, apart, HUGE), 512);
}

Test(own_regress, cold_splits_no_folio_with_a_pinned_page)
{
	char *p = host_anon(&h, HUGE);
	struct umbra_pin pin;

	if (!host_make_thp(&h, p))
		cr_skip_test("the host gives no transparent hugepage");
	memset(p + PAGE, 0, HUGE - PAGE);
	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert(!umbra_pin(h.root, (gfn_t){ (uintptr_t)(p + 100 * PAGE) >> 12 }, 1, &pin));
	cr_assert_eq(umbra_madvise(h.own, hva_range_of(p, PAGE), MADV_COLD), -EBUSY);
	cr_assert(umbra_unpin(h.mmu, &pin));
	cr_assert(!umbra_madvise(h.own, hva_range_of(p, PAGE), MADV_COLD));
	sound();
}

Test(own_regress, advice_where_nothing_is_mapped_yet_is_bracketed_against_a_fault_between)
{
	const int advices[] = { MADV_COLD, MADV_FREE, MADV_DONTDUMP };
	char *p = host_anon(&h, HUGE);
	uint64_t starts;

	for (int i = 0; i < 3; i++) {
		starts = host_starts(&h);
		cr_assert(!umbra_madvise(h.own, hva_range_of(p, HUGE / 2), advices[i]));
		cr_assert_eq(host_starts(&h) - starts, 1);
	}
	sound();
}

Test(own_regress, advice_to_the_whole_address_space_ends)
{
	const struct hva_range all = { { PAGE }, { ~0ULL & ~(PAGE - 1) } };
	char *p = small(HUGE);

	cr_assert(host_touch(&h, p, HUGE, RW));
	cr_assert_lt(umbra_madvise(h.own, all, MADV_COLD), 0);
	sound();
}
