/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The shadow MMU: x86-64 tables with 4K and 2M leaves for guest memory, coherent with the host's.
 *
 * One struct umbra_mmu is one guest memory (its memslots) with one or more roots over it. It is a
 * consumer on a notifier chain. The contract is that of an in-kernel mmu_notifier client:
 *
 *   snapshot seq -> resolve the host page, unlocked -> lock -> no overlapping invalidation open,
 * none ended since the snapshot? -> install; else retry.
 *
 * Nothing here makes a system call or has a global. Any number of MMUs live in one process.
 * All functions are safe from any thread unless said otherwise, and never from a callback or an op.
 */
#ifndef UMBRA_MMU_H
#define UMBRA_MMU_H

#include <umbra/notifier.h>
#include <umbra/types.h>

struct umbra_mmu;
struct umbra_root;

/* ---- what the MMU needs from its embedder ------------------------------------------------ */

/* Memory slots, as KVM's. Flags of a slot: */
enum umbra_slot_flags {
	UMBRA_SLOT_READONLY = 1 << 0, /* a guest write is answered UMBRA_FAULT_READONLY           */
	UMBRA_SLOT_4K_ONLY = 1 << 1,  /* never a 2M leaf                                          */
	UMBRA_SLOT_LOG = 1 << 2,      /* keep accessed and dirty of dropped leaves (umbra_log_*)  */
};

/*
 * struct umbra_memslot - [gfn, gfn + npages) of the guest is [hva, hva + npages * 4K) of the host.
 * @id: chosen by the caller, unique in the MMU. @hva: 4K aligned. @out: frame the first leaf maps
 * to (KVM-physical frame for tables a CPU walks, hva >> 12 for a mirror).
 * gfn ranges of two slots never overlap; hva ranges may (aliases).
 */
struct umbra_memslot {
	uint32_t id;
	uint32_t flags; /* enum umbra_slot_flags */
	gfn_t gfn;
	uint64_t npages;
	hva_t hva;
	pfn_t out;
};

#define UMBRA_HOST_PFN_UNKNOWN (~0ULL)

/* What is asked of the embedder's resolve op. @hva is 4K aligned. */
struct umbra_resolve_req {
	hva_t hva;
	gfn_t gfn;
	uint32_t access; /* enum umbra_access of the fault                            */
	uint32_t slot_id, slot_flags; /* of the memslot */
	enum umbra_level
		max_level; /* 2M only if slot and congruence allow it, and no 4K table is there */
};

/*
 * What it answers. @level: how the host maps @hva (2M only if the aligned 2M block is PMD-mapped or
 * hugetlb).
 * @writable: a write would change neither the frame nor be refused. @host_pfn: of the first 4K
 * page of the leaf, or UNKNOWN.
 */
struct umbra_resolved {
	enum umbra_level level;
	bool writable;
	uint64_t host_pfn;
};

/*
 * One changed entry whose old value a CPU may have cached; or, with @table, a whole table page that
 * was unlinked and is cleared: none of its old entries may be remembered.
 */
struct umbra_flush_entry {
	uint64_t index; /* table page in the window * 512 + slot of the entry: where it is */
	uint64_t addr;  /* input address it translated, bytes */
	uint8_t level;  /* level of the table that holds it */
	bool table;     /* the whole page, not one entry */
};

