/* SPDX-License-Identifier: BSD-2-Clause */
/* The fake host: see fakehost.h. */
#include "fakehost.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENTRY_P    (1ULL << 0)
#define ENTRY_W    (1ULL << 1)
#define ENTRY_A    (1ULL << 5)
#define ENTRY_D    (1ULL << 6)
#define ENTRY_PS   (1ULL << 7)
#define ENTRY_ADDR 0x000ffffffffff000ULL

static int table_alloc(void *ctx, uint64_t *index)
{
	struct fake *f = ctx;

	if (f->tables_out >= f->window_limit)
		return -ENOSPC;
	for (uint64_t i = 0; i < f->window_pages; i++) {
		if (f->table_used[i])
			continue;
		f->table_used[i] = true;
		f->tables_out++;
		*index = i;
		return 0;
	}
	return -ENOSPC;
}

static void table_free(void *ctx, uint64_t index)
{
	struct fake *f = ctx;
	const uint64_t *p = (const uint64_t *)((char *)f->window + index * UMBRA_PAGE_SIZE);

	for (unsigned int i = 0; i < 512; i++)
		if (p[i]) {
			fprintf(stderr, "fake host: table page given back with contents\n");
			abort();
		}
	f->table_used[index] = false;
	f->tables_out--;
}

static int resolve(void *ctx, const struct umbra_resolve_req *req, struct umbra_resolved *res)
{
	struct fake *f = ctx;
	const uint64_t page = (req->hva.v - FAKE_HVA) >> UMBRA_PAGE_SHIFT;
	void (*hook)(struct fake *, void *) = f->in_resolve;
	const struct fake_page *p;

	f->resolves++;
	f->asked = req->max_level;
	if (f->resolve_error)
		return f->resolve_error;
	if (page >= f->npages)
		return -EFAULT;
	p = &f->pages[page];
	if (!p->present)
		return -EFAULT;
	if ((req->access & UMBRA_ACCESS_WRITE) && !p->writable) {
		f->in_resolve = NULL;
		if (hook)
			hook(f, f->in_resolve_arg);
		return -EACCES;
	}
	res->level = f->block_huge[page / 512] ? UMBRA_LEVEL_2M : UMBRA_LEVEL_4K;
	res->host_pfn = res->level == UMBRA_LEVEL_2M ? f->pages[page & ~511ULL].pfn : p->pfn;
	res->writable = p->writable;
	/* what the hook does comes after the host was looked at: the answer above is then old */
	f->in_resolve = NULL;
	if (hook)
		hook(f, f->in_resolve_arg);
	return 0;
}

static void flush_queue(void *ctx, const struct umbra_flush_entry *e)
{
	struct fake *f = ctx;

	if (f->queued == f->queue_cap) {
		f->queue_cap = f->queue_cap ? f->queue_cap * 2 : 64;
		f->queue = realloc(f->queue, f->queue_cap * sizeof(*f->queue));
		if (!f->queue)
			abort();
	}
	f->queue[f->queued++] = *e;
}

static uint64_t flush_post(void *ctx)
{
	struct fake *f = ctx;

	return ++f->posted;
}

static bool covers(const struct umbra_flush_entry *e, const struct fake_tlb *t)
{
	const uint64_t first = e->addr >> UMBRA_PAGE_SHIFT;
	const uint64_t span = (e->table ? 512ULL : 1ULL) << (9 * (e->level - 1));
	const uint64_t pages = t->huge ? 512 : 1;

	return t->gfn < first + span && first < t->gfn + pages;
}

static void flush_now(struct fake *f)
{
	for (uint64_t i = 0; i < f->queued; i++)
		for (unsigned int c = 0; c < FAKE_CPUS; c++)
			for (unsigned int k = 0; k < 64; k++)
				if (f->tlb[c][k].valid && covers(&f->queue[i], &f->tlb[c][k])) {
					f->tlb[c][k].valid = false;
					f->flushed++;
				}
	f->queued = 0;
	f->done = f->posted;
}

