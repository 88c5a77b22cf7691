/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Own calls under way, so that the uffd reader can tell their REMOVEs from those of outside callers.
 *
 * A successful own call over a watched range raised a REMOVE for it, which was read before the call returned. So a REMOVE may be taken
 * as the call's if it lies in its range, was not taken yet, and the call is still inside, or left since the reader began its last
 * read: in that batch, then, is the call's own. Should another caller have raised the same and be taken first, the call's own comes
 * second, is not taken, and is waited for like an outside one; and that wait is for all threads.
 */
#include <sys/syscall.h>
#include <unistd.h>
#include "shadow/events/own.h"
#include "shadow/events/uffd.h"

#define TID_LEFT (-1) /* a call that returned, with a REMOVE that the reader has not come to */

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

static struct own_call *take_slot(struct umbra_own *own, int tid, int instead_of)
{
	for (unsigned int i = 0; i < OWN_CALLS; i++) {
		struct own_call *call = &own->calls[((unsigned int)tid + i) % OWN_CALLS];
		int old = instead_of;

		if (atomic_load_explicit(&call->tid, memory_order_relaxed) == old &&
		    atomic_compare_exchange_strong(&call->tid, &old, tid))
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
	call = take_slot(own, own_tid(), 0);
	if (!call)
		call = take_slot(own, own_tid(), TID_LEFT);
	if (!call)
		return NULL; /* too many at once: taken for an outside caller, which only costs */
	/* Empty while the rest is set. */
	atomic_store(&call->end, 0);
	atomic_store(&call->start, w.start.v);
	atomic_store(&call->upto, w.start.v);
	atomic_store(&call->watched, atomic_load(&own->watched));
	if (removes)
		atomic_store(&call->end, w.end.v);
	return call;
}

void own_call_leave(struct umbra_own *own, struct own_call *call, int result)
{
	struct umbra_uffd *uffd;
	struct hva_range r;

	if (!call)
		return;
	if (!result) {
		const bool all = atomic_load(&call->upto) >= atomic_load(&call->end);

		atomic_store(&call->tid, all ? 0 : TID_LEFT);
		return;
	}
	/* A call that failed on its way may not have raised what was taken for its own. Partner: own_call_claim(). */
	r.start.v = atomic_load(&call->start);
	r.end.v = atomic_exchange(&call->end, 0);
	uffd = atomic_load(&call->upto) > r.start.v ? atomic_load(&own->uffd) : NULL;
	atomic_store(&call->tid, 0);
	if (uffd)
		uffd_doubt(uffd, r);
}

bool own_call_of(struct umbra_own *own, int tid)
{
	for (unsigned int i = 0; i < OWN_CALLS; i++)
		if (atomic_load(&own->calls[i].tid) == tid)
			return true;
	return false;
}

void own_calls_forget_left(struct umbra_own *own)
{
	for (unsigned int i = 0; i < OWN_CALLS; i++) {
		int left = TID_LEFT;

		if (atomic_load(&own->calls[i].tid) == left)
			atomic_compare_exchange_strong(&own->calls[i].tid, &left, 0);
	}
}

bool own_call_claim(struct umbra_own *own, struct hva_range r)
{
	for (unsigned int i = 0; i < OWN_CALLS; i++) {
		struct own_call *call = &own->calls[i];
		const int tid = atomic_load(&call->tid);
		uint64_t upto = atomic_load(&call->upto);
		int now;

		if (!tid || r.end.v > atomic_load(&call->end) ||
		    r.start.v < atomic_load(&call->start) || r.start.v < upto ||
		    atomic_load(&call->watched) != atomic_load(&own->watched))
			continue;
		if (!atomic_compare_exchange_strong(&call->upto, &upto, r.end.v))
			continue;
		/* Failed, or the slot is another call's, meanwhile: it may not have seen the claim. Partner: own_call_leave(). */
		now = atomic_load(&call->tid);
		if ((now == tid || now == TID_LEFT) && atomic_load(&call->end) >= r.end.v)
			return true;
	}
	return false;
}