/*
 * struct umbra_mmu_ops - called with the ctx of the config.
 *
 * @table_alloc: index of a zeroed 4K page in the window, or -ENOSPC. mmu lock held: no sleep, no
 * call into the MMU. @table_free: gives it back, all zero; nothing caches it any more. mmu lock
 * held.
 * @resolve: find (fault in, break copy-on-write of) the host page. No lock held: may sleep, may run
 *   invalidations. 0; -EAGAIN (retry later); -EFAULT (nothing mapped there); -EACCES (host
 *   mapping forbids the access); -EHWPOISON; -ENOMEM; anything else is passed through.
 * @flush_queue: remember that @e was changed in memory (absent, lower rights, other level, A/D
 * cleared). mmu lock held; must not fail. @flush_queue_run: the same for @n consecutive entries of one
 * table, of which @first is the first; each next one stands one place further and translates the
 * next 4K. NULL: @flush_queue is called for each. @flush_post: what was queued is complete; returns a
 * ticket, growing with time. mmu lock held. @flush_wait: returns 0 once no vCPU can use an old
 * value of anything up to @ticket; with @may_wait false it starts what is needed and answers
 * -EAGAIN if it is not so yet. No lock held.
 * @flush_done: is everything up to @ticket out of use? mmu lock held: no sleep.
 * @pin_lost: the host took a pinned page (@gfn, 4K) all the same. mmu lock held. May be NULL.
 */
struct umbra_mmu_ops {
	int (*table_alloc)(void *ctx, uint64_t *index);
	void (*table_free)(void *ctx, uint64_t index);
	int (*resolve)(void *ctx, const struct umbra_resolve_req *req, struct umbra_resolved *res);
	void (*flush_queue)(void *ctx, const struct umbra_flush_entry *e);
	void (*flush_queue_run)(void *ctx, const struct umbra_flush_entry *first, uint32_t n);
	uint64_t (*flush_post)(void *ctx);
	int (*flush_wait)(void *ctx, uint64_t ticket, bool may_wait);
	bool (*flush_done)(void *ctx, uint64_t ticket);
	void (*pin_lost)(void *ctx, gfn_t gfn, const struct umbra_range *r);
};

enum umbra_mmu_flags {
	UMBRA_MMU_RECORD_PFN =
		1 << 0, /* remember the host frame of every leaf, for umbra_audit() */
};

/*
 * struct umbra_mmu_config
 * @window: table pages live in one linear window: page i is at @window + i * 4096 for us and at
 *   @window_phys + i * 4096 for the CPU that walks. 4K aligned both; @window_pages at most 2^28.
 * @first_seq: where the sequence starts (tests start just below 2^31, 2^32, 2^64); 0 is usual.
 */
struct umbra_mmu_config {
	const struct umbra_os *os;
	const struct umbra_mmu_ops *ops;
	void *ctx;
	void *window;
	uint64_t window_phys;
	uint64_t window_pages;
	mmu_seq_t first_seq;
	uint32_t flags; /* enum umbra_mmu_flags */
};

/*
 * umbra_mmu_create - an MMU without slots and roots, not yet on a chain.
 * Returns: 0, -EINVAL, -ENOMEM.   Pairs with: umbra_mmu_destroy(), once off its chain and
 * no vCPU runs on its roots.
 */
int umbra_mmu_create(struct umbra_mmu **mmu, const struct umbra_mmu_config *config);
void umbra_mmu_destroy(struct umbra_mmu *mmu);

/* The consumer to put on a chain with umbra_chain_register(). Owned by the MMU. */
struct umbra_notifier *umbra_mmu_notifier(struct umbra_mmu *mmu);

/* ---- roots ---------------------------------------------------------------------------------- */

/* What a root translates. Composed roots (guest-virtual) find their leaves by rmap; not built yet:
 * -ENOTSUP. */
enum umbra_root_kind {
	UMBRA_ROOT_DIRECT, /* guest-physical, identity of gfn and table index; a CPU walks it */
	UMBRA_ROOT_MIRROR, /* the same shape, walked by nobody: no flush is asked for its changes */
	UMBRA_ROOT_COMPOSED, /* guest-virtual, composed with the guest's own tables */
};

/*
 * umbra_root_create - a four-level table over the slots of @mmu.
 * Returns: 0, -ENOSPC (window full), -ENOTSUP, -ESHUTDOWN (released).
 * Pairs with: umbra_root_destroy(), when no CPU uses it.
 */
int umbra_root_create(struct umbra_mmu *mmu, enum umbra_root_kind kind, struct umbra_root **root);
void umbra_root_destroy(struct umbra_root *root);

