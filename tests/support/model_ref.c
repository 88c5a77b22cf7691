/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The flat reference: one record for each 4K page of each root, and loops over pages. It knows nothing of tables, rmap,
 * history or tickets. Where the contract leaves a choice (a call under way on a simulated thread, a refused start), what
 * core did is adopted, if it is one of the choices.
 */
#include "model.h"

#include <string.h>

struct hva_range m_widen(struct hva_range r)
{
	const uint64_t first = r.start.v / UMBRA_PAGE_SIZE, last = (r.end.v - 1) / UMBRA_PAGE_SIZE;

	return (struct hva_range){ { first * UMBRA_PAGE_SIZE }, { (last + 1) * UMBRA_PAGE_SIZE } };
}

bool m_meet(struct hva_range a, struct hva_range b)
{
	return (a.start.v >= b.start.v && a.start.v < b.end.v) ||
	       (b.start.v >= a.start.v && b.start.v < a.end.v);
}

struct m_slot *m_slot_at(struct m_mmu *m, uint64_t gfn)
{
	for (unsigned int i = 0; i < M_SLOTS; i++) {
		struct m_slot *s = &m->slots[i];

		if (s->used && gfn >= s->gfn && gfn < s->gfn + s->npages)
			return s;
	}
	return NULL;
}

struct m_slot *m_slot_id(struct m_mmu *m, uint64_t id)
{
	for (unsigned int i = 0; i < M_SLOTS; i++)
		if (m->slots[i].used && m->slots[i].id == id)
			return &m->slots[i];
	return NULL;
}

static uint64_t hva_of(const struct m_slot *s, uint64_t gfn)
{
	return M_HVA + (s->page + gfn - s->gfn) * UMBRA_PAGE_SIZE;
}

bool m_may_be_huge(const struct m_slot *s, uint64_t gfn)
{
	const uint64_t block = gfn & ~511ULL;

	return !(s->flags & UMBRA_SLOT_4K_ONLY) && block >= s->gfn &&
	       block + 512 <= s->gfn + s->npages && (s->gfn & 511) == (s->page & 511) &&
	       (s->gfn & 511) == (s->out & 511);
}

bool m_meets_2m(const struct m_slot *s, uint64_t gfn, struct hva_range r, unsigned int level)
{
	const uint64_t first = level == 2 ? gfn & ~511ULL : gfn;
	const uint64_t start = hva_of(s, first);

	return m_meet(r, (struct hva_range){
				 { start }, { start + (level == 2 ? 512 : 1) * UMBRA_PAGE_SIZE } });
}

void m_drop(struct m_mmu *m, unsigned int r, uint64_t gfn, bool flushed)
{
	struct m_root *root = &m->roots[r];
	uint64_t first = gfn, n = 1;

	if (root->leaf[gfn].level == 2) {
		first = gfn & ~511ULL;
		n = m->w->options->wrong == WRONG_HALF ? 256 : 512;
	}
	memset(&root->leaf[first], 0, n * sizeof(root->leaf[0]));
	if (flushed)
		memset(&root->tlb[first], 0, n);
}

void m_zap(struct m_mmu *m, uint64_t gfn, uint64_t n, bool flushed)
{
	for (unsigned int r = 0; r < m->nroots; r++)
		for (uint64_t g = gfn; g < gfn + n && g < M_GUEST; g++) {
			if (m->roots[r].leaf[g].level)
				m_drop(m, r, g, flushed);
			m->roots[r].transit[g / 512].on =
				false; /* it must not come back by itself */
			if (flushed)
				m->roots[r].tlb[g] = 0;
		}
}

struct gfn_range m_gfns_of(const struct m_slot *s, struct hva_range r)
{
	const uint64_t start = hva_of(s, s->gfn), end = hva_of(s, s->gfn + s->npages);
	struct gfn_range g = { { s->gfn }, { s->gfn } };

	if (!m_meet(r, (struct hva_range){ { start }, { end } }))
		return g;
	if (r.start.v > start)
		g.start.v += (r.start.v - start) / UMBRA_PAGE_SIZE;
	g.end.v += ((r.end.v < end ? r.end.v : end) - start) / UMBRA_PAGE_SIZE;
	return g;
}

void m_zap_hva(struct m_mmu *m, struct hva_range r, bool flushed)
{
	r = m_widen(r);
	for (unsigned int i = 0; i < M_SLOTS; i++) {
		struct gfn_range g;

		if (!m->slots[i].used)
			continue;
		g = m_gfns_of(&m->slots[i], r);
		m_zap(m, g.start.v, g.end.v - g.start.v, flushed);
		if (g.start.v != g.end.v && m->w->options->wrong == WRONG_ALIAS)
			return;
	}
}

