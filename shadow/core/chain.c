/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The notifier chain. Its lock guards the list and the counts and is not held over callbacks of
 * start and end, so that invalidations from many threads run side by side.
 */
#include <errno.h>

#include <umbra/notifier.h>

struct member {
	struct umbra_notifier *n; /* NULL: free */
	uint64_t joined;          /* number of this membership, never used twice */
	bool leaving;             /* no new callbacks; free once none is in flight */
	uint32_t entered;         /* callbacks begun, by 2 each */
	uint32_t
		left; /* and over: written without the lock; equal: none is in flight. Bit 0: waited for */
};

#define LEFT_WAITED 1U
#define CALLBACK    2U
#define ONLY_NONE   (-1)
#define EVERYBODY   UINT32_MAX

/*
 * What a member that joined while invalidations were open is still to be told: @owed starts, one being told included, and
 * of these @late have ended since.
 */
struct debt {
	uint64_t owed[UMBRA_SOURCE_NR], late[UMBRA_SOURCE_NR];
};

struct open_state {
	struct umbra_chain_counts counts;
	uint64_t lo, hi;
};

struct umbra_chain {
	const struct umbra_os *os;
	void *lock;
	/* under lock */
	struct member members[UMBRA_CHAIN_MAX];
	unsigned int used;    /* members beyond were never taken */
	unsigned int in_debt; /* members that have a debt */
	uint64_t joins;
	/* place of the one member told of a source; ONLY_NONE: none or more */
	int8_t only[UMBRA_SOURCE_NR];
	struct open_state sources[UMBRA_SOURCE_NR];
	struct debt debts[UMBRA_CHAIN_MAX]; /* of the member at the same place */
};

/* Which members a call goes to, fixed under the lock; each is held (entered, not left) until put. */
struct round {
	uint32_t mask;
	struct umbra_notifier *n[UMBRA_CHAIN_MAX];
	uint64_t joined[UMBRA_CHAIN_MAX];
};

static void lock(struct umbra_chain *c)
{
	c->os->mutex_lock(c->lock);
}

static void unlock(struct umbra_chain *c)
{
	c->os->mutex_unlock(c->lock);
}

static bool hears(const struct umbra_notifier *n, uint32_t sources)
{
	return sources == EVERYBODY || sources & ~n->deaf;
}

/* Lock held. After each change of who is a member. */
static void find_only(struct umbra_chain *c)
{
	for (unsigned int source = 0; source < UMBRA_SOURCE_NR; source++) {
		unsigned int found = 0;

		c->only[source] = ONLY_NONE;
		for (unsigned int i = 0; i < c->used; i++) {
			const struct member *m = &c->members[i];

			if (!m->n || m->leaving || !hears(m->n, 1U << source))
				continue;
			c->only[source] = found++ ? ONLY_NONE : (int8_t)i;
		}
	}
}

