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
 * 0: free.
 * @start, @end: what it will raise REMOVE for, empty if nothing. @upto: REMOVEs below it have been
 * taken as this call's; a second one for the same bytes is somebody else's. @watched: own->watched
 * when it began.
 */
struct own_call {
	_Atomic int tid;
	_Atomic uint64_t start, end, upto, watched;
};

/* A region, and which file it maps whatever descriptor is used later. */
struct own_region {
	struct umbra_region pub;
	dev_t dev;
	ino_t ino;
};

struct umbra_own {
	struct umbra_chain *chain;
	struct umbra_hostmap *map;

	_Atomic(struct umbra_uffd *) uffd; /* reads the events of our own calls, or NULL */
	_Atomic uint64_t watched;          /* grows with every registration at @uffd */
	struct own_call calls[OWN_CALLS];

	/*
	 * Calls that make hugepages or share pages, begun and ended. A plan that leaves out what is not huge or not shared
	 * holds only if none of them came between.
	 */
	_Atomic uint64_t shifts_begun, shifts_ended;

	pthread_mutex_t regions_lock; /* innermost: never held over a call or a bracket */
	struct own_region *regions;   /* sorted by hva, disjoint */
	uint32_t nregions, regions_cap;
	uint64_t regions_gen; /* grows with every change of a region */
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
	uint64_t gen;   /* the regions' generation it was made from, if it was */
	struct hva_range few[PLAN_INLINE];
};

void plan_init(struct plan *plan, enum umbra_cause cause, bool relocates);
void plan_fini(struct plan *plan);
/* Empty ranges are left out, touching ones joined with the last. Returns: 0, -ENOMEM. */
int plan_add(struct plan *plan, struct hva_range r);

/* What madvise(@r, @advice) changes. Returns: 0, -ENOMEM. */
int plan_madvise(const struct umbra_own *own, struct hva_range r, int advice, struct plan *plan);
/* Cause and relocates alone, for advice that changes exactly its range; false for other advice. */
bool plan_is_exact(int advice, enum umbra_cause *cause, bool *relocates);

/* @r widened to all folios that it cuts, as far as they may reach. */
struct hva_range own_widen_folios(const struct umbra_own *own, struct hva_range r);

/* What advice to @r changes in other regions of the files mapped there. Returns: 0, -ENOMEM. */
int region_plan_advice(const struct umbra_own *own, struct hva_range r, int advice,
		       struct plan *plan);
/* Ranges of regions that map bytes [@start, @end) of @fd. Returns: 0, -ENOMEM. */
int region_plan_file(struct umbra_own *own, int fd, uint64_t start, uint64_t end,
		     struct plan *plan);
/* Private regions that fork would make copy-on-write. */
int region_plan_fork(struct umbra_own *own, struct plan *plan);
/* Are the regions still those that either of the two made @plan from? */
bool region_plan_holds(struct umbra_own *own, const struct plan *plan);
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

static inline void *hva_ptr(hva_t hva)
{
	return (void *)(uintptr_t)hva.v;
}

static inline uint64_t hva_range_len(struct hva_range r)
{
	return r.end.v > r.start.v ? r.end.v - r.start.v : 0;
}

/* A bracket from a plan, or none if the plan is empty. */
struct bracket {
	struct umbra_range range;
	struct own_call *call;
	bool open;
};

/* The range of a bracket of ours round @hull. */
struct umbra_range bracket_of(struct hva_range hull, enum umbra_cause cause, bool relocates);
/*
 * Opens what @plan says; @plan stays as it is until bracket_end(). @removes: what the call raises
 * REMOVE for, empty if nothing. Returns: 0, -errno of the consumer that refuses: nothing is open.
 */
int bracket_start(struct umbra_own *own, const struct plan *plan, struct hva_range removes,
		  struct bracket *b);
/* @result: the system call's. */
void bracket_end(struct umbra_own *own, struct bracket *b, int result);

/* The regions changed while the call was made: what lies where the file is now may be old. */
void announce(struct umbra_own *own, const struct plan *plan);
/* Everything, when there is no memory to say what. */
void announce_all(struct umbra_own *own, enum umbra_cause cause, bool relocates);

/* Round a call that makes hugepages or shares pages, see struct umbra_own. */
static inline void shift_begin(struct umbra_own *own)
{
	atomic_fetch_add(&own->shifts_begun, 1);
}

static inline void shift_end(struct umbra_own *own)
{
	atomic_fetch_add(&own->shifts_ended, 1);
}

/* Marks the calling thread as inside an own call, if a uffd listens. @removes: a call that raises
 * REMOVE for @r. */
struct own_call *own_call_enter(struct umbra_own *own, struct hva_range r, bool removes);
void own_call_leave(struct umbra_own *own, struct own_call *call, int result);
/* For the reader: is thread @tid inside an own call? Then its changes are bracketed by it. */
bool own_call_of(struct umbra_own *own, int tid);
/* For the reader: takes a REMOVE of @r as that of an own call, whose bracket is still open. */
bool own_call_claim(struct umbra_own *own, struct hva_range r);

/* Before each read of the reader: calls that left before it have no REMOVE in what is read now. */
void own_calls_forget_left(struct umbra_own *own);

void own_tid_init(void);
int own_tid(void);

#endif
