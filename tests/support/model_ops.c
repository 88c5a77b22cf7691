/* SPDX-License-Identifier: BSD-2-Clause */
/* Slots, brackets and collapse on the reference: the operations that simulated threads do step by step. */
#include <errno.h>
#include <string.h>

#include "model_ops.h"

/* Over now, but not by a known effect: what core dropped is what is seen. */
static void adopt(struct m_call *c)
{
	c->w->adopt = c;
	m_compare_all(c->w);
	c->w->adopt = NULL;
}

static struct hva_range slot_hull(const struct m_slot *s)
{
	return (struct hva_range){ { M_HVA + s->page * UMBRA_PAGE_SIZE },
				   { M_HVA + (s->page + s->npages) * UMBRA_PAGE_SIZE } };
}

static bool gfns_pinned(const struct m_mmu *m, uint64_t gfn, uint64_t n)
{
	for (unsigned int i = 0; i < M_PINS; i++) {
		const struct m_pin *p = &m->w->pins[i];

		if (p->held && p->mmu == m->nr && p->gfn < gfn + n && gfn < p->gfn + p->n)
			return true;
	}
	return false;
}

/* ---- slots ---------------------------------------------------------------------------------- */

static bool gfns_taken(struct m_mmu *m, uint64_t gfn, uint64_t n, uint32_t but_id)
{
	for (unsigned int i = 0; i < M_SLOTS; i++) {
		const struct m_slot *s = &m->slots[i];

		if (s->used && s->id != but_id && s->gfn < gfn + n && gfn < s->gfn + s->npages)
			return true;
	}
	return false;
}

static bool add_before(struct m_call *c)
{
	const uint64_t *a = c->op.a, id = a[1] % M_SLOTS;

	if (a[2] >= M_GUEST || a[4] >= M_HOST)
		return false;
	c->slot = (struct umbra_memslot){
		.id = (uint32_t)id,
		.flags = (uint32_t)a[5] & 7,
		.gfn = { c->w->script->base + a[2] },
		.npages = a[3] < M_GUEST - a[2] ? a[3] : M_GUEST - a[2],
		.hva = { M_HVA + a[4] * UMBRA_PAGE_SIZE },
		.out = { m_out(id, a[2], a[5] >> 8) },
	};
	if (c->slot.npages > M_HOST - a[4])
		c->slot.npages = M_HOST - a[4];
	if (c->m->released)
		c->expect = ESHUTDOWN;
	else if (!c->slot.npages)
		c->expect = EINVAL;
	else if (m_slot_id(c->m, id) || gfns_taken(c->m, a[2], c->slot.npages, UINT32_MAX))
		c->expect = EEXIST;
	c->w->oom_hit = false;
	return true;
}

static void open_core(struct m_call *c, struct hva_range hull)
{
	c->hull = hull;
	c->core_open = true;
	m_union_add(&c->m->src[UMBRA_SOURCE_CORE], hull);
	m_event(c->m, hull, false);
}

static void close_core(struct m_call *c)
{
	if (!c->core_open)
		return;
	m_union_del(&c->m->src[UMBRA_SOURCE_CORE]);
	m_event(c->m, c->hull, false);
}

/* Finds the slot to remove or move; and what must be answered if nobody comes between. */
static bool change_before(struct m_call *c)
{
	const struct m_slot *s = m_slot_id(c->m, c->op.a[1]);

	if (c->op.kind == OP_slotmove && c->op.a[2] >= M_GUEST)
		return false;
	if (!s) {
		c->expect = ENOENT;
		return true;
	}
	if (c->op.kind == OP_slotmove && s->npages > M_GUEST - c->op.a[2])
		return false;
	c->slot.gfn.v = s->gfn;
	c->slot.npages = s->npages;
	if (gfns_pinned(c->m, s->gfn, s->npages)) {
		c->expect = EBUSY;
		return true;
	}
	if (c->op.kind == OP_slotmove && gfns_taken(c->m, c->op.a[2], s->npages, s->id))
		c->expect = EEXIST;
	open_core(c, slot_hull(s));
	return true;
}

static void slot_add(struct m_call *c)
{
	unsigned int i = 0;

	while (c->m->slots[i].used)
		i++;
	memset(&c->m->slots[i], 0, sizeof(c->m->slots[i]));
	c->m->slots[i].used = true;
	c->m->slots[i].id = c->slot.id;
	c->m->slots[i].flags = c->slot.flags;
	c->m->slots[i].gfn = c->op.a[2];
	c->m->slots[i].npages = c->slot.npages;
	c->m->slots[i].page = c->op.a[4];
	c->m->slots[i].out = c->slot.out.v;
	for (unsigned int k = 0; k < M_SLOTS; k++)
		if (k != i && c->m->slots[k].used &&
		    m_meet(slot_hull(&c->m->slots[k]), slot_hull(&c->m->slots[i])))
			m_saw(SEEN_aliases);
}

