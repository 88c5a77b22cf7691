/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls: madvise, one range or a batch. */
#include <errno.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "shadow/events/own.h"

static bool raises_remove(int advice)
{
	return advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_REMOVE ||
	       advice == MADV_DONTNEED_LOCKED;
}

static int call_madvise(struct hva_range r, int advice)
{
	return madvise(hva_ptr(r.start), hva_range_len(r), advice) ? -errno : 0;
}

/* One exact range: the path of a balloon or pager, without a plan. */
static int madvise_exact(struct umbra_own *own, struct hva_range r, int advice,
			 enum umbra_cause cause, bool relocates)
{
	const struct umbra_range range = bracket_of(r, cause, relocates);
	struct own_call *call;
	int err = umbra_invalidate_start(own->chain, &range);

	if (err)
		return err;
	call = own_call_enter(own, &r, raises_remove(advice));
	err = call_madvise(r, advice);
	own_call_leave(own, call, err);
	own_grace(own);
	umbra_invalidate_end(own->chain, &range);
	return err;
}

/*
 * Of one range (@alone) only the blocks planned are collapsed: a block that was huge and is split meanwhile is left alone,
 * as if asked before.
 */
static int call_planned(struct umbra_own *own, const struct plan *plan, struct hva_range r,
			int advice, bool alone)
{
	int err, first = 0;

	if (advice == MADV_POPULATE_WRITE)
		return own_populate(own, plan, r);
	if (advice != MADV_COLLAPSE || !alone)
		return call_madvise(r, advice);
	for (uint32_t i = 0; i < plan->calls; i++) {
		err = call_madvise(plan->v[i], advice);
		first = first ? first : err;
	}
	return first;
}

/*
 * Advice whose plan other own calls could make wrong. Not advice that changes exactly its range; nor what
 * fills pages in: it may wait for a pager, and nobody should wait for that. What it holds is planned then.
 */
static bool plan_rests_on_others(int advice)
{
	enum umbra_cause cause;
	bool relocates;

	switch (advice) {
	case MADV_POPULATE_WRITE:
	case MADV_POPULATE_READ:
	case MADV_WILLNEED:
	case MADV_GUARD_REMOVE: return false;
	default: return !plan_is_exact(advice, &cause, &relocates);
	}
}

/* A batch, or one range. Of a batch every block is collapsed: one may be split before its turn. */
static int plan_all(const struct umbra_own *own, const struct hva_range *v, uint32_t n, int advice,
		    struct plan *plan)
{
	struct plan one;
	int err = 0;

	if (n == 1)
		return plan_madvise(own, *v, advice, plan);
	plan_init(plan, UMBRA_CAUSE_UNKNOWN, false);
	for (uint32_t i = 0; !err && i < n; i++) {
		plan_init(&one, UMBRA_CAUSE_COLLAPSE, true);
		if (advice != MADV_COLLAPSE)
			err = plan_madvise(own, v[i], advice, &one);
		else if (plan_add(&one, v[i]) || region_plan_advice(own, v[i], advice, &one))
			err = -ENOMEM;
		plan->cause = one.cause;
		plan->relocates |= one.relocates;
		hva_range_join(&plan->hold, one.hold);
		for (uint32_t k = 0; !err && k < one.nr; k++)
			err = plan_add(plan, one.v[k]);
		plan_fini(&one);
	}
	return err;
}

/*
 * A populate moves what a read has mapped, and more may be read at any time: held from before the plan,
 * its range needs to be looked at only once.
 */
static int plan_first(const struct umbra_own *own, const struct hva_range *v, uint32_t n,
		      int advice, struct plan *plan)
{
	if (advice != MADV_POPULATE_WRITE || !own->map)
		return plan_all(own, v, n, advice, plan);
	plan_init(plan, UMBRA_CAUSE_COW, true);
	for (uint32_t i = 0; i < n; i++)
		hva_range_join(&plan->hold, hva_range_widen(v[i]));
	return 0;
}

/* Plans and opens. On error nothing is open, and there is no plan. */
static int open_planned(struct umbra_own *own, const struct hva_range *v, uint32_t n, int advice,
			struct plan *plan, struct bracket *b)
{
	int err = plan_first(own, v, n, advice, plan);

	if (!err)
		err = bracket_start(own, plan, v, raises_remove(advice) ? n : 0, b);
	if (err)
		goto out;
	if (hva_range_empty(plan->hold)) {
		err = bracket_cuts(own, plan, b);
		goto out;
	}
	err = plan_all(own, v, n, advice, &b->again);
	if (err) { /* no memory to say what */
		plan_fini(&b->again);
		plan_init(&b->again, plan->cause, true);
		plan_add(&b->again, plan->hold);
	}
	err = bracket_widen(own, plan, b);
	if (err)
		plan_fini(&b->again);
out:
	if (err)
		plan_fini(plan);
	return err;
}

static void close_planned(struct umbra_own *own, struct plan *plan, struct bracket *b, int result)
{
	bracket_end(own, b, result);
	if (!hva_range_empty(plan->hold))
		plan_fini(&b->again);
	plan_fini(plan);
}

/*
 * Many ranges in one call and with one flush of the TLB: Linux 6.16. What the kernel refuses before that, or because of
 * one range, is done range by range.
 */
#define MANY       128
#define MANY_BYTES (1ULL << 30) /* the kernel stops in the middle of a range at 2 GiB */

static bool takes_many(int advice, uint32_t n)
{
	return n > 1 &&
	       (advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED || advice == MADV_FREE);
}

