/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The kernel module's ring: a producer on another CPU writes starts and ends as the module does, and what they take away is
 * dropped by a drain here. Against the same producer and such a ring, whose records are only copied out.
 */
#include <stdatomic.h>

#include "bench.h"
#include "shadow/events/module.h"
#include "world.h"

#define RECORDS (1U << 14)    /* in a ring: what the library asks for */
#define PAGES   (RECORDS / 4) /* each with a leaf, a start and an end: nothing is ever lost */
#define EVENTS  (2ULL * PAGES)

/* What the kernel and a consumer share. */
struct shared {
	struct umbra_ntf_record records[RECORDS];
	struct umbra_ntf_state state;
	struct umbra_ntf_consumer consumer;
	struct umbra_ring_producer kernel;
	struct umbra_ring_consumer user;
};

struct ring {
	struct world w;
	struct shared ours, bare, told;
	struct umbra_module *module;
	pthread_t producer;
	_Atomic(struct shared *) wanted; /* the producer fills it once, then forgets it */
	_Atomic bool stop;
};

static void shared_init(struct shared *s)
{
	s->kernel = (struct umbra_ring_producer){ s->records, RECORDS - 1, 0,
						  0,          &s->state,   &s->consumer };
	s->user = (struct umbra_ring_consumer){ .records = s->records,
						.mask = RECORDS - 1,
						.state = &s->state,
						.consumer = &s->consumer };
}

/* As kmod/umbra.c publishes a callout, but for its lock. */
static void publish(struct shared *s, uint8_t kind, uint64_t page)
{
	const struct hva_range at = world_hva(page, 1);
	uint64_t *count =
		kind == UMBRA_NTF_START ? (uint64_t *)&s->state.begun : (uint64_t *)&s->state.ended;
	struct umbra_ntf_record rec = {
		.start = at.start.v,
		.end = at.end.v,
		.time_ns = page,
		.who = 1,
		.kind = kind,
		.event = UMBRA_NTF_CLEAR,
		.flags = UMBRA_NTF_BLOCKABLE | UMBRA_NTF_OWNER,
	};

	umbra_ring_store(count, *count + 1);
	rec.begun = s->state.begun;
	umbra_ring_push(&s->kernel, &rec);
}

static void *produce(void *arg)
{
	struct ring *r = arg;

	while (!r->stop) {
		struct shared *s = r->wanted;

		for (uint64_t page = 0; s && page < PAGES; page++) {
			publish(s, UMBRA_NTF_START, page);
			publish(s, UMBRA_NTF_END, page);
		}
		if (s)
			r->wanted = NULL;
		else
			__builtin_ia32_pause(); /* the reader may be on the other half of this core */
	}
	return NULL;
}

/* A batch: the reader comes when all of it has been written. */
static void batch(struct ring *r, struct shared *s)
{
	r->wanted = s;
	while (r->wanted)
		__builtin_ia32_pause();
}

/* From the first record to the last leaf dropped. */
static double drained(void *ctx)
{
	struct ring *r = ctx;
	struct umbra_translation t;
	uint64_t start, ns;

	if (!world_fill(&r->w, 0, PAGES, 1))
		return BENCH_FAILED;
	world_forget(&r->w);
	start = bench_ns();
	batch(r, &r->ours);
	umbra_module_drain(r->module);
	ns = bench_ns() - start;
	world_forget(&r->w);
	world_reclaim(&r->w);
	for (uint64_t page = 0; page < PAGES; page++)
		if (!umbra_lookup(r->w.root, (gpa_t){ page << UMBRA_PAGE_SHIFT }, &t))
			return BENCH_FAILED;
	return (double)ns / (double)EVENTS;
}

static double copied(void *ctx)
{
	struct ring *r = ctx;
	struct umbra_ntf_record rec;
	uint64_t start = bench_ns();

	batch(r, &r->bare);
	while (umbra_ring_pop(&r->bare.user, &rec))
		bench_clobber(&rec);
	return (double)(bench_ns() - start) / (double)EVENTS;
}

/* And for each start one entry is exchanged, in a table that is a plain array: less than that nobody can do. */
static double copied_and_exchanged(void *ctx)
{
	static uint64_t entries[PAGES];
	struct ring *r = ctx;
	struct umbra_ntf_record rec;
	uint64_t start, sum = 0;

	for (uint64_t i = 0; i < PAGES; i++)
		entries[i] = i;
	start = bench_ns();
	batch(r, &r->bare);
	while (umbra_ring_pop(&r->bare.user, &rec))
		if (rec.kind == UMBRA_NTF_START)
			sum += __atomic_exchange_n(
				&entries[(rec.start - WORLD_HVA) >> UMBRA_PAGE_SHIFT], 0,
				__ATOMIC_ACQ_REL);
	bench_clobber(&sum);
	return (double)(bench_ns() - start) / (double)EVENTS;
}

