/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * umbra_hostmap_resolve: make the host map a page as an access needs it, then say how it is mapped.
 *
 * That a write would change nothing is never guessed from flags: MADV_POPULATE_WRITE is what a
 * write would be, and after it the entry is writable. It costs less than a microsecond on a page
 * that is writable already.
 */
#include <errno.h>
#include <sys/mman.h>
#include "shadow/events/hostmap.h"

static void *hva_ptr(uint64_t hva)
{
	return (void *)(uintptr_t)hva;
}

/* Why a populate failed, in the words of the resolve op. */
static int populate_errno(hva_t page, int err)
{
	unsigned char resident;

	switch (err) {
	case EINVAL: return -EACCES; /* the mapping forbids it */
	case EFAULT: return -EFAULT; /* SIGBUS: beyond the end of the file, a guard page */
	case EINTR:
	case EAGAIN: return -EAGAIN;
	case ENOMEM: /* a hole, or really no memory: mincore only knows the hole */
		return mincore(hva_ptr(page.v), UMBRA_PAGE_SIZE, &resident) && errno == ENOMEM
			       ? -EFAULT
			       : -ENOMEM;
	default: return -err;
	}
}

static int populate(hva_t page, int advice)
{
	if (!madvise(hva_ptr(page.v), UMBRA_PAGE_SIZE, advice))
		return 0;
	return populate_errno(page, errno);
}

static struct umbra_range cow_range(hva_t page, bool huge)
{
	const uint64_t size = huge ? UMBRA_HUGE_SIZE : UMBRA_PAGE_SIZE;
	const uint64_t start = page.v & ~(size - 1);

	/* The guest's write cannot be refused: a pin that it breaks is reported, not obeyed. */
	return (struct umbra_range){
		.hull = { { start }, { start + size } },
		.flags = UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_FORCED | UMBRA_RANGE_RELOCATES,
		.cause = UMBRA_CAUSE_COW,
		.source = UMBRA_SOURCE_OWN,
	};
}

/* The write will move the page: announce, write, let the fault come again. */
static int break_cow(struct umbra_chain *chain, hva_t page, bool huge)
{
	const struct umbra_range r = cow_range(page, huge);
	int err = umbra_invalidate_start(chain, &r);

	if (err)
		return err;
	err = populate(page, MADV_POPULATE_WRITE);
	umbra_invalidate_end(chain, &r);
	return err ? err : -EAGAIN;
}

/* @now is the page as the access left it. */
static int answer(const struct umbra_resolve_req *req, const struct umbra_page *now, bool writable,
		  struct umbra_resolved *res)
{
	const uint64_t offset = (req->hva.v & (UMBRA_HUGE_SIZE - 1)) >> UMBRA_PAGE_SHIFT;

	if (!(now->flags & UMBRA_PAGE_PRESENT))
		return -EAGAIN; /* taken again already */
	res->level = UMBRA_LEVEL_4K;
	res->writable = writable && !(now->flags & UMBRA_PAGE_UFFD_WP);
	res->host_pfn = now->host_pfn;
	if ((now->flags & UMBRA_PAGE_HUGE) && req->max_level >= UMBRA_LEVEL_2M) {
		res->level = UMBRA_LEVEL_2M;
		if (res->host_pfn != UMBRA_HOST_PFN_UNKNOWN)
			res->host_pfn -= offset;
	}
	return 0;
}

/*
 * Write to a present page that looks as if it would stay. A KSM page with one mapping and a page
 * still held by the swap cache look so and move all the same; with frames to compare that is seen,
 * and announced after the fact.
 */
static int write_in_place(struct umbra_hostmap *map, struct umbra_chain *chain,
			  const struct umbra_resolve_req *req, const struct umbra_page *before,
			  struct umbra_resolved *res)
{
	struct umbra_page now;
	int err = populate(req->hva, MADV_POPULATE_WRITE);

