/* SPDX-License-Identifier: BSD-2-Clause */
/* What the kernel's callouts say, and what other sources announced about that time. */
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "shadow/events/direct.h"

/* Userfaultfd tells when it is read: a REMOVE a little before the change, all else after it, at most so much. */
#define SLACK_NS 1000000000ULL

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/* ---- what a record says ------------------------------------------------------------------------ */

/* For people: the kernel says what, and who; correctness takes nothing from it. */
static enum umbra_cause cause_of(const struct umbra_ntf_record *rec)
{
	switch (rec->event) {
	case UMBRA_NTF_UNMAP: return UMBRA_CAUSE_UNMAP;
	case UMBRA_NTF_CLEAR:
		return rec->flags & UMBRA_NTF_RECLAIM ? UMBRA_CAUSE_SWAP : UMBRA_CAUSE_UNKNOWN;
	case UMBRA_NTF_PROTECTION_VMA:
	case UMBRA_NTF_PROTECTION_PAGE: return UMBRA_CAUSE_PROTECT;
	case UMBRA_NTF_SOFT_DIRTY: return UMBRA_CAUSE_SOFT_DIRTY;
	case UMBRA_NTF_MIGRATE: return UMBRA_CAUSE_MIGRATE;
	default: return UMBRA_CAUSE_UNKNOWN;
	}
}

/* We may wait, whatever the kernel's caller could: it does not wait for us. */
struct umbra_range record_range(const struct umbra_ntf_record *rec)
{
	uint32_t flags = UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_FORCED | UMBRA_RANGE_RELOCATES;

	flags |= rec->flags & UMBRA_NTF_RECLAIM ? UMBRA_RANGE_RECLAIM : 0U;
	flags |= rec->flags & UMBRA_NTF_KTHREAD ? UMBRA_RANGE_KTHREAD : 0U;
	flags |= rec->flags & UMBRA_NTF_BLOCKABLE ? 0U : UMBRA_RANGE_NO_WAIT;
	return (struct umbra_range){
		.hull = { { rec->start }, { rec->end } },
		.flags = flags,
		.cause = cause_of(rec),
		.source = UMBRA_SOURCE_MODULE,
		.who = rec->flags & (UMBRA_NTF_RECLAIM | UMBRA_NTF_KTHREAD) ? UMBRA_WHO_KERNEL
									    : rec->who,
	};
}

/* ---- what is announced ---------------------------------------------------------------------- */

static struct direct *direct_of(struct umbra_notifier *n)
{
	return (struct direct *)(void *)((char *)n - offsetof(struct direct, listener));
}

static void announce(struct direct *d, const struct umbra_range *r, struct hva_range part,
		     uint64_t now)
{
	const uint64_t nr = atomic_load_explicit(&d->nr, memory_order_relaxed);

	d->announced[nr % DIRECT_ANNOUNCED] =
		(struct direct_announced){ part, now, ~0ULL, r->source, r->who };
	/* pairs with the acquire of whoever drains, who then takes the lock */
	atomic_store_explicit(&d->nr, nr + 1, memory_order_release);
}

static int on_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct direct *d = direct_of(n);
	const uint64_t now = now_ns();

	pthread_mutex_lock(&d->lock);
	for (uint32_t i = 0; i < r->nr; i++)
		announce(d, r, r->v[i], now);
	if (!r->nr)
		announce(d, r, r->hull, now);
	pthread_mutex_unlock(&d->lock);
	return 0;
}

/* The newest open one of that range and source is over. */
static void end_one(struct direct *d, const struct umbra_range *r, struct hva_range part,
		    uint64_t now)
{
	const uint64_t nr = d->nr, oldest = nr > DIRECT_ANNOUNCED ? nr - DIRECT_ANNOUNCED : 0;

	for (uint64_t i = nr; i > oldest; i--) {
		struct direct_announced *a = &d->announced[(i - 1) % DIRECT_ANNOUNCED];

		if (a->to == ~0ULL && a->source == r->source && a->hva.start.v == part.start.v &&
		    a->hva.end.v == part.end.v) {
			a->to = now;
			return;
		}
	}
}

