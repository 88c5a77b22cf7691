/* SPDX-License-Identifier: BSD-2-Clause */
/* The life of a table page: allocated, linked, unlinked, cleared, given back when no CPU remembers
 * it. */
#include <errno.h>

#include "private.h"

int64_t table_new(struct umbra_root *root, unsigned int level, uint64_t gfn)
{
	struct umbra_mmu *mmu = root->mmu;
	uint64_t index;
	struct table *t;

	if (mmu->config.ops->table_alloc(mmu->config.ctx, &index))
		return -ENOSPC;
	if (index >= mmu->config.window_pages || mmu->tables[index].state != TABLE_FREE)
		mmu->os->bug(
			"I1: the allocator gave a table page that is in use or outside the window");
	t = &mmu->tables[index];
	*t = (struct table){
		.gfn = gfn & ~(spte_span(level) * SPTE_ENTRIES - 1),
		.root = root,
		.parent = NO_TABLE,
		.next = NO_TABLE,
		.level = (uint8_t)level,
		.state = TABLE_LIVE,
	};
	if (mmu->host_pfns && level <= UMBRA_LEVEL_2M)
		t->host_pfns = mmu->host_pfns + index * SPTE_ENTRIES;
	mmu->stats.tables_allocated++;
	mmu->stats.tables++;
	return (int64_t)index;
}

void table_link(struct umbra_mmu *mmu, uint32_t child, uint32_t parent, unsigned int slot)
{
	mmu->tables[child].parent = parent;
	mmu->tables[child].slot = (uint16_t)slot;
}

static void list_push(struct umbra_mmu *mmu, struct table_list *l, uint32_t index)
{
	struct table *t = &mmu->tables[index];

	t->next = NO_TABLE;
	t->ticket = TICKET_FRESH;
	if (l->count++)
		mmu->tables[l->tail].next = index;
	else
		l->head = index;
	l->tail = index;
	if (l->fresh == NO_TABLE)
		l->fresh = index;
}

static uint32_t list_pop(struct umbra_mmu *mmu, struct table_list *l)
{
	const uint32_t index = l->head; /* it has its ticket: it is not among the fresh */

	l->head = mmu->tables[index].next;
	l->count--;
	return index;
}

static void list_ticket(struct umbra_mmu *mmu, struct table_list *l, uint64_t ticket)
{
	for (uint32_t i = l->fresh; i != NO_TABLE; i = mmu->tables[i].next)
		mmu->tables[i].ticket = ticket;
	l->fresh = NO_TABLE;
}

void table_retire(struct umbra_mmu *mmu, uint32_t table, bool cleared)
{
	struct table *t = &mmu->tables[table];

	if (t->state != TABLE_LIVE)
		mmu->os->bug("I13: a table is retired twice");
	t->state = cleared ? TABLE_CLEARED : TABLE_UNLINKED;
	t->parent = NO_TABLE;
	list_push(mmu, cleared ? &mmu->cleared : &mmu->unlinked, table);
}

void table_queue_clear(struct umbra_mmu *mmu, uint32_t table)
{
	const struct table *t = &mmu->tables[table];
	const struct umbra_flush_entry e = {
		.index = (uint64_t)table * SPTE_ENTRIES,
		.addr = t->gfn << UMBRA_PAGE_SHIFT,
		.level = t->level,
		.table = true,
	};

	if (t->root->kind != UMBRA_ROOT_DIRECT)
		return;
	mmu->config.ops->flush_queue(mmu->config.ctx, &e);
	mmu->queued++;
}

void flush_queue(struct umbra_root *root, uint32_t table, unsigned int slot, uint64_t gfn,
		 unsigned int level)
{
	struct umbra_mmu *mmu = root->mmu;
	const struct umbra_flush_entry e = {
		.index = (uint64_t)table * SPTE_ENTRIES + slot,
		.addr = gfn << UMBRA_PAGE_SHIFT,
		.level = (uint8_t)level,
	};

	if (root->kind != UMBRA_ROOT_DIRECT)
		return;
	mmu->config.ops->flush_queue(mmu->config.ctx, &e);
	mmu->queued++;
}

void flush_queue_run(struct umbra_mmu *mmu, struct umbra_flush_entry *e, unsigned int n)
{
	const struct umbra_mmu_ops *ops = mmu->config.ops;

	mmu->queued += n;
	if (ops->flush_queue_run) {
		ops->flush_queue_run(mmu->config.ctx, e, n);
		return;
	}
	for (; n; n--, e->index++, e->addr += UMBRA_PAGE_SIZE)
		ops->flush_queue(mmu->config.ctx, e);
}

