/* SPDX-License-Identifier: BSD-2-Clause */
/* What the oracle hears and sees, and what it makes of it. */
#include <stdio.h>
#include <string.h>
#include <vmm/oracle.h>

const char *const oracle_cell_names[ORACLE_CELL_NR] = { "exact", "wider",    "part",  "missed",
							"quiet", "needless", "known", "n/a" };

/* ---- what is seen of the host and of us ---------------------------------------------------------------------- */

struct page_state {
	uint32_t flags; /* the host's */
	uint64_t pfn;
	bool leaf, huge, writable;
	uint64_t leaf_pfn;
};

static struct page_state before[ORACLE_PAGES], after[ORACLE_PAGES]; /* one row at a time */

static bool page_differs(const struct page_state *a, const struct umbra_page *now)
{
	return (a->flags ^ now->flags) & UMBRA_PAGE_PRESENT || a->pfn != now->host_pfn;
}

/* Has the host changed already where @r is? Before the change is what a start promises. */
static bool changed_already(struct oracle *o, struct hva_range r)
{
	for (uint64_t at = r.start.v & ~(UMBRA_PAGE_SIZE - 1); at < r.end.v;
	     at += UMBRA_PAGE_SIZE) {
		const struct page_state *was = &before[(at - o->mem.v) >> UMBRA_PAGE_SHIFT];
		struct umbra_page now;

		if (was->leaf && !umbra_hostmap_query(o->map, (hva_t){ at }, &now) &&
		    page_differs(was, &now))
			return true;
	}
	return false;
}

unsigned int oracle_changed_so_far(struct oracle *o)
{
	static struct umbra_page now[ORACLE_PAGES];
	unsigned int n = 0;

	if (umbra_hostmap_query_range(o->map, o->mem, now, ORACLE_PAGES))
		return 0;
	for (uint64_t i = 0; i < ORACLE_PAGES; i++)
		n += before[i].leaf && page_differs(&before[i], &now[i]);
	return n;
}

struct seen {
	struct oracle *o;
	struct page_state *pages;
};

static int see_leaf(void *arg, const struct umbra_leaf *leaf)
{
	const struct seen *s = arg;
	const uint64_t n = leaf->level == UMBRA_LEVEL_2M ? UMBRA_HUGE_PAGES : 1;
	const uint64_t first = (leaf->hva.v - s->o->mem.v) >> UMBRA_PAGE_SHIFT;

	for (uint64_t i = 0; i < n && first + i < ORACLE_PAGES; i++) {
		struct page_state *p = &s->pages[first + i];

		p->leaf = true;
		p->huge = n > 1;
		p->writable = leaf->writable;
		p->leaf_pfn = leaf->host_pfn == UMBRA_HOST_PFN_UNKNOWN ? leaf->host_pfn
								       : leaf->host_pfn + i;
	}
	return 0;
}

static void see(struct oracle *o, struct page_state *pages)
{
	struct seen s = { o, pages };

	memset(pages, 0, ORACLE_PAGES * sizeof(*pages));
	for (uint64_t i = 0; i < ORACLE_PAGES; i++) {
		struct umbra_page p = { 0, 0 };

		umbra_hostmap_query(o->map, (hva_t){ o->mem.v + (i << UMBRA_PAGE_SHIFT) }, &p);
		pages[i].flags = p.flags;
		pages[i].pfn = p.host_pfn;
	}
	umbra_for_each_leaf(o->root, (struct gfn_range){ { 0 }, { ORACLE_PAGES } }, see_leaf, &s);
}

/* ---- listening ------------------------------------------------------------------------------------------- */

static void hear(struct oracle *o, enum umbra_source source, enum umbra_cause cause,
		 struct hva_range r, bool start)
{
	const struct hva_range all = oracle_range(o, 0, ORACLE_BYTES);
	struct oracle_heard *h = &o->heard[source];
	bool late;

	r.start.v = r.start.v > all.start.v ? r.start.v : all.start.v;
	r.end.v = r.end.v < all.end.v ? r.end.v : all.end.v;
	if (r.start.v >= r.end.v)
		return;
	late = start && changed_already(o, r);
	pthread_mutex_lock(&o->lock);
	if (o->listening && start) {
		h->starts++;
		h->late += late;
		h->cause = cause;
		if (h->nr < ORACLE_RANGES_MAX)
			h->v[h->nr++] = r;
		else
			h->full = true;
	} else if (o->listening) {
		h->ends++;
	}
	pthread_mutex_unlock(&o->lock);
}

