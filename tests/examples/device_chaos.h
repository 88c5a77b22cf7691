/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Chaos for the device TLB, with a physical memory that the test can see: the pages of one file, all mapped at @bus. Guest blocks
 * (one page of the host each, 4K or hugetlb 2M) are mapped over pages of it and moved about. The device reaches memory by frame,
 * through @bus, so that a stale entry is an access to a page that is another block's now, or nobody's.
 *
 * Each 4K holds a stamp: whose it is, of which generation, and what the device added. A page that was taken away is poisoned.
 */
#ifndef TESTS_EXAMPLES_DEVICE_CHAOS_H
#define TESTS_EXAMPLES_DEVICE_CHAOS_H

#include "examples/device_tlb.h"
#include "tests/integration/events_host.h"

#define CHAOS_BLOCKS   8U
#define CHAOS_PAGES    16U
#define CHAOS_MUTATORS 2U
#define CHAOS_DEVICES  3U
#define CHAOS_NOBODY   0xdeadU
/*
 * Far below where mmap looks for room: a hole is never filled by an allocation of another thread. Each sanitizer leaves other
 * addresses to the program.
 */
#ifdef __SANITIZE_ADDRESS__
#define CHAOS_ARENA 0x200000000000ULL
#else
#define CHAOS_ARENA 0x4000000000ULL
#endif
#define CHAOS_SPARE (CHAOS_ARENA + 0x1000000000ULL)

struct stamp {
	_Atomic uint32_t owner, gen;
	_Atomic uint64_t adds;
};

struct chaos {
	struct host h;
	struct device_tlb *tlb;
	uint64_t size; /* of a page of the host, and of a block */
	int fd, map_flags, steps;
	bool moves; /* the file's mappings can be moved (mremap) */
	unsigned int seed;
	char *bus;
	uint64_t frames[CHAOS_PAGES];
	_Atomic uint32_t gen[CHAOS_BLOCKS];  /* published after the move to it has returned */
	uint32_t page_of[CHAOS_BLOCKS];      /* the mutator of the block */
	uint64_t added[CHAOS_BLOCKS];        /* the mutator: taken from pages that it retired */
	_Atomic uint64_t sent[CHAOS_BLOCKS]; /* the devices: additions made */
	_Atomic uint32_t mutating;
	_Atomic uint64_t accesses, stale, late, unknown;
};

static inline struct stamp *stamp_at(struct chaos *c, uint32_t page, uint64_t offset)
{
	return (struct stamp *)(void *)(c->bus + page * c->size + offset);
}

static inline struct hva_range block_hva(const struct chaos *c, uint32_t block)
{
	const uint64_t start = CHAOS_ARENA + block * c->size;

	return (struct hva_range){ { start }, { start + c->size } };
}

static inline uint64_t adds_of(struct chaos *c, uint32_t page)
{
	uint64_t sum = 0;

	for (uint64_t at = 0; at < c->size; at += UMBRA_PAGE_SIZE)
		sum += stamp_at(c, page, at)->adds;
	return sum;
}

static inline void stamp_page(struct chaos *c, uint32_t page, uint32_t owner, uint32_t gen)
{
	for (uint64_t at = 0; at < c->size; at += UMBRA_PAGE_SIZE) {
		struct stamp *s = stamp_at(c, page, at);

		s->owner = owner;
		s->gen = gen;
		s->adds = 0;
	}
}

static inline void map_block(struct chaos *c, uint32_t block)
{
	HOST_NEED(!umbra_mmap_over(c->h.own, block_hva(c, block), PROT_READ | PROT_WRITE,
				   MAP_SHARED | c->map_flags, c->fd, c->page_of[block] * c->size));
}

/* Takes what was added to @page, which nobody can reach any more. */
static inline void retire(struct chaos *c, uint32_t block, uint32_t page)
{
	c->added[block] += adds_of(c, page);
	stamp_page(c, page, CHAOS_NOBODY, 0);
}

/* The block moves to @page. What was its page is poisoned as soon as the call is back. */
static inline void move_block(struct chaos *c, uint32_t block, uint32_t page)
{
	const uint32_t old = c->page_of[block];

	if (adds_of(c, page)) /* it was poisoned: a device that still had it has written */
		c->late++;
	stamp_page(c, page, block, c->gen[block] + 1);
	c->page_of[block] = page;
	map_block(c, block);
	c->gen[block]++;
	retire(c, block, old);
}

/* While the block cannot be written, nothing is added to it. */
static inline void must_rest(struct chaos *c, uint32_t block)
{
	const uint64_t before = adds_of(c, c->page_of[block]);

	for (int i = 0; i < 3; i++)
		sched_yield();
	if (adds_of(c, c->page_of[block]) != before)
		c->late++;
}

