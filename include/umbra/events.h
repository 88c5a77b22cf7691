/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Event sources: how changes of the host's page tables reach the notifier chain, and what each
 * source can promise. Linux only. Everything in this header makes system calls.
 */
#ifndef UMBRA_EVENTS_H
#define UMBRA_EVENTS_H

#include <stdio.h>
#include <sys/types.h>
#include <umbra/mmu.h>
#include <umbra/notifier.h>

/* ---- promises -------------------------------------------------------------------------------- */

/*
 * struct umbra_promises - what a source can promise, held against the truth by tests/ and shown in
 * README.
 * @tier: 0 stale entries go once the queue is drained; 1 no lookup after start returned yields a
 * stale entry; 2 no use after start returned. -1: a witness only.
 */
struct umbra_promises {
	bool start_before_change; /* start returns before the page tables change                  */
	bool end_after_change;    /* end comes after they changed                                 */
	bool caller_waits;       /* who changes the tables waits until the consumers are done     */
	bool sees_own_calls;     /* calls through umbra_own                                       */
	bool sees_other_threads; /* madvise, munmap ... by code of this process that is not ours  */
	bool sees_kernel;        /* reclaim, migration, KSM, khugepaged, foreign truncate         */
	bool sees_protect;       /* mprotect                                                      */
	bool exact_range;        /* never drops more than changed, hugepage edges apart           */
	int tier;
};
const struct umbra_promises *umbra_source_promises(enum umbra_source source);

/* ---- the kernel's truth --------------------------------------------------------------------- */

enum umbra_page_flags {
	UMBRA_PAGE_PRESENT = 1 << 0,
	UMBRA_PAGE_SWAPPED =
		1 << 1, /* swapped out, migrating or poisoned: an entry that is not present */
	UMBRA_PAGE_FILE = 1 << 2, /* page cache or shared anonymous                              */
	UMBRA_PAGE_EXCLUSIVE = 1 << 3, /* mapped once */
	UMBRA_PAGE_UFFD_WP = 1 << 4,   /* write-protected by userfaultfd   */
	UMBRA_PAGE_HUGE = 1 << 5, /* mapped by a PMD (THP or hugetlb); only with PAGEMAP_SCAN    */
	UMBRA_PAGE_ZERO = 1 << 6, /* the shared zero page; only with PAGEMAP_SCAN                */
};

struct umbra_page {
	uint32_t flags;    /* enum umbra_page_flags */
	uint64_t host_pfn; /* or UMBRA_HOST_PFN_UNKNOWN without CAP_SYS_ADMIN */
};

struct umbra_hostmap;

/*
 * umbra_hostmap_open - /proc/PID/pagemap, and PAGEMAP_SCAN where the kernel has it. One map for all
 * faults and audits of an address space: it remembers what faults are doing. Nothing can check that:
 * a fault through a second map misses that a write through the first has just moved its page, and an
 * audit through one takes what is about to be announced, or was moved before it was opened, for wrong.
 * @pid: 0 is this process. Returns: 0, -errno of open.   Pairs with: umbra_hostmap_close().
 */
int umbra_hostmap_open(struct umbra_hostmap **map, pid_t pid);
void umbra_hostmap_close(struct umbra_hostmap *map);
bool umbra_hostmap_has_scan(const struct umbra_hostmap *map);
bool umbra_hostmap_has_pfns(const struct umbra_hostmap *map);

/* One 4K page at @hva; a hole is flags 0. Thread safe. Returns: 0, -errno. */
int umbra_hostmap_query(struct umbra_hostmap *map, hva_t hva, struct umbra_page *page);

/* The same for @n consecutive pages. */
int umbra_hostmap_query_range(struct umbra_hostmap *map, hva_t hva, struct umbra_page *pages,
			      size_t n);

/*
 * umbra_hostmap_resolve - the whole of an embedder's resolve op for ordinary memory of this
 * process: faults the page in as @req->access demands, then says how the host maps it.
 * Copy-on-write that the access must break is announced on
 * @chain first (cause COW), which makes the running fault retry.
 * Returns: as ops->resolve.
 */
