/* SPDX-License-Identifier: BSD-2-Clause */
/* What the host does to guest memory: discard, protect, remap, fork, and the check of it all; the rest is in
 * actions_long.c. */
#include <errno.h>
#include <sched.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vmm/actions_private.h>
#include <vmm/limits.h>
#include <vmm/memory.h>
#include <vmm/resolve.h>
#include <vmm/sources.h>
#include <vmm/vm_private.h>

int actions_create(struct vm *vm, struct vm_error *err)
{
	struct actions *a = calloc(1, sizeof(*a));
	struct sysinfo host;

	if (!a)
		return vm_fail_host(err, ENOMEM, "host actions");
	vm->actions = a;
	a->host_swaps = sysinfo(&host) == 0 && host.totalswap != 0;
	pthread_mutex_init(&a->lock, NULL);
	pthread_mutex_init(&a->stats_lock, NULL);
	a->bitmap_bytes = (size_t)((vm->config.memory >> UMBRA_PAGE_SHIFT) + 63) / 64 * 8;
	for (unsigned int i = 0; i < ACTION_BY_NR; i++) {
		void *p = mmap(NULL, a->bitmap_bytes, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (p == MAP_FAILED)
			return vm_fail_host(err, errno, "the list of protected pages");
		a->protected_by[i] = p;
	}
	return 0;
}

void actions_destroy(struct vm *vm)
{
	struct actions *a = vm->actions;

	if (!a)
		return;
	for (unsigned int i = 0; i < ACTION_BY_NR; i++) {
		if (a->protected_by[i])
			munmap(a->protected_by[i], a->bitmap_bytes);
	}
	pthread_mutex_destroy(&a->lock);
	pthread_mutex_destroy(&a->stats_lock);
	free(a);
	vm->actions = NULL;
}

void action_stats(struct vm *vm, struct action_stats *stats)
{
	pthread_mutex_lock(&vm->actions->stats_lock);
	*stats = vm->actions->stats;
	pthread_mutex_unlock(&vm->actions->stats_lock);
}

static bool misaligned(const struct vm *vm, struct hva_range r)
{
	return is_hugetlb(vm) && ((r.start.v | r.end.v) & (UMBRA_HUGE_SIZE - 1));
}

/* ---- loss --------------------------------------------------------------------------------------
 */

#define LOSS_PIECE (1ULL << 30) /* a tenth of a second where all of it is there */

static int punch(struct vm *vm, struct hva_range r)
{
	return umbra_fallocate(vm->own, vm->ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       r.start.v - vm->ram.v, range_bytes(r));
}

static int discard_piece(struct vm *vm, struct hva_range r)
{
	struct hva_range wide = file_blocks(r);
	int e;

	if (vm->ram_fd < 0)
		return umbra_madvise(vm->own, r, MADV_DONTNEED);
	if (!may_split_file(vm))
		return punch(vm, r);
	e = umbra_own_start(vm->own, wide, UMBRA_CAUSE_REMOVE, true);
	if (e)
		return e;
	e = punch(vm, r);
	umbra_own_end(vm->own, wide, UMBRA_CAUSE_REMOVE, true);
	return e;
}

int64_t action_discard(struct vm *vm, struct hva_range r)
{
	struct hva_range piece;
	int e, more;

	if (misaligned(vm, r))
		return -EINVAL;
	while ((more = action_next_piece(vm, LOSS_PIECE, &r, &piece)) > 0) {
		memory_access_enter(vm);
		e = discard_piece(vm, piece);
		memory_access_leave(vm);
		if (e)
			return e;
	}
	return more;
}

int64_t action_free(struct vm *vm, struct hva_range r)
{
	struct hva_range piece;
	int e, more;

	if (vm->ram_fd >= 0 || is_hugetlb(vm))
		return -ENOTSUP;
	while ((more = action_next_piece(vm, LOSS_PIECE, &r, &piece)) > 0) {
		memory_access_enter(vm);
		e = umbra_madvise(vm->own, piece, MADV_FREE);
		memory_access_leave(vm);
		if (e)
			return e;
	}
	return more;
}

/* ---- protection --------------------------------------------------------------------------------
 */

static void bit_set(uint64_t *map, uint64_t page, bool on)
{
	if (on)
		map[page / 64] |= 1ULL << (page % 64);
	else
		map[page / 64] &= ~(1ULL << (page % 64));
}

static struct hva_range pages_to_range(const struct vm *vm, uint64_t from, uint64_t to)
{
	return (struct hva_range){ { vm->ram.v + (from << UMBRA_PAGE_SHIFT) },
				   { vm->ram.v + (to << UMBRA_PAGE_SHIFT) } };
}

int64_t action_protect(struct vm *vm, struct hva_range r, enum action_by by)
{
	struct actions *a = vm->actions;
	int e;

	if (misaligned(vm, r))
		return -EINVAL;
	pthread_mutex_lock(&a->lock);
	e = umbra_mprotect(vm->own, r, PROT_READ);
	if (e) {
		/* Part of it may be read-only now (too many mappings). All of it writable is a
		 * state we know. */
		(void)umbra_mprotect(vm->own, r, PROT_READ | PROT_WRITE);
	}
	for (uint64_t p = page_of(vm, r.start); p < page_of(vm, r.end); p++) {
		if (!e)
			bit_set(a->protected_by[by], p, true);
		else
			for (unsigned int i = 0; i < ACTION_BY_NR; i++)
				bit_set(a->protected_by[i], p, false);
	}
	pthread_mutex_unlock(&a->lock);
	return e;
}

int64_t action_unprotect(struct vm *vm, struct hva_range r, enum action_by by)
{
	struct actions *a = vm->actions;
	const uint64_t *mine = a->protected_by[by];
	const uint64_t *other =
		a->protected_by[by == ACTION_BY_GUEST ? ACTION_BY_CHAOS : ACTION_BY_GUEST];
	uint64_t end = page_of(vm, r.end);
	int e = 0;

	if (misaligned(vm, r))
		return -EINVAL;
	pthread_mutex_lock(&a->lock);
	for (uint64_t p = page_of(vm, r.start), from; p < end && !e;) {
		if (!bit(mine, p)) {
			p++;
			continue;
		}
		for (from = p; p < end && bit(mine, p) && bit(other, p) == bit(other, from); p++)
			;
		if (!bit(other, from))
			e = umbra_mprotect(vm->own, pages_to_range(vm, from, p),
					   PROT_READ | PROT_WRITE);
		for (uint64_t i = from; i < p && !e; i++)
			bit_set(a->protected_by[by], i, false);
	}
	pthread_mutex_unlock(&a->lock);
	return e;
}

/* No protection of ours is there (any more). Then the page is writable, or something else is wrong
 * with it. */
static bool writable_now_locked(struct vm *vm, uint64_t page)
{
	const struct umbra_resolve_req req = {
		.hva = pages_to_range(vm, page, page).start,
		.gfn = { page },
		.access = UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE,
		.slot_id = VM_SLOT_ID_RAM,
		.max_level = UMBRA_LEVEL_4K,
	};
	struct umbra_resolved res;
	int e = vm_mmu_ops.resolve(vm, &req, &res);

	/* what else is wrong with it, the fault that comes again will say */
	return e != -EACCES;
}

bool hostcall_lift_protection(struct vm *vm, gpa_t gpa)
{
	struct actions *a = vm->actions;
	uint64_t page = gpa.v >> UMBRA_PAGE_SHIFT, n = 1;
	bool guest = false, chaos = false;
	int e = 0;

	if (gpa.v >= vm->config.memory)
		return false;
	if (is_hugetlb(vm)) {
		page &= ~(UMBRA_HUGE_PAGES - 1);
		n = UMBRA_HUGE_PAGES;
	}
	pthread_mutex_lock(&a->lock);
	guest = bit(a->protected_by[ACTION_BY_GUEST], page);
	chaos = bit(a->protected_by[ACTION_BY_CHAOS], page);
	if (guest || chaos)
		e = umbra_mprotect(vm->own, pages_to_range(vm, page, page + n),
				   PROT_READ | PROT_WRITE);
	else if (!writable_now_locked(vm, page))
		e = -EACCES;
	for (uint64_t p = page; p < page + n && !e; p++) {
		bit_set(a->protected_by[ACTION_BY_GUEST], p, false);
		bit_set(a->protected_by[ACTION_BY_CHAOS], p, false);
	}
	pthread_mutex_unlock(&a->lock);
	if (e && (guest || chaos))
		vm_log(vm, VM_LOG_WARN, "lifting a protection: %s", strerror(-e));
	if (e)
		return false;
	pthread_mutex_lock(&a->stats_lock);
	a->stats.protect_hits += guest;
	a->stats.chaos_hits += chaos && !guest;
	pthread_mutex_unlock(&a->stats_lock);
	return true;
}

/* ---- remap -------------------------------------------------------------------------------------
 */

/*
 * Where pages go and come back from. Its ends are pieces that the kernel counts (vm.max_map_count): the way there is
 * made with them, so that the way back, without them, has as much room.
 */
struct scratch {
	uint64_t start, end; /* of all of it */
	uint64_t at;         /* where the pages go */
	bool given_up;       /* the ends are gone, and what is between must not be used again */
};

#define SCRATCH_PIECES 4 /* at each end */

static int scratch_make(struct scratch *s, struct hva_range r)
{
	const uint64_t fence = SCRATCH_PIECES * UMBRA_PAGE_SIZE;
	const size_t size = range_bytes(r) + UMBRA_HUGE_SIZE + 2 * fence;
	uint8_t *area =
		mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (area == MAP_FAILED)
		return -errno;
	s->start = (uint64_t)(uintptr_t)area;
	s->end = s->start + size;
	s->given_up = false;
	/* The same place within 2M, so that huge pages move whole. */
	s->at = s->start + fence;
	s->at += (r.start.v - s->at) & (UMBRA_HUGE_SIZE - 1);
	for (uint64_t i = 0; i < SCRATCH_PIECES; i += 2) {
		if (mprotect(area + i * UMBRA_PAGE_SIZE, UMBRA_PAGE_SIZE, PROT_READ) < 0 ||
		    mprotect(area + size - (i + 1) * UMBRA_PAGE_SIZE, UMBRA_PAGE_SIZE, PROT_READ) <
			    0) {
			const int e = -errno;

			munmap(area, size);
			return e;
		}
	}
	return 0;
}

/* All but @kept goes: the kernel counts fewer pieces then. */
static void scratch_give_up(struct scratch *s, struct hva_range kept)
{
	munmap((void *)(uintptr_t)s->start, kept.start.v - s->start);
	munmap((void *)(uintptr_t)kept.end.v, s->end - kept.end.v);
	s->start = kept.start.v;
	s->end = kept.end.v;
	s->given_up = true;
}

/*
 * Away and back. DONTUNMAP leaves a mapping behind each time, so that there is never a hole which
 * another thread's mmap could be given. mremap moves one mapping at a time; protections and splits
 * make several of a range: halve it until it fits.
 */
static int move_there_and_back(struct vm *vm, struct hva_range r, struct scratch *s, uint64_t to)
{
	const struct hva_range away = { { to }, { to + range_bytes(r) } };
	const int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
	uint64_t half = (range_bytes(r) / 2) & ~(UMBRA_PAGE_SIZE - 1);
	struct hva_range low = { r.start, { r.start.v + half } }, high = { low.end, r.end };
	hva_t at;
	int e = umbra_mremap(vm->own, r, range_bytes(r), flags, away.start, &at);

	if (e == -EFAULT && half) {
		e = move_there_and_back(vm, low, s, to);
		if (!e && s->given_up)
			e = -ENOMEM;
		return e ? e : move_there_and_back(vm, high, s, to + half);
	}
	if (e)
		return e;
	e = umbra_mremap(vm->own, away, range_bytes(r), flags, r.start, &at);
	if (e == -ENOMEM) {
		scratch_give_up(s, away);
		e = umbra_mremap(vm->own, away, range_bytes(r), flags, r.start, &at);
	}
	if (e) {
		/* The contents are at the scratch place and nothing we can do brings them home. */
		vm_stop(vm, VMM_EXIT_INTERNAL, "mremap back of guest memory: %s", strerror(-e));
	}
	return e;
}

int64_t action_remap(struct vm *vm, struct hva_range r)
{
	struct scratch scratch;
	int e;

	if (is_hugetlb(vm))
		return -ENOTSUP; /* the kernel has no DONTUNMAP for it */
	e = scratch_make(&scratch, r);
	if (e)
		return e;
	memory_access_close(vm);
	/*
	 * A protection lifted meanwhile would be lifted from what stays behind, and come back with the
	 * pages: nobody could write to them any more.
	 */
	pthread_mutex_lock(&vm->actions->lock);
	e = umbra_own_start(vm->own, r, UMBRA_CAUSE_REMAP, true);
	if (!e) {
		e = move_there_and_back(vm, r, &scratch, scratch.at);
		umbra_own_end(vm->own, r, UMBRA_CAUSE_REMAP, true);
	}
	pthread_mutex_unlock(&vm->actions->lock);
	memory_access_open(vm);
	munmap((void *)(uintptr_t)scratch.start, scratch.end - scratch.start);
	return e;
}

/* ---- fork --------------------------------------------------------------------------------------
 */

int64_t action_fork(struct vm *vm)
{
	pid_t pid;

	memory_access_close(vm);
	pid = umbra_fork(vm->own);
	if (pid == 0)
		_exit(0);
	memory_access_open(vm);
	if (pid < 0)
		return pid;
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	return 0;
}

/* ---- check -------------------------------------------------------------------------------------
 */

static void print_violation(void *arg, const char *line)
{
	vm_log(arg, VM_LOG_ERROR, "check: %s", line);
}

uint64_t action_check(struct vm *vm)
{
	struct umbra_audit_report report = { 0 };
	uint64_t found = umbra_check(vm->mmu, print_violation, vm);
	bool inconclusive;
	int64_t wrong = sources_audit(vm, &report, &inconclusive, stderr);
	struct action_stats *s = &vm->actions->stats;

	if (wrong < 0)
		vm_log(vm, VM_LOG_ERROR, "audit: %s", strerror((int)-wrong));
	found += wrong < 0 ? 1 : (uint64_t)wrong;
	pthread_mutex_lock(&vm->actions->stats_lock);
	s->checks++;
	s->violations += found;
	s->audits_inconclusive += inconclusive;
	s->audited_leaves += report.leaves;
	s->audited_pages += report.pages;
	s->audited_pfns += report.pfn_checked;
	s->audit_skipped += report.skipped;
	if (report.moved_by_kernel > s->moved_by_kernel)
		s->moved_by_kernel = report.moved_by_kernel;
	pthread_mutex_unlock(&vm->actions->stats_lock);
	return found;
}
