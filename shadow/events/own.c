/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls: plan, start, the system call, end. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "shadow/events/own.h"
#include "shadow/events/uffd.h"

#ifndef FALLOC_FL_PUNCH_HOLE
#include <linux/falloc.h>
#endif

/* gettid is a system call, a fifth of a small madvise. A forked child has another tid: it asks
 * again. */
static _Thread_local int cached_tid;

static void forget_tid(void)
{
	cached_tid = 0;
}

static void watch_fork(void)
{
	pthread_atfork(NULL, NULL, forget_tid);
}

int own_tid(void)
{
	if (!cached_tid)
		cached_tid = (int)syscall(SYS_gettid);
	return cached_tid;
}

int umbra_own_create(struct umbra_own **out, struct umbra_chain *chain, struct umbra_hostmap *map)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct umbra_own *own = calloc(1, sizeof(*own));

	if (!own)
		return -ENOMEM;
	pthread_once(&once, watch_fork);
	own->chain = chain;
	own->map = map;
	pthread_mutex_init(&own->regions_lock, NULL);
	*out = own;
	return 0;
}

void umbra_own_destroy(struct umbra_own *own)
{
	if (!own)
		return;
	pthread_mutex_destroy(&own->regions_lock);
	free(own->regions);
	free(own);
}

/* ---- who is inside an own call -------------------------------------------------------------- */

struct own_call *own_call_enter(struct umbra_own *own, struct hva_range r, bool removes)
{
	const struct hva_range w = hva_range_widen(r);
	const int tid = own_tid();

	if (!atomic_load_explicit(&own->uffd, memory_order_acquire))
		return NULL;
	for (unsigned int i = 0; i < OWN_CALLS; i++) {
		struct own_call *call = &own->calls[((unsigned int)tid + i) % OWN_CALLS];
		int none = 0;

		if (atomic_load_explicit(&call->tid, memory_order_relaxed) ||
		    !atomic_compare_exchange_strong(&call->tid, &none, tid))
			continue;
		/* @end last: until then the call raises nothing, and is empty since it was left. */
		atomic_store(&call->start, w.start.v);
		atomic_store(&call->upto, w.start.v);
		atomic_store(&call->watched, atomic_load(&own->watched));
		atomic_store(&call->end, removes ? w.end.v : 0);
		return call;
	}
	return NULL; /* too many at once: taken for an outside caller, which only costs */
}

void own_call_leave(struct umbra_own *own, struct own_call *call, int result)
{
	struct hva_range r;
	struct umbra_uffd *uffd;
	bool doubt;

	if (!call)
		return;
	r = (struct hva_range){ { call->start }, { atomic_exchange(&call->end, 0) } };
	/* A call that failed on its way may not have raised what was taken for its own. */
	doubt = result < 0 && call->upto > r.start.v;
	atomic_store_explicit(&call->tid, 0, memory_order_release);
	uffd = doubt ? atomic_load(&own->uffd) : NULL;
	if (uffd)
		uffd_doubt(uffd, r);
}

bool own_call_of(struct umbra_own *own, int tid)
{
	for (unsigned int i = 0; i < OWN_CALLS; i++)
		if (atomic_load(&own->calls[i].tid) == tid)
			return true;
	return false;
}

bool own_call_claim(struct umbra_own *own, struct hva_range r)
{
	for (unsigned int i = 0; i < OWN_CALLS; i++) {
		struct own_call *call = &own->calls[i];
		uint64_t upto = atomic_load(&call->upto);

		if (!atomic_load(&call->tid) || r.end.v > atomic_load(&call->end) ||
		    r.start.v < atomic_load(&call->start) || r.start.v < upto ||
		    atomic_load(&call->watched) != atomic_load(&own->watched))
			continue;
		/* Left meanwhile: it may not have seen the claim. Partner: own_call_leave(), end
		 * before upto. */
		if (atomic_compare_exchange_strong(&call->upto, &upto, r.end.v))
			return atomic_load(&call->end) >= r.end.v;
	}
	return false;
}

/* ---- the bracket ------------------------------------------------------------------------------
 */

