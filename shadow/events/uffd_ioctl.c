/* SPDX-License-Identifier: BSD-2-Clause */
/* Registering and resolving: the ioctls of a userfaultfd, with their partial answers and EAGAIN. */
#include <errno.h>
#include <sys/ioctl.h>
#include <time.h>
#include "shadow/events/hostmap.h"
#include "shadow/events/uffd.h"

#define BACKOFF_MIN_NS 20000L
#define BACKOFF_MAX_NS 1000000L

/* ---- what is registered -----------------------------------------------------------------------
 */

/* Lock held. */
static void ranges_push(struct umbra_uffd *u, struct hva_range r, struct uffd_range like)
{
	if (hva_range_empty(r))
		return;
	if (u->nranges == UFFD_RANGES) {
		u->ranges_lost = true;
		return;
	}
	like.hva = r;
	u->ranges[u->nranges++] = like;
}

/* Lock held. */
static void ranges_cut(struct umbra_uffd *u, struct hva_range r)
{
	for (uint32_t i = u->nranges; i-- > 0;) {
		const struct uffd_range old = u->ranges[i];

		if (!hva_ranges_meet(old.hva, r))
			continue;
		u->ranges[i] = u->ranges[--u->nranges];
		ranges_push(u, (struct hva_range){ old.hva.start, r.start }, old);
		ranges_push(u, (struct hva_range){ r.end, old.hva.end }, old);
	}
}

void uffd_ranges_add(struct umbra_uffd *u, struct hva_range r, struct uffd_range like)
{
	pthread_mutex_lock(&u->lock);
	ranges_cut(u, r);
	ranges_push(u, r, like);
	pthread_mutex_unlock(&u->lock);
}

void uffd_ranges_remove(struct umbra_uffd *u, struct hva_range r)
{
	pthread_mutex_lock(&u->lock);
	ranges_cut(u, r);
	pthread_mutex_unlock(&u->lock);
}

/* Lock held. Of what kind is any part of @r? */
static struct uffd_range ranges_kind(const struct umbra_uffd *u, struct hva_range r)
{
	struct uffd_range kind = { .has_file = u->ranges_lost };

	for (uint32_t i = 0; i < u->nranges; i++) {
		if (!hva_ranges_meet(u->ranges[i].hva, r))
			continue;
		kind.is_private |= u->ranges[i].is_private;
		kind.has_file |= u->ranges[i].has_file;
	}
	return kind;
}

void uffd_ranges_move(struct umbra_uffd *u, struct hva_range from, hva_t to)
{
	pthread_mutex_lock(&u->lock);
	/* MREMAP_DONTUNMAP leaves the old mapping registered; an UNMAP of it, if it goes, follows.
	 */
	ranges_push(u, (struct hva_range){ to, { to.v + (from.end.v - from.start.v) } },
		    ranges_kind(u, from));
	pthread_mutex_unlock(&u->lock);
}

struct hva_range uffd_cut(struct umbra_uffd *u, struct hva_range r)
{
	const uint64_t mask = UMBRA_HUGE_SIZE - 1;
	const struct hva_range blocks = { { r.start.v & ~mask }, { (r.end.v + mask) & ~mask } };
	bool file;

	pthread_mutex_lock(&u->lock);
	file = ranges_kind(u, blocks).has_file;
	pthread_mutex_unlock(&u->lock);
	return file && ((r.start.v | r.end.v) & mask) ? blocks : (struct hva_range){ { 0 }, { 0 } };
}

bool uffd_range_private(struct umbra_uffd *u, struct hva_range r)
{
	bool is_private;

	pthread_mutex_lock(&u->lock);
	is_private = u->ranges_lost || ranges_kind(u, r).is_private;
	pthread_mutex_unlock(&u->lock);
	return is_private;
}

/* Private unless each mapping in @r is known to be shared; of a file unless each is known to be anonymous, or of hugetlb. */
static struct uffd_range range_kind(const struct umbra_uffd *u, struct hva_range r)
{
	struct uffd_range kind = { .is_private = false };
	struct host_vma vma;

