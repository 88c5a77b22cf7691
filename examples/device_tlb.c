/* SPDX-License-Identifier: BSD-2-Clause */
/* A device's TLB with 4K and 2M entries: hits without a lock, fills by snapshot and retry. */
#include "device_tlb.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

/* A tag is the entry's first address; the bits below the page size are free. Zero: no entry. */
#define TAG_VALID 1ULL
#define TAG_WRITE 2ULL
#define TAG_FLAGS (TAG_VALID | TAG_WRITE)

/*
 * Only the port's thread makes entries, others only clear tags. So the thread that finds its tag in
 * place knows that @pfn is the one it put there.
 */
struct entry {
	_Atomic uint64_t tag;
	_Atomic uint64_t pfn;
};

enum { SIZE_4K, SIZE_2M, SIZES };

static const uint64_t bytes_of[SIZES] = { UMBRA_PAGE_SIZE, UMBRA_HUGE_SIZE };

struct device_port {
	struct device_tlb *tlb;
	_Atomic uint64_t section; /* odd: an access is under way */
	bool open;                /* under the lock */
	uint32_t victim;          /* the port's thread: which way is replaced next */
	struct entry entries[SIZES][DEVICE_TLB_SETS][DEVICE_TLB_WAYS];
};

struct device_tlb {
	struct umbra_notifier notifier;
	struct umbra_chain *chain;
	struct umbra_hostmap *map;
	/*
	 * Guards all below and every store to an entry. Nothing is allocated, and no system call
	 * that changes mappings is made, under it: the reader of userfaultfd takes it in start.
	 */
	pthread_mutex_t lock;
	uint64_t begun, ended;   /* invalidations; ended is also the sequence number */
	struct hva_range opened; /* union of what is open, while begun != ended */
	bool released;
	struct device_tlb_stats stats;
	struct device_port ports[DEVICE_TLB_PORTS];
};

static struct device_tlb *tlb_of(struct umbra_notifier *n)
{
	return (struct device_tlb *)((char *)n - offsetof(struct device_tlb, notifier));
}

static struct entry *set_of(struct device_port *port, int size, uint64_t hva)
{
	return port->entries[size][(hva / bytes_of[size]) % DEVICE_TLB_SETS];
}

static struct hva_range span_of(uint64_t hva, int size)
{
	const uint64_t start = hva & ~(bytes_of[size] - 1);

	return (struct hva_range){ { start }, { start + bytes_of[size] } };
}

/* ---- hits -------------------------------------------------------------------------------------
 */

static bool allows(uint64_t tag, uint64_t start, uint32_t access)
{
	return (tag & TAG_VALID) && (tag & ~TAG_FLAGS) == start &&
	       (!(access & UMBRA_ACCESS_WRITE) || (tag & TAG_WRITE));
}

/*
 * The four numbered steps are sequentially consistent:
 *   port: (1) section becomes odd   (2) reads the tag
 *   start: (3) clears the tag       (4) reads section
 * If the port still finds the tag, 2 is before 3, so 1 before 4, and start waits for the section.
 */
bool device_tlb_enter(struct device_port *port, hva_t hva, uint32_t access,
		      struct device_translation *t)
{
	atomic_fetch_add(&port->section, 1); /* (1) */
	for (int size = SIZES - 1; size >= 0; size--) {
		const uint64_t start = span_of(hva.v, size).start.v;
		struct entry *set = set_of(port, size, hva.v);

		for (int way = 0; way < DEVICE_TLB_WAYS; way++) {
			const uint64_t tag = atomic_load(&set[way].tag); /* (2) */

			if (!allows(tag, start, access))
				continue;
			t->pfn = atomic_load(&set[way].pfn) + ((hva.v - start) >> UMBRA_PAGE_SHIFT);
			t->level = size == SIZE_2M ? UMBRA_LEVEL_2M : UMBRA_LEVEL_4K;
			t->writable = tag & TAG_WRITE;
			return true;
		}
	}
	device_tlb_leave(port);
	return false;
}

void device_tlb_leave(struct device_port *port)
{
	atomic_fetch_add(&port->section, 1);
}

/* ---- misses -----------------------------------------------------------------------------------
 */

/* Lock held. */
static bool is_open(const struct device_tlb *tlb, struct hva_range r)
{
	return tlb->begun != tlb->ended && hva_ranges_meet(tlb->opened, r);
}