static struct umbra_range bracket_of(struct hva_range hull, enum umbra_cause cause, bool relocates)
{
	return (struct umbra_range){
		.hull = hull,
		.flags = UMBRA_RANGE_BLOCKABLE | (relocates ? UMBRA_RANGE_RELOCATES : 0U),
		.cause = cause,
		.source = UMBRA_SOURCE_OWN,
		.who = own_tid(),
	};
}

/* @r stays valid as long as @plan. */
static struct umbra_range plan_range(const struct plan *plan)
{
	struct umbra_range r = bracket_of(plan->v[0], plan->cause, plan->relocates);

	for (uint32_t i = 1; i < plan->nr; i++) {
		if (plan->v[i].start.v < r.hull.start.v)
			r.hull.start = plan->v[i].start;
		if (plan->v[i].end.v > r.hull.end.v)
			r.hull.end = plan->v[i].end;
	}
	if (plan->nr > 1) {
		r.v = plan->v;
		r.nr = plan->nr;
	}
	return r;
}

int umbra_own_start(struct umbra_own *own, struct hva_range r, enum umbra_cause cause,
		    bool relocates)
{
	const struct umbra_range range = bracket_of(r, cause, relocates);

	return hva_range_empty(r) ? -EINVAL : umbra_invalidate_start(own->chain, &range);
}

void umbra_own_end(struct umbra_own *own, struct hva_range r, enum umbra_cause cause,
		   bool relocates)
{
	const struct umbra_range range = bracket_of(r, cause, relocates);

	umbra_invalidate_end(own->chain, &range);
}

/* A bracket from a plan, or none if the plan is empty. */
struct bracket {
	struct umbra_range range;
	struct own_call *call;
	bool open;
};

static int bracket_start(struct umbra_own *own, const struct plan *plan, struct hva_range removes,
			 struct bracket *b)
{
	int err;

	*b = (struct bracket){ 0 };
	if (plan->nr) {
		b->range = plan_range(plan);
		err = umbra_invalidate_start(own->chain, &b->range);
		if (err)
			return err;
		b->open = true;
		b->call = own_call_enter(own, removes, !hva_range_empty(removes));
	}
	return 0;
}

static void bracket_end(struct umbra_own *own, struct bracket *b, int result)
{
	own_call_leave(own, b->call, result);
	if (b->open)
		umbra_invalidate_end(own->chain, &b->range);
}

static void *ptr(hva_t hva)
{
	return (void *)(uintptr_t)hva.v;
}

static uint64_t len_of(struct hva_range r)
{
	return r.end.v > r.start.v ? r.end.v - r.start.v : 0;
}

static bool raises_remove(int advice)
{
	return advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_REMOVE ||
	       advice == MADV_DONTNEED_LOCKED;
}

/* ---- madvise ------------------------------------------------------------------------------ */

static int call_madvise(struct hva_range r, int advice)
{
	return madvise(ptr(r.start), len_of(r), advice) ? -errno : 0;
}

/* One exact range: the path of a balloon or pager, without a plan. */
static int madvise_exact(struct umbra_own *own, struct hva_range r, int advice,
			 const struct umbra_range *range)
{
	struct own_call *call;
	int err = umbra_invalidate_start(own->chain, range);

	if (err)
		return err;
	call = own_call_enter(own, r, raises_remove(advice));
	err = call_madvise(r, advice);
	own_call_leave(own, call, err);
	umbra_invalidate_end(own->chain, range);
	return err;
}

int umbra_madvise(struct umbra_own *own, struct hva_range r, int advice)
{
	const bool forks = advice == MADV_DONTFORK || advice == MADV_DOFORK;
	enum umbra_cause cause;
	struct bracket b;
	struct plan plan;
	bool relocates;
	int err;

	if (hva_range_empty(r))
		return call_madvise(r, advice);
	if (plan_is_exact(advice, &cause, &relocates)) {
		const struct umbra_range range = bracket_of(r, cause, relocates);

		return madvise_exact(own, r, advice, &range);
	}
	err = plan_madvise(own, r, advice, &plan);
	if (!err && forks)
		err = region_reserve(own);
	if (!err)
		err = bracket_start(own, &plan, (struct hva_range){ 0 }, &b);
	if (!err) {
		err = call_madvise(r, advice);
		if (!err && forks)
			region_set_dontfork(own, r, advice == MADV_DONTFORK);
		bracket_end(own, &b, err);
	}
	plan_fini(&plan);
	return err;
}