	for (hva_t at = r.start; at.v < r.end.v; at = vma.hva.end) {
		if (!u->own || !u->own->map || hostmap_vma(u->own->map, at, &vma))
			return (struct uffd_range){ .is_private = true, .has_file = true };
		kind.is_private |= !(vma.flags & UMBRA_VMA_SHARED);
		kind.has_file |= vma.file && vma.page <= UMBRA_PAGE_SIZE;
	}
	return kind;
}

static struct uffdio_range uffd_range_of(struct hva_range r)
{
	return (struct uffdio_range){ r.start.v, r.end.v - r.start.v };
}

/* (Un)registering a part of a mapping cuts it, and a 2M page at the cut is mapped by 4K then. */
static int edges_start(const struct umbra_uffd *u, struct hva_range r, struct plan *plan,
		       struct umbra_range *range)
{
	static struct umbra_own no_map = { .regions_lock = PTHREAD_MUTEX_INITIALIZER };
	int err = plan_madvise(u->own ? u->own : &no_map, r, MADV_NORMAL, plan);

	range->nr = 0;
	if (err || !plan->nr)
		return err;
	*range = (struct umbra_range){
		.hull = { plan->v[0].start, plan->v[plan->nr - 1].end },
		.v = plan->nr > 1 ? plan->v : NULL,
		.nr = plan->nr > 1 ? plan->nr : 0,
		.flags = UMBRA_RANGE_BLOCKABLE,
		.cause = UMBRA_CAUSE_SPLIT,
		.source = UMBRA_SOURCE_OWN,
		.who = own_tid(),
	};
	return umbra_invalidate_start(u->chain, range);
}

static void edges_end(const struct umbra_uffd *u, const struct plan *plan,
		      const struct umbra_range *range)
{
	if (plan->nr)
		umbra_invalidate_end(u->chain, range);
}

/* EINVAL says both "that kind of memory has not that mode" and "nonsense". */
static int register_errno(struct hva_range r, int err)
{
	unsigned char resident;
	const void *p = (const void *)(uintptr_t)r.start.v;

	if (err != EINVAL || hva_range_empty(r) || ((r.start.v | r.end.v) & (UMBRA_PAGE_SIZE - 1)))
		return -err;
	return mincore((void *)(uintptr_t)p, UMBRA_PAGE_SIZE, &resident) ? -EINVAL : -ENOTSUP;
}

int umbra_uffd_register(struct umbra_uffd *u, struct hva_range r, uint32_t modes)
{
	struct uffdio_register reg = { .range = uffd_range_of(r) };
	unsigned int phase = 0;
	struct umbra_range range;
	struct plan plan;
	int err;

	if (!modes || (modes & ~(uint32_t)(UMBRA_UFFD_MISSING | UMBRA_UFFD_WP | UMBRA_UFFD_MINOR)))
		return -EINVAL;
	if (modes & UMBRA_UFFD_MISSING)
		reg.mode |= UFFDIO_REGISTER_MODE_MISSING;
	if (modes & UMBRA_UFFD_WP)
		reg.mode |= UFFDIO_REGISTER_MODE_WP;
	if (modes & UMBRA_UFFD_MINOR)
		reg.mode |= UFFDIO_REGISTER_MODE_MINOR;
	if (u->own)
		phase = own_plan_begin(u->own);
	err = edges_start(u, r, &plan, &range);
	if (!err) {
		uffd_watch_begin(u->own);
		err = ioctl(u->fd, UFFDIO_REGISTER, &reg) ? register_errno(r, errno) : 0;
		if (!err)
			uffd_ranges_add(u, r, range_kind(u, r));
		uffd_watch_end(u->own);
		edges_end(u, &plan, &range);
	}
	if (u->own)
		own_plan_end(u->own, phase);
	plan_fini(&plan);
	return err;
}