/* ---- what is open ---------------------------------------------------------------------------- */

bool m_must_open(const struct m_world *w, struct hva_range r)
{
	for (unsigned int i = 0; i < M_BRACKETS; i++)
		if (w->brackets[i].state == BRACKET_OPEN &&
		    m_meet(m_widen(w->brackets[i].r.hull), r))
			return true;
	return false;
}

bool m_may_open(const struct m_mmu *m, struct hva_range r)
{
	for (unsigned int i = 0; i < UMBRA_SOURCE_NR; i++)
		if (m->src[i].n &&
		    m_meet(r, (struct hva_range){ { m->src[i].lo }, { m->src[i].hi } }))
			return true;
	return false;
}

void m_union_add(struct m_union *u, struct hva_range r)
{
	r = m_widen(r);
	if (!u->n || r.start.v < u->lo)
		u->lo = r.start.v;
	if (!u->n || r.end.v > u->hi)
		u->hi = r.end.v;
	u->n++;
}

void m_union_del(struct m_union *u)
{
	u->n--;
}

/* The host addresses of the page, or block, that fault @c is about. */
struct hva_range m_asked(const struct m_call *c, unsigned int level)
{
	uint64_t start = c->req.hva.v, bytes = UMBRA_PAGE_SIZE;

	if (level == 2 && c->req.max_level == UMBRA_LEVEL_2M) {
		start &= ~(UMBRA_HUGE_SIZE - 1);
		bytes = UMBRA_HUGE_SIZE;
	}
	return (struct hva_range){ { start }, { start + bytes } };
}

void m_event(struct m_mmu *m, struct hva_range hull, bool must)
{
	hull = m_widen(hull);
	for (unsigned int i = 0; i < M_THREADS; i++) {
		struct m_call *c = &m->w->threads[i].call;

		if (!m->w->threads[i].busy || !c->resolves || c->m != m)
			continue;
		if (must && m_meet(hull, m_asked(c, 1)))
			c->must_4k = true;
		if (must && m_meet(hull, m_asked(c, 2)))
			c->must_2m = true;
		if (m_meet(hull, m_asked(c, 2)) || m_may_open(m, m_asked(c, 2)) ||
		    ++c->starts > UMBRA_HISTORY / 2)
			c->may = true;
	}
}

void m_slots_changed(struct m_mmu *m)
{
	for (unsigned int i = 0; i < M_THREADS; i++)
		if (m->w->threads[i].busy && m->w->threads[i].call.m == m)
			m->w->threads[i].call.slots_changed = true;
}

bool m_pinned(const struct m_mmu *m, struct hva_range r, bool lose)
{
	bool found = false;

	r = m_widen(r);
	for (unsigned int i = 0; i < M_PINS; i++) {
		struct m_pin *p = &m->w->pins[i];

		for (uint64_t g = p->gfn; p->held && p->mmu == m->nr && g < p->gfn + p->n; g++) {
			const struct m_slot *s = m_slot_at((struct m_mmu *)m, g);

			if (!s || !m_meets_2m(s, g, r, 1))
				continue;
			found = true;
			if (lose && !p->lost)
				m_saw(SEEN_pins_lost);
			p->lost |= lose;
		}
	}
	return found;
}

struct hva_range m_part(const struct umbra_range *r, uint32_t i)
{
	return m_widen(r->nr ? r->v[i] : r->hull);
}

/* ---- comparing ------------------------------------------------------------------------------- */

static bool drops(const struct m_call *c, struct m_mmu *m, uint64_t gfn, unsigned int level)
{
	const uint64_t first = level == 2 ? gfn & ~511ULL : gfn, n = level == 2 ? 512 : 1;
	const struct m_slot *s = m_slot_at(m, gfn);

	switch (c->op.kind) {
	case OP_start:
		for (uint32_t i = 0; s && i < (c->range->nr ? c->range->nr : 1); i++)
			if (m_meets_2m(s, gfn, m_part(c->range, i), level))
				return true;
		return false;
	case OP_slotdel:
	case OP_slotmove:
		if (c->m != m)
			return false;
		s = m_slot_id(m, c->op.a[1]);
		return (first < c->slot.gfn.v + c->slot.npages && c->slot.gfn.v < first + n) ||
		       (s && first < s->gfn + s->npages && s->gfn < first + n);
	default: return false;
	}
}

