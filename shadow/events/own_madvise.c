/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls: madvise, one range or a batch. */
#include <errno.h>
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
