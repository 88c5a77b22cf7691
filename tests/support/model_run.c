/* SPDX-License-Identifier: BSD-2-Clause */
/* Executes a script: each operation on the library and on the reference, and the two compared. */
#include "model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model_ops.h"

static struct umbra_root *root_of(const struct m_call *c)
{
	return c->m->roots[c->op.a[1] % c->m->nroots].root;
}

static struct gfn_range gfns(const struct m_call *c)
{
	const uint64_t start = c->w->script->base + c->op.a[1];

	return (struct gfn_range){ { start }, { start + c->op.a[2] } };
}

/* The library's function for @c, and nothing else. */
void m_body(struct m_call *c)
{
	struct umbra_mmu *mmu = c->m ? c->m->mmu : NULL;
	const uint64_t *a = c->op.a;
	const uint32_t id = (uint32_t)a[1];

	switch (c->op.kind) {
	case OP_slot: c->rc = umbra_memslot_add(mmu, &c->slot); break;
	case OP_slotdel: c->rc = umbra_memslot_remove(mmu, id); break;
	case OP_slotmove:
		c->rc = umbra_memslot_move(mmu, id, (gfn_t){ c->w->script->base + a[2] },
					   (pfn_t){ m_out(id, a[2], a[3]) });
		break;
	case OP_fault: c->result = umbra_fault(root_of(c), &c->f); break;
	case OP_start: c->rc = umbra_invalidate_start(c->w->chain, c->range); break;
	case OP_end: umbra_invalidate_end(c->w->chain, c->range); break;
	case OP_zap: umbra_zap(mmu, gfns(c)); break;
	case OP_zapall: umbra_zap_all(mmu); break;
	case OP_reclaim: umbra_reclaim(mmu, a[1]); break;
	case OP_wp: umbra_write_protect(mmu, gfns(c)); break;
	case OP_split: c->rc = umbra_split(mmu, gfns(c)); break;
	case OP_collapse: c->rc = umbra_collapse(mmu, gfns(c)); break;
	case OP_release: umbra_release(c->w->chain); break;
	default: m_body_rest(c);
	}
}

/* ---- beginning and ending a call ------------------------------------------------------------ */

static bool needs_mmu(const struct m_op *op, uint64_t *nr)
{
	switch (op->kind) {
	case OP_start:
	case OP_end:
	case OP_host:
	case OP_give:
	case OP_shot:
	case OP_young:
	case OP_unpin:
	case OP_release:
	case OP_oom:
	case OP_run: return false;
	case OP_pin: *nr = op->a[1]; return true;
	default: *nr = op->a[0]; return true;
	}
}

static void complete(struct m_call *c)
{
	switch (c->op.kind) {
	case OP_fault: m_fault_after(c); break;
	case OP_slot:
	case OP_slotdel:
	case OP_slotmove: m_slot_after(c); break;
	case OP_start: m_start_after(c); break;
	case OP_collapse: m_collapse_after(c); break;
	default: m_after_rest(c);
	}
}

static void thread_step(struct m_world *w, struct m_thread *t)
{
	const bool over = m_thread_go(t);

	if (t->call.op.kind != OP_fault) {
		w->adopt = &t->call; /* what it has dropped so far */
		m_compare_all(w);
		w->adopt = NULL;
	}
	if (!over)
		return;
	complete(&t->call);
	t->busy = false;
}

void m_others_go(void)
{
	for (unsigned int i = 0; i < M_THREADS; i++)
		if (m_world->threads[i].busy)
			thread_step(m_world, &m_world->threads[i]);
}

void m_finish_threads(struct m_world *w, const struct m_mmu *m)
{
	bool busy = true;

	/* by turns: one may wait for another */
	while (busy) {
		busy = false;
		for (unsigned int i = 0; i < M_THREADS; i++) {
			if (!w->threads[i].busy)
				continue;
			busy |= !m || w->threads[i].call.m == m;
			if (busy)
				thread_step(w, &w->threads[i]);
		}
	}
}

static void run_threads(struct m_world *w, const struct m_op *op)
{
	struct m_thread *t = &w->threads[(op->a[0] - 1) % M_THREADS];

	for (uint64_t i = 0; i < op->a[1] && t->busy; i++)
		thread_step(w, t);
}

static bool goes_in_steps(enum m_kind kind)
{
	return kind == OP_fault || kind == OP_start || kind == OP_slotdel || kind == OP_slotmove ||
	       kind == OP_collapse;
}

static void do_op(struct m_world *w, const struct m_op *op)
{
	struct m_call c = { .op = *op, .w = w };
	uint64_t nr;

	if (op->kind == OP_run) {
		run_threads(w, op);
		return;
	}
	if (!goes_in_steps(op->kind))
		c.op.thread = 0;
	if (c.op.thread && w->threads[c.op.thread - 1].busy)
		return;
	if (needs_mmu(op, &nr)) {
		c.m = &w->mmus[nr % M_MMUS];
		if (op->kind == OP_join ? !!c.m->mmu : !c.m->mmu)
			return;
	}
	if (!m_before(&c))
		return;
	if (c.op.thread) {
		m_thread_begin(&w->threads[c.op.thread - 1], &c);
		thread_step(w, &w->threads[c.op.thread - 1]);
		return;
	}
	w->call = &c;
	m_body(&c);
	w->call = NULL;
	complete(&c);
}

