/* SPDX-License-Identifier: BSD-2-Clause */
/* The operations that are done in one go, on the library and on the reference. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model_ops.h"

static bool threads_busy(const struct m_world *w)
{
	for (unsigned int i = 0; i < M_THREADS; i++)
		if (w->threads[i].busy)
			return true;
	return false;
}

/* ---- MMUs come and go ----------------------------------------------------------------------- */

static void join(struct m_call *c)
{
	struct m_mmu *m = c->m;
	struct m_world *w = c->w;
	const unsigned int nr = m->nr;
	const struct umbra_mmu_config config = {
		.os = &m_os,
		.ops = c->op.a[1] & 8 ? &m_mmu_ops_plain : &m_mmu_ops,
		.ctx = m,
		.window = aligned_alloc(UMBRA_PAGE_SIZE, M_WINDOW * UMBRA_PAGE_SIZE),
		.window_phys = M_PHYS,
		.window_pages = M_WINDOW,
		.first_seq = { w->script->seq },
		.flags = c->op.a[1] & 1 ? UMBRA_MMU_RECORD_PFN : 0,
	};
	struct umbra_mmu *mmu = NULL;

	if (!config.window)
		abort();
	memset(config.window, 0, M_WINDOW * UMBRA_PAGE_SIZE);
	memset(m, 0, sizeof(*m));
	m->w = w;
	m->nr = nr;
	m->window = config.window;
	m->limit = 9999;
	m->records = config.flags;
	m->nroots = c->op.a[1] & 6 ? 2 : 1;
	m->roots[1].kind = c->op.a[1] & 2 ? UMBRA_ROOT_DIRECT : UMBRA_ROOT_MIRROR;
	w->oom_hit = false;
	c->rc = umbra_mmu_create(&mmu, &config);
	for (unsigned int r = 0; !c->rc && r < m->nroots; r++)
		c->rc = umbra_root_create(mmu, m->roots[r].kind, &m->roots[r].root);
	if (!c->rc)
		c->rc = umbra_chain_register(w->chain, umbra_mmu_notifier(mmu));
	if (c->rc) {
		if (!w->oom_hit)
			m_fail("mmu %u cannot be made: %ld", m->nr, c->rc);
		if (mmu)
			umbra_mmu_destroy(mmu);
		free(m->window);
		return;
	}
	m->mmu = mmu;
	memcpy(m->src, w->src, sizeof(m->src));
	for (unsigned int i = 0; i < UMBRA_SOURCE_NR; i++)
		if (m->src[i].n)
			m_saw(SEEN_joined_open);
}

static void all_gone(struct m_mmu *m)
{
	m->released = true;
	m_zap(m, 0, M_GUEST, true);
}

static void leave_before(struct m_call *c)
{
	struct m_mmu *m = c->m;

	m_finish_threads(c->w, m);
	for (unsigned int i = 0; i < M_PINS; i++)
		if (c->w->pins[i].held && c->w->pins[i].mmu == m->nr) {
			umbra_unpin(m->mmu, &c->w->pins[i].pin);
			c->w->pins[i].held = false;
		}
	umbra_chain_unregister(c->w->chain, umbra_mmu_notifier(m->mmu));
}

static void leave(struct m_call *c)
{
	struct m_mmu *m = c->m;

	umbra_mmu_destroy(m->mmu);
	if (m->out)
		m_fail("mmu %u: %lu table pages are not given back", m->nr, m->out);
	m->mmu = NULL;
	free(m->window);
	free(m->queue);
	m->queue = NULL;
}

/* ---- leaves --------------------------------------------------------------------------------- */

static void protect(struct m_call *c)
{
	for (unsigned int r = 0; r < c->m->nroots; r++)
		for (uint64_t g = c->op.a[1]; g < c->op.a[1] + c->op.a[2] && g < M_GUEST; g++) {
			struct m_root *root = &c->m->roots[r];
			const uint64_t n = root->leaf[g].level == 2 ? 512 : 1, first = g & ~(n - 1);

			root->transit[g / 512].w = 0;
			if (root->leaf[g].w)
				m_saw(SEEN_protected);
			for (uint64_t i = first; i < first + n; i++) {
				root->leaf[i].w = 0;
				root->tlb[i] &= 1;
			}
			g = first + n - 1;
		}
}