/* Lock held. May an answer of the host that was asked for at @seq be used for @r? */
static int verdict(struct device_tlb *tlb, struct hva_range r, uint64_t seq)
{
	if (tlb->released)
		return -ESHUTDOWN;
	if (is_open(tlb, r)) {
		tlb->stats.retried_open++;
		return -EAGAIN;
	}
	if (tlb->ended != seq) {
		tlb->stats.retried_seq++;
		return -EAGAIN;
	}
	return 0;
}

/* Lock held, by the port's thread. An entry for the same place is replaced, else a free one used. */
static void install(struct device_port *port, int size, uint64_t tag, uint64_t pfn)
{
	const uint64_t start = tag & ~TAG_FLAGS;
	struct entry *set = set_of(port, size, start);
	struct entry *e = NULL;

	for (int way = 0; way < DEVICE_TLB_WAYS; way++) {
		const uint64_t old = atomic_load(&set[way].tag);

		if ((old & TAG_VALID) && (old & ~TAG_FLAGS) == start) {
			e = &set[way];
			break;
		}
		if (!(old & TAG_VALID) && !e)
			e = &set[way];
	}
	if (!e)
		e = &set[port->victim++ % DEVICE_TLB_WAYS];
	atomic_store(&e->pfn, pfn);
	atomic_store(&e->tag, tag);
}

int device_tlb_fill(struct device_port *port, hva_t hva, uint32_t access)
{
	const struct umbra_resolve_req req = {
		.hva = span_of(hva.v, SIZE_4K).start,
		.access = access,
		.max_level = UMBRA_LEVEL_2M,
	};
	struct device_tlb *tlb = port->tlb;
	struct umbra_resolved res = { 0 };
	struct hva_range span;
	uint64_t seq;
	int size, rc, late;

	pthread_mutex_lock(&tlb->lock);
	seq = tlb->ended;
	rc = verdict(tlb, span_of(hva.v, SIZE_4K), seq);
	pthread_mutex_unlock(&tlb->lock);
	if (rc)
		return rc;

	rc = umbra_hostmap_resolve(tlb->map, tlb->chain, &req, &res);
	if (!rc && (access & UMBRA_ACCESS_WRITE) && !res.writable)
		rc = -EAGAIN;
	if (!rc && res.host_pfn == UMBRA_HOST_PFN_UNKNOWN)
		rc = -EPERM;

	/* The whole entry is what counts, not the page that was missed. A no is an answer, too. */
	size = res.level == UMBRA_LEVEL_2M ? SIZE_2M : SIZE_4K;
	span = span_of(hva.v, size);
	pthread_mutex_lock(&tlb->lock);
	late = verdict(tlb, span, seq);
	if (!late && !rc) {
		install(port, size, span.start.v | TAG_VALID | (res.writable ? TAG_WRITE : 0),
			res.host_pfn);
		if (size == SIZE_2M)
			tlb->stats.filled_2m++;
		else
			tlb->stats.filled_4k++;
	}
	pthread_mutex_unlock(&tlb->lock);
	return late ? late : rc;
}

/* ---- invalidations ----------------------------------------------------------------------------
 */

static bool range_meets(const struct umbra_range *r, struct hva_range span)
{
	if (!hva_ranges_meet(hva_range_widen(r->hull), span))
		return false;
	for (uint32_t i = 0; i < r->nr; i++)
		if (hva_ranges_meet(hva_range_widen(r->v[i]), span))
			return true;
	return !r->nr;
}

/* Lock held. @r NULL: all. The work is bounded by the size of the TLB, whatever the range. */
static void drop(struct device_tlb *tlb, struct device_port *port, const struct umbra_range *r)
{
	struct entry *e = &port->entries[0][0][0];
	const size_t per_size = DEVICE_TLB_SETS * DEVICE_TLB_WAYS;

	for (size_t i = 0; i < SIZES * per_size; i++) {
		const int size = i < per_size ? SIZE_4K : SIZE_2M;
		const uint64_t tag = atomic_load(&e[i].tag);

		if (!(tag & TAG_VALID) || (r && !range_meets(r, span_of(tag, size))))
			continue;
		atomic_store(&e[i].tag, 0); /* (3) */
		if (size == SIZE_2M)
			tlb->stats.flushed_2m++;
		else
			tlb->stats.flushed_4k++;
	}
}

