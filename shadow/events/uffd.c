/* SPDX-License-Identifier: BSD-2-Clause */
/* The userfaultfd reader: events become brackets on the chain; faults go to the embedder after
 * every event before them. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "shadow/events/hostmap.h"
#include "shadow/events/uffd.h"

#define SETTLE_POLL_MS 1
#define CLOSE_WAIT_NS  1000000000LL

/* ---- open and close ---------------------------------------------------------------------------
 */

int umbra_uffd_open(struct umbra_uffd **out, struct umbra_chain *chain,
		    const struct umbra_uffd_config *config, struct umbra_uffd_tried *tried)
{
	struct umbra_uffd_tried unused;
	struct umbra_uffd *u = calloc(1, sizeof(*u)), *none = NULL;
	int err;

	if (!u)
		return -ENOMEM;
	u->chain = chain;
	u->config = *config;
	u->own = config->own;
	u->fd = uffd_open_fd(u, tried ? tried : &unused);
	err = u->fd < 0 ? u->fd : 0;
	if (err)
		goto fail;
	err = settle_init(&u->settle, config->settle_signal, config->own);
	if (err)
		goto fail_fd;
	pthread_mutex_init(&u->batch, NULL);
	pthread_mutex_init(&u->lock, NULL);
	pthread_cond_init(&u->drained, NULL);
	/* One reader at most knows the own calls of an address space; events that a second reads
	 * are all taken for outside. */
	if (u->own && !atomic_compare_exchange_strong(&u->own->uffd, &none, u))
		u->own = u->settle.own = NULL;
	*out = u;
	return 0;
fail_fd:
	if (u->owned)
		close(u->fd);
fail:
	free(u);
	return err;
}

uint64_t umbra_uffd_features(const struct umbra_uffd *uffd)
{
	return uffd->features;
}

int umbra_uffd_fd(const struct umbra_uffd *uffd)
{
	return uffd->fd;
}

/* ---- brackets ---------------------------------------------------------------------------------
 */

/*
 * Not blockable: the reader never waits for a vCPU, which may be waiting for the reader in a fault.
 * Forced: the change cannot be refused any more.
 */
static struct umbra_range range_of(struct hva_range r, enum umbra_cause cause, bool relocates)
{
	return (struct umbra_range){
		.hull = r,
		.flags = UMBRA_RANGE_FORCED | (relocates ? UMBRA_RANGE_RELOCATES : 0U),
		.cause = cause,
		.source = UMBRA_SOURCE_UFFD,
	};
}

static void open_range(struct umbra_uffd *u, struct hva_range r, enum umbra_cause cause,
		       bool relocates)
{
	const struct umbra_range range = range_of(r, cause, relocates);

	umbra_invalidate_start(u->chain, &range);
}

static void close_range_(struct umbra_uffd *u, struct hva_range r, enum umbra_cause cause)
{
	const struct umbra_range range = range_of(r, cause, false);

	umbra_invalidate_end(u->chain, &range);
}

/* A change that is over when its event is read. */
static void point(struct umbra_uffd *u, struct hva_range r, enum umbra_cause cause, bool relocates)
{
	const struct umbra_range range = range_of(r, cause, relocates);

	umbra_invalidate_range(u->chain, &range);
}

static void drop_unmapped(struct umbra_uffd *u, struct hva_range block)
{
	uint64_t entries[UMBRA_HUGE_PAGES], n = 0, run;

	if (!u->own || !u->own->map || uffd_range_private(u, block) ||
	    hostmap_entries(u->own->map, block.start.v >> UMBRA_PAGE_SHIFT, entries,
			    UMBRA_HUGE_PAGES)) {
		point(u, block, UMBRA_CAUSE_SPLIT, false);
		return;
	}
	while (n < UMBRA_HUGE_PAGES) {
		for (run = 0; n + run < UMBRA_HUGE_PAGES && !(entries[n + run] & PM_PRESENT);)
			run++;
		if (run)
			point(u,
			      (struct hva_range){ { block.start.v + n * UMBRA_PAGE_SIZE },
						  { block.start.v + (n + run) * UMBRA_PAGE_SIZE } },
			      UMBRA_CAUSE_SPLIT, false);
		n += run + 1;
	}
}

/*
 * A change of others is over that cut 2M pages: one of a file the kernel has unmapped whole, of which no event tells. What came
 * back since is the same page of the file, if the mapping is shared; so only what is not mapped must have no leaf. Of a private one
 * a write may have brought a copy (docs/locking.md): nothing of the 2M keeps its leaf. @cut: uffd_cut().
 */