int umbra_madvise_batch(struct umbra_own *own, const struct hva_range *v, uint32_t n, int advice,
			uint32_t *done)
{
	uint32_t good = 0;
	struct bracket b;
	struct plan plan, one;
	int err = 0, first = 0;

	if (done)
		*done = 0;
	if (!n)
		return 0;
	plan_init(&plan, UMBRA_CAUSE_UNKNOWN, false);
	for (uint32_t i = 0; !err && i < n; i++) {
		err = plan_madvise(own, v[i], advice, &one);
		plan.cause = one.cause;
		plan.relocates = one.relocates;
		for (uint32_t k = 0; !err && k < one.nr; k++)
			err = plan_add(&plan, one.v[k]);
		plan_fini(&one);
	}
	/* The reader takes no REMOVE of a batch for ours by its range: the hull has gaps. */
	if (!err)
		err = bracket_start(own, &plan, (struct hva_range){ 0 }, &b);
	if (err) {
		plan_fini(&plan);
		return err;
	}
	for (uint32_t i = 0; i < n; i++) {
		err = call_madvise(v[i], advice);
		if (!err && (advice == MADV_DONTFORK || advice == MADV_DOFORK) &&
		    !region_reserve(own))
			region_set_dontfork(own, v[i], advice == MADV_DONTFORK);
		good += !err;
		first = first ? first : err;
	}
	bracket_end(own, &b, first);
	plan_fini(&plan);
	if (done)
		*done = good;
	return first;
}

/* ---- mappings ----------------------------------------------------------------------------- */

int umbra_munmap(struct umbra_own *own, struct hva_range r)
{
	struct plan plan;
	struct bracket b;
	int err;

	plan_init(&plan, UMBRA_CAUSE_UNMAP, true);
	err = plan_add(&plan, r);
	if (!err)
		err = region_reserve(own);
	if (!err)
		err = bracket_start(own, &plan, (struct hva_range){ 0 }, &b);
	if (err)
		return err;
	err = munmap(ptr(r.start), len_of(r)) ? -errno : 0;
	if (!err)
		region_replace(own, r, NULL);
	bracket_end(own, &b, err);
	return err;
}

int umbra_mprotect(struct umbra_own *own, struct hva_range r, int prot)
{
	struct plan plan;
	struct bracket b;
	int err;

	plan_init(&plan, UMBRA_CAUSE_PROTECT, false);
	err = plan_add(&plan, r);
	if (!err)
		err = bracket_start(own, &plan, (struct hva_range){ 0 }, &b);
	if (err)
		return err;
	err = mprotect(ptr(r.start), len_of(r), prot) ? -errno : 0;
	bracket_end(own, &b, err);
	return err;
}

int umbra_mmap_over(struct umbra_own *own, struct hva_range r, int prot, int flags, int fd,
		    uint64_t offset)
{
	const struct umbra_region now = {
		.hva = r,
		.fd = flags & MAP_ANONYMOUS ? -1 : fd,
		.file_offset = offset,
		.is_private = (flags & MAP_TYPE) == MAP_PRIVATE,
	};
	struct plan plan;
	struct bracket b;
	int err;

	plan_init(&plan, UMBRA_CAUSE_UNMAP, true);
	err = plan_add(&plan, r);
	if (!err)
		err = region_reserve(own);
	if (!err)
		err = bracket_start(own, &plan, (struct hva_range){ 0 }, &b);
	if (err)
		return err;
	if (mmap(ptr(r.start), len_of(r), prot, flags | MAP_FIXED, fd, (off_t)offset) == MAP_FAILED)
		err = -errno;
	else
		region_replace(own, r, &now);
	bracket_end(own, &b, err);
	return err;
}

static int call_mremap(struct hva_range from, uint64_t new_len, int flags, hva_t to, hva_t *result)
{
	void *p = mremap(ptr(from.start), len_of(from), new_len, flags, ptr(to));

	if (p == MAP_FAILED)
		return -errno;
	result->v = (uintptr_t)p;
	return 0;
}

/* Old range and destination of a move; the tail of a shrink in place; nothing for growth in place.
 */
static int plan_mremap(struct hva_range from, uint64_t new_len, int flags, hva_t to,
		       struct plan *plan)
{
	int err;

