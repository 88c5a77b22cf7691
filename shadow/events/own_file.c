/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls whose change is found by the regions: fallocate, ftruncate, fork. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>
#include "shadow/events/own.h"

#ifndef FALLOC_FL_PUNCH_HOLE
#include <linux/falloc.h>
#endif

/* @mode of a call that is ftruncate. */
#define MODE_TRUNCATE (-1)

static int plan_file(struct umbra_own *own, int fd, int mode, uint64_t offset, uint64_t len,
		     struct plan *plan)
{
	const uint64_t end = offset + len < offset ? ~0ULL : offset + len;

	plan_init(plan, UMBRA_CAUSE_REMOVE, true);
	/* Whatever the file's size is now: another thread may extend it before the call. */
	if (mode == MODE_TRUNCATE)
		return region_plan_file(own, fd, len, ~0ULL, plan);
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		return region_plan_file(own, fd, offset, end, plan);
	if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE))
		return region_plan_file(own, fd, offset & ~(UMBRA_PAGE_SIZE - 1), ~0ULL, plan);
	return 0;
}

/* Opens what was planned, if that succeeded (@err). On error nothing is open, and there is no plan. */
static int open_plan(struct umbra_own *own, unsigned int phase, struct plan *plan,
		     struct bracket *b, int err)
{
	if (!err)
		err = bracket_start(own, plan, NULL, 0, b);
	if (err) {
		own_plan_end(own, phase);
		plan_fini(plan);
	}
	return err;
}

static void close_plan(struct umbra_own *own, unsigned int phase, struct plan *plan,
		       struct bracket *b, int err)
{
	own_plan_end(own, phase);
	bracket_end(own, b, err);
	plan_fini(plan);
}

static int call_file(struct umbra_own *own, int fd, int mode, uint64_t offset, uint64_t len)
{
	const unsigned int phase = own_plan_begin(own);
	struct plan plan;
	struct bracket b;
	int err = plan_file(own, fd, mode, offset, len, &plan);

	err = open_plan(own, phase, &plan, &b, err);
	if (err)
		return err;
	if (mode == MODE_TRUNCATE)
		err = ftruncate(fd, (off_t)len) ? -errno : 0;
	else
		err = fallocate(fd, mode, (off_t)offset, (off_t)len) ? -errno : 0;
	close_plan(own, phase, &plan, &b, err);
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
	const unsigned int phase = own_plan_begin(own);
	struct plan plan;
	struct bracket b;
	pid_t pid = -1;
	int err;

	plan_init(&plan, UMBRA_CAUSE_FORK, false);
	err = open_plan(own, phase, &plan, &b, region_plan_fork(own, &plan));
	if (err)
		return err;
	pid = fork();
	err = pid < 0 ? -errno : 0;
	/* The child has a copy of the chain with somebody's locks in it: it must not touch it, nor
	 * the MMU. */
	if (!pid)
		return 0;
	close_plan(own, phase, &plan, &b, err);
	return err ? err : pid;
}
