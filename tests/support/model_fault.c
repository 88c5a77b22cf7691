/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The reference's answer to a fault. Whatever came between its snapshot and its last look was noted in the call
 * (must_4k, must_2m: an invalidation of what is to be installed; may: one near enough to be taken for that).
 */
#include "model.h"

#include <errno.h>
#include <string.h>

#define BIT(result) (1U << (result))

static unsigned int root_of(const struct m_call *c)
{
	return (unsigned int)c->op.a[1] % c->m->nroots;
}

static bool is_write(const struct m_call *c)
{
	return c->f.access & UMBRA_ACCESS_WRITE;
}

static struct m_leaf *leaf_of(const struct m_call *c)
{
	return &c->m->roots[root_of(c)].leaf[c->op.a[2]];
}

static bool allows(const struct m_call *c)
{
	return leaf_of(c)->level && (!is_write(c) || leaf_of(c)->w);
}

/* Answers that need no look at the host, by what is so now. @ask: it may, or must, be looked at. */
static uint32_t early(const struct m_call *c, bool *ask)
{
	const struct m_slot *s = m_slot_at(c->m, c->op.a[2]);
	const uint64_t hva = s ? M_HVA + (s->page + c->op.a[2] - s->gfn) * UMBRA_PAGE_SIZE : 0;
	const struct hva_range page = { { hva }, { hva + UMBRA_PAGE_SIZE } };

	*ask = false;
	if (c->m->released)
		return BIT(UMBRA_FAULT_RELEASED);
	if (!s)
		return BIT(UMBRA_FAULT_NO_SLOT);
	if (is_write(c) && (s->flags & UMBRA_SLOT_READONLY))
		return BIT(UMBRA_FAULT_READONLY);
	if (allows(c))
		return BIT(UMBRA_FAULT_SPURIOUS);
	if (m_must_open(c->w, page))
		return BIT(UMBRA_FAULT_RETRY);
	*ask = true;
	return m_may_open(c->m, page) ? BIT(UMBRA_FAULT_RETRY) : 0;
}

void m_fault_before(struct m_call *c)
{
	c->f.gpa.v = (c->w->script->base + c->op.a[2]) << UMBRA_PAGE_SHIFT | 0xabc;
	c->f.access = (uint32_t)c->op.a[3] & 7;
	if (!c->f.access)
		c->f.access = UMBRA_ACCESS_READ;
	c->early = early(c, &c->must_ask);
}

static uint32_t refused(int rc)
{
	switch (rc) {
	case -EAGAIN: return BIT(UMBRA_FAULT_RETRY);
	case -EACCES: return BIT(UMBRA_FAULT_DENIED);
	case -ENOMEM: return BIT(UMBRA_FAULT_NO_MEMORY);
	case -EFAULT:
	case -EHWPOISON: return BIT(UMBRA_FAULT_BAD_HOST);
	default: return BIT(UMBRA_FAULT_ERROR);
	}
}

/* The widest leaf there may be: 4K leaves already there keep their table. */
static uint8_t widest(const struct m_call *c)
{
	const struct m_slot *s = m_slot_at(c->m, c->op.a[2]);
	const struct m_leaf *block = leaf_of(c) - c->op.a[2] % 512;

	if (!m_may_be_huge(s, c->op.a[2]))
		return 1;
	for (unsigned int i = 0; i < 512; i++)
		if (block[i].level == 1)
			return 1;
	return 2;
}

/* The level that a leaf gets where there is none. */
static uint8_t level_of(const struct m_call *c)
{
	return c->res.level == UMBRA_LEVEL_2M && c->req.max_level == UMBRA_LEVEL_2M ? widest(c) : 1;
}

