/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A fake host for shadow/core: host pages in an array, vCPUs that walk our tables, set accessed and
 * dirty, and cache translations until they are flushed. It exists to test core in many steps
 * without a kernel; nothing else uses it.
 */
#ifndef TESTS_FAKEHOST_H
#define TESTS_FAKEHOST_H

#include <umbra/mmu.h>

#define FAKE_CPUS   4
#define FAKE_HVA    0x7f0000000000ULL /* where the fake host memory begins, 2M aligned */
#define FAKE_WINDOW 0x4000000000ULL   /* physical address of the table window */

struct fake_page {
	bool present, writable;
	uint64_t pfn;
};

struct fake_tlb {
	bool valid, writable, dirty, huge;
	uint64_t gfn, pfn; /* first of the leaf */
};

struct fake_config {
	uint64_t npages; /* of host memory, whole 2M; default 4096 (16 MiB) */
	uint64_t first_seq;
	uint64_t window_pages; /* default 512 */
	uint32_t flags;        /* of the mmu */
	bool no_slot;          /* do not add slot 1 = all host memory at gfn 0 */
	uint32_t slot_flags;
};

struct fake {
	struct umbra_chain *chain;
	struct umbra_mmu *mmu;
	struct umbra_root *root;
	uint64_t npages;
	struct fake_page *pages;
	bool *block_huge; /* per 2M block: PMD-mapped */
	uint64_t next_pfn;

	void *window;
	uint64_t window_pages, tables_out, window_limit;
	bool *table_used;

	struct fake_tlb tlb[FAKE_CPUS][64];
	bool in_guest; /* vCPUs run: a flush that may not wait answers -EAGAIN */
	struct umbra_flush_entry *queue;
	uint64_t queued, queue_cap;
	uint64_t posted, done;
	uint64_t flush_waits, flushed;

	/* called inside resolve, once, with the mmu unlocked */
	void (*in_resolve)(struct fake *f, void *arg);
	void *in_resolve_arg;
	/* called inside flush_wait, once, with the mmu unlocked: what another thread may do then */
	void (*in_flush_wait)(struct fake *f);
	int resolve_error;
	enum umbra_level asked; /* the largest leaf that the last resolve was asked about */
	uint64_t resolves, pins_lost;
};

struct fake *fake_create(const struct fake_config *config); /* NULL: all defaults */
void fake_destroy(struct fake *f);

hva_t fake_hva(uint64_t page);
struct hva_range fake_range(uint64_t first_page, uint64_t pages);
/* A block of 512 pages becomes one hugepage with contiguous, aligned frames. */
void fake_make_huge(struct fake *f, uint64_t block);
/* All pages of a block get new frames; not huge any more. */
void fake_move_page(struct fake *f, uint64_t page);

/*
 * A vCPU accesses @gfn; faults are resolved until it works.
 * Returns: 0 and the frame reached, or the fault result (positive) that stopped it; retries are
 * bounded.
 */
int fake_access(struct fake *f, unsigned int cpu, uint64_t gfn, bool write, uint64_t *pfn);
/* One write fault on @gfn, whatever comes of it. */
enum umbra_fault_result fake_write_fault(struct fake *f, uint64_t gfn);
/* Is a translation of @gfn cached by any vCPU? */
bool fake_cached(const struct fake *f, uint64_t gfn);

/* A bracket by the TEST source. */
struct umbra_range fake_test_range(uint64_t first_page, uint64_t pages, uint32_t flags);
void fake_invalidate(struct fake *f, uint64_t first_page, uint64_t pages);

/* umbra_check with the lines printed; number of violations. */
unsigned int fake_check(struct fake *f);
struct umbra_stats fake_stats(struct fake *f);
/* 0: absent. 1: 4K leaf, 2: 2M leaf. */
int fake_leaf(struct fake *f, uint64_t gfn);

#endif
