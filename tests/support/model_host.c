/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The world that core is put into by the model: host pages, vCPUs that remember what they walked, the table window, an
 * allocator that can fail, and simulated threads that stop wherever core calls out without a lock.
 */
#include "model.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
#define __sanitizer_start_switch_fiber(save, bottom, size)  ((void)(size))
#define __sanitizer_finish_switch_fiber(save, bottom, size) ((void)0)
#endif

#define ENTRY_P    (1ULL << 0)
#define ENTRY_W    (1ULL << 1)
#define ENTRY_A    (1ULL << 5)
#define ENTRY_D    (1ULL << 6)
#define ENTRY_PS   (1ULL << 7)
#define ENTRY_ADDR 0x000ffffffffff000ULL
#define STACK      (256UL << 10)

struct m_world *m_world;

void m_fail(const char *format, ...)
{
	struct m_result *res = m_world->res;
	va_list ap;

	va_start(ap, format);
	vsnprintf(res->why, sizeof(res->why), format, ap);
	va_end(ap);
	res->failed = true;
	if (m_world->options->here) {
		fprintf(stderr, "step %lu: %s\n", res->step, res->why);
		abort();
	}
	_exit(1);
}

/* ---- threads ------------------------------------------------------------------------------ */

/*
 * Goes on with the stack @to, and leaves in @from where to come back to. Not swapcontext(), which makes system calls and
 * of which AddressSanitizer says on every first use that it may not understand it.
 */
void m_switch(void **from, void *to);
__asm__(".pushsection .text\n"
	".globl m_switch\n"
	".type m_switch, @function\n"
	"m_switch:\n"
	"	push %rbp\n	push %rbx\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n"
	"	mov %rsp, (%rdi)\n"
	"	mov %rsi, %rsp\n"
	"	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbx\n	pop %rbp\n"
	"	ret\n"
	".size m_switch, . - m_switch\n"
	".popsection\n");

static void yield(void)
{
	struct m_world *w = m_world;
	struct m_thread *t = w->cur;

	if (!t)
		return;
	__sanitizer_start_switch_fiber(t->finished ? NULL : &t->fake_stack, w->main_stack,
				       w->main_stack_bytes);
	m_switch(&t->sp, w->main_sp);
	__sanitizer_finish_switch_fiber(t->fake_stack, &w->main_stack, &w->main_stack_bytes);
}

static void thread_main(void)
{
	struct m_thread *t = m_world->cur;

	__sanitizer_finish_switch_fiber(NULL, &m_world->main_stack, &m_world->main_stack_bytes);
	m_body(&t->call);
	t->finished = true;
	yield();
}

bool m_thread_go(struct m_thread *t)
{
	struct m_world *w = m_world;
	struct m_call *const before = w->call;

	w->cur = t;
	w->call = &t->call;
	__sanitizer_start_switch_fiber(&w->main_fake_stack, t->stack, t->stack_bytes);
	m_switch(&w->main_sp, t->sp);
	__sanitizer_finish_switch_fiber(w->main_fake_stack, NULL, NULL);
	w->cur = NULL;
	w->call = before;
	return t->finished;
}

void m_thread_begin(struct m_thread *t, const struct m_call *call)
{
	void **frame;

	if (!t->stack) {
		t->stack_bytes = STACK;
		t->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (t->stack == MAP_FAILED)
			abort();
	}
	t->call = *call;
	t->busy = true;
	t->finished = false;
	/* six registers, where to begin, and no place to return to */
	frame = (void **)((char *)t->stack + t->stack_bytes) - 8;
	memset(frame, 0, 8 * sizeof(*frame));
	*(void (**)(void)) & frame[6] = thread_main;
	t->sp = frame;
}

void m_thread_end(struct m_thread *t)
{
	if (t->stack)
		munmap(t->stack, t->stack_bytes);
	t->stack = NULL;
}

/* ---- what the library needs of a system ----------------------------------------------------- */

static unsigned int locks_held;

static void no_lock(const char *what)
{
	if (locks_held)
		m_fail("%s under a lock", what);
}

static void *os_alloc(size_t bytes)
{
	struct m_world *w = m_world;
	size_t *p;

	no_lock("memory is allocated");
	if (w->oom_in && --w->oom_in == 0) {
		w->oom_hit = true;
		m_saw(SEEN_oom);
		return NULL;
	}
	p = calloc(1, bytes + 16);
	if (!p)
		abort();
	*p = bytes;
	w->allocated += bytes;
	return p + 2;
}

static void os_free(void *p, size_t bytes)
{
	size_t *const block = (size_t *)p - 2;

	no_lock("memory is freed");
	if (*block != bytes)
		m_fail("%zu bytes freed as %zu", *block, bytes);
	m_world->allocated -= bytes;
	free(block);
}

