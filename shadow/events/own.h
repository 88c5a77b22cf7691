/* SPDX-License-Identifier: BSD-2-Clause */
/* Private to shadow/events: own calls under way, the regions, and the plan of what a call brackets.
 */
#ifndef SHADOW_EVENTS_OWN_H
#define SHADOW_EVENTS_OWN_H

#include <pthread.h>
#include <stdatomic.h>
#include <umbra/events.h>
#include "shadow/events/uapi.h"

#define OWN_CALLS 64 /* own calls under way at once that the uffd reader can know as ours */

/*
 * One own call under way, entered after its bracket was opened and left before that is closed. @tid
 * 0: free. @end is stored last when it is entered, and first when it is left; a reader looks at the
 * rest only if it is not 0.
 * @v, @nr: what it raises REMOVEs for, in this order; the caller's. @start, @end: their hull, empty if there
 * is nothing. @watched: own->watched when it began.
 * Under the reader's batch lock: @taken REMOVEs were taken as this call's, the last of them from range
 * @at, ending at @upto. @doubted: no longer, and no more will be.
 */
struct own_call {
	_Atomic int tid;
	_Atomic uint64_t start, end, watched;
	const struct hva_range *v;
	uint32_t nr, at, taken;
	uint64_t upto;
	bool doubted;
};

/* A region, and which file it maps whatever descriptor is used later. */
struct own_region {
	struct umbra_region pub;
	dev_t dev;
	ino_t ino;
};

struct umbra_own {
	/* What every call looks at: a cache line of its own. */
	_Alignas(64) struct umbra_chain *chain;
	struct umbra_hostmap *map;
	_Atomic(struct umbra_uffd *) uffd; /* reads the events of our own calls, or NULL */
	_Atomic uint64_t watched;          /* grows with every registration at @uffd */
	_Atomic uint32_t planners;         /* see @planning: both phases */
	_Atomic bool torn;  /* mremap may have moved a part of a folio away from the rest */
	_Atomic bool files; /* there is, or was, a region of a file that may be mapped by 2M */

	_Alignas(64) struct own_call calls[OWN_CALLS];

	/*
	 * Calls between the making of their plan and the return from the system call, in two phases; see
	 * own_grace(). The lock is held over no bracket, and over no system call but growth in place.
	 */
	pthread_mutex_t plans_lock;
	pthread_cond_t plans_over;
	uint32_t planning[2], phase;

	pthread_mutex_t regions_lock; /* innermost: never held over a call or a bracket */
	struct own_region *regions;   /* sorted by hva, disjoint */
	uint32_t nregions, regions_cap;
};

/*
 * What a call changes. Up to PLAN_INLINE ranges without an allocation: every call but a fork, a
 * batch or a punched file has at most two. No range: nothing is bracketed.
 */
#define PLAN_INLINE 4
struct plan {
	struct hva_range *v;
	uint32_t nr, cap;
	enum umbra_cause cause;
	bool relocates;
	uint32_t calls; /* collapse: so many ranges from the first are what is asked for */
	struct hva_range
		hold; /* closed to installs while the call is made, though nothing in it is dropped */
	struct hva_range few[PLAN_INLINE];
};

void plan_init(struct plan *plan, enum umbra_cause cause, bool relocates);
void plan_fini(struct plan *plan);
/* Empty ranges are left out, touching ones joined with the last. Returns: 0, -ENOMEM. */
int plan_add(struct plan *plan, struct hva_range r);
/* Is @r wholly within one range of @plan? */
bool plan_covers(const struct plan *plan, struct hva_range r);

/* The 2M pages of files, or what may be one, that @r covers in part. Returns: 0, -ENOMEM. */
int plan_file_edges(struct umbra_own *own, struct hva_range r, struct plan *plan);

