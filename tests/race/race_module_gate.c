/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The module's ring and gate under race: a producer that changes pages as the kernel does, drainers, fillers, and
 * readers that trust the gate. No lookup that starts after a callout returned may find what the callout took away.
 * Plain program for ThreadSanitizer: exit 0, 1.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "shadow/events/module.h"

#define PAGES   8U
#define RECORDS 16U
#define CHANGES 30000U
#define READERS 2

static struct umbra_ntf_record records[RECORDS];
static struct umbra_ntf_state state;
static struct umbra_ntf_consumer shared;
static struct umbra_ring_producer kernel = { records, RECORDS - 1, 0, 0, &state, &shared };
static struct umbra_module *module;

/* The host: what version each page has, and the newest that a returned callout left behind. */
static _Atomic uint64_t version[PAGES], returned[PAGES];
/* A consumer: entries that cache a version; 0 is none. */
static _Atomic uint64_t entry[PAGES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t open_count, passed, in_one;
static _Atomic bool over;
static _Atomic uint64_t hits, stale, fills;

static void relax_page(const struct hva_range r, unsigned int *lo, unsigned int *hi)
{
	*lo = (unsigned int)(r.start.v >> 12 < PAGES ? r.start.v >> 12 : PAGES);
	*hi = (unsigned int)(r.end.v >> 12 < PAGES ? r.end.v >> 12 : PAGES);
}

static int on_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	unsigned int lo, hi;

	(void)n;
	relax_page(r->hull, &lo, &hi);
	pthread_mutex_lock(&lock);
	open_count++;
	for (unsigned int i = lo; i < hi; i++)
		atomic_store(&entry[i], 0);
	pthread_mutex_unlock(&lock);
	return 0;
}

static void on_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n, (void)r;
	pthread_mutex_lock(&lock);
	open_count--;
	passed++;
	pthread_mutex_unlock(&lock);
}

/* Of what is over, both in one: only whoever compares what has passed is held off. */
static void on_range(struct umbra_notifier *n, const struct umbra_range *r)
{
	unsigned int lo, hi;

	(void)n;
	relax_page(r->hull, &lo, &hi);
	pthread_mutex_lock(&lock);
	passed++;
	in_one++;
	for (unsigned int i = lo; i < hi; i++)
		atomic_store(&entry[i], 0);
	pthread_mutex_unlock(&lock);
}

static const struct umbra_notifier_ops ops = { .invalidate_range_start = on_start,
					       .invalidate_range_end = on_end,
					       .invalidate_range = on_range };

/* As kmod/umbra.c publishes. */
static void callout(uint8_t kind, unsigned int page)
{
	struct umbra_ntf_record rec = { .start = (uint64_t)page << 12,
					.end = ((uint64_t)page + 1) << 12,
					.kind = kind };

	__atomic_store_n(&state.seq, state.seq + 1, __ATOMIC_SEQ_CST);
	if (kind == UMBRA_NTF_START)
		__atomic_store_n(&state.begun, state.begun + 1, __ATOMIC_SEQ_CST);
	else
		__atomic_store_n(&state.ended, state.ended + 1, __ATOMIC_SEQ_CST);
	rec.begun = state.begun;
	umbra_ring_push(&kernel, &rec);
	__atomic_store_n(&state.seq, state.seq + 1, __ATOMIC_SEQ_CST);
}

static void *produce(void *arg)
{
	unsigned int seed = 1;

	(void)arg;
	for (unsigned int i = 0; i < CHANGES; i++) {
		const unsigned int page = (unsigned int)rand_r(&seed) % PAGES;

		callout(UMBRA_NTF_START, page);
		atomic_fetch_add(&version[page], 1);
		atomic_store(&returned[page], atomic_load(&version[page]));
		callout(UMBRA_NTF_END, page);
		if (i % 64 == 0)
			sched_yield();
	}
	over = true;
	return NULL;
}

/* A lookup; a miss fills, by the protocol of snapshot and retry. */
static void look(unsigned int page)
{
	const uint64_t oldest = atomic_load(&returned[page]);
	uint64_t found, snapshot, v;

	if (!umbra_gate_current(umbra_module_gate(module))) {
		umbra_module_drain(module);
		return;
	}
	found = atomic_load(&entry[page]);
	if (found) {
		atomic_fetch_add(&hits, 1);
		if (found < oldest)
			atomic_fetch_add(&stale, 1);
		return;
	}
	pthread_mutex_lock(&lock);
	snapshot = passed;
	pthread_mutex_unlock(&lock);
	v = atomic_load(&version[page]);
	umbra_module_drain(module);
	pthread_mutex_lock(&lock);
	if (!open_count && passed == snapshot) {
		atomic_store(&entry[page], v);
		atomic_fetch_add(&fills, 1);
	}
	pthread_mutex_unlock(&lock);
}

static void *read_pages(void *arg)
{
	unsigned int seed = (unsigned int)(uintptr_t)arg;

	while (!over)
		look((unsigned int)rand_r(&seed) % PAGES);
	return NULL;
}

int main(void)
{
	const struct umbra_ring_consumer ring = { records, RECORDS - 1, 0, &state, &shared, 0 };
	const struct hva_range all = { { 0 }, { PAGES << 12 } };
	struct umbra_notifier consumer = { .ops = &ops, .name = "cache" };
	struct umbra_chain_counts counts;
	struct umbra_module_stats stats;
	struct umbra_chain *chain;
	pthread_t threads[READERS + 1];

	for (unsigned int i = 0; i < PAGES; i++)
		version[i] = returned[i] = 1;
	if (umbra_chain_create(&chain, &umbra_os_posix) || umbra_chain_register(chain, &consumer) ||
	    module_over(&module, chain, &ring, NULL, &all, 1, 12))
		return 1;
	pthread_create(&threads[0], NULL, produce, NULL);
	for (uintptr_t i = 1; i <= READERS; i++)
		pthread_create(&threads[i], NULL, read_pages, (void *)i);
	for (unsigned int i = 0; i <= READERS; i++)
		pthread_join(threads[i], NULL);
	umbra_module_drain(module);
	umbra_module_stats(module, &stats);
	for (unsigned int i = 0; i < PAGES; i++)
		if (entry[i] && entry[i] != version[i])
			stale++;
	umbra_module_close(module);
	counts = umbra_chain_counts(chain, UMBRA_SOURCE_MODULE);
	umbra_chain_unregister(chain, &consumer);
	umbra_chain_destroy(chain);
	printf("%u changes, %lu hits, %lu fills, %lu records lost, %lu recoveries, %lu stale\n",
	       CHANGES, (unsigned long)hits, (unsigned long)fills, (unsigned long)stats.lost,
	       (unsigned long)stats.recoveries, (unsigned long)stale);
	if (stale || counts.begun != counts.ended || open_count)
		return 1;
	if (!hits || !fills || !stats.recoveries || !in_one || in_one == counts.begun) {
		printf("nothing was tried\n");
		return 1;
	}
	return 0;
}
