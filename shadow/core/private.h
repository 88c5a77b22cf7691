/* SPDX-License-Identifier: BSD-2-Clause */
/* What the files of shadow/core share: the MMU's state, and who may call whom (each section is one
 * file). */
#ifndef UMBRA_CORE_PRIVATE_H
#define UMBRA_CORE_PRIVATE_H

#include <umbra/mmu.h>

#include "spte.h"

#define NO_TABLE     UINT32_MAX
#define TICKET_NONE  0ULL         /* nothing to wait for                  */
#define TICKET_FRESH UINT64_MAX   /* queued, flush_post not called yet     */
#define GFN_LIMIT    (1ULL << 35) /* guest-physical addresses end at 2^47 */

enum table_state {
	TABLE_FREE = 0,
	TABLE_LIVE,     /* linked in a root (or a root itself)                               */
	TABLE_UNLINKED, /* whole subtree cut off; entries still there, a CPU may yet set A/D */
	TABLE_CLEARED,  /* all zero; waits until no CPU remembers it                         */
};

/* One table page; index in mmu->tables = page in the window. */
struct table {
	uint64_t gfn;        /* first page it translates */
	uint64_t ticket;     /* UNLINKED, CLEARED: flush that must be over first */
	uint64_t *host_pfns; /* RECORD_PFN: its 512, levels 1 and 2 */
	struct umbra_root *root;
	uint32_t parent; /* table that links it, NO_TABLE for a root */
	uint32_t next;   /* on a list */
	uint16_t slot;   /* entry in the parent */
	uint16_t count;  /* present entries, reserved ones of a root not counted */
	uint8_t level;
	uint8_t state;
};

/* FIFO of tables by index; those from @fresh on wait for the next flush_post to get their ticket.
 */
struct table_list {
	uint32_t head, tail, fresh;
	uint64_t count;
};

struct slot {
	struct umbra_memslot pub;
	uint64_t serial;                    /* of this addition, never used twice: an id may be */
	uint64_t *log_accessed, *log_dirty; /* UMBRA_SLOT_LOG: bits of dropped leaves */
};

/* A slot by hva: [@start, @end), from @gfn on; @max_end: the greatest end so far, for skipping (rmap). */
struct slot_by_hva {
	uint64_t start, end, max_end, gfn;
};

struct source_state {
	uint64_t begun, ended;
	uint64_t lo, hi; /* union of what is open, valid while begun != ended */
	uint32_t shown;  /* events in the history that are open */
};

/* One struct umbra_event, small. */
struct history_entry {
	uint64_t seq;
	struct hva_range hva;
	int32_t who;
	uint32_t zapped_4k, zapped_2m;
	uint8_t cause, source, flags;
	bool open;
	bool exact; /* nothing of the hull may be mapped: no batch, and not of the library itself */
};

struct umbra_root {
	struct umbra_mmu *mmu;
	struct umbra_root *next;
	enum umbra_root_kind kind;
	uint32_t table;
	uint64_t reserved[SPTE_ENTRIES / 64]; /* top-level entries of the embedder */
	/* written all the time: a cache line away from what lookups read */
	uint64_t leaves_4k, leaves_2m;
};

struct umbra_mmu {
	struct umbra_notifier notifier; /* first: the chain gives it back */
	struct umbra_mmu_config config;
	const struct umbra_os *os;
	void *lock;
	uint64_t free_gen; /* written under lock, read without: a table page was given back */
	char apart[64];    /* what lookups read is above, what is written all the time below */

	/*
	 * All below: under lock, unless said otherwise. Nothing is allocated or freed under it: fork()
	 * holds the allocator's locks while it waits for the reader of its event, who takes this one.
	 */
	struct table *tables;
	uint64_t *host_pfns; /* RECORD_PFN: 512 for each page of the window */
	struct umbra_root *roots;
	struct table_list unlinked, cleared;
	uint64_t in_transit;  /* tables that a collapse holds, on no list */
	uint64_t queued;      /* flush entries since the last post */
	uint64_t last_ticket; /* given by the newest post */
	bool lowered;         /* of what is queued, something takes a translation or a right away */
	uint64_t lowered_ticket; /* given by the newest post with such a thing in it */
	uint64_t waited;         /* atomic: all up to here is known to be out of use */

