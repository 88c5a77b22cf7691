/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * umbra_hostmap_resolve: make the host map a page as an access needs it, then say how it is mapped.
 *
 * That a write would change nothing is never guessed from flags: MADV_POPULATE_WRITE is what a
 * write would be, and after it the entry is writable. It costs less than a microsecond on a page
 * that is writable already. A call more or less shows in every fault: bench/fault1.
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

/* How the host maps the page now; its size only where that may matter. */
static int look(struct umbra_hostmap *map, const struct umbra_resolve_req *req, bool size,
		struct umbra_page *now)
{
	return size || req->max_level >= UMBRA_LEVEL_2M ? umbra_hostmap_query(map, req->hva, now)
							: hostmap_entry(map, req->hva, now);
}

/* What a write has moved (@moved), or split and left in its place, is announced after the fact: nobody may refuse it. */
static int announce_late(struct umbra_chain *chain, hva_t page, bool huge, bool moved)
{
	struct umbra_range r = cow_range(page, huge);
	int err;

	if (!moved) {
		r.cause = UMBRA_CAUSE_SPLIT;
		r.flags &= ~(uint32_t)UMBRA_RANGE_RELOCATES;
	}
	err = umbra_invalidate_start(chain, &r);
	if (err)
		return err;
	umbra_invalidate_end(chain, &r);
	return -EAGAIN;
}

/* Of the pages of a 2M page that was split only the one written can have moved. */
static int announce_split(struct umbra_chain *chain, hva_t page, bool moved)
{
	int err = moved ? announce_late(chain, page, false, true) : -EAGAIN;

	return err == -EAGAIN ? announce_late(chain, page, true, false) : err;
}

/*
 * Write to a present page that looks as if it would stay. A KSM page with one mapping, a page still
 * held by the swap cache and, before Linux 6.15, 4K of a large folio that a child once shared look so
 * and move all the same; with frames to compare that is seen, and announced after the fact. The kernel also
 * splits a 2M page where it cannot be sure of its only mapping, as while a child that shared it exits; of its
 * pages the one written may move. That is seen by the size, and announced too, even if the write failed then. Until
 * then an audit that meets the page does not hold it against its leaf.
 * The size matters for leaves of any slot: it is looked at once somebody, not only @req, has asked for 2M.
 */
static int write_and_look(struct umbra_hostmap *map, struct umbra_chain *chain,
			  const struct umbra_resolve_req *req, const struct umbra_page *before,
			  struct umbra_resolved *res)
{
	const bool large = atomic_load(&map->large);
	struct umbra_page now = { 0 };
	uint32_t flags = 0;
	int err, unseen, told;
	bool huge;

	err = large && map->scan ? hostmap_peek(map, req->hva, &flags) : 0;
	if (err)
		return err;
	huge = flags & UMBRA_PAGE_HUGE;
	err = populate(req->hva, MADV_POPULATE_WRITE);
	huge = huge || atomic_load(&map->large) != large;
	if (err && !huge)
		return err;
	unseen = huge ? umbra_hostmap_query(map, req->hva, &now)
		      : hostmap_entry(map, req->hva, &now);
	if (unseen && !huge)
		return unseen;
	if (huge && (unseen || !(now.flags & UMBRA_PAGE_HUGE))) {
		/* Without frames it is taken to have moved. */
		told = announce_split(chain, req->hva,
				      unseen || before->host_pfn == UMBRA_HOST_PFN_UNKNOWN ||
					      before->host_pfn != now.host_pfn);
		return err ? err : told;
	}
	if (!err && before->host_pfn != now.host_pfn) {
		/* A page that was mapped by 4K may be one of 2M now. */
		err = look(map, req, true, &now);
		return err ? err
			   : announce_late(chain, req->hva, now.flags & UMBRA_PAGE_HUGE, true);
	}
	return err ? err : answer(req, &now, true, res);
}

/* Returns: the place, or NULL if there was no room for it. */
static _Atomic uint64_t *writer_begin(struct umbra_hostmap *map, hva_t hva, uint64_t flags)
{
	const uint64_t page = hva.v & ~(UMBRA_PAGE_SIZE - 1);

	for (uint64_t i = 0; i < HOSTMAP_WRITERS; i++) {
		_Atomic uint64_t *w =
			&map->writers[((page >> UMBRA_PAGE_SHIFT) + i) % HOSTMAP_WRITERS];
		uint64_t none = 0;

		if (atomic_compare_exchange_strong(w, &none, page | HOSTMAP_WRITES | flags))
			return w;
	}
	atomic_fetch_add(&map->writers_more, 1);
	return NULL;
}

static void writer_end(struct umbra_hostmap *map, _Atomic uint64_t *w)
{
	if (w)
		atomic_store(w, 0);
	else
		atomic_fetch_sub(&map->writers_more, 1);
}

bool hostmap_being_written(const struct umbra_hostmap *map, hva_t hva, bool block, bool split)
{
	const uint64_t mask = ~((block || split ? UMBRA_HUGE_SIZE : UMBRA_PAGE_SIZE) - 1);

	for (uint64_t i = 0; i < HOSTMAP_WRITERS; i++) {
		const uint64_t w = atomic_load(&map->writers[i]);

		if (w && !((w ^ hva.v) & mask) && (!split || (w & HOSTMAP_SPLITS)))
			return true;
	}
	return atomic_load(&map->writers_more);
}

static int write_in_place(struct umbra_hostmap *map, struct umbra_chain *chain,
			  const struct umbra_resolve_req *req, const struct umbra_page *before,
			  struct umbra_resolved *res)
{
	_Atomic uint64_t *w = writer_begin(map, req->hva, HOSTMAP_SPLITS);
	const int err = write_and_look(map, chain, req, before, res);

