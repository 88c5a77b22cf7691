/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The notifier chain: who is told when the host's page tables are about to change, and how.
 *
 * The semantics are those of Linux's mmu_notifier. Sources (own calls, userfaultfd, the kernel
 * module) call the umbra_invalidate_* and umbra_*young functions; consumers (the shadow MMU, a
 * device TLB, a remote process) register a struct umbra_notifier.
 */
#ifndef UMBRA_NOTIFIER_H
#define UMBRA_NOTIFIER_H

#include <umbra/types.h>

/* Where an invalidation came from. Each has its own counters; see umbra/events.h for promises. */
enum umbra_source {
	UMBRA_SOURCE_OWN,        /* our own system calls, exactly bracketed          */
	UMBRA_SOURCE_UFFD,       /* userfaultfd events                               */
	UMBRA_SOURCE_MODULE,     /* kernel callouts forwarded by the module          */
	UMBRA_SOURCE_TRACEPOINT, /* KVM's tracepoints: a witness, never a source     */
	UMBRA_SOURCE_CORE,       /* the library itself: slot changes, collapse       */
	UMBRA_SOURCE_TEST,       /* synthetic, from tests and fuzzers                */
	UMBRA_SOURCE_NR
};

/* Why. For statistics and for people: correctness never depends on it (SEMANTICS A.2). */
enum umbra_cause {
	UMBRA_CAUSE_UNKNOWN,
	UMBRA_CAUSE_UNMAP,      /* munmap, mmap over, mremap's old range            */
	UMBRA_CAUSE_DISCARD,    /* MADV_DONTNEED                                    */
	UMBRA_CAUSE_FREE,       /* MADV_FREE                                        */
	UMBRA_CAUSE_REMOVE,     /* MADV_REMOVE, hole punch, truncate                */
	UMBRA_CAUSE_PROTECT,    /* mprotect, userfaultfd write-protect              */
	UMBRA_CAUSE_REMAP,      /* mremap                                           */
	UMBRA_CAUSE_SWAP,       /* MADV_PAGEOUT, reclaim                            */
	UMBRA_CAUSE_COLLAPSE,   /* 512 x 4K became one 2M page: all frames change   */
	UMBRA_CAUSE_SPLIT,      /* a host hugepage is mapped by 4K now              */
	UMBRA_CAUSE_FORK,       /* private pages became copy-on-write               */
	UMBRA_CAUSE_COW,        /* a write gave a page a new frame                  */
	UMBRA_CAUSE_MIGRATE,    /* moved to another frame                           */
	UMBRA_CAUSE_MERGE,      /* KSM                                              */
	UMBRA_CAUSE_SOFT_DIRTY, /* clear_refs 4: the whole address space            */
	UMBRA_CAUSE_GUARD,      /* MADV_GUARD_INSTALL, poison                       */
	UMBRA_CAUSE_MEMSLOT,    /* a memslot was removed or moved                   */
	UMBRA_CAUSE_LOST,       /* a source may have lost an event: drop everything */
	UMBRA_CAUSE_RELEASE,    /* the address space ends                           */
	UMBRA_CAUSE_NR
};

/* Short lower-case names for tables, JSON and logs ("uffd", "discard"); never NULL. */
const char *umbra_source_name(enum umbra_source source);
const char *umbra_cause_name(enum umbra_cause cause);

enum umbra_range_flags {
	UMBRA_RANGE_BLOCKABLE = 1 << 0, /* the consumer may sleep */
	UMBRA_RANGE_FORCED = 1 << 1, /* the source cannot be refused: -EAGAIN and -EBUSY are void */
	UMBRA_RANGE_RELOCATES =
		1 << 2, /* moves or frees pages: refused with -EBUSY while one is pinned */
	/* For statistics and for people, as the cause is. Of the kernel's own callouts: */
	UMBRA_RANGE_RECLAIM = 1 << 3, /* it frees memory, in whoever's context              */
	UMBRA_RANGE_KTHREAD = 1 << 4, /* by a thread of its own: kswapd, khugepaged, ksmd   */
	UMBRA_RANGE_NO_WAIT = 1 << 5, /* its caller could not wait. We could: it is over    */
	UMBRA_RANGE_DIRECT = 1 << 6,  /* a call that another source announced, all of it    */
};