uint64_t flush_post(struct umbra_mmu *mmu)
{
	uint64_t ticket = TICKET_NONE;

	if (mmu->queued) {
		ticket = mmu->config.ops->flush_post(mmu->config.ctx);
		mmu->last_ticket = ticket;
		mmu->stats.flushes++;
		mmu->stats.flushed_entries += mmu->queued;
		mmu->queued = 0;
		if (mmu->lowered)
			mmu->lowered_ticket = ticket;
	}
	mmu->lowered = false;
	if (mmu->unlinked.fresh != NO_TABLE)
		list_ticket(mmu, &mmu->unlinked, ticket);
	if (mmu->cleared.fresh != NO_TABLE)
		list_ticket(mmu, &mmu->cleared, ticket);
	return ticket != TICKET_NONE ? ticket : mmu->lowered_ticket;
}

int flush_wait(struct umbra_mmu *mmu, uint64_t ticket, bool may_wait)
{
	int rc;

	if (ticket == TICKET_NONE || ticket <= __atomic_load_n(&mmu->waited, __ATOMIC_ACQUIRE))
		return 0;
	rc = mmu->config.ops->flush_wait(mmu->config.ctx, ticket, may_wait);
	if (rc)
		return rc;
	/* Two who wait may leave the lesser of their tickets here: then less is known, and it is true. */
	__atomic_store_n(&mmu->waited, ticket, __ATOMIC_RELEASE);
	return 0;
}

bool flush_over(struct umbra_mmu *mmu, uint64_t ticket)
{
	if (ticket == TICKET_FRESH)
		return false;
	if (ticket == TICKET_NONE || ticket <= __atomic_load_n(&mmu->waited, __ATOMIC_ACQUIRE))
		return true;
	return mmu->config.ops->flush_done(mmu->config.ctx, ticket);
}

/*
 * No CPU walks @table any more: nobody sets a bit in it. What it knows goes to the log, its
 * children are retired in turn, and it is zeroed.
 */
static void table_harvest(struct umbra_mmu *mmu, uint32_t table)
{
	struct table *t = &mmu->tables[table];
	uint64_t *entries = table_entries(mmu, table);

	for (unsigned int i = 0; t->count; i++) {
		const uint64_t e = spte_read(&entries[i]);

		if (!spte_present(e))
			continue;
		if (spte_is_leaf(e, t->level))
			slot_log(mmu, t->gfn + i * spte_span(t->level), t->level, e);
		else
			table_retire(mmu, spte_child(mmu, e), false);
		__atomic_store_n(&entries[i], 0, __ATOMIC_RELEASE);
		t->count--;
	}
	t->state = TABLE_CLEARED;
	table_queue_clear(mmu, table);
	list_push(mmu, &mmu->cleared, table);
}

static void table_give_back(struct umbra_mmu *mmu, uint32_t table)
{
	struct table *t = &mmu->tables[table];

	t->state = TABLE_FREE;
	mmu->stats.tables_freed++;
	mmu->stats.tables--;
	/*
	 * partner: umbra_lookup, which reads the generation before and after its walk. Whoever uses
	 * the page again stores entries with release (spte_change) after this; a walk that reads
	 * one of them sees this increment too.
	 */
	__atomic_fetch_add(&mmu->free_gen, 1, __ATOMIC_ACQ_REL);
	mmu->config.ops->table_free(mmu->config.ctx, table);
}

void tables_settle(struct umbra_mmu *mmu, uint64_t max)
{
	uint64_t n;

	for (n = 0; n < max && mmu->unlinked.count &&
		    flush_over(mmu, mmu->tables[mmu->unlinked.head].ticket);
	     n++)
		table_harvest(mmu, list_pop(mmu, &mmu->unlinked));
	if (n)
		flush_post(mmu);
	for (n = 0; n < max && mmu->cleared.count &&
		    flush_over(mmu, mmu->tables[mmu->cleared.head].ticket);
	     n++)
		table_give_back(mmu, list_pop(mmu, &mmu->cleared));
}

void tables_drain(struct umbra_mmu *mmu)
{
	for (;;) {
		uint64_t ticket;

		tables_settle(mmu, UINT64_MAX);
		if (!mmu->unlinked.count && !mmu->cleared.count && !mmu->in_transit)
			return;
		ticket = mmu->last_ticket;
		mmu_unlock(mmu);
		flush_wait(mmu, ticket, true);
		mmu->os->relax(); /* a collapse may hold a table: it waits for vCPUs only */
		mmu_lock(mmu);
	}
}

uint64_t umbra_reclaim(struct umbra_mmu *mmu, uint64_t max)
{
	uint64_t left, ticket;

	mmu_lock(mmu);
	ticket = mmu->last_ticket;
	mmu_unlock(mmu);
	flush_wait(mmu, ticket, true);
	mmu_lock(mmu);
	tables_settle(mmu, max);
	left = mmu->unlinked.count + mmu->cleared.count;
	mmu_unlock(mmu);
	return left;
}