/* Returns: how many from the first on were done, 0 if that one must be done by itself; @many: ask again? */
static uint32_t call_many(const struct hva_range *v, uint32_t n, int advice, bool *many)
{
	struct iovec iov[MANY];
	uint32_t count = 0, good = 0;
	uint64_t bytes = 0;
	long done;

	while (count < n && count < MANY && !hva_range_empty(v[count]) &&
	       hva_range_len(v[count]) <= MANY_BYTES - bytes) {
		iov[count] = (struct iovec){ hva_ptr(v[count].start), hva_range_len(v[count]) };
		bytes += hva_range_len(v[count++]);
	}
	if (count < 2)
		return 0;
	done = syscall(SYS_process_madvise, PIDFD_SELF_THREAD, iov, count, advice, 0);
	if (done < 0) {
		*many = errno == EINVAL || errno == ENOMEM; /* of the first range, perhaps */
		return 0;
	}
	for (bytes = (uint64_t)done; good < count && iov[good].iov_len <= bytes; good++)
		bytes -= iov[good].iov_len;
	return good;
}

static int madvise_planned(struct umbra_own *own, const struct hva_range *v, uint32_t n, int advice,
			   uint32_t *done)
{
	const bool waits = plan_rests_on_others(advice);
	bool many = takes_many(advice, n);
	unsigned int phase = 0;
	struct bracket b;
	struct plan plan;
	const struct plan *planned = &plan;
	int err, first;

	if (waits)
		phase = own_plan_begin(own);
	first = open_planned(own, v, n, advice, &plan, &b);
	if (first) {
		if (waits)
			own_plan_end(own, phase);
		return first;
	}
	if (advice == MADV_POPULATE_WRITE && !hva_range_empty(plan.hold))
		planned = &b.again;
	for (uint32_t i = 0, some; i < n; i++) {
		some = many ? call_many(&v[i], n - i, advice, &many) : 0;
		*done += some;
		i += some;
		if (i == n)
			break;
		err = call_planned(own, planned, v[i], advice, n == 1);
		if (!err && advice == MADV_DONTFORK && !region_reserve(own))
			region_set_dontfork(own, v[i], true);
		*done += !err;
		first = first ? first : err;
	}
	if (waits)
		own_plan_end(own, phase);
	close_planned(own, &plan, &b, first);
	return first;
}

/*
 * Too early rather than too late: forks under way that do not know of it are waited for, before any
 * page of @v may be shared by one.
 */
static int dofork(struct umbra_own *own, const struct hva_range *v, uint32_t n)
{
	int err = 0;

	for (uint32_t i = 0; !err && i < n; i++) {
		err = region_reserve(own);
		if (!err)
			region_set_dontfork(own, v[i], false);
	}
	own_grace(own);
	return err;
}

/*
 * Advice that takes long for each page is made piece by piece, each in a bracket of its own: what is
 * closed to faults is never more than a piece. 0: in one.
 */
static uint64_t piece_of(int advice)
{
	switch (advice) {
	case MADV_POPULATE_WRITE: return 4 * UMBRA_HUGE_SIZE;
	case MADV_COLLAPSE: return 512 * UMBRA_HUGE_SIZE;
	default: return 0;
	}
}

static int madvise_pieces(struct umbra_own *own, struct hva_range r, int advice, uint64_t piece)
{
	uint32_t done = 0;
	int err = 0, first = 0;

	for (uint64_t at = r.start.v, end; at < r.end.v; at = end) {
		struct hva_range part = { { at }, r.end };

		if (r.end.v - at > piece)
			part.end.v = (at + piece) & ~(piece - 1);
		end = part.end.v;
		err = madvise_planned(own, &part, 1, advice, &done);
		first = first ? first : err;
		if (err && advice == MADV_POPULATE_WRITE)
			break;
	}
	return first;
}

static __attribute__((noinline)) int madvise_inexact(struct umbra_own *own, struct hva_range r,
						     int advice)
{
	const uint64_t piece = piece_of(advice);
	uint32_t done = 0;

	if (advice == MADV_DOFORK && dofork(own, &r, 1))
		return -ENOMEM;
	if (piece && hva_range_len(r) > piece)
		return madvise_pieces(own, r, advice, piece);
	return madvise_planned(own, &r, 1, advice, &done);
}

/* Short for what is exact; the rest is apart, or it would have its registers saved here (bench/inval_own.c). */
int umbra_madvise(struct umbra_own *own, struct hva_range r, int advice)
{
	const uint64_t mask = UMBRA_PAGE_SIZE - 1;
	enum umbra_cause cause;
	bool relocates;

	/* What the kernel refuses before it looks at any page. */
	if (hva_range_empty(r) || (r.start.v & mask) || r.end.v > ~mask)
		return call_madvise(r, advice);
	if (!plan_is_exact(advice, &cause, &relocates) ||
	    (atomic_load_explicit(&own->files, memory_order_relaxed) &&
	     ((r.start.v | r.end.v) & (UMBRA_HUGE_SIZE - 1))))
		return madvise_inexact(own, r, advice);
	return madvise_exact(own, r, advice, cause, relocates);
}

int umbra_madvise_batch(struct umbra_own *own, const struct hva_range *v, uint32_t n, int advice,
			uint32_t *done)
{
	uint32_t good = 0;
	int err = 0;

	if (n == 1) {
		err = umbra_madvise(own, *v, advice);
		good = !err;
	} else if (n) {
		if (advice == MADV_DOFORK)
			err = dofork(own, v, n);
		if (!err)
			err = madvise_planned(own, v, n, advice, &good);
	}
	if (done)
		*done = good;
	return err;
}