/* The 2M leaves that meet the range; split in the reference if they are so in the tables (@apply). */
static uint64_t splits(struct m_call *c, bool apply)
{
	uint64_t n = 0;

	for (unsigned int r = 0; r < c->m->nroots; r++)
		for (uint64_t b = 0; b < M_BLOCKS; b++) {
			struct m_leaf *leaf = &c->m->roots[r].leaf[b * 512];
			struct umbra_translation t;

			if (leaf->level != 2 || b * 512 >= c->op.a[1] + c->op.a[2] ||
			    c->op.a[1] >= b * 512 + 512)
				continue;
			if (apply && c->rc < 0 &&
			    (umbra_lookup(c->m->roots[r].root,
					  gfn_to_gpa((gfn_t){ c->w->script->base + b * 512 }),
					  &t) ||
			     t.level == UMBRA_LEVEL_2M))
				continue;
			n++;
			for (unsigned int i = 0; apply && i < 512; i++) {
				leaf[i].level = 1;
				if (c->w->options->wrong == WRONG_DIRTY)
					leaf[i].d = 0;
			}
		}
	return n;
}

static void split_after(struct m_call *c)
{
	const uint64_t expect = splits(c, false);

	if (c->rc != (int64_t)expect && !(c->rc == -ENOSPC && c->no_table))
		m_fail("mmu %u: %ld split, must be %lu", c->m->nr, c->rc, expect);
	if (splits(c, true))
		m_saw(SEEN_splits);
}

/* ---- accessed and dirty --------------------------------------------------------------------- */

static bool age(struct m_mmu *m, struct gfn_range r, bool clear)
{
	bool young = false;

	for (unsigned int k = 0; k < m->nroots; k++)
		for (uint64_t g = r.start.v; g < r.end.v; g++) {
			struct m_leaf *leaf = &m->roots[k].leaf[g];
			const uint64_t n = leaf->level == 2 ? 512 : 1;

			if (!leaf->a)
				continue;
			young = true;
			leaf = &m->roots[k].leaf[g & ~(n - 1)];
			for (uint64_t p = 0; p < n && clear; p++)
				leaf[p].a = 0;
		}
	return young;
}

static void young_after(struct m_call *c)
{
	const struct hva_range r = m_widen(m_bytes(&c->op));
	bool young = false;

	for (unsigned int i = 0; i < M_MMUS * M_SLOTS; i++) {
		struct m_mmu *m = &c->w->mmus[i / M_SLOTS];
		const struct m_slot *s = &m->slots[i % M_SLOTS];

		if (m->mmu && s->used)
			young |= age(m, m_gfns_of(s, r), c->op.a[0] % 3);
	}
	if ((bool)c->rc != young)
		m_fail("young is answered %ld, must be %d", c->rc, young);
	m_saw(young ? SEEN_young : SEEN_not_young);
}

static void told(struct m_call *c, struct m_slot *s, const uint64_t *bits, bool dirty)
{
	uint8_t *must = dirty ? s->must_d : s->must_a, *may = dirty ? s->may_d : s->may_a;
	const bool log = s->flags & UMBRA_SLOT_LOG;

	for (uint64_t i = 0; i < s->npages; i++) {
		const bool is = bits[i / 64] >> (i % 64) & 1;
		bool live = false;

		for (unsigned int r = 0; r < c->m->nroots; r++) {
			struct m_leaf *leaf = &c->m->roots[r].leaf[s->gfn + i];

			live |= dirty ? leaf->d : leaf->a;
			if (dirty)
				leaf->d = 0;
			else
				leaf->a = 0;
		}
		if (is)
			m_saw(SEEN_log_bits);
		if (is && !live)
			m_saw(SEEN_harvested);
		if ((log ? must[i] : live) && !is)
			m_fail("mmu %u page %#lx: %s, and it is not told", c->m->nr, s->gfn + i,
			       dirty ? "written" : "accessed");
		if (is && !live && !(log && may[i]))
			m_fail("mmu %u page %#lx: told as %s, and was not", c->m->nr, s->gfn + i,
			       dirty ? "written" : "accessed");
		must[i] = may[i] = 0;
	}
}

static void collect_after(struct m_call *c)
{
	struct m_slot *s = m_slot_id(c->m, c->op.a[1]);

	if (c->rc != (s ? 0 : -ENOENT))
		m_fail("mmu %u: a collect answers %ld", c->m->nr, c->rc);
	if (s && (c->op.a[2] & 1))
		told(c, s, c->w->scratch_a, false);
	if (s && (c->op.a[2] & 2))
		told(c, s, c->w->scratch_d, true);
}

