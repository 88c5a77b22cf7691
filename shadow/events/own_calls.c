/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Own calls under way, so that the uffd reader can tell their REMOVEs from those of outside callers.
 *
 * A REMOVE does not say who raised it. It is the call's for certain if, of all that were read between entering and leaving the call,
 * it is the only one that meets the call's range: a successful call over watched memory raised one, and that was read before the call
 * returned. So the first that is exactly the range is taken, and given up again (it gets a bracket of its own and the grace period,
 * like an outside one) as soon as another one meets the range, the call fails, or registrations changed meanwhile. The own bracket is
 * still open then: the reader holds its batch lock from before a read until all of it is looked at, and a call is not left without
 * that lock, so what let it return has been looked at before it is left.
 */
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "shadow/events/own.h"
#include "shadow/events/uffd.h"

/* Held for reading by whoever uses own->uffd, so that it is not freed. */
static pthread_rwlock_t uffd_users = PTHREAD_RWLOCK_INITIALIZER;

/* gettid is a system call, a fifth of a small madvise. A forked child has another tid: it asks
 * again. */
static _Thread_local int cached_tid;

static void forget_tid(void)
{
	cached_tid = 0;
}

static void watch_fork(void)
{
	pthread_atfork(NULL, NULL, forget_tid);
}

int own_tid(void)
{
	if (!cached_tid)
		cached_tid = (int)syscall(SYS_gettid);
	return cached_tid;
}

void own_tid_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, watch_fork);
}

/*
 * own_call.upto: start, nothing was read that meets the range; end, one REMOVE of the whole range was, and is taken as the call's;
 * beyond, what was read may be anybody's.
 */
static bool is_taken(struct own_call *call)
{
	return atomic_load(&call->upto) == atomic_load(&call->end);
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

struct own_call *own_call_enter(struct umbra_own *own, struct hva_range r, bool removes)
{
	const struct hva_range w = hva_range_widen(r);
	struct own_call *call;

	if (!atomic_load_explicit(&own->uffd, memory_order_acquire))
		return NULL;
	call = take_slot(own, own_tid());
	if (!call)
		return NULL; /* too many at once: taken for an outside caller, which only costs */
	/* Empty, as it was left, while the rest is set. */
	atomic_store(&call->start, w.start.v);
	atomic_store(&call->upto, w.start.v);
	atomic_store(&call->watched, atomic_load(&own->watched));
	if (removes && !hva_range_empty(w))
		atomic_store(&call->end, w.end.v);
	return call;
}

static void free_slot(struct own_call *call)
{
	atomic_store(&call->end, 0);
	atomic_store(&call->tid, 0);
}

void own_call_leave(struct umbra_own *own, struct own_call *call, int result)
{
	struct umbra_uffd *uffd;
	struct hva_range r;
	bool wrong;

	if (!call)
		return;
	if (!atomic_load(&call->end)) {
		free_slot(call);
		return;
	}
	r = (struct hva_range){ { atomic_load(&call->start) }, { atomic_load(&call->end) } };
	pthread_rwlock_rdlock(&uffd_users);
	uffd = atomic_load(&own->uffd);
	if (uffd)
		pthread_mutex_lock(&uffd->batch);
	wrong = is_taken(call) && (result || !same_watched(own, call));
	free_slot(call);
	if (uffd) {
		pthread_mutex_unlock(&uffd->batch);
		if (wrong)
			uffd_doubt(uffd, r);
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
	const uint64_t end = atomic_load(&call->end);
	const struct hva_range r = { { atomic_load(&call->start) }, { end } };
	const bool taken = is_taken(call);

	if (!end)
		return;
	atomic_store(&call->upto, end + 1);
	if (taken)
		uffd_doubt(atomic_load(&own->uffd), r);
}

bool own_call_claim(struct umbra_own *own, struct hva_range r)
{
	struct own_call *met[OWN_CALLS], *call;
	unsigned int n = 0;

	for (unsigned int i = 0; i < OWN_CALLS; i++) {
		const uint64_t end = atomic_load(&own->calls[i].end);

		if (r.start.v < end && r.end.v > atomic_load(&own->calls[i].start))
			met[n++] = &own->calls[i];
	}
	call = n == 1 ? met[0] : NULL;
	if (call && r.start.v == atomic_load(&call->start) && r.end.v == atomic_load(&call->end) &&
	    atomic_load(&call->upto) == r.start.v && same_watched(own, call)) {
		atomic_store(&call->upto, r.end.v);
		return true;
	}
	while (n)
		give_up(own, met[--n]);
	return false;
}

void uffd_give_up_own(struct umbra_uffd *uffd)
{
	pthread_mutex_lock(&uffd->batch);
	for (unsigned int i = 0; i < OWN_CALLS; i++)
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