static void on_chain(struct umbra_notifier *n, const struct umbra_range *r, bool start)
{
	struct oracle *o = (struct oracle *)(void *)((char *)n - offsetof(struct oracle, listener));

	if (!o->listening || r->source >= UMBRA_SOURCE_NR)
		return;
	for (uint32_t i = 0; i < r->nr; i++)
		hear(o, r->source, r->cause, r->v[i], start);
	if (!r->nr)
		hear(o, r->source, r->cause, r->hull, start);
}

static int on_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	on_chain(n, r, true);
	return 0;
}

static void on_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	on_chain(n, r, false);
}

const struct umbra_notifier_ops oracle_listener_ops = {
	.invalidate_range_start = on_start,
	.invalidate_range_end = on_end,
};

void oracle_on_record(void *ctx, const struct umbra_tracepoint_record *rec)
{
	if (rec->kind == UMBRA_TRACEPOINT_UNMAP)
		hear(ctx, UMBRA_SOURCE_TRACEPOINT, UMBRA_CAUSE_UNKNOWN, rec->hva, true);
}

/* ---- the verdict ---------------------------------------------------------------------------------------------- */

static bool in(const struct hva_range *v, unsigned int nr, uint64_t start, uint64_t end)
{
	for (unsigned int i = 0; i < nr; i++) {
		if (v[i].start.v < end && start < v[i].end.v)
			return true;
	}
	return false;
}

/* Is what the leaf over page @i said no longer so? */
static bool is_changed(const struct oracle *o, uint64_t i)
{
	const struct page_state *b = &before[i], *a = &after[i];
	const uint64_t at = o->mem.v + (i << UMBRA_PAGE_SHIFT);
	const bool shared_now =
		b->flags & ~a->flags & UMBRA_PAGE_EXCLUSIVE && !(b->flags & UMBRA_PAGE_FILE);

	if (!b->leaf)
		return false;
	if (!(a->flags & UMBRA_PAGE_PRESENT) || b->pfn != a->pfn ||
	    (b->huge && !(a->flags & UMBRA_PAGE_HUGE)))
		return true;
	return b->writable && (shared_now || a->flags & UMBRA_PAGE_UFFD_WP ||
			       in(o->refused, o->refused_nr, at, at + UMBRA_PAGE_SIZE));
}

/* Did @h cover page @i, as a consumer obeys it: a 2M leaf goes whole? */
static bool covers(const struct oracle *o, const struct oracle_heard *h, uint64_t i)
{
	const uint64_t size = before[i].huge ? UMBRA_HUGE_SIZE : UMBRA_PAGE_SIZE;
	const uint64_t at = (o->mem.v + (i << UMBRA_PAGE_SHIFT)) & ~(size - 1);

	return h->full || in(h->v, h->nr, at, at + size);
}

static bool within_named(const struct oracle *o, struct hva_range r)
{
	for (uint64_t at = r.start.v & ~(UMBRA_PAGE_SIZE - 1); at < r.end.v;
	     at += UMBRA_PAGE_SIZE) {
		if (!in(o->named, o->named_nr, at, at + UMBRA_PAGE_SIZE))
			return false;
	}
	return true;
}

static bool promises(const struct oracle *o, enum umbra_source source)
{
	const struct umbra_promises *p = umbra_source_promises(source);
	const bool own = o->actor == ORACLE_OWN;

	switch (source) {
	case UMBRA_SOURCE_OWN: return own;
	case UMBRA_SOURCE_UFFD:
		return o->registered && o->row->class == ORACLE_CALL &&
		       (own ? p->sees_own_calls : p->sees_other_threads);
	default:
		return o->row->class == ORACLE_PROTECT ? p->sees_protect
		       : own                           ? p->sees_own_calls
		       : o->actor == ORACLE_THREAD && o->row->class == ORACLE_CALL
			       ? p->sees_other_threads
			       : p->sees_kernel;
	}
}

/* An own call that raises REMOVE has its own bracket: the reader counts it and does not announce it once more. */
static bool left_to_own(struct oracle *o)
{
	struct umbra_uffd_stats stats;

	umbra_uffd_stats(o->uffd, &stats);
	return o->actor == ORACLE_OWN && stats.own_removes > o->own_removes;
}

static void judge_source(struct oracle *o, enum umbra_source source, const struct oracle_sources *s,
			 struct oracle_result *r)
{
	const struct oracle_heard *h = &o->heard[source];
	unsigned int covered = 0;
	bool wider = false;