/* Called when the host is about to be asked. */
void m_fault_snapshot(struct m_call *c)
{
	const struct hva_range page = m_asked(c, 1), block = m_asked(c, 2);

	if (c->op.kind == OP_fault && !c->no_table && (uint8_t)c->req.max_level != widest(c))
		m_fail("mmu %u page %#lx: asked for level %d, may be %u", c->m->nr, c->op.a[2],
		       (int)c->req.max_level, widest(c));
	c->resolves++;
	c->slots_changed = false;
	c->starts = 0;
	c->may = m_may_open(c->m, block);
	c->must_4k = m_must_open(c->w, page);
	c->must_2m = m_must_open(c->w, block);
}

static bool wrong_leaf(const struct m_call *c)
{
	return leaf_of(c)->level == 2 && c->res.level == UMBRA_LEVEL_4K;
}

/* Answers possible after the host was asked. */
static uint32_t late(const struct m_call *c)
{
	const uint32_t again = BIT(UMBRA_FAULT_RETRY);
	const bool ended = c->m->released;

	if (c->resolve_rc) {
		if (c->slots_changed || c->must_4k)
			return again;
		return refused(c->resolve_rc) | (c->may ? again : 0);
	}
	if (is_write(c) && !c->res.writable)
		return again;
	if (ended)
		return BIT(UMBRA_FAULT_RELEASED);
	if (c->slots_changed)
		return again;
	if (level_of(c) == 2 ? c->must_2m : c->must_4k)
		return again;
	if (allows(c))
		return BIT(UMBRA_FAULT_SPURIOUS) | (c->may ? again : 0);
	if (leaf_of(c)->level && wrong_leaf(c))
		return again;
	return BIT(UMBRA_FAULT_INSTALLED) | (c->may ? again : 0);
}

static void install(struct m_call *c)
{
	struct m_root *root = &c->m->roots[root_of(c)];
	const struct m_slot *s = m_slot_at(c->m, c->op.a[2]);
	struct m_leaf *leaf = leaf_of(c);
	const bool upgrade = leaf->level;
	const uint8_t level = upgrade ? leaf->level : level_of(c);
	const uint64_t first = level == 2 ? c->op.a[2] & ~511ULL : c->op.a[2];
	const uint8_t w = upgrade || (c->res.writable && !(s->flags & UMBRA_SLOT_READONLY));

	for (uint64_t i = first; i < first + (level == 2 ? 512 : 1); i++) {
		if (upgrade)
			root->leaf[i].w = 1;
		else
			root->leaf[i] = (struct m_leaf){ level, w, 0, 0 };
		root->tlb[i] = (uint8_t)(root->tlb[i] | 1 | w << 1);
	}
	m_saw(upgrade ? SEEN_upgraded : level == 2 ? SEEN_installed_2m : SEEN_installed_4k);
}

static void look_at_answer(const struct m_call *c)
{
	const struct m_slot *s = m_slot_at(c->m, c->op.a[2]);

	if (c->f.level != (enum umbra_level)leaf_of(c)->level || c->f.writable != leaf_of(c)->w ||
	    c->f.hva.v != M_HVA + (s->page + c->op.a[2] - s->gfn) * UMBRA_PAGE_SIZE)
		m_fail("mmu %u page %#lx: a fault describes its leaf wrongly", c->m->nr,
		       c->op.a[2]);
}

static void note(const struct m_call *c)
{
	static const int seen[] = {
		[UMBRA_FAULT_SPURIOUS] = SEEN_spurious,
		[UMBRA_FAULT_NO_SLOT] = SEEN_no_slot,
		[UMBRA_FAULT_READONLY] = SEEN_readonly,
		[UMBRA_FAULT_DENIED] = SEEN_denied,
		[UMBRA_FAULT_BAD_HOST] = SEEN_bad_host,
		[UMBRA_FAULT_NO_MEMORY] = SEEN_no_memory,
		[UMBRA_FAULT_RELEASED] = SEEN_released,
		[UMBRA_FAULT_INSTALLED] = -1,
		[UMBRA_FAULT_RETRY] = -1,
		[UMBRA_FAULT_ERROR] = -1,
	};

	if (seen[c->result] >= 0)
		m_saw((enum m_seen)seen[c->result]);
	if (c->result == UMBRA_FAULT_RETRY && c->resolves && !c->resolve_rc)
		m_saw(c->must_4k || c->must_2m ? SEEN_retried_must : SEEN_retried_may);
	if (c->op.thread)
		m_saw(SEEN_thread_faults);
}

