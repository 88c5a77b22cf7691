/* SPDX-License-Identifier: BSD-2-Clause */
/* Scripts of the model: made from a seed alone, written and read as text, one operation a line. */
#include "model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name;
	unsigned int nargs;
} ops[OP_NR] = {
#define M_OP_ROW(name, nargs) { #name, nargs },
	M_OPS(M_OP_ROW)
#undef M_OP_ROW
};

void m_write_op(FILE *to, const struct m_op *op)
{
	if (op->thread)
		fprintf(to, "@%u ", op->thread);
	fprintf(to, "%s", ops[op->kind].name);
	for (unsigned int i = 0; i < ops[op->kind].nargs; i++)
		fprintf(to, op->a[i] < 10 ? " %lu" : " %#lx", op->a[i]);
	fputc('\n', to);
}

void m_write(FILE *to, const struct m_script *s)
{
	fprintf(to, "world %#lx %#lx\n", s->seq, s->base);
	for (uint64_t i = 0; i < s->n; i++)
		m_write_op(to, &s->ops[i]);
}

static bool read_op(char *line, struct m_op *op)
{
	char *save = NULL, *word = strtok_r(line, " \t\n", &save);

	memset(op, 0, sizeof(*op));
	if (word && *word == '@') {
		op->thread = (uint8_t)strtoul(word + 1, NULL, 10);
		word = strtok_r(NULL, " \t\n", &save);
	}
	for (op->kind = 0; word && op->kind < OP_NR; op->kind++)
		if (!strcmp(word, ops[op->kind].name))
			break;
	if (!word || op->kind == OP_NR || op->thread > M_THREADS)
		return false;
	for (unsigned int i = 0; i < ops[op->kind].nargs; i++) {
		char *end;

		word = strtok_r(NULL, " \t\n", &save);
		if (!word)
			return false;
		op->a[i] = strtoull(word, &end, 0);
		if (*end)
			return false;
	}
	return !strtok_r(NULL, " \t\n", &save);
}

int m_read(FILE *from, struct m_script *s)
{
	char line[256];
	int nr = 0;

	*s = (struct m_script){ 0 };
	while (fgets(line, sizeof(line), from)) {
		nr++;
		if (line[0] == '#' || line[0] == '\n')
			continue;
		if (!strncmp(line, "world ", 6)) {
			char *rest;

			s->seq = strtoull(line + 6, &rest, 0);
			s->base = strtoull(rest, NULL, 0);
			continue;
		}
		s->ops = realloc(s->ops, (s->n + 1) * sizeof(*s->ops));
		if (!s->ops)
			abort();
		if (!read_op(line, &s->ops[s->n++]))
			return nr;
	}
	return 0;
}

void m_free(struct m_script *s)
{
	free(s->ops);
	*s = (struct m_script){ 0 };
}

/* ---- making ------------------------------------------------------------------------------- */

struct maker {
	uint64_t rng;
	uint64_t hot[4]; /* pages that operations come back to */
	struct m_script *s;
};

static uint64_t rnd(struct maker *g, uint64_t below)
{
	g->rng ^= g->rng << 13;
	g->rng ^= g->rng >> 7;
	g->rng ^= g->rng << 17;
	return (g->rng >> 11) % below;
}

/* Mostly where something may go wrong: the edges of blocks, and a few pages again and again. */
static uint64_t page(struct maker *g, uint64_t limit)
{
	static const uint64_t edges[] = { 0, 0, 1, 2, 255, 256, 510, 511 };

	switch (rnd(g, 8)) {
	case 0: return rnd(g, limit);
	case 1:
	case 2:
	case 3: return rnd(g, limit / 512) * 512 + edges[rnd(g, 8)];
	default: return g->hot[rnd(g, 4)] % limit;
	}
}

static uint64_t pages(struct maker *g)
{
	switch (rnd(g, 8)) {
	case 0: return 512;
	case 1: return 1 + rnd(g, 1500);
	case 2:
	case 3: return 1 + rnd(g, 12);
	default: return 1;
	}
}

