/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Invalidators, faulters, a slot mover, an ager, lock-free lookups and an auditor on one MMU, for
 * ThreadSanitizer. The host is an array of frames that change between start and end, or before they
 * are told as over. Exit 0: no stale leaf was ever seen.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include <umbra/mmu.h>

#define PAGES        2048
#define WINDOW_PAGES 256
#define HVA          0x7f0000000000ULL
#define ROUNDS       10000
#define LATE_ROUNDS  30000 /* goes on alone for a while: little is refused then */

static struct umbra_chain *chain;
static struct umbra_mmu *mmu;
static struct umbra_root *root;
static _Atomic uint64_t frame[PAGES];
static _Atomic uint64_t next_frame = 1;
static _Atomic uint32_t untold[PAGES]; /* changes made, and not told yet */
static _Atomic uint64_t waited;        /* newest ticket that was waited for */
static _Atomic bool done;
static _Atomic int failures;
static _Atomic uint64_t installed, retried;

static _Alignas(4096) char window[WINDOW_PAGES][4096];
static bool used[WINDOW_PAGES];
static pthread_mutex_t window_lock = PTHREAD_MUTEX_INITIALIZER;

static int table_alloc(void *ctx, uint64_t *index)
{
	(void)ctx;
	pthread_mutex_lock(&window_lock);
	for (uint64_t i = 0; i < WINDOW_PAGES; i++)
		if (!used[i]) {
			used[i] = true;
			pthread_mutex_unlock(&window_lock);
			*index = i;
			return 0;
		}
	pthread_mutex_unlock(&window_lock);
	return -ENOSPC;
}

static void table_free(void *ctx, uint64_t index)
{
	(void)ctx;
	pthread_mutex_lock(&window_lock);
	used[index] = false;
	pthread_mutex_unlock(&window_lock);
}

static int resolve(void *ctx, const struct umbra_resolve_req *req, struct umbra_resolved *res)
{
	(void)ctx;
	*res = (struct umbra_resolved){ UMBRA_LEVEL_4K, true,
					atomic_load(&frame[(req->hva.v - HVA) / 4096]) };
	if (res->host_pfn % 4 == 0)
		sched_yield(); /* the answer gets old */
	return 0;
}

static void flush_queue(void *ctx, const struct umbra_flush_entry *e)
{
	(void)ctx;
	(void)e;
}

static uint64_t flush_post(void *ctx)
{
	static uint64_t ticket; /* mmu lock held */

	(void)ctx;
	return ++ticket;
}

static int flush_wait(void *ctx, uint64_t ticket, bool may_wait)
{
	(void)ctx;
	if (!may_wait)
		return 0;
	if (ticket % 8 == 0)
		sched_yield();
	for (uint64_t newest = atomic_load(&waited); newest < ticket;)
		if (atomic_compare_exchange_weak(&waited, &newest, ticket))
			break;
	return 0;
}

/* Every other one has to be waited for. */
static bool flush_done(void *ctx, uint64_t ticket)
{
	(void)ctx;
	return ticket % 2 || ticket <= atomic_load(&waited);
}

static uint64_t rnd(uint64_t *s, uint64_t below)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s % below;
}

static void *invalidator(void *arg)
{
	uint64_t s = (uint64_t)(uintptr_t)arg * 77777 + 1;

	for (int i = 0; i < ROUNDS; i++) {
		const uint64_t first = rnd(&s, PAGES), n = 1 + rnd(&s, i % 16 ? 4 : 600);
		const uint64_t end = first + n > PAGES ? PAGES : first + n;
		const struct umbra_range r = {
			.hull = { { HVA + first * 4096 }, { HVA + end * 4096 } },
			.flags = (first + end) % 4 ? UMBRA_RANGE_BLOCKABLE : 0,
			.source = UMBRA_SOURCE_TEST,
		};
		const int rc = umbra_invalidate_start(chain, &r);

		if (rc == -EAGAIN && !r.flags)
			continue; /* who would have to wait, or the joiner */
		if (rc) {
			atomic_fetch_add(&failures, 1);
			return NULL;
		}
		for (uint64_t p = first; p < end; p++)
			atomic_store(&frame[p], atomic_fetch_add(&next_frame, 1));
		umbra_invalidate_end(chain, &r);
	}
	return NULL;
}