/* ---- comparing after a step ------------------------------------------------------------------- */

static void print_line(void *arg, const char *line)
{
	snprintf(arg, 160, "%s", line);
}

static void check(struct m_mmu *m)
{
	char line[160] = "";
	struct umbra_stats s;
	uint64_t open = 0;

	if (umbra_check(m->mmu, print_line, line))
		m_fail("mmu %u: check: %s", m->nr, line);
	umbra_mmu_stats(m->mmu, &s);
	for (unsigned int i = 0; i < UMBRA_SOURCE_NR; i++)
		open += m->src[i].n;
	if (s.seq.v != m->w->script->seq + s.ends)
		m_fail("mmu %u: the sequence is %#lx after %lu ends", m->nr, s.seq.v, s.ends);
	for (unsigned int i = 0; i < M_THREADS; i++)
		if (m->w->threads[i].busy)
			return;
	if (s.starts - s.ends != open)
		m_fail("mmu %u: %lu open, but %lu must be", m->nr, s.starts - s.ends, open);
}

static void touch(struct m_mmu *m, uint64_t gfn, uint64_t n)
{
	const uint64_t at[] = { gfn - 1,       gfn,       gfn + n - 1,         gfn + n,
				gfn & ~511ULL, gfn | 511, (gfn + n) & ~511ULL, (gfn + n) | 511 };

	for (unsigned int r = 0; r < m->nroots; r++)
		for (unsigned int i = 0; i < 8; i++)
			m_compare_page(m, r, at[i]);
}

static void touch_hva(struct m_world *w, struct hva_range r)
{
	const uint64_t first = (r.start.v - M_HVA) / UMBRA_PAGE_SIZE,
		       end = (r.end.v - M_HVA + UMBRA_PAGE_SIZE - 1) / UMBRA_PAGE_SIZE;

	for (unsigned int i = 0; i < M_MMUS; i++)
		for (unsigned int k = 0; w->mmus[i].mmu && k < M_SLOTS; k++) {
			const struct m_slot *s = &w->mmus[i].slots[k];

			if (s->used && first < s->page + s->npages && s->page < end)
				touch(&w->mmus[i], s->gfn + first - s->page, end - first);
		}
}

static bool whole_now(const struct m_world *w)
{
	for (unsigned int i = 0; i < M_THREADS; i++)
		if (w->threads[i].busy && w->threads[i].call.op.kind != OP_fault)
			return true;
	return w->step % w->options->whole_every == 0;
}

static void compare_step(struct m_world *w, const struct m_op *op)
{
	const bool whole = whole_now(w);
	uint64_t nr = M_MMUS;

	needs_mmu(op, &nr);
	if (whole)
		m_compare_all(w);
	for (unsigned int i = 0; i < M_MMUS; i++)
		if (w->mmus[i].mmu && (whole || nr == M_MMUS || nr % M_MMUS == i))
			check(&w->mmus[i]);
	if (whole)
		return;
	switch (op->kind) {
	case OP_start:
	case OP_shot:
	case OP_young: touch_hva(w, m_bytes(op)); break;
	case OP_fault:
	case OP_cpu:
		if (w->mmus[nr % M_MMUS].mmu)
			touch(&w->mmus[nr % M_MMUS], op->a[2], 1);
		break;
	case OP_zap:
	case OP_wp:
	case OP_split:
	case OP_collapse:
		if (w->mmus[nr % M_MMUS].mmu)
			touch(&w->mmus[nr % M_MMUS], op->a[1], op->a[2]);
		break;
	default: break;
	}
}

static void finish(struct m_world *w)
{
	struct m_op op = { 0 };

	m_finish_threads(w, NULL);
	for (op.kind = OP_unpin, op.a[0] = 0; op.a[0] < M_PINS; op.a[0]++)
		do_op(w, &op);
	for (op.kind = OP_end, op.a[0] = 0; op.a[0] < M_BRACKETS; op.a[0]++)
		do_op(w, &op);
	m_compare_all(w);
	for (unsigned int m = 0; m < M_MMUS; m++) {
		if (w->mmus[m].mmu)
			check(&w->mmus[m]);
		for (uint64_t id = 0; id < M_SLOTS; id++)
			do_op(w, &(struct m_op){ .kind = OP_collect, .a = { m, id, 3 } });
		do_op(w, &(struct m_op){ .kind = OP_leave, .a = { m } });
	}
	umbra_chain_destroy(w->chain);
	if (w->allocated)
		m_fail("%lu bytes were not freed", w->allocated);
	for (unsigned int i = 0; i < M_THREADS; i++)
		m_thread_end(&w->threads[i]);
}

void m_execute(const struct m_script *s, const struct m_options *o, struct m_result *res)
{
	struct m_world *w = calloc(1, sizeof(*w));

	if (!w)
		abort();
	m_world = w;
	w->script = s;
	w->options = o;
	w->res = res;
	m_host_init(w);
	for (unsigned int i = 0; i < M_MMUS; i++) {
		w->mmus[i].w = w;
		w->mmus[i].nr = i;
	}
	if (umbra_chain_create(&w->chain, &m_os))
		abort();
	for (res->step = 0; res->step < s->n; res->step++) {
		w->step++;
		w->relaxed = 0;
		do_op(w, &s->ops[res->step]);
		compare_step(w, &s->ops[res->step]);
	}
	finish(w);
	free(w);
	m_world = NULL;
}