static uint64_t byte(struct maker *g, uint64_t first_page)
{
	const uint64_t offsets[] = { 0, 0, 0, 0, 1, 4095, rnd(g, 4096) };

	return first_page * 4096 + offsets[rnd(g, 7)];
}

static uint64_t bytes(struct maker *g)
{
	const uint64_t n = pages(g) * 4096;

	return rnd(g, 4) ? n : 1 + rnd(g, n);
}

static void add(struct maker *g, enum m_kind kind, unsigned int thread, const uint64_t *a)
{
	struct m_op *op = &g->s->ops[g->s->n++];

	op->kind = (uint8_t)kind;
	op->thread = (uint8_t)thread;
	memcpy(op->a, a, M_ARGS * sizeof(*a));
}

#define ADD(kind, thread, ...) add(g, OP_##kind, thread, (const uint64_t[M_ARGS]){ __VA_ARGS__ })

static void make_join(struct maker *g, uint64_t mmu)
{
	ADD(join, 0, mmu, rnd(g, 6) | (rnd(g, 4) ? 0 : 8));
}

/* The host in its place, a part of it again in another, or something crooked. */
static void make_slot(struct maker *g, uint64_t mmu, uint64_t id)
{
	uint64_t flags = rnd(g, 2) ? UMBRA_SLOT_LOG : 0, host, gfn;

	if (id == 0) {
		ADD(slot, 0, mmu, 0, 0, 1536, 0, flags);
		return;
	}
	if (id == 1) {
		ADD(slot, 0, mmu, 1, 2048, 1024, 0, flags);
		return;
	}
	if (!rnd(g, 4))
		flags |= UMBRA_SLOT_READONLY;
	if (!rnd(g, 6))
		flags |= UMBRA_SLOT_4K_ONLY;
	if (!rnd(g, 6))
		flags |= (1 + rnd(g, 255)) << 8;
	host = rnd(g, 3) ? rnd(g, 3) * 512 : rnd(g, M_HOST);
	gfn = rnd(g, 4) ? 1536 + rnd(g, 5) * 512 + (host & 511) : rnd(g, M_GUEST);
	ADD(slot, 0, mmu, id, gfn, rnd(g, 3) ? 512 : 1 + rnd(g, 900), host, flags);
}

static void make_mmu(struct maker *g, uint64_t mmu)
{
	ADD(leave, 0, mmu);
	make_join(g, mmu);
	for (uint64_t id = 0; id < 3; id++)
		if (!id || rnd(g, 2))
			make_slot(g, mmu, id);
}

static void make_start(struct maker *g, unsigned int thread)
{
	uint64_t flags = rnd(g, 3) ? UMBRA_RANGE_BLOCKABLE : 0;

	if (!rnd(g, 3))
		flags |= UMBRA_RANGE_RELOCATES;
	if (!rnd(g, 5))
		flags |= UMBRA_RANGE_FORCED;
	if (!rnd(g, 6))
		flags |= (1 + rnd(g, M_PARTS)) << 8;
	ADD(start, thread, rnd(g, M_BRACKETS), rnd(g, UMBRA_SOURCE_NR), byte(g, page(g, M_HOST)),
	    bytes(g), flags);
}

