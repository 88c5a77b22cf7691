/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The model-based test of shadow/core: what its parts share.
 *
 *   model_script.c  an operation list: made from a seed, written and read as text
 *   model_host.c    the world that core is put into: pages, vCPUs, table window, allocator, simulated threads
 *   model_ref.c     the flat reference: for each page of each root, what is mapped, and what may be
 *   model_fault.c   the reference's answer to a fault, with whatever came between its steps
 *   model_run.c     executes a script against both
 *   model_shrink.c  runs scripts in a child, and makes a failing one short
 *
 * A script is total: an operation that makes no sense in the state it meets does nothing, so any part of a failing
 * script is a script. Numbers of pages: host pages count from FAKE_HVA, guest pages from the world's base.
 */
#ifndef TESTS_MODEL_H
#define TESTS_MODEL_H

#include <stdio.h>

#include <umbra/mmu.h>

#define M_MMUS     2
#define M_ROOTS    2
#define M_CPUS     2 /* of each MMU: on root 0, and on root 1 if that is walked by a CPU */
#define M_HOST     2048ULL
#define M_GUEST    4096ULL
#define M_BLOCKS   (M_GUEST / 512)
#define M_SLOTS    6
#define M_BRACKETS 6
#define M_PARTS    4
#define M_PINS     4
#define M_THREADS  3
#define M_WINDOW   160ULL
#define M_HVA      0x7f0000000000ULL
#define M_PHYS     0x4000000000ULL
#define M_ARGS     6

/* ---- scripts ------------------------------------------------------------------------------ */

/* clang-format off */
#define M_OPS(X)                                                                                   \
	X(join, 2)	/* mmu, flags: 1 record frames, 2 root 1 DIRECT, 4 MIRROR, 8 no runs   */ \
	X(leave, 1)	/* mmu                                                                  */ \
	X(slot, 6)	/* mmu, id, guest page, pages, host page, flags | frame shift << 8      */ \
	X(slotdel, 2)	/* mmu, id                                                              */ \
	X(slotmove, 4)	/* mmu, id, guest page, frame shift                                     */ \
	X(fault, 4)	/* mmu, root, guest page, access                                        */ \
	X(start, 5)	/* bracket, source, first byte, bytes, flags | parts << 8               */ \
	X(end, 1)	/* bracket                                                              */ \
	X(host, 4)	/* bracket, what, page in it, pages                                     */ \
	X(give, 3)	/* what, host page, pages: nothing is taken away                        */ \
	X(shot, 4)	/* source, first byte, bytes, what: start, change, end; from 5 on: change, told of it */ \
	X(zap, 3)	/* mmu, guest page, pages                                               */ \
	X(zapall, 1)	/* mmu                                                                  */ \
	X(reclaim, 2)	/* mmu, most tables                                                     */ \
	X(wp, 3)	/* mmu, guest page, pages                                               */ \
	X(split, 3)	/* mmu, guest page, pages                                               */ \
	X(collapse, 3)	/* mmu, guest page, pages                                               */ \
	X(young, 3)	/* what: 0 test, 1 clear, 2 clear and flush; first byte, bytes          */ \
	X(collect, 3)	/* mmu, id, what: 1 accessed, 2 dirty                                   */ \
	X(cpu, 4)	/* mmu, cpu, guest page, write                                          */ \
	X(enter, 2)	/* mmu, cpu: runs guest code until told to come out                     */ \
	X(exit, 2)	/* mmu, cpu                                                             */ \
	X(pin, 5)	/* pin, mmu, root, guest page, pages                                    */ \
	X(unpin, 1)	/* pin                                                                  */ \
	X(release, 0)	/* the address space ends                                               */ \
	X(limit, 2)	/* mmu, table pages still to be had; 9999 is all                        */ \
	X(oom, 1)	/* this many allocations succeed, and the next fails                    */ \
	X(rerr, 2)	/* mmu, errno of the next resolve                                       */ \
	X(where, 2)	/* mmu, host page: every guest page that it appears at                  */ \
	X(run, 2)	/* thread, steps                                                        */
/* clang-format on */

enum m_kind {
#define M_KIND(name, nargs) OP_##name,
	M_OPS(M_KIND)
#undef M_KIND
		OP_NR
};

