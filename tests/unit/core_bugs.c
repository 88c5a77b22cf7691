/* SPDX-License-Identifier: BSD-2-Clause */
/* Our own broken invariants stop the program, and say which it was. Each case breaks one by hand, in a child. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <umbra/events.h>
#include <unistd.h>

#include "shadow/core/private.h"
#include "tests/support/fakehost.h"

/* Page 10 has a 4K leaf, block 1 a 2M leaf. */
static struct fake *prepare(void)
{
	struct fake *f = fake_create(NULL);

	fake_make_huge(f, 1);
	if (fake_access(f, 0, 10, true, NULL) || fake_access(f, 0, 600, true, NULL))
		_exit(3);
	return f;
}

static struct spte_iter walk(struct fake *f, uint64_t gfn, unsigned int level)
{
	struct spte_iter it;

	walk_to(f->root, gfn, level, &it);
	return it;
}

/* Changes the entry of @gfn at @level to @now. */
static void change(uint64_t gfn, unsigned int level, uint64_t now)
{
	struct fake *f = prepare();
	struct spte_iter it = walk(f, gfn, level);

	spte_change(f->mmu, &it, now);
}

static void absent_but_not_zero(void)
{
	change(10, UMBRA_LEVEL_4K, SPTE_ADDR);
}

static void bits_of_nobody(void)
{
	change(10, UMBRA_LEVEL_4K, spte_make_leaf(10, UMBRA_LEVEL_4K, true) | 1ULL << 8);
}

static void not_the_users(void)
{
	change(11, UMBRA_LEVEL_4K, spte_make_leaf(11, UMBRA_LEVEL_4K, true) & ~SPTE_USER);
}

static void odd_2m_frame(void)
{
	change(1024, UMBRA_LEVEL_2M, spte_make_leaf(1025, UMBRA_LEVEL_2M, true));
}

static void leaf_over_table(void)
{
	change(0, UMBRA_LEVEL_2M, spte_make_leaf(0, UMBRA_LEVEL_2M, true));
}

static void another_frame(void)
{
	change(10, UMBRA_LEVEL_4K, spte_make_leaf(11, UMBRA_LEVEL_4K, true));
}

static void leaf_of_1g(void)
{
	change(1ULL << 18, UMBRA_LEVEL_1G, SPTE_PRESENT | SPTE_USER | SPTE_PS);
}

/* The table that is to stand for the 2M leaf is empty. */
static void wrong_split(void)
{
	struct fake *f = prepare();
	struct spte_iter it = walk(f, 600, UMBRA_LEVEL_2M);
	const int64_t child = table_new(f->root, UMBRA_LEVEL_4K, 512);

	spte_change(f->mmu, &it,
		    spte_make_table(FAKE_WINDOW + ((uint64_t)child << UMBRA_PAGE_SHIFT)));
}

static void table_that_is_gone(void)
{
	struct fake *f = prepare();
	struct spte_iter it = walk(f, 10, UMBRA_LEVEL_4K);

	f->mmu->tables[it.table].state = TABLE_FREE;
	spte_change(f->mmu, &it, 0);
}

static void retired_twice(void)
{
	struct fake *f = prepare();
	const struct spte_iter it = walk(f, 10, UMBRA_LEVEL_4K);

	table_retire(f->mmu, it.table, false);
	table_retire(f->mmu, it.table, false);
}

static void allocated_twice(void)
{
	struct fake *f = prepare();
	const struct spte_iter it = walk(f, 10, UMBRA_LEVEL_4K);

	f->table_used[it.table] = false;
	fake_access(f, 0, 2000, true, NULL);
}

static void end_without_start(void)
{
	struct fake *f = prepare();
	const struct umbra_range r = fake_test_range(0, 1, 0);
	struct umbra_notifier *n = umbra_mmu_notifier(f->mmu);

	n->ops->invalidate_range_end(n, &r);
}

static void out_of_the_window(void)
{
	struct fake *f = prepare();
	const struct spte_iter it = walk(f, 10, UMBRA_LEVEL_2M);
	struct umbra_translation t;

	*it.sptep = spte_make_table(FAKE_WINDOW - UMBRA_PAGE_SIZE);
	umbra_lookup(f->root, (gpa_t){ 10ULL << UMBRA_PAGE_SHIFT }, &t);
}

static int never(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	(void)r;
	return -EAGAIN;
}

static const struct umbra_notifier_ops never_ops = { .invalidate_range_start = never };
static struct umbra_notifier refuser = { .ops = &never_ops, .name = "never" };

static void forced_and_refused(void)
{
	struct fake *f = prepare();
	const struct umbra_range r = fake_test_range(0, 1, UMBRA_RANGE_FORCED);

	umbra_chain_register(f->chain, &refuser);
	umbra_invalidate_start(f->chain, &r);
}

