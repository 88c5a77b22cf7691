/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls that change mappings: munmap, mprotect, mmap over, mremap. */
#include <errno.h>
#include <linux/mman.h>
#include <unistd.h>
#include "shadow/events/hostmap.h"
#include "shadow/events/own.h"

/* Opens the bracket of a call that changes @r alone. */
static int start_one(struct umbra_own *own, struct hva_range r, enum umbra_cause cause,
		     struct plan *plan, struct bracket *b)
{
	int err;

	plan_init(plan, cause, cause == UMBRA_CAUSE_UNMAP);
	err = plan_add(plan, r);
	if (!err && cause == UMBRA_CAUSE_UNMAP)
		err = region_reserve(own);
	if (!err)
		err = bracket_start(own, plan, NULL, 0, b);
	return err ? err : bracket_cuts(own, plan, b);
}

int umbra_munmap(struct umbra_own *own, struct hva_range r)
{
	struct plan plan;
	struct bracket b;
	int err = start_one(own, r, UMBRA_CAUSE_UNMAP, &plan, &b);

	if (err)
		return err;
	err = munmap(hva_ptr(r.start), hva_range_len(r)) ? -errno : 0;
	if (!err)
		region_replace(own, r, NULL);
	bracket_end(own, &b, err);
	return err;
}

int umbra_mprotect(struct umbra_own *own, struct hva_range r, int prot)
{
	struct plan plan;
	struct bracket b;
	int err = start_one(own, r, UMBRA_CAUSE_PROTECT, &plan, &b);

	if (err)
		return err;
	err = mprotect(hva_ptr(r.start), hva_range_len(r), prot) ? -errno : 0;
	bracket_end(own, &b, err);
	return err;
}

/* Of hugetlb memory the kernel takes whole pages, whatever length it is given. @page 0: of other memory. */
static uint64_t whole(uint64_t len, uint64_t page)
{
	return page && len <= ~0ULL - page ? (len + page - 1) & ~(page - 1) : len;
}

/* Of what mmap with these arguments maps. */
static uint64_t hugepage_of(int flags, int fd)
{
	const unsigned int shift = (unsigned int)flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK;
	uint64_t page = 0;

	if (!(flags & MAP_ANONYMOUS))
		return fd < 0 ? 0 : own_file_hugepage(fd);
	if (!(flags & MAP_HUGETLB))
		return 0;
	if (shift)
		return 1ULL << shift;
	fd = memfd_create("", MFD_CLOEXEC | MFD_HUGETLB); /* says what is the usual size */
	if (fd >= 0) {
		page = own_file_hugepage(fd);
		close(fd);
	}
	return page ? page : UMBRA_HUGE_SIZE;
}

/* Of what is mapped at @hva, as far as it is known. @most: of what may be mapped there. */
static uint64_t hugepage_at(struct umbra_own *own, hva_t hva, uint64_t *most)
{
	const uint64_t gigabyte = 512 * UMBRA_HUGE_SIZE;
	struct host_vma vma;
	uint64_t page = 0;

	*most = 0;
	if (hva.v & (UMBRA_HUGE_SIZE - 1))
		return 0;
	if (own->map && own->map->procmap) {
		if (!hostmap_vma(own->map, hva, &vma) && vma.page > UMBRA_PAGE_SIZE)
			page = vma.page;
	} else if (!region_page(own, hva, &page)) {
		*most = hva.v & (gigabyte - 1) ? UMBRA_HUGE_SIZE : gigabyte;
	}
	return page;
}

int umbra_mmap_over(struct umbra_own *own, struct hva_range r, int prot, int flags, int fd,
		    uint64_t offset)
{
	const uint64_t hugepage = hugepage_of(flags, fd);
	const struct hva_range all = { r.start, { r.start.v + whole(hva_range_len(r), hugepage) } };
	const struct umbra_region now = {
		.hva = all,
		.hugepage = hugepage,
		.fd = flags & MAP_ANONYMOUS ? -1 : fd,
		.file_offset = offset,
		.is_private = (flags & MAP_TYPE) == MAP_PRIVATE,
	};
	struct plan plan;
	struct bracket b;
	int err = start_one(own, all, UMBRA_CAUSE_UNMAP, &plan, &b);

	if (err)
		return err;
	if (mmap(hva_ptr(r.start), hva_range_len(r), prot, flags | MAP_FIXED, fd, (off_t)offset) ==
	    MAP_FAILED)
		err = -errno;
	else
		region_replace(own, all, &now);
	bracket_end(own, &b, err);
	return err;
}

static int call_mremap(struct hva_range from, uint64_t new_len, int flags, hva_t to, hva_t *result)
{
	void *p = mremap(hva_ptr(from.start), hva_range_len(from), new_len, flags, hva_ptr(to));

	if (p == MAP_FAILED)
		return -errno;
	result->v = (uintptr_t)p;
	return 0;
}

/* Old range and destination of a move; the tail of a shrink in place; nothing for growth in place.
 * All in whole pages of @page bytes. */
static int plan_mremap(struct hva_range from, uint64_t new_len, hva_t to, int flags, uint64_t page,
		       struct plan *plan)
{
	int err;

	from.end.v = from.start.v + whole(hva_range_len(from), page);