static int flush_wait(void *ctx, uint64_t ticket, bool may_wait)
{
	struct fake *f = ctx;

	void (*hook)(struct fake *) = f->in_flush_wait;

	f->flush_waits++;
	f->in_flush_wait = NULL;
	if (hook)
		hook(f);
	if (f->done >= ticket)
		return 0;
	if (f->in_guest && !may_wait)
		return -EAGAIN;
	flush_now(f);
	return 0;
}

static bool flush_done(void *ctx, uint64_t ticket)
{
	const struct fake *f = ctx;

	return f->done >= ticket;
}

static void pin_lost(void *ctx, gfn_t gfn, const struct umbra_range *r)
{
	struct fake *f = ctx;

	(void)gfn;
	(void)r;
	f->pins_lost++;
}

static const struct umbra_mmu_ops ops = {
	.table_alloc = table_alloc,
	.table_free = table_free,
	.resolve = resolve,
	.flush_queue = flush_queue,
	.flush_post = flush_post,
	.flush_wait = flush_wait,
	.flush_done = flush_done,
	.pin_lost = pin_lost,
};

/* A world of its own: no pthread, so that a lock taken twice or left behind is seen at once. */
static bool any_lock_held;

/* fork() may hold the allocator's locks and wait for somebody who wants ours */
static void no_lock(void)
{
	if (any_lock_held) {
		fprintf(stderr, "fake host: memory is allocated or freed under a lock\n");
		abort();
	}
}

static void *os_alloc(size_t bytes)
{
	no_lock();
	return calloc(1, bytes);
}

static void os_free(void *p, size_t bytes)
{
	(void)bytes;
	no_lock();
	free(p);
}

static void *mutex_create(void)
{
	return calloc(1, sizeof(bool));
}

static void mutex_destroy(void *m)
{
	free(m);
}

static void mutex_lock(void *m)
{
	bool *held = m;

	if (*held) {
		fprintf(stderr, "fake host: a lock is taken twice\n");
		abort();
	}
	*held = true;
	any_lock_held = true;
}

static bool mutex_trylock(void *m)
{
	bool *held = m;

	if (*held)
		return false;
	*held = true;
	any_lock_held = true;
	return true;
}

static void mutex_unlock(void *m)
{
	bool *held = m;

	if (!*held)
		abort();
	*held = false;
	any_lock_held =
		false; /* locks are never nested here but for the chain's over a registration */
}

static void relax(void)
{
}

static void __attribute__((noreturn)) bug(const char *what)
{
	fprintf(stderr, "BUG: %s\n", what);
	abort();
}

static const struct umbra_os os = {
	.alloc = os_alloc,
	.free = os_free,
	.mutex_create = mutex_create,
	.mutex_destroy = mutex_destroy,
	.mutex_lock = mutex_lock,
	.mutex_trylock = mutex_trylock,
	.mutex_unlock = mutex_unlock,
	.relax = relax,
	.bug = bug,
};

struct fake *fake_create(const struct fake_config *config)
{
	static const struct fake_config defaults;
	struct fake *f = calloc(1, sizeof(*f));
	struct umbra_mmu_config mc = {
		.os = &os, .ops = &ops, .ctx = f, .window_phys = FAKE_WINDOW
	};
	struct umbra_memslot slot = { .id = 1, .hva = { FAKE_HVA } };

