/* SPDX-License-Identifier: BSD-2-Clause */
/* What another thread does between the plan of an own call and its system call leaves no old translation behind. */
#include <criterion/criterion.h>
#include <sys/syscall.h>
#include "shadow/events/hostmap.h"
#include "tests/integration/events_host.h"

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static struct host h;
static char *arena;

static void fini(void)
{
	host_destroy(&h);
}

static void init(void)
{
	host_create(&h);
}

TestSuite(between, .init = init, .fini = fini, .timeout = 20);

#define sound() cr_assert(host_sound(&h))

/* ---- a step in just before the system call ---------------------------------------------------- */

static void (*step)(void); /* runs once */
static int step_advice;
static int step_errno; /* the call answers so instead, if not 0 */

static void step_once(void)
{
	void (*fn)(void) = step;

	step = NULL;
	if (fn)
		fn();
}

/* In place of libc's: the library calls these. */
int madvise(void *p, size_t bytes, int advice)
{
	if (advice == step_advice && step) {
		step_once();
		errno = step_errno;
		if (errno)
			return -1;
	}
	return (int)syscall(SYS_madvise, p, bytes, advice);
}

int ftruncate(int fd, off_t len)
{
	if (!step_advice)
		step_once();
	return (int)syscall(SYS_ftruncate, fd, len);
}

static void before(int advice, void (*fn)(void))
{
	step_advice = advice;
	step = fn;
}

/* ---- a step in between the plan and the start, or rather: before the MMU hears of the start ------ */

static int front_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	step_once();
	return umbra_invalidate_start(h.chain, r);
}

static void front_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	umbra_invalidate_end(h.chain, r);
}

static const struct umbra_notifier_ops front_ops = {
	.invalidate_range_start = front_start,
	.invalidate_range_end = front_end,
};
static struct umbra_notifier front_member = { .ops = &front_ops, .name = "front" };

struct front {
	struct umbra_chain *chain;
	struct umbra_own *own, *plain;
};

static void front_create(struct front *f)
{
	cr_assert(!umbra_chain_create(&f->chain, &umbra_os_posix));
	cr_assert(!umbra_chain_register(f->chain, &front_member));
	cr_assert(!umbra_own_create(&f->own, f->chain, h.map));
	f->plain = h.own;
	h.own = f->own;
}

static void front_destroy(struct front *f)
{
	h.own = f->plain;
	umbra_own_destroy(f->own);
	umbra_chain_unregister(f->chain, &front_member);
	umbra_chain_destroy(f->chain);
}

static int advise(const char *p, size_t bytes, int advice)
{
	return umbra_madvise(h.own, hva_range_of(p, bytes), advice);
}

static char *small(size_t bytes)
{
	char *p = host_anon(&h, bytes);

	cr_assert(p);
	cr_assert(!madvise(p, bytes, MADV_NOHUGEPAGE));
	return p;
}

/* ---- populate --------------------------------------------------------------------------------- */

/* A thread reads page 4, which gets the zero page, or the file's; then the guest does. */
static void read_page_4(void)
{
	*(volatile char *)(arena + 4 * PAGE);
	host_fault_once(&h, arena + 4 * PAGE, UMBRA_ACCESS_READ);
}

Test(between, a_zero_page_read_before_populate_is_not_left_behind)
{
	arena = small(HUGE);
	before(MADV_POPULATE_WRITE, read_page_4);
	cr_assert(!advise(arena, 8 * PAGE, MADV_POPULATE_WRITE));
	cr_assert_null(step);
	sound();
}

