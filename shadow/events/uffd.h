/* SPDX-License-Identifier: BSD-2-Clause */
/* Private to shadow/events: the state of a userfaultfd reader and of the grace period that ends a
 * REMOVE. */
#ifndef SHADOW_EVENTS_UFFD_H
#define SHADOW_EVENTS_UFFD_H

#include <pthread.h>
#include <stdatomic.h>
#include <umbra/events.h>
#include "shadow/events/own.h"

#define SETTLE_INSTANCES 16
#define SETTLE_THREADS   65536 /* more are never settled: their REMOVEs stay open */
#define SETTLE_BUCKETS   4096
#define SETTLE_FDS       128 /* descriptors kept open; for the other threads one is opened at each look */
#define UFFD_PENDING     256
#define UFFD_DOUBTS      64
#define UFFD_DEFERRED    256
#define UFFD_RANGES      256
#define UFFD_BATCH       16

/* A thread of this process, as the grace period sees it. @tid 0: free. */
struct settle_thread {
	int tid;
	uint32_t next; /* in its bucket, or among the free; index + 1 */
	int fd;        /* /proc/self/task/TID/syscall, or stat if @by_state; -1: none kept */
	bool io_worker, by_state; /* takes no signals; what it is in cannot be read */
	bool foreign;             /* of another process that has our address space */
	uint64_t mark;            /* of the last reading of a list that had it */
	uint64_t
		quiet; /* newest epoch after which it was seen outside of every call begun before */
	uint64_t signal; /* newest epoch that a signal was sent for */
};

/*
 * The grace period. An epoch is begun after an event was read; it is over for a thread once that
 * thread was seen, later, outside of the system call that it may have been in, and over when it is
 * over for all threads.
 */
struct settle {
	int instance; /* of the static acknowledgement table */
	int wake; /* eventfd, the instance's, never closed: a late handler may still write to it */
	int signal;
	int task_dir;
	int proc_dir, loadavg; /* to look for other processes with our address space, or -1 */
	long last_pid;         /* when there was none last */
	uint32_t sharers;      /* how many there were then */
	uint64_t mark;         /* readings of lists of threads */
	int reader_tid;
	struct umbra_own *own;
	struct settle_thread threads[SETTLE_THREADS];
	uint32_t nthreads; /* high-water mark in threads[] */
	uint32_t nfds;
	uint32_t buckets[SETTLE_BUCKETS], free; /* index + 1 of the first */
	_Alignas(8) char dirents[64 * 1024];
};

/* Returns: 0, -EBUSY (the signal is in use), -ENOSPC (too many userfaultfds), -errno. */
int settle_init(struct settle *s, int signal, struct umbra_own *own);
void settle_fini(struct settle *s);
/* A new epoch. Everything read before this call is covered by it. */
uint64_t settle_epoch(void);
/*
 * One look at all threads, with signals to those that need one. Allocates nothing. Returns: the
 * newest epoch that is over.
 */
uint64_t settle_scan(struct settle *s, uint64_t epoch);

/* An open bracket of the reader's, to be closed when @epoch is over. @count: starts it stands for.
 * @removes: REMOVEs, as many as are in doubt. @cut: uffd_cut() of @r. */
struct uffd_open {
	struct hva_range r, cut;
	uint64_t epoch;
	uint32_t count, removes;
};

struct uffd_deferred {
	hva_t hva;
	uint32_t flags, tid;
};

/* What is not known for certain is taken to be so. */
struct uffd_range {
	struct hva_range hva;
	bool is_private, has_file;
};

struct umbra_uffd {
	int fd;
	bool owned;
	uint64_t features;
	struct umbra_chain *chain;
	struct umbra_own *own;
	struct umbra_uffd_config config;
	struct settle settle;
	_Atomic bool stop, running;
	_Atomic int reader_tid;
	/* From before a read until its messages are looked at; an own call is left with it held. */
	pthread_mutex_t batch;

	/* the reader's alone */
	struct uffd_open pending[UFFD_PENDING];
	uint32_t npending;
	struct uffd_deferred deferred[UFFD_DEFERRED];
	uint32_t ndeferred;

	pthread_mutex_t lock; /* innermost; nothing is called with it held */
	pthread_cond_t drained;
	uint64_t drain_wanted, drain_done;
	struct uffd_open doubts[UFFD_DOUBTS];
	uint32_t ndoubts;
	struct uffd_range ranges[UFFD_RANGES];
	uint32_t nranges;
	bool ranges_lost; /* more than fit: fork is taken to touch everything */

	/* statistics */
	_Atomic uint64_t faults_missing, faults_minor, faults_wp;
	_Atomic uint64_t removes, unmaps, remaps, forks;
	_Atomic uint64_t own_removes, settled, unsettled, eagain;
};

/* The first way that works, with every feature it has of those used; @u->features says which. Returns: it, -errno. */
int uffd_open_fd(struct umbra_uffd *u, struct umbra_uffd_tried *tried);
/* @n REMOVEs within @r were taken as an own call's, and one may be another's: whoever made it is waited for.
 * The own call's bracket is still open. */
void uffd_doubt(struct umbra_uffd *uffd, struct hva_range r, uint32_t n);
/* Before the descriptor is closed, which lets own calls return that raised nothing yet. */
void uffd_give_up_own(struct umbra_uffd *uffd);
/* No own call uses @uffd once this has returned. */
void uffd_leave_own(struct umbra_uffd *uffd);
/* Round a change of what is registered; @own may be NULL. */
void uffd_watch_begin(struct umbra_own *own);
void uffd_watch_end(struct umbra_own *own);
/* Reads and announces all that is readable; faults are put by. Reader only. Returns: 0, -errno. */
int uffd_read_all(struct umbra_uffd *uffd);
void uffd_wake_reader(struct umbra_uffd *uffd);
bool uffd_on_reader(const struct umbra_uffd *uffd);

/* The table of what is registered. @like: of what kind; its range is not looked at. */
void uffd_ranges_add(struct umbra_uffd *uffd, struct hva_range r, struct uffd_range like);
/* The 2M blocks that @r begins and ends in, from the first to the last, if it cuts one where a file may be. Else empty. */
struct hva_range uffd_cut(struct umbra_uffd *uffd, struct hva_range r);
/* Is any part of @r private, as far as is known? */
bool uffd_range_private(struct umbra_uffd *uffd, struct hva_range r);
void uffd_ranges_remove(struct umbra_uffd *uffd, struct hva_range r);
void uffd_ranges_move(struct umbra_uffd *uffd, struct hva_range from, hva_t to);

#endif