static void *mutex_create(void)
{
	return os_alloc(sizeof(bool));
}

static void mutex_destroy(void *m)
{
	if (*(bool *)m)
		m_fail("a lock is destroyed while it is held");
	os_free(m, sizeof(bool));
}

static bool mutex_trylock(void *m)
{
	bool *held = m;

	if (*held)
		return false;
	*held = true;
	locks_held++;
	return true;
}

static void mutex_lock(void *m)
{
	if (!mutex_trylock(m))
		m_fail("a lock is taken twice, or held where nothing may be held");
}

static void mutex_unlock(void *m)
{
	bool *held = m;

	if (!*held)
		m_fail("a lock is given back that is not held");
	*held = false;
	locks_held--;
}

static void relax(void)
{
	if (++m_world->relaxed > 100000)
		m_fail("waited for ever");
	if (m_world->cur)
		yield();
	else
		m_others_go();
}

static void __attribute__((noreturn)) bug(const char *what)
{
	m_fail("bug: %s", what);
}

const struct umbra_os m_os = {
	.alloc = os_alloc,
	.free = os_free,
	.mutex_create = mutex_create,
	.mutex_destroy = mutex_destroy,
	.mutex_lock = mutex_lock,
	.mutex_trylock = mutex_trylock,
	.mutex_unlock = mutex_unlock,
	.relax = relax,
	.bug = bug,
};

/* ---- tables ------------------------------------------------------------------------------- */

static uint64_t *table_page(const struct m_mmu *m, uint64_t index)
{
	return (uint64_t *)((char *)m->window + index * UMBRA_PAGE_SIZE);
}

static int table_alloc(void *ctx, uint64_t *index)
{
	struct m_mmu *m = ctx;

	for (uint64_t i = 0; m->limit && i < M_WINDOW; i++) {
		if (m->used[i])
			continue;
		m->used[i] = true;
		m->out++;
		if (m->limit < 9999)
			m->limit--;
		*index = i;
		return 0;
	}
	m->w->call->no_table = true;
	m_saw(SEEN_no_table);
	return -ENOSPC;
}

static void table_free(void *ctx, uint64_t index)
{
	struct m_mmu *m = ctx;
	const uint64_t *p = table_page(m, index);

	for (unsigned int i = 0; i < 512; i++)
		if (p[i])
			m_fail("a table page is given back with contents");
	if (!m->used[index])
		m_fail("a table page is given back twice");
	for (unsigned int c = 0; c < M_CPUS; c++)
		for (unsigned int b = 0; b < M_BLOCKS; b++)
			if (m->cpus[c].in && m->cpus[c].psc[b].valid &&
			    m->cpus[c].psc[b].table == index)
				m_fail("a table page is given back that a vCPU in the guest may walk");
	m->used[index] = false;
	m->out--;
}

/* ---- host memory ---------------------------------------------------------------------------- */

int m_host_look(struct m_mmu *m, uint64_t page, uint32_t access, struct umbra_resolved *res)
{
	const struct m_world *w = m->w;
	const int error = m->resolve_error;
	const struct m_page *p;

	m->resolve_error = 0;
	if (error)
		return -error;
	if (page >= M_HOST || !w->pages[page].present)
		return -EFAULT;
	p = &w->pages[page];
	if ((access & UMBRA_ACCESS_WRITE) && !p->writable)
		return -EACCES;
	*res = (struct umbra_resolved){
		.level = w->huge[page / 512] ? UMBRA_LEVEL_2M : UMBRA_LEVEL_4K,
		.writable = p->writable,
		.host_pfn = w->huge[page / 512] ? w->pages[page & ~511ULL].pfn : p->pfn,
	};
	return 0;
}

static int resolve(void *ctx, const struct umbra_resolve_req *req, struct umbra_resolved *res)
{
	struct m_mmu *m = ctx;
	struct m_call *c = m->w->call;

	no_lock("the host is asked");
	if (c->m != m)
		m_fail("the host is asked for another MMU");
	c->req = *req;
	m_fault_snapshot(c);
	yield(); /* the snapshot is taken; the host is not looked at yet */
	c->resolve_rc = m_host_look(m, (req->hva.v - M_HVA) >> UMBRA_PAGE_SHIFT, req->access, res);
	c->res = *res;
	yield(); /* the host was looked at; nothing is installed yet */
	return c->resolve_rc;
}

static void new_frame(struct m_world *w, uint64_t page)
{
	w->pages[page].pfn = w->next_pfn += 2;
	w->huge[page / 512] = false;
}