static void drop_cut(struct umbra_uffd *u, struct hva_range cut)
{
	const struct hva_range first = { cut.start, { cut.start.v + UMBRA_HUGE_SIZE } },
			       last = { { cut.end.v - UMBRA_HUGE_SIZE }, cut.end };

	if (hva_range_empty(cut))
		return;
	drop_unmapped(u, first);
	if (last.start.v != first.start.v)
		drop_unmapped(u, last);
}

/* Unmapped, moved away or mapped over: over when its event is read. */
static void gone(struct umbra_uffd *u, struct hva_range r, enum umbra_cause cause)
{
	point(u, r, cause, true);
	drop_cut(u, uffd_cut(u, r));
}

/* It is open already. @removes: so many were raised. */
static void add_doubt(struct umbra_uffd *u, struct hva_range r, uint32_t removes)
{
	struct uffd_open *d;

	pthread_mutex_lock(&u->lock);
	if (u->ndoubts < UFFD_DOUBTS) {
		u->doubts[u->ndoubts++] =
			(struct uffd_open){ .r = r, .count = 1, .removes = removes };
	} else {
		d = &u->doubts[UFFD_DOUBTS - 1];
		hva_range_join(&d->r, r);
		d->count++;
		d->removes += removes;
	}
	pthread_mutex_unlock(&u->lock);
	uffd_wake_reader(u);
}

void uffd_doubt(struct umbra_uffd *u, struct hva_range r, uint32_t n)
{
	static const struct hva_range
		none; /* a batch without a part: nothing comes, nothing goes */
	struct umbra_range range = range_of(r, UMBRA_CAUSE_REMOVE, false);

	range.v = &none;
	range.nr = 1;
	atomic_fetch_sub(&u->own_removes, n);
	umbra_invalidate_start(u->chain, &range);
	add_doubt(u, r, n);
}

static void set_unsettled(struct umbra_uffd *u)
{
	atomic_store(&u->unsettled, u->npending);
}

static void take_doubts(struct umbra_uffd *u)
{
	const uint64_t epoch = settle_epoch();

	pthread_mutex_lock(&u->lock);
	while (u->ndoubts && u->npending < UFFD_PENDING) {
		u->pending[u->npending] = u->doubts[--u->ndoubts];
		u->pending[u->npending++].epoch = epoch;
	}
	pthread_mutex_unlock(&u->lock);
	set_unsettled(u);
}

/* Looks whether the callers of pending REMOVEs are back, and closes what is over. */
static void settle_pending(struct umbra_uffd *u)
{
	uint64_t newest = 0, over;
	uint32_t kept = 0;

	for (uint32_t i = 0; i < u->npending; i++)
		if (u->pending[i].epoch > newest)
			newest = u->pending[i].epoch;
	over = settle_scan(&u->settle, newest);
	for (uint32_t i = 0; i < u->npending; i++) {
		struct uffd_open *o = &u->pending[i];

		if (o->epoch > over) {
			u->pending[kept++] = *o;
			continue;
		}
		for (uint32_t n = o->count; n; n--)
			close_range_(u, o->r, UMBRA_CAUSE_REMOVE);
		drop_cut(u, o->cut);
		atomic_fetch_add(&u->settled, o->removes);
	}
	u->npending = kept;
	set_unsettled(u);
}

/* ---- messages ---------------------------------------------------------------------------------
 */

static void on_remove(struct umbra_uffd *u, struct hva_range r)
{
	struct uffd_open o = { .r = r, .count = 1, .removes = 1 };

	if (u->own && own_call_claim(u->own, r)) {
		atomic_fetch_add(&u->own_removes, 1);
		atomic_fetch_add(&u->removes, 1);
		return;
	}
	open_range(u, r, UMBRA_CAUSE_REMOVE, true);
	o.cut = uffd_cut(u, r);
	/* The epoch begins after the read: what is seen from now on was seen after it. */
	o.epoch = settle_epoch();
	u->pending[u->npending++] = o;
	set_unsettled(u);
	atomic_fetch_add(&u->removes, 1); /* last: who sees it counted sees it refused */
}

static void on_remap(struct umbra_uffd *u, uint64_t from, uint64_t to, uint64_t len)
{
	const struct hva_range old = { { from }, { from + len } };

	atomic_fetch_add(&u->remaps, 1);
	uffd_ranges_move(u, old, (hva_t){ to });
	if (u->own) {
		own_call_doubt(u->own, (struct hva_range){ { to }, { to + len } });
		own_moved(u->own, old, (hva_t){ to });
	}
	gone(u, old, UMBRA_CAUSE_REMAP);
	gone(u, (struct hva_range){ { to }, { to + len } }, UMBRA_CAUSE_REMAP);
}

