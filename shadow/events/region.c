/* SPDX-License-Identifier: BSD-2-Clause */
/* Regions: what fork and the calls on files need to know of the guest's memory. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include "shadow/events/hostmap.h"
#include "shadow/events/own.h"

#define ROOM 64 /* regions that the calls under way may add between reserve and use */

static int reserve_locked(struct umbra_own *own, uint32_t more)
{
	struct own_region *v;

	if (own->nregions + more <= own->regions_cap)
		return 0;
	v = realloc(own->regions, (own->nregions + more) * sizeof(*v));
	if (!v)
		return -ENOMEM;
	own->regions = v;
	own->regions_cap = own->nregions + more;
	return 0;
}

int region_reserve(struct umbra_own *own)
{
	int err;

	pthread_mutex_lock(&own->regions_lock);
	err = reserve_locked(own, ROOM);
	pthread_mutex_unlock(&own->regions_lock);
	return err;
}

static uint32_t first_after(const struct umbra_own *own, uint64_t hva)
{
	uint32_t i = 0;

	while (i < own->nregions && own->regions[i].pub.hva.end.v <= hva)
		i++;
	return i;
}

/* Room was made. */
static void insert_locked(struct umbra_own *own, const struct own_region *r)
{
	const uint32_t i = first_after(own, r->pub.hva.start.v);

	memmove(&own->regions[i + 1], &own->regions[i],
		(own->nregions - i) * sizeof(*own->regions));
	own->regions[i] = *r;
	own->nregions++;
	if (r->pub.fd >= 0 && !r->pub.hugepage)
		atomic_store(&own->files, true);
}

static void remove_locked(struct umbra_own *own, uint32_t i)
{
	own->nregions--;
	memmove(&own->regions[i], &own->regions[i + 1],
		(own->nregions - i) * sizeof(*own->regions));
}

/* The part of @r from @hva on. */
static struct own_region tail_of(const struct own_region *r, uint64_t hva)
{
	struct own_region tail = *r;

	tail.pub.file_offset += hva - r->pub.hva.start.v;
	tail.pub.hva.start.v = hva;
	return tail;
}

/* Makes @hva a boundary between regions. False: no room. */
static bool split_at(struct umbra_own *own, uint64_t hva)
{
	const uint32_t i = first_after(own, hva);
	struct own_region *r = &own->regions[i], tail;

	if (i == own->nregions || r->pub.hva.start.v >= hva)
		return true;
	if (own->nregions == own->regions_cap)
		return false;
	tail = tail_of(r, hva);
	r->pub.hva.end.v = hva;
	insert_locked(own, &tail);
	return true;
}

uint64_t own_file_hugepage(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : 0;
}

static int identify(struct own_region *r)
{
	struct stat st;

	if (r->pub.fd < 0)
		return 0;
	if (fstat(r->pub.fd, &st))
		return -errno;
	if (!r->pub.hugepage)
		r->pub.hugepage = own_file_hugepage(r->pub.fd);
	r->dev = st.st_dev;
	r->ino = st.st_ino;
	return 0;
}

int umbra_region_add(struct umbra_own *own, const struct umbra_region *region)
{
	struct own_region r = { .pub = *region };
	int err = identify(&r);
	uint32_t i;

	if (err)
		return err;
	pthread_mutex_lock(&own->regions_lock);
	i = first_after(own, region->hva.start.v);
	if (i < own->nregions && hva_ranges_meet(own->regions[i].pub.hva, region->hva))
		err = -EEXIST;
	else
		err = reserve_locked(own, ROOM);
	if (!err)
		insert_locked(own, &r);
	pthread_mutex_unlock(&own->regions_lock);
	own_grace(own); /* for calls that did not know of it */
	return err;
}

/* Own calls may have split a region or cut holes into it: what is left of it between its two ends
 * goes. */