static void expect_no_leaf_of_page_4(void)
{
	cr_expect_eq(host_leaf(&h, arena + 4 * PAGE), 0);
}
Test(between, what_a_populate_will_move_has_no_leaf_when_it_moves)
{
	arena = small(HUGE);
	read_page_4();
	cr_assert_neq(host_leaf(&h, arena + 4 * PAGE), 0);
	before(MADV_POPULATE_WRITE, expect_no_leaf_of_page_4);
	cr_assert(!advise(arena, 8 * PAGE, MADV_POPULATE_WRITE));
	cr_assert_null(step);
	sound();
}
Test(between, a_private_file_page_read_before_populate_is_not_left_behind)
{
	int fd = memfd_create("guest", MFD_CLOEXEC);

	cr_assert(fd >= 0 && !ftruncate(fd, HUGE));
	arena = host_map(&h, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	cr_assert(arena);
	before(MADV_POPULATE_WRITE, read_page_4);
	cr_assert(!advise(arena, 8 * PAGE, MADV_POPULATE_WRITE));
	cr_assert_null(step);
	sound();
	close(fd);
}

Test(between, a_zero_page_read_between_plan_and_start_is_planned_again)
{
	struct front f;

	arena = small(HUGE);
	front_create(&f);
	*(volatile char *)arena; /* so that there is a start at all */
	host_fault_once(&h, arena, UMBRA_ACCESS_READ);
	before(-1, read_page_4);
	cr_assert(!advise(arena, 8 * PAGE, MADV_POPULATE_WRITE));
	cr_assert_null(step);
	sound();
	front_destroy(&f);
}

Test(between, a_batch_of_populates_plans_again_too)
{
	struct hva_range v[2];
	uint32_t done;

	arena = small(HUGE);
	v[0] = hva_range_of(arena, 8 * PAGE);
	v[1] = hva_range_of(arena + 16 * PAGE, 8 * PAGE);
	before(MADV_POPULATE_WRITE, read_page_4);
	cr_assert(!umbra_madvise_batch(h.own, v, 2, MADV_POPULATE_WRITE, &done));
	cr_assert_eq(done, 2);
	cr_assert_null(step);
	sound();
}

/* In a batch nothing is made in pieces: where it is too much to compare page by page, all of it is dropped. */
Test(between, a_batch_of_long_populates_drops_what_is_too_much_to_compare)
{
	struct hva_range v[2];
	uint32_t done;

	arena = small(6 * HUGE);
	cr_assert(host_touch(&h, arena, 6 * HUGE, RW));
	v[0] = hva_range_of(arena, 5 * HUGE);
	v[1] = hva_range_of(arena + 5 * HUGE, HUGE);
	cr_assert(!umbra_madvise_batch(h.own, v, 2, MADV_POPULATE_WRITE, &done));
	cr_assert_eq(done, 2);
	cr_expect_eq(host_leaves(&h, arena, 6 * HUGE), 512);
	sound();
}

Test(between, a_long_populate_is_made_in_pieces_and_drops_nothing)
{
	char *p = small(21 * HUGE);

	cr_assert(host_touch(&h, p + 9 * HUGE, HUGE, RW));
	cr_assert(!advise(p + PAGE, 21 * HUGE - PAGE, MADV_POPULATE_WRITE));
	cr_assert_eq(host_leaves(&h, p + 9 * HUGE, HUGE), 512);
	cr_assert_not(host_flags(&h, p) & UMBRA_PAGE_PRESENT);
	for (size_t i = 1; i < 21 * 512; i++)
		cr_assert(host_flags(&h, p + i * PAGE) & UMBRA_PAGE_PRESENT, "page %zu", i);
	sound();
}

Test(between, a_populate_ends_at_a_hole_as_the_kernels_does)
{
	char *p = small(21 * HUGE), *q = small(21 * HUGE);

	/* some kernels go on behind it */
	cr_assert(!umbra_munmap(h.own, hva_range_of(q + 10 * HUGE, PAGE)));
	cr_assert_eq(madvise(q, 21 * HUGE, MADV_POPULATE_WRITE), -1);
	cr_assert(!umbra_munmap(h.own, hva_range_of(p + 10 * HUGE, PAGE)));
	cr_assert_eq(advise(p, 21 * HUGE, MADV_POPULATE_WRITE), -ENOMEM);
	cr_assert(host_flags(&h, p + 10 * HUGE - PAGE) & UMBRA_PAGE_PRESENT);
	cr_assert_eq(host_flags(&h, p + 10 * HUGE + PAGE) & UMBRA_PAGE_PRESENT,
		     host_flags(&h, q + 10 * HUGE + PAGE) & UMBRA_PAGE_PRESENT);
	cr_assert_eq(advise(p + 1, 21 * HUGE, MADV_POPULATE_WRITE), -EINVAL);
	sound();
}

/* ---- a fault ---------------------------------------------------------------------------------- */

/*
 * Two vCPUs fault on a page that is not there. The first has seen that, and is late; meanwhile the page is read, and the
 * second gets what a read maps. Then the first's write moves it.
 */
static void second_reads_page_4(void)
{
	*(volatile char *)(arena + 4 * PAGE);
	cr_assert_eq(host_fault(&h, arena + 4 * PAGE, UMBRA_ACCESS_READ), UMBRA_FAULT_INSTALLED);
}

Test(between, what_a_late_fault_moves_is_announced)
{
	const uint32_t accesses[] = { UMBRA_ACCESS_READ, RW };

	for (int i = 0; i < 2; i++) {
		arena = small(HUGE);
		before(MADV_POPULATE_WRITE, second_reads_page_4);
		cr_assert(host_touch(&h, arena + 4 * PAGE, PAGE, accesses[i]));
		cr_assert_null(step);
		cr_assert_eq(host_leaf(&h, arena + 4 * PAGE), 1);
		sound();
	}
}

static void second_faults_elsewhere(void)
{
	*(volatile char *)(arena + 4 * PAGE);
	cr_assert_eq(host_fault(&h, arena + HUGE + 4 * PAGE, UMBRA_ACCESS_READ),
		     UMBRA_FAULT_INSTALLED);
}

Test(between, what_a_late_fault_moves_goes_from_the_alias_too)
{
	struct umbra_memslot slot = { .id = 77, .npages = HUGE / PAGE };

	arena = small(HUGE);
	slot.hva.v = (uintptr_t)arena;
	slot.gfn.v = (slot.hva.v + HUGE) >> UMBRA_PAGE_SHIFT;
	slot.out.v = slot.gfn.v;
	cr_assert(!umbra_memslot_add(h.mmu, &slot));
	before(MADV_POPULATE_WRITE, second_faults_elsewhere);
	cr_assert(host_touch(&h, arena + 4 * PAGE, PAGE, RW));
	cr_assert_null(step);
	sound();
}

/*
 * A write to a 2M page that looks as if it stayed, and that the kernel splits all the same, as it does while a child that
 * shared the page exits. The frames stay; but no leaf of 2M may, the alias's neither. Until that is told, an audit does not
 * hold it against the leaf.
 */
static void split_quietly(void)
{
	const size_t at = HUGE - PAGE;

	cr_assert(!mprotect(arena + at, PAGE, PROT_READ));
	cr_assert(!mprotect(arena + at, PAGE, PROT_READ | PROT_WRITE));
	cr_assert_not(host_flags(&h, arena) & UMBRA_PAGE_HUGE);
}

static void split_in_place(void)
{
	struct umbra_audit_report report;

	split_quietly();
	cr_assert_eq(umbra_audit(h.root, h.map, &report, stderr), 0);
	cr_assert_eq(report.skipped, UMBRA_HUGE_PAGES);
}

Test(between, a_2m_page_that_a_write_splits_leaves_no_2m_leaf)
{
	const enum umbra_level most[] = { UMBRA_LEVEL_4K, UMBRA_LEVEL_2M };

	if (!umbra_hostmap_has_scan(h.map))
		cr_skip_test("needs PAGEMAP_SCAN: without it there are no 2M leaves");
	for (int i = 0; i < 2; i++) {
		struct umbra_resolved res;
		struct umbra_resolve_req req = { .access = RW, .max_level = most[i] };

		arena = host_anon(&h, HUGE);
		cr_assert_eq(madvise(arena, HUGE, MADV_HUGEPAGE), 0);
		cr_assert(host_touch(&h, arena, PAGE, RW));
		cr_assert_eq(host_leaf(&h, arena), 2);
		before(MADV_POPULATE_WRITE, split_in_place);
		req.hva.v = (uintptr_t)arena + 4 * PAGE;
		req.gfn.v = req.hva.v >> UMBRA_PAGE_SHIFT;
		cr_expect_eq(umbra_hostmap_resolve(h.map, h.chain, &req, &res), -EAGAIN);
		cr_assert_null(step);
		cr_expect_eq(host_leaf(&h, arena), 0);
		sound();
	}
}

/* So it is with a populate that is an own call. */
static void split_and_move_page_4(void)
{
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	cr_assert_eq(mremap(p, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, arena + 4 * PAGE),
		     arena + 4 * PAGE);
}

static void split_and_move_pages_4_and_7(void)
{
	arena += 3 * PAGE;
	split_and_move_page_4();
	arena -= 3 * PAGE;
	split_and_move_page_4();
}

static void huge_arena(bool pfns)
{
	h.map->pfns = pfns && h.map->pfns;
	arena = host_anon(&h, HUGE);
	cr_assert_eq(madvise(arena, HUGE, MADV_HUGEPAGE), 0);
	cr_assert(host_touch(&h, arena, PAGE, RW));
	cr_assert_eq(host_leaf(&h, arena), 2);
}

static uint64_t pins_lost(void)
{
	struct umbra_stats s;

	umbra_mmu_stats(h.mmu, &s);
	return s.pins_lost;
}

#define need_scan()                         \
	if (!umbra_hostmap_has_scan(h.map)) \
	cr_skip_test("needs PAGEMAP_SCAN: without it there are no 2M leaves")

static int resolve_page_4(void)
{
	struct umbra_resolved res;
	const struct umbra_resolve_req req = {
		.access = RW,
		.max_level = UMBRA_LEVEL_4K,
		.hva = { (uintptr_t)arena + 4 * PAGE },
		.gfn = { ((uintptr_t)arena >> UMBRA_PAGE_SHIFT) + 4 },
	};

	return umbra_hostmap_resolve(h.map, h.chain, &req, &res);
}

Test(between, a_2m_page_that_an_own_populate_splits_leaves_no_2m_leaf)
{
	need_scan();
	for (int i = 0; i < 3; i++) {
		huge_arena(i < 2);
		before(MADV_POPULATE_WRITE, i ? split_and_move_pages_4_and_7 : split_quietly);
		cr_assert(!advise(arena + 2 * PAGE, 8 * PAGE, MADV_POPULATE_WRITE));
		cr_assert_null(step);
		cr_expect_eq(host_leaf(&h, arena), 0);
		sound();
	}
}

/* The page written is told as moved where it has, and where nobody can know; a pin of another page is not touched. */
Test(between, a_page_that_moves_as_its_2m_page_is_split_is_lost_to_its_pin)
{
	struct umbra_pin pin, other;

	need_scan();
	for (int frames = 0; frames < 2; frames++) {
		const uint64_t before_it = pins_lost();

		huge_arena(frames);
		cr_assert(!umbra_pin(h.root, (gfn_t){ ((uintptr_t)arena >> UMBRA_PAGE_SHIFT) + 4 },
				     1, &pin));
		cr_assert(!umbra_pin(h.root, (gfn_t){ ((uintptr_t)arena >> UMBRA_PAGE_SHIFT) + 9 },
				     1, &other));
		before(MADV_POPULATE_WRITE, split_and_move_page_4);
		cr_expect_eq(resolve_page_4(), -EAGAIN);
		cr_expect_eq(pins_lost(), before_it + 1);
		umbra_unpin(h.mmu, &pin);
		cr_expect(umbra_unpin(h.mmu, &other));
	}
}

/* The kernel may split and then have no memory for the copy. */
Test(between, a_2m_page_split_by_a_write_that_fails_leaves_no_2m_leaf)
{
	need_scan();
	huge_arena(true);
	step_errno = ENOMEM;
	before(MADV_POPULATE_WRITE, split_quietly);
	cr_expect_neq(resolve_page_4(), 0);
	cr_assert_null(step);
	cr_expect_eq(host_leaf(&h, arena), 0);
	sound();
}

/* What else is wrong in that moment is not taken for the write's doing. */
static void replace_page_100(void)
{
	struct umbra_audit_report report;

	cr_assert(!syscall(SYS_madvise, arena + 100 * PAGE, PAGE, MADV_DONTNEED));
	cr_assert_neq(mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0),
		      MAP_FAILED);
	*(volatile char *)(arena + 100 * PAGE) = 1;
	cr_expect_eq(umbra_audit(h.root, h.map, &report, NULL), 1);
}