static void slot_go(struct m_call *c)
{
	struct m_slot *s = m_slot_id(c->m, c->op.a[1]);

	if (!s)
		m_fail("mmu %u: slot %lu is changed, and is not there", c->m->nr, c->op.a[1]);
	m_zap(c->m, s->gfn, s->npages, true);
	if (c->op.kind == OP_slotdel) {
		s->used = false;
		return;
	}
	s->gfn = c->op.a[2];
	s->out = m_out(s->id, s->gfn, c->op.a[3]);
	m_saw(SEEN_slots_moved);
}

bool m_slot_before(struct m_call *c)
{
	c->op.a[1] %= M_SLOTS;
	if (c->op.kind == OP_slot)
		return add_before(c);
	if (!c->op.thread) /* it may have to wait for them, and they are to see it done or not begun */
		m_finish_threads(c->w, NULL);
	return change_before(c);
}

void m_slot_after(struct m_call *c)
{
	const bool alone = !c->slots_changed && !c->op.thread;
	const bool no_memory = c->op.kind == OP_slot && c->rc == -ENOMEM && c->w->oom_hit;

	close_core(c);
	if (c->rc > 0 || (!no_memory && alone && c->rc != -(int64_t)c->expect))
		m_fail("mmu %u: a slot operation answers %ld, must answer -%lu", c->m->nr, c->rc,
		       c->expect);
	if (c->rc == -EBUSY)
		m_saw(SEEN_slots_busy);
	else if (c->rc)
		m_saw(SEEN_slots_refused);
	if (c->op.thread)
		m_saw(SEEN_thread_slots);
	if (c->rc) {
		adopt(c);
		return;
	}
	if (c->op.kind == OP_slot)
		slot_add(c);
	else
		slot_go(c);
	m_slots_changed(c->m);
}

/* ---- brackets ------------------------------------------------------------------------------- */

static bool pinned_anywhere(const struct m_call *c, bool lose)
{
	bool found = false;

	for (unsigned int i = 0; i < M_MMUS; i++)
		for (uint32_t k = 0; c->w->mmus[i].mmu && k < (c->range->nr ? c->range->nr : 1);
		     k++)
			found |= m_pinned(&c->w->mmus[i], m_part(c->range, k), lose);
	return found;
}

static void parts(struct m_bracket *b, uint64_t n)
{
	const uint64_t bytes = b->r.hull.end.v - b->r.hull.start.v;

	if (n > M_PARTS)
		n = M_PARTS;
	if (!n || bytes < 2 * n)
		return;
	for (uint64_t i = 0; i < n; i++) {
		/* backwards: they need not be sorted */
		b->v[i].start.v = b->r.hull.start.v + bytes / n * (n - 1 - i);
		b->v[i].end.v = b->v[i].start.v + bytes / n / 2;
	}
	b->r.v = b->v;
	b->r.nr = (uint32_t)n;
	m_saw(SEEN_batches);
}

bool m_start_before(struct m_call *c)
{
	struct m_bracket *b = &c->w->brackets[c->op.a[0] % M_BRACKETS];

	if (b->state != BRACKET_IDLE)
		return false;
	b->r = (struct umbra_range){
		.hull = m_bytes(&c->op),
		.flags = (uint32_t)c->op.a[4] & 7,
		.cause = UMBRA_CAUSE_DISCARD,
		.source = (enum umbra_source)(c->op.a[1] % UMBRA_SOURCE_NR),
	};
	parts(b, c->op.a[4] >> 8);
	b->state = BRACKET_STARTING;
	c->range = &b->r;
	c->pinned = pinned_anywhere(c, false);
	m_union_add(&c->w->src[b->r.source], b->r.hull);
	for (unsigned int i = 0; i < M_MMUS; i++)
		if (c->w->mmus[i].mmu) {
			m_union_add(&c->w->mmus[i].src[b->r.source], b->r.hull);
			m_event(&c->w->mmus[i], b->r.hull, false);
		}
	return true;
}

static void start_failed(struct m_call *c, struct m_bracket *b)
{
	const bool forced = b->r.flags & UMBRA_RANGE_FORCED;

	if (c->rc == -EAGAIN) {
		if (forced || (b->r.flags & UMBRA_RANGE_BLOCKABLE) || !c->no_wait)
			m_fail("a start is refused, and nobody had to wait");
		m_saw(SEEN_refused_again);
	} else if (c->rc == -EBUSY) {
		if (forced || !(b->r.flags & UMBRA_RANGE_RELOCATES) ||
		    !(c->pinned || pinned_anywhere(c, false)))
			m_fail("a start is refused as busy, and nothing is pinned");
		m_saw(SEEN_refused_busy);
	} else {
		m_fail("a start answers %ld", c->rc);
	}
	adopt(c);
	b->state = BRACKET_IDLE;
	m_union_del(&c->w->src[b->r.source]);
	for (unsigned int i = 0; i < M_MMUS; i++)
		if (c->w->mmus[i].mmu) {
			m_union_del(&c->w->mmus[i].src[b->r.source]);
			m_event(&c->w->mmus[i], b->r.hull, false);
		}
}