/* Calls whose effects come at a time of their own choice: those under way, and one whose answer is being looked at. */
static const struct m_call *next_call(const struct m_world *w, unsigned int *i)
{
	if (*i == 0) {
		*i = 1;
		if (w->adopt)
			return w->adopt; /* first: what is new is its doing */
	}
	for (; *i <= M_THREADS; ++*i)
		if (w->threads[*i - 1].busy)
			return &w->threads[(*i)++ - 1].call;
	return NULL;
}

static bool may_be_gone(struct m_mmu *m, uint64_t gfn, unsigned int level)
{
	const struct m_call *c;

	for (unsigned int i = 0; (c = next_call(m->w, &i));)
		if (drops(c, m, gfn, level))
			return true;
	return false;
}

static struct m_call *collapsing(struct m_mmu *m, uint64_t block)
{
	const struct m_call *c;

	for (unsigned int i = 0; (c = next_call(m->w, &i));)
		if (c->op.kind == OP_collapse && c->m == m && block * 512 >= c->op.a[1] &&
		    block * 512 + 512 <= c->op.a[1] + c->op.a[2])
			return (struct m_call *)c;
	return NULL;
}

static bool lookup(struct m_mmu *m, unsigned int r, uint64_t gfn, struct umbra_translation *t)
{
	return !umbra_lookup(m->roots[r].root,
			     (gpa_t){ (m->w->script->base + gfn) << UMBRA_PAGE_SHIFT }, t);
}

bool m_gone(struct m_mmu *m, unsigned int r, uint64_t gfn)
{
	struct umbra_translation t;

	return !lookup(m, r, gfn, &t);
}

/* A collapse may have made a hole of the block of @gfn, or a leaf of it. Is what is seen of it one of these? */
static bool adopt_collapse(struct m_mmu *m, unsigned int r, uint64_t gfn)
{
	struct m_root *root = &m->roots[r];
	const uint64_t block = gfn / 512, first = block * 512;
	struct m_call *c = collapsing(m, block);
	struct m_leaf *leaf = &root->leaf[first];
	struct m_slot *s = m_slot_at(m, first);
	struct umbra_translation t;
	const bool there = lookup(m, r, first, &t);
	uint8_t w, a = 0, d = 0;

	if (!c || !s || (there && t.level != UMBRA_LEVEL_2M))
		return false;
	if (root->transit[block].on) {
		w = root->transit[block].w;
		a = root->transit[block].a;
		d = root->transit[block].d;
		for (uint64_t i = 0; i < 512; i++)
			if (leaf[i].level)
				return false;
	} else {
		w = leaf->w;
		for (uint64_t i = 0; i < 512; i++) {
			if (leaf[i].level != 1 || leaf[i].w != w)
				return false;
			a |= leaf[i].a;
			d |= leaf[i].d;
		}
	}
	memset(leaf, 0, 512 * sizeof(*leaf));
	root->transit[block].on = !there;
	root->transit[block].by = c;
	root->transit[block].w = w;
	root->transit[block].a = a;
	root->transit[block].d = d;
	if (!there) {
		m_saw(SEEN_transits);
		return true;
	}
	if (t.writable != w || t.accessed != a || t.dirty != d)
		m_fail("mmu %u root %u page %#lx: collapsed, and lost or gained a right or a bit",
		       m->nr, r, first);
	for (uint64_t i = 0; i < 512; i++) {
		leaf[i] = (struct m_leaf){ 2, w, a, d };
		s->may_a[first + i - s->gfn] |= a;
		s->may_d[first + i - s->gfn] |= d;
	}
	c->collapsed++;
	m_saw(SEEN_collapses);
	return true;
}

static void mismatch(struct m_mmu *m, unsigned int r, uint64_t gfn, const struct m_leaf *is)
{
	const struct m_leaf *s = &m->roots[r].leaf[gfn];

	m_fail("mmu %u root %u page %#lx: level %u%s%s%s, but must be level %u%s%s%s", m->nr, r,
	       gfn, is->level, is->w ? " writable" : "", is->a ? " accessed" : "",
	       is->d ? " dirty" : "", s->level, s->w ? " writable" : "", s->a ? " accessed" : "",
	       s->d ? " dirty" : "");
}

static void compare_leaf(struct m_mmu *m, unsigned int r, uint64_t gfn, const struct m_leaf *is)
{
	const struct m_leaf *s = &m->roots[r].leaf[gfn];

	if (memcmp(s, is, sizeof(*s)) == 0)
		return;
	if (m->w->adopt && m->w->adopt->op.kind == OP_collapse && adopt_collapse(m, r, gfn))
		return;
	if (s->level && !is->level && may_be_gone(m, gfn, s->level)) {
		m_drop(m, r, gfn, false);
		return;
	}
	if (!adopt_collapse(m, r, gfn))
		mismatch(m, r, gfn, is);
}