/* @thread: 0 does it in one go; 1.. begins it on a simulated thread, which stops at every step. */
struct m_op {
	uint8_t kind, thread;
	uint64_t a[M_ARGS];
};

struct m_script {
	uint64_t seq;  /* where the sequences start */
	uint64_t base; /* first frame of guest memory */
	uint64_t n;
	struct m_op *ops;
};

void m_generate(struct m_script *s, uint64_t seed, uint64_t steps);
void m_write_op(FILE *to, const struct m_op *op);
void m_write(FILE *to, const struct m_script *s);
/* 0, or the number of the line that is none. */
int m_read(FILE *from, struct m_script *s);
void m_free(struct m_script *s);

/* ---- running ------------------------------------------------------------------------------ */

/* What the runs met; a test that never meets one proves nothing about it. */
/* clang-format off */
#define M_SEEN(X) X(installed_4k) X(installed_2m) X(upgraded) X(spurious) X(retried_must)          \
	X(retried_may) X(no_slot) X(readonly) X(denied) X(bad_host) X(no_memory) X(released)       \
	X(wrong_leaf) X(refused_again) X(refused_busy) X(forced) X(late) X(batches) X(pins) X(pins_lost)   \
	X(slots_moved) X(slots_refused) X(slots_busy) X(splits) X(collapses) X(transits)           \
	X(young) X(not_young) X(log_bits) X(stale_uses) X(harvested) X(oom) X(no_table)            \
	X(thread_faults) X(thread_starts) X(thread_slots) X(thread_collapses) X(aliases)           \
	X(protected) X(cpu_reads) X(cpu_writes) X(joined_open) X(releases)
/* clang-format on */

enum m_seen {
#define M_SEEN_ID(name) SEEN_##name,
	M_SEEN(M_SEEN_ID)
#undef M_SEEN_ID
		SEEN_NR
};

/* Deliberate mistakes of the reference, to see that a mistake is found. */
enum m_wrong { WRONG_NOT, WRONG_ALIAS, WRONG_DIRTY, WRONG_HALF };

struct m_options {
	enum m_wrong wrong;
	unsigned int whole_every; /* steps from one comparison of everything to the next */
	unsigned int seconds;     /* a run that takes longer hangs */
	bool here;                /* do not fork: for a debugger */
};

/* In memory shared with the child. */
struct m_result {
	bool failed;
	uint64_t step; /* operations completed before the failure */
	char why[400];
	uint64_t seen[SEEN_NR];
};

void m_execute(const struct m_script *s, const struct m_options *o, struct m_result *res);
/* In a child process; crashes and hangs are failures too. @res->seen is added to. */
bool m_run(const struct m_script *s, const struct m_options *o, struct m_result *res);
/* @s fails: leaves of it what is needed to fail. Returns the number of runs. */
unsigned int m_shrink(struct m_script *s, const struct m_options *o, struct m_result *res);
/*
 * @steps operations from @seed on, in worlds of their own. Returns 0; or 1, with the failing script shrunk, printed,
 * and written to @file.
 */
int m_campaign(uint64_t seed, uint64_t steps, const struct m_options *o, const char *file,
	       struct m_result *res, struct m_script *shrunk);
const char *m_seen_name(unsigned int i);

/* ---- the world ---------------------------------------------------------------------------- */

struct m_page {
	bool present, writable;
	uint64_t pfn;
};

struct m_tlb {
	bool valid, writable, dirty, huge;
	uint64_t gfn, pfn; /* first of the leaf */
};

/* A vCPU: translations, and tables of 4K leaves, that it remembers. */
struct m_cpu {
	bool in;      /* in guest code: what was posted reaches it by a kick only */
	uint64_t ack; /* ticket up to which it has forgotten what it was told to */
	struct m_tlb tlb[16];
	struct {
		bool valid;
		uint64_t table;
	} psc[M_BLOCKS];
};

/* One page of one root, as it must be. A 2M leaf stands in its 512 pages. */
struct m_leaf {
	uint8_t level, w, a, d;
};