void m_start_after(struct m_call *c)
{
	struct m_bracket *b = &c->w->brackets[c->op.a[0] % M_BRACKETS];
	const bool forced = b->r.flags & UMBRA_RANGE_FORCED;
	/* forced, and not to wait: vCPUs were told, but may still be on their way */
	const bool flushed = (b->r.flags & UMBRA_RANGE_BLOCKABLE) || !c->no_wait;

	if (c->op.thread)
		m_saw(SEEN_thread_starts);
	if (c->rc) {
		start_failed(c, b);
		return;
	}
	if ((b->r.flags & UMBRA_RANGE_RELOCATES) && !forced && !c->op.thread && c->pinned)
		m_fail("a start relocates a pinned page");
	if (forced)
		m_saw(SEEN_forced);
	if (forced && (b->r.flags & UMBRA_RANGE_RELOCATES))
		pinned_anywhere(c, true);
	b->state = BRACKET_OPEN;
	for (unsigned int i = 0; i < M_MMUS; i++) {
		struct m_mmu *m = &c->w->mmus[i];

		for (uint32_t k = 0; m->mmu && k < (b->r.nr ? b->r.nr : 1); k++)
			m_zap_hva(m, m_part(&b->r, k), flushed);
		if (m->mmu)
			m_event(m, b->r.hull, true);
	}
}

bool m_end_before(struct m_call *c)
{
	struct m_bracket *b = &c->w->brackets[c->op.a[0] % M_BRACKETS];

	c->range = &b->r;
	return b->state == BRACKET_OPEN;
}

void m_end_after(struct m_call *c)
{
	struct m_bracket *b = &c->w->brackets[c->op.a[0] % M_BRACKETS];

	b->state = BRACKET_IDLE;
	m_union_del(&c->w->src[b->r.source]);
	for (unsigned int i = 0; i < M_MMUS; i++)
		if (c->w->mmus[i].mmu) {
			m_union_del(&c->w->mmus[i].src[b->r.source]);
			m_event(&c->w->mmus[i], b->r.hull, true);
		}
}

/* ---- collapse ------------------------------------------------------------------------------- */

static bool full(const struct m_root *root, uint64_t block)
{
	const struct m_leaf *leaf = &root->leaf[block * 512];

	for (unsigned int i = 0; i < 512; i++)
		if (leaf[i].level != 1 || leaf[i].w != leaf->w)
			return false;
	return true;
}

void m_collapse_before(struct m_call *c)
{
	struct m_mmu *m = c->m;

	/* with another bracket of the library's open, its own stays in the union that is open */
	c->unsure = m->resolve_error || c->op.thread || m->src[UMBRA_SOURCE_CORE].n;
	for (uint64_t b = 0; b < M_BLOCKS; b++) {
		const struct m_slot *s = m_slot_at(m, b * 512);
		struct hva_range hva;
		uint64_t page;

		if (b * 512 < c->op.a[1] || b * 512 + 512 > c->op.a[1] + c->op.a[2] || !s ||
		    !m_may_be_huge(s, b * 512))
			continue;
		page = s->page + b * 512 - s->gfn;
		hva = (struct hva_range){ { M_HVA + page * UMBRA_PAGE_SIZE },
					  { M_HVA + (page + 512) * UMBRA_PAGE_SIZE } };
		if (!c->w->huge[page / 512] || m_must_open(c->w, hva))
			continue;
		for (unsigned int r = 0; r < m->nroots; r++) {
			if (!full(&m->roots[r], b))
				continue;
			c->expect++;
			if (m_may_open(m, hva))
				c->unsure = true;
		}
	}
	if (c->expect || c->op.thread)
		open_core(c, (struct hva_range){ { M_HVA }, { M_HVA + M_HOST * UMBRA_PAGE_SIZE } });
}

void m_collapse_after(struct m_call *c)
{
	if (c->op.thread)
		m_saw(SEEN_thread_collapses);
	adopt(c);
	close_core(c);
	if (c->rc != c->collapsed)
		m_fail("mmu %u: %ld collapsed, and says %ld", c->m->nr, c->collapsed, c->rc);
	if (!c->unsure && !c->no_table && c->rc != (int64_t)c->expect)
		m_fail("mmu %u: %ld collapsed, must be %lu", c->m->nr, c->rc, c->expect);
	for (uint64_t b = 0; b < M_BLOCKS; b++)
		for (unsigned int r = 0; r < c->m->nroots; r++)
			if (c->m->roots[r].transit[b].by == c)
				c->m->roots[r].transit[b].on = false;
}