static void refused_at_registration(void)
{
	struct fake *f = prepare();
	const struct umbra_range r = fake_test_range(0, 1, UMBRA_RANGE_FORCED);

	umbra_invalidate_start(f->chain, &r);
	umbra_chain_register(f->chain, &refuser);
}

static void bug_of_posix(void)
{
	umbra_os_posix.bug("I0: as said");
}

/* Runs @fn in a child. Returns: what it said before it stopped, or NULL when it did not stop as it should. */
static const char *last_words(void (*fn)(void))
{
	static char said[4096];
	size_t have = 0;
	int fds[2], status;
	ssize_t got;
	pid_t pid;

	cr_assert_eq(pipe(fds), 0);
	pid = fork();
	if (!pid) {
		signal(SIGABRT, SIG_DFL);
		dup2(fds[1], STDERR_FILENO);
		fn();
		_exit(0);
	}
	close(fds[1]);
	while ((got = read(fds[0], said + have, sizeof(said) - 1 - have)) > 0)
		have += (size_t)got;
	said[have] = 0;
	close(fds[0]);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT ? said : NULL;
}

static const struct {
	void (*breaks)(void);
	const char *name, *words;
} cases[] = {
#define CASE(fn, words)        \
	{                      \
		fn, #fn, words \
	}
	CASE(absent_but_not_zero, "I3: an absent entry is not zero"),
	CASE(bits_of_nobody, "I3: an entry has bits"),
	CASE(not_the_users, "I3: an entry has bits"),
	CASE(odd_2m_frame, "I6: a 2M leaf to a frame"),
	CASE(leaf_over_table, "I3: a leaf replaces a table"),
	CASE(another_frame, "I4: a leaf is replaced by a leaf to another frame"),
	CASE(leaf_of_1g, "I3: a leaf above 2M"),
	CASE(wrong_split, "I4: a split changes what is mapped"),
	CASE(table_that_is_gone, "I13: an entry is changed in a table that is not live"),
	CASE(retired_twice, "I13: a table is retired twice"),
	CASE(allocated_twice, "I1: the allocator gave a table page"),
	CASE(end_without_start, "I10: an invalidation ends that has not begun"),
	CASE(out_of_the_window, "I1"),
	CASE(forced_and_refused, "a consumer refused a forced invalidation"),
	CASE(refused_at_registration, "a consumer refused a forced invalidation"),
	CASE(bug_of_posix, "I0: as said"),
};

Test(bugs, stop_the_program_and_say_what_is_broken)
{
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const char *said = last_words(cases[i].breaks);

		cr_expect(said && strstr(said, cases[i].words), "%s: %s", cases[i].name,
			  said ? said : "it ran on");
	}
}

/* What the CPU sets in an entry between our look and our change is never a reason to give up, nor lost. */
Test(bugs, bits_that_the_cpu_sets_meanwhile_are_kept)
{
	struct fake *f = prepare();
	struct spte_iter it = walk(f, 10, UMBRA_LEVEL_4K);
	const uint64_t ad = SPTE_ACCESSED | SPTE_DIRTY;

	it.old &= ~ad;
	cr_assert(spte_change(f->mmu, &it, it.old & ~SPTE_WRITABLE));
	cr_assert_eq(*it.sptep & ad, ad);
	it = walk(f, 10, UMBRA_LEVEL_4K);
	it.old &= ~ad;
	cr_assert(spte_change(f->mmu, &it, 0));
	cr_assert_eq(it.old & ad, ad, "told to who drops it");
	it.old = spte_make_leaf(10, UMBRA_LEVEL_4K, true);
	cr_assert_not(spte_change(f->mmu, &it, 0), "another value than the one looked at");
	cr_assert_eq(it.old, 0);
	flush_post(f->mmu);
	map_prune(f->mmu, it.table);
	flush_post(f->mmu);
	cr_assert_eq(fake_check(f), 0);
	fake_destroy(f);
}

Test(bugs, ranges_without_a_page_touch_nothing)
{
	struct fake *f = prepare();
	const struct gfn_range none = { { 10 }, { 10 } }, beyond = { { GFN_LIMIT }, { ~0ULL } };
	struct umbra_translation t;
	struct spte_iter it;

	umbra_zap(f->mmu, none);
	umbra_zap(f->mmu, beyond);
	cr_assert_eq(fake_leaf(f, 10), UMBRA_LEVEL_4K);
	cr_assert_eq(walk_runs(f->root, none, &(struct leaf_visitor){ 0 }), 0);
	cr_assert_eq(umbra_lookup(f->root, (gpa_t){ GFN_LIMIT << UMBRA_PAGE_SHIFT }, &t), -ENOENT);
	cr_assert_eq(map_tables(f->root, 600, UMBRA_LEVEL_4K, &it), -EEXIST);
	cr_assert_eq(fake_check(f), 0);
	fake_destroy(f);
}