int umbra_region_remove(struct umbra_own *own, struct hva_range hva)
{
	uint32_t i, last;
	int err = -ENOENT;

	pthread_mutex_lock(&own->regions_lock);
	i = last = first_after(own, hva.start.v);
	while (last < own->nregions && own->regions[last].pub.hva.end.v < hva.end.v)
		last++;
	if (last < own->nregions && own->regions[i].pub.hva.start.v == hva.start.v &&
	    own->regions[last].pub.hva.end.v == hva.end.v) {
		for (uint32_t n = last - i + 1; n; n--)
			remove_locked(own, i);
		err = 0;
	}
	pthread_mutex_unlock(&own->regions_lock);
	return err;
}

bool region_has_file(struct umbra_own *own, struct hva_range r)
{
	bool found = false;

	pthread_mutex_lock(&own->regions_lock);
	for (uint32_t i = first_after(own, r.start.v); !found && i < own->nregions; i++) {
		if (!hva_ranges_meet(own->regions[i].pub.hva, r))
			break;
		found = own->regions[i].pub.fd >= 0 && !own->regions[i].pub.hugepage;
	}
	pthread_mutex_unlock(&own->regions_lock);
	return found;
}

bool region_page(struct umbra_own *own, hva_t hva, uint64_t *page)
{
	uint32_t i;
	bool found;

	pthread_mutex_lock(&own->regions_lock);
	i = first_after(own, hva.v);
	found = i < own->nregions && own->regions[i].pub.hva.start.v <= hva.v;
	if (found)
		*page = own->regions[i].pub.hugepage;
	pthread_mutex_unlock(&own->regions_lock);
	return found;
}

void region_set_dontfork(struct umbra_own *own, struct hva_range r, bool dontfork)
{
	const struct hva_range w = hva_range_widen(r);
	bool split;

	pthread_mutex_lock(&own->regions_lock);
	split = split_at(own, w.start.v) && split_at(own, w.end.v);
	for (uint32_t i = first_after(own, w.start.v); i < own->nregions; i++) {
		struct umbra_region *pub = &own->regions[i].pub;

		if (!hva_ranges_meet(pub->hva, w))
			break;
		/* Without the split, a region that fork touches in part counts as touched. */
		if (split || !dontfork)
			pub->dontfork = dontfork;
	}
	pthread_mutex_unlock(&own->regions_lock);
}

void region_replace(struct umbra_own *own, struct hva_range r, const struct umbra_region *with)
{
	const struct hva_range w = hva_range_widen(r);
	struct own_region file = { 0 };

	if (with) {
		file.pub = *with;
		if (identify(&file))
			file.pub.fd = -1;
	}
	pthread_mutex_lock(&own->regions_lock);
	if (split_at(own, w.start.v) && split_at(own, w.end.v)) {
		uint32_t i = first_after(own, w.start.v);

		while (i < own->nregions && hva_ranges_meet(own->regions[i].pub.hva, w)) {
			const struct hva_range hva = own->regions[i].pub.hva;

			if (!with) {
				remove_locked(own, i);
				continue;
			}
			own->regions[i] = tail_of(&file, hva.start.v);
			own->regions[i].pub.hva = hva;
			i++;
		}
	}
	pthread_mutex_unlock(&own->regions_lock);
}

/* Nothing of [@start, @end) is a region any more. */
static void clear_locked(struct umbra_own *own, uint64_t start, uint64_t end)
{
	const struct hva_range r = { { start }, { end } };
	uint32_t i;

	if (start >= end || !split_at(own, start) || !split_at(own, end))
		return;
	i = first_after(own, start);
	while (i < own->nregions && hva_ranges_meet(own->regions[i].pub.hva, r))
		remove_locked(own, i);
}

/* The mapping at @from has another length: only its end moved. */
static void resize_locked(struct umbra_own *own, struct hva_range from, uint64_t end)
{
	uint32_t i;

	clear_locked(own, end, from.end.v);
	if (end <= from.end.v)
		return;
	clear_locked(own, from.end.v, end);
	i = first_after(own, from.end.v - 1);
	if (i < own->nregions && own->regions[i].pub.hva.start.v < from.end.v)
		own->regions[i].pub.hva.end.v = end;
}