static void drop_all_ports(struct device_tlb *tlb, const struct umbra_range *r)
{
	for (int i = 0; i < DEVICE_TLB_PORTS; i++)
		if (tlb->ports[i].open)
			drop(tlb, &tlb->ports[i], r);
}

/*
 * Until no port is in a section that it was in when the entries went: what it does there may rest
 * on one of them. Without the lock. False: somebody is, and @may_wait is false.
 */
static bool sections_pass(struct device_tlb *tlb, bool may_wait, bool *waited)
{
	*waited = false;
	for (int i = 0; i < DEVICE_TLB_PORTS; i++) {
		_Atomic uint64_t *section = &tlb->ports[i].section;
		const uint64_t seen = atomic_load(section); /* (4) */

		while (seen % 2 && atomic_load(section) == seen) {
			if (!may_wait)
				return false;
			*waited = true;
			sched_yield();
		}
	}
	return true;
}

/* Lock held. Counted, never matched: the union stays as wide as it was until the last end. */
static void count_begin(struct device_tlb *tlb, struct hva_range r)
{
	if (tlb->begun++ == tlb->ended) {
		tlb->opened = r;
		return;
	}
	if (r.start.v < tlb->opened.start.v)
		tlb->opened.start = r.start;
	if (r.end.v > tlb->opened.end.v)
		tlb->opened.end = r.end;
}

/*
 * Waits for accesses under way only where it may. A source that can neither wait nor ask again (the
 * reader of userfaultfd, for whom an access may itself be waiting) gets what it can use: the
 * entries are gone, and an access under way ends by itself, later.
 */
static int tlb_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	const bool may_wait = r->flags & UMBRA_RANGE_BLOCKABLE;
	const bool forced = r->flags & UMBRA_RANGE_FORCED;
	struct device_tlb *tlb = tlb_of(n);
	bool passed, waited;

	if (may_wait || forced) /* held for short, bounded work only */
		pthread_mutex_lock(&tlb->lock);
	else if (pthread_mutex_trylock(&tlb->lock))
		return -EAGAIN;
	tlb->stats.starts++;
	count_begin(tlb, hva_range_widen(r->hull));
	drop_all_ports(tlb, r);
	pthread_mutex_unlock(&tlb->lock);

	passed = sections_pass(tlb, may_wait, &waited);
	if (passed && !waited)
		return 0;
	pthread_mutex_lock(&tlb->lock);
	tlb->stats.waited += waited;
	if (!passed && forced)
		tlb->stats.unwaited++;
	if (!passed && !forced) {
		/* Who asks again finds the entries gone already, and most likely the section over. */
		tlb->ended++;
		tlb->stats.refused++;
	}
	pthread_mutex_unlock(&tlb->lock);
	return passed || forced ? 0 : -EAGAIN;
}

static void tlb_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct device_tlb *tlb = tlb_of(n);

	(void)r;
	pthread_mutex_lock(&tlb->lock);
	tlb->ended++;
	pthread_mutex_unlock(&tlb->lock);
}

static void tlb_release(struct umbra_notifier *n)
{
	struct device_tlb *tlb = tlb_of(n);
	bool waited;

	pthread_mutex_lock(&tlb->lock);
	tlb->released = true;
	drop_all_ports(tlb, NULL);
	pthread_mutex_unlock(&tlb->lock);
	sections_pass(tlb, true, &waited);
}

static const struct umbra_notifier_ops tlb_ops = {
	.invalidate_range_start = tlb_start,
	.invalidate_range_end = tlb_end,
	.release = tlb_release,
};

/* ---- life -------------------------------------------------------------------------------------
 */

int device_tlb_create(struct device_tlb **out, struct umbra_chain *chain, struct umbra_hostmap *map)
{
	struct device_tlb *tlb;
	int rc;

	if (!umbra_hostmap_has_pfns(map))
		return -EPERM;
	tlb = calloc(1, sizeof(*tlb));
	if (!tlb)
		return -ENOMEM;
	tlb->notifier = (struct umbra_notifier){ .ops = &tlb_ops, .name = "device-tlb" };
	tlb->chain = chain;
	tlb->map = map;
	pthread_mutex_init(&tlb->lock, NULL);
	for (int i = 0; i < DEVICE_TLB_PORTS; i++)
		tlb->ports[i].tlb = tlb;
	rc = umbra_chain_register(chain, &tlb->notifier);
	if (rc) {
		pthread_mutex_destroy(&tlb->lock);
		free(tlb);
		return rc;
	}
	*out = tlb;
	return 0;
}

