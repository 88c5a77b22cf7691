/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is direct under race: threads that announce own calls and the kernel's callouts of them, a reader of userfaultfd
 * that announces, too, and two that drain and ask. What is said stays within what happened.
 * Plain program for ThreadSanitizer: exit 0, 1.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "shadow/events/module.h"

#define PAGES   64U
#define RECORDS 256U
#define CALLS   4000U
#define CALLERS 2

static struct umbra_ntf_record records[RECORDS];
static struct umbra_ntf_state state;
static struct umbra_ntf_consumer shared;
static struct umbra_ring_producer kernel = { records, RECORDS - 1, 0, 0, &state, &shared };
static pthread_mutex_t in_kernel = PTHREAD_MUTEX_INITIALIZER;
static struct umbra_module *module;
static struct umbra_chain *chain;
static _Atomic bool over;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static struct hva_range page_range(uint64_t page)
{
	return (struct hva_range){ { page << 12 }, { (page + 1) << 12 } };
}

/* As kmod does: counters first, then the record. */
static void callout(uint64_t page, int32_t who, uint16_t flags)
{
	struct umbra_ntf_record rec = {
		.start = page << 12,
		.end = (page + 1) << 12,
		.event = UMBRA_NTF_CLEAR,
		.flags = flags,
		.who = who,
	};

	pthread_mutex_lock(&in_kernel);
	for (uint8_t kind = UMBRA_NTF_START; kind <= UMBRA_NTF_END; kind++) {
		rec.kind = kind;
		rec.time_ns = now_ns();
		__atomic_store_n(kind == UMBRA_NTF_START ? &state.begun : &state.ended,
				 (kind == UMBRA_NTF_START ? state.begun : state.ended) + 1,
				 __ATOMIC_RELEASE);
		rec.begun = state.begun;
		umbra_ring_push(&kernel, &rec);
	}
	pthread_mutex_unlock(&in_kernel);
}

static void *call(void *arg)
{
	const int32_t me = (int32_t)(uintptr_t)arg;

	for (uint64_t i = 0; i < CALLS; i++) {
		const uint64_t page = (i * 7 + (uint64_t)me) % PAGES;
		const struct umbra_range r = {
			.hull = page_range(page),
			.flags = UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_FORCED,
			.cause = UMBRA_CAUSE_DISCARD,
			.source = UMBRA_SOURCE_OWN,
			.who = me,
		};

		umbra_invalidate_start(chain, &r);
		callout(page, me, UMBRA_NTF_BLOCKABLE | UMBRA_NTF_OWNER);
		if (i % 4 == 0)
			callout(page, 0, UMBRA_NTF_BLOCKABLE | UMBRA_NTF_KTHREAD);
		if (i % 8 == 0)
			umbra_module_drain(module);
		umbra_invalidate_end(chain, &r);
	}
	return NULL;
}

static void *read_uffd(void *arg)
{
	const struct timespec pause = { 0, 100 * 1000 };

	(void)arg;
	for (uint64_t i = 0; !over; i++) {
		const struct umbra_range r = {
			.hull = page_range(i % PAGES),
			.flags = UMBRA_RANGE_FORCED,
			.cause = UMBRA_CAUSE_UNMAP,
			.source = UMBRA_SOURCE_UFFD,
		};

		umbra_invalidate_start(chain, &r);
		umbra_invalidate_end(chain, &r);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

static void *drain(void *arg)
{
	struct umbra_module_stats stats;
	const char *bad = NULL;

	(void)arg;
	while (!over && !bad) {
		umbra_module_drain(module);
		umbra_module_stats(module, &stats);
		if (stats.direct > stats.by_owner)
			bad = "more is direct than this process did";
	}
	return (void *)(uintptr_t)bad;
}

int main(void)
{
	const struct umbra_ring_consumer ring = { records, RECORDS - 1, 0, &state, &shared, 0 };
	const struct hva_range all = { { 0 }, { PAGES << 12 } };
	pthread_t callers[CALLERS], reader, drainers[2];
	struct umbra_chain_counts counts;
	struct umbra_module_stats stats;
	void *bad = NULL, *said;

	if (umbra_chain_create(&chain, &umbra_os_posix) ||
	    module_over(&module, chain, &ring, NULL, &all, 1, 12))
		return 1;
	pthread_create(&reader, NULL, read_uffd, NULL);
	for (unsigned int i = 0; i < 2; i++)
		pthread_create(&drainers[i], NULL, drain, NULL);
	for (uintptr_t i = 0; i < CALLERS; i++)
		pthread_create(&callers[i], NULL, call, (void *)(i + 1));
	for (unsigned int i = 0; i < CALLERS; i++)
		pthread_join(callers[i], NULL);
	over = true;
	pthread_join(reader, NULL);
	for (unsigned int i = 0; i < 2; i++) {
		pthread_join(drainers[i], &said);
		bad = said ? said : bad;
	}
	umbra_module_drain(module);
	umbra_module_stats(module, &stats);
	umbra_module_close(module);
	counts = umbra_chain_counts(chain, UMBRA_SOURCE_MODULE);
	umbra_chain_destroy(chain);
	printf("%lu starts, %lu by this process, %lu direct, %lu records lost%s%s\n",
	       (unsigned long)stats.starts, (unsigned long)stats.by_owner,
	       (unsigned long)stats.direct, (unsigned long)stats.lost, bad ? ": " : "",
	       bad ? (const char *)bad : "");
	return bad || !stats.direct || stats.direct > stats.by_owner ||
	       counts.begun != counts.ended;
}