int umbra_uffd_unregister(struct umbra_uffd *u, struct hva_range r)
{
	struct uffdio_range arg = uffd_range_of(r);
	unsigned int phase = 0;
	struct umbra_range range;
	struct plan plan;
	int err;

	if (u->own)
		phase = own_plan_begin(u->own);
	err = edges_start(u, r, &plan, &range);
	if (!err) {
		uffd_watch_begin(u->own);
		err = ioctl(u->fd, UFFDIO_UNREGISTER, &arg) ? -errno : 0;
		if (!err)
			uffd_ranges_remove(u, r);
		uffd_watch_end(u->own);
		edges_end(u, &plan, &range);
	}
	if (u->own)
		own_plan_end(u->own, phase);
	plan_fini(&plan);
	return err;
}

/* ---- resolving --------------------------------------------------------------------------------
 */

/*
 * EAGAIN: an event of this context was unread, on whatever address. The reader reads it itself, and
 * puts faults by; anybody else gives the reader time. False: nobody reads.
 */
static bool let_events_pass(struct umbra_uffd *u, long *backoff_ns)
{
	const struct timespec pause = { .tv_nsec = *backoff_ns };

	atomic_fetch_add(&u->eagain, 1);
	if (uffd_on_reader(u))
		uffd_read_all(u);
	else if (!atomic_load(&u->running))
		return false;
	nanosleep(&pause, NULL);
	if (*backoff_ns < BACKOFF_MAX_NS)
		*backoff_ns *= 2;
	return true;
}

/* One ioctl on [@at, @at + @len): progress in bytes or negative errno, as the kernel's in/out
 * fields say. */
typedef int64_t step_fn(struct umbra_uffd *u, uint64_t at, uint64_t len, const void *src);

static int resolve_all(struct umbra_uffd *u, step_fn *step, struct hva_range r, const void *src,
		       uint64_t *done)
{
	const uint64_t len = r.end.v - r.start.v;
	long backoff_ns = BACKOFF_MIN_NS;
	uint64_t at = 0;
	int err = 0;

	while (!err && at < len) {
		const int64_t n =
			step(u, r.start.v + at, len - at, src ? (const char *)src + at : NULL);

		if (n > 0)
			at += (uint64_t)n;
		else if (n != -EAGAIN)
			err = n ? (int)n : -EIO;
		else if (!let_events_pass(u, &backoff_ns))
			err = -EAGAIN;
	}
	if (done)
		*done = at;
	return err;
}

/* What an ioctl got done: its own count if there is any, else why not. */
static int64_t progress(int rc, int64_t count, uint64_t len)
{
	if (!rc)
		return (int64_t)len;
	return count > 0 ? count : -errno;
}

static int64_t step_copy(struct umbra_uffd *u, uint64_t at, uint64_t len, const void *src)
{
	struct uffdio_copy arg = { .dst = at, .src = (uintptr_t)src, .len = len };
	const int rc = ioctl(u->fd, UFFDIO_COPY, &arg);

	return progress(rc, arg.copy, len);
}

static int64_t step_zeropage(struct umbra_uffd *u, uint64_t at, uint64_t len, const void *src)
{
	struct uffdio_zeropage arg = { .range = { at, len } };
	const int rc = ioctl(u->fd, UFFDIO_ZEROPAGE, &arg);

	(void)src;
	return progress(rc, arg.zeropage, len);
}

static int64_t step_continue(struct umbra_uffd *u, uint64_t at, uint64_t len, const void *src)
{
	struct uffdio_continue arg = { .range = { at, len } };
	const int rc = ioctl(u->fd, UFFDIO_CONTINUE, &arg);

	(void)src;
	return progress(rc, arg.mapped, len);
}

static int64_t step_move(struct umbra_uffd *u, uint64_t at, uint64_t len, const void *src)
{
	struct uffdio_move arg = { .dst = at, .src = (uintptr_t)src, .len = len };
	const int rc = ioctl(u->fd, UFFDIO_MOVE, &arg);

	return progress(rc, arg.move, len);
}