	if (!config)
		config = &defaults;
	if (!f)
		abort();
	f->npages = config->npages ? config->npages : 4096;
	f->window_pages = config->window_pages ? config->window_pages : 512;
	f->window_limit = f->window_pages;
	f->pages = calloc(f->npages, sizeof(*f->pages));
	f->block_huge = calloc(f->npages / 512 + 1, sizeof(bool));
	f->table_used = calloc(f->window_pages, sizeof(bool));
	f->window = aligned_alloc(UMBRA_PAGE_SIZE, f->window_pages * UMBRA_PAGE_SIZE);
	if (!f->pages || !f->block_huge || !f->table_used || !f->window)
		abort();
	memset(f->window, 0, f->window_pages * UMBRA_PAGE_SIZE);
	f->next_pfn = 0x1000;
	for (uint64_t i = 0; i < f->npages; i++)
		f->pages[i] = (struct fake_page){ true, true, f->next_pfn += 2 };
	mc.window = f->window;
	mc.window_pages = f->window_pages;
	mc.first_seq.v = config->first_seq;
	mc.flags = config->flags;
	slot.npages = f->npages;
	slot.flags = config->slot_flags;
	if (umbra_chain_create(&f->chain, &os) || umbra_mmu_create(&f->mmu, &mc) ||
	    umbra_root_create(f->mmu, UMBRA_ROOT_DIRECT, &f->root) ||
	    umbra_chain_register(f->chain, umbra_mmu_notifier(f->mmu)) ||
	    (!config->no_slot && umbra_memslot_add(f->mmu, &slot)))
		abort();
	return f;
}

void fake_destroy(struct fake *f)
{
	umbra_chain_unregister(f->chain, umbra_mmu_notifier(f->mmu));
	umbra_mmu_destroy(f->mmu);
	umbra_chain_destroy(f->chain);
	if (f->tables_out) {
		fprintf(stderr, "fake host: %lu table pages leaked\n", f->tables_out);
		abort();
	}
	free(f->queue);
	free(f->window);
	free(f->table_used);
	free(f->block_huge);
	free(f->pages);
	free(f);
}

hva_t fake_hva(uint64_t page)
{
	return (hva_t){ FAKE_HVA + page * UMBRA_PAGE_SIZE };
}

struct hva_range fake_range(uint64_t first_page, uint64_t pages)
{
	return (struct hva_range){ fake_hva(first_page), fake_hva(first_page + pages) };
}

void fake_make_huge(struct fake *f, uint64_t block)
{
	f->next_pfn = (f->next_pfn + 1024) & ~511ULL;
	for (uint64_t i = 0; i < 512; i++)
		f->pages[block * 512 + i] = (struct fake_page){ true, true, f->next_pfn + i };
	f->next_pfn += 512;
	f->block_huge[block] = true;
}

void fake_move_page(struct fake *f, uint64_t page)
{
	f->pages[page].pfn = f->next_pfn += 2;
	f->block_huge[page / 512] = false;
}

static uint64_t *entry_of(const struct fake *f, uint64_t gfn, unsigned int *level)
{
	uint64_t table = umbra_root_phys(f->root);

	for (*level = 4;; --*level) {
		uint64_t *e = (uint64_t *)((char *)f->window + (table - FAKE_WINDOW)) +
			      ((gfn >> (9 * (*level - 1))) & 511);

		if (!(*e & ENTRY_P) || *level == 1 || (*e & ENTRY_PS))
			return e;
		table = *e & ENTRY_ADDR;
	}
}

static struct fake_tlb *tlb_find(struct fake *f, unsigned int cpu, uint64_t gfn)
{
	for (unsigned int k = 0; k < 64; k++) {
		struct fake_tlb *t = &f->tlb[cpu][k];

		if (t->valid && gfn >= t->gfn && gfn < t->gfn + (t->huge ? 512 : 1))
			return t;
	}
	return NULL;
}

