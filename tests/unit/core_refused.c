/* SPDX-License-Identifier: BSD-2-Clause */
/* Errors come back and leave nothing behind: no memory, an embedder that answers oddly, pins that cannot be had. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <umbra/events.h>

#include "tests/support/fakehost.h"

/* ---- no memory -------------------------------------------------------------------------------- */

static long allowed; /* allocations until one fails */
static long held;

static void *scarce_alloc(size_t bytes)
{
	void *p = allowed-- > 0 ? calloc(1, bytes) : NULL;

	held += p != NULL;
	return p;
}

static void scarce_free(void *p, size_t bytes)
{
	(void)bytes;
	held--;
	free(p);
}

static void *scarce_mutex(void)
{
	void *m = allowed-- > 0 ? umbra_os_posix.mutex_create() : NULL;

	held += m != NULL;
	return m;
}

static void scarce_mutex_destroy(void *m)
{
	held--;
	umbra_os_posix.mutex_destroy(m);
}

/* ---- an embedder ------------------------------------------------------------------------------ */

#define WINDOW_PAGES 64

static _Alignas(4096) char window[WINDOW_PAGES * 4096];
static bool used[WINDOW_PAGES];
static struct umbra_resolved answer;
static void (*in_resolve)(uint64_t gfn); /* with nothing locked, as another thread would */

static int table_alloc(void *ctx, uint64_t *index)
{
	(void)ctx;
	for (uint64_t i = 0; i < WINDOW_PAGES; i++)
		if (!used[i]) {
			used[ *index = i] = true;
			return 0;
		}
	return -ENOSPC;
}

static void table_free(void *ctx, uint64_t index)
{
	(void)ctx;
	used[index] = false;
}

static int resolve(void *ctx, const struct umbra_resolve_req *req, struct umbra_resolved *res)
{
	(void)ctx;
	*res = answer;
	if (in_resolve)
		in_resolve(req->gfn.v);
	return 0;
}

static void flush_queue(void *ctx, const struct umbra_flush_entry *e)
{
	(void)ctx;
	(void)e;
}

static uint64_t flush_post(void *ctx)
{
	(void)ctx;
	return 0;
}

static int flush_wait(void *ctx, uint64_t ticket, bool may_wait)
{
	(void)ctx;
	(void)ticket;
	(void)may_wait;
	return 0;
}

static bool flush_done(void *ctx, uint64_t ticket)
{
	(void)ctx;
	(void)ticket;
	return true;
}

static const struct umbra_mmu_ops ops = {
	.table_alloc = table_alloc,
	.table_free = table_free,
	.resolve = resolve,
	.flush_queue = flush_queue,
	.flush_post = flush_post,
	.flush_wait = flush_wait,
	.flush_done = flush_done,
};

struct machine {
	struct umbra_os os;
	struct umbra_chain *chain;
	struct umbra_mmu *mmu;
	struct umbra_root *root;
	uint32_t slots;
};

/* Everything that allocates. Returns: 0 or the first error; what was made is in @m. */
static int build(struct machine *m, long allocations)
{
	const struct umbra_mmu_config config = { .os = &m->os,
						 .ops = &ops,
						 .window = window,
						 .window_pages = WINDOW_PAGES,
						 .flags = UMBRA_MMU_RECORD_PFN };
	int rc;

	*m = (struct machine){ .os = umbra_os_posix };
	m->os.alloc = scarce_alloc;
	m->os.free = scarce_free;
	m->os.mutex_create = scarce_mutex;
	m->os.mutex_destroy = scarce_mutex_destroy;
	allowed = allocations;
	rc = umbra_chain_create(&m->chain, &m->os);
	if (!rc)
		rc = umbra_mmu_create(&m->mmu, &config);
	if (!rc)
		rc = umbra_root_create(m->mmu, UMBRA_ROOT_MIRROR, &m->root);
	for (; !rc && m->slots < 10; m->slots++) {
		const struct umbra_memslot slot = {
			.id = m->slots,
			.flags = UMBRA_SLOT_LOG,
			.npages = 1024,
			.gfn = { m->slots * 2048 },
			.out = { m->slots * 2048 },
			.hva = { FAKE_HVA + m->slots * (8ULL << 20) },
		};

		rc = umbra_memslot_add(m->mmu, &slot);
		if (rc)
			break;
	}
	return rc;
}

static void tear_down(struct machine *m)
{
	if (m->mmu)
		umbra_mmu_destroy(m->mmu);
	if (m->chain)
		umbra_chain_destroy(m->chain);
	cr_assert_eq(held, 0, "%ld things were left behind", held);
}