	r->source[source].starts = h->starts;
	r->source[source].ends = h->ends;
	r->source[source].late = h->late;
	r->source[source].cause = h->cause;
	if (s->off[source] || (source == UMBRA_SOURCE_UFFD && !o->registered)) {
		r->source[source].cell = ORACLE_OFF;
		return;
	}
	for (uint64_t i = 0; i < ORACLE_PAGES; i++)
		covered += is_changed(o, i) && covers(o, h, i);
	for (unsigned int i = 0; i < h->nr && !wider; i++)
		wider = !within_named(o, h->v[i]);
	r->source[source].promised =
		promises(o, source) && !(source == UMBRA_SOURCE_TRACEPOINT && r->lost);
	if (!r->changed)
		r->source[source].cell = h->starts ? ORACLE_NEEDLESS : ORACLE_QUIET;
	else if (!covered)
		r->source[source].cell = ORACLE_MISSED;
	else if (covered < r->changed)
		r->source[source].cell = ORACLE_PART;
	else
		r->source[source].cell = wider ? ORACLE_WIDER : ORACLE_EXACT;
	if (covered < r->changed && source == UMBRA_SOURCE_UFFD && left_to_own(o)) {
		r->source[source].cell = ORACLE_KNOWN;
		return;
	}
	/* A start that promises to come before the change came before it. */
	r->source[source].broken =
		r->source[source].promised &&
		(covered < r->changed || (source == UMBRA_SOURCE_OWN && h->late &&
					  umbra_source_promises(source)->start_before_change));
}

static uint64_t lost_so_far(const struct oracle *o)
{
	struct umbra_tracepoint_stats stats = { 0 };

	if (o->tracepoint)
		umbra_tracepoint_stats(o->tracepoint, &stats);
	return stats.lost;
}

static void count_line(void *arg, const char *line)
{
	(void)line;
	++*(unsigned int *)arg;
}

unsigned int oracle_heard_so_far(struct oracle *o)
{
	unsigned int all = 0;

	pthread_mutex_lock(&o->lock);
	for (unsigned int source = 0; source < UMBRA_SOURCE_NR; source++)
		all += o->heard[source].starts;
	pthread_mutex_unlock(&o->lock);
	return all;
}

void oracle_judge(struct oracle *o, const struct oracle_sources *s, struct oracle_result *r)
{
	struct umbra_audit_report report = { 0 };
	unsigned int lines = 0;
	bool promised = false;
	int64_t wrong;

	see(o, after);
	for (uint64_t i = 0; i < ORACLE_PAGES; i++) {
		const bool changed = is_changed(o, i), gone = before[i].leaf && !after[i].leaf;
		bool said = false;

		for (unsigned int source = 0; source < UMBRA_SOURCE_NR; source++)
			said |= source != UMBRA_SOURCE_TRACEPOINT &&
				covers(o, &o->heard[source], i);
		r->leaves += before[i].leaf;
		r->leaves_2m += before[i].huge;
		r->changed += changed;
		r->dropped += gone;
		r->beyond += gone && !changed;
		r->stale += changed && after[i].leaf && (after[i].writable || !before[i].writable);
		r->silent += gone && !said;
	}
	r->lost = (unsigned int)(lost_so_far(o) - o->lost_before);
	r->checks = umbra_check(o->mmu, count_line, &lines);
	if (!s->off[UMBRA_SOURCE_UFFD] && !o->registered)
		r->no_uffd =
			o->row->flags & ORACLE_NO_UFFD
				? "registered for write protection, shared memory is never mapped by 2M"
				: "this kernel's userfaultfd does not take this memory";
	/* the audit waits for each page that is wrong; and it would only find these */
	wrong = r->stale ? (int64_t)r->stale : umbra_audit(o->root, o->map, &report, NULL);
	r->audit = wrong < 0 ? 1 : (unsigned int)wrong + (unsigned int)report.moved_by_kernel;
	for (unsigned int source = 0; source < UMBRA_SOURCE_NR; source++) {
		if (source > UMBRA_SOURCE_TRACEPOINT)
			continue;
		judge_source(o, (enum umbra_source)source, s, r);
		if (source != UMBRA_SOURCE_TRACEPOINT && r->source[source].cell != ORACLE_OFF)
			promised |= r->source[source].promised;
	}
	r->obeyed = !r->checks && !r->silent && (!promised || (!r->stale && !r->audit));
}

void oracle_look(struct oracle *o)
{
	struct umbra_uffd_stats stats = { 0 };

	if (o->uffd)
		umbra_uffd_stats(o->uffd, &stats);
	o->own_removes = stats.own_removes;
	o->lost_before = lost_so_far(o);
	see(o, before);
}