/* The host has changed before anybody is told: what is still there afterwards is stale. */
static void *late(void *arg)
{
	uint64_t s = (uint64_t)(uintptr_t)arg * 55555 + 1;

	for (int i = 0; i < LATE_ROUNDS; i++) {
		const uint64_t first = rnd(&s, PAGES), n = 1 + rnd(&s, 4);
		const uint64_t end = first + n > PAGES ? PAGES : first + n;
		const struct umbra_range r = {
			.hull = { { HVA + first * 4096 }, { HVA + end * 4096 } },
			.flags = UMBRA_RANGE_FORCED | (i % 4 ? UMBRA_RANGE_BLOCKABLE : 0U),
			.source = i % 2 ? UMBRA_SOURCE_TEST : UMBRA_SOURCE_MODULE,
		};

		for (uint64_t p = first; p < end; p++) {
			atomic_fetch_add(&untold[p], 1);
			atomic_store(&frame[p], atomic_fetch_add(&next_frame, 1));
		}
		umbra_invalidate_range(chain, &r);
		for (uint64_t p = first; p < end; p++)
			atomic_fetch_sub(&untold[p], 1);
	}
	return NULL;
}

static void *faulter(void *arg)
{
	uint64_t s = (uint64_t)(uintptr_t)arg * 99991 + 1;

	while (!atomic_load(&done)) {
		struct umbra_fault f = { .gpa = { (rnd(&s, PAGES) + 2 * PAGES * rnd(&s, 2)) << 12 },
					 .access = UMBRA_ACCESS_WRITE };
		const enum umbra_fault_result r = umbra_fault(root, &f);
		struct umbra_translation t;

		if (r == UMBRA_FAULT_INSTALLED)
			atomic_fetch_add(&installed, 1);
		else if (r == UMBRA_FAULT_RETRY)
			atomic_fetch_add(&retried, 1);
		else if (r != UMBRA_FAULT_SPURIOUS && r != UMBRA_FAULT_NO_SLOT)
			atomic_fetch_add(&failures, 1);
		if (!umbra_lookup(root, f.gpa, &t) && t.pfn.v != f.gpa.v >> 12) {
			fprintf(stderr, "lookup of gfn %lx found frame %lx\n", f.gpa.v >> 12,
				t.pfn.v);
			atomic_fetch_add(&failures, 1);
		}
	}
	return NULL;
}

static int audit_leaf(void *arg, const struct umbra_leaf *leaf)
{
	const struct hva_range r = { leaf->hva, { leaf->hva.v + 4096 } };
	const uint64_t page = (leaf->hva.v - HVA) / 4096, now = atomic_load(&frame[page]);

	(void)arg;
	/* the lock is held: no bracket over this page can have been opened since it was looked at, and
	 * nothing of it told
	 */
	if (leaf->host_pfn != now && !umbra_range_open_hint(mmu, r) &&
	    !atomic_load(&untold[page])) {
		fprintf(stderr, "stale: gfn %lx has frame %lx, the host %lx\n", leaf->gfn.v,
			leaf->host_pfn, now);
		atomic_fetch_add(&failures, 1);
	}
	return 0;
}

static void print_line(void *arg, const char *line)
{
	(void)arg;
	fprintf(stderr, "check: %s\n", line);
}

static void *auditor(void *arg)
{
	(void)arg;
	while (!atomic_load(&done)) {
		umbra_for_each_leaf(root, (struct gfn_range){ { 0 }, { 3 * PAGES } }, audit_leaf,
				    NULL);
		if (umbra_check(mmu, print_line, NULL))
			atomic_fetch_add(&failures, 1);
		umbra_clear_flush_young(chain,
					(struct hva_range){ { HVA }, { HVA + PAGES * 4096 } });
		umbra_reclaim(mmu, 8);
	}
	return NULL;
}

