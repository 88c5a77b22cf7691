/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls: plan, start, the system call, end. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "shadow/events/own.h"

#ifndef FALLOC_FL_PUNCH_HOLE
#include <linux/falloc.h>
#endif

int umbra_own_create(struct umbra_own **out, struct umbra_chain *chain, struct umbra_hostmap *map)
{
	struct umbra_own *own = calloc(1, sizeof(*own));

	if (!own)
		return -ENOMEM;
	own_tid_init();
	own->chain = chain;
	own->map = map;
	own->regions_gen = 1;
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

static void shift_begin(struct umbra_own *own)
{
	atomic_fetch_add(&own->shifts_begun, 1);
}

static void shift_end(struct umbra_own *own)
{
	atomic_fetch_add(&own->shifts_ended, 1);
}

/* How many shifts there were, or a number that never comes again if one is under way. */
static uint64_t shifts(struct umbra_own *own)
{
	const uint64_t ended = atomic_load(&own->shifts_ended);

	return atomic_load(&own->shifts_begun) == ended ? ended : ~0ULL;
}

static bool shifted(struct umbra_own *own, uint64_t before)
{
	return before == ~0ULL || before != shifts(own);
}

/* Only the blocks planned are collapsed: a block that was huge and is split meanwhile is left alone, as if asked before. */
static int call_planned(const struct plan *plan, struct hva_range r, int advice)
{
	int err, first = 0;

	if (advice != MADV_COLLAPSE)
		return call_madvise(r, advice);
	for (uint32_t i = 0; i < plan->calls; i++) {
		err = call_madvise(plan->v[i], advice);
		first = first ? first : err;
	}
	return first;
}

/* The plan was made on what another thread has changed since: announce what it may have left out. */
static void repair(struct umbra_own *own, struct hva_range r, const struct plan *plan)
{
	const uint64_t mask = UMBRA_HUGE_SIZE - 1;
	struct umbra_range range = bracket_of(r, plan->cause, plan->relocates);

	range.hull.start.v &= ~mask;
	range.hull.end.v = range.hull.end.v > ~mask ? ~0ULL : (range.hull.end.v + mask) & ~mask;
	range.flags |= UMBRA_RANGE_FORCED;
	umbra_invalidate_start(own->chain, &range);
	umbra_invalidate_end(own->chain, &range);
}

/* The regions changed while the call was made: what lies where the file is now may be old. */
static void announce(struct umbra_own *own, const struct plan *plan)
{
	struct umbra_range range;

	if (!plan->nr)
		return;
	range = plan_range(plan);
	range.flags |= UMBRA_RANGE_FORCED;
	umbra_invalidate_start(own->chain, &range);
	umbra_invalidate_end(own->chain, &range);
}

/* Everything, when there is no memory to say what. */
static void announce_all(struct umbra_own *own, enum umbra_cause cause, bool relocates)
{
	struct plan plan;

	plan_init(&plan, cause, relocates);
	plan_add(&plan, (struct hva_range){ { 0 }, { ~0ULL & ~(UMBRA_PAGE_SIZE - 1) } });
	announce(own, &plan);
}

int umbra_madvise(struct umbra_own *own, struct hva_range r, int advice)
{
	const bool forks = advice == MADV_DONTFORK || advice == MADV_DOFORK;
	const bool moves = advice == MADV_COLLAPSE;
	enum umbra_cause cause;
	struct bracket b;
	struct plan plan;
	bool relocates;
	uint64_t before;
	int err;

	if (hva_range_empty(r))
		return call_madvise(r, advice);
	if (plan_is_exact(advice, &cause, &relocates)) {
		const struct umbra_range range = bracket_of(r, cause, relocates);

		return madvise_exact(own, r, advice, &range);
	}
	before = shifts(own);
	err = plan_madvise(own, r, advice, &plan);
	if (!err && forks)
		err = region_reserve(own);
	if (!err)
		err = bracket_start(own, &plan, raises_remove(advice) ? r : (struct hva_range){ 0 },
				    &b);
	if (!err) {
		/* Too early rather than too late: a fork must not come between. */
		if (advice == MADV_DOFORK)
			region_set_dontfork(own, r, false);
		if (moves)
			shift_begin(own);
		err = call_planned(&plan, r, advice);
		if (moves)
			shift_end(own);
		else if (plan.cause != UMBRA_CAUSE_UNKNOWN && shifted(own, before))
			repair(own, r, &plan);
		if (plan.gen && !region_plan_holds(own, &plan))
			announce_all(own, plan.cause, plan.relocates);
		if (!err && advice == MADV_DONTFORK)
			region_set_dontfork(own, r, true);
		bracket_end(own, &b, err);
	}
	plan_fini(&plan);
	return err;
}

int umbra_madvise_batch(struct umbra_own *own, const struct hva_range *v, uint32_t n, int advice,
			uint32_t *done)
{
	const bool moves = advice == MADV_COLLAPSE;
	enum umbra_cause cause;
	bool relocates;
	uint32_t good = 0;
	uint64_t before;
	struct bracket b;
	struct plan plan, one;
	int err = 0, first = 0;

	if (done)
		*done = 0;
	if (!n)
		return 0;
	plan_init(&plan, UMBRA_CAUSE_UNKNOWN, false);
	before = shifts(own);
	for (uint32_t i = 0; !err && i < n; i++) {
		/* Every block, huge now or not: it may be split before its turn comes. */
		plan_init(&one, UMBRA_CAUSE_COLLAPSE, true);
		if (moves)
			err = plan_add(&one, v[i]) || region_plan_advice(own, v[i], advice, &one)
				      ? -ENOMEM
				      : 0;
		else
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
	if (moves)
		shift_begin(own);
	for (uint32_t i = 0; i < n; i++) {
		err = call_madvise(v[i], advice);
		if (!err && (advice == MADV_DONTFORK || advice == MADV_DOFORK) &&
		    !region_reserve(own))
			region_set_dontfork(own, v[i], advice == MADV_DONTFORK);
		good += !err;
		first = first ? first : err;
	}
	if (moves)
		shift_end(own);
	else if (!plan_is_exact(advice, &cause, &relocates) && shifted(own, before))
		for (uint32_t i = 0; i < n; i++)
			repair(own, v[i], &plan);
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

/* Of length 0, mremap maps the same bytes once more. */
static void moved(struct umbra_own *own, struct hva_range from, struct hva_range to, int flags)
{
	const struct hva_range now = hva_range_widen(to);
	bool stays = flags & MREMAP_DONTUNMAP;

	if (!len_of(from)) {
		from.end.v = from.start.v + (to.end.v - to.start.v);
		stays = true;
	}
	region_move(own, hva_range_widen(from), now, stays);
}

int umbra_mremap(struct umbra_own *own, struct hva_range from, uint64_t new_len, int flags,
		 hva_t to, hva_t *result)
{
	const bool in_place = len_of(from) && !(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP));
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
	shift_begin(own);
	err = call_mremap(from, new_len, flags, to, &now);
	shift_end(own);
	if (!err)
		moved(own, from, (struct hva_range){ now, { now.v + new_len } }, flags);
	bracket_end(own, &b, err);
	if (!err)
		*result = now;
	return err;
out:
	if (!err) {
		moved(own, from, (struct hva_range){ now, { now.v + new_len } }, flags);
		*result = now;
	}
	return err;
}

/* ---- files ---------------------------------------------------------------------------------- */

/* @mode of a call that is ftruncate. */
#define MODE_TRUNCATE (-1)

static int plan_file(struct umbra_own *own, int fd, int mode, uint64_t offset, uint64_t len,
		     struct plan *plan)
{
	const uint64_t end = offset + len < offset ? ~0ULL : offset + len;
	struct stat st;

	plan_init(plan, UMBRA_CAUSE_REMOVE, true);
	if (mode == MODE_TRUNCATE)
		return !fstat(fd, &st) && len < (uint64_t)st.st_size
			       ? region_plan_file(own, fd, len, ~0ULL, plan)
			       : 0;
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		return region_plan_file(own, fd, offset, end, plan);
	if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE))
		return region_plan_file(own, fd, offset & ~(UMBRA_PAGE_SIZE - 1), ~0ULL, plan);
	return 0;
}