int umbra_hostmap_resolve(struct umbra_hostmap *map, struct umbra_chain *chain,
			  const struct umbra_resolve_req *req, struct umbra_resolved *res);

/*
 * umbra_audit - our tables against the kernel's. Every leaf of @root must be backed as it claims:
 * present; a 2M leaf by a PMD; a writable leaf by a page that a write would not move or fault on;
 * the same frame as at install (RECORD_PFN). Leaves whose hva lies in an open invalidation are
 * skipped and counted; so is a page that a fault of ours is just writing to and has yet to announce,
 * or the 2M around it if that may be why it is mapped by 4K.
 *
 * A page in another frame than at install, or swapped out, is a mismatch, unless the kernel has moved
 * pages by itself since @map was opened, by its own counters: khugepaged's pages_collapsed for a page
 * that is PMD-mapped now, vmstat's pgmigrate_success for another frame, pgscan_* (which MADV_PAGEOUT
 * does not move) for a page in swap. Own calls and userfaultfd cannot see that. It is then named as
 * moved_by_kernel, never hidden.
 *
 * @out: one line for each mismatch, may be NULL.
 */
struct umbra_audit_report {
	uint64_t leaves, pages, skipped;
	uint64_t stale;      /* the host has nothing there               */
	uint64_t wrong_pfn;  /* another frame                            */
	uint64_t wrong_size; /* 2M over pages mapped by 4K               */
	uint64_t wrong_perm; /* writable over shared, zero or protected  */
	uint64_t pfn_checked;
	uint64_t moved_by_kernel; /* not a mismatch */
};
/* Returns: number of mismatches, or -errno. */
int64_t umbra_audit(struct umbra_root *root, struct umbra_hostmap *map,
		    struct umbra_audit_report *report, FILE *out);

/* ---- own calls --------------------------------------------------------------------------------
 */

struct umbra_own;
struct umbra_uffd;

/*
 * struct umbra_region - memory the program gave to the guest; what umbra_fork() and
 * umbra_fallocate() need to know of it.
 * @fd: -1 for private anonymous memory. @file_offset: bytes, of @hva.start in @fd.
 */
struct umbra_region {
	struct hva_range hva;
	int fd;
	uint64_t file_offset;
	uint64_t hugepage; /* bytes of a hugetlb page, 0 otherwise */
	bool is_private;   /* fork makes it copy-on-write */
	bool dontfork;     /* MADV_DONTFORK: fork does not touch it; kept by umbra_madvise() */
};

/*
 * umbra_own_create - the bracketed system calls of one address space.
 * @map: may be NULL; with it, calls that change nothing for some ranges are not bracketed there.
 * Returns: 0, -ENOMEM.   Pairs with: umbra_own_destroy().
 */
int umbra_own_create(struct umbra_own **own, struct umbra_chain *chain, struct umbra_hostmap *map);
void umbra_own_destroy(struct umbra_own *own);

/*
 * Own calls know from its region what memory is a file's, whose 2M pages are unmapped as a whole when a call cuts them.
 * Returns: 0, -ENOMEM, -EEXIST (overlaps), -errno of fstat. Copies @region. Own calls keep regions
 * true: what they unmap, map over, move or mark is cut out, replaced, moved or split. add: before
 * anything of @region is installed, and with no own call under way that discards, protects or unmaps
 * a part of it; waits for other calls that do not know of it yet. remove: takes what is left between
 * the two ends of @hva; 0, -ENOENT (no region begins and ends there).
 */
int umbra_region_add(struct umbra_own *own, const struct umbra_region *region);
int umbra_region_remove(struct umbra_own *own, struct hva_range hva);