	writer_end(map, w);
	return err;
}

/* How many answers for the page, or for a huge page that it may be in, there were that a write moves. */
static unsigned int fragile_answers(struct umbra_hostmap *map, hva_t hva)
{
	return atomic_load(hostmap_fragile(map, hva, false)) +
	       atomic_load(hostmap_fragile(map, hva, true));
}

/*
 * The page as a read finds it. What is private is for reading only, and a write moves it: such an answer is counted before
 * the page is looked at, see write_absent(). Shared memory has no copy-on-write.
 */
static int answer_read(struct umbra_hostmap *map, const struct umbra_resolve_req *req,
		       const struct host_vma *vma, struct umbra_resolved *res)
{
	const bool shared = vma->flags & UMBRA_VMA_SHARED;
	struct umbra_page now;
	int err;

	if (!shared) {
		atomic_fetch_add(hostmap_fragile(map, req->hva, false), 1);
		atomic_fetch_add(hostmap_fragile(map, req->hva, true), 1);
	}
	err = look(map, req, false, &now);
	return err ? err : answer(req, &now, shared && (vma->flags & UMBRA_VMA_WRITE), res);
}

/*
 * Write to a page that was absent. @fragile: fragile_answers() from before that was seen. If it has grown, somebody may
 * have mapped the page for reading and answered a fault with it, and the write here has moved it: that is announced
 * then, for all of the 2M that a huge zero page would have filled. What was answered before @fragile was read has been
 * taken away in between, or the page would not have been absent: nobody installs that.
 */
static int write_absent(struct umbra_hostmap *map, struct umbra_chain *chain,
			const struct umbra_resolve_req *req, unsigned int fragile,
			struct umbra_resolved *res)
{
	const struct umbra_range moved = cow_range(req->hva, true);
	struct umbra_page now;
	int err = populate(req->hva, MADV_POPULATE_WRITE);

	if (err)
		return err;
	if (fragile_answers(map, req->hva) != fragile) {
		err = umbra_invalidate_start(chain, &moved);
		if (err)
			return err;
		umbra_invalidate_end(chain, &moved);
		return -EAGAIN;
	}
	err = look(map, req, false, &now);
	return err ? err : answer(req, &now, true, res);
}

static int resolve_absent(struct umbra_hostmap *map, struct umbra_chain *chain,
			  const struct umbra_resolve_req *req, unsigned int fragile,
			  struct umbra_resolved *res)
{
	_Atomic uint64_t *w;
	struct host_vma vma;
	int err;

	if (!(req->access & UMBRA_ACCESS_WRITE)) {
		err = hostmap_vma(map, req->hva, &vma);
		if (err)
			return err == -ENOENT ? -EFAULT : err;
		/* A read of fresh anonymous memory gets a page of its own: the zero page would cost
		 * a second fault. */
		if (!(vma.flags & UMBRA_VMA_WRITE) || (vma.flags & UMBRA_VMA_SHARED) || vma.file) {
			err = populate(req->hva, MADV_POPULATE_READ);
			return err ? err : answer_read(map, req, &vma, res);
		}
	}
	w = writer_begin(map, req->hva, 0);
	err = write_absent(map, chain, req, fragile, res);
	writer_end(map, w);
	return err;
}

/* @page: as hostmap_entry() knows it. */
static int resolve_write(struct umbra_hostmap *map, struct umbra_chain *chain,
			 const struct umbra_resolve_req *req, const struct umbra_page *page,
			 struct umbra_resolved *res)
{
	struct umbra_page whole;
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
		if (!(vma.flags & UMBRA_VMA_SHARED)) {
			err = look(map, req, true, &whole);
			return err ? err
				   : break_cow(chain, req->hva, whole.flags & UMBRA_PAGE_HUGE);
		}
	}
	return write_in_place(map, chain, req, page, res);
}

/* @page: as hostmap_entry() knows it. */
static int resolve_read(struct umbra_hostmap *map, struct umbra_chain *chain,
			const struct umbra_resolve_req *req, const struct umbra_page *page,
			struct umbra_resolved *res)
{
	const bool protected = page->flags & UMBRA_PAGE_UFFD_WP;
	const bool moves = page_write_moves_private(page->flags);
	struct host_vma vma;
	int err = hostmap_vma(map, req->hva, &vma);
	bool writable, shared;

	if (err)
		return err == -ENOENT ? -EFAULT : err;
	/* PROT_NONE keeps its pages "present" in pagemap. */
	if (!(vma.flags & UMBRA_VMA_READ))
		return -EACCES;
	writable = (vma.flags & UMBRA_VMA_WRITE) && !protected;
	shared = vma.flags & UMBRA_VMA_SHARED;
	if (writable && !shared && !moves)
		return write_in_place(map, chain, req, page, res);
	return answer_read(map, req, &vma, res);
}

int umbra_hostmap_resolve(struct umbra_hostmap *map, struct umbra_chain *chain,
			  const struct umbra_resolve_req *req, struct umbra_resolved *res)
{
	const unsigned int fragile = fragile_answers(map, req->hva);
	struct umbra_page page;
	int err;

	if (req->max_level >= UMBRA_LEVEL_2M && !atomic_load(&map->large))
		atomic_store(&map->large, true);
	err = hostmap_entry(map, req->hva, &page);
	if (err)
		return err;
	if (!(page.flags & UMBRA_PAGE_PRESENT))
		return resolve_absent(map, chain, req, fragile, res);
	if (req->access & UMBRA_ACCESS_WRITE)
		return resolve_write(map, chain, req, &page, res);
	return resolve_read(map, chain, req, &page, res);
}