static int call_file(struct umbra_own *own, int fd, int mode, uint64_t offset, uint64_t len)
{
	struct plan plan, now;
	struct bracket b;
	int err;

	/* Each turn means that another thread's call came through. */
	for (;;) {
		err = plan_file(own, fd, mode, offset, len, &plan);
		if (!err)
			err = bracket_start(own, &plan, (struct hva_range){ 0 }, &b);
		if (err) {
			plan_fini(&plan);
			return err;
		}
		if (!plan.gen || region_plan_holds(own, &plan))
			break;
		bracket_end(own, &b, 0);
		plan_fini(&plan);
	}
	if (mode == MODE_TRUNCATE)
		err = ftruncate(fd, (off_t)len) ? -errno : 0;
	else
		err = fallocate(fd, mode, (off_t)offset, (off_t)len) ? -errno : 0;
	if (plan.gen && !region_plan_holds(own, &plan)) {
		plan_init(&now, UMBRA_CAUSE_REMOVE, true);
		if (region_plan_file(own, fd, 0, ~0ULL, &now))
			announce_all(own, UMBRA_CAUSE_REMOVE, true);
		else
			announce(own, &now);
		plan_fini(&now);
	}
	bracket_end(own, &b, err);
	plan_fini(&plan);
	return err;
}

int umbra_fallocate(struct umbra_own *own, int fd, int mode, uint64_t offset, uint64_t len)
{
	return call_file(own, fd, mode < 0 ? INT_MAX : mode, offset, len);
}

int umbra_ftruncate(struct umbra_own *own, int fd, uint64_t len)
{
	return call_file(own, fd, MODE_TRUNCATE, 0, len);
}

/* ---- fork -------------------------------------------------------------------------------------
 */

pid_t umbra_fork(struct umbra_own *own)
{
	struct plan plan, now;
	struct bracket b;
	pid_t pid;
	int err;

	for (;;) {
		plan_init(&plan, UMBRA_CAUSE_FORK, false);
		err = region_plan_fork(own, &plan);
		if (!err)
			err = bracket_start(own, &plan, (struct hva_range){ 0 }, &b);
		if (err) {
			plan_fini(&plan);
			return err;
		}
		if (region_plan_holds(own, &plan))
			break;
		bracket_end(own, &b, 0);
		plan_fini(&plan);
	}
	shift_begin(own);
	pid = fork();
	err = pid < 0 ? -errno : 0;
	shift_end(own);
	/* The child has a copy of the chain with somebody's locks in it: it must not touch it, nor
	 * the MMU. */
	if (!pid)
		return 0;
	if (!region_plan_holds(own, &plan)) {
		plan_init(&now, UMBRA_CAUSE_FORK, false);
		if (region_plan_fork(own, &now))
			announce_all(own, UMBRA_CAUSE_FORK, false);
		else
			announce(own, &now);
		plan_fini(&now);
	}
	bracket_end(own, &b, err);
	plan_fini(&plan);
	return err ? err : pid;
}
