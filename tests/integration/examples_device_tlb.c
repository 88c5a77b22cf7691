/* SPDX-License-Identifier: BSD-2-Clause */
/* The device TLB of examples/, property by property on real memory, then exact under chaos. */
#include <criterion/criterion.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "tests/examples/device_chaos.h"

#define PAGE  UMBRA_PAGE_SIZE
#define HUGE  UMBRA_HUGE_SIZE
#define READ  UMBRA_ACCESS_READ
#define WRITE UMBRA_ACCESS_WRITE

static struct host h;
static struct device_tlb *tlb;
static struct device_port *port;

static void set_up(void)
{
	host_create(&h);
	if (device_tlb_create(&tlb, h.chain, h.map))
		cr_skip_test("frames are hidden here (CAP_SYS_ADMIN is needed)");
	port = device_tlb_port_open(tlb);
}

static void tear_down(void)
{
	cr_assert_eq(device_tlb_audit(tlb, stderr), 0);
	cr_assert(host_sound(&h));
	device_tlb_port_close(port);
	device_tlb_destroy(tlb);
	host_destroy(&h);
}

static hva_t at(const char *p)
{
	return (hva_t){ (uintptr_t)p };
}

/* Fills until the host says yes or no. */
static int fill(const char *p, uint32_t access)
{
	int rc = -EAGAIN;

	for (int i = 0; i < 1000 && rc == -EAGAIN; i++)
		rc = device_tlb_fill(port, at(p), access);
	return rc;
}

/* Size of the entry that translates @p: 0 none, 1 4K, 2 2M. A hit must name the frame the kernel names. */
static int size_at(const char *p, uint32_t access)
{
	struct device_translation t;

	if (!device_tlb_enter(port, at(p), access, &t))
		return 0;
	device_tlb_leave(port);
	cr_assert_eq(t.pfn, host_pfn(&h, p));
	return (int)t.level;
}

static struct device_tlb_stats stats(void)
{
	struct device_tlb_stats s;

	device_tlb_stats(tlb, &s);
	return s;
}

static char *thp(size_t bytes)
{
	char *p = host_anon(&h, bytes);

	for (size_t i = 0; i < bytes; i += HUGE)
		if (!host_make_thp(&h, p + i))
			cr_skip_test("the host gives no large page");
	return p;
}

#define DeviceTest(name) Test(device_tlb, name, .init = set_up, .fini = tear_down, .timeout = 60)

DeviceTest(entries_are_as_large_as_the_host_maps)
{
	char *huge = thp(HUGE), *small = host_anon(&h, HUGE);

	cr_assert_eq(fill(huge + 5 * PAGE, READ), 0);
	cr_assert_eq(size_at(huge, READ), 2);
	cr_assert_eq(size_at(huge + HUGE - 1, WRITE), 2);
	cr_assert_eq(madvise(small, HUGE, MADV_NOHUGEPAGE), 0);
	cr_assert_eq(fill(small + 5 * PAGE, READ), 0);
	cr_assert_eq(size_at(small + 5 * PAGE, READ), 1);
	cr_assert_eq(size_at(small + 4 * PAGE, READ), 0);
	cr_assert_eq(stats().filled_2m, 1);
	cr_assert_eq(stats().filled_4k, 1);
}

/* One byte of a 2M entry is enough, the neighbour keeps its own; and once the host maps by 4K no entry is larger. */
DeviceTest(part_of_a_2m_entry_drops_it_whole)
{
	char *p = thp(2 * HUGE);

	cr_assert_eq(fill(p, WRITE), 0);
	cr_assert_eq(fill(p + HUGE, WRITE), 0);
	cr_assert_eq(umbra_madvise(h.own, hva_range_of(p + 7 * PAGE, PAGE), MADV_DONTNEED), 0);
	cr_assert_eq(size_at(p, READ), 0);
	cr_assert_eq(size_at(p + 511 * PAGE, READ), 0);
	cr_assert_eq(size_at(p + HUGE, WRITE), 2);
	cr_assert_eq(stats().flushed_2m, 1);
	cr_assert_eq(fill(p, WRITE), 0);
	cr_assert_eq(size_at(p, WRITE), 1);
	cr_assert_eq(size_at(p + PAGE, WRITE), 0);
}