/* A few things that hold on their own, and make something of what comes before and after. */
static void make_rare(struct maker *g, uint64_t mmu, unsigned int thread)
{
	static const uint64_t errors[] = { EAGAIN, EFAULT, EHWPOISON, ENOMEM, EIO };

	switch (rnd(g, 20)) {
	case 0:
		if (!rnd(g, 4))
			make_mmu(g, mmu);
		break;
	case 1:
		if (rnd(g, 12))
			break;
		ADD(release, 0, 0);
		for (unsigned int i = 0; i < 8; i++)
			ADD(fault, 0, mmu, 0, page(g, M_HOST), 1);
		make_mmu(g, 0);
		make_mmu(g, 1);
		break;
	case 2:
	case 3:
	case 4: make_slot(g, mmu, rnd(g, M_SLOTS)); break;
	case 5:
	case 6: make_slot(g, mmu, rnd(g, 2)); break;
	case 7: ADD(slotdel, thread, mmu, rnd(g, M_SLOTS)); break;
	case 8:
	case 9:
		ADD(slotmove, thread, mmu, 1 + rnd(g, M_SLOTS - 1),
		    1536 + rnd(g, 5) * 512 + rnd(g, 2) * rnd(g, 512), rnd(g, 4) ? 0 : rnd(g, 256));
		break;
	case 10: ADD(zapall, 0, mmu); break;
	case 11:
		ADD(limit, 0, mmu, rnd(g, 3));
		for (unsigned int i = 0; i < 6; i++)
			ADD(fault, 0, mmu, 0, page(g, M_GUEST), 1 + rnd(g, 7));
		if (rnd(g, 2))
			ADD(split, 0, mmu, page(g, M_GUEST), pages(g));
		ADD(limit, 0, mmu, 9999);
		break;
	case 12:
		ADD(oom, 0, rnd(g, 3));
		make_slot(g, mmu, rnd(g, M_SLOTS));
		break;
	case 13: ADD(rerr, 0, mmu, errors[rnd(g, 5)]); break;
	case 14:
	case 15: ADD(where, 0, mmu, page(g, M_HOST)); break;
	default: ADD(reclaim, 0, mmu, rnd(g, 4)); break;
	}
}

/* A vCPU uses a page, by a fault where there is nothing. */
static void make_use(struct maker *g, uint64_t mmu)
{
	const uint64_t p = page(g, rnd(g, 4) ? 1536 : M_GUEST), write = rnd(g, 2),
		       cpu = rnd(g, M_CPUS);

	ADD(fault, 0, mmu, cpu, p, write ? 2 : 1);
	ADD(cpu, 0, mmu, cpu, p, write);
}

/* A vCPU stays in the guest with what it knows, while that is taken away. */
static void make_stale(struct maker *g, uint64_t mmu, unsigned int thread)
{
	const uint64_t p = g->hot[rnd(g, 4)], cpu = rnd(g, M_CPUS), write = rnd(g, 2);

	ADD(enter, 0, mmu, cpu);
	ADD(fault, 0, mmu, cpu, p, write ? 2 : 1);
	ADD(cpu, 0, mmu, cpu, p, write);
	switch (rnd(g, 3)) {
	case 0:
		ADD(start, thread, rnd(g, M_BRACKETS), rnd(g, UMBRA_SOURCE_NR), p * 4096, 4096,
		    rnd(g, 2) ? UMBRA_RANGE_BLOCKABLE : 0);
		break;
	case 1: ADD(wp, 0, mmu, p, 1); break;
	default: ADD(zap, 0, mmu, p, 1);
	}
	ADD(cpu, 0, mmu, cpu, p, rnd(g, 2));
	if (rnd(g, 2))
		ADD(shot, 0, rnd(g, UMBRA_SOURCE_NR), p * 4096, 4096, rnd(g, 10));
	ADD(cpu, 0, mmu, cpu, p, rnd(g, 2));
	if (rnd(g, 2))
		ADD(exit, 0, mmu, cpu);
}

/* 512 leaves of a hugepage, and one again. */
static void make_collapse(struct maker *g, uint64_t mmu, unsigned int thread)
{
	const uint64_t block = rnd(g, 6) * 512;

	if (rnd(g, 2)) {
		ADD(fault, 0, mmu, rnd(g, 2), block + rnd(g, 512), 3);
		ADD(split, 0, mmu, block + rnd(g, 512), 1);
		make_use(g, mmu);
	}
	ADD(collapse, thread, mmu, block, 512 * (1 + rnd(g, 2)));
}

