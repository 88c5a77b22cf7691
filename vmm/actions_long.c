/* SPDX-License-Identifier: BSD-2-Clause */
/* Host actions that take long on a large range, and are done piece by piece: split, collapse, swap. */
#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vmm/actions_private.h>
#include <vmm/memory.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

#define CHUNK_PAGES    512 /* looked at in one go */
#define COLLAPSE_TRIES 50

/*
 * Each piece has a bracket of its own: a machine that is to stop, and guests that fault elsewhere in the range, wait
 * for one piece and not for 64G.
 */
#define PIECE       (16 * UMBRA_HUGE_SIZE)
#define PIECE_PAGES (PIECE >> UMBRA_PAGE_SHIFT)

int action_next_piece(const struct vm *vm, uint64_t size, struct hva_range *r,
		      struct hva_range *piece)
{
	if (r->start.v >= r->end.v)
		return 0;
	if (vm_stopping(vm))
		return -EINTR;
	*piece = *r;
	r->start.v = (r->start.v | (size - 1)) + 1;
	if (r->start.v < r->end.v)
		piece->end = r->start;
	return 1;
}

/* Is there a page in @piece? A hint, from the kernel's walks that skip what is not there. */
static bool resident_hint(struct vm *vm, struct hva_range piece)
{
	const uint64_t n = range_bytes(piece) >> UMBRA_PAGE_SHIFT;
	unsigned char pages[PIECE_PAGES];

	if (vm->ram_fd >= 0) {
		const off_t data = lseek(vm->ram_fd, (off_t)(piece.start.v - vm->ram.v), SEEK_DATA);

		return data < 0 ? errno != ENXIO : (uint64_t)data < piece.end.v - vm->ram.v;
	}
	if (mincore((void *)(uintptr_t)piece.start.v, range_bytes(piece), pages) < 0)
		return true; /* not known: work on it */
	for (uint64_t i = 0; i < n; i++) {
		if (pages[i] & 1)
			return true;
	}
	return false;
}

/* ---- how the host maps it ----------------------------------------------------------------------
 */

/*
 * One page of each block gets other rights for a moment, which makes the kernel map the block by 4K. Locks: a->lock is
 * held, so that the rights put back are the right ones.
 */
static int split_blocks_locked(struct vm *vm, struct hva_range r)
{
	const struct actions *a = vm->actions;

	for (uint64_t at = r.start.v; at < r.end.v; at = (at | (UMBRA_HUGE_SIZE - 1)) + 1) {
		void *page = (void *)(uintptr_t)at;
		uint64_t n = page_of(vm, (hva_t){ at });
		bool ro = bit(a->protected_by[ACTION_BY_GUEST], n) ||
			  bit(a->protected_by[ACTION_BY_CHAOS], n);
		int was = ro ? PROT_READ : PROT_READ | PROT_WRITE;
		int other = ro ? PROT_READ | PROT_WRITE : PROT_READ;

		if (mprotect(page, UMBRA_PAGE_SIZE, other) < 0 ||
		    mprotect(page, UMBRA_PAGE_SIZE, was) < 0)
			return -errno;
	}
	return 0;
}

/* NOHUGEPAGE keeps it split. Calls that the library does not bracket as a split, hence the bracket by hand. */
static int split_piece(struct vm *vm, struct hva_range r)
{
	struct actions *a = vm->actions;
	const struct hva_range reach = may_split_file(vm) ? file_blocks(r) : r;
	int e = umbra_own_start(vm->own, reach, UMBRA_CAUSE_SPLIT, false);

	if (e)
		return e;
	pthread_mutex_lock(&a->lock);
	if (madvise((void *)(uintptr_t)r.start.v, range_bytes(r), MADV_NOHUGEPAGE) < 0)
		e = -errno;
	else if (resident_hint(vm, r))
		e = split_blocks_locked(vm, r);
	pthread_mutex_unlock(&a->lock);
	umbra_own_end(vm->own, reach, UMBRA_CAUSE_SPLIT, false);
	return e;
}

int64_t action_split(struct vm *vm, struct hva_range r)
{
	struct hva_range piece;
	int e, more;

	if (is_hugetlb(vm))
		return -ENOTSUP;
	if (vm->config.pages == GUEST_PAGES_4K)
		return 0;
	while ((more = action_next_piece(vm, PIECE, &r, &piece)) > 0) {
		e = split_piece(vm, piece);
		if (e)
			return e;
	}
	return more;
}

