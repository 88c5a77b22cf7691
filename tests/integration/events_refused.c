/* SPDX-License-Identifier: BSD-2-Clause */
/* Calls that a consumer or the kernel refuses change nothing, leave nothing open, and say why. */
#include <criterion/criterion.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "events_host.h"
#include "shadow/events/hostmap.h"
#include "shadow/events/own.h"

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static struct host h;

/* ---- a consumer that refuses -------------------------------------------------------------------- */

static int let_pass;  /* so many starts */
static bool planning; /* another call's plan is under way, until the next forced start */
static unsigned int phase;

static int refuse(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	if (planning && (r->flags & UMBRA_RANGE_FORCED)) {
		planning = false;
		own_plan_end(h.own, phase);
	}
	return r->flags & UMBRA_RANGE_FORCED || let_pass-- > 0 ? 0 : -EBUSY;
}

static const struct umbra_notifier_ops refuser_ops = { .invalidate_range_start = refuse };
static struct umbra_notifier refuser = { .ops = &refuser_ops, .name = "refuser" };
static char *p;
static int file;

static void begin(bool of_a_file)
{
	host_create(&h);
	p = of_a_file ? host_memfd(&h, 4 * HUGE, &file) : host_anon(&h, 4 * HUGE);
	cr_assert(!madvise(p, 4 * HUGE, MADV_NOHUGEPAGE));
	memset(p, 1, 2 * HUGE);
	cr_assert(host_touch(&h, p, 8 * PAGE, RW));
	let_pass = 0;
	cr_assert_eq(umbra_chain_register(h.chain, &refuser), 0);
}

static void end(void)
{
	umbra_chain_unregister(h.chain, &refuser);
	cr_expect(host_sound(&h));
	host_destroy(&h);
}

static struct hva_range bytes(size_t n)
{
	return hva_range_of(p, n);
}