Test(refused, every_allocation_may_fail_and_nothing_is_left_behind)
{
	struct machine m;
	long n = 0;
	int rc;

	while ((rc = build(&m, n))) {
		cr_assert(rc == -ENOMEM || rc == -ENOSPC, "%ld allocations: %d", n, rc);
		if (m.mmu)
			cr_assert_eq(umbra_check(m.mmu, NULL, NULL), 0);
		tear_down(&m);
		cr_assert_lt(n++, 1000);
	}
	cr_assert_gt(n, 8);
	cr_assert_eq(m.slots, 10);
	tear_down(&m);
}

/* ---- faults ----------------------------------------------------------------------------------- */

static enum umbra_fault_result fault(struct machine *m, uint64_t gfn, uint32_t access)
{
	struct umbra_fault f = { .gpa = { gfn << UMBRA_PAGE_SHIFT }, .access = access };
	const enum umbra_fault_result r = umbra_fault(m->root, &f);

	cr_assert(r != UMBRA_FAULT_RETRY || f.error == -EAGAIN);
	return r;
}

static int level_at(struct machine *m, uint64_t gfn)
{
	struct umbra_translation t;

	return umbra_lookup(m->root, (gpa_t){ gfn << UMBRA_PAGE_SHIFT }, &t) ? 0 : (int)t.level;
}

Test(refused, a_write_answered_by_a_page_that_is_not_writable_is_asked_again)
{
	struct umbra_pin pin;
	struct machine m;

	cr_assert_eq(build(&m, 1000), 0);
	answer = (struct umbra_resolved){ .level = UMBRA_LEVEL_4K, .host_pfn = 7 };
	cr_assert_eq(fault(&m, 3, UMBRA_ACCESS_WRITE), UMBRA_FAULT_RETRY);
	cr_assert_eq(level_at(&m, 3), 0);
	cr_assert_eq(umbra_pin(m.root, (gfn_t){ 3 }, 1, &pin), -EAGAIN, "not for ever");
	tear_down(&m);
}

Test(refused, a_2m_answer_where_a_table_of_4k_stays_becomes_the_4k_it_is_about)
{
	struct machine m;

	cr_assert_eq(build(&m, 1000), 0);
	answer = (struct umbra_resolved){ .level = UMBRA_LEVEL_4K,
					  .host_pfn = 512,
					  .writable = true };
	cr_assert_eq(fault(&m, 0, UMBRA_ACCESS_WRITE), UMBRA_FAULT_INSTALLED);
	answer.level = UMBRA_LEVEL_2M;
	cr_assert_eq(fault(&m, 5, UMBRA_ACCESS_WRITE), UMBRA_FAULT_INSTALLED);
	answer.host_pfn = UMBRA_HOST_PFN_UNKNOWN;
	cr_assert_eq(fault(&m, 6, UMBRA_ACCESS_WRITE), UMBRA_FAULT_INSTALLED);
	cr_assert_eq(level_at(&m, 5), UMBRA_LEVEL_4K);
	cr_assert_eq(level_at(&m, 6), UMBRA_LEVEL_4K);
	cr_assert_eq(umbra_check(m.mmu, NULL, NULL), 0);
	tear_down(&m);
}

/* The same, but the table comes while the host is asked: the leaf beside is another thread's. */
static struct machine *racing;

static void another_thread_is_faster(uint64_t gfn)
{
	in_resolve = NULL;
	answer.level = UMBRA_LEVEL_4K;
	cr_assert_eq(fault(racing, gfn ^ 1, UMBRA_ACCESS_WRITE), UMBRA_FAULT_INSTALLED);
}

Test(refused, a_2m_answer_overtaken_by_a_4k_leaf_beside_becomes_4k)
{
	struct machine m;

	cr_assert_eq(build(&m, 1000), 0);
	racing = &m;
	for (uint64_t block = 0; block < 2; block++) {
		answer = (struct umbra_resolved){ .level = UMBRA_LEVEL_2M, .writable = true };
		answer.host_pfn = block ? UMBRA_HOST_PFN_UNKNOWN : 512;
		in_resolve = another_thread_is_faster;
		cr_assert_eq(fault(&m, block * 512 + 4, UMBRA_ACCESS_WRITE), UMBRA_FAULT_INSTALLED);
		cr_assert_eq(level_at(&m, block * 512 + 4), UMBRA_LEVEL_4K);
		cr_assert_eq(level_at(&m, block * 512 + 5), UMBRA_LEVEL_4K);
	}
	cr_assert_eq(umbra_check(m.mmu, NULL, NULL), 0);
	tear_down(&m);
}