struct m_slot {
	bool used;
	uint32_t id, flags;
	uint64_t gfn, npages, page, out; /* gfn: guest page; page: host page */
	/* since the last collect: what must be told, and what may be */
	uint8_t must_a[M_HOST], may_a[M_HOST], must_d[M_HOST], may_d[M_HOST];
};

struct m_union {
	uint64_t n, lo, hi;
};

struct m_root {
	struct umbra_root *root;
	enum umbra_root_kind kind;
	struct m_leaf leaf[M_GUEST];
	uint8_t tlb[M_GUEST]; /* 1 a CPU may still read, 2 write, by what it remembers */
	struct {
		bool on;
		uint8_t w, a, d;
		const struct m_call *by;
	} transit[M_BLOCKS]; /* a collapse holds the block */
	uint64_t nleaves;
};

struct m_mmu {
	struct m_world *w;
	struct umbra_mmu *mmu; /* NULL: not there */
	unsigned int nr, nroots;
	bool released, records;
	struct m_root roots[M_ROOTS];
	struct m_cpu cpus[M_CPUS];
	struct m_slot slots[M_SLOTS];
	struct m_union src[UMBRA_SOURCE_NR];
	/* window */
	void *window;
	bool used[M_WINDOW];
	uint64_t out, limit;
	struct {
		struct umbra_flush_entry e;
		uint64_t ticket;
	} * queue;
	uint64_t queued, queue_cap, unposted, posted;
	int resolve_error;
	uint64_t seq_ends; /* sequence at creation */
};

/* One call of the library, from its beginning to its end. */
struct m_call {
	struct m_op op;
	struct m_world *w;
	struct m_mmu *m;
	int64_t rc;
	struct umbra_fault f;
	enum umbra_fault_result result;
	uint32_t early; /* results possible without asking the host; 0: it must be asked */
	bool must_ask;
	/* since its last snapshot */
	unsigned int resolves;
	bool must_4k, must_2m, may, slots_changed;
	uint64_t starts;
	struct umbra_resolve_req req;
	struct umbra_resolved res;
	int resolve_rc;
	bool no_table, no_wait; /* a table was asked for in vain; a wait was refused */
	bool unsure;            /* the reference cannot say how many */
	int64_t collapsed;
	uint64_t expect, expect_max; /* counted before */
	struct umbra_memslot slot;
	const struct umbra_range *range; /* of a start */
	bool pinned;
	struct hva_range hull; /* of the bracket that the library opens in it */
	bool core_open;
};

struct m_thread {
	void *stack, *sp;
	size_t stack_bytes;
	bool busy, finished;
	struct m_call call;
	void *fake_stack;
};

struct m_bracket {
	enum { BRACKET_IDLE, BRACKET_STARTING, BRACKET_OPEN } state;
	struct umbra_range r;
	struct hva_range v[M_PARTS];
};

struct m_pin {
	struct umbra_pin pin;
	bool held, lost;
	unsigned int mmu;
	uint64_t gfn, n;
};

struct m_world {
	const struct m_script *script;
	const struct m_options *options;
	struct m_result *res;
	struct umbra_chain *chain;
	struct m_page pages[M_HOST];
	bool huge[M_HOST / 512];
	uint64_t next_pfn;
	struct m_mmu mmus[M_MMUS];
	struct m_bracket brackets[M_BRACKETS];
	struct m_union src[UMBRA_SOURCE_NR];
	struct m_pin pins[M_PINS];
	struct m_thread threads[M_THREADS];
	struct m_thread *cur; /* NULL: the main one */
	struct m_call *call;  /* of whoever runs */
	struct m_call *adopt; /* over, but what it dropped is not known yet */
	void *main_sp, *main_fake_stack;
	const void *main_stack;
	size_t main_stack_bytes;
	uint64_t allocated, oom_in; /* bytes; allocations until one fails, 0 never */
	bool oom_hit, released;
	uint64_t relaxed, step;
	uint64_t scratch_a[M_HOST / 64], scratch_d[M_HOST / 64];
};

extern struct m_world *m_world; /* of this process: umbra_os has no context */

void __attribute__((noreturn, format(printf, 1, 2))) m_fail(const char *format, ...);
static inline void m_saw(enum m_seen what)
{
	m_world->res->seen[what]++;
}