static void used(struct m_call *c, bool write, bool huge, enum m_used how)
{
	const uint64_t g = c->op.a[2];
	const struct m_cpu *cpu = &c->m->cpus[c->op.a[1] % M_CPUS];
	const unsigned int r = m_cpu_root(c->m, (unsigned int)c->op.a[1] % M_CPUS);
	struct m_root *root = &c->m->roots[r];
	struct m_slot *s = m_slot_at(c->m, g);
	struct m_leaf *leaf = &root->leaf[g];
	const uint64_t n = huge || leaf->level == 2 ? 512 : 1, first = g & ~(n - 1);

	s->must_a[g - s->gfn] = 1;
	s->must_d[g - s->gfn] |= write;
	for (uint64_t i = first; i < first + n; i++) {
		if (i < s->gfn || i >= s->gfn + s->npages)
			continue;
		s->may_a[i - s->gfn] = 1;
		s->may_d[i - s->gfn] |= write;
	}
	if (how == USED_TLB)
		return;
	leaf = leaf->level == 2 ? &root->leaf[g & ~511ULL] : leaf;
	/* through a table that is cut off, by who was not told of it yet: its bits are harvested from there */
	const bool cut = cpu->psc[g / 512].valid &&
			 cpu->psc[g / 512].table != m_linked_table(c->m, r, c->w->script->base + g);

	for (uint64_t i = 0; !cut && leaf->level && i < (leaf->level == 2 ? 512 : 1); i++) {
		leaf[i].a = 1;
		leaf[i].d |= write;
	}
	if (root->transit[g / 512].on) {
		root->transit[g / 512].a = 1;
		root->transit[g / 512].d |= write;
		s->may_a[g - s->gfn] = 1;
	}
}

static void cpu(struct m_call *c)
{
	struct m_mmu *m = c->m;
	const unsigned int nr = (unsigned int)c->op.a[1] % M_CPUS;
	const uint64_t g = c->op.a[2], base = c->w->script->base;
	const bool write = c->op.a[3] & 1;
	const struct m_root *root = &m->roots[m_cpu_root(m, nr)];
	struct m_slot *s = m_slot_at(m, g);
	bool huge;
	uint64_t pfn;
	enum m_used how;

	if (!m->cpus[nr].in)
		m_cpu_catch_up(m, &m->cpus[nr], m->posted);
	how = m_cpu_access(m, nr, base + g, write, &pfn, &huge);
	if (how == USED_FAULT) {
		const struct m_leaf *leaf = &root->leaf[g];

		if (leaf->level && (leaf->w || !write) && m->cpus[nr].ack == m->posted)
			m_fail("mmu %u cpu %u page %#lx: a leaf is there, and the CPU cannot use it",
			       m->nr, nr, g);
		return;
	}
	if (!s || !(root->tlb[g] & (write ? 2 : 1)))
		m_fail("mmu %u cpu %u page %#lx: %s by a translation that must be gone", m->nr, nr,
		       g, write ? "written" : "read");
	if (pfn != s->out + (g - s->gfn))
		m_fail("mmu %u cpu %u page %#lx: reaches frame %#lx", m->nr, nr, g, pfn);
	if (!root->leaf[g].level || (write && !root->leaf[g].w))
		m_saw(SEEN_stale_uses);
	m_saw(write ? SEEN_cpu_writes : SEEN_cpu_reads);
	used(c, write, huge, how);
}

/* ---- pins ------------------------------------------------------------------------------------ */

static bool pin_before(struct m_call *c)
{
	const uint64_t *a = c->op.a, n = a[4];
	const unsigned int r = (unsigned int)a[2] % c->m->nroots;

	if (c->w->pins[a[0] % M_PINS].held || !n || n > 16 || a[3] >= M_GUEST ||
	    n > M_GUEST - a[3] || c->m->resolve_error || (c->m->limit < 9999 && threads_busy(c->w)))
		return false;
	for (uint64_t g = a[3]; g < a[3] + n; g++) {
		const struct m_slot *s = m_slot_at(c->m, g);
		const struct m_leaf *leaf = &c->m->roots[r].leaf[g];
		uint64_t hva;

		if (!s)
			continue;
		/* it would wait for what does not come while it waits */
		hva = M_HVA + (s->page + g - s->gfn) * UMBRA_PAGE_SIZE;
		hva &= ~(UMBRA_HUGE_SIZE - 1);
		if (m_may_open(c->m, (struct hva_range){ { hva }, { hva + UMBRA_HUGE_SIZE } }))
			return false;
		if (leaf->level == 2 && !leaf->w && !c->w->huge[(s->page + g - s->gfn) / 512])
			return false;
	}
	return true;
}