static int collapse_blocks(struct vm *vm, struct hva_range r)
{
	int e = -EAGAIN;

	/* the kernel gives up when it meets a page that is just in use, and says: again */
	for (int i = 0; e == -EAGAIN && i < COLLAPSE_TRIES && !vm_stopping(vm); i++) {
		if (i)
			sched_yield();
		memory_access_enter(vm);
		e = umbra_madvise(vm->own, r, MADV_COLLAPSE);
		memory_access_leave(vm);
	}
	return e;
}

/* What a piece, or a block, answered goes into the answer for all. Nothing there (EINVAL) counts only if that holds
 * for all. */
static int answer_for_all(int all, int e)
{
	return all == -EINVAL || (!all && e != -EINVAL) ? e : all;
}

static int collapse_piece(struct vm *vm, struct hva_range r)
{
	int e = collapse_blocks(vm, r), all = -EINVAL;

	/* One block of them may have been empty. */
	if (e != -EINVAL || range_bytes(r) == UMBRA_HUGE_SIZE || !resident_hint(vm, r))
		return e;
	for (uint64_t at = r.start.v; at < r.end.v; at += UMBRA_HUGE_SIZE)
		all = answer_for_all(
			all, collapse_blocks(
				     vm, (struct hva_range){ { at }, { at + UMBRA_HUGE_SIZE } }));
	return all;
}

int64_t action_collapse(struct vm *vm, struct hva_range r)
{
	struct hva_range piece;
	int e, more, all = -EINVAL;

	if (vm->config.pages != GUEST_PAGES_THP)
		return -ENOTSUP;
	r.start.v = (r.start.v + UMBRA_HUGE_SIZE - 1) & ~(UMBRA_HUGE_SIZE - 1);
	r.end.v &= ~(UMBRA_HUGE_SIZE - 1);
	if (r.start.v >= r.end.v)
		return -EINVAL; /* no whole 2M block in it */
	memory_access_enter(vm);
	e = umbra_madvise(vm->own, r, MADV_HUGEPAGE);
	memory_access_leave(vm);
	if (e)
		return e;
	while ((more = action_next_piece(vm, PIECE, &r, &piece)) > 0)
		all = answer_for_all(all, collapse_piece(vm, piece));
	return more ? more : all;
}

/* ---- swap --------------------------------------------------------------------------------------
 */

/* Pages of @r that are mapped. */
static int64_t present(struct vm *vm, struct hva_range r)
{
	struct umbra_page pages[CHUNK_PAGES];
	int64_t n = 0;

	for (uint64_t at = r.start.v; at < r.end.v; at += CHUNK_PAGES << UMBRA_PAGE_SHIFT) {
		uint64_t left = (r.end.v - at) >> UMBRA_PAGE_SHIFT;
		size_t count = left < CHUNK_PAGES ? (size_t)left : CHUNK_PAGES;
		int e = umbra_hostmap_query_range(vm->hostmap, (hva_t){ at }, pages, count);

		if (e)
			return e;
		for (size_t i = 0; i < count; i++)
			n += (pages[i].flags & UMBRA_PAGE_PRESENT) != 0;
	}
	return n;
}

static int64_t swapout_piece(struct vm *vm, struct hva_range r)
{
	struct hva_range wide = file_blocks(r);
	int64_t before, after;
	int e;

	before = present(vm, r);
	if (before < 0)
		return before;
	if (may_split_file(vm)) {
		e = umbra_own_start(vm->own, wide, UMBRA_CAUSE_SWAP, true);
		if (e)
			return e;
	}
	e = umbra_madvise(vm->own, r, MADV_PAGEOUT);
	if (may_split_file(vm))
		umbra_own_end(vm->own, wide, UMBRA_CAUSE_SWAP, true);
	if (e)
		return e;
	after = present(vm, r);
	if (after < 0)
		return after;
	/* Without swap, pages of a file are unmapped and stay in the page cache. */
	if (!vm->actions->host_swaps)
		return 0;
	/* Another vCPU may have touched new pages in between. */
	return before > after ? before - after : 0;
}

int64_t action_swapout(struct vm *vm, struct hva_range r)
{
	struct hva_range piece;
	int64_t n, sum = 0;
	int more;

	if (is_hugetlb(vm))
		return -ENOTSUP;
	if (vm->ram_fd < 0 && !vm->actions->host_swaps)
		return -ENOTSUP; /* nowhere to go; pages of a file are unmapped at least */
	while ((more = action_next_piece(vm, PIECE, &r, &piece)) > 0) {
		if (!resident_hint(vm, piece))
			continue;
		memory_access_enter(vm);
		n = swapout_piece(vm, piece);
		memory_access_leave(vm);
		if (n < 0)
			return n;
		sum += n;
	}
	return more ? more : sum;
}
