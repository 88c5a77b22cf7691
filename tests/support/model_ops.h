/* SPDX-License-Identifier: BSD-2-Clause */
/* What model_run.c and the files of operations share. */
#ifndef TESTS_MODEL_OPS_H
#define TESTS_MODEL_OPS_H

#include "model.h"

/* The frame that page @gfn of slot @id maps to; a @shift forbids 2M. */
static inline uint64_t m_out(uint64_t id, uint64_t gfn, uint64_t shift)
{
	return 0x100000 * (id + 1) + gfn + (shift & 255);
}

/* The bytes that a start, shot or young is about. */
static inline struct hva_range m_bytes(const struct m_op *op)
{
	const uint64_t *a = &op->a[op->kind == OP_start ? 2 : 1];
	const uint64_t first = a[0] % (M_HOST * UMBRA_PAGE_SIZE);
	const uint64_t most = M_HOST * UMBRA_PAGE_SIZE - first;
	const uint64_t n = a[1] && a[1] < most ? a[1] : most;

	return (struct hva_range){ { M_HVA + first }, { M_HVA + first + n } };
}

/* Fills in @c. False: the operation makes no sense now. */
bool m_before(struct m_call *c);
void m_finish_threads(struct m_world *w, const struct m_mmu *m);

/* model_ops.c: those that can be done in steps */
bool m_slot_before(struct m_call *c);
void m_slot_after(struct m_call *c);
bool m_start_before(struct m_call *c);
void m_start_after(struct m_call *c);
bool m_end_before(struct m_call *c);
void m_end_after(struct m_call *c);
void m_collapse_before(struct m_call *c);
void m_collapse_after(struct m_call *c);

/* model_ops_rest.c: all others */
void m_body_rest(struct m_call *c);
void m_after_rest(struct m_call *c);

#endif