static void pin_after(struct m_call *c)
{
	const uint64_t *a = c->op.a;
	const unsigned int r = (unsigned int)a[2] % c->m->nroots;
	struct m_pin *p = &c->w->pins[a[0] % M_PINS];
	struct umbra_translation t;
	int expect = 0;

	for (uint64_t i = 0; i < a[4] && !expect; i++) {
		if (c->rc == -ENOMEM && c->no_table &&
		    (umbra_lookup(c->m->roots[r].root,
				  gfn_to_gpa((gfn_t){ c->w->script->base + a[3] + i }), &t) ||
		     !t.writable))
			expect = -ENOMEM;
		else
			expect = m_fault_in(c, r, a[3] + i);
	}
	if (c->rc != expect)
		m_fail("mmu %u: a pin answers %ld, must answer %d", c->m->nr, c->rc, expect);
	if (expect)
		return;
	p->held = true;
	p->lost = false;
	p->mmu = c->m->nr;
	p->gfn = a[3];
	p->n = a[4];
	m_saw(SEEN_pins);
}

/* A forced start under way may have taken it, or be about to. */
static bool being_lost(const struct m_world *w)
{
	const uint32_t forced = UMBRA_RANGE_FORCED | UMBRA_RANGE_RELOCATES;

	for (unsigned int i = 0; i < M_THREADS; i++)
		if (w->threads[i].busy && w->threads[i].call.op.kind == OP_start &&
		    (w->threads[i].call.range->flags & forced) == forced)
			return true;
	return false;
}

static void unpin(struct m_call *c)
{
	struct m_pin *p = &c->w->pins[c->op.a[0] % M_PINS];
	bool kept;

	if (!p->held)
		return;
	kept = umbra_unpin(c->w->mmus[p->mmu].mmu, &p->pin);
	if (kept == p->lost && (kept || !being_lost(c->w)))
		m_fail("a pin %s, and unpin says otherwise", p->lost ? "was lost" : "was kept");
	p->held = false;
}

/* ---- the host ---------------------------------------------------------------------------------- */

static void change_host(struct m_call *c)
{
	struct m_bracket *b = &c->w->brackets[c->op.a[0] % M_BRACKETS];
	const uint64_t *a = c->op.a;
	struct hva_range part;
	uint64_t first, n, skip;

	if (b->state != BRACKET_OPEN)
		return;
	part = m_part(&b->r, (uint32_t)(a[2] % (b->r.nr ? b->r.nr : 1)));
	first = (part.start.v - M_HVA) / UMBRA_PAGE_SIZE;
	n = (part.end.v - part.start.v) / UMBRA_PAGE_SIZE;
	skip = a[1] % 5 == 4 ? 0 : a[2] % n;
	first += skip;
	n -= skip;
	if (a[1] % 5 != 4 && a[3] && a[3] < n)
		n = a[3];
	m_host_change(c->w, (unsigned int)(a[1] % 5), first, n);
}

/* A shot is a start, a change and an end, with nothing in between; or a change, and the news that it is over. */
static void shoot(struct m_call *c)
{
	const bool late = c->op.a[3] >= 5;
	struct m_bracket *b = NULL;
	uint64_t nr = 0;

	for (; nr < M_BRACKETS && !b; nr++)
		if (c->w->brackets[nr].state == BRACKET_IDLE)
			b = &c->w->brackets[nr--];
	if (!b)
		return;
	c->op = (struct m_op){ .kind = OP_start,
			       .a = { nr, c->op.a[0], c->op.a[1], c->op.a[2],
				      UMBRA_RANGE_BLOCKABLE | (late ? UMBRA_RANGE_FORCED : 0U),
				      c->op.a[3] } };
	m_start_before(c);
	if (!late)
		m_body(c);
	else
		m_saw(SEEN_late);
	m_start_after(c);
	m_host_change(
		c->w, (unsigned int)(c->op.a[5] % 5), (b->r.hull.start.v - M_HVA) / UMBRA_PAGE_SIZE,
		(m_widen(b->r.hull).end.v - (b->r.hull.start.v & ~4095ULL)) / UMBRA_PAGE_SIZE);
	if (late) {
		umbra_invalidate_range(c->w->chain, c->range);
	} else {
		c->op.kind = OP_end;
		m_body(c);
	}
	m_end_after(c);
	c->op.kind = OP_shot;
}