/* What a CPU does without us: translation cache, walk, accessed and dirty. False: page fault. */
static bool cpu_translate(struct fake *f, unsigned int cpu, uint64_t gfn, bool write, uint64_t *pfn)
{
	struct fake_tlb *t = tlb_find(f, cpu, gfn);
	unsigned int level;
	uint64_t *e;

	if (t && (!write || (t->writable && t->dirty))) {
		*pfn = t->pfn + (gfn - t->gfn);
		return true;
	}
	e = entry_of(f, gfn, &level);
	if (!(*e & ENTRY_P) || (write && !(*e & ENTRY_W))) {
		if (t)
			t->valid = false; /* a fault drops the cached translation of its address */
		return false;
	}
	*e |= ENTRY_A | (write ? ENTRY_D : 0);
	if (!t)
		t = &f->tlb[cpu][gfn % 64];
	*t = (struct fake_tlb){
		.valid = true,
		.writable = *e & ENTRY_W,
		.dirty = *e & ENTRY_D,
		.huge = level == 2,
		.gfn = level == 2 ? gfn & ~511ULL : gfn,
		.pfn = (*e & ENTRY_ADDR) >> UMBRA_PAGE_SHIFT,
	};
	*pfn = t->pfn + (gfn - t->gfn);
	return true;
}

int fake_access(struct fake *f, unsigned int cpu, uint64_t gfn, bool write, uint64_t *pfn)
{
	uint64_t dummy;

	if (!pfn)
		pfn = &dummy;
	for (unsigned int i = 0; i < 64; i++) {
		struct umbra_fault fault = { .gpa = { gfn << UMBRA_PAGE_SHIFT },
					     .access = write ? UMBRA_ACCESS_WRITE
							     : UMBRA_ACCESS_READ };
		enum umbra_fault_result r;

		/* entering the guest: what is owed is paid first */
		if (f->queued)
			flush_now(f);
		if (cpu_translate(f, cpu, gfn, write, pfn))
			return 0;
		r = umbra_fault(f->root, &fault);
		if (r != UMBRA_FAULT_INSTALLED && r != UMBRA_FAULT_SPURIOUS &&
		    r != UMBRA_FAULT_RETRY)
			return (int)r;
	}
	return (int)UMBRA_FAULT_RETRY;
}

bool fake_cached(const struct fake *f, uint64_t gfn)
{
	for (unsigned int c = 0; c < FAKE_CPUS; c++)
		for (unsigned int k = 0; k < 64; k++) {
			const struct fake_tlb *t = &f->tlb[c][k];

			if (t->valid && gfn >= t->gfn && gfn < t->gfn + (t->huge ? 512 : 1))
				return true;
		}
	return false;
}

struct umbra_range fake_test_range(uint64_t first_page, uint64_t pages, uint32_t flags)
{
	return (struct umbra_range){
		.hull = fake_range(first_page, pages),
		.flags = flags,
		.cause = UMBRA_CAUSE_DISCARD,
		.source = UMBRA_SOURCE_TEST,
	};
}

void fake_invalidate(struct fake *f, uint64_t first_page, uint64_t pages)
{
	const struct umbra_range r = fake_test_range(first_page, pages, UMBRA_RANGE_BLOCKABLE);

	if (umbra_invalidate_start(f->chain, &r))
		abort();
	umbra_invalidate_end(f->chain, &r);
}

static void print_line(void *arg, const char *line)
{
	(void)arg;
	fprintf(stderr, "check: %s\n", line);
}

unsigned int fake_check(struct fake *f)
{
	return umbra_check(f->mmu, print_line, NULL);
}

struct umbra_stats fake_stats(struct fake *f)
{
	struct umbra_stats s;

	umbra_mmu_stats(f->mmu, &s);
	return s;
}

enum umbra_fault_result fake_write_fault(struct fake *f, uint64_t gfn)
{
	struct umbra_fault fault = { .gpa = { gfn << UMBRA_PAGE_SHIFT },
				     .access = UMBRA_ACCESS_WRITE };

	return umbra_fault(f->root, &fault);
}

int fake_leaf(struct fake *f, uint64_t gfn)
{
	struct umbra_translation t;

	return umbra_lookup(f->root, (gpa_t){ gfn << UMBRA_PAGE_SHIFT }, &t) ? 0 : (int)t.level;
}