static void on_fork(struct umbra_uffd *u, int child)
{
	struct uffd_range r;

	atomic_fetch_add(&u->forks, 1);
	close(child); /* the child's memory is none of ours */
	for (uint32_t i = 0;; i++) {
		bool more, lost;

		pthread_mutex_lock(&u->lock);
		more = i < u->nranges;
		lost = u->ranges_lost;
		if (more)
			r = u->ranges[i];
		pthread_mutex_unlock(&u->lock);
		if (lost) {
			point(u, (struct hva_range){ { 0 }, { ~0ULL } }, UMBRA_CAUSE_FORK, false);
			return;
		}
		if (!more)
			return;
		if (r.is_private)
			point(u, r.hva, UMBRA_CAUSE_FORK, false);
	}
}

static void on_fault(struct umbra_uffd *u, const struct uffd_msg *m)
{
	const uint32_t flags = (uint32_t)m->arg.pagefault.flags;
	const hva_t hva = { m->arg.pagefault.address };

	if (flags & UFFD_PAGEFAULT_FLAG_WP)
		atomic_fetch_add(&u->faults_wp, 1);
	else if (flags & UFFD_PAGEFAULT_FLAG_MINOR)
		atomic_fetch_add(&u->faults_minor, 1);
	else
		atomic_fetch_add(&u->faults_missing, 1);
	if (u->ndeferred < UFFD_DEFERRED) {
		u->deferred[u->ndeferred++] = (struct uffd_deferred){
			.hva = hva,
			.flags = flags,
			.tid = m->arg.pagefault.feat.ptid,
		};
		return;
	}
	/* No room: woken, the thread faults again and is read later. */
	umbra_uffd_wake(u, hva_range_widen((struct hva_range){ hva, { hva.v + 1 } }));
}

static void on_message(struct umbra_uffd *u, const struct uffd_msg *m)
{
	const struct hva_range r = { { m->arg.remove.start }, { m->arg.remove.end } };

	switch (m->event) {
	case UFFD_EVENT_PAGEFAULT: on_fault(u, m); break;
	case UFFD_EVENT_REMOVE: on_remove(u, r); break;
	case UFFD_EVENT_UNMAP:
		atomic_fetch_add(&u->unmaps, 1);
		gone(u, r, UMBRA_CAUSE_UNMAP);
		uffd_ranges_remove(u, r);
		break;
	case UFFD_EVENT_REMAP:
		on_remap(u, m->arg.remap.from, m->arg.remap.to, m->arg.remap.len);
		break;
	case UFFD_EVENT_FORK: on_fork(u, (int)m->arg.fork.ufd); break;
	default: break; /* asked for no other */
	}
}

/* Returns: messages read, 0 if there are none, -errno. */
static int read_batch(struct umbra_uffd *u, size_t room)
{
	struct uffd_msg messages[UFFD_BATCH];
	const size_t n = room < UFFD_BATCH ? room : UFFD_BATCH;
	ssize_t got;
	int count;

	pthread_mutex_lock(&u->batch);
	do
		got = read(u->fd, messages, n * sizeof(*messages));
	while (got < 0 && errno == EINTR);
	count = got < 0 ? -errno : (int)((size_t)got / sizeof(*messages));
	for (int i = 0; i < count; i++)
		on_message(u, &messages[i]);
	pthread_mutex_unlock(&u->batch);
	return count == -EAGAIN ? 0 : count;
}

int uffd_read_all(struct umbra_uffd *u)
{
	int got;

	do {
		if (u->npending ==
		    UFFD_PENDING) /* what is not read keeps its caller waiting, and that is right */
			return -ENOBUFS;
		got = read_batch(u, UFFD_PENDING - u->npending);
	} while (got > 0);
	return got;
}

/* After every event that was readable with or before them: a fault overtakes the event that made it
 * stale. */
static void serve_faults(struct umbra_uffd *u)
{
	while (u->ndeferred) {
		const struct uffd_deferred f = u->deferred[--u->ndeferred];

		if (u->config.fault)
			u->config.fault(u->config.ctx, u, f.hva, f.flags, f.tid);
	}
}

/* ---- the reader -------------------------------------------------------------------------------
 */

void uffd_wake_reader(struct umbra_uffd *u)
{
	const uint64_t one = 1;

	if (write(u->settle.wake, &one, sizeof(one)) < 0)
		return; /* full: it is awake */
}