DeviceTest(split_and_collapse_change_the_size_of_entries)
{
	char *p = thp(HUGE);

	cr_assert_eq(fill(p, WRITE), 0);
	cr_assert_eq(umbra_mprotect(h.own, hva_range_of(p + PAGE, PAGE), PROT_READ), 0);
	cr_assert_eq(size_at(p, READ), 0);
	cr_assert_eq(fill(p, WRITE), 0);
	cr_assert_eq(size_at(p, WRITE), 1);
	cr_assert_eq(fill(p + PAGE, READ), 0);
	cr_assert_eq(size_at(p + PAGE, WRITE), 0);
	cr_assert_eq(fill(p + PAGE, WRITE), -EACCES);
	cr_assert_eq(umbra_mprotect(h.own, hva_range_of(p, HUGE), PROT_READ | PROT_WRITE), 0);
	if (umbra_madvise(h.own, hva_range_of(p, HUGE), MADV_COLLAPSE))
		cr_skip_test("the host does not collapse");
	cr_assert_eq(size_at(p, READ), 0);
	cr_assert_eq(fill(p + 3 * PAGE, WRITE), 0);
	cr_assert_eq(size_at(p, WRITE), 2);
}

DeviceTest(moved_to_an_odd_address_only_4k_entries)
{
	char *p = thp(HUGE), *q = host_reserve(3 * HUGE);
	hva_t now;

	cr_assert_eq(fill(p, WRITE), 0);
	cr_assert_eq(umbra_mremap(h.own, hva_range_of(p, HUGE), HUGE, MREMAP_MAYMOVE | MREMAP_FIXED,
				  at(q + PAGE), &now),
		     0);
	cr_assert_eq(size_at(p, READ), 0);
	cr_assert_eq(fill(p, READ), -EFAULT);
	cr_assert_eq(fill(q + PAGE, READ), 0);
	cr_assert_eq(size_at(q + PAGE, READ), 1);
}

/* A fork makes the page copy-on-write: the entry goes, a read gets one without the right to write, a write another frame. */
DeviceTest(copy_on_write_is_never_written_through)
{
	char *p = host_anon(&h, HUGE);
	uint64_t old;
	int pipes[2], status;
	char c = 0;
	pid_t pid;

	cr_assert(!madvise(p, UMBRA_HUGE_SIZE, MADV_NOHUGEPAGE));
	p[0] = 1;
	old = host_pfn(&h, p);
	cr_assert_eq(fill(p, WRITE), 0);
	cr_assert_eq(pipe(pipes), 0);
	pid = umbra_fork(h.own);
	if (!pid) {
		close(pipes[1]); /* a parent that fails an assertion is noticed */
		_exit(read(pipes[0], &c, 1) != 1 || p[0] != 1);
	}
	cr_assert_gt(pid, 0);
	cr_assert_eq(size_at(p, READ), 0);
	cr_assert_eq(fill(p, READ), 0);
	cr_assert_eq(size_at(p, READ), 1);
	cr_assert_eq(size_at(p, WRITE), 0);
	cr_assert_eq(fill(p, WRITE), 0);
	cr_assert_neq(host_pfn(&h, p), old);
	cr_assert_eq(size_at(p, WRITE), 1);
	cr_assert_eq(write(pipes[1], &c, 1), 1);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert_eq(status, 0);
}