/* What madvise(@r, @advice) changes. Returns: 0, -ENOMEM. */
int plan_madvise(const struct umbra_own *own, struct hva_range r, int advice, struct plan *plan);
/* Present pages that a write moves: shared after a fork, the zero page, private file pages. Returns: 0, -ENOMEM. */
int plan_populate_write(const struct umbra_own *own, struct hva_range r, struct plan *plan);
/* The call, with @r held and @planned open; announces what it changed besides. Returns: 0, -errno of the call. */
int own_populate(struct umbra_own *own, const struct plan *planned, struct hva_range r);
/* Cause and relocates alone, for advice that changes exactly its range; false for other advice. */
static inline bool plan_is_exact(int advice, enum umbra_cause *cause, bool *relocates)
{
	*relocates = true;
	switch (advice) {
	case MADV_DONTNEED:
	case MADV_DONTNEED_LOCKED: *cause = UMBRA_CAUSE_DISCARD; return true;
	case MADV_UNMERGEABLE: *cause = UMBRA_CAUSE_COW; return true;
	case MADV_GUARD_INSTALL: *cause = UMBRA_CAUSE_GUARD; return true;
	default: return false;
	}
}

/* @r widened to all folios that it cuts, as far as they may reach: everything if they are torn. */
struct hva_range own_widen_folios(const struct umbra_own *own, struct hva_range r);
/* The bytes of @from were moved to @to: of a folio perhaps, not all of it. */
void own_moved(struct umbra_own *own, struct hva_range from, hva_t to);

/* What advice to @r changes in other regions of the files mapped there. Returns: 0, -ENOMEM. */
int region_plan_advice(const struct umbra_own *own, struct hva_range r, int advice,
		       struct plan *plan);
/* Ranges of regions that map bytes [@start, @end) of @fd. Returns: 0, -ENOMEM. */
int region_plan_file(struct umbra_own *own, int fd, uint64_t start, uint64_t end,
		     struct plan *plan);
/* Private regions that fork would make copy-on-write. */
int region_plan_fork(struct umbra_own *own, struct plan *plan);
/* Is a part of @r in a region of a file that may be mapped by 2M? */
bool region_has_file(struct umbra_own *own, struct hva_range r);
/* Is @hva in a region? @page: the bytes of its pages if they are hugetlb's, 0 otherwise. */
bool region_page(struct umbra_own *own, hva_t hva, uint64_t *page);
/* Bytes of a page of @fd if it is a file of hugetlb, 0 otherwise. */
uint64_t own_file_hugepage(int fd);
/*
 * What a call did to the regions. Room is made by region_reserve() before the call; should it not
 * do after all, a region says too much rather than too little.
 */
int region_reserve(struct umbra_own *own);
void region_set_dontfork(struct umbra_own *own, struct hva_range r, bool dontfork);
/* Nothing of @r is a region any more; with @with, what was becomes a part of @with. */
void region_replace(struct umbra_own *own, struct hva_range r, const struct umbra_region *with);
/*
 * What lay in @from is now at @to (a byte of @from at the same distance from @to.start), cut or
 * grown to its length. @stays: the mapping at @from is still one, if an empty one.
 */
void region_move(struct umbra_own *own, struct hva_range from, struct hva_range to, bool stays);
/* The first part of a region that lies in @within. Returns: is there one? */
bool region_next(struct umbra_own *own, struct hva_range within, struct hva_range *piece);

static inline void *hva_ptr(hva_t hva)
{
	return (void *)(uintptr_t)hva.v;
}

static inline uint64_t hva_range_len(struct hva_range r)
{
	return r.end.v > r.start.v ? r.end.v - r.start.v : 0;
}

/* @hull, and from now on @r too. */
static inline void hva_range_join(struct hva_range *hull, struct hva_range r)
{
	if (hva_range_empty(r))
		return;
	if (hva_range_empty(*hull))
		*hull = r;
	if (r.start.v < hull->start.v)
		hull->start = r.start;
	if (r.end.v > hull->end.v)
		hull->end = r.end;
}