Test(between, an_audit_beside_a_write_excuses_no_other_page)
{
	if (!umbra_hostmap_has_pfns(h.map))
		cr_skip_test("needs frames in pagemap (CAP_SYS_ADMIN)");
	arena = small(HUGE);
	cr_assert(host_touch(&h, arena + 100 * PAGE, PAGE, RW));
	before(MADV_POPULATE_WRITE, replace_page_100);
	host_fault(&h, arena + 4 * PAGE, RW);
	cr_assert_null(step);
}

/* ---- another own call --------------------------------------------------------------------------- */

static int file;
static pthread_t other;
static _Atomic bool installed;

/* The guest faults again and again while the other call has made its change: nothing may come of it. */
static void fault_for_a_while(const char *p, uint32_t access)
{
	for (int i = 0; i < 50; i++) {
		if (host_fault_once(&h, p, access) == UMBRA_FAULT_INSTALLED)
			installed = true;
		usleep(1000);
	}
}

static void *collapse(void *arg)
{
	int err = -EAGAIN;

	(void)arg;
	for (int i = 0; i < 200 && (err == -EAGAIN || err == -EBUSY); i++)
		err = advise(arena, HUGE, MADV_COLLAPSE);
	return NULL;
}

static void collapse_before(void)
{
	installed = false;
	cr_assert(!pthread_create(&other, NULL, collapse, NULL));
	for (int i = 0; i < 2000 && !(host_flags(&h, arena) & UMBRA_PAGE_HUGE); i++)
		usleep(1000);
	cr_assert(!umbra_hostmap_has_scan(h.map) || (host_flags(&h, arena) & UMBRA_PAGE_HUGE));
	fault_for_a_while(arena + PAGE, RW);
}