/* More blocks than a set has ways: an entry is replaced, never two for one place, and all translate right. */
DeviceTest(a_full_set_replaces)
{
	const size_t stride = DEVICE_TLB_SETS * PAGE, n = DEVICE_TLB_WAYS + 2;
	char *p = host_anon(&h, n * stride);

	cr_assert_eq(madvise(p, n * stride, MADV_NOHUGEPAGE), 0);
	for (int round = 0; round < 3; round++)
		for (size_t i = 0; i < n; i++) {
			cr_assert_eq(fill(p + i * stride, WRITE), 0);
			cr_assert_eq(size_at(p + i * stride, WRITE), 1);
		}
	cr_assert_eq(stats().entries, DEVICE_TLB_WAYS);
	/* What is there already is filled into its own place. */
	cr_assert_eq(fill(p + PAGE, READ), 0);
	cr_assert_eq(fill(p + PAGE, READ), 0);
	cr_assert_eq(stats().entries, DEVICE_TLB_WAYS + 1);
}

DeviceTest(a_batch_drops_what_it_names_and_closes_its_hull)
{
	char *p = host_anon(&h, 4 * HUGE);
	struct umbra_range r = {
		.hull = hva_range_of(p, 3 * HUGE),
		.v = (const struct hva_range[]){ hva_range_of(p + 1, 1),
						 hva_range_of(p + 2 * HUGE, 1) },
		.nr = 2,
		.flags = UMBRA_RANGE_BLOCKABLE,
		.source = UMBRA_SOURCE_TEST,
	};

	cr_assert_eq(madvise(p, 4 * HUGE, MADV_NOHUGEPAGE), 0);
	cr_assert(!fill(p, READ) && !fill(p + HUGE, READ) && !fill(p + 2 * HUGE, READ));
	cr_assert_eq(umbra_invalidate_start(h.chain, &r), 0);
	cr_assert_eq(size_at(p, READ), 0);
	cr_assert_eq(size_at(p + HUGE, READ), 1);
	cr_assert_eq(size_at(p + 2 * HUGE, READ), 0);
	cr_assert_eq(device_tlb_fill(port, at(p + HUGE + PAGE), READ), -EAGAIN);
	cr_assert_eq(device_tlb_fill(port, at(p + 3 * HUGE), READ), 0);
	umbra_invalidate_end(h.chain, &r);
	cr_assert_eq(device_tlb_fill(port, at(p + HUGE + PAGE), READ), 0);
	cr_assert_eq(stats().retried_open, 1);
}

/* ---- a fill that is raced --------------------------------------------------------------------- */

/* The host's answer is held back by a userfault, whose handler lets an invalidation come in between. */
static struct race {
	struct hva_range r;
	bool ends;
} race;

static void handle(void *ctx, struct umbra_uffd *uffd, hva_t hva, uint32_t flags, uint32_t tid)
{
	static const char page[PAGE];

	(void)ctx;
	(void)flags;
	(void)tid;
	HOST_NEED(!umbra_own_start(h.own, race.r, UMBRA_CAUSE_DISCARD, true));
	if (race.ends)
		umbra_own_end(h.own, race.r, UMBRA_CAUSE_DISCARD, true);
	HOST_NEED(!umbra_uffd_copy(uffd, (hva_t){ hva.v & ~(PAGE - 1) }, page, PAGE, NULL));
}

static void *read_events(void *uffd)
{
	umbra_uffd_run(uffd);
	return NULL;
}

/* What the first fill answers when @where is invalidated while the host is asked for @p. */
static int raced_fill(char *p, char *where, bool ends)
{
	const struct umbra_uffd_config config = { .fd = -1, .own = h.own, .fault = handle };
	struct umbra_uffd_tried tried;
	struct umbra_uffd *uffd;
	pthread_t reader;
	int rc;

	race = (struct race){ hva_range_of(where, PAGE), ends };
	if (umbra_uffd_open(&uffd, h.chain, &config, &tried))
		cr_skip_test("no userfaultfd");
	cr_assert_eq(umbra_uffd_register(uffd, hva_range_of(p, HUGE), UMBRA_UFFD_MISSING), 0);
	cr_assert_eq(pthread_create(&reader, NULL, read_events, uffd), 0);
	rc = device_tlb_fill(port, at(p), READ);
	if (!ends)
		umbra_own_end(h.own, race.r, UMBRA_CAUSE_DISCARD, true);
	umbra_uffd_stop(uffd);
	pthread_join(reader, NULL);
	umbra_uffd_close(uffd);
	return rc;
}