Test(refused, by_a_consumer_nothing_of_private_memory_is_changed)
{
	static const int advices[] = { MADV_DONTNEED, MADV_FREE, MADV_PAGEOUT, MADV_COLLAPSE };
	uint32_t done = 7;
	hva_t at = { 5 };

	begin(false);
	for (size_t i = 0; i < sizeof(advices) / sizeof(advices[0]); i++)
		cr_expect_eq(umbra_madvise(h.own, bytes(2 * HUGE), advices[i]), -EBUSY, "advice %d",
			     advices[i]);
	cr_expect_eq(umbra_madvise_batch(h.own,
					 (const struct hva_range[]){ bytes(PAGE),
								     hva_range_of(p + HUGE, PAGE) },
					 2, MADV_DONTNEED, &done),
		     -EBUSY);
	cr_expect_eq(done, 0);
	done = 7;
	cr_expect_eq(umbra_madvise_batch(h.own, (const struct hva_range[]){ bytes(PAGE) }, 1,
					 MADV_DONTNEED, &done),
		     -EBUSY);
	cr_expect_eq(done, 0);
	cr_expect_eq(umbra_munmap(h.own, bytes(PAGE)), -EBUSY);
	cr_expect_eq(umbra_mprotect(h.own, bytes(PAGE), PROT_READ), -EBUSY);
	cr_expect_eq(
		umbra_mmap_over(h.own, bytes(PAGE), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
		-EBUSY);
	cr_expect_eq(umbra_mremap(h.own, bytes(PAGE), PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
				  (hva_t){ (uintptr_t)host_reserve(HUGE) }, &at),
		     -EBUSY);
	cr_expect_eq(at.v, 5);
	cr_expect_eq(umbra_fork(h.own), -EBUSY);
	for (size_t i = 0; i < 2 * HUGE; i += PAGE)
		cr_assert_eq(p[i], 1);
	p[0] = 2; /* still writable */
	cr_expect_eq(host_leaf(&h, p) != 0, host_leaf(&h, p + 4 * PAGE) != 0);
	end();
}

Test(refused, by_a_consumer_nothing_of_a_file_is_changed)
{
	begin(true);
	cr_expect_eq(umbra_madvise(h.own, bytes(HUGE), MADV_REMOVE), -EBUSY);
	cr_expect_eq(
		umbra_fallocate(h.own, file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, HUGE),
		-EBUSY);
	cr_expect_eq(umbra_ftruncate(h.own, file, 0), -EBUSY);
	cr_expect_eq(p[0], 1);
	end();
}

/* The first bracket holds the range, the second is for what was read into it meanwhile. */
Test(refused, by_a_consumer_that_lets_the_first_bracket_pass)
{
	char *q;

	begin(false);
	q = host_anon(&h, HUGE);
	cr_assert_eq(madvise(q, HUGE, MADV_NOHUGEPAGE), 0);
	cr_assert_eq(*(volatile char *)q, 0); /* the zero page: a write moves it */
	let_pass = 1;
	cr_expect_eq(umbra_madvise(h.own, hva_range_of(q, HUGE), MADV_POPULATE_WRITE), -EBUSY);
	cr_expect(host_flags(&h, q) & UMBRA_PAGE_ZERO || !umbra_hostmap_has_scan(h.map));
	let_pass = 100;
	cr_expect_eq(umbra_madvise(h.own, hva_range_of(q, HUGE), MADV_POPULATE_WRITE), 0);
	end();
}

/* ---- the kernel refuses ------------------------------------------------------------------------- */

Test(refused, by_the_kernel_is_said_as_the_kernel_says_it)
{
	struct umbra_region closed = { .fd = 10000 };
	hva_t at = { 5 };

	begin(true);
	let_pass = 1000;
	closed.hva = hva_range_of(host_reserve(HUGE), HUGE);
	cr_expect_eq(umbra_region_add(h.own, &closed), -EBADF);
	closed.fd = -1;
	closed.hva = bytes(PAGE);
	cr_expect_eq(umbra_region_add(h.own, &closed), -EEXIST);
	cr_expect_eq(umbra_mmap_over(h.own, bytes(PAGE), PROT_READ, MAP_SHARED, 10000, 0), -EBADF);
	cr_expect_eq(
		umbra_mmap_over(h.own, hva_range_of(p + PAGE, PAGE), PROT_READ,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT,
				-1, 0),
		-EINVAL);
	cr_expect_eq(umbra_mremap(h.own, bytes(PAGE), PAGE, MREMAP_FIXED, bytes(PAGE).start, &at),
		     -EINVAL);
	cr_expect_eq(at.v, 5);
	cr_expect_lt(umbra_fallocate(h.own, file, FALLOC_FL_COLLAPSE_RANGE, 0, HUGE), 0);
	cr_expect_eq(
		umbra_fallocate(h.own, 10000, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, HUGE),
		-EBADF);
	cr_expect_eq(p[0], 1);
	end();
}

/* ---- moves whose place the kernel chooses --------------------------------------------------------- */

Test(refused, growth_in_place_that_does_not_fit_moves_if_it_may)
{
	struct umbra_region wall;
	hva_t at = { 5 };
	char *next;

	begin(false);
	let_pass = 1000;
	next = mmap(p + 4 * HUGE, PAGE, PROT_READ,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	cr_assert_eq(next, p + 4 * HUGE);
	wall = (struct umbra_region){ .hva = hva_range_of(next, PAGE),
				      .fd = -1,
				      .is_private = true };
	cr_assert_eq(umbra_region_add(h.own, &wall), 0);
	cr_expect_eq(umbra_mremap(h.own, bytes(4 * HUGE), 5 * HUGE, 0, (hva_t){ 0 }, &at), -ENOMEM);
	cr_expect_eq(host_leaf(&h, p) != 0, true);
	cr_expect_eq(
		umbra_mremap(h.own, bytes(4 * HUGE), 5 * HUGE, MREMAP_MAYMOVE, (hva_t){ 0 }, &at),
		0);
	cr_expect_neq(at.v, (uintptr_t)p);
	cr_expect_eq(*(char *)(uintptr_t)at.v, 1);
	cr_expect_eq(host_leaves(&h, p, 4 * HUGE), 0);
	munmap((void *)(uintptr_t)at.v, 5 * HUGE);
	end();
}

/* mremap of no bytes maps the same ones once more. */
Test(refused, a_mapping_doubled_by_mremap_is_punched_too)
{
	hva_t at = { 0 };
	char *twin;

	begin(true);
	let_pass = 1000;
	phase = own_plan_begin(h.own);
	planning = true;
	cr_assert_eq(umbra_mremap(h.own, bytes(0), HUGE, MREMAP_MAYMOVE, (hva_t){ 0 }, &at), 0);
	cr_assert_not(planning, "who planned before is waited for, with the new place held");
	twin = (char *)(uintptr_t)at.v;
	host_slot(&h, twin, HUGE);
	cr_expect(host_touch(&h, twin, 4 * PAGE, RW));
	cr_expect_eq(umbra_fallocate(h.own, file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				     4 * PAGE),
		     0);
	cr_expect_eq(host_leaves(&h, twin, 4 * PAGE), 0, "the twin's leaves went, too");
	cr_expect_eq(host_leaves(&h, p, 4 * PAGE), 0);
	end();
	munmap(twin, HUGE);
}

/* While another call's plan is under way growth is bracketed, and may be refused. */
Test(refused, by_a_consumer_growth_in_place_while_another_plans)
{
	hva_t at = { 5 };

	begin(false);
	phase = own_plan_begin(h.own);
	cr_expect_eq(umbra_mremap(h.own, bytes(4 * HUGE), 5 * HUGE, 0, (hva_t){ 0 }, &at), -EBUSY);
	cr_expect_eq(at.v, 5);
	own_plan_end(h.own, phase);
	cr_expect_eq(umbra_mremap(h.own, bytes(4 * HUGE), 4 * HUGE + PAGE, 0, (hva_t){ 0 }, &at),
		     0);
	cr_expect_eq(at.v, (uintptr_t)p);
	munmap(p + 4 * HUGE, PAGE);
	end();
}

Test(refused, batches_of_every_kind_are_whole)
{
	struct hva_range v[2];
	uint32_t done = 7;
	pid_t child;

	begin(false);
	v[0] = hva_range_of(p, HUGE);
	v[1] = hva_range_of(p + HUGE, HUGE);
	let_pass = 1000;
	cr_expect_eq(umbra_madvise_batch(h.own, v, 0, MADV_DONTNEED, &done), 0);
	cr_expect_eq(done, 0);
	umbra_madvise_batch(h.own, v, 2, MADV_COLLAPSE,
			    &done); /* whether the host can is its business */
	cr_expect(host_sound(&h));
	cr_expect_eq(umbra_madvise_batch(h.own, v, 2, MADV_DONTFORK, &done), 0);
	cr_expect_eq(done, 2);
	cr_expect_eq(umbra_madvise_batch(h.own, v, 2, MADV_DOFORK, &done), 0);
	cr_expect_eq(done, 2);
	cr_expect(host_touch(&h, p, 4 * PAGE, RW));
	child = umbra_fork(h.own);
	if (!child)
		_exit(0);
	cr_expect_eq(waitpid(child, NULL, 0), child);
	cr_expect_eq(host_leaves(&h, p, 4 * PAGE), 0, "it is forked again");
	cr_expect_eq(umbra_madvise_batch(h.own, v, 1, MADV_DONTNEED, &done), 0);
	cr_expect_eq(done, 1);
	cr_expect_eq(p[0], 0);
	end();
}

/* ---- who knows nothing of the host ---------------------------------------------------------------- */

Test(refused, without_a_map_everything_that_might_change_is_bracketed)
{
	static const int advices[] = { MADV_COLD,       MADV_FREE,    MADV_HUGEPAGE,
				       MADV_NOHUGEPAGE, MADV_PAGEOUT, MADV_POPULATE_WRITE,
				       MADV_COLLAPSE };
	struct umbra_region region = { .fd = -1, .is_private = true };
	struct umbra_own *blind;
	hva_t at;

	begin(false);
	let_pass = 1000;
	region.hva = bytes(4 * HUGE);
	cr_assert_eq(umbra_own_create(&blind, h.chain, NULL), 0);
	cr_assert_eq(umbra_region_add(blind, &region), 0);
	for (size_t i = 0; i < sizeof(advices) / sizeof(advices[0]); i++) {
		const struct hva_range r = hva_range_of(p + PAGE, HUGE + PAGE);

		cr_expect(host_touch(&h, p + HUGE, 2 * PAGE, RW));
		umbra_madvise(blind, r, advices[i]);
		cr_expect(host_sound(&h), "advice %d", advices[i]);
	}
	/* how large the pages are is known from the region */
	cr_expect_eq(umbra_mremap(blind, hva_range_of(p + 3 * HUGE, HUGE), HUGE,
				  MREMAP_MAYMOVE | MREMAP_FIXED,
				  (hva_t){ (uintptr_t)host_reserve(HUGE) }, &at),
		     0);
	/* a folio may be torn from now on: then everything is */
	cr_expect_eq(umbra_mremap(blind, hva_range_of(p + 8 * PAGE, PAGE), PAGE,
				  MREMAP_MAYMOVE | MREMAP_FIXED,
				  (hva_t){ (uintptr_t)host_reserve(HUGE) }, &at),
		     0);
	cr_expect(host_touch(&h, p + HUGE, 2 * PAGE, RW));
	umbra_madvise(blind, hva_range_of(p, PAGE), MADV_COLD);
	cr_expect_eq(host_leaves(&h, p, 2 * HUGE), 0);
	umbra_own_destroy(blind);
	umbra_own_destroy(NULL);
	end();
}

/* ---- userfaultfd --------------------------------------------------------------------------------- */

static struct umbra_uffd *uffd;
static _Atomic int drained = 1;

static void on_fault(void *ctx, struct umbra_uffd *u, hva_t hva, uint32_t flags, uint32_t tid)
{
	static const char page[PAGE] = "served";

	(void)ctx;
	(void)flags;
	(void)tid;
	drained = umbra_uffd_drain(u);
	umbra_uffd_copy(u, (hva_t){ hva.v & ~(PAGE - 1) }, page, PAGE, NULL);
}

static void *reader(void *arg)
{
	(void)arg;
	umbra_uffd_run(uffd);
	return NULL;
}

static int open_uffd(int signal)
{
	const struct umbra_uffd_config config = {
		.fd = -1, .own = h.own, .fault = on_fault, .settle_signal = signal
	};

	return umbra_uffd_open(&uffd, h.chain, &config, NULL);
}

static void nothing(int signal)
{
	(void)signal;
}

Test(refused, a_settle_signal_that_is_taken_or_is_none)
{
	begin(false);
	signal(SIGUSR1, nothing);
	if (geteuid())
		cr_skip_test("not root: this host gives no userfaultfd for kernel faults");
	cr_expect_eq(open_uffd(SIGUSR1), -EBUSY);
	cr_expect_eq(open_uffd(200), -EINVAL);
	cr_expect_eq(open_uffd(SIGRTMIN + 3), 0);
	raise(SIGRTMIN + 3); /* not from the reader: nothing comes of it */
	umbra_uffd_close(uffd);
	umbra_uffd_close(NULL);
	end();
}

Test(refused, a_seventeenth_userfaultfd)
{
	struct umbra_uffd *all[16];

	begin(false);
	if (geteuid())
		cr_skip_test("not root: this host gives no userfaultfd for kernel faults");
	for (int i = 0; i < 16; i++) {
		cr_assert_eq(open_uffd(0), 0);
		all[i] = uffd;
	}
	cr_expect_eq(open_uffd(0), -ENOSPC);
	for (int i = 0; i < 16; i++)
		umbra_uffd_close(all[i]);
	cr_expect_eq(open_uffd(0), 0);
	umbra_uffd_close(uffd);
	end();
}

Test(refused, on_the_reader_a_drain_and_by_a_consumer_a_move, .timeout = 30)
{
	struct hva_range r;
	pthread_t t;
	char *q;

	begin(false);
	if (geteuid() || open_uffd(0))
		cr_skip_test("no userfaultfd for kernel faults here");
	q = host_anon(&h, HUGE);
	r = hva_range_of(q, HUGE);
	let_pass = 1000;
	cr_assert_eq(umbra_uffd_register(uffd, r, UMBRA_UFFD_MISSING | UMBRA_UFFD_WP), 0);
	pthread_create(&t, NULL, reader, NULL);
	cr_expect_eq(strcmp(q, "served"), 0);
	cr_expect_eq(drained, -EDEADLK);
	let_pass = 0;
	cr_expect_eq(umbra_uffd_writeprotect(uffd, r, true), -EBUSY);
	cr_expect_eq(umbra_uffd_move(uffd, (hva_t){ r.start.v + PAGE }, (hva_t){ (uintptr_t)p },
				     PAGE, NULL),
		     -EBUSY);
	cr_expect_eq(umbra_uffd_wake(uffd, r), 0);
	cr_expect_eq(umbra_uffd_wake(uffd, (struct hva_range){ { 1 }, { 2 } }), -EINVAL);
	umbra_uffd_stop(uffd);
	pthread_join(t, NULL);
	let_pass = 1000;
	umbra_uffd_close(uffd);
	end();
}

/* ---- audit --------------------------------------------------------------------------------------- */

Test(refused, an_audit_names_each_mismatch_and_says_when_it_cannot_look)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);
	int held;

	begin(false);
	cr_assert_eq(madvise(p, PAGE, MADV_DONTNEED), 0); /* nobody was told */
	cr_expect_eq(umbra_audit(h.root, h.map, NULL, out), 1);
	fclose(out);
	cr_expect(strstr(text, "not present"), "%s", text);
	free(text);
	umbra_zap_all(h.mmu);
	cr_assert(host_touch(&h, p, 8 * PAGE, RW));
	held = h.map->pagemap;
	h.map->pagemap = file = open("/dev/null", O_WRONLY | O_CLOEXEC);
	cr_expect_eq(umbra_audit(h.root, h.map, NULL, NULL), -EBADF);
	cr_expect_neq(host_fault_once(&h, p + HUGE, RW), UMBRA_FAULT_INSTALLED);
	cr_expect_eq(host_leaf(&h, p + HUGE), 0);
	h.map->pagemap = held;
	close(file);
	end();
}

Test(refused, promises_of_a_source_that_is_none)
{
	for (unsigned int i = 0; i < UMBRA_SOURCE_NR; i++)
		cr_expect_not_null(umbra_source_promises((enum umbra_source)i));
	cr_expect_null(umbra_source_promises(UMBRA_SOURCE_NR));
}