Test(between, a_block_collapsed_before_a_cut_has_no_leaf_until_it_is_cut)
{
	const int advices[] = { MADV_COLD, MADV_DONTDUMP };

	for (int i = 0; i < 2; i++) {
		arena = small(HUGE);
		cr_assert(host_touch(&h, arena, HUGE, RW));
		cr_assert(!syscall(SYS_madvise, arena, HUGE, MADV_HUGEPAGE));
		before(advices[i], collapse_before);
		cr_assert(!advise(arena + 9 * PAGE, PAGE, advices[i]));
		pthread_join(other, NULL);
		cr_assert_null(step);
		cr_assert_not(installed);
		sound();
	}
}

static void make_thp(void)
{
	if (host_make_thp(&h, arena))
		fault_for_a_while(arena, RW);
}

/*
 * Of a file the kernel unmaps all 512 pages then. That the block was small is looked at with the range open: so what the
 * collapse has opened stays open as long.
 */
Test(between, a_block_of_a_file_collapsed_before_a_cut_has_no_leaf_until_it_is_cut)
{
	h.slot_flags = UMBRA_SLOT_4K_ONLY;
	arena = host_memfd(&h, HUGE, &file);
	cr_assert(host_touch(&h, arena, HUGE, RW));
	cr_assert_not(host_flags(&h, arena) & UMBRA_PAGE_HUGE);
	before(MADV_DONTNEED, collapse_before);
	cr_assert(!advise(arena + 9 * PAGE, PAGE, MADV_DONTNEED));
	pthread_join(other, NULL);
	cr_assert_null(step);
	cr_expect_not(installed);
	sound();
	close(file);
}