	if (!(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) && new_len <= len_of(from))
		return plan_add(plan, (struct hva_range){ { from.start.v + new_len }, from.end });
	err = plan_add(plan, from);
	if (!err && (flags & MREMAP_FIXED))
		err = plan_add(plan, (struct hva_range){ to, { to.v + new_len } });
	return err;
}

int umbra_mremap(struct umbra_own *own, struct hva_range from, uint64_t new_len, int flags,
		 hva_t to, hva_t *result)
{
	const bool in_place = !(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP));
	hva_t now = from.start;
	struct plan plan;
	struct bracket b;
	int err;

	err = region_reserve(own);
	if (err)
		return err;
	/* Growth in place changes no page. Only when there is no room for it is anything moved. */
	if (in_place && new_len > len_of(from)) {
		err = call_mremap(from, new_len, 0, to, &now);
		if (!err || !(flags & MREMAP_MAYMOVE) || err != -ENOMEM)
			goto out;
	}
	plan_init(&plan, UMBRA_CAUSE_REMAP, true);
	err = plan_mremap(from, new_len, flags, to, &plan);
	if (!err)
		err = bracket_start(own, &plan, (struct hva_range){ 0 }, &b);
	if (err)
		return err;
	err = call_mremap(from, new_len, flags, to, &now);
	if (!err && (now.v != from.start.v || new_len != len_of(from)))
		region_move(own, from, (struct hva_range){ now, { now.v + new_len } });
	bracket_end(own, &b, err);
	if (!err)
		*result = now;
	return err;
out:
	if (!err) {
		region_move(own, from, (struct hva_range){ now, { now.v + new_len } });
		*result = now;
	}
	return err;
}

/* ---- files ---------------------------------------------------------------------------------- */

static int with_plan(struct umbra_own *own, struct plan *plan, int fd, int mode, uint64_t offset,
		     uint64_t len)
{
	struct bracket b;
	int err = bracket_start(own, plan, (struct hva_range){ 0 }, &b);

	if (!err) {
		if (mode < 0)
			err = ftruncate(fd, (off_t)len) ? -errno : 0;
		else
			err = fallocate(fd, mode, (off_t)offset, (off_t)len) ? -errno : 0;
		bracket_end(own, &b, err);
	}
	plan_fini(plan);
	return err;
}

int umbra_fallocate(struct umbra_own *own, int fd, int mode, uint64_t offset, uint64_t len)
{
	const uint64_t end = offset + len < offset ? ~0ULL : offset + len;
	struct plan plan;
	int err = 0;

	plan_init(&plan, UMBRA_CAUSE_REMOVE, true);
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		err = region_plan_file(own, fd, offset, end, &plan);
	else if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE))
		err = region_plan_file(own, fd, offset & ~(UMBRA_PAGE_SIZE - 1), ~0ULL, &plan);
	if (err) {
		plan_fini(&plan);
		return err;
	}
	return with_plan(own, &plan, fd, mode, offset, len);
}

int umbra_ftruncate(struct umbra_own *own, int fd, uint64_t len)
{
	struct plan plan;
	struct stat st;
	int err = 0;

	plan_init(&plan, UMBRA_CAUSE_REMOVE, true);
	if (!fstat(fd, &st) && len < (uint64_t)st.st_size)
		err = region_plan_file(own, fd, len, ~0ULL, &plan);
	if (err) {
		plan_fini(&plan);
		return err;
	}
	return with_plan(own, &plan, fd, -1, 0, len);
}

/* ---- fork -------------------------------------------------------------------------------------
 */

pid_t umbra_fork(struct umbra_own *own)
{
	struct plan plan;
	struct bracket b;
	pid_t pid;
	int err;

	plan_init(&plan, UMBRA_CAUSE_FORK, false);
	err = region_plan_fork(own, &plan);
	if (!err)
		err = bracket_start(own, &plan, (struct hva_range){ 0 }, &b);
	if (err) {
		plan_fini(&plan);
		return err;
	}
	pid = fork();
	err = pid < 0 ? -errno : 0;
	/* The child has a copy of the chain with somebody's locks in it: it must not touch it, nor
	 * the MMU. */
	if (!pid)
		return 0;
	bracket_end(own, &b, err);
	plan_fini(&plan);
	return err ? err : pid;
}