static inline void there_and_back(struct chaos *c, uint32_t block)
{
	const struct hva_range r = block_hva(c, block);
	const struct hva_range far = { { r.start.v - CHAOS_ARENA + CHAOS_SPARE },
				       { r.end.v - CHAOS_ARENA + CHAOS_SPARE } };
	hva_t now;

	HOST_NEED(!umbra_mremap(c->h.own, r, c->size, MREMAP_MAYMOVE | MREMAP_FIXED, far.start,
				&now));
	must_rest(c, block);
	HOST_NEED(!umbra_mremap(c->h.own, far, c->size, MREMAP_MAYMOVE | MREMAP_FIXED, r.start,
				&now));
}

struct chaos_thread {
	struct chaos *c;
	uint32_t nr;
	pthread_t thread;
};

/* Blocks and pages with this number modulo CHAOS_MUTATORS are this mutator's. */
static void *chaos_mutate(void *arg)
{
	const struct chaos_thread *t = arg;
	struct chaos *c = t->c;
	unsigned int state = c->seed * 7919 + t->nr;

	for (int i = 0; i < c->steps; i++) {
		const uint32_t block =
			((uint32_t)rand_r(&state) % (CHAOS_BLOCKS / CHAOS_MUTATORS)) *
				CHAOS_MUTATORS +
			t->nr;
		const struct hva_range r = block_hva(c, block);
		uint32_t page = ((uint32_t)rand_r(&state) % (CHAOS_PAGES / CHAOS_MUTATORS)) *
					CHAOS_MUTATORS +
				t->nr;

		switch (rand_r(&state) % 8) {
		case 0:
			HOST_NEED(!umbra_mprotect(c->h.own, r, PROT_READ));
			must_rest(c, block);
			HOST_NEED(!umbra_mprotect(c->h.own, r, PROT_READ | PROT_WRITE));
			break;
		case 1:
			HOST_NEED(!umbra_munmap(c->h.own, r));
			must_rest(c, block);
			map_block(c, block);
			break;
		case 2: HOST_NEED(!umbra_madvise(c->h.own, r, MADV_DONTNEED)); break;
		case 3:
			if (c->moves)
				there_and_back(c, block);
			break;
		default:
			/* to a page of ours that no block has */
			for (uint32_t b = t->nr; b < CHAOS_BLOCKS; b += CHAOS_MUTATORS)
				if (c->page_of[b] == page) {
					page = (page + CHAOS_MUTATORS) % CHAOS_PAGES;
					b = t->nr - CHAOS_MUTATORS;
				}
			move_block(c, block, page);
		}
		if (i % 16 == 0)
			usleep(200); /* fills must come through, too: they are never looped on */
	}
	c->mutating--;
	return NULL;
}

/* The access itself, through the frame. */
static inline void device_touch(struct chaos *c, const struct device_translation *t, uint32_t block,
				uint64_t offset, uint32_t gen, bool write)
{
	const uint64_t first = t->pfn - (offset >> UMBRA_PAGE_SHIFT);
	struct stamp *s = NULL;

	for (uint32_t page = 0; page < CHAOS_PAGES && !s; page++)
		if (c->frames[page] == first)
			s = stamp_at(c, page, offset);
	if (!s) {
		c->unknown++;
		return;
	}
	if (s->owner != block || s->gen < gen)
		c->stale++;
	if (write) {
		s->adds++;
		c->sent[block]++;
	}
	c->accesses++;
}

static void *chaos_device(void *arg)
{
	const struct chaos_thread *t = arg;
	struct chaos *c = t->c;
	struct device_port *port = device_tlb_port_open(c->tlb);
	unsigned int state = c->seed * 104729 + t->nr;

	HOST_NEED(port);
	while (c->mutating) {
		const uint32_t block = (uint32_t)rand_r(&state) % CHAOS_BLOCKS;
		const uint64_t offset = (unsigned int)rand_r(&state) % (c->size / UMBRA_PAGE_SIZE) *
					UMBRA_PAGE_SIZE;
		const hva_t hva = { block_hva(c, block).start.v + offset };
		const bool write = rand_r(&state) % 2;
		const uint32_t access = write ? UMBRA_ACCESS_WRITE : UMBRA_ACCESS_READ;
		const uint32_t gen = c->gen[block];
		struct device_translation tr;

		if (device_tlb_enter(port, hva, access, &tr)) {
			device_touch(c, &tr, block, offset, gen, write);
			device_tlb_leave(port);
			if ((tr.level == UMBRA_LEVEL_2M) != (c->size == UMBRA_HUGE_SIZE))
				c->unknown++;
		} else {
			const int rc = device_tlb_fill(port, hva, access);

			/* protected, unmapped or under way just now: all are answers; others are not */
			HOST_NEED(!rc || rc == -EAGAIN || rc == -EACCES || rc == -EFAULT);
		}
		if (rand_r(&state) % 64 == 0)
			sched_yield();
	}
	device_tlb_port_close(port);
	return NULL;
}

