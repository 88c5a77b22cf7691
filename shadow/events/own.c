/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls: what all of them share, the bracket round a system call. */
#include <errno.h>
#include <stdlib.h>
#include "shadow/events/own.h"

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

struct umbra_range bracket_of(struct hva_range hull, enum umbra_cause cause, bool relocates)
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

int bracket_start(struct umbra_own *own, const struct plan *plan, struct hva_range removes,
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

void bracket_end(struct umbra_own *own, struct bracket *b, int result)
{
	own_call_leave(own, b->call, result);
	if (b->open)
		umbra_invalidate_end(own->chain, &b->range);
}

/* The regions changed while the call was made: what lies where the file is now may be old. */
void announce(struct umbra_own *own, const struct plan *plan)
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
void announce_all(struct umbra_own *own, enum umbra_cause cause, bool relocates)
{
	struct plan plan;

	plan_init(&plan, cause, relocates);
	plan_add(&plan, (struct hva_range){ { 0 }, { ~0ULL & ~(UMBRA_PAGE_SIZE - 1) } });
	announce(own, &plan);
}
