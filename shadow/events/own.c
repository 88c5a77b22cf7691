/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls: what all of them share, the bracket round a system call. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "shadow/events/own.h"

int umbra_own_create(struct umbra_own **out, struct umbra_chain *chain, struct umbra_hostmap *map)
{
	struct umbra_own *own = aligned_alloc(_Alignof(struct umbra_own), sizeof(*own));

	if (!own)
		return -ENOMEM;
	memset(own, 0, sizeof(*own));
	own_tid_init();
	own->chain = chain;
	own->map = map;
	pthread_mutex_init(&own->regions_lock, NULL);
	pthread_mutex_init(&own->plans_lock, NULL);
	pthread_cond_init(&own->plans_over, NULL);
	*out = own;
	return 0;
}

void umbra_own_destroy(struct umbra_own *own)
{
	if (!own)
		return;
	pthread_cond_destroy(&own->plans_over);
	pthread_mutex_destroy(&own->plans_lock);
	pthread_mutex_destroy(&own->regions_lock);
	free(own->regions);
	free(own);
}

/* ---- plans under way --------------------------------------------------------------------------
 */

unsigned int own_plan_begin(struct umbra_own *own)
{
	unsigned int phase;

	pthread_mutex_lock(&own->plans_lock);
	phase = own->phase;
	own->planning[phase]++;
	atomic_fetch_add(&own->planners, 1);
	pthread_mutex_unlock(&own->plans_lock);
	return phase;
}

void own_plan_end(struct umbra_own *own, unsigned int phase)
{
	pthread_mutex_lock(&own->plans_lock);
	atomic_fetch_sub(&own->planners, 1);
	if (!--own->planning[phase])
		pthread_cond_broadcast(&own->plans_over);
	pthread_mutex_unlock(&own->plans_lock);
}

/* Two phases, so that those who begin to plan meanwhile are not waited for. */
void own_grace_wait(struct umbra_own *own)
{
	unsigned int old;

	pthread_mutex_lock(&own->plans_lock);
	while (own->planning[!own->phase]) /* somebody else waits for these */
		pthread_cond_wait(&own->plans_over, &own->plans_lock);
	old = own->phase;
	own->phase = !old;
	while (own->planning[old] && own->phase != old)
		pthread_cond_wait(&own->plans_over, &own->plans_lock);
	pthread_mutex_unlock(&own->plans_lock);
}

/* ---- the bracket ------------------------------------------------------------------------------
 */

/* What it returns stays valid as long as @plan. */
static struct umbra_range plan_range(struct plan *plan)
{
	struct umbra_range r = bracket_of(plan->hold, plan->cause, plan->relocates);

	for (uint32_t i = 0; i < plan->nr; i++)
		hva_range_join(&r.hull, plan->v[i]);
	if (plan->nr == 1 && hva_range_empty(plan->hold))
		return r;
	r.v = plan->v;
	r.nr = plan->nr;
	if (!plan->nr) { /* one part, empty: the hull is closed and nothing is dropped */
		plan->v[0] = (struct hva_range){ r.hull.start, r.hull.start };
		r.nr = 1;
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

	own_grace(own);
	umbra_invalidate_end(own->chain, &range);
}

int bracket_start(struct umbra_own *own, struct plan *plan, const struct hva_range *removes,
		  uint32_t n, struct bracket *b)
{
	int err;

	b->call = NULL;
	b->open = b->more_open = b->cut = false;
	if (!plan->nr && hva_range_empty(plan->hold))
		return 0;
	b->range = plan_range(plan);
	err = umbra_invalidate_start(own->chain, &b->range);
	if (err)
		return err;
	b->open = true;
	b->call = own_call_enter(own, removes, n);
	return 0;
}

/* Nothing was changed, so nobody is waited for. */
static void bracket_abort(struct umbra_own *own, struct bracket *b, int err)
{
	own_call_leave(own, b->call, err);
	umbra_invalidate_end(own->chain, &b->range);
}

int bracket_widen(struct umbra_own *own, const struct plan *plan, struct bracket *b)
{
	struct plan *again = &b->again;
	uint32_t nr = 0;
	int err;

	for (uint32_t i = 0; i < again->nr; i++)
		if (!plan_covers(plan, again->v[i]))
			again->v[nr++] = again->v[i];
	again->nr = nr;
	again->hold = (struct hva_range){ 0 };
	if (!nr)
		return 0;
	b->more = plan_range(again);
	err = umbra_invalidate_start(own->chain, &b->more);
	b->more_open = !err;
	if (err)
		bracket_abort(own, b, err);
	return err;
}

int bracket_cuts(struct umbra_own *own, const struct plan *plan, struct bracket *b)
{
	int err = 0;

	if (!b->open || !atomic_load(&own->files))
		return 0;
	plan_init(&b->again, UMBRA_CAUSE_SPLIT, false);
	for (uint32_t i = 0; !err && i < plan->nr; i++)
		err = plan_file_edges(own, plan->v[i], &b->again);
	if (err)
		bracket_abort(own, b, err);
	else
		err = bracket_widen(own, plan, b);
	if (err)
		plan_fini(&b->again);
	b->cut = !err;
	return err;
}

void bracket_end(struct umbra_own *own, struct bracket *b, int result)
{
	own_call_leave(own, b->call, result);
	if (!b->open)
		return;
	own_grace(own);
	if (b->more_open)
		umbra_invalidate_end(own->chain, &b->more);
	umbra_invalidate_end(own->chain, &b->range);
	if (b->cut)
		plan_fini(&b->again);
}