int umbra_chain_create(struct umbra_chain **chain, const struct umbra_os *os)
{
	struct umbra_chain *c = os->alloc(sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->os = os;
	find_only(c);
	c->lock = os->mutex_create();
	if (!c->lock) {
		os->free(c, sizeof(*c));
		return -ENOMEM;
	}
	*chain = c;
	return 0;
}

void umbra_chain_destroy(struct umbra_chain *chain)
{
	const struct umbra_os *os = chain->os;

	for (unsigned int i = 0; i < UMBRA_CHAIN_MAX; i++)
		if (chain->members[i].n)
			os->bug("a notifier chain is destroyed with a consumer on it");
	os->mutex_destroy(chain->lock);
	os->free(chain, sizeof(*chain));
}

/* Lock held. @sources: bits, those who hear any of them. */
static void round_get(struct umbra_chain *c, uint32_t sources, struct round *r)
{
	r->mask = 0;
	for (unsigned int i = 0; i < c->used; i++) {
		struct member *m = &c->members[i];

		if (!m->n || m->leaving || !hears(m->n, sources))
			continue;
		m->entered += CALLBACK;
		r->n[i] = m->n;
		r->joined[i] = m->joined;
		r->mask |= 1U << i;
	}
}

/* The members of @mask, lowest first. */
#define for_each_member(i, mask)                                                                  \
	for (uint32_t left_ = (mask), i = 0; left_ && (i = (uint32_t)__builtin_ctz(left_), true); \
	     left_ &= left_ - 1)

/*
 * No lock needed: a member with callbacks in flight is not replaced, so the place is still its own.
 * Partner of the release: the load in umbra_chain_unregister, after which the consumer may be gone, and the chain
 * too: only its address is used then.
 */
static void leave(struct umbra_chain *c, unsigned int i)
{
	const struct umbra_os *os = c->os;
	uint32_t *left = &c->members[i].left;

	if (__atomic_fetch_add(left, CALLBACK, __ATOMIC_RELEASE) & LEFT_WAITED)
		os->wake(left);
}

static void round_put(struct umbra_chain *c, const struct round *r)
{
	for_each_member (i, r->mask)
		leave(c, i);
}

static void count_begin(struct umbra_chain *c, const struct umbra_range *r)
{
	struct open_state *s = &c->sources[r->source];

	if (s->counts.begun == s->counts.ended) {
		/* Atomic only so that they stay two: one load of both words, just written apart, would stall. */
		__atomic_store_n(&s->lo, r->hull.start.v, __ATOMIC_RELAXED);
		__atomic_store_n(&s->hi, r->hull.end.v, __ATOMIC_RELAXED);
	} else {
		if (r->hull.start.v < s->lo)
			s->lo = r->hull.start.v;
		if (r->hull.end.v > s->hi)
			s->hi = r->hull.end.v;
	}
	s->counts.begun++;
}

static void count_end(struct umbra_chain *c, const struct umbra_range *r)
{
	struct open_state *s = &c->sources[r->source];

	if (s->counts.begun == s->counts.ended)
		c->os->bug("I10: an invalidation ends that has not begun");
	s->counts.ended++;
}

/*
 * Its counts must balance with the ends still to come: one start for each that is open. No lock held, since a start may
 * sleep. The member is held.
 */
static void pay_debt(struct umbra_chain *c, unsigned int i, const struct umbra_range *r)
{
	struct debt *debt = &c->debts[i];
	struct umbra_notifier *n;
	bool more, late;

	lock(c);
	n = c->members[i].n;
	more = debt->owed[r->source] && !c->members[i].leaving;
	unlock(c);
	while (more) {
		if (n->ops->invalidate_range_start(n, r))
			c->os->bug("a consumer refused a forced invalidation");
		lock(c);
		late = debt->late[r->source];
		debt->owed[r->source]--;
		debt->late[r->source] -= late;
		more = debt->owed[r->source] && !c->members[i].leaving;
		unlock(c);
		if (late && n->ops->invalidate_range_end)
			n->ops->invalidate_range_end(n, r);
	}
}

/* Lock held. Says what @debt is, and over what. Returns: is there any? */
static bool debt_of(const struct umbra_chain *c, const struct umbra_notifier *n, struct debt *debt,
		    struct umbra_range r[UMBRA_SOURCE_NR])
{
	bool any = false;

	*debt = (struct debt){ 0 };
	for (unsigned int i = 0; i < UMBRA_SOURCE_NR && n->ops->invalidate_range_start; i++) {
		const struct open_state *s = &c->sources[i];

		debt->owed[i] = hears(n, 1U << i) ? s->counts.begun - s->counts.ended : 0;
		any |= debt->owed[i] != 0;
		r[i] = (struct umbra_range){
			.hull = { { s->lo }, { s->hi } },
			.flags = UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_FORCED,
			.source = (enum umbra_source)i,
		};
	}
	return any;
}

int umbra_chain_register(struct umbra_chain *chain, struct umbra_notifier *n)
{
	struct umbra_range open[UMBRA_SOURCE_NR];
	unsigned int place = UMBRA_CHAIN_MAX;
	struct member *m;
	bool owes;
	int rc = 0;

	lock(chain);
	for (unsigned int i = UMBRA_CHAIN_MAX; i-- > 0;) {
		if (chain->members[i].n == n)
			rc = -EALREADY;
		if (!chain->members[i].n)
			place = i;
	}
	if (!rc && place == UMBRA_CHAIN_MAX)
		rc = -ENOSPC;
	if (rc) {
		unlock(chain);
		return rc;
	}
	m = &chain->members[place];
	m->n = n;
	m->joined = ++chain->joins;
	m->leaving = false;
	if (place >= chain->used)
		chain->used = place + 1;
	find_only(chain);
	owes = debt_of(chain, n, &chain->debts[place], open);
	if (owes) {
		chain->in_debt++;
		m->entered += CALLBACK;
	}
	unlock(chain);
	if (!owes)
		return 0;
	for (unsigned int i = 0; i < UMBRA_SOURCE_NR; i++)
		pay_debt(chain, place, &open[i]);
	lock(chain);
	chain->in_debt--;
	unlock(chain);
	leave(chain, place);
	return 0;
}

/* Lock held; dropped to wait, and taken again. */
static void wait_for_callbacks(struct umbra_chain *c, struct member *m)
{
	while ((__atomic_load_n(&m->left, __ATOMIC_ACQUIRE) & ~LEFT_WAITED) != m->entered) {
		uint32_t left = 0;

		if (c->os->wait) {
			left = __atomic_or_fetch(&m->left, LEFT_WAITED, __ATOMIC_ACQUIRE);
			/* the last may have left between the two looks, and saw nobody wait */
			if ((left & ~LEFT_WAITED) == m->entered)
				break;
		}
		unlock(c);
		if (c->os->wait)
			c->os->wait(&m->left, left); /* it is another as soon as one is over */
		else
			c->os->relax();
		lock(c);
	}
	m->left = m->entered;
}

void umbra_chain_unregister(struct umbra_chain *chain, struct umbra_notifier *n)
{
	struct member *m = NULL;

	if (n->ops->release)
		n->ops->release(n);
	lock(chain);
	for (unsigned int i = 0; i < chain->used; i++)
		if (chain->members[i].n == n)
			m = &chain->members[i];
	if (m) {
		m->leaving = true;
		find_only(chain);
		wait_for_callbacks(chain, m);
		m->n = NULL;
	}
	unlock(chain);
}

/* Lock held. Who of @mask is told of an end; to the others it is owed after a start, see pay_debt(). */
static uint32_t tell_end(struct umbra_chain *c, uint32_t mask, enum umbra_source source)
{
	uint32_t now = mask;

	if (!c->in_debt)
		return mask;
	for_each_member (i, mask) {
		struct debt *debt = &c->debts[i];

		if (debt->owed[source] == debt->late[source])
			continue;
		debt->late[source]++;
		now &= ~(1U << i);
	}
	return now;
}

static void end_members(const struct round *round, const struct umbra_range *r, uint32_t mask)
{
	for_each_member (i, mask)
		if (round->n[i]->ops->invalidate_range_end)
			round->n[i]->ops->invalidate_range_end(round->n[i], r);
}

/*
 * A start failed at some member: those told before it (@told), and those that joined since and got
 * the open range at registration, are told that it ended.
 */
static void roll_back(struct umbra_chain *chain, const struct umbra_range *r,
		      const struct round *started, uint32_t told)
{
	uint32_t mask = 0;
	struct round now;

	if (r->flags & UMBRA_RANGE_FORCED)
		chain->os->bug("a consumer refused a forced invalidation");
	lock(chain);
	count_end(chain, r);
	round_get(chain, 1U << r->source, &now);
	for_each_member (i, now.mask) {
		const bool same = started->mask >> i & 1 && started->joined[i] == now.joined[i];

		if (!same || told >> i & 1)
			mask |= 1U << i;
	}
	mask = tell_end(chain, mask, r->source);
	unlock(chain);
	round_put(chain, started);
	end_members(&now, r, mask);
	round_put(chain, &now);
}

/*
 * The only member that is told of @source, entered, and its place; or NULL, if there are more or none. Lock held. One
 * is what nearly everybody has: it is spared the loops.
 */
static struct umbra_notifier *enter_only(struct umbra_chain *c, enum umbra_source source,
					 int *place)
{
	struct member *m;

	*place = c->only[source];
	if (*place == ONLY_NONE || c->in_debt)
		return NULL;
	m = &c->members[*place];
	m->entered += CALLBACK;
	return m->n;
}

static int start_members(struct umbra_chain *chain, const struct umbra_range *r,
			 const struct round *round)
{
	uint32_t told = 0;
	int rc = 0;

	for_each_member (i, round->mask) {
		struct umbra_notifier *n = round->n[i];

		if (n->ops->invalidate_range_start)
			rc = n->ops->invalidate_range_start(n, r);
		if (rc)
			break;
		told |= 1U << i;
	}
	if (rc)
		roll_back(chain, r, round, told);
	else
		round_put(chain, round);
	return rc;
}

int umbra_invalidate_start(struct umbra_chain *chain, const struct umbra_range *r)
{
	struct umbra_notifier *only;
	struct round round;
	int place, rc = 0;

	lock(chain);
	count_begin(chain, r);
	only = enter_only(chain, r->source, &place);
	if (!only)
		round_get(chain, 1U << r->source, &round);
	unlock(chain);

	if (!only)
		return start_members(chain, r, &round);
	if (only->ops->invalidate_range_start)
		rc = only->ops->invalidate_range_start(only, r);
	if (rc) {
		/* as if it had been the first of a round; it is held: the place is still its own */
		round.mask = 1U << place;
		round.n[place] = only;
		round.joined[place] = chain->members[place].joined;
		roll_back(chain, r, &round, 0);
		return rc;
	}
	leave(chain, (unsigned int)place);
	return 0;
}

void umbra_invalidate_end(struct umbra_chain *chain, const struct umbra_range *r)
{
	struct umbra_notifier *only;
	struct round round;
	uint32_t mask = 0;
	int place;

	lock(chain);
	count_end(chain, r);
	only = enter_only(chain, r->source, &place);
	if (!only) {
		round_get(chain, 1U << r->source, &round);
		mask = tell_end(chain, round.mask, r->source);
	}
	unlock(chain);
	if (only) {
		if (only->ops->invalidate_range_end)
			only->ops->invalidate_range_end(only, r);
		leave(chain, (unsigned int)place);
		return;
	}
	end_members(&round, r, mask);
	round_put(chain, &round);
}

void umbra_invalidate_range(struct umbra_chain *chain, const struct umbra_range *r)
{
	struct umbra_chain_counts *counts = &chain->sources[r->source].counts;
	struct umbra_notifier *only;
	int place;

	lock(chain);
	only = enter_only(chain, r->source, &place);
	if (only && only->ops->invalidate_range) {
		counts->begun++;
		counts->ended++;
	}
	unlock(chain);
	if (only && only->ops->invalidate_range) {
		only->ops->invalidate_range(only, r);
		leave(chain, (unsigned int)place);
		return;
	}
	if (only)
		leave(chain, (unsigned int)place);
	if (umbra_invalidate_start(chain, r))
		chain->os->bug("an invalidation of what is over was refused: it must be FORCED");
	umbra_invalidate_end(chain, r);
}

enum young_op { YOUNG_CLEAR_FLUSH, YOUNG_CLEAR, YOUNG_TEST };

static bool young(struct umbra_chain *chain, struct hva_range r, enum young_op op)
{
	struct round round;
	bool any = false;

	lock(chain);
	round_get(chain, EVERYBODY, &round);
	unlock(chain);
	for_each_member (i, round.mask) {
		const struct umbra_notifier_ops *ops = round.n[i]->ops;
		bool (*fn)(struct umbra_notifier * n, struct hva_range r);

		fn = op == YOUNG_TEST    ? ops->test_young
		     : op == YOUNG_CLEAR ? ops->clear_young
					 : ops->clear_flush_young;
		if (fn)
			any |= fn(round.n[i], r); /* all are asked: each must clear its own */
	}
	round_put(chain, &round);
	return any;
}

bool umbra_clear_flush_young(struct umbra_chain *chain, struct hva_range r)
{
	return young(chain, r, YOUNG_CLEAR_FLUSH);
}

bool umbra_clear_young(struct umbra_chain *chain, struct hva_range r)
{
	return young(chain, r, YOUNG_CLEAR);
}

bool umbra_test_young(struct umbra_chain *chain, struct hva_range r)
{
	return young(chain, r, YOUNG_TEST);
}

void umbra_release(struct umbra_chain *chain)
{
	struct round round;

	lock(chain);
	round_get(chain, EVERYBODY, &round);
	unlock(chain);
	for_each_member (i, round.mask)
		if (round.n[i]->ops->release)
			round.n[i]->ops->release(round.n[i]);
	round_put(chain, &round);
}

struct umbra_chain_counts umbra_chain_counts(struct umbra_chain *chain, enum umbra_source source)
{
	struct umbra_chain_counts counts;

	lock(chain);
	counts = chain->sources[source].counts;
	unlock(chain);
	return counts;
}