#define UMBRA_WHO_KERNEL (-1) /* a kernel thread, or reclaim on whoever's behalf */

/*
 * struct umbra_range - what is about to change.
 * @hull: host-virtual bytes, any alignment; consumers widen it outward to whole pages.
 * @v, @nr: for a batch, the exact ranges inside @hull (sorted or not); @nr 0 means just @hull.
 *   Owned by the caller, unchanged from start to end. While a batch is open, installs are
 *   refused over the whole hull; but only what meets one of @v is dropped.
 * @flags: enum umbra_range_flags. @who: thread id of the causer, 0 when unknown or of another
 *   process, UMBRA_WHO_KERNEL.
 */
struct umbra_range {
	struct hva_range hull;
	const struct hva_range *v;
	uint32_t nr;
	uint32_t flags;
	enum umbra_cause cause;
	enum umbra_source source;
	int32_t who;
};

struct umbra_notifier;

/*
 * struct umbra_notifier_ops - what a consumer implements; NULL members are skipped.
 *
 * @invalidate_range_start: on return 0 the consumer uses nothing of the range and establishes
 * nothing in it until the matching end. May sleep only if the range is BLOCKABLE; else it may
 * return -EAGAIN. -EBUSY: something in a RELOCATES range is pinned. On error the consumer gets no
 * end. A FORCED range is never refused: an error from the consumer of one is a bug and stops the
 * program.
 * @invalidate_range_end: counted, not matched with its start by range or nesting.
 * @invalidate_range: a start and its end in one, of a change that is over; it cannot be refused. NULL: both are called. Who
 * has it has both, too: beside other consumers, or while one joins, they are what is called.
 * @clear_flush_young, @clear_young, @test_young: was anything in @r accessed since it was last
 * cleared? Never sleep, never invalidate.
 * @release: the address space is gone: drop all, establish nothing ever again. Idempotent.
 */
struct umbra_notifier_ops {
	int (*invalidate_range_start)(struct umbra_notifier *n, const struct umbra_range *r);
	void (*invalidate_range_end)(struct umbra_notifier *n, const struct umbra_range *r);
	void (*invalidate_range)(struct umbra_notifier *n, const struct umbra_range *r);
	bool (*clear_flush_young)(struct umbra_notifier *n, struct hva_range r);
	bool (*clear_young)(struct umbra_notifier *n, struct hva_range r);
	bool (*test_young)(struct umbra_notifier *n, struct hva_range r);
	void (*release)(struct umbra_notifier *n);
};

/*
 * A consumer embeds this; it stays valid, and as it is, until umbra_chain_unregister() has returned.
 * @deaf: bits (1U << enum umbra_source) of sources whose starts and ends it is not told of. 0 for whoever keeps translations;
 * for those who count or record, who then cost the other sources nothing. Of young and release everybody is told.
 */
struct umbra_notifier {
	const struct umbra_notifier_ops *ops;
	const char *name;
	uint32_t deaf;
};

/*
 * struct umbra_os - what the core needs from outside, so that it makes no system call itself.
 * @alloc: zeroed memory or NULL. @free: @bytes as given to alloc.
 * @mutex_*: a mutex that may be waited for; not recursive. @relax: one turn of a wait loop.
 * @wait, @wake: @wait returns when @wake is called for the same word after it began, at once if *@word is not @value
 * then, or for no reason. @wake may be given a word whose memory was freed meanwhile: it must not look at it.
 * Both may be NULL: then callbacks that sleep are waited for by turns of @relax.
 * @bug: one of our own invariants is broken; must not return.
 */