/* Memory and blocks. False: the host has no such pages, or hides frames. */
static inline bool chaos_create(struct chaos *c, uint64_t size, int steps, unsigned int seed)
{
	const bool huge = size == UMBRA_HUGE_SIZE;
	const uint64_t bytes = CHAOS_PAGES * size;

	memset(c, 0, sizeof(*c));
	c->size = size;
	c->steps = steps;
	c->seed = seed;
	c->map_flags = huge ? MAP_HUGETLB : 0;
	c->fd = memfd_create("physical", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0U));
	if (c->fd < 0 || ftruncate(c->fd, (off_t)bytes))
		return false;
	c->bus = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | c->map_flags | MAP_POPULATE,
		      c->fd, 0);
	if (c->bus == MAP_FAILED)
		return false;
	host_create(&c->h);
	if (device_tlb_create(&c->tlb, c->h.chain, c->h.map))
		return false;
	for (uint32_t page = 0; page < CHAOS_PAGES; page++) {
		stamp_page(c, page, CHAOS_NOBODY, 0);
		c->frames[page] = host_pfn(&c->h, c->bus + page * size);
		if (huge && !(host_flags(&c->h, c->bus + page * size) & UMBRA_PAGE_HUGE))
			return false;
	}
	for (uint32_t block = 0; block < CHAOS_BLOCKS; block++) {
		void *p = (void *)(uintptr_t)block_hva(c, block).start.v;

		c->page_of[block] = block;
		stamp_page(c, block, block, 0);
		HOST_NEED(mmap(p, size, PROT_READ | PROT_WRITE,
			       MAP_SHARED | c->map_flags | MAP_FIXED_NOREPLACE, c->fd,
			       (off_t)(block * size)) == p);
	}
	return true;
}

static inline void chaos_destroy(struct chaos *c)
{
	device_tlb_destroy(c->tlb);
	host_destroy(&c->h);
	munmap(c->bus, CHAOS_PAGES * c->size);
	munmap((void *)(uintptr_t)CHAOS_ARENA, CHAOS_BLOCKS * c->size);
	close(c->fd);
}

/* Runs @background, if any, on top. Returns: how many things were wrong. */
static inline uint64_t chaos_run(struct chaos *c, void *(*background)(void *))
{
	struct chaos_thread threads[CHAOS_MUTATORS + CHAOS_DEVICES + 1];
	struct device_tlb_stats s;
	unsigned int n = 0;
	uint64_t lost = 0;

	c->mutating = CHAOS_MUTATORS;
	for (uint32_t i = 0; i < CHAOS_MUTATORS + CHAOS_DEVICES + !!background; i++) {
		void *(*body)(void *) = i < CHAOS_MUTATORS                   ? chaos_mutate
					: i < CHAOS_MUTATORS + CHAOS_DEVICES ? chaos_device
									     : background;

		threads[n] = (struct chaos_thread){ .c = c, .nr = i };
		HOST_NEED(!pthread_create(&threads[n].thread, NULL, body, &threads[n]));
		n++;
	}
	while (n)
		pthread_join(threads[--n].thread, NULL);
	device_tlb_stats(c->tlb, &s);
	for (uint32_t block = 0; block < CHAOS_BLOCKS; block++)
		lost += c->added[block] + adds_of(c, c->page_of[block]) != c->sent[block];
	printf("seed %u: %llu accesses, %llu+%llu fills 4K and 2M, %llu+%llu refused, %llu starts, %llu of them "
	       "waited\n",
	       c->seed, (unsigned long long)c->accesses, (unsigned long long)s.filled_4k,
	       (unsigned long long)s.filled_2m, (unsigned long long)s.retried_open,
	       (unsigned long long)s.retried_seq, (unsigned long long)s.starts,
	       (unsigned long long)s.waited);
	printf("%llu stale, %llu late, %llu to an unknown page, %llu blocks with lost additions\n",
	       (unsigned long long)c->stale, (unsigned long long)c->late,
	       (unsigned long long)c->unknown, (unsigned long long)lost);
	return c->stale + c->late + c->unknown + lost + !c->accesses;
}

#endif