bool uffd_on_reader(const struct umbra_uffd *u)
{
	return atomic_load(&u->reader_tid) == own_tid();
}

static void wait_for_more(struct umbra_uffd *u)
{
	struct pollfd fds[2] = { { .fd = u->fd, .events = POLLIN },
				 { .fd = u->settle.wake, .events = POLLIN } };
	uint64_t count;

	poll(fds, 2, u->npending ? SETTLE_POLL_MS : -1);
	if ((fds[1].revents & POLLIN) && read(u->settle.wake, &count, sizeof(count)) < 0)
		return;
}

static int reader_round(struct umbra_uffd *u)
{
	uint64_t wanted;
	int err;

	pthread_mutex_lock(&u->lock);
	wanted = u->drain_wanted;
	pthread_mutex_unlock(&u->lock);

	err = uffd_read_all(u);
	serve_faults(u);
	take_doubts(u);
	if (u->npending)
		settle_pending(u);
	if (!err && !u->npending) {
		pthread_mutex_lock(&u->lock);
		u->drain_done = wanted;
		pthread_cond_broadcast(&u->drained);
		pthread_mutex_unlock(&u->lock);
	}
	return err == -ENOBUFS ? 0 : err;
}

int umbra_uffd_run(struct umbra_uffd *u)
{
	int err = 0;

	atomic_store(&u->reader_tid, own_tid());
	u->settle.reader_tid = own_tid();
	atomic_store(&u->running, true);
	while (!err && !atomic_load(&u->stop)) {
		err = reader_round(u);
		if (!err && !atomic_load(&u->stop))
			wait_for_more(u);
	}
	pthread_mutex_lock(&u->lock);
	atomic_store(&u->running, false);
	atomic_store(&u->stop, false);
	pthread_cond_broadcast(&u->drained);
	pthread_mutex_unlock(&u->lock);
	atomic_store(&u->reader_tid, 0);
	return err;
}

void umbra_uffd_stop(struct umbra_uffd *u)
{
	atomic_store(&u->stop, true);
	uffd_wake_reader(u);
}

int umbra_uffd_drain(struct umbra_uffd *u)
{
	uint64_t wanted;
	int err = 0;

	if (uffd_on_reader(u))
		return -EDEADLK;
	pthread_mutex_lock(&u->lock);
	wanted = ++u->drain_wanted;
	pthread_mutex_unlock(&u->lock);
	uffd_wake_reader(u);
	pthread_mutex_lock(&u->lock);
	while (u->drain_done < wanted && atomic_load(&u->running))
		pthread_cond_wait(&u->drained, &u->lock);
	if (u->drain_done < wanted)
		err = -ESRCH;
	pthread_mutex_unlock(&u->lock);
	return err;
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/*
 * Callers whose event nobody reads any more are let go by close(), unannounced: so everything
 * registered is bracketed round it, until they are through. A range whose callers cannot be seen to
 * be through in time stays refused.
 */
void umbra_uffd_close(struct umbra_uffd *u)
{
	const struct timespec tick = { .tv_nsec = SETTLE_POLL_MS * 1000000L };
	const int64_t until = now_ns() + CLOSE_WAIT_NS;

	if (!u)
		return;
	u->settle.reader_tid = own_tid();
	uffd_read_all(u);
	for (uint32_t i = 0; i < u->nranges; i++) {
		open_range(u, u->ranges[i].hva, UMBRA_CAUSE_REMOVE, true);
		add_doubt(u, u->ranges[i].hva, 1);
	}
	if (u->own)
		uffd_give_up_own(u);
	if (u->owned)
		close(u->fd);
	if (u->own)
		uffd_leave_own(u);
	do {
		take_doubts(u);
		settle_pending(u);
		if (!u->ndoubts && !u->npending)
			break;
		nanosleep(&tick, NULL);
	} while (now_ns() < until);
	settle_fini(&u->settle);
	pthread_cond_destroy(&u->drained);
	pthread_mutex_destroy(&u->lock);
	pthread_mutex_destroy(&u->batch);
	free(u);
}

void umbra_uffd_stats(struct umbra_uffd *u, struct umbra_uffd_stats *s)
{
	*s = (struct umbra_uffd_stats){
		.faults_missing = u->faults_missing,
		.faults_minor = u->faults_minor,
		.faults_wp = u->faults_wp,
		.removes = u->removes,
		.unmaps = u->unmaps,
		.remaps = u->remaps,
		.forks = u->forks,
		.own_removes = u->own_removes,
		.settled = u->settled,
		.unsettled = u->unsettled,
		.eagain = u->eagain,
	};
}