/*
 * A plan holds until the system call only if nothing that it was made from changes meanwhile. Faults
 * are the plan's to foresee; the changes by other own calls (a hugepage collapsed or moved in, a region
 * moved, a folio cut) are waited out from the other side: a call that changed something does not close
 * its bracket before every call that was planned before the change has come through. Until then nothing
 * is installed where the change was, so there is no leaf that those calls could leave behind.
 */
unsigned int own_plan_begin(struct umbra_own *own);
void own_plan_end(struct umbra_own *own, unsigned int phase);
void own_grace_wait(struct umbra_own *own);

/* With the bracket of a change open and no plan of one's own under way. */
static inline void own_grace(struct umbra_own *own)
{
	/* Sequentially consistent: who begins to plan after this load looks after the change. */
	if (atomic_load(&own->planners))
		own_grace_wait(own);
}

/* A bracket from a plan, or none if the plan is empty. */
struct bracket {
	struct umbra_range range, more;
	struct own_call *call;
	struct plan again; /* behind @more */
	bool open, more_open, cut;
};

/* gettid is a system call, a fifth of a small madvise. A forked child has another tid: it asks again. */
extern _Thread_local int own_cached_tid __attribute__((visibility("hidden")));
void own_tid_init(void);
int own_tid_ask(void);

static inline int own_tid(void)
{
	const int tid = own_cached_tid;

	return tid ? tid : own_tid_ask();
}

/* The range of a bracket of ours round @hull. */
static inline struct umbra_range bracket_of(struct hva_range hull, enum umbra_cause cause,
					    bool relocates)
{
	return (struct umbra_range){
		.hull = hull,
		.flags = UMBRA_RANGE_BLOCKABLE | (relocates ? UMBRA_RANGE_RELOCATES : 0U),
		.cause = cause,
		.source = UMBRA_SOURCE_OWN,
		.who = own_tid(),
	};
}

/*
 * Opens what @plan says; @plan and @removes stay as they are until bracket_end(). @removes, @n: what the
 * call raises REMOVEs for, in this order. Returns: 0, -errno of the consumer that refuses: nothing is open.
 */
int bracket_start(struct umbra_own *own, struct plan *plan, const struct hva_range *removes,
		  uint32_t n, struct bracket *b);
/*
 * Opens besides what b->again has and @plan has not. For plans that hold a range: what was installed
 * there since @plan was made is seen by planning again, and more cannot come.
 * Returns: 0, -errno; then the bracket is closed.
 */
int bracket_widen(struct umbra_own *own, const struct plan *plan, struct bracket *b);
/*
 * Opens besides the 2M pages of files that @plan cuts: the kernel splits one by unmapping all of it, whatever is done to a part.
 * None of it moves, so a pin refuses nothing. Returns: 0, -errno; then the bracket is closed.
 */
int bracket_cuts(struct umbra_own *own, const struct plan *plan, struct bracket *b);
/* @result: the system call's. */
void bracket_end(struct umbra_own *own, struct bracket *b, int result);

/* Marks the calling thread as inside an own call, if a uffd listens. @removes, @n: as bracket_start(). */
struct own_call *own_call_take(struct umbra_own *own, const struct hva_range *removes, uint32_t n);
void own_call_give(struct umbra_own *own, struct own_call *call, int result);

static inline struct own_call *own_call_enter(struct umbra_own *own,
					      const struct hva_range *removes, uint32_t n)
{
	if (!atomic_load_explicit(&own->uffd, memory_order_acquire))
		return NULL;
	return own_call_take(own, removes, n);
}

static inline void own_call_leave(struct umbra_own *own, struct own_call *call, int result)
{
	if (call)
		own_call_give(own, call, result);
}

/* For the reader: is thread @tid inside an own call? Then its changes are bracketed by it. */
bool own_call_of(struct umbra_own *own, int tid);
/* For the reader: takes a REMOVE of @r as that of an own call, whose bracket is still open. */
bool own_call_claim(struct umbra_own *own, struct hva_range r);
/* For the reader: memory that may be watched came to @r by itself. Own calls there may raise nothing for it. */
void own_call_doubt(struct umbra_own *own, struct hva_range r);

#endif