void region_move(struct umbra_own *own, struct hva_range from, struct hva_range to, bool stays)
{
	const uint64_t last = from.end.v;
	uint32_t i;

	pthread_mutex_lock(&own->regions_lock);
	if (from.start.v == to.start.v) {
		resize_locked(own, from, to.end.v);
		goto out;
	}
	if (!split_at(own, from.start.v) || !split_at(own, last))
		goto out;
	/*
	 * The kernel refuses to move over itself: what is at the destination is not part of @from. Since 6.17 it moves
	 * many mappings at once, and where nothing lies between them, what was at the destination stays.
	 */
	i = first_after(own, from.start.v);
	if (i == own->nregions || own->regions[i].pub.hva.start.v >= last)
		clear_locked(own, to.start.v, to.end.v);
	for (uint64_t at = from.start.v; at < last;) {
		struct own_region r;

		i = first_after(own, at);
		if (i == own->nregions || own->regions[i].pub.hva.start.v >= last)
			break;
		r = own->regions[i];
		at = r.pub.hva.end.v;
		if (!stays)
			remove_locked(own, i);
		r.pub.hva.start.v += to.start.v - from.start.v;
		r.pub.hva.end.v += to.start.v - from.start.v;
		if (r.pub.hva.end.v > to.end.v || at == last)
			r.pub.hva.end.v = to.end.v;
		clear_locked(own, r.pub.hva.start.v, r.pub.hva.end.v);
		if (!hva_range_empty(r.pub.hva) && own->nregions < own->regions_cap)
			insert_locked(own, &r);
	}
out:
	pthread_mutex_unlock(&own->regions_lock);
}

bool region_next(struct umbra_own *own, struct hva_range within, struct hva_range *piece)
{
	uint32_t i;
	bool found;

	pthread_mutex_lock(&own->regions_lock);
	i = first_after(own, within.start.v);
	found = i < own->nregions && own->regions[i].pub.hva.start.v < within.end.v;
	if (found) {
		*piece = own->regions[i].pub.hva;
		if (piece->start.v < within.start.v)
			piece->start = within.start;
		if (piece->end.v > within.end.v)
			piece->end = within.end;
	}
	pthread_mutex_unlock(&own->regions_lock);
	return found;
}

int region_plan_fork(struct umbra_own *own, struct plan *plan)
{
	int err = 0;

	pthread_mutex_lock(&own->regions_lock);
	for (uint32_t i = 0; !err && i < own->nregions; i++) {
		const struct umbra_region *pub = &own->regions[i].pub;

		if (pub->is_private && !pub->dontfork)
			err = plan_add(plan, pub->hva);
	}
	pthread_mutex_unlock(&own->regions_lock);
	return err;
}

/* Where bytes [@start, @end) of its file are in a region; empty if they are not. */
static struct hva_range bytes_at(const struct umbra_region *pub, uint64_t start, uint64_t end)
{
	const uint64_t first = pub->file_offset;
	const uint64_t last = first + (pub->hva.end.v - pub->hva.start.v);
	const uint64_t from = start > first ? start : first, to = end < last ? end : last;

	if (from >= to)
		return (struct hva_range){ pub->hva.start, pub->hva.start };
	return (struct hva_range){ { pub->hva.start.v + (from - first) },
				   { pub->hva.start.v + (to - first) } };
}

/* The 2M of the file around @at, if they may be a large folio: a change that cuts one splits it. */
static int plan_cut(const struct umbra_own *own, const struct umbra_region *pub, uint64_t at,
		    struct plan *plan)
{
	const uint64_t block = at & ~(UMBRA_HUGE_SIZE - 1);
	const struct hva_range r = bytes_at(pub, block, block + UMBRA_HUGE_SIZE);
	struct hva_range reach;

	if (pub->hugepage || at == block || hva_range_empty(r))
		return 0;
	return !own->map || hostmap_folios(own->map, r, &reach) ? plan_add(plan, r) : 0;
}

