/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 WITH Linux-syscall-note */
/*
 * The ring of the kernel module: push, compiled by the kernel, and pop, compiled by user space. One
 * producer (under the subscription's lock), one consumer. Neither trusts what the other can write:
 * the producer reads @tail once and keeps its own head; the consumer copies a record, or compares what
 * is in it, before it gives the slot back.
 */
#ifndef UMBRA_ABI_NOTIFIER_RING_H
#define UMBRA_ABI_NOTIFIER_RING_H

#include <abi/notifier.h>

#ifdef __KERNEL__
/* pairs with the store of the other side: @tail here, all others there */
#define umbra_ring_load(p) smp_load_acquire(p)
/* pairs with the load of the other side */
#define umbra_ring_store(p, v) smp_store_release(p, v)
#define umbra_ring_once(p)     READ_ONCE(*(p))
#else
#define umbra_ring_load(p)     __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define umbra_ring_store(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define umbra_ring_once(p)     __atomic_load_n(p, __ATOMIC_RELAXED)
#endif

/* @records: @mask + 1 of them. @head, @lost: the producer's own; the state has copies for readers. */
struct umbra_ring_producer {
	struct umbra_ntf_record *records;
	__u64 mask;
	__u64 head, lost;
	struct umbra_ntf_state *state;
	const struct umbra_ntf_consumer *consumer;
};

/* Records that the consumer says it has not read; more than the ring holds when it lies. */
static inline __u64 umbra_ring_unread(const struct umbra_ring_producer *p)
{
	return p->head - umbra_ring_load(&p->consumer->tail);
}

/* Writes @rec, or counts it as lost. Returns the records then unread. */
static inline __u64 umbra_ring_push(struct umbra_ring_producer *p,
				    const struct umbra_ntf_record *rec)
{
	__u64 unread = umbra_ring_unread(p);

	if (unread > p->mask) {
		p->lost++;
		umbra_ring_store(&p->state->lost, p->lost);
		return unread;
	}
	p->records[p->head & p->mask] = *rec;
	p->head++;
	umbra_ring_store(&p->state->head, p->head);
	return unread + 1;
}

#ifndef __KERNEL__
/*
 * @tail: records read so far, starts where the state's head was when the ring was taken over. @head: as it was when last
 * looked at, 0 at first: it is looked at again only when all up to there has been read.
 */
struct umbra_ring_consumer {
	const struct umbra_ntf_record *records;
	__u64 mask;
	__u64 tail;
	const struct umbra_ntf_state *state;
	struct umbra_ntf_consumer *consumer;
	__u64 head;
};

/* Gives the slot of the next record back; there is one, see umbra_ring_next(). */
static inline void umbra_ring_skip(struct umbra_ring_consumer *c)
{
	c->tail++;
	umbra_ring_store(&c->consumer->tail, c->tail);
}

/* Copies the next record into @rec. Returns 1; 0 when there is none. The slot is free afterwards. */
static inline int umbra_ring_pop(struct umbra_ring_consumer *c, struct umbra_ntf_record *rec)
{
	if ((__s64)(c->head - c->tail) <= 0) {
		c->head = umbra_ring_load(&c->state->head);
		if (c->head == c->tail)
			return 0;
	}
	*rec = c->records[c->tail & c->mask];
	umbra_ring_skip(c);
	return 1;
}

/*
 * The record that umbra_ring_pop() will copy, if it is known already that there is one; or 0. It stays as it is until it is
 * popped or skipped.
 */
static inline const struct umbra_ntf_record *umbra_ring_next(const struct umbra_ring_consumer *c)
{
	return (__s64)(c->head - c->tail) > 0 ? &c->records[c->tail & c->mask] : 0;
}

/* What the kernel changes together, read together. */
struct umbra_ntf_snapshot {
	__u64 begun, ended, open_lo, open_hi, head, lost;
	__u32 dead;
};

static inline void umbra_ntf_read(const struct umbra_ntf_state *s, struct umbra_ntf_snapshot *out)
{
	__u32 seq;

	do {
		while ((seq = umbra_ring_load(&s->seq)) & 1)
			;
		/* acquire, each: none is read after the second look at @seq */
		out->begun = umbra_ring_load(&s->begun);
		out->ended = umbra_ring_load(&s->ended);
		out->open_lo = umbra_ring_load(&s->open_lo);
		out->open_hi = umbra_ring_load(&s->open_hi);
		out->head = umbra_ring_load(&s->head);
		out->lost = umbra_ring_load(&s->lost);
		out->dead = umbra_ring_load(&s->dead);
	} while (umbra_ring_once(&s->seq) != seq);
}
#endif

#endif