	struct slot *slots;
	struct slot_by_hva *by_hva;
	uint32_t nslots, slots_cap;
	uint32_t nlogs; /* slots that keep a log */
	uint64_t slots_gen, slot_serial;
	uint64_t
		cuts_gen; /* zaps and write_protects so far: what a collapse holds may be meant too */
	uint32_t collapsing; /* umbra_collapse calls that walk the list of roots */

	struct source_state sources[UMBRA_SOURCE_NR]; /* stores are atomic: the open hint reads
							 without the lock */
	uint64_t seq;                                 /* ends so far, from config.first_seq */
	uint64_t starts_nr;                           /* starts so far: also the history's index */
	struct history_entry history[UMBRA_HISTORY];
	bool released;

	struct umbra_pin *pins;
	struct umbra_stats stats;
};

/* ---- mmu.c -------------------------------------------------------------------------------- */

static inline void mmu_lock(struct umbra_mmu *mmu)
{
	mmu->os->mutex_lock(mmu->lock);
}

static inline void mmu_unlock(struct umbra_mmu *mmu)
{
	mmu->os->mutex_unlock(mmu->lock);
}

/* ---- walk.c: finds, never writes ------------------------------------------------------------ */

/* Where a walk stopped: @old is what was observed there, so that a change can be made against it.
 */
struct spte_iter {
	struct umbra_root *root;
	uint64_t *sptep;
	uint64_t old;
	uint64_t gfn; /* first that the entry translates */
	uint32_t table;
	uint16_t slot;
	uint8_t level;
};

static inline uint64_t spte_read(const uint64_t *sptep)
{
	return __atomic_load_n(sptep, __ATOMIC_ACQUIRE);
}

static inline uint64_t *table_entries(const struct umbra_mmu *mmu, uint32_t table)
{
	return (uint64_t *)((char *)mmu->config.window + ((uint64_t)table << UMBRA_PAGE_SHIFT));
}

/* An entry points outside the window: stops the program. */
void walk_lost(const struct umbra_mmu *mmu) __attribute__((cold, noreturn));

/* The table that a non-leaf entry points to; an entry outside the window is a bug. */
static inline uint32_t spte_child(const struct umbra_mmu *mmu, uint64_t entry)
{
	/* what lies below the window is as far beyond it */
	const uint64_t index = ((entry & SPTE_ADDR) - mmu->config.window_phys) >> UMBRA_PAGE_SHIFT;

	if (index >= mmu->config.window_pages)
		walk_lost(mmu);
	return (uint32_t)index;
}

/* Down to the entry of @gfn at @level, or to the first absent or leaf entry above it. */
void walk_to(struct umbra_root *root, uint64_t gfn, unsigned int level, struct spte_iter *it);

/* The first 2M block at or after @gfn, and before @limit, that has a table of 4K leaves; or UINT64_MAX. */
uint64_t walk_next_table(struct umbra_root *root, uint64_t gfn, uint64_t limit);

/*
 * Every leaf that meets [start, end), ascending, absent subtrees skipped. A non-zero return of @fn
 * stops.
 * @fn may drop the leaf it is given (the table it lies in stays until walk_leaves_done).
 */
int walk_leaves(struct umbra_root *root, struct gfn_range r,
		int (*fn)(void *arg, struct spte_iter *it), void *arg);

/*
 * The same, for who can do with many at once: @run is given @n entries of a table of 4K leaves from @it on, present or
 * not, and @leaf each leaf of 2M.
 */
struct leaf_visitor {
	int (*run)(void *arg, struct spte_iter *it, unsigned int n);
	int (*leaf)(void *arg, struct spte_iter *it);
	void *arg;
};
int walk_runs(struct umbra_root *root, struct gfn_range r, const struct leaf_visitor *visitor);

/* ---- map.c: the only writer of entries ------------------------------------------------------- */

