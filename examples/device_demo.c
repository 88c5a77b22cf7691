/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The device TLB at work: a device reads and writes guest memory while the host takes pages away. Run as root (frames are hidden
 * from others): device_demo [--hugetlb]. Exit: 0; 1 the TLB was wrong; 77 this host lacks something.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "device_tlb.h"

#define BLOCKS 4U
#define BYTES  (BLOCKS * UMBRA_HUGE_SIZE)
#define ROUNDS 200U

static struct device_tlb *tlb;
static char *memory;
static _Atomic bool stop;
static _Atomic uint64_t hits[2]; /* through 4K and 2M entries */

/* One word in each page, by translation only; a miss is filled, a refusal asked again. */
static void *run_device(void *arg)
{
	struct device_port *port = device_tlb_port_open(tlb);
	uint64_t page = (uintptr_t)arg;

	while (port && !stop) {
		const hva_t hva = { (uintptr_t)memory +
				    (page % (BYTES / UMBRA_PAGE_SIZE)) * UMBRA_PAGE_SIZE };
		struct device_translation t;

		if (device_tlb_enter(port, hva, UMBRA_ACCESS_WRITE, &t)) {
			/* A device would go to frame t.pfn; we have only the address to go by. */
			((_Atomic uint64_t *)(uintptr_t)hva.v)[0]++;
			device_tlb_leave(port);
			hits[t.level == UMBRA_LEVEL_2M]++;
			page++;
		} else {
			device_tlb_fill(port, hva, UMBRA_ACCESS_WRITE);
		}
	}
	if (port)
		device_tlb_port_close(port);
	return NULL;
}

/* Guest memory, 2M aligned, by the largest pages there are. */
static bool get_memory(bool hugetlb)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (hugetlb ? MAP_HUGETLB : 0);
	char *p = mmap(NULL, BYTES + UMBRA_HUGE_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);

	if (p == MAP_FAILED)
		return false;
	memory = (char *)(((uintptr_t)p + UMBRA_HUGE_SIZE - 1) & ~(UMBRA_HUGE_SIZE - 1));
	if (!hugetlb)
		madvise(memory, BYTES, MADV_HUGEPAGE);
	memset(memory, 1, BYTES);
	return true;
}

int main(int argc, char **argv)
{
	const bool hugetlb = argc > 1 && !strcmp(argv[1], "--hugetlb");
	const uint64_t step = hugetlb ? UMBRA_HUGE_SIZE : UMBRA_PAGE_SIZE;
	struct umbra_hostmap *map;
	struct device_tlb_stats s;
	struct umbra_chain *chain;
	struct umbra_own *own;
	pthread_t threads[2];
	int wrong = 0, rc;

	if (!get_memory(hugetlb)) {
		perror("memory");
		return 77;
	}
	if (umbra_chain_create(&chain, &umbra_os_posix) || umbra_hostmap_open(&map, 0) ||
	    umbra_own_create(&own, chain, map)) {
		fprintf(stderr, "cannot begin\n");
		return 77;
	}
	rc = device_tlb_create(&tlb, chain, map);
	if (rc) {
		fprintf(stderr, "device TLB: %s\n",
			rc == -EPERM ? "frames are hidden here; run as root" : strerror(-rc));
		return 77;
	}
	for (uintptr_t i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, run_device, (void *)(i * 777)))
			return 77;
	for (unsigned int i = 0; i < ROUNDS; i++) {
		const uint64_t at = i * 7919ULL * UMBRA_PAGE_SIZE % BYTES & ~(step - 1);
		const struct hva_range r = hva_range_of(memory + at, step);

		while (hits[0] + hits[1] < 64 * i) /* the device goes on in between */
			sched_yield();
		rc = umbra_madvise(own, r, MADV_DONTNEED);
		if (rc) {
			fprintf(stderr, "discard: %s\n", strerror(-rc));
			wrong++;
		}
		rc = device_tlb_audit(tlb, stderr);
		wrong += rc != 0;
	}
	stop = true;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	device_tlb_stats(tlb, &s);
	printf("%llu accesses through 4K entries, %llu through 2M entries\n"
	       "%llu+%llu filled, %llu+%llu flushed (4K+2M), %llu fills refused, %llu starts waited for an access\n"
	       "%u discards, each followed by an audit: %d wrong\n",
	       (unsigned long long)hits[0], (unsigned long long)hits[1],
	       (unsigned long long)s.filled_4k, (unsigned long long)s.filled_2m,
	       (unsigned long long)s.flushed_4k, (unsigned long long)s.flushed_2m,
	       (unsigned long long)(s.retried_open + s.retried_seq), (unsigned long long)s.waited,
	       ROUNDS, wrong);
	device_tlb_destroy(tlb);
	umbra_own_destroy(own);
	umbra_hostmap_close(map);
	umbra_chain_destroy(chain);
	return wrong || !s.starts ? 1 : 0;
}