/* A leaf that contradicts the host is dropped; nobody waits until no vCPU remembers it. */
static void drop_wrong(struct m_call *c)
{
	const uint64_t gfn = c->op.a[2] & ~511ULL;
	const struct m_slot *s = m_slot_at(c->m, gfn);
	const uint64_t start = M_HVA + (s->page + gfn - s->gfn) * UMBRA_PAGE_SIZE;

	m_pinned(c->m, (struct hva_range){ { start }, { start + UMBRA_HUGE_SIZE } }, true);
	m_drop(c->m, root_of(c), c->op.a[2], false);
	m_saw(SEEN_wrong_leaf);
}

void m_fault_after(struct m_call *c)
{
	uint32_t possible;
	bool ask;

	if (!c->resolves)
		possible = c->early;
	else if (c->result == UMBRA_FAULT_NO_MEMORY && c->no_table)
		possible = BIT(UMBRA_FAULT_NO_MEMORY);
	else
		possible = late(c);
	/* without a table page it waits for pages to come back, and begins again */
	if (c->no_table)
		possible |= early(c, &ask);
	if (c->resolves && !c->must_ask)
		m_fail("mmu %u page %#lx: the host is asked though the answer is known", c->m->nr,
		       c->op.a[2]);
	if (!(possible >> c->result & 1))
		m_fail("mmu %u root %u page %#lx: a fault is answered '%s'%s; possible are %#x (bits of umbra_fault_result)",
		       c->m->nr, root_of(c), c->op.a[2], umbra_fault_name(c->result),
		       c->resolves ? " after the host was asked" : "", possible);
	if (c->result == UMBRA_FAULT_INSTALLED)
		install(c);
	else if (c->result == UMBRA_FAULT_RETRY && c->resolves && !c->resolve_rc &&
		 !c->m->released && !c->slots_changed && is_write(c) && c->res.writable &&
		 wrong_leaf(c) && (!c->may || m_gone(c->m, root_of(c), c->op.a[2])))
		drop_wrong(c);
	if (c->result == UMBRA_FAULT_INSTALLED || c->result == UMBRA_FAULT_SPURIOUS)
		look_at_answer(c);
	note(c);
}

/* A write fault on a page by a pin, with nothing in between. Returns what the pin makes of it. */
int m_fault_in(struct m_call *pin, unsigned int r, uint64_t gfn)
{
	struct m_call c = { .op = { .a = { pin->op.a[1], r, gfn, UMBRA_ACCESS_WRITE } },
			    .w = pin->w,
			    .m = pin->m };
	const struct m_slot *s = m_slot_at(c.m, gfn);
	uint32_t answer;
	bool ask;

	m_fault_before(&c);
	answer = early(&c, &ask);
	if (ask) {
		c.req.max_level = (enum umbra_level)widest(&c);
		c.resolve_rc = m_host_look(c.m, s->page + gfn - s->gfn, UMBRA_ACCESS_WRITE, &c.res);
		answer = late(&c);
	}
	if (answer & BIT(UMBRA_FAULT_INSTALLED)) {
		install(&c);
		return 0;
	}
	if (answer & BIT(UMBRA_FAULT_SPURIOUS))
		return 0;
	if (answer & (BIT(UMBRA_FAULT_READONLY) | BIT(UMBRA_FAULT_DENIED)))
		return -EACCES;
	return answer & BIT(UMBRA_FAULT_RELEASED) ? -ESHUTDOWN : -EFAULT;
}