DeviceTest(a_fill_is_refused_when_an_invalidation_came_and_went)
{
	char *p = host_anon(&h, HUGE);

	cr_assert_eq(raced_fill(p, p, true), -EAGAIN);
	cr_assert_eq(stats().retried_seq, 1);
	cr_assert_eq(size_at(p, READ), 0);
	cr_assert_eq(fill(p, READ), 0);
}

DeviceTest(a_fill_is_refused_while_an_invalidation_that_came_is_open)
{
	char *p = host_anon(&h, HUGE);

	cr_assert_eq(raced_fill(p, p, false), -EAGAIN);
	cr_assert_eq(stats().retried_open, 1);
	cr_assert_eq(size_at(p, READ), 0);
	cr_assert_eq(fill(p, READ), 0);
}

DeviceTest(a_fill_is_not_refused_by_what_is_open_elsewhere)
{
	char *p = host_anon(&h, 2 * HUGE);

	cr_assert_eq(raced_fill(p, p + HUGE, false), 0);
	cr_assert_eq(stats().retried_open + stats().retried_seq, 0);
	cr_assert_eq(stats().filled_4k + stats().filled_2m, 1);
}

/* A 2M entry is refused by an invalidation open anywhere in it, a 4K one only by its own page. */
DeviceTest(the_whole_entry_is_what_an_open_range_refuses)
{
	char *p = thp(2 * HUGE);

	cr_assert_eq(umbra_own_start(h.own, hva_range_of(p + 9 * PAGE, 1), UMBRA_CAUSE_COW, false),
		     0);
	cr_assert_eq(device_tlb_fill(port, at(p), READ), -EAGAIN);
	cr_assert_eq(device_tlb_fill(port, at(p + HUGE), READ), 0);
	umbra_own_end(h.own, hva_range_of(p + 9 * PAGE, 1), UMBRA_CAUSE_COW, false);
	cr_assert_eq(device_tlb_fill(port, at(p), READ), 0);
	cr_assert_eq(size_at(p, READ), 2);
}

/* ---- accesses under way --------------------------------------------------------------------- */

static _Atomic int returned;

static void *discard(void *p)
{
	HOST_NEED(!umbra_madvise(h.own, hva_range_of(p, PAGE), MADV_DONTNEED));
	returned = 1;
	return NULL;
}

DeviceTest(start_waits_for_the_access_under_way)
{
	char *p = host_anon(&h, HUGE);
	struct device_translation t;
	pthread_t thread;

	p[0] = 42;
	cr_assert_eq(fill(p, READ), 0);
	cr_assert(device_tlb_enter(port, at(p), READ, &t));
	cr_assert_eq(pthread_create(&thread, NULL, discard, p), 0);
	while (!stats().starts)
		usleep(100);
	usleep(20000); /* for a start that does not wait to be noticed; the right one is never late */
	cr_assert_eq(returned, 0);
	cr_assert_eq(p[0], 42);
	device_tlb_leave(port);
	pthread_join(thread, NULL);
	cr_assert_eq(stats().waited, 1);
	cr_assert_eq(p[0], 0);
}

static int start_with(const char *p, uint32_t flags, struct umbra_range *r)
{
	*r = (struct umbra_range){
		.hull = hva_range_of(p, PAGE),
		.flags = flags,
		.source = UMBRA_SOURCE_TEST,
	};
	return umbra_invalidate_start(h.chain, r);
}