/* The MMU that the root belongs to. */
struct umbra_mmu *umbra_root_mmu(const struct umbra_root *root);

/* The physical address to load as CR3. */
uint64_t umbra_root_phys(const struct umbra_root *root);

/*
 * umbra_root_reserve - give top-level entry @index (256..511) to the embedder, with value @entry.
 * The MMU neither reads nor changes it; guest memory can never reach there.
 * Returns: 0, -EINVAL.
 */
int umbra_root_reserve(struct umbra_root *root, unsigned int index, uint64_t entry);

/* ---- memslots ------------------------------------------------------------------------------ */

/*
 * umbra_memslot_add - Returns: 0; -EINVAL (empty, misaligned, overflow, beyond 2^47); -EEXIST
 * (overlaps a slot or the id is taken); -ENOMEM; -ESHUTDOWN.   Pairs with: umbra_memslot_remove().
 */
int umbra_memslot_add(struct umbra_mmu *mmu, const struct umbra_memslot *slot);

/* Drops every leaf of the slot and waits until no vCPU uses one. Returns: 0, -ENOENT, -EBUSY
 * (pinned). */
int umbra_memslot_remove(struct umbra_mmu *mmu, uint32_t id);

/* The slot appears at @gfn instead, same hva and size. Returns: as add and remove; on error it
 * stays. */
int umbra_memslot_move(struct umbra_mmu *mmu, uint32_t id, gfn_t gfn, pfn_t out);

/* Copies the slot holding @gfn. Returns: 0, -ENOENT. */
int umbra_memslot_find(struct umbra_mmu *mmu, gfn_t gfn, struct umbra_memslot *slot);

/* gpa -> hva. Returns: 0, -ENOENT. */
int umbra_gpa_to_hva(struct umbra_mmu *mmu, gpa_t gpa, hva_t *hva);

/* hva -> every gpa that it appears at. Returns: how many there are; at most @max are written. */
unsigned int umbra_hva_to_gpas(struct umbra_mmu *mmu, hva_t hva, gpa_t *gpas, unsigned int max);

/* ---- faults --------------------------------------------------------------------------------- */

enum umbra_fault_result {
	UMBRA_FAULT_INSTALLED, /* a leaf was installed or given more rights: run again            */
	UMBRA_FAULT_SPURIOUS,  /* the present leaf allows the access already: run again           */
	UMBRA_FAULT_RETRY,     /* an invalidation is open or came between: ask again, later       */
	UMBRA_FAULT_NO_SLOT,   /* no memslot there: MMIO or a wild access                         */
	UMBRA_FAULT_READONLY,  /* a write to a READONLY slot                                      */
	UMBRA_FAULT_DENIED,    /* the host's mapping forbids this access (mprotect)               */
	UMBRA_FAULT_BAD_HOST,  /* nothing is mapped at the hva, or it is poisoned; @error says which
				*/
	UMBRA_FAULT_NO_MEMORY, /* no table page to be had                                         */
	UMBRA_FAULT_RELEASED,  /* after release                                                   */
	UMBRA_FAULT_ERROR,     /* resolve failed otherwise: @error                                */
};
const char *umbra_fault_name(enum umbra_fault_result result);

struct umbra_fault {
	/* in */
	gpa_t gpa;
	uint32_t access; /* enum umbra_access */
	/* out */
	enum umbra_level level; /* of the leaf now there (INSTALLED, SPURIOUS) */
	bool writable;
	hva_t hva; /* of the 4K page, if there is a slot */
	int error; /* negative errno of resolve, or 0 */
};

/*
 * umbra_fault - one attempt to make @f->access at @f->gpa possible.
 * Context: any thread with no lock held; calls the resolve op, which may sleep.
 * RETRY is answered, never looped on: the caller first serves what it owes (shootdowns), then asks
 * again.
 */
enum umbra_fault_result umbra_fault(struct umbra_root *root, struct umbra_fault *f);

/* What a walk finds. */
struct umbra_translation {
	pfn_t pfn; /* of the 4K page asked for, inside a 2M leaf too */
	enum umbra_level level;
	bool writable, accessed, dirty;
};