static void on_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct direct *d = direct_of(n);
	const uint64_t now = now_ns();

	pthread_mutex_lock(&d->lock);
	for (uint32_t i = 0; i < r->nr; i++)
		end_one(d, r, r->v[i], now);
	if (!r->nr)
		end_one(d, r, r->hull, now);
	pthread_mutex_unlock(&d->lock);
}

static const struct umbra_notifier_ops ops = {
	.invalidate_range_start = on_start,
	.invalidate_range_end = on_end,
};

/* ---- the comparison ---------------------------------------------------------------------------- */

/* An own call is a thread's, and between its ends; whose an event of userfaultfd is nobody says. */
static bool fits(const struct direct_announced *a, const struct direct_told *t)
{
	const uint64_t slack = a->source == UMBRA_SOURCE_UFFD ? SLACK_NS : 0;

	return a->from <= t->time + slack && (a->to == ~0ULL || t->time <= a->to + slack) &&
	       (slack || !a->who || a->who == t->who);
}

/* Lock held. Newest first: a batch is in ascending order, and is cut off from its end. */
static bool covered(const struct direct *d, const struct direct_told *t)
{
	const uint64_t nr = d->nr, oldest = nr > DIRECT_ANNOUNCED ? nr - DIRECT_ANNOUNCED : 0;
	struct hva_range need = t->hva;

	for (uint64_t i = nr; i > oldest && need.start.v < need.end.v; i--) {
		const struct direct_announced *a = &d->announced[(i - 1) % DIRECT_ANNOUNCED];

		if (fits(a, t))
			hva_range_cut(&need, a->hva);
	}
	return need.start.v >= need.end.v;
}

void direct_catch_up(struct direct *d, uint64_t *late)
{
	const uint64_t nr = atomic_load_explicit(&d->nr, memory_order_acquire);
	const uint64_t oldest = d->told_nr > DIRECT_TOLD ? d->told_nr - DIRECT_TOLD : 0;

	if (nr == d->looked)
		return;
	pthread_mutex_lock(&d->lock);
	d->looked = d->nr;
	for (uint64_t i = d->told_nr; i > oldest; i--) {
		struct direct_told *t = &d->told[(i - 1) % DIRECT_TOLD];

		if (!t->direct && covered(d, t)) {
			t->direct = true;
			++*late;
		}
	}
	pthread_mutex_unlock(&d->lock);
}

bool direct_told(struct direct *d, const struct umbra_ntf_record *rec, struct hva_range within,
		 uint64_t *late)
{
	struct direct_told *t;

	direct_catch_up(d, late);
	/* what another process or a thread of the kernel does nobody here has asked for */
	if (!(rec->flags & UMBRA_NTF_OWNER))
		return false;
	t = &d->told[d->told_nr++ % DIRECT_TOLD];
	*t = (struct direct_told){
		.hva = { { rec->start > within.start.v ? rec->start : within.start.v },
			 { rec->end < within.end.v ? rec->end : within.end.v } },
		.time = rec->time_ns,
		.who = rec->who,
	};
	if (!d->looked) /* nobody has announced anything yet */
		return false;
	pthread_mutex_lock(&d->lock);
	t->direct = covered(d, t);
	pthread_mutex_unlock(&d->lock);
	return t->direct;
}

/* ---- its life -------------------------------------------------------------------------------------- */

int direct_init(struct direct *d, struct umbra_chain *chain)
{
	int e;

	memset(d, 0, sizeof(*d));
	pthread_mutex_init(&d->lock, NULL);
	d->listener = (struct umbra_notifier){
		.ops = &ops,
		.name = "direct",
		/* of all others nothing is to be known, and they are many */
		.deaf = ~(1U << UMBRA_SOURCE_OWN | 1U << UMBRA_SOURCE_UFFD),
	};
	d->chain = chain;
	e = umbra_chain_register(chain, &d->listener);
	if (e)
		pthread_mutex_destroy(&d->lock);
	return e;
}

void direct_fini(struct direct *d)
{
	umbra_chain_unregister(d->chain, &d->listener);
	pthread_mutex_destroy(&d->lock);
}