/*
 * spte_change - the one function that changes an entry, and checks the change.
 * @it->old is what the caller based @now on. If only accessed or dirty of the entry changed since,
 * they are kept in a leaf that stays, and given back in @it->old when it goes. Any other
 * difference: false, @it->old is the new observation.
 */
bool spte_change(struct umbra_mmu *mmu, struct spte_iter *it, uint64_t now);

/*
 * The same change for each leaf among the @n entries of a table of 4K leaves from @it on: dropped, or made old. What
 * the CPU set meanwhile is not lost. Returns: how many. Statistics, and the table left empty, are the caller's.
 */
uint32_t spte_drop_run(struct umbra_mmu *mmu, const struct spte_iter *it, unsigned int n);
uint32_t spte_age_run(struct umbra_mmu *mmu, const struct spte_iter *it, unsigned int n);

/* Installs tables down to @level for @gfn. Returns: 0, -ENOSPC; -EEXIST: a leaf is in the way. */
int map_tables(struct umbra_root *root, uint64_t gfn, unsigned int level, struct spte_iter *it);

/* Drops the leaf at @it: accessed and dirty go to the log. */
void map_drop_leaf(struct umbra_mmu *mmu, struct spte_iter *it);
void map_record_pfn(struct umbra_mmu *mmu, const struct spte_iter *it, uint64_t host_pfn);
uint64_t map_recorded_pfn(const struct umbra_mmu *mmu, const struct spte_iter *it);

/* Drops every leaf that meets @r in @root; tables that get empty go too. Returns by reference how
 * many leaves. */
struct zapped {
	uint32_t leaves_4k, leaves_2m;
};
void map_zap(struct umbra_root *root, struct gfn_range r, struct zapped *zapped);
void map_zap_root(struct umbra_root *root);

/* Frees tables upward from @table while they are empty. */
void map_prune(struct umbra_mmu *mmu, uint32_t table);

/* ---- tables.c: life of table pages ------------------------------------------------------------
 */

int64_t table_new(struct umbra_root *root, unsigned int level, uint64_t gfn);
void table_link(struct umbra_mmu *mmu, uint32_t child, uint32_t parent, unsigned int slot);
/* It has been unlinked: @cleared says that all its entries are zero and known to be. */
void table_retire(struct umbra_mmu *mmu, uint32_t table, bool cleared);
/* Puts the whole-page flush of a cleared table in the queue. */
void table_queue_clear(struct umbra_mmu *mmu, uint32_t table);

/* Entry @slot of @table, which translates @gfn at @level, has changed. */
void flush_queue(struct umbra_root *root, uint32_t table, unsigned int slot, uint64_t gfn,
		 unsigned int level);
/* The same for @n 4K leaves side by side, of which @e is the first; @e is used up. */
void flush_queue_run(struct umbra_mmu *mmu, struct umbra_flush_entry *e, unsigned int n);
/*
 * Returns: what to wait for, so that no CPU uses anything dropped or lowered so far, by whomever. Who finds
 * nothing to drop has not dropped it, and its flush may still be under way.
 */
uint64_t flush_post(struct umbra_mmu *mmu);
/* No lock held. */
int flush_wait(struct umbra_mmu *mmu, uint64_t ticket, bool may_wait);
/* Is it in use no more, as far as can be told without waiting? Lock held. */
bool flush_over(struct umbra_mmu *mmu, uint64_t ticket);

/* Up to @max retired tables go one step further, without waiting. Lock held. */
void tables_settle(struct umbra_mmu *mmu, uint64_t max);
/* All retired tables go all the way. Lock held; dropped to wait, and taken again. */
void tables_drain(struct umbra_mmu *mmu);

#define SETTLE_BUDGET 16 /* tables that an invalidation may clean up on its way */

/* ---- memslot.c, rmap.c ------------------------------------------------------------------------
 */

struct slot *slot_of_gfn(struct umbra_mmu *mmu, uint64_t gfn);
/* The widest leaf that slot and congruence allow at @gfn. */
enum umbra_level slot_max_level(const struct slot *slot, uint64_t gfn);
void slot_log(struct umbra_mmu *mmu, uint64_t gfn, unsigned int level, uint64_t entry);