/*
 * umbra_lookup - walk @root for @gpa, without a lock.
 * What it says was true at one moment during the call; after an invalidate_range_start returned,
 * no lookup that begins then sees what it dropped.
 * Returns: 0, -ENOENT.
 */
int umbra_lookup(struct umbra_root *root, gpa_t gpa, struct umbra_translation *t);

/* ---- changes by the embedder -------------------------------------------------------------- */

/* Drops the leaves of @r in every root; returns when no vCPU uses one. Pins do not forbid it: pages
 * stay. */
void umbra_zap(struct umbra_mmu *mmu, struct gfn_range r);

/* Drops everything: unlinks at the top in O(1) of the memory's size, frees later (umbra_reclaim).
 */
void umbra_zap_all(struct umbra_mmu *mmu);

/*
 * umbra_reclaim - free up to @max tables that were unlinked whole; accessed and dirty of their
 * leaves go to the log. Returns: how many are left.
 */
uint64_t umbra_reclaim(struct umbra_mmu *mmu, uint64_t max);

/* Takes write permission from the leaves of @r; dirty is kept. A later write faults. */
void umbra_write_protect(struct umbra_mmu *mmu, struct gfn_range r);

/*
 * umbra_split - 2M leaves of @r become 512 x 4K with the same frames, rights, accessed and dirty.
 * Returns: how many were split, or -ENOSPC if a table was missing (those before it are split).
 */
int64_t umbra_split(struct umbra_mmu *mmu, struct gfn_range r);

/*
 * umbra_collapse - full tables of 512 x 4K in @r become one 2M leaf, where slot, congruence, equal
 * rights and the host (asked by resolve) allow it; accessed and dirty are ORed. Context: may sleep.
 * Returns: how many were collapsed.
 */
int64_t umbra_collapse(struct umbra_mmu *mmu, struct gfn_range r);

/* ---- accessed and dirty ------------------------------------------------------------------- */

/*
 * umbra_log_collect - which pages of slot @id were accessed and written since the last collect.
 * @accessed, @dirty: one bit a 4K page, bit n of word n/64; npages bits; may be NULL. Overwritten.
 * A 2M leaf stands for its 512 pages. Bits in live leaves are cleared and flushed, so the next
 * access is seen; only bits asked for are cleared. The slot must have UMBRA_SLOT_LOG for exactness
 * over zaps. Returns: 0, -ENOENT.
 */
int umbra_log_collect(struct umbra_mmu *mmu, uint32_t id, uint64_t *accessed, uint64_t *dirty);

/* ---- pins ----------------------------------------------------------------------------------- */

struct umbra_pin {
	/* private to the MMU from pin to unpin */
	struct umbra_pin *next, **pprev;
	struct gfn_range gfns;
	bool lost;
};

/*
 * umbra_pin - faults @npages from @gfn in (write access) and holds them: sources in this process
 * refuse, with -EBUSY, to relocate or reclaim them until unpinned. When the host takes one anyway
 * it is reported by ops->pin_lost and in @pin->lost.
 * @pin: the caller's, untouched until unpin.
 * Returns: 0; -EAGAIN (invalidations kept coming: try again); -EFAULT, -EACCES, -ENOMEM,
 * -ESHUTDOWN. Pairs with: umbra_unpin(), which returns whether the pages stayed.
 */
int umbra_pin(struct umbra_root *root, gfn_t gfn, uint64_t npages, struct umbra_pin *pin);
bool umbra_unpin(struct umbra_mmu *mmu, struct umbra_pin *pin);

/* ---- seeing -----------------------------------------------------------------------------------
 */

struct umbra_leaf {
	gfn_t gfn; /* first */
	enum umbra_level level;
	pfn_t pfn; /* first */
	bool writable, accessed, dirty;
	hva_t hva;         /* of the first page */
	uint64_t host_pfn; /* recorded at install, or UMBRA_HOST_PFN_UNKNOWN */
	uint32_t slot_id;
};

