/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Mutators by own calls (munmap and mmap over, mremap, discard, collapse, mprotect, advice that cuts) against faulting mappers
 * and an auditor, on real memory. Usage: race_own_calls [SEED [STEPS]]. Exit 0: no stale or wrong leaf at any moment.
 */
#include "tests/integration/events_host.h"

#define BLOCKS   4U
#define BYTES    (BLOCKS * UMBRA_HUGE_SIZE)
#define MUTATORS 3
#define MAPPERS  2
/* Far below where mmap looks for room: a hole that a mutator makes is never filled by an allocation of another thread. */
#define ARENA 0x4000000000ULL

static struct host h;
static char *arena;
static unsigned int seed = 1;
static int steps = 1500;
static _Atomic int mutating, failures;
static _Atomic uint64_t installed, retried, audits;

static struct hva_range pick_in(unsigned int *state, uint64_t first, uint64_t pages)
{
	const uint64_t page = (unsigned int)rand_r(state) % pages;
	const uint64_t most = pages - page;
	uint64_t n = 1 + (unsigned int)rand_r(state) % (rand_r(state) % 4 ? 4U : 600U);

	n = n < most ? n : most;
	return hva_range_of(arena + (first + page) * UMBRA_PAGE_SIZE, n * UMBRA_PAGE_SIZE);
}

static struct hva_range pick(unsigned int *state)
{
	return pick_in(state, 0, BYTES / UMBRA_PAGE_SIZE);
}

/*
 * A part of the arena for each mutator, where it maps and unmaps: ThreadSanitizer keeps its own records of mappings and does not
 * bear two threads that change the same one. All other calls go anywhere.
 */
static struct hva_range pick_own(unsigned int *state, uintptr_t who)
{
	const uint64_t pages = BYTES / UMBRA_PAGE_SIZE / MUTATORS;

	return pick_in(state, who * pages, pages);
}

static int map_over(struct hva_range r)
{
	return umbra_mmap_over(h.own, r, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			       0);
}

/* As much of @from as fits to @to; memory again where it was. */
static void remap(struct hva_range to, struct hva_range from)
{
	const uint64_t len = to.end.v - to.start.v;
	hva_t now;

	if (from.end.v - from.start.v > len)
		from.end.v = from.start.v + len;
	to.end.v = to.start.v + (from.end.v - from.start.v);
	if (hva_ranges_meet(from, to))
		return;
	umbra_mremap(h.own, from, from.end.v - from.start.v, MREMAP_MAYMOVE | MREMAP_FIXED,
		     to.start, &now);
	map_over(from);
}

static void *mutate(void *arg)
{
	static const int cuts[] = { MADV_DONTDUMP, MADV_DODUMP, MADV_COLD, MADV_FREE };
	const uintptr_t who = (uintptr_t)arg;
	unsigned int state = seed * 7919 + (unsigned int)who;

	for (int i = 0; i < steps; i++) {
		const struct hva_range r = pick(&state);
		const struct hva_range mine = pick_own(&state, who);
		struct hva_range block = r;

		block.start.v &= ~(UMBRA_HUGE_SIZE - 1);
		block.end.v = block.start.v + UMBRA_HUGE_SIZE;
		/* Errors are allowed: another mutator may have unmapped it. Being announced is what counts. */
		switch (rand_r(&state) % 8) {
		case 0:
			umbra_munmap(h.own, mine);
			map_over(mine);
			break;
		case 1: remap(mine, pick_own(&state, who)); break;
		case 2: umbra_mprotect(h.own, r, PROT_READ); break;
		case 3:
			umbra_mprotect(h.own, block, PROT_READ | PROT_WRITE);
			umbra_madvise(h.own, block, MADV_COLLAPSE);
			break;
		case 4: umbra_madvise(h.own, r, cuts[rand_r(&state) % 4]); break;
		case 5: umbra_madvise(h.own, r, MADV_POPULATE_WRITE); break;
		default: umbra_madvise(h.own, r, MADV_DONTNEED); break;
		}
	}
	mutating--;
	return NULL;
}

static void *map_pages(void *arg)
{
	unsigned int state = seed * 104729 + (unsigned int)(uintptr_t)arg;

	while (mutating) {
		const struct hva_range r = pick(&state);
		const uint32_t access = rand_r(&state) % 2 ? UMBRA_ACCESS_WRITE : UMBRA_ACCESS_READ;
		struct umbra_fault f = { .gpa = { r.start.v }, .access = access };

		switch (umbra_fault(h.root, &f)) {
		case UMBRA_FAULT_INSTALLED:
		case UMBRA_FAULT_SPURIOUS: installed++; break;
		case UMBRA_FAULT_RETRY: retried++; break;
		case UMBRA_FAULT_DENIED:
		case UMBRA_FAULT_BAD_HOST: break;
		default: fprintf(stderr, "fault: error %d\n", f.error); failures++;
		}
	}
	return NULL;
}

static void *audit(void *arg)
{
	(void)arg;
	while (mutating) {
		struct umbra_audit_report report;

		if (umbra_check(h.mmu, host_report, NULL) ||
		    umbra_audit(h.root, h.map, &report, stderr))
			failures++;
		audits++;
		usleep(500);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const struct umbra_region region = {
		.hva = { { ARENA }, { ARENA + BYTES } },
		.fd = -1,
		.is_private = true,
	};
	pthread_t threads[MUTATORS + MAPPERS + 1];
	unsigned int n = 0;

	if (argc > 1)
		seed = (unsigned int)strtoul(argv[1], NULL, 0);
	if (argc > 2)
		steps = atoi(argv[2]);
	printf("seed %u, %d steps for each of %d mutators\n", seed, steps, MUTATORS);
	host_create(&h);
	arena = mmap((void *)(uintptr_t)ARENA, BYTES, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	HOST_NEED(arena != MAP_FAILED);
	host_slot(&h, arena, BYTES);
	HOST_NEED(!umbra_region_add(h.own, &region));
	mutating = MUTATORS;
	for (uintptr_t i = 0; i < MUTATORS; i++)
		HOST_NEED(!pthread_create(&threads[n++], NULL, mutate, (void *)i));
	for (uintptr_t i = 0; i < MAPPERS; i++)
		HOST_NEED(!pthread_create(&threads[n++], NULL, map_pages, (void *)i));
	HOST_NEED(!pthread_create(&threads[n++], NULL, audit, NULL));
	while (n)
		pthread_join(threads[--n], NULL);
	if (!host_sound(&h))
		failures++;
	printf("%llu installed, %llu retried, %llu audits, %d failures\n",
	       (unsigned long long)installed, (unsigned long long)retried,
	       (unsigned long long)audits, (int)failures);
	if (!installed)
		failures++;
	host_destroy(&h);
	return failures ? 1 : 0;
}