static inline uint64_t slot_hva(const struct slot *s, uint64_t gfn)
{
	return s->pub.hva.v + ((gfn - s->pub.gfn.v) << UMBRA_PAGE_SHIFT);
}

/*
 * rmap: the gfns that the widened range appears at, slot by slot.
 *
 *	for (struct rmap_iter it = rmap_hva(mmu, r); rmap_next(mmu, &it, &g);)
 */
struct rmap_iter {
	uint64_t start, end;
	uint32_t i; /* of mmu->by_hva, the next to look at */
};
/* The first slot in hva order that can reach @hva. */
uint32_t rmap_first(const struct umbra_mmu *mmu, uint64_t hva);
void rmap_rebuild(struct umbra_mmu *mmu);

static inline struct rmap_iter rmap_hva(const struct umbra_mmu *mmu, struct hva_range r)
{
	r = hva_range_widen(r);
	return (struct rmap_iter){ r.start.v, r.end.v,
				   mmu->nslots > 1 ? rmap_first(mmu, r.start.v) : 0 };
}

static inline bool rmap_next(const struct umbra_mmu *mmu, struct rmap_iter *it, struct gfn_range *g)
{
	while (it->i < mmu->nslots && mmu->by_hva[it->i].start < it->end) {
		const struct slot_by_hva *h = &mmu->by_hva[it->i++];
		const uint64_t start = it->start > h->start ? it->start : h->start;
		const uint64_t end = it->end < h->end ? it->end : h->end;

		if (start >= end)
			continue;
		g->start.v = h->gfn + ((start - h->start) >> UMBRA_PAGE_SHIFT);
		g->end.v = h->gfn + ((end - h->start) >> UMBRA_PAGE_SHIFT);
		return true;
	}
	return false;
}

/* ---- invalidate.c ------------------------------------------------------------------------------
 */

extern const struct umbra_notifier_ops mmu_notifier_ops;

/* What a fault remembers before it resolves. */
struct snapshot {
	uint64_t seq, starts_nr, slots_gen;
	bool open_block; /* an invalidation of the 2M block was open then */
};
bool inv_open(const struct umbra_mmu *mmu, struct hva_range r);
void inv_snapshot(struct umbra_mmu *mmu, struct hva_range block, struct snapshot *s);
/* The check that decides: may a leaf over @leaf be installed, based on what was resolved after @s?
 */
enum inv_verdict { INV_OK, INV_OPEN, INV_PASSED };
enum inv_verdict inv_retry(const struct umbra_mmu *mmu, struct hva_range leaf,
			   const struct snapshot *s);
/* The bracket's bookkeeping alone, for the library's own changes. */
void inv_begin(struct umbra_mmu *mmu, const struct umbra_range *r, const struct zapped *zapped);
void inv_finish(struct umbra_mmu *mmu, const struct umbra_range *r);
/* Lock held. Drops all there is and refuses faults from now on. */
void inv_release(struct umbra_mmu *mmu);

/* ---- age.c, pin.c
 * -------------------------------------------------------------------------------- */

bool mmu_clear_flush_young(struct umbra_notifier *n, struct hva_range r);
bool mmu_clear_young(struct umbra_notifier *n, struct hva_range r);
bool mmu_test_young(struct umbra_notifier *n, struct hva_range r);
bool pin_meets(struct umbra_mmu *mmu, const struct umbra_range *r);
void pin_lose(struct umbra_mmu *mmu, const struct umbra_range *r);
bool pin_in_gfns(const struct umbra_mmu *mmu, struct gfn_range g);

static inline struct umbra_mmu *mmu_of(struct umbra_notifier *n)
{
	return (struct umbra_mmu *)n;
}

/* The exact ranges of @r: calls with i = 0.. until it returns false. */
static inline bool range_nth(const struct umbra_range *r, uint32_t i, struct hva_range *out)
{
	if (r->nr == 0) {
		*out = r->hull;
		return i == 0;
	}
	if (i >= r->nr)
		return false;
	*out = r->v[i];
	return true;
}

#endif
