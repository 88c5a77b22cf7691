/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Own calls under way, so that the uffd reader can tell their REMOVEs from those of outside callers.
 *
 * A REMOVE does not say who raised it, and a call raises one for each mapping that its ranges meet, range by range, ascending in each.
 * They are the call's for certain if, of all that were read between entering and leaving the call and that meet its ranges, none lies
 * over another: a successful call has raised one for every byte of its ranges that is watched, and these were read before it returned;
 * one more, by somebody else, would lie over one of them. So what comes in that order is taken, and all of it given up again (it gets a
 * bracket of its own and the grace period, like an outside one) as soon as one comes that does not fit, the call fails, or what is
 * watched there changed meanwhile. The own bracket is still open then: the reader holds its batch lock from before a read until all of
 * it is looked at, and a call is not left without that lock, so what let it return has been looked at before it is left.
 */
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "shadow/events/own.h"
#include "shadow/events/uffd.h"

/* Held for reading by whoever uses own->uffd, so that it is not freed. */
static pthread_rwlock_t uffd_users = PTHREAD_RWLOCK_INITIALIZER;

_Thread_local int own_cached_tid;

static void forget_tid(void)
{
	own_cached_tid = 0;
}

static void watch_fork(void)
{
	pthread_atfork(NULL, NULL, forget_tid);
}

int own_tid_ask(void)
{
	own_cached_tid = (int)syscall(SYS_gettid);
	return own_cached_tid;
}

void own_tid_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, watch_fork);
}

/* Calls that began under another set of registrations may raise nothing. Partner: uffd_watch_begin(). */
static bool same_watched(struct umbra_own *own, struct own_call *call)
{
	const uint64_t now = atomic_load(&own->watched);

	return now >> 32 == (uint32_t)now && atomic_load(&call->watched) == now;
}

void uffd_watch_begin(struct umbra_own *own)
{
	if (own)
		atomic_fetch_add(&own->watched, 1ULL << 32);
}

void uffd_watch_end(struct umbra_own *own)
{
	if (own)
		atomic_fetch_add(&own->watched, 1);
}

static struct own_call *take_slot(struct umbra_own *own, int tid)
{
	for (unsigned int i = 0; i < OWN_CALLS; i++) {
		struct own_call *call = &own->calls[((unsigned int)tid + i) % OWN_CALLS];
		int none = 0;

		if (!atomic_load_explicit(&call->tid, memory_order_relaxed) &&
		    atomic_compare_exchange_strong(&call->tid, &none, tid))
			return call;
	}
	return NULL;
}

struct own_call *own_call_take(struct umbra_own *own, const struct hva_range *removes, uint32_t n)
{
	struct hva_range hull = { 0 };
	struct own_call *call = take_slot(own, own_tid());

	if (!call)
		return NULL; /* too many at once: taken for an outside caller, which only costs */
	for (uint32_t i = 0; i < n; i++)
		hva_range_join(&hull, hva_range_widen(removes[i]));
	call->v = removes;
	call->nr = n;
	call->at = call->taken = 0;
	call->upto = 0;
	call->doubted = false;
	atomic_store(&call->start, hull.start.v);
	atomic_store(&call->watched, atomic_load(&own->watched));
	atomic_store(&call->end,
		     hull.end.v); /* empty until now: the rest is looked at from here on */
	return call;
}

static void free_slot(struct own_call *call)
{
	atomic_store(&call->end, 0);
	atomic_store(&call->tid, 0);
}

static struct hva_range hull_of(struct own_call *call)
{
	return (struct hva_range){ { atomic_load(&call->start) }, { atomic_load(&call->end) } };
}

void own_call_give(struct umbra_own *own, struct own_call *call, int result)
{
	struct umbra_uffd *uffd;
	struct hva_range hull;
	uint32_t wrong = 0;

	if (!atomic_load(&call->end)) {
		free_slot(call);
		return;
	}
	hull = hull_of(call);
	pthread_rwlock_rdlock(&uffd_users);
	uffd = atomic_load(&own->uffd);
	if (uffd)
		pthread_mutex_lock(&uffd->batch);
	if (result || !same_watched(own, call))
		wrong = call->taken;
	free_slot(call);
	if (uffd) {
		pthread_mutex_unlock(&uffd->batch);
		if (wrong)
			uffd_doubt(uffd, hull, wrong);
	}
	/* Closed meanwhile: then uffd_give_up_own() has given up what was taken. */
	pthread_rwlock_unlock(&uffd_users);
}

bool own_call_of(struct umbra_own *own, int tid)
{
	for (unsigned int i = 0; i < OWN_CALLS; i++)
		if (atomic_load(&own->calls[i].tid) == tid)
			return true;
	return false;
}

/* Batch lock held. What was taken as @call's, if anything, may be anybody's, and so is what comes. */
static void give_up(struct umbra_own *own, struct own_call *call)
{
	const uint32_t taken = call->taken;

	call->doubted = true;
	call->taken = 0;
	if (taken)
		uffd_doubt(atomic_load(&own->uffd), hull_of(call), taken);
}

/* Batch lock held. Will @call raise, or has it raised, a REMOVE of a part of @r? */
static bool call_meets(struct own_call *call, struct hva_range r)
{
	if (!atomic_load(&call->end) || !hva_ranges_meet(hull_of(call), r))
		return false;
	for (uint32_t i = 0; i < call->nr; i++)
		if (hva_ranges_meet(hva_range_widen(call->v[i]), r))
			return true;
	return false;
}

/* Batch lock held. Is @r what @call may raise next? */
static bool call_takes(struct own_call *call, struct hva_range r)
{
	for (uint32_t i = call->at; i < call->nr; i++) {
		const struct hva_range w = hva_range_widen(call->v[i]);

		if (r.start.v < w.start.v || r.end.v > w.end.v ||
		    (i == call->at && r.start.v < call->upto))
			continue;
		call->at = i;
		call->upto = r.end.v;
		call->taken++;
		return true;
	}
	return false;
}

bool own_call_claim(struct umbra_own *own, struct hva_range r)
{
	struct own_call *met[OWN_CALLS];
	unsigned int n = 0;

	for (unsigned int i = 0; i < OWN_CALLS; i++)
		if (call_meets(&own->calls[i], r))
			met[n++] = &own->calls[i];
	if (n == 1 && !met[0]->doubted && same_watched(own, met[0]) && call_takes(met[0], r))
		return true;
	while (n)
		give_up(own, met[--n]);
	return false;
}

void own_call_doubt(struct umbra_own *own, struct hva_range r)
{
	for (unsigned int i = 0; i < OWN_CALLS; i++)
		if (call_meets(&own->calls[i], r))
			give_up(own, &own->calls[i]);
}

void uffd_give_up_own(struct umbra_uffd *uffd)
{
	pthread_mutex_lock(&uffd->batch);
	for (unsigned int i = 0; i < OWN_CALLS; i++)
		if (atomic_load(&uffd->own->calls[i].end))
			give_up(uffd->own, &uffd->own->calls[i]);
	pthread_mutex_unlock(&uffd->batch);
}

void uffd_leave_own(struct umbra_uffd *uffd)
{
	atomic_store(&uffd->own->uffd, NULL);
	/* Who comes now finds none; who found it is through when this is had. */
	pthread_rwlock_wrlock(&uffd_users);
	pthread_rwlock_unlock(&uffd_users);
}