struct umbra_os {
	void *(*alloc)(size_t bytes);
	void (*free)(void *p, size_t bytes);
	void *(*mutex_create)(void);
	void (*mutex_destroy)(void *mutex);
	void (*mutex_lock)(void *mutex);
	bool (*mutex_trylock)(void *mutex);
	void (*mutex_unlock)(void *mutex);
	void (*relax)(void);
	void (*wait)(uint32_t *word, uint32_t value);
	void (*wake)(uint32_t *word);
	void (*bug)(const char *what) __attribute__((noreturn));
};

/* The ordinary one: malloc, futexes, sched_yield, a message and abort(). In shadow/events.
 */
extern const struct umbra_os umbra_os_posix;

#define UMBRA_CHAIN_MAX 16 /* consumers on one chain */

struct umbra_chain;

/*
 * umbra_chain_create - a chain without consumers, one for each address space.
 * Returns: 0, -ENOMEM.   Pairs with: umbra_chain_destroy(), when no consumer is registered.
 */
int umbra_chain_create(struct umbra_chain **chain, const struct umbra_os *os);
void umbra_chain_destroy(struct umbra_chain *chain);

/*
 * umbra_chain_register - add a consumer. If invalidations are open, it is told of them (one start
 * for each, over the union of what is open) before this returns, so that its counts balance.
 * An end that comes before its start was told is told after it, by this call. Meanwhile others may
 * begin and end: callbacks of @n come from their threads before this returns.
 * Of an umbra_invalidate_range() under way it is not told: what it asks the host from now on is new. What another
 * consumer answers need not be, until that one has been told.
 * Context: any thread, not from a callback, no lock held that a callback of @n wants.
 * Returns: 0, -ENOSPC, -EALREADY.
 * Pairs with: umbra_chain_unregister().
 */
int umbra_chain_register(struct umbra_chain *chain, struct umbra_notifier *n);

/*
 * umbra_chain_unregister - no callback of @n runs after the return. Calls its release() first.
 * Context: any thread, not from a callback; waits for callbacks in flight.
 */
void umbra_chain_unregister(struct umbra_chain *chain, struct umbra_notifier *n);

/*
 * umbra_invalidate_start - the host is about to change @r.
 *
 * On return 0 no consumer uses a translation of @r, and none is established until the matching end.
 * Calls nest, overlap and come from many threads.
 *
 * Context: any thread; may wait if BLOCKABLE.
 * Returns: 0; -EAGAIN for a non-blockable range that somebody would have to wait for; -EBUSY for a
 * RELOCATES range with a pinned page. On error nothing is open. A FORCED range always succeeds; if it is not BLOCKABLE, a
 * use under way may end a moment later.
 * Pairs with: umbra_invalidate_end().
 */
int umbra_invalidate_start(struct umbra_chain *chain, const struct umbra_range *r);
void umbra_invalidate_end(struct umbra_chain *chain, const struct umbra_range *r);

/*
 * umbra_invalidate_range - the host has changed @r, and is done with it: a start and its end at once.
 *
 * For sources that hear of a change afterwards. A FORCED range: what has happened cannot be refused. On return no consumer
 * uses a translation from before; if it is not BLOCKABLE none has one left, but a use under way may take a moment to end.
 * Who registers meanwhile need not be told, for he asks the host as it is now.
 *
 * Context: any thread; may wait if BLOCKABLE.
 */
void umbra_invalidate_range(struct umbra_chain *chain, const struct umbra_range *r);

/* The OR of all consumers' answers. Context: any thread; never sleep, never invalidate. */
bool umbra_clear_flush_young(struct umbra_chain *chain, struct hva_range r);
bool umbra_clear_young(struct umbra_chain *chain, struct hva_range r);
bool umbra_test_young(struct umbra_chain *chain, struct hva_range r);

/* The address space ends: every consumer's release(). Idempotent, may race with anything above. */
void umbra_release(struct umbra_chain *chain);

/*
 * Invalidations started and ended by @source since creation; begun - ended are open. One that was over when it was told
 * never is: it counts as both, from before the consumers are called.
 */
struct umbra_chain_counts {
	uint64_t begun, ended;
};
struct umbra_chain_counts umbra_chain_counts(struct umbra_chain *chain, enum umbra_source source);

#endif
