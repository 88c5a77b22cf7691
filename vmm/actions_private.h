/* SPDX-License-Identifier: BSD-2-Clause */
/* What actions.c and actions_long.c share. */
#ifndef VMM_ACTIONS_PRIVATE_H
#define VMM_ACTIONS_PRIVATE_H

#include <pthread.h>
#include <vmm/actions.h>
#include <vmm/vm_private.h>

struct actions {
	/*
	 * One bit a page, by whom it was protected; a page is read-only exactly if either is set.
	 * The lock is held over the mprotect too: a vCPU that waits for it is outside the guest, so
	 * the shootdown inside does not wait for it.
	 */
	pthread_mutex_t lock;
	uint64_t *protected_by[ACTION_BY_NR];
	size_t bitmap_bytes;
	bool host_swaps; /* as of the start */
	pthread_mutex_t stats_lock;
	struct action_stats stats;
};

/*
 * The first piece of @r that does not cross a multiple of @size, which is a power of 2; @r then begins behind it.
 * Returns: 1; 0 when nothing is left; -EINTR when the machine is stopping.
 */
int action_next_piece(const struct vm *vm, uint64_t size, struct hva_range *r,
		      struct hva_range *piece);

static inline bool is_hugetlb(const struct vm *vm)
{
	return vm->config.pages == GUEST_PAGES_HUGETLB;
}

static inline uint64_t range_bytes(struct hva_range r)
{
	return r.end.v - r.start.v;
}

/*
 * A huge page of a file that is touched in part is split by the kernel, which unmaps all of it, even where it was mapped
 * by 4K and nothing shows that it is huge. So whole 2M blocks are bracketed.
 */
static inline struct hva_range file_blocks(struct hva_range r)
{
	r.start.v &= ~(UMBRA_HUGE_SIZE - 1);
	r.end.v = (r.end.v + UMBRA_HUGE_SIZE - 1) & ~(UMBRA_HUGE_SIZE - 1);
	return r;
}

static inline bool may_split_file(const struct vm *vm)
{
	return vm->ram_fd >= 0 && vm->config.pages == GUEST_PAGES_THP;
}

static inline bool bit(const uint64_t *map, uint64_t page)
{
	return map[page / 64] >> (page % 64) & 1;
}

static inline uint64_t page_of(const struct vm *vm, hva_t hva)
{
	return (hva.v - vm->ram.v) >> UMBRA_PAGE_SHIFT;
}

#endif