static int64_t step_poison(struct umbra_uffd *u, uint64_t at, uint64_t len, const void *src)
{
	struct uffdio_poison arg = { .range = { at, len } };
	const int rc = ioctl(u->fd, UFFDIO_POISON, &arg);

	(void)src;
	return progress(rc, arg.updated, len);
}

static int64_t protect(struct umbra_uffd *u, uint64_t at, uint64_t len, uint64_t mode)
{
	struct uffdio_writeprotect arg = { .range = { at, len }, .mode = mode };

	return progress(ioctl(u->fd, UFFDIO_WRITEPROTECT, &arg), 0, len);
}

static int64_t step_protect(struct umbra_uffd *u, uint64_t at, uint64_t len, const void *src)
{
	(void)src;
	return protect(u, at, len, UFFDIO_WRITEPROTECT_MODE_WP);
}

static int64_t step_unprotect(struct umbra_uffd *u, uint64_t at, uint64_t len, const void *src)
{
	(void)src;
	return protect(u, at, len, 0);
}

int umbra_uffd_copy(struct umbra_uffd *u, hva_t dst, const void *src, uint64_t len, uint64_t *done)
{
	return resolve_all(u, step_copy, (struct hva_range){ dst, { dst.v + len } }, src, done);
}

int umbra_uffd_zeropage(struct umbra_uffd *u, struct hva_range r, uint64_t *done)
{
	return resolve_all(u, step_zeropage, r, NULL, done);
}

int umbra_uffd_continue(struct umbra_uffd *u, struct hva_range r, uint64_t *done)
{
	return resolve_all(u, step_continue, r, NULL, done);
}

int umbra_uffd_poison(struct umbra_uffd *u, struct hva_range r)
{
	return resolve_all(u, step_poison, r, NULL, NULL);
}

int umbra_uffd_wake(struct umbra_uffd *u, struct hva_range r)
{
	struct uffdio_range arg = uffd_range_of(r);

	return ioctl(u->fd, UFFDIO_WAKE, &arg) ? -errno : 0;
}

/* Taking protection away leaves every translation right: only setting it is announced. */
int umbra_uffd_writeprotect(struct umbra_uffd *u, struct hva_range r, bool on)
{
	/* The reader may not wait for a vCPU, see range_of() in uffd.c. */
	const struct umbra_range range = {
		.hull = r,
		.flags = uffd_on_reader(u) ? UMBRA_RANGE_FORCED : UMBRA_RANGE_BLOCKABLE,
		.cause = UMBRA_CAUSE_PROTECT,
		.source = UMBRA_SOURCE_OWN,
		.who = own_tid(),
	};
	int err;

	if (!on)
		return resolve_all(u, step_unprotect, r, NULL, NULL);
	err = umbra_invalidate_start(u->chain, &range);
	if (err)
		return err;
	err = resolve_all(u, step_protect, r, NULL, NULL);
	umbra_invalidate_end(u->chain, &range);
	return err;
}

int umbra_uffd_move(struct umbra_uffd *u, hva_t dst, hva_t src, uint64_t len, uint64_t *done)
{
	const struct hva_range from = { src, { src.v + len } }, to = { dst, { dst.v + len } };
	/* a part of a large folio can only leave it when it is split, which may move the rest */
	const struct hva_range v[2] = { u->own ? own_widen_folios(u->own, from) : from, to };
	const struct umbra_range range = {
		.hull = { v[0].start.v < to.start.v ? v[0].start : to.start,
			  v[0].end.v > to.end.v ? v[0].end : to.end },
		.v = v,
		.nr = 2,
		.flags = UMBRA_RANGE_RELOCATES |
			 (uffd_on_reader(u) ? UMBRA_RANGE_FORCED : UMBRA_RANGE_BLOCKABLE),
		.cause = UMBRA_CAUSE_REMAP,
		.source = UMBRA_SOURCE_OWN,
		.who = own_tid(),
	};
	int err = umbra_invalidate_start(u->chain, &range);

	if (err)
		return err;
	err = resolve_all(u, step_move, to, (const void *)(uintptr_t)src.v, done);
	umbra_invalidate_end(u->chain, &range);
	return err;
}