void device_tlb_destroy(struct device_tlb *tlb)
{
	umbra_chain_unregister(tlb->chain, &tlb->notifier);
	pthread_mutex_destroy(&tlb->lock);
	free(tlb);
}

struct device_port *device_tlb_port_open(struct device_tlb *tlb)
{
	struct device_port *port = NULL;

	pthread_mutex_lock(&tlb->lock);
	for (int i = 0; i < DEVICE_TLB_PORTS && !port; i++)
		if (!tlb->ports[i].open)
			port = &tlb->ports[i];
	if (port)
		port->open = true;
	pthread_mutex_unlock(&tlb->lock);
	return port;
}

void device_tlb_port_close(struct device_port *port)
{
	struct device_tlb *tlb = port->tlb;
	struct entry *e = &port->entries[0][0][0];

	pthread_mutex_lock(&tlb->lock);
	for (size_t i = 0; i < SIZES * DEVICE_TLB_SETS * DEVICE_TLB_WAYS; i++)
		atomic_store(&e[i].tag, 0);
	port->open = false;
	pthread_mutex_unlock(&tlb->lock);
}

/* ---- seeing -----------------------------------------------------------------------------------
 */

/* Would a write to such a page fault, or give it another frame? As far as flags can tell. */
static bool write_moves(uint32_t flags)
{
	return (flags & (UMBRA_PAGE_UFFD_WP | UMBRA_PAGE_ZERO)) ||
	       !(flags & (UMBRA_PAGE_FILE | UMBRA_PAGE_EXCLUSIVE));
}

/* Lock held. */
static int audit_entry(struct device_tlb *tlb, const struct entry *e, int size, FILE *out)
{
	const uint64_t tag = atomic_load(&e->tag), pfn = atomic_load(&e->pfn);
	const struct hva_range span = span_of(tag, size);
	const char *wrong = NULL;
	struct umbra_page page;
	int rc;

	if (!(tag & TAG_VALID) || is_open(tlb, span))
		return 0;
	for (uint64_t at = span.start.v, k = 0; at < span.end.v && !wrong;
	     at += UMBRA_PAGE_SIZE, k++) {
		rc = umbra_hostmap_query(tlb->map, (hva_t){ at }, &page);
		if (rc)
			return rc;
		if (!(page.flags & UMBRA_PAGE_PRESENT))
			wrong = "not present";
		else if (page.host_pfn != pfn + k)
			wrong = "another frame";
		else if (size == SIZE_2M && !(page.flags & UMBRA_PAGE_HUGE))
			wrong = "2M over 4K pages";
		else if ((tag & TAG_WRITE) && write_moves(page.flags))
			wrong = "writable where a write does not stay in place";
	}
	if (wrong && out)
		fprintf(out, "device TLB: 0x%" PRIx64 " (%s): %s; frame 0x%" PRIx64 "\n",
			span.start.v, size == SIZE_2M ? "2M" : "4K", wrong, pfn);
	return wrong ? 1 : 0;
}

int device_tlb_audit(struct device_tlb *tlb, FILE *out)
{
	const size_t per_size = DEVICE_TLB_SETS * DEVICE_TLB_WAYS;
	int bad = 0, rc = 0;

	pthread_mutex_lock(&tlb->lock);
	for (int p = 0; p < DEVICE_TLB_PORTS && rc >= 0; p++) {
		const struct entry *e = &tlb->ports[p].entries[0][0][0];

		for (size_t i = 0; i < SIZES * per_size && rc >= 0; i++) {
			rc = audit_entry(tlb, &e[i], i < per_size ? SIZE_4K : SIZE_2M, out);
			bad += rc > 0;
		}
	}
	pthread_mutex_unlock(&tlb->lock);
	return rc < 0 ? rc : bad;
}

void device_tlb_stats(struct device_tlb *tlb, struct device_tlb_stats *stats)
{
	pthread_mutex_lock(&tlb->lock);
	*stats = tlb->stats;
	stats->entries = 0;
	for (int p = 0; p < DEVICE_TLB_PORTS; p++) {
		const struct entry *e = &tlb->ports[p].entries[0][0][0];

		for (size_t i = 0; i < SIZES * DEVICE_TLB_SETS * DEVICE_TLB_WAYS; i++)
			stats->entries += atomic_load(&e[i].tag) & TAG_VALID;
	}
	pthread_mutex_unlock(&tlb->lock);
}
