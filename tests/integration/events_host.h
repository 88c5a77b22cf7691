/* SPDX-License-Identifier: BSD-2-Clause */
/* A mirror root over real memory of the test, with gpa equal to hva: what tests of shadow/events stand on. */
#ifndef TESTS_INTEGRATION_EVENTS_HOST_H
#define TESTS_INTEGRATION_EVENTS_HOST_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <unistd.h>
#include <umbra/events.h>
#include "shadow/events/uapi.h"

#define HOST_WINDOW_PAGES 2048

struct host {
	struct umbra_chain *chain;
	struct umbra_mmu *mmu;
	struct umbra_root *root;
	struct umbra_hostmap *map;
	struct umbra_own *own;
	uint32_t next_slot, slot_flags; /* enum umbra_slot_flags of the slots to come */
	/* in place of umbra_hostmap_resolve(), or NULL */
	int (*resolve)(void *host, const struct umbra_resolve_req *req, struct umbra_resolved *res);
	char *window;
	uint64_t free_pages[HOST_WINDOW_PAGES];
	uint64_t nfree;
};

#define HOST_FAIL(...)                                          \
	do {                                                    \
		fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
		fprintf(stderr, __VA_ARGS__);                   \
		fputc('\n', stderr);                            \
		abort();                                        \
	} while (0)