/*
 * umbra_for_each_leaf - calls @fn for every present leaf meeting @r, ascending; absent subtrees are
 * skipped. Context: the mmu lock is held over all calls; @fn must not call the MMU. A non-zero
 * return of @fn stops and is returned.
 */
int umbra_for_each_leaf(struct umbra_root *root, struct gfn_range r,
			int (*fn)(void *arg, const struct umbra_leaf *leaf), void *arg);

/* Is an invalidation that meets @r open? For checkers, called by an umbra_for_each_leaf callback or
 * anywhere. */
bool umbra_range_open_hint(struct umbra_mmu *mmu, struct hva_range r);

/* One invalidation. */
struct umbra_event {
	uint64_t nr;   /* 1 is the first of this MMU */
	mmu_seq_t seq; /* when it ended; when it began, while it is open */
	bool open;
	struct hva_range hva;
	enum umbra_cause cause;
	enum umbra_source source;
	int32_t who;
	uint32_t flags; /* enum umbra_range_flags, as it was announced */
	uint32_t zapped_4k, zapped_2m;
};

/*
 * umbra_history - the newest invalidations that meet @r, newest first. The last UMBRA_HISTORY are
 * kept. Returns: how many were written.
 */
#define UMBRA_HISTORY 256
unsigned int umbra_history(struct umbra_mmu *mmu, struct hva_range r, struct umbra_event *events,
			   unsigned int max);

/* clang-format off */
#define UMBRA_STATS(X)                                                                             \
	X(faults)	 /* umbra_fault calls                                                    */ \
	X(installed_4k)	 /* leaves installed                                                     */ \
	X(installed_2m)                                                                             \
	X(upgraded)	 /* leaves given write permission                                        */ \
	X(spurious)	 /* faults that found the leaf good                                      */ \
	X(retried_open)	 /* faults refused because an invalidation was open                      */ \
	X(retried_seq)	 /* ... because one had ended since the snapshot                         */ \
	X(zapped_4k)	 /* leaves dropped, for whatever reason                                  */ \
	X(zapped_2m)                                                                                \
	X(protected)	 /* leaves that lost write permission                                    */ \
	X(split)	 /* 2M leaves split                                                      */ \
	X(collapsed)	 /* tables collapsed                                                     */ \
	X(aged)		 /* leaves whose accessed bit was cleared                                */ \
	X(young_callouts)/* clear_flush_young, clear_young, test_young                            */ \
	X(starts)	 /* invalidate_range_start                                               */ \
	X(ends)                                                                                     \
	X(refused)	 /* starts answered -EAGAIN or -EBUSY                                    */ \
	X(zap_alls)                                                                                 \
	X(flushes)	 /* posts that had something in them                                     */ \
	X(flushed_entries)                                                                          \
	X(tables_allocated)                                                                         \
	X(tables_freed)                                                                             \
	X(pins)                                                                                     \
	X(pins_lost)
/* clang-format on */

struct umbra_stats {
#define UMBRA_STATS_FIELD(name) uint64_t name;
	UMBRA_STATS(UMBRA_STATS_FIELD)
#undef UMBRA_STATS_FIELD
	/* gauges */
	uint64_t leaves_4k, leaves_2m; /* present now, all roots */
	uint64_t tables;               /* table pages in use, roots and unlinked ones included */
	uint64_t tables_unlinked;      /* of these, waiting for umbra_reclaim() */
	uint64_t slots;
	mmu_seq_t seq;
};
void umbra_mmu_stats(struct umbra_mmu *mmu, struct umbra_stats *stats);

/*
 * umbra_check - every invariant of the tables (docs/invariants.md), one line to @report for each
 * violation, which begins with its number ("I7: ..."). Context: any time; takes the mmu lock.
 * Returns: number of violations.
 */
unsigned int umbra_check(struct umbra_mmu *mmu, void (*report)(void *arg, const char *line),
			 void *arg);

#endif