/*
 * The calls. Each is the system call of its name, with invalidate start before and end after it if
 * and where it changes what is mapped. A call refused by a consumer (-EBUSY: pinned) or by the
 * kernel changed nothing that is not announced. A call that changed something does not return before
 * calls of other threads that were planned earlier have come through: those may be waiting for a
 * consumer, or for the uffd reader. Context: any thread that is not the uffd reader, with no lock
 * held that the reader or a consumer wants; a vCPU thread too. Returns: 0 or a negative errno, as the
 * system call; -EBUSY also for pinned pages. MADV_COLLAPSE of more than 1 GiB and MADV_POPULATE_WRITE
 * of more than 8 MiB are made in pieces, each in a bracket of its own: signals and faults come between.
 *
 * Of hugetlb memory the kernel refuses with -EINVAL: MADV_COLLAPSE, COLD, PAGEOUT, FREE, GUARD_INSTALL,
 * mremap with MREMAP_DONTUNMAP or to a greater length, and whatever would cut one of its pages (munmap,
 * mprotect, madvise). Its pages are never split. What the kernel takes a whole page for although less was
 * named (mmap over, mremap) is bracketed as the kernel takes it.
 */
int umbra_madvise(struct umbra_own *own, struct hva_range r, int advice);
int umbra_munmap(struct umbra_own *own, struct hva_range r);
int umbra_mprotect(struct umbra_own *own, struct hva_range r, int prot);
int umbra_fallocate(struct umbra_own *own, int fd, int mode, uint64_t offset, uint64_t len);
int umbra_ftruncate(struct umbra_own *own, int fd, uint64_t len);
/* mmap(MAP_FIXED) over @r; @flags as mmap's, MAP_FIXED is added. */
int umbra_mmap_over(struct umbra_own *own, struct hva_range r, int prot, int flags, int fd,
		    uint64_t offset);
/* mremap(2); @to: destination for MREMAP_FIXED, else 0. @result: where it is now. Regions move with
 * it. */
int umbra_mremap(struct umbra_own *own, struct hva_range from, uint64_t new_len, int flags,
		 hva_t to, hva_t *result);
/*
 * fork(2): private regions are bracketed. Returns: as fork, or negative errno. The child must not
 * use the chain, its consumers or @own: their locks and brackets are copies of the parent's.
 */
pid_t umbra_fork(struct umbra_own *own);

/*
 * umbra_madvise_batch - @n calls in one bracket and one shootdown.
 * Returns: 0, or the first error (the others were still done); @done, if not NULL: calls that
 * succeeded.
 */
int umbra_madvise_batch(struct umbra_own *own, const struct hva_range *v, uint32_t n, int advice,
			uint32_t *done);

/*
 * A bracket by hand, for calls that Umbra does not know (io_uring, a driver's ioctl). The end waits as
 * the calls above do. Returns: 0, -EINVAL (empty), -EBUSY (pinned, and @relocates).
 */
int umbra_own_start(struct umbra_own *own, struct hva_range r, enum umbra_cause cause,
		    bool relocates);
void umbra_own_end(struct umbra_own *own, struct hva_range r, enum umbra_cause cause,
		   bool relocates);

/* ---- userfaultfd ------------------------------------------------------------------------------
 */

enum umbra_uffd_mode {
	UMBRA_UFFD_MISSING = 1 << 0,
	UMBRA_UFFD_WP = 1 << 1, /* without protecting anything: events and no faults */
	UMBRA_UFFD_MINOR = 1 << 2,
};

/* What happened at each way that umbra_uffd_open() tried, for an error that says what to do. */
struct umbra_uffd_tried {
	int passed_fd, dev, syscall; /* 0, negative errno, or 1: not tried */
};

/*
 * A fault read from the uffd is handed over once, when the events that were readable with or before it
 * have been announced (with 256 faults waiting it is woken instead, and read again; with 256 REMOVEs
 * unsettled no more events are read). @hva, @flags, @tid: as the kernel wrote them. @hva is the start of
 * the page; with UFFD_FEATURE_EXACT_ADDRESS, which only a passed fd can have, the very address. @flags:
 * UFFD_PAGEFAULT_FLAG_*. @tid: of the thread. The handler runs on the reader thread: it must not
 * allocate, nor touch memory that may fault, nor make calls that wait for the reader. It resolves with
 * umbra_uffd_copy() and its kin, or remembers the fault and lets another thread do it.
 */