/*
 * File bytes [@start, @end) of one region. Only whole pages of it are freed; bytes of a page at
 * either end are zeroed in place, which moves nothing, unless the page is part of a large folio.
 */
static int plan_region_file(const struct umbra_own *own, const struct umbra_region *pub,
			    uint64_t start, uint64_t end, struct plan *plan)
{
	const uint64_t page = pub->hugepage ? pub->hugepage : UMBRA_PAGE_SIZE;
	const uint64_t from = start > ~0ULL - page ? start : (start + page - 1) / page * page;
	int err = plan_cut(own, pub, start, plan);

	if (!err)
		err = plan_add(plan, bytes_at(pub, from, end == ~0ULL ? end : end / page * page));
	return err ? err : plan_cut(own, pub, end, plan);
}

/* Advice that frees nothing, in another mapping of file bytes [@start, @end). */
static int plan_other_mapping(const struct umbra_own *own, const struct umbra_region *pub,
			      const uint64_t bytes[2], int advice, struct plan *plan)
{
	const uint64_t first = pub->file_offset;
	const uint64_t last = first + (pub->hva.end.v - pub->hva.start.v);
	const bool moves = advice == MADV_COLLAPSE || advice == MADV_PAGEOUT ||
			   advice == MADV_SOFT_OFFLINE || advice == MADV_HWPOISON;
	uint64_t block = bytes[0] > first ? bytes[0] : first;
	int err = 0;

	for (block &= ~(UMBRA_HUGE_SIZE - 1); !err && block < bytes[1] && block < last;
	     block += UMBRA_HUGE_SIZE) {
		const struct hva_range r = bytes_at(pub, block, block + UMBRA_HUGE_SIZE);
		struct hva_range reach;

		/* A page that is not here yet may be mapped from the same folio before the call. */
		if (moves || !own->map || hostmap_folios(own->map, r, &reach))
			err = plan_add(plan, r);
	}
	return err;
}

int region_plan_advice(const struct umbra_own *own, struct hva_range r, int advice,
		       struct plan *plan)
{
	/* A plan changes nothing of @own; its lock is none of that. */
	pthread_mutex_t *lock = (pthread_mutex_t *)&own->regions_lock;
	int err = 0;

	pthread_mutex_lock(lock);
	for (uint32_t i = first_after(own, r.start.v); !err && i < own->nregions; i++) {
		const struct own_region *one = &own->regions[i];
		const uint64_t base = one->pub.file_offset - one->pub.hva.start.v;
		uint64_t bytes[2] = { one->pub.hva.start.v, one->pub.hva.end.v };

		if (!hva_ranges_meet(one->pub.hva, r))
			break;
		if (one->pub.fd < 0)
			continue;
		bytes[0] = (bytes[0] > r.start.v ? bytes[0] : r.start.v) + base;
		bytes[1] = (bytes[1] < r.end.v ? bytes[1] : r.end.v) + base;
		for (uint32_t k = 0; !err && k < own->nregions; k++) {
			const struct own_region *other = &own->regions[k];

			if (other->pub.fd < 0 || other->dev != one->dev || other->ino != one->ino)
				continue;
			if (advice == MADV_REMOVE)
				err = plan_region_file(own, &other->pub, bytes[0], bytes[1], plan);
			else if (k != i)
				err = plan_other_mapping(own, &other->pub, bytes, advice, plan);
		}
	}
	pthread_mutex_unlock(lock);
	return err;
}

int region_plan_file(struct umbra_own *own, int fd, uint64_t start, uint64_t end, struct plan *plan)
{
	struct stat st;
	int err = 0;

	if (start >= end || fstat(fd, &st))
		return 0; /* the call will say so itself */
	pthread_mutex_lock(&own->regions_lock);
	for (uint32_t i = 0; !err && i < own->nregions; i++) {
		const struct own_region *r = &own->regions[i];

		if (r->pub.fd >= 0 && r->dev == st.st_dev && r->ino == st.st_ino)
			err = plan_region_file(own, &r->pub, start, end, plan);
	}
	pthread_mutex_unlock(&own->regions_lock);
	return err;
}