/* And for each start one leaf is dropped from our tables: no chain, no history, nothing open. */
static double copied_and_zapped(void *ctx)
{
	struct ring *r = ctx;
	struct umbra_ntf_record rec;
	uint64_t start, ns;

	if (!world_fill(&r->w, 0, PAGES, 1))
		return BENCH_FAILED;
	world_forget(&r->w);
	start = bench_ns();
	batch(r, &r->bare);
	while (umbra_ring_pop(&r->bare.user, &rec)) {
		const uint64_t page = (rec.start - WORLD_HVA) >> UMBRA_PAGE_SHIFT;

		if (rec.kind == UMBRA_NTF_START)
			umbra_zap(r->w.mmu, (struct gfn_range){ { page }, { page + 1 } });
	}
	ns = bench_ns() - start;
	world_forget(&r->w);
	world_reclaim(&r->w);
	return (double)ns / (double)EVENTS;
}

/* A consumer that drops what it is told of, and does nothing else: no history, no counts, no cause. */
struct zapper {
	struct umbra_notifier n; /* first: the chain gives it back */
	struct umbra_mmu *mmu;
};

static void zap_range(struct umbra_notifier *n, const struct umbra_range *r)
{
	const uint64_t first = (r->hull.start.v - WORLD_HVA) >> UMBRA_PAGE_SHIFT;

	umbra_zap(((struct zapper *)n)->mmu,
		  (struct gfn_range){
			  { first },
			  { first + ((r->hull.end.v - r->hull.start.v) >> UMBRA_PAGE_SHIFT) } });
}

/* And what each start takes away goes to the one consumer of a chain, which drops it from our tables. */
static double copied_and_told(void *ctx)
{
	static const struct umbra_notifier_ops ops = { .invalidate_range = zap_range };
	struct ring *r = ctx;
	struct zapper zapper = { .n = { .ops = &ops, .name = "zapper" }, .mmu = r->w.mmu };
	struct umbra_ntf_record rec;
	struct umbra_chain *chain;
	uint64_t start, ns;

	if (!world_fill(&r->w, 0, PAGES, 1) || umbra_chain_create(&chain, &umbra_os_posix))
		return BENCH_FAILED;
	umbra_chain_register(chain, &zapper.n);
	world_forget(&r->w);
	start = bench_ns();
	batch(r, &r->told);
	while (umbra_ring_pop(&r->told.user, &rec)) {
		const struct umbra_range range = {
			.hull = { { rec.start }, { rec.end } },
			.flags = UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_FORCED,
			.source = UMBRA_SOURCE_MODULE,
		};

		if (rec.kind == UMBRA_NTF_START)
			umbra_invalidate_range(chain, &range);
	}
	ns = bench_ns() - start;
	umbra_chain_unregister(chain, &zapper.n);
	umbra_chain_destroy(chain);
	world_forget(&r->w);
	world_reclaim(&r->w);
	return (double)ns / (double)EVENTS;
}

int main(void)
{
	const struct hva_range all = world_hva(0, PAGES);
	static struct ring r;

	bench_begin("inval_ring", 0);
	shared_init(&r.ours);
	shared_init(&r.bare);
	shared_init(&r.told);
	if (world_create(&r.w, PAGES, 64) ||
	    module_over(&r.module, r.w.chain, &r.ours.user, NULL, &all, 1, UMBRA_PAGE_SHIFT) ||
	    pthread_create(&r.producer, NULL, produce, &r)) {
		bench_fail("out of memory");
		return bench_end();
	}
	bench_pin(r.producer, 1);
	bench_row(&(struct bench_row){
		.name = "inval_ring",
		.unit = "ns",
		.what = "a record to what it drops,",
		.floor = "a record through the same kind of ring",
		.at_most = 3,
		.ours = drained,
		.against = copied,
		.ctx = &r,
	});
	bench_row(&(struct bench_row){
		.name = "inval_ring_floor",
		.unit = "ns",
		.what = "a record to what it drops,",
		.floor = "copied, and an entry exchanged for each start",
		.ours = drained,
		.against = copied_and_exchanged,
		.ctx = &r,
	});
	bench_row(&(struct bench_row){
		.name = "inval_ring_zap",
		.unit = "ns",
		.what = "a record to what it drops,",
		.floor = "copied, and umbra_zap() for each start",
		.ours = drained,
		.against = copied_and_zapped,
		.ctx = &r,
	});
	bench_row(&(struct bench_row){
		.name = "inval_ring_least",
		.unit = "ns",
		.what = "a record, told to a consumer that only drops,",
		.floor = "a record through the same kind of ring",
		.ours = copied_and_told,
		.against = copied,
		.ctx = &r,
	});
	bench_row(&(struct bench_row){
		.name = "inval_ring_event",
		.unit = "ns",
		.what = "a record to what it drops,",
		.floor = "60 ns",
		.limit = 60,
		.at_most = 1,
		.ours = drained,
		.ctx = &r,
	});
	r.stop = true;
	pthread_join(r.producer, NULL);
	umbra_module_close(r.module);
	world_destroy(&r.w);
	return bench_end();
}