/* model_host.c */
extern const struct umbra_os m_os;
extern const struct umbra_mmu_ops m_mmu_ops, m_mmu_ops_plain; /* plain: no flush_queue_run */
void m_host_init(struct m_world *w);
/* How the host maps @page: 0 and @res, or an error. */
int m_host_look(struct m_mmu *m, uint64_t page, uint32_t access, struct umbra_resolved *res);
/* What a bracket's owner may do to [page, page + n). */
void m_host_change(struct m_world *w, unsigned int what, uint64_t page, uint64_t n);
void m_host_give(struct m_world *w, unsigned int what, uint64_t page, uint64_t n);
void m_cpu_catch_up(struct m_mmu *m, struct m_cpu *c, uint64_t ticket);
enum m_used { USED_FAULT, USED_TLB, USED_WALK };
/* What a CPU does without us. @huge: by a 2M leaf. */
enum m_used m_cpu_access(struct m_mmu *m, unsigned int cpu, uint64_t gfn, bool write, uint64_t *pfn,
			 bool *huge);
/* Table of 4K leaves linked for @gfn in root @r: its index, or UINT64_MAX. */
uint64_t m_linked_table(struct m_mmu *m, unsigned int r, uint64_t gfn);
static inline unsigned int m_cpu_root(const struct m_mmu *m, unsigned int cpu)
{
	return cpu < m->nroots && m->roots[cpu].kind == UMBRA_ROOT_DIRECT ? cpu : 0;
}
/* Lets @t go on until its next step. True: its call is over. */
bool m_thread_go(struct m_thread *t);
void m_thread_begin(struct m_thread *t, const struct m_call *call);
void m_thread_end(struct m_thread *t);
/* model_run.c: the library's function for @call. */
void m_body(struct m_call *call);
/* Goes on with every other thread by a step; from relax on the main one. */
void m_others_go(void);

/* model_ref.c */
/* The whole pages that @r touches; do two ranges have a byte in common? In the reference's own words. */
struct hva_range m_widen(struct hva_range r);
bool m_meet(struct hva_range a, struct hva_range b);
struct m_slot *m_slot_at(struct m_mmu *m, uint64_t gfn);
struct m_slot *m_slot_id(struct m_mmu *m, uint64_t id);
bool m_may_be_huge(const struct m_slot *s, uint64_t gfn);
bool m_meets_2m(const struct m_slot *s, uint64_t gfn, struct hva_range r, unsigned int level);
void m_drop(struct m_mmu *m, unsigned int r, uint64_t gfn, bool flushed);
/* [gfn, gfn + n) of every root: dropped, and (@flushed) remembered by no vCPU. */
void m_zap(struct m_mmu *m, uint64_t gfn, uint64_t n, bool flushed);
void m_zap_hva(struct m_mmu *m, struct hva_range r, bool flushed);
/* The guest pages of @s that show the widened @r. */
struct gfn_range m_gfns_of(const struct m_slot *s, struct hva_range r);
/* The exact range number @i of @r, widened. */
struct hva_range m_part(const struct umbra_range *r, uint32_t i);
bool m_gone(struct m_mmu *m, unsigned int r, uint64_t gfn);
bool m_must_open(const struct m_world *w, struct hva_range r);
bool m_may_open(const struct m_mmu *m, struct hva_range r);
struct hva_range m_asked(const struct m_call *c, unsigned int level);
void m_union_add(struct m_union *u, struct hva_range r);
void m_union_del(struct m_union *u);
/* Something began or ended over @hull in @m: faults under way there must, or may, ask again. */
void m_event(struct m_mmu *m, struct hva_range hull, bool must);
void m_slots_changed(struct m_mmu *m);
bool m_pinned(const struct m_mmu *m, struct hva_range r, bool lose);
void m_compare_page(struct m_mmu *m, unsigned int r, uint64_t gfn);
void m_compare(struct m_mmu *m);
void m_compare_all(struct m_world *w);

/* model_fault.c */
void m_fault_before(struct m_call *c);
void m_fault_after(struct m_call *c);
void m_fault_snapshot(struct m_call *c);
int m_fault_in(struct m_call *pin, unsigned int r, uint64_t gfn);

#endif