DeviceTest(a_nonblockable_start_never_waits)
{
	char *p = host_anon(&h, HUGE);
	struct device_translation t;
	struct umbra_range r;

	cr_assert_eq(fill(p, READ), 0);
	cr_assert(device_tlb_enter(port, at(p), READ, &t));
	cr_assert_eq(start_with(p, 0, &r), -EAGAIN);
	cr_assert_eq(stats().refused, 1);
	device_tlb_leave(port);
	/* Nothing stayed open, and the entry is gone. */
	cr_assert_eq(size_at(p, READ), 0);
	cr_assert_eq(device_tlb_fill(port, at(p), READ), 0);
	cr_assert_eq(start_with(p, 0, &r), 0);
	cr_assert_eq(device_tlb_fill(port, at(p), READ), -EAGAIN);
	umbra_invalidate_end(h.chain, &r);
	/* Forced: the entry is gone, the access may still be under way. */
	cr_assert_eq(fill(p, READ), 0);
	cr_assert(device_tlb_enter(port, at(p), READ, &t));
	cr_assert_eq(start_with(p, UMBRA_RANGE_FORCED, &r), 0);
	device_tlb_leave(port);
	cr_assert_eq(size_at(p, READ), 0);
	cr_assert_eq(stats().unwaited, 1);
	umbra_invalidate_end(h.chain, &r);
}

DeviceTest(joins_the_chain_while_a_range_is_open)
{
	char *p = host_anon(&h, HUGE);
	struct device_tlb *late;
	struct device_port *late_port;

	cr_assert_eq(umbra_own_start(h.own, hva_range_of(p, PAGE), UMBRA_CAUSE_DISCARD, true), 0);
	cr_assert_eq(device_tlb_create(&late, h.chain, h.map), 0);
	late_port = device_tlb_port_open(late);
	cr_assert_eq(device_tlb_fill(late_port, at(p), READ), -EAGAIN);
	umbra_own_end(h.own, hva_range_of(p, PAGE), UMBRA_CAUSE_DISCARD, true);
	cr_assert_eq(device_tlb_fill(late_port, at(p), READ), 0);
	device_tlb_port_close(late_port);
	device_tlb_destroy(late);
}

DeviceTest(after_release_nothing_is_filled)
{
	char *p = host_anon(&h, HUGE);

	cr_assert_eq(fill(p, READ), 0);
	umbra_release(h.chain);
	umbra_release(h.chain);
	cr_assert_eq(size_at(p, READ), 0);
	cr_assert_eq(device_tlb_fill(port, at(p), READ), -ESHUTDOWN);
}

/* ---- chaos ------------------------------------------------------------------------------------ */

static struct chaos c;

Test(device_tlb, exact_under_chaos_4k, .timeout = 120)
{
	if (!chaos_create(&c, PAGE, 3000, 7))
		cr_skip_test("frames are hidden here (CAP_SYS_ADMIN is needed)");
	c.moves = true;
	cr_assert_eq(chaos_run(&c, NULL), 0);
	cr_assert(host_sound(&c.h));
	chaos_destroy(&c);
}

static int huge_chaos(void)
{
	uint64_t wrong;

	if (!chaos_create(&c, HUGE, 3000, 7))
		return 77;
	c.moves = true;
	wrong = chaos_run(&c, NULL);
	chaos_destroy(&c);
	return wrong ? 1 : 0;
}

/* In a child, so that the host has its pages back whatever happens. */
Test(device_tlb, exact_under_chaos_hugetlb_2m, .timeout = 120)
{
	static const char knob[] = "/proc/sys/vm/nr_hugepages";
	char now[32], more[32];
	int status = -1;
	pid_t pid;

	if (!host_read(knob, now, sizeof(now)))
		cr_skip_test("no hugetlb here");
	snprintf(more, sizeof(more), "%d", atoi(now) + (int)CHAOS_PAGES);
	if (!host_write(knob, more))
		cr_skip_test("hugepages cannot be reserved here (root is needed)");
	fflush(NULL);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		status = huge_chaos();
		fflush(NULL);
		_exit(status);
	}
	waitpid(pid, &status, 0);
	host_write(knob, now);
	cr_assert(WIFEXITED(status), "status %x", (unsigned int)status);
	if (WEXITSTATUS(status) == 77)
		cr_skip_test("the host has no 16 hugepages to spare, or hides frames");
	cr_assert_eq(WEXITSTATUS(status), 0);
}