void m_compare_page(struct m_mmu *m, unsigned int r, uint64_t gfn)
{
	struct umbra_translation t;
	struct m_leaf is = { 0, 0, 0, 0 };

	if (gfn >= M_GUEST)
		return;
	if (lookup(m, r, gfn, &t)) {
		const struct m_slot *s = m_slot_at(m, gfn);

		is = (struct m_leaf){ (uint8_t)t.level, t.writable, t.accessed, t.dirty };
		if (!s || t.pfn.v != s->out + (gfn - s->gfn))
			m_fail("mmu %u root %u page %#lx: not the frame of its slot", m->nr, r,
			       gfn);
	}
	compare_leaf(m, r, gfn, &is);
}

struct comparison {
	struct m_mmu *m;
	unsigned int r;
	uint64_t next;
};

static void compare_absent(struct comparison *c, uint64_t end)
{
	const struct m_leaf absent = { 0, 0, 0, 0 };

	for (; c->next < end; c->next++)
		if (c->m->roots[c->r].leaf[c->next].level)
			compare_leaf(c->m, c->r, c->next, &absent);
}

static int compare_present(void *arg, const struct umbra_leaf *leaf)
{
	struct comparison *c = arg;
	struct m_world *w = c->m->w;
	const uint64_t n = leaf->level == UMBRA_LEVEL_2M ? 512 : 1;
	const uint64_t first = leaf->gfn.v - w->script->base;
	const uint64_t page = (leaf->hva.v - M_HVA) / UMBRA_PAGE_SIZE;
	const struct m_slot *s = m_slot_at(c->m, first);
	const struct m_leaf is = { (uint8_t)leaf->level, leaf->writable, leaf->accessed,
				   leaf->dirty };

	if (first + n > M_GUEST || !s || leaf->slot_id != s->id ||
	    leaf->pfn.v != s->out + (first - s->gfn) || page != s->page + (first - s->gfn))
		m_fail("mmu %u root %u page %#lx: not the frame of its slot", c->m->nr, c->r,
		       first);
	compare_absent(c, first);
	for (uint64_t i = 0; i < n; i++) {
		const struct m_page *p = &w->pages[page + i];

		compare_leaf(c->m, c->r, first + i, &is);
		if (c->m->records && leaf->host_pfn + i != p->pfn)
			m_fail("mmu %u page %#lx: an old frame of the host's", c->m->nr, first + i);
		if (!p->present || (leaf->writable && !p->writable))
			m_fail("mmu %u page %#lx: the host has it no more, or forbids a write",
			       c->m->nr, first + i);
	}
	c->next = first + n;
	return 0;
}

/* A vCPU that has done all it was told to remembers nothing that the tables do not say. */
static void compare_cpu(struct m_mmu *m, unsigned int cpu)
{
	const struct m_cpu *c = &m->cpus[cpu];
	const unsigned int r = m_cpu_root(m, cpu);

	if (c->ack != m->posted || m->unposted)
		return;
	for (unsigned int i = 0; i < 16; i++) {
		const struct m_tlb *t = &c->tlb[i];
		const struct m_leaf *s =
			&m->roots[r].leaf[t->valid ? t->gfn - m->w->script->base : 0];

		if (t->valid && (s->level != (t->huge ? 2 : 1) || !s->a || (t->writable && !s->w) ||
				 (t->dirty && !s->d)))
			m_fail("mmu %u cpu %u page %#lx: remembered after every flush", m->nr, cpu,
			       t->gfn - m->w->script->base);
	}
	for (uint64_t b = 0; b < M_BLOCKS; b++)
		if (c->psc[b].valid &&
		    c->psc[b].table != m_linked_table(m, r, m->w->script->base + b * 512))
			m_fail("mmu %u cpu %u block %lu: a table remembered after every flush",
			       m->nr, cpu, b);
}

void m_compare(struct m_mmu *m)
{
	for (unsigned int r = 0; r < m->nroots; r++) {
		struct comparison c = { .m = m, .r = r };

		umbra_for_each_leaf(m->roots[r].root, (struct gfn_range){ { 0 }, { 1ULL << 35 } },
				    compare_present, &c);
		compare_absent(&c, M_GUEST);
	}
	for (unsigned int i = 0; i < M_CPUS; i++)
		compare_cpu(m, i);
}

void m_compare_all(struct m_world *w)
{
	for (unsigned int i = 0; i < M_MMUS; i++)
		if (w->mmus[i].mmu)
			m_compare(&w->mmus[i]);
}