static void *mover(void *arg)
{
	static uint64_t accessed[PAGES / 64], dirty[PAGES / 64];
	uint64_t gfn = 0;

	(void)arg;
	while (!atomic_load(&done)) {
		gfn = gfn ? 0 : 2 * PAGES;
		if (umbra_memslot_move(mmu, 1, (gfn_t){ gfn }, (pfn_t){ gfn }) ||
		    umbra_log_collect(mmu, 1, accessed, dirty))
			atomic_fetch_add(&failures, 1);
		umbra_collapse(mmu, (struct gfn_range){ { 0 }, { 3 * PAGES } });
		sched_yield();
	}
	return NULL;
}

/* What is open for whoever joins, by source: never less than nothing. */
static _Atomic int64_t joiner_open[UMBRA_SOURCE_NR];
static _Atomic uint64_t joiner_told;

static int joiner_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	/* Now and then it refuses: all others are told that it ended. */
	if (atomic_fetch_add(&joiner_told, 1) % 16 == 0 && !r->flags)
		return -EAGAIN;
	atomic_fetch_add(&joiner_open[r->source], 1);
	if (joiner_told % 4 == 0)
		sched_yield();
	return 0;
}

static void joiner_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	if (atomic_fetch_sub(&joiner_open[r->source], 1) <= 0)
		atomic_fetch_add(&failures, 1);
}

static void *joiner(void *arg)
{
	static struct umbra_notifier n;
	static const struct umbra_notifier_ops counts = {
		.invalidate_range_start = joiner_start,
		.invalidate_range_end = joiner_end,
	};

	(void)arg;
	n.ops = &counts;
	n.name = "joiner";
	while (!atomic_load(&done)) {
		for (unsigned int i = 0; i < UMBRA_SOURCE_NR; i++)
			joiner_open[i] = 0;
		if (umbra_chain_register(chain, &n))
			atomic_fetch_add(&failures, 1);
		sched_yield();
		umbra_chain_unregister(chain, &n);
		umbra_zap_all(mmu);
		sched_yield();
	}
	return NULL;
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

int main(void)
{
	const struct umbra_mmu_config config = {
		.os = &umbra_os_posix,
		.ops = &ops,
		.window = window,
		.window_phys = 1ULL << 38,
		.window_pages = WINDOW_PAGES,
		.first_seq = { (1ULL << 32) - 2000 },
		.flags = UMBRA_MMU_RECORD_PFN,
	};
	const struct umbra_memslot slot = {
		.id = 1, .flags = UMBRA_SLOT_LOG, .npages = PAGES, .hva = { HVA }
	};
	void *(*const others[])(void *) = { faulter, faulter, faulter, auditor, joiner, mover };
	pthread_t inv[4], other[6];
	struct umbra_chain_counts counts;
	struct umbra_stats st;

	if (umbra_chain_create(&chain, &umbra_os_posix) || umbra_mmu_create(&mmu, &config) ||
	    umbra_root_create(mmu, UMBRA_ROOT_DIRECT, &root) || umbra_memslot_add(mmu, &slot) ||
	    umbra_chain_register(chain, umbra_mmu_notifier(mmu)))
		return 1;
	for (uintptr_t i = 0; i < 6; i++)
		pthread_create(&other[i], NULL, others[i], (void *)(i + 1));
	for (uintptr_t i = 0; i < 4; i++)
		pthread_create(&inv[i], NULL, i < 3 ? invalidator : late, (void *)(i + 1));
	for (int i = 0; i < 4; i++)
		pthread_join(inv[i], NULL);
	atomic_store(&done, true);
	for (int i = 0; i < 6; i++)
		pthread_join(other[i], NULL);
	umbra_mmu_stats(mmu, &st);
	counts = umbra_chain_counts(chain, UMBRA_SOURCE_MODULE);
	if (st.starts != st.ends || st.starts < 3 * ROUNDS || atomic_load(&installed) == 0 ||
	    counts.begun != LATE_ROUNDS / 2 || counts.ended != LATE_ROUNDS / 2 ||
	    umbra_check(mmu, print_line, NULL))
		atomic_fetch_add(&failures, 1);
	printf("race_core: %lu starts, %lu installed, %lu retried, %d failures\n", st.starts,
	       atomic_load(&installed), atomic_load(&retried), atomic_load(&failures));
	umbra_chain_unregister(chain, umbra_mmu_notifier(mmu));
	umbra_mmu_destroy(mmu);
	umbra_chain_destroy(chain);
	return atomic_load(&failures) ? 1 : 0;
}