	if (!err)
		err = umbra_hostmap_query(map, req->hva, &now);
	if (err)
		return err;
	if (before->host_pfn != now.host_pfn) {
		const struct umbra_range r =
			cow_range(req->hva, (before->flags | now.flags) & UMBRA_PAGE_HUGE);

		err = umbra_invalidate_start(chain, &r);
		if (err)
			return err;
		umbra_invalidate_end(chain, &r);
		return -EAGAIN;
	}
	return answer(req, &now, true, res);
}

static int resolve_absent(struct umbra_hostmap *map, const struct umbra_resolve_req *req,
			  struct umbra_resolved *res)
{
	bool write = req->access & UMBRA_ACCESS_WRITE;
	struct host_vma vma = { 0 };
	struct umbra_page now;
	bool writable = true;
	int err;

	if (!write) {
		err = hostmap_vma(map, req->hva, &vma);
		if (err)
			return err == -ENOENT ? -EFAULT : err;
		/* A read of fresh anonymous memory gets a page of its own: the zero page would cost
		 * a second fault. */
		write = (vma.flags & UMBRA_VMA_WRITE) && !(vma.flags & UMBRA_VMA_SHARED) &&
			!vma.file;
		writable =
			write || ((vma.flags & UMBRA_VMA_WRITE) && (vma.flags & UMBRA_VMA_SHARED));
	}
	err = populate(req->hva, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
	if (!err)
		err = umbra_hostmap_query(map, req->hva, &now);
	return err ? err : answer(req, &now, writable, res);
}

static int resolve_write(struct umbra_hostmap *map, struct umbra_chain *chain,
			 const struct umbra_resolve_req *req, const struct umbra_page *page,
			 struct umbra_resolved *res)
{
	struct host_vma vma;
	int err;

	if (page_write_moves_private(page->flags)) {
		/* Shared memory has no copy-on-write; asked for only where the flags leave it open.
		 */
		err = hostmap_vma(map, req->hva, &vma);
		if (err)
			return err == -ENOENT ? -EFAULT : err;
		if (!(vma.flags & UMBRA_VMA_WRITE))
			return -EACCES;
		if (!(vma.flags & UMBRA_VMA_SHARED))
			return break_cow(chain, req->hva, page->flags & UMBRA_PAGE_HUGE);
	}
	return write_in_place(map, chain, req, page, res);
}

static int resolve_read(struct umbra_hostmap *map, struct umbra_chain *chain,
			const struct umbra_resolve_req *req, const struct umbra_page *page,
			struct umbra_resolved *res)
{
	struct host_vma vma;
	int err = hostmap_vma(map, req->hva, &vma);

	if (err)
		return err == -ENOENT ? -EFAULT : err;
	/* PROT_NONE keeps its pages "present" in pagemap. */
	if (!(vma.flags & UMBRA_VMA_READ))
		return -EACCES;
	if (!(vma.flags & UMBRA_VMA_WRITE) || (page->flags & UMBRA_PAGE_UFFD_WP))
		return answer(req, page, false, res);
	if (vma.flags & UMBRA_VMA_SHARED)
		return answer(req, page, true, res);
	if (page_write_moves_private(page->flags))
		return answer(req, page, false, res);
	return write_in_place(map, chain, req, page, res);
}

int umbra_hostmap_resolve(struct umbra_hostmap *map, struct umbra_chain *chain,
			  const struct umbra_resolve_req *req, struct umbra_resolved *res)
{
	struct umbra_page page;
	uint32_t flags;
	int err = hostmap_peek(map, req->hva, &flags);

	if (err)
		return err;
	if (!(flags & UMBRA_PAGE_PRESENT))
		return resolve_absent(map, req, res);
	err = umbra_hostmap_query(map, req->hva, &page);
	if (err)
		return err;
	if (!(page.flags & UMBRA_PAGE_PRESENT))
		return resolve_absent(map, req, res);
	if (req->access & UMBRA_ACCESS_WRITE)
		return resolve_write(map, chain, req, &page, res);
	return resolve_read(map, chain, req, &page, res);
}