	if (!(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) && new_len <= hva_range_len(from))
		return plan_add(plan, (struct hva_range){ { from.start.v + new_len }, from.end });
	err = plan_add(plan, from);
	if (!err && (flags & MREMAP_FIXED))
		err = plan_add(plan, (struct hva_range){ to, { to.v + whole(new_len, page) } });
	return err;
}

/* Of length 0, mremap maps the same bytes once more. */
static void moved(struct umbra_own *own, struct hva_range from, struct hva_range to, int flags)
{
	const struct hva_range now = hva_range_widen(to);
	bool stays = flags & MREMAP_DONTUNMAP;

	if (!hva_range_len(from)) {
		from.end.v = from.start.v + (to.end.v - to.start.v);
		stays = true;
	}
	region_move(own, hva_range_widen(from), now, stays);
}

/*
 * A move failed. Since 6.17 the kernel moves one mapping after the other, and those before the one that it refused are
 * gone: where a region has no mapping any more, and its place at the destination has one, that is where it is now.
 */
static void moved_in_part(struct umbra_own *own, struct hva_range from, hva_t to)
{
	const uint64_t away = to.v - from.start.v;
	struct hva_range piece, rest = from;
	struct host_vma vma;

	while (own->map && region_next(own, rest, &piece)) {
		const int err = hostmap_vma(own->map, piece.start, &vma);

		rest.start = err ? piece.end : vma.hva.end;
		if (err != -ENOENT || hostmap_vma(own->map, (hva_t){ piece.start.v + away }, &vma))
			continue;
		if (vma.hva.end.v - away < piece.end.v)
			piece.end.v = vma.hva.end.v - away;
		rest.start = piece.end;
		region_move(own, piece,
			    (struct hva_range){ { piece.start.v + away }, { piece.end.v + away } },
			    false);
		own_moved(own, piece, (hva_t){ piece.start.v + away });
	}
}

/*
 * Growth in place changes no page, so nothing is bracketed; but a fork or a file call that was planned
 * before does not know of the new pages. So it is done while no plan is under way, or else, over what
 * is new, in a bracket that waits for them.
 */
static int grow_in_place(struct umbra_own *own, struct hva_range from, uint64_t new_len,
			 hva_t *result)
{
	const struct hva_range to = { from.start, { from.start.v + new_len } };
	struct plan plan;
	struct bracket b;
	int err;

	pthread_mutex_lock(&own->plans_lock);
	if (!atomic_load(&own->planners)) {
		err = call_mremap(from, new_len, 0, from.start, result);
		if (!err)
			moved(own, from, to, 0);
		pthread_mutex_unlock(&own->plans_lock);
		return err;
	}
	pthread_mutex_unlock(&own->plans_lock);
	plan_init(&plan, UMBRA_CAUSE_REMAP, false);
	err = plan_add(&plan, (struct hva_range){ from.end, to.end });
	if (!err)
		err = bracket_start(own, &plan, NULL, 0, &b);
	if (err)
		return err;
	err = call_mremap(from, new_len, 0, from.start, result);
	if (!err)
		moved(own, from, to, 0);
	bracket_end(own, &b, err);
	return err;
}

/* The kernel chose the place, so nothing could be held there from the start. */
static void hold_new_place(struct umbra_own *own, struct hva_range now)
{
	struct umbra_range range = bracket_of(now, UMBRA_CAUSE_REMAP, false);

	if (!atomic_load(&own->planners) || hva_range_empty(now))
		return;
	range.flags |= UMBRA_RANGE_FORCED;
	umbra_invalidate_start(own->chain, &range);
	own_grace(own);
	umbra_invalidate_end(own->chain, &range);
}

int umbra_mremap(struct umbra_own *own, struct hva_range asked, uint64_t asked_len, int flags,
		 hva_t to, hva_t *result)
{
	uint64_t most;
	const uint64_t page = hugepage_at(own, asked.start, &most);
	const struct hva_range from = { asked.start,
					{ asked.start.v + whole(hva_range_len(asked), page) } };
	const uint64_t new_len = whole(asked_len, page);
	const bool in_place = hva_range_len(from) && !(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP));
	hva_t now = from.start;
	struct plan plan;
	struct bracket b;
	int err;

	err = region_reserve(own);
	if (err)
		return err;
	/* Only when there is no room for growth in place is anything moved. */
	if (in_place && new_len > hva_range_len(from)) {
		err = grow_in_place(own, from, new_len, &now);
		if (!err)
			*result = now;
		if (!err || !(flags & MREMAP_MAYMOVE) || err != -ENOMEM)
			return err;
	}
	plan_init(&plan, UMBRA_CAUSE_REMAP, true);
	err = plan_mremap(from, new_len, to, flags, most, &plan);
	if (!err)
		err = bracket_start(own, &plan, NULL, 0, &b);
	if (!err)
		err = bracket_cuts(own, &plan, &b);
	if (err)
		return err;
	err = call_mremap(from, new_len, flags, to, &now);
	if (!err) {
		const struct hva_range place = { now, { now.v + new_len } };

		moved(own, from, place, flags);
		if (now.v != from.start.v)
			own_moved(own, from, now);
		if (now.v != from.start.v && !(flags & MREMAP_FIXED))
			hold_new_place(own, place);
		*result = now;
	} else if ((flags & MREMAP_FIXED) && !(flags & MREMAP_DONTUNMAP)) {
		moved_in_part(own, from, to);
	}
	bracket_end(own, &b, err);
	return err;
}