/* Whichever page of the pin comes, somebody who cannot be refused takes the other one. */
static void takes_the_other(uint64_t gfn)
{
	const uint64_t hva = FAKE_HVA + ((gfn ^ 1) << UMBRA_PAGE_SHIFT);
	const struct umbra_range r = { .hull = { { hva }, { hva + UMBRA_PAGE_SIZE } },
				       .flags = UMBRA_RANGE_FORCED | UMBRA_RANGE_RELOCATES,
				       .source = UMBRA_SOURCE_TEST };

	umbra_invalidate_start(racing->chain, &r);
	umbra_invalidate_end(racing->chain, &r);
}

Test(refused, a_pin_that_is_lost_again_and_again_is_given_up)
{
	struct umbra_pin pin;
	struct machine m;

	cr_assert_eq(build(&m, 1000), 0);
	racing = &m;
	answer =
		(struct umbra_resolved){ .level = UMBRA_LEVEL_4K, .host_pfn = 7, .writable = true };
	cr_assert_eq(umbra_chain_register(m.chain, umbra_mmu_notifier(m.mmu)), 0);
	in_resolve = takes_the_other;
	cr_assert_eq(umbra_pin(m.root, (gfn_t){ 2 }, 2, &pin), -EAGAIN);
	in_resolve = NULL;
	cr_assert_eq(umbra_pin(m.root, (gfn_t){ 2 }, 2, &pin), 0);
	cr_assert(umbra_unpin(m.mmu, &pin));
	umbra_chain_unregister(m.chain, umbra_mmu_notifier(m.mmu));
	tear_down(&m);
}

Test(refused, pins_say_why_they_cannot_be_had)
{
	struct umbra_pin pin;
	struct machine m;

	cr_assert_eq(build(&m, 1000), 0);
	answer =
		(struct umbra_resolved){ .level = UMBRA_LEVEL_4K, .host_pfn = 7, .writable = true };
	for (unsigned int i = 0; i < WINDOW_PAGES; i++)
		used[i] = true;
	cr_assert_eq(umbra_pin(m.root, (gfn_t){ 3 }, 1, &pin), -ENOMEM);
	for (unsigned int i = 1; i < WINDOW_PAGES; i++)
		used[i] = false; /* all but the root's */
	cr_assert_eq(umbra_pin(m.root, (gfn_t){ 3 }, 1, &pin), 0);
	cr_assert(umbra_unpin(m.mmu, &pin));
	cr_assert_eq(umbra_chain_register(m.chain, umbra_mmu_notifier(m.mmu)), 0);
	umbra_release(m.chain);
	cr_assert_eq(umbra_pin(m.root, (gfn_t){ 3 }, 1, &pin), -ESHUTDOWN);
	umbra_chain_unregister(m.chain, umbra_mmu_notifier(m.mmu));
	tear_down(&m);
}

/* The MMU's lock is held by somebody: who may not wait is sent away. */
static int busy_result;

static int hold_and_start(void *arg, const struct umbra_leaf *leaf)
{
	struct fake *f = arg;
	const struct umbra_range r = fake_test_range(leaf->gfn.v, 1, 0);

	busy_result = umbra_invalidate_start(f->chain, &r);
	return 0;
}

Test(refused, a_start_that_may_not_wait_finds_the_lock_held)
{
	struct fake *f = fake_create(NULL);

	cr_assert_eq(fake_access(f, 0, 3, true, NULL), 0);
	cr_assert_eq(umbra_for_each_leaf(f->root, (struct gfn_range){ { 0 }, { 10 } },
					 hold_and_start, f),
		     0);
	cr_assert_eq(busy_result, -EAGAIN);
	cr_assert_eq(fake_leaf(f, 3), UMBRA_LEVEL_4K);
	cr_assert_eq(fake_check(f), 0);
	fake_destroy(f);
}

/* A second root goes, whichever was made first; the other stays. */
Test(refused, roots_go_in_any_order)
{
	struct fake *f = fake_create(NULL);
	struct umbra_root *a, *b;

	cr_assert_eq(umbra_root_create(f->mmu, UMBRA_ROOT_MIRROR, &a), 0);
	cr_assert_eq(umbra_root_create(f->mmu, UMBRA_ROOT_MIRROR, &b), 0);
	umbra_root_destroy(a);
	cr_assert_eq(fake_access(f, 0, 3, true, NULL), 0);
	umbra_root_destroy(b);
	cr_assert_eq(fake_check(f), 0);
	fake_destroy(f);
}