static void where(struct m_call *c)
{
	gpa_t is[M_SLOTS + 1];
	const hva_t hva = { M_HVA + c->op.a[1] % M_HOST * UMBRA_PAGE_SIZE + 0x123 };
	const unsigned int n = umbra_hva_to_gpas(c->m->mmu, hva, is, M_SLOTS + 1);
	unsigned int must = 0, found = 0;

	for (unsigned int i = 0; i < M_SLOTS; i++) {
		const struct m_slot *s = &c->m->slots[i];
		const uint64_t off = c->op.a[1] % M_HOST - s->page;

		if (!s->used || c->op.a[1] % M_HOST < s->page || off >= s->npages)
			continue;
		must++;
		for (unsigned int k = 0; k < n; k++)
			found += is[k].v ==
				 ((c->w->script->base + s->gfn + off) << UMBRA_PAGE_SHIFT | 0x123);
	}
	if (n != must || found != must)
		m_fail("mmu %u: a host page appears at %u guest pages, must be %u", c->m->nr, n,
		       must);
}

/* ---- which is which ---------------------------------------------------------------------------- */

bool m_before(struct m_call *c)
{
	switch (c->op.kind) {
	case OP_slot:
	case OP_slotdel:
	case OP_slotmove: return m_slot_before(c);
	case OP_fault:
		if (c->op.a[2] >= M_GUEST)
			return false;
		m_fault_before(c);
		return true;
	case OP_start: return m_start_before(c);
	case OP_end: return m_end_before(c);
	case OP_collapse: m_collapse_before(c); return true;
	case OP_pin: return pin_before(c);
	case OP_cpu: return c->op.a[2] < M_GUEST;
	case OP_collect: c->op.a[1] %= M_SLOTS; return true;
	case OP_leave: /* threads that end meanwhile see it gone already */
		m_finish_threads(c->w, c->m);
		all_gone(c->m);
		return true;
	default: return true;
	}
}

void m_body_rest(struct m_call *c)
{
	struct m_world *w = c->w;
	const uint64_t *a = c->op.a;

	switch (c->op.kind) {
	case OP_join: join(c); break;
	case OP_leave:
		leave_before(c);
		leave(c);
		break;
	case OP_young: {
		const struct hva_range r = m_bytes(&c->op);

		c->rc = a[0] % 3 == 0   ? umbra_test_young(w->chain, r)
			: a[0] % 3 == 1 ? umbra_clear_young(w->chain, r)
					: umbra_clear_flush_young(w->chain, r);
		break;
	}
	case OP_collect:
		c->rc = umbra_log_collect(c->m->mmu, (uint32_t)a[1], a[2] & 1 ? w->scratch_a : NULL,
					  a[2] & 2 ? w->scratch_d : NULL);
		break;
	case OP_cpu: cpu(c); break;
	case OP_enter:
	case OP_exit:
		m_cpu_catch_up(c->m, &c->m->cpus[a[1] % M_CPUS], c->m->posted);
		c->m->cpus[a[1] % M_CPUS].in = c->op.kind == OP_enter;
		break;
	case OP_pin:
		c->rc = umbra_pin(c->m->roots[a[2] % c->m->nroots].root,
				  (gfn_t){ w->script->base + a[3] }, a[4],
				  &w->pins[a[0] % M_PINS].pin);
		break;
	case OP_unpin: unpin(c); break;
	case OP_host: change_host(c); break;
	case OP_give: m_host_give(w, (unsigned int)(a[0] % 3), a[1] % M_HOST, a[2]); break;
	case OP_shot: shoot(c); break;
	case OP_limit: c->m->limit = a[1]; break;
	case OP_oom: w->oom_in = a[0] + 1; break;
	case OP_rerr: c->m->resolve_error = (int)a[1]; break;
	case OP_where: where(c); break;
	default: abort();
	}
}

void m_after_rest(struct m_call *c)
{
	switch (c->op.kind) {
	case OP_end:
		if (c->range)
			m_end_after(c);
		break;
	case OP_zap: m_zap(c->m, c->op.a[1], c->op.a[2], true); break;
	case OP_zapall: m_zap(c->m, 0, M_GUEST, true); break;
	case OP_wp: protect(c); break;
	case OP_split: split_after(c); break;
	case OP_young: young_after(c); break;
	case OP_collect: collect_after(c); break;
	case OP_pin: pin_after(c); break;
	case OP_release:
		for (unsigned int i = 0; i < M_MMUS; i++)
			if (c->w->mmus[i].mmu)
				all_gone(&c->w->mmus[i]);
		m_saw(SEEN_releases);
		break;
	default: break;
	}
}