void m_host_change(struct m_world *w, unsigned int what, uint64_t page, uint64_t n)
{
	for (uint64_t p = page; p < page + n; p++) {
		const bool whole_block = p % 512 == 0 && p + 512 <= page + n;

		switch (what % 5) {
		case 0: new_frame(w, p); break;
		case 1:
			if (p % 512 == 0 && !whole_block)
				w->huge[p / 512] = false;
			if (p == page && p % 512)
				w->huge[p / 512] = false;
			w->pages[p].writable = false;
			break;
		case 2:
			w->pages[p].present = false;
			w->huge[p / 512] = false;
			break;
		case 3:
			new_frame(w, p);
			w->pages[p].present = w->pages[p].writable = true;
			break;
		default:
			if (!whole_block)
				break;
			w->next_pfn = (w->next_pfn + 1024) & ~511ULL;
			for (uint64_t i = 0; i < 512; i++)
				w->pages[p + i] = (struct m_page){ true, true, w->next_pfn + i };
			w->next_pfn += 512;
			w->huge[p / 512] = true;
			p += 511;
		}
	}
}

void m_host_give(struct m_world *w, unsigned int what, uint64_t page, uint64_t n)
{
	for (uint64_t p = page; p < page + n && p < M_HOST; p++) {
		switch (what % 3) {
		case 0:
			if (w->huge[p / 512])
				for (uint64_t i = 0; i < 512; i++)
					w->pages[(p & ~511ULL) + i].writable = true;
			w->pages[p].writable = true;
			break;
		case 1:
			if (!w->pages[p].present)
				w->pages[p] = (struct m_page){ true, true, w->next_pfn += 2 };
			break;
		default: w->huge[p / 512] = false;
		}
	}
}

void m_host_init(struct m_world *w)
{
	locks_held = 0;
	w->next_pfn = 0x1000;
	m_host_change(w, 3, 0, M_HOST);
	m_host_change(w, 4, 0, 1024); /* the first half is huge */
}

/* ---- vCPUs -------------------------------------------------------------------------------- */

static void flush_queue(void *ctx, const struct umbra_flush_entry *e)
{
	struct m_mmu *m = ctx;

	if (m->queued == m->queue_cap) {
		m->queue_cap = m->queue_cap ? m->queue_cap * 2 : 256;
		m->queue = realloc(m->queue, m->queue_cap * sizeof(*m->queue));
		if (!m->queue)
			abort();
	}
	m->queue[m->queued].e = *e;
	m->queue[m->queued++].ticket = m->posted + 1;
	m->unposted++;
}

static void flush_queue_run(void *ctx, const struct umbra_flush_entry *first, uint32_t n)
{
	struct umbra_flush_entry e = *first;

	for (; n; n--, e.index++, e.addr += UMBRA_PAGE_SIZE)
		flush_queue(ctx, &e);
}

static void forget(struct m_mmu *m, struct m_cpu *c, const struct umbra_flush_entry *e)
{
	const uint64_t first = e->addr >> UMBRA_PAGE_SHIFT;
	const uint64_t span = (e->table ? 512ULL : 1ULL) << (9 * (e->level - 1));

	for (unsigned int i = 0; i < 16; i++) {
		struct m_tlb *t = &c->tlb[i];

		if (t->valid && t->gfn < first + span && first < t->gfn + (t->huge ? 512 : 1))
			t->valid = false;
	}
	for (unsigned int b = 0; b < M_BLOCKS; b++) {
		const uint64_t gfn = m->w->script->base + b * 512;

		if (gfn < first + span && first < gfn + 512)
			c->psc[b].valid = false;
	}
}

void m_cpu_catch_up(struct m_mmu *m, struct m_cpu *c, uint64_t ticket)
{
	for (uint64_t i = 0; c->ack < ticket && i < m->queued; i++)
		if (m->queue[i].ticket > c->ack && m->queue[i].ticket <= ticket)
			forget(m, c, &m->queue[i].e);
	if (c->ack < ticket)
		c->ack = ticket;
}

/* What every vCPU knows is not kept; one that is out learns it before it goes in again. */
static void queue_trim(struct m_mmu *m)
{
	uint64_t known = m->posted, kept = 0;

	for (unsigned int c = 0; c < M_CPUS; c++) {
		if (!m->cpus[c].in)
			m_cpu_catch_up(m, &m->cpus[c], m->posted);
		else if (m->cpus[c].ack < known)
			known = m->cpus[c].ack;
	}
	for (uint64_t i = 0; i < m->queued; i++)
		if (m->queue[i].ticket > known)
			m->queue[kept++] = m->queue[i];
	m->queued = kept;
}

static uint64_t flush_post(void *ctx)
{
	struct m_mmu *m = ctx;

	if (!m->unposted)
		m_fail("a flush is posted with nothing in it");
	m->unposted = 0;
	m->posted++;
	if (m->queued > 192)
		queue_trim(m);
	return m->posted;
}