/* What the host has is given back to it, so that it does not run dry. */
static void make_host(struct maker *g)
{
	switch (rnd(g, 6)) {
	case 0: ADD(give, 0, 2, page(g, M_HOST), pages(g)); break;
	case 1: ADD(give, 0, 1, 0, M_HOST); break;
	case 2: ADD(give, 0, 0, page(g, M_HOST), pages(g)); break;
	case 3:
		ADD(shot, 0, rnd(g, UMBRA_SOURCE_NR), rnd(g, 4) * UMBRA_HUGE_SIZE, UMBRA_HUGE_SIZE,
		    4);
		break;
	default:
		ADD(shot, 0, rnd(g, UMBRA_SOURCE_NR), byte(g, page(g, M_HOST)), bytes(g),
		    rnd(g, 10));
	}
}

static void make_step(struct maker *g)
{
	const uint64_t mmu = rnd(g, 4) == 0, kind = rnd(g, 1000);
	const unsigned int thread = rnd(g, 3) ? 0 : 1 + (unsigned int)rnd(g, M_THREADS);

	if (kind < 200)
		ADD(fault, thread, mmu, rnd(g, 4) == 0, page(g, M_GUEST), 1 + rnd(g, 7));
	else if (kind < 400)
		make_use(g, mmu);
	else if (kind < 415)
		make_stale(g, mmu, thread);
	else if (kind < 430)
		ADD(cpu, 0, mmu, rnd(g, M_CPUS), page(g, M_GUEST), rnd(g, 2));
	else if (kind < 475)
		make_start(g, thread);
	else if (kind < 585)
		ADD(end, 0, rnd(g, M_BRACKETS));
	else if (kind < 605)
		ADD(host, 0, rnd(g, M_BRACKETS), rnd(g, 5), page(g, M_HOST), pages(g));
	else if (kind < 665)
		make_host(g);
	else if (kind < 680)
		ADD(zap, 0, mmu, page(g, M_GUEST), pages(g));
	else if (kind < 705)
		ADD(wp, 0, mmu, page(g, M_GUEST), pages(g));
	else if (kind < 715)
		ADD(split, 0, mmu, page(g, M_GUEST), pages(g));
	else if (kind < 735)
		make_collapse(g, mmu, thread);
	else if (kind < 765)
		ADD(young, 0, rnd(g, 3), byte(g, page(g, M_HOST)), bytes(g));
	else if (kind < 785)
		ADD(collect, 0, mmu, rnd(g, 3), rnd(g, 3) ? 3 : 1 + rnd(g, 2));
	else if (kind < 805)
		ADD(enter, 0, mmu, rnd(g, M_CPUS));
	else if (kind < 820)
		ADD(exit, 0, mmu, rnd(g, M_CPUS));
	else if (kind < 840)
		ADD(pin, 0, rnd(g, M_PINS), mmu, rnd(g, 4) == 0, page(g, M_GUEST), 1 + rnd(g, 3));
	else if (kind < 860)
		ADD(unpin, 0, rnd(g, M_PINS));
	else if (kind < 950)
		ADD(run, 0, 1 + rnd(g, M_THREADS), 1 + rnd(g, 3));
	else
		make_rare(g, mmu, thread);
}

void m_generate(struct m_script *s, uint64_t seed, uint64_t steps)
{
	/* where 32-bit halves, and tables of each level, meet */
	static const uint64_t seqs[] = { 0, 1ULL << 31, 1ULL << 32, 0, 0 };
	static const uint64_t bases[] = { 0, 0, (1ULL << 18) - 1024, (1ULL << 27) - 1024,
					  (1ULL << 35) - M_GUEST };
	struct maker maker = { .rng = seed * 0x9e3779b97f4a7c15ULL + 1, .s = s }, *g = &maker;

	*s = (struct m_script){ .ops = calloc(steps + 64, sizeof(*s->ops)) };
	if (!s->ops)
		abort();
	for (unsigned int i = 0; i < 8; i++)
		rnd(g, 2);
	s->seq = seqs[seed % 5] - (seed % 5 == 4 ? 0 : 20);
	s->base = bases[rnd(g, 5)];
	for (unsigned int i = 0; i < 4; i++)
		g->hot[i] = rnd(g, 1536);
	make_mmu(g, 0);
	make_mmu(g, 1);
	while (s->n < steps)
		make_step(g);
	s->n = steps;
}
