/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls: when the consumers are told of a start the host has changed nothing yet, and when of the end, all of it. */
#include <criterion/criterion.h>
#include <sys/wait.h>

#include "events_host.h"

#define MIB (1024UL * 1024)

static struct host h;
static char *p;
static int file;
static struct umbra_hostmap *map;

/* What the host looks like to who is told. */
static bool (*has_changed)(void);
static unsigned int starts, ends, early, late;

static int on_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	(void)r;
	starts++;
	early += has_changed();
	return 0;
}

static void on_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	(void)r;
	ends++;
	late += !has_changed();
}

static const struct umbra_notifier_ops ops = { .invalidate_range_start = on_start,
					       .invalidate_range_end = on_end };
static struct umbra_notifier witness = { .ops = &ops, .name = "witness" };

static uint32_t flags_at(const char *at)
{
	struct umbra_page page;

	cr_assert_eq(umbra_hostmap_query(map, (hva_t){ (uintptr_t)at }, &page), 0);
	return page.flags;
}

static bool page_is_gone(void)
{
	return !(flags_at(p) & UMBRA_PAGE_PRESENT);
}

static bool mapping_is_gone(void)
{
	unsigned char resident;

	return mincore(p, UMBRA_PAGE_SIZE, &resident) && errno == ENOMEM;
}

static bool is_read_only(void)
{
	const int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	const bool refused = read(zero, p, 1) < 0;

	close(zero);
	return refused;
}

static bool is_shared_with_a_child(void)
{
	return !(flags_at(p) & UMBRA_PAGE_EXCLUSIVE);
}

static bool is_its_own(void)
{
	return flags_at(p) & UMBRA_PAGE_EXCLUSIVE;
}

static bool is_huge(void)
{
	return flags_at(p) & UMBRA_PAGE_HUGE;
}

static void watch(bool (*changed)(void))
{
	has_changed = changed;
	starts = ends = early = late = 0;
	cr_assert_not(changed(), "not before the call");
}

static void seen(const char *call, unsigned int brackets)
{
	cr_expect_eq(starts, brackets, "%s: %u starts", call, starts);
	cr_expect_eq(ends, brackets, "%s: %u ends", call, ends);
	cr_expect_eq(early, 0, "%s: started after the change", call);
	cr_expect_eq(late, 0, "%s: ended before the change", call);
}

static void begin(bool of_a_file)
{
	host_create(&h);
	map = h.map;
	p = of_a_file ? host_memfd(&h, 4 * MIB, &file) : host_anon(&h, 4 * MIB);
	memset(p, 1, 4 * MIB);
	cr_assert(host_touch(&h, p, 16 * UMBRA_PAGE_SIZE, UMBRA_ACCESS_WRITE));
	cr_assert_eq(umbra_chain_register(h.chain, &witness), 0);
}

static void end(void)
{
	umbra_chain_unregister(h.chain, &witness);
	cr_expect(host_sound(&h));
	host_destroy(&h);
}

static struct hva_range pages(unsigned int n)
{
	return hva_range_of(p, n * UMBRA_PAGE_SIZE);
}

Test(order, of_a_discard)
{
	begin(false);
	watch(page_is_gone);
	cr_expect_eq(umbra_madvise(h.own, pages(4), MADV_DONTNEED), 0);
	seen("MADV_DONTNEED", 1);
	end();
}

Test(order, of_a_batch)
{
	begin(false);
	watch(page_is_gone);
	cr_expect_eq(umbra_madvise_batch(
			     h.own,
			     (const struct hva_range[]){ pages(2), hva_range_of(p + MIB, MIB) }, 2,
			     MADV_DONTNEED, NULL),
		     0);
	seen("a batch", 1);
	end();
}

Test(order, of_a_protection)
{
	begin(false);
	watch(is_read_only);
	cr_expect_eq(umbra_mprotect(h.own, pages(4), PROT_READ), 0);
	seen("mprotect", 1);
	end();
}

Test(order, of_munmap)
{
	begin(false);
	watch(mapping_is_gone);
	cr_expect_eq(umbra_munmap(h.own, pages(4)), 0);
	seen("munmap", 1);
	end();
}

Test(order, of_a_new_mapping_over_the_old_one)
{
	begin(false);
	watch(page_is_gone);
	cr_expect_eq(umbra_mmap_over(h.own, pages(4), PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
		     0);
	seen("mmap over", 1);
	end();
}

Test(order, of_a_move)
{
	hva_t at;

	begin(false);
	watch(mapping_is_gone);
	cr_expect_eq(umbra_mremap(h.own, pages(4), 4 * UMBRA_PAGE_SIZE,
				  MREMAP_MAYMOVE | MREMAP_FIXED,
				  (hva_t){ (uintptr_t)host_reserve(2 * MIB) }, &at),
		     0);
	seen("mremap", 1);
	end();
}

Test(order, of_a_hole_in_a_file)
{
	begin(true);
	watch(page_is_gone);
	cr_expect_eq(umbra_fallocate(h.own, file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				     4 * UMBRA_PAGE_SIZE),
		     0);
	seen("fallocate", 1);
	end();
}

Test(order, of_a_truncation)
{
	begin(true);
	watch(page_is_gone);
	cr_expect_eq(umbra_ftruncate(h.own, file, 0), 0);
	seen("ftruncate", 1);
	end();
}

/* A child that lives until the parent has looked. */
static pid_t child;
static int hold[2];

static void fork_child(void)
{
	char byte;

	cr_assert_eq(pipe(hold), 0);
	child = umbra_fork(h.own);
	if (!child) {
		close(hold[1]);
		_exit(read(hold[0], &byte, 1) != 0);
	}
	cr_assert_gt(child, 0);
}

static void end_child(void)
{
	close(hold[1]);
	cr_expect_eq(waitpid(child, NULL, 0), child);
}

Test(order, of_a_fork)
{
	begin(false);
	watch(is_shared_with_a_child);
	fork_child();
	seen("fork", 1);
	end_child();
	end();
}

Test(order, of_a_copy_on_write)
{
	begin(false);
	cr_assert_eq(madvise(p, 4 * MIB, MADV_NOHUGEPAGE), 0);
	watch(is_shared_with_a_child);
	fork_child();
	cr_assert(host_touch(&h, p, UMBRA_PAGE_SIZE, UMBRA_ACCESS_READ));
	watch(is_its_own);
	cr_assert(host_touch(&h, p, UMBRA_PAGE_SIZE, UMBRA_ACCESS_WRITE));
	seen("a guest's write", 1);
	end_child();
	end();
}

Test(order, of_a_collapse)
{
	begin(false);
	host_needs_sizes(&h);
	cr_assert_eq(madvise(p, 2 * MIB, MADV_NOHUGEPAGE), 0);
	cr_assert_eq(madvise(p, 2 * MIB, MADV_DONTNEED), 0);
	memset(p, 1, 2 * MIB);
	cr_assert_eq(madvise(p, 2 * MIB, MADV_HUGEPAGE), 0);
	watch(is_huge);
	if (umbra_madvise(h.own, hva_range_of(p, 2 * MIB), MADV_COLLAPSE))
		cr_skip_test("this host collapses nothing just now");
	seen("MADV_COLLAPSE", 1);
	end();
}