static int flush_wait(void *ctx, uint64_t ticket, bool may_wait)
{
	struct m_mmu *m = ctx;
	struct m_call *call = m->w->call;

	if (locks_held > (m->w->call->op.kind == OP_join))
		m_fail("vCPUs are waited for under a lock");
	if (ticket > m->posted)
		m_fail("a ticket is waited for that was not given out");
	if (may_wait)
		yield();
	for (unsigned int i = 0; i < M_CPUS; i++) {
		if (may_wait) {
			m_cpu_catch_up(m, &m->cpus[i], ticket);
		} else if (m->cpus[i].in && m->cpus[i].ack < ticket) {
			call->no_wait = true;
			return -EAGAIN;
		}
	}
	return 0;
}

static bool flush_done(void *ctx, uint64_t ticket)
{
	const struct m_mmu *m = ctx;

	for (unsigned int i = 0; i < M_CPUS; i++)
		if (m->cpus[i].in && m->cpus[i].ack < ticket)
			return false;
	return true;
}

static uint64_t *walk(const struct m_mmu *m, unsigned int r, uint64_t gfn, unsigned int *level)
{
	uint64_t table = umbra_root_phys(m->roots[r].root);

	for (*level = 4;; --*level) {
		uint64_t *e = table_page(m, (table - M_PHYS) / UMBRA_PAGE_SIZE) +
			      ((gfn >> (9 * (*level - 1))) & 511);

		if (!(*e & ENTRY_P) || *level == 1 || (*e & ENTRY_PS))
			return e;
		table = *e & ENTRY_ADDR;
	}
}

uint64_t m_linked_table(struct m_mmu *m, unsigned int r, uint64_t gfn)
{
	unsigned int level;
	const uint64_t *e = walk(m, r, gfn, &level);

	return level == 1 ? (uint64_t)((const char *)e - (const char *)m->window) / UMBRA_PAGE_SIZE
			  : UINT64_MAX;
}

enum m_used m_cpu_access(struct m_mmu *m, unsigned int cpu, uint64_t gfn, bool write, uint64_t *pfn,
			 bool *huge)
{
	struct m_cpu *c = &m->cpus[cpu];
	const uint64_t block = (gfn - m->w->script->base) / 512;
	struct m_tlb *t = NULL;
	unsigned int level = 1;
	uint64_t *e;

	for (unsigned int i = 0; i < 16 && !t; i++)
		if (c->tlb[i].valid && gfn >= c->tlb[i].gfn &&
		    gfn < c->tlb[i].gfn + (c->tlb[i].huge ? 512 : 1))
			t = &c->tlb[i];
	if (t && (!write || (t->writable && t->dirty))) {
		*pfn = t->pfn + (gfn - t->gfn);
		*huge = t->huge;
		return USED_TLB;
	}
	if (c->psc[block].valid)
		e = table_page(m, c->psc[block].table) + (gfn & 511);
	else
		e = walk(m, m_cpu_root(m, cpu), gfn, &level);
	if (!(*e & ENTRY_P) || (write && !(*e & ENTRY_W))) {
		if (t)
			t->valid = false; /* a fault drops the translation of its address */
		return USED_FAULT;
	}
	*e |= ENTRY_A | (write ? ENTRY_D : 0);
	if (!t)
		t = &c->tlb[(level == 2 ? block : gfn) % 16];
	*t = (struct m_tlb){
		.valid = true,
		.writable = *e & ENTRY_W,
		.dirty = *e & ENTRY_D,
		.huge = level == 2,
		.gfn = level == 2 ? gfn & ~511ULL : gfn,
		.pfn = (*e & ENTRY_ADDR) >> UMBRA_PAGE_SHIFT,
	};
	if (level == 1) {
		c->psc[block].valid = true;
		c->psc[block].table = (uint64_t)((char *)e - (char *)m->window) / UMBRA_PAGE_SIZE;
	}
	*pfn = t->pfn + (gfn - t->gfn);
	*huge = t->huge;
	return USED_WALK;
}

static void pin_lost(void *ctx, gfn_t gfn, const struct umbra_range *r)
{
	const struct m_mmu *m = ctx;

	(void)r;
	for (unsigned int i = 0; i < M_PINS; i++) {
		const struct m_pin *p = &m->w->pins[i];

		if (p->held && p->mmu == m->nr && gfn.v - m->w->script->base - p->gfn < p->n)
			return;
	}
	if (m->w->call->op.kind != OP_pin)
		m_fail("a page is reported lost that is not pinned");
}

#define OPS                                                                             \
	.table_alloc = table_alloc, .table_free = table_free, .resolve = resolve,       \
	.flush_queue = flush_queue, .flush_post = flush_post, .flush_wait = flush_wait, \
	.flush_done = flush_done, .pin_lost = pin_lost

const struct umbra_mmu_ops m_mmu_ops = { OPS, .flush_queue_run = flush_queue_run };
const struct umbra_mmu_ops m_mmu_ops_plain = { OPS };