struct umbra_uffd_config {
	int fd;                /* an open userfaultfd to use (not owned), or -1 */
	struct umbra_own *own; /* whose calls are already bracketed, may be NULL */
	/*
	 * Real-time signal by which outside callers are waited for; 0: SIGRTMAX - 1. Its handler
	 * stays for the life of the process. A thread that runs when an outside REMOVE is read may
	 * get one: a system call it enters just then may end with EINTR.
	 */
	int settle_signal;
	void (*fault)(void *ctx, struct umbra_uffd *uffd, hva_t hva, uint32_t flags, uint32_t tid);
	void *ctx;
};

/*
 * umbra_uffd_open - tries @config->fd, /dev/userfaultfd, userfaultfd(2), in this order; asks for
 * the features there are (events of forks need CAP_SYS_PTRACE: see umbra_uffd_features()).
 * Returns: 0, -errno of the last way tried; -EBUSY: the settle signal has a handler already;
 * -ENOSPC: 16 are open. Pairs with: umbra_uffd_close(), when umbra_uffd_run() has returned; it lets
 * waiting callers go, drops what is registered, and waits up to a second until callers of REMOVEs have
 * returned. If one has not (it blocks the signal and runs on), what was registered stays refused for ever:
 * an old translation would be the alternative.
 */
int umbra_uffd_open(struct umbra_uffd **uffd, struct umbra_chain *chain,
		    const struct umbra_uffd_config *config, struct umbra_uffd_tried *tried);
void umbra_uffd_close(struct umbra_uffd *uffd);
uint64_t umbra_uffd_features(const struct umbra_uffd *uffd);
int umbra_uffd_fd(const struct umbra_uffd *uffd);

/* Returns: 0, -errno; -ENOTSUP if the kernel has not that mode for that kind of memory. */
int umbra_uffd_register(struct umbra_uffd *uffd, struct hva_range r, uint32_t modes);
int umbra_uffd_unregister(struct umbra_uffd *uffd, struct hva_range r);

/*
 * umbra_uffd_run - read and announce until umbra_uffd_stop(). The caller gives the thread.
 * A REMOVE is kept open (no leaf is installed in its range) until its caller has returned from the
 * system call that caused it; UNMAP, REMAP and FORK are announced after the fact. Returns: 0,
 * -errno.
 */
int umbra_uffd_run(struct umbra_uffd *uffd);
void umbra_uffd_stop(struct umbra_uffd *uffd);

/*
 * Waits until all that was readable when called has been announced and every REMOVE has settled.
 * Returns: 0; -EDEADLK on the reader; -ESRCH when no reader runs, or it stopped.
 */
int umbra_uffd_drain(struct umbra_uffd *uffd);

/*
 * Resolving. All: 0 or negative errno; -EAGAIN is handled inside (an event of the context was
 * unread); partial work is continued; -EEXIST: was there already; -ENOENT: not registered; -ESRCH:
 * the process is gone.
 * @done: bytes done, may be NULL. umbra_uffd_move() brackets source and destination.
 */
int umbra_uffd_copy(struct umbra_uffd *uffd, hva_t dst, const void *src, uint64_t len,
		    uint64_t *done);
int umbra_uffd_zeropage(struct umbra_uffd *uffd, struct hva_range r, uint64_t *done);
int umbra_uffd_continue(struct umbra_uffd *uffd, struct hva_range r, uint64_t *done);
int umbra_uffd_writeprotect(struct umbra_uffd *uffd, struct hva_range r, bool protect);
int umbra_uffd_move(struct umbra_uffd *uffd, hva_t dst, hva_t src, uint64_t len, uint64_t *done);
int umbra_uffd_poison(struct umbra_uffd *uffd, struct hva_range r);
int umbra_uffd_wake(struct umbra_uffd *uffd, struct hva_range r);

struct umbra_uffd_stats {
	uint64_t faults_missing, faults_minor, faults_wp;
	uint64_t removes, unmaps, remaps, forks;
	uint64_t own_removes; /* of these, made by bracketed own calls */
	uint64_t settled;     /* REMOVEs of outside callers that were waited for */
	uint64_t unsettled;   /* open now: their range is refused */
	uint64_t eagain;      /* ioctls repeated because an event was unread */
};
void umbra_uffd_stats(struct umbra_uffd *uffd, struct umbra_uffd_stats *stats);

#endif