#define HOST_NEED(what)                                           \
	do {                                                      \
		if (!(what))                                      \
			HOST_FAIL("%s (errno %d)", #what, errno); \
	} while (0)

static int host_table_alloc(void *ctx, uint64_t *index)
{
	struct host *h = ctx;

	if (!h->nfree)
		return -ENOSPC;
	*index = h->free_pages[--h->nfree];
	return 0;
}

static void host_table_free(void *ctx, uint64_t index)
{
	struct host *h = ctx;

	h->free_pages[h->nfree++] = index;
}

static int host_resolve(void *ctx, const struct umbra_resolve_req *req, struct umbra_resolved *res)
{
	struct host *h = ctx;

	if (h->resolve)
		return h->resolve(h, req, res);
	return umbra_hostmap_resolve(h->map, h->chain, req, res);
}

static void host_flush_queue(void *ctx, const struct umbra_flush_entry *e)
{
	(void)ctx;
	(void)e;
}

static uint64_t host_flush_post(void *ctx)
{
	(void)ctx;
	return 0;
}

static int host_flush_wait(void *ctx, uint64_t ticket, bool may_wait)
{
	(void)ctx;
	(void)ticket;
	(void)may_wait;
	return 0;
}

static bool host_flush_done(void *ctx, uint64_t ticket)
{
	(void)ctx;
	(void)ticket;
	return true;
}

static inline void host_create(struct host *h)
{
	static const struct umbra_mmu_ops ops = {
		.table_alloc = host_table_alloc,
		.table_free = host_table_free,
		.resolve = host_resolve,
		.flush_queue = host_flush_queue,
		.flush_post = host_flush_post,
		.flush_wait = host_flush_wait,
		.flush_done = host_flush_done,
	};
	struct umbra_mmu_config config = {
		.os = &umbra_os_posix,
		.ops = &ops,
		.ctx = h,
		.window_pages = HOST_WINDOW_PAGES,
		.first_seq = { ~0ULL - 2 }, /* wraps in every test */
		.flags = UMBRA_MMU_RECORD_PFN,
	};

	memset(h, 0, sizeof(*h));
	h->window = mmap(NULL, HOST_WINDOW_PAGES * UMBRA_PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	HOST_NEED(h->window != MAP_FAILED);
	for (uint64_t i = 0; i < HOST_WINDOW_PAGES; i++)
		h->free_pages[h->nfree++] = HOST_WINDOW_PAGES - 1 - i;
	config.window = h->window;
	HOST_NEED(!umbra_chain_create(&h->chain, &umbra_os_posix));
	HOST_NEED(!umbra_hostmap_open(&h->map, 0));
	HOST_NEED(!umbra_own_create(&h->own, h->chain, h->map));
	HOST_NEED(!umbra_mmu_create(&h->mmu, &config));
	HOST_NEED(!umbra_root_create(h->mmu, UMBRA_ROOT_MIRROR, &h->root));
	HOST_NEED(!umbra_chain_register(h->chain, umbra_mmu_notifier(h->mmu)));
}

static inline void host_destroy(struct host *h)
{
	umbra_chain_unregister(h->chain, umbra_mmu_notifier(h->mmu));
	umbra_root_destroy(h->root);
	umbra_mmu_destroy(h->mmu);
	umbra_own_destroy(h->own);
	umbra_hostmap_close(h->map);
	umbra_chain_destroy(h->chain);
	munmap(h->window, HOST_WINDOW_PAGES * UMBRA_PAGE_SIZE);
}

/* Of a test: it is of what the host maps by 2M. */
#define host_needs_sizes(h)                                                                    \
	do {                                                                                   \
		if (!umbra_hostmap_has_scan((h)->map))                                         \
			cr_skip_test("the host does not tell what it maps by 2M (Linux 6.7)"); \
	} while (0)

/* Where neither mmap looks for room nor a sanitizer keeps its own: what is unmapped here stays so. */
#ifdef __SANITIZE_THREAD__
#define HOST_LOW 0x5000000000ULL
#else
#define HOST_LOW 0x200000000000ULL
#endif

/* Address space of @bytes, aligned to 2M, nothing mapped before and after. */
static inline char *host_reserve(size_t bytes)
{
	const size_t huge = UMBRA_HUGE_SIZE;
	static uint64_t next = HOST_LOW;
	char *p = (char *)(uintptr_t)next;

	next += ((bytes + huge - 1) & ~(huge - 1)) + huge;
	HOST_NEED(mmap(p, bytes, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
		       0) == p);
	munmap(p, bytes);
	return p;
}

static inline void host_slot_flags(struct host *h, const void *p, size_t bytes, uint32_t flags)
{
	const struct umbra_memslot slot = {
		.flags = flags,
		.id = h->next_slot++,
		.gfn = { (uintptr_t)p >> UMBRA_PAGE_SHIFT },
		.npages = bytes >> UMBRA_PAGE_SHIFT,
		.hva = { (uintptr_t)p },
		.out = { (uintptr_t)p >> UMBRA_PAGE_SHIFT },
	};

	HOST_NEED(!umbra_memslot_add(h->mmu, &slot));
}

static inline void host_slot(struct host *h, const void *p, size_t bytes)
{
	host_slot_flags(h, p, bytes, h->slot_flags);
}

/* Maps @bytes 2M aligned, as guest memory with a slot and a region. */
static inline char *host_map(struct host *h, size_t bytes, int prot, int flags, int fd)
{
	char *p = host_reserve(bytes);
	const struct umbra_region region = {
		.hva = hva_range_of(p, bytes),
		.fd = fd,
		.hugepage = flags & MAP_HUGETLB ? UMBRA_HUGE_SIZE : 0,
		.is_private = flags & MAP_PRIVATE,
	};

	p = mmap(p, bytes, prot, flags | MAP_FIXED_NOREPLACE, fd, 0);
	if (p == MAP_FAILED)
		return NULL;
	host_slot(h, p, bytes);
	HOST_NEED(!umbra_region_add(h->own, &region));
	return p;
}

static inline char *host_anon(struct host *h, size_t bytes)
{
	return host_map(h, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static inline char *host_memfd(struct host *h, size_t bytes, int *fd)
{
	*fd = memfd_create("guest", MFD_CLOEXEC);
	HOST_NEED(*fd >= 0 && !ftruncate(*fd, (off_t)bytes));
	return host_map(h, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd);
}

static inline enum umbra_fault_result host_fault_once(struct host *h, const void *p,
						      uint32_t access)
{
	struct umbra_fault f = { .gpa = { (uintptr_t)p }, .access = access };

	return umbra_fault(h->root, &f);
}

/* A fault as a vCPU would take it: again while RETRY is answered. */
static inline enum umbra_fault_result host_fault(struct host *h, const void *p, uint32_t access)
{
	enum umbra_fault_result r = UMBRA_FAULT_RETRY;

	for (int i = 0; i < 1000 && r == UMBRA_FAULT_RETRY; i++)
		r = host_fault_once(h, p, access);
	return r;
}

/* Faults every page of the range, write; says whether all came. */
static inline bool host_touch(struct host *h, const char *p, size_t bytes, uint32_t access)
{
	for (size_t at = 0; at < bytes; at += UMBRA_PAGE_SIZE) {
		const enum umbra_fault_result r = host_fault(h, p + at, access);

		if (r != UMBRA_FAULT_INSTALLED && r != UMBRA_FAULT_SPURIOUS) {
			fprintf(stderr, "fault at +0x%zx: %s\n", at, umbra_fault_name(r));
			return false;
		}
	}
	return true;
}

/* 0: no leaf; 1: 4K; 2: 2M. */
static inline int host_leaf(struct host *h, const void *p)
{
	struct umbra_translation t;

	return umbra_lookup(h->root, (gpa_t){ (uintptr_t)p }, &t) ? 0 : (int)t.level;
}

static inline bool host_writable(struct host *h, const void *p)
{
	struct umbra_translation t;

	return !umbra_lookup(h->root, (gpa_t){ (uintptr_t)p }, &t) && t.writable;
}

/* Leaves of 4K pages in the range, a 2M leaf counting 512. */
static inline size_t host_leaves(struct host *h, const char *p, size_t bytes)
{
	size_t n = 0;

	for (size_t at = 0; at < bytes; at += UMBRA_PAGE_SIZE)
		n += host_leaf(h, p + at) != 0;
	return n;
}

static inline uint64_t host_pfn(struct host *h, const void *p)
{
	struct umbra_page page;

	HOST_NEED(!umbra_hostmap_query(h->map, (hva_t){ (uintptr_t)p }, &page));
	return page.flags & UMBRA_PAGE_PRESENT ? page.host_pfn : UMBRA_HOST_PFN_UNKNOWN;
}

static inline uint32_t host_flags(struct host *h, const void *p)
{
	struct umbra_page page;

	HOST_NEED(!umbra_hostmap_query(h->map, (hva_t){ (uintptr_t)p }, &page));
	return page.flags;
}

static inline uint64_t host_starts(struct host *h)
{
	return umbra_chain_counts(h->chain, UMBRA_SOURCE_OWN).begun;
}

static void host_report(void *arg, const char *line)
{
	(void)arg;
	fprintf(stderr, "check: %s\n", line);
}

/* Tables in order, in step with the kernel, and every bracket closed. */
static inline bool host_sound(struct host *h)
{
	struct umbra_audit_report report;
	bool good = !umbra_check(h->mmu, host_report, NULL) &&
		    !umbra_audit(h->root, h->map, &report, stderr) && !report.skipped;

	for (unsigned int s = 0; s < UMBRA_SOURCE_NR; s++) {
		const struct umbra_chain_counts c =
			umbra_chain_counts(h->chain, (enum umbra_source)s);

		if (c.begun != c.ended) {
			fprintf(stderr, "source %s: %llu begun, %llu ended\n",
				umbra_source_name((enum umbra_source)s),
				(unsigned long long)c.begun, (unsigned long long)c.ended);
			good = false;
		}
	}
	return good;
}

/* A THP at @p (2M aligned, anonymous), filled. False: the host gives none. */
static inline bool host_make_thp(struct host *h, char *p)
{
	if (madvise(p, UMBRA_HUGE_SIZE, MADV_HUGEPAGE))
		return false;
	/* No page may be all zero: a kernel that splits the folio maps such pages to the zero page (6.12). */
	for (size_t at = 0; at < UMBRA_HUGE_SIZE; at += UMBRA_PAGE_SIZE)
		p[at] = 1;
	if (!(host_flags(h, p) & UMBRA_PAGE_HUGE))
		madvise(p, UMBRA_HUGE_SIZE, MADV_COLLAPSE);
	return host_flags(h, p) & UMBRA_PAGE_HUGE;
}

/* First word of a file of /proc or /sys; and writing one. */
static inline bool host_read(const char *path, char *value, size_t bytes)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, value, bytes - 1);
	close(fd);
	value[n > 0 ? n : 0] = 0;
	value[strcspn(value, " \n")] = 0;
	return n > 0;
}

static inline bool host_write(const char *path, const char *value)
{
	const int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = write(fd, value, strlen(value));
	close(fd);
	return n == (ssize_t)strlen(value);
}

#define HOST_SWAP_PATH 32

/* A swap file of 32 MiB; false where there can be none. @path is what host_swap_off() wants. */
static inline bool host_swap_on(char path[HOST_SWAP_PATH])
{
	char zero[4096] = { 0 };
	const int pages = 8192;
	int fd;

	strcpy(path, "/tmp/umbra-swap-XXXXXX");
	fd = mkstemp(path);
	if (fd < 0)
		return false;
	for (int i = 0; i < pages; i++)
		if (write(fd, zero, sizeof(zero)) != sizeof(zero))
			break;
	/* A swap header by hand: version 1, the last page, and the mark at the end of the first page. */
	((uint32_t *)(void *)zero)[256] = 1;
	((uint32_t *)(void *)zero)[257] = (uint32_t)pages - 1;
	memcpy(zero + 4086, "SWAPSPACE2", 10);
	if (pwrite(fd, zero, sizeof(zero), 0) != sizeof(zero) || fsync(fd) || fchmod(fd, 0600) ||
	    swapon(path, 0)) {
		close(fd);
		unlink(path);
		return false;
	}
	close(fd);
	return true;
}

static inline void host_swap_off(const char *path)
{
	swapoff(path);
	unlink(path);
}

#endif