Test(between, what_is_not_there_yet_when_cold_is_planned_waits_for_it)
{
	arena = host_anon(&h, HUGE);
	installed = false;
	before(MADV_COLD, make_thp);
	cr_assert(!advise(arena, HUGE, MADV_COLD));
	cr_assert_null(step);
	cr_assert_not(installed);
	sound();
}

/* A large folio comes where nothing was, mapped by 4K; its empty pages go elsewhere when it is split. */
static void make_thp_mapped_by_4k(void)
{
	installed = false;
	if (!host_make_thp(&h, arena))
		return;
	memset(arena + HUGE / 2, 0, HUGE / 2);
	if (mprotect(arena, PAGE, PROT_READ) || mprotect(arena, PAGE, PROT_READ | PROT_WRITE))
		return;
	fault_for_a_while(arena + HUGE / 2 + 9 * PAGE, RW);
}

Test(between, a_folio_that_comes_over_the_end_of_what_is_freed_is_held_whole)
{
	arena = small(HUGE);
	cr_assert_eq(madvise(arena, HUGE, MADV_HUGEPAGE), 0);
	cr_assert_eq(madvise(arena, HUGE, MADV_DONTNEED), 0);
	before(MADV_FREE, make_thp_mapped_by_4k);
	cr_assert(!advise(arena, HUGE / 2, MADV_FREE));
	cr_assert_null(step);
	cr_assert_not(installed);
	sound();
}

static void extend(void)
{
	cr_assert(!syscall(SYS_ftruncate, file, 2 * HUGE));
	host_fault_once(&h, arena + HUGE, RW);
}

Test(between, a_file_extended_before_it_is_cut_loses_its_leaves_too)
{
	file = memfd_create("guest", MFD_CLOEXEC);
	cr_assert(file >= 0 && !ftruncate(file, HUGE));
	arena = host_map(&h, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, file);
	cr_assert(arena);
	before(0, extend);
	cr_assert(!umbra_ftruncate(h.own, file, HUGE));
	cr_assert_null(step);
	sound();
	close(file);
}
