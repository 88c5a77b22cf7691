/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A guest without a machine, for benchmarks of the tables alone: a window, one root, a slot as large as asked for,
 * and a host that answers every fault at once. What has to be flushed goes to vmm's own shootdown, no vCPU running.
 */
#ifndef BENCH_WORLD_H
#define BENCH_WORLD_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <umbra/mmu.h>
#include <vmm/shootdown.h>
#include <vmm/vm_private.h>

#define WORLD_PHYS    (1ULL << 46)
#define WORLD_HVA     0x200000000000ULL
#define WORLD_PRESENT 1ULL
#define WORLD_YOUNG   (1ULL << 5)
#define WORLD_LARGE   (1ULL << 7)
#define WORLD_ADDR    0x000ffffffffff000ULL

struct world {
	struct vm vm; /* its shootdown only */
	char *window;
	uint32_t *free_pages; /* a stack */
	uint64_t nfree;
	size_t window_bytes;
	enum umbra_level level; /* of the leaves that faults install */
	struct umbra_chain *chain;
	struct umbra_mmu *mmu;
	struct umbra_root *root;
};

static inline int world_table_alloc(void *ctx, uint64_t *index)
{
	struct world *w = ctx;

	if (!w->nfree)
		return -ENOSPC;
	*index = w->free_pages[--w->nfree];
	return 0;
}

static inline void world_table_free(void *ctx, uint64_t index)
{
	struct world *w = ctx;

	w->free_pages[w->nfree++] = (uint32_t)index;
}

static inline int world_resolve(void *ctx, const struct umbra_resolve_req *req,
				struct umbra_resolved *res)
{
	const struct world *w = ctx;

	(void)req;
	*res = (struct umbra_resolved){ w->level, true, UMBRA_HOST_PFN_UNKNOWN };
	return 0;
}

static inline void world_flush_queue(void *ctx, const struct umbra_flush_entry *e)
{
	shootdown_queue(&((struct world *)ctx)->vm, e);
}

static inline void world_flush_queue_run(void *ctx, const struct umbra_flush_entry *first,
					 uint32_t n)
{
	shootdown_queue_run(&((struct world *)ctx)->vm, first, n);
}

static inline uint64_t world_flush_post(void *ctx)
{
	return shootdown_post(&((struct world *)ctx)->vm);
}

static inline int world_flush_wait(void *ctx, uint64_t ticket, bool may_wait)
{
	return shootdown_wait(&((struct world *)ctx)->vm, ticket, may_wait);
}

static inline bool world_flush_done(void *ctx, uint64_t ticket)
{
	return shootdown_done(&((struct world *)ctx)->vm, ticket);
}

/* A vCPU that comes by and takes what was posted: the shootdown's ring is empty again. */
static inline void world_forget(struct world *w)
{
	static struct monitor_flush flush;
	bool needed;

	shootdown_collect(&w->vm, 0, &flush, &needed);
}

/* Returns: 0; -ENOMEM. @pages: of guest memory, at guest frame 0. */
static inline int world_create(struct world *w, uint64_t pages, uint64_t window_pages)
{
	static const struct umbra_mmu_ops ops = {
		.table_alloc = world_table_alloc,
		.table_free = world_table_free,
		.resolve = world_resolve,
		.flush_queue = world_flush_queue,
		.flush_queue_run = world_flush_queue_run,
		.flush_post = world_flush_post,
		.flush_wait = world_flush_wait,
		.flush_done = world_flush_done,
	};
	struct umbra_mmu_config config = {
		.os = &umbra_os_posix,
		.ops = &ops,
		.ctx = w,
		.window_phys = WORLD_PHYS,
		.window_pages = window_pages,
	};
	const struct umbra_memslot slot = { .id = 1, .npages = pages, .hva = { WORLD_HVA } };
	struct vm_error err;

	memset(w, 0, sizeof(*w));
	w->vm.config.vcpus = 2;
	w->level = UMBRA_LEVEL_4K;
	w->window_bytes = window_pages * UMBRA_PAGE_SIZE;
	w->window = mmap(NULL, w->window_bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	w->free_pages = malloc(window_pages * sizeof(*w->free_pages));
	if (w->window == MAP_FAILED || !w->free_pages || shootdown_create(&w->vm, &err))
		return -ENOMEM;
	config.window = w->window;
	while (w->nfree < window_pages) {
		w->free_pages[w->nfree] = (uint32_t)(window_pages - 1 - w->nfree);
		w->nfree++;
	}
	if (umbra_chain_create(&w->chain, &umbra_os_posix) || umbra_mmu_create(&w->mmu, &config) ||
	    umbra_chain_register(w->chain, umbra_mmu_notifier(w->mmu)) ||
	    umbra_root_create(w->mmu, UMBRA_ROOT_DIRECT, &w->root) ||
	    umbra_memslot_add(w->mmu, &slot))
		return -ENOMEM;
	return 0;
}

static inline void world_destroy(struct world *w)
{
	umbra_chain_unregister(w->chain, umbra_mmu_notifier(w->mmu));
	umbra_mmu_destroy(w->mmu);
	umbra_chain_destroy(w->chain);
	shootdown_destroy(&w->vm);
	munmap(w->window, w->window_bytes);
	free(w->free_pages);
}

/* Faults [first, first + n) in, one leaf each @step frames. Returns: false when one failed. */
static inline bool world_fill(struct world *w, uint64_t first, uint64_t n, uint64_t step)
{
	for (uint64_t i = 0; i < n; i++) {
		struct umbra_fault f = { .gpa = { (first + i * step) << UMBRA_PAGE_SHIFT },
					 .access = UMBRA_ACCESS_WRITE };

		if (umbra_fault(w->root, &f) != UMBRA_FAULT_INSTALLED)
			return false;
	}
	return true;
}

/* The entries of the table page that a walk for @gfn ends in, as a CPU would find it; NULL: none. */
static inline uint64_t *world_table(const struct world *w, uint64_t gfn, unsigned int level)
{
	uint64_t table = umbra_root_phys(w->root);

	for (unsigned int at = UMBRA_LEVEL_512G;; at--) {
		uint64_t *entries = (uint64_t *)(w->window + (table - WORLD_PHYS));
		uint64_t e = entries[(gfn >> (9 * (at - 1))) & 511];

		if (at == level)
			return entries;
		if (!(e & WORLD_PRESENT) || (e & WORLD_LARGE))
			return NULL;
		table = e & WORLD_ADDR;
	}
}

static inline struct hva_range world_hva(uint64_t first, uint64_t n)
{
	return (struct hva_range){ { WORLD_HVA + (first << UMBRA_PAGE_SHIFT) },
				   { WORLD_HVA + ((first + n) << UMBRA_PAGE_SHIFT) } };
}

/* Until every table that was cut off is back in the window's stack. */
static inline void world_reclaim(struct world *w)
{
	while (umbra_reclaim(w->mmu, UINT64_MAX))
		;
}

#endif
