/* SPDX-License-Identifier: BSD-2-Clause */
/* Host calls: a guest's request is copied, checked, carried out and answered; children and access
 * logs live here. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vmm/hostcall.h>
#include <vmm/limits.h>
#include <vmm/memory.h>
#include <vmm/sources.h>
#include <vmm/vm_private.h>

static const char *const names[GUEST_CALL_NR] = {
	"nop",   "arena", "discard",  "protect",   "protect_hits", "split", "collapse", "swapout",
	"remap", "fork",  "fork_sum", "log_reset", "log_read",     "check", "leaves",   "free",
};

/* A process that keeps a copy-on-write view. Free when @pid is 0. */
struct child {
	pid_t pid;
	bool asked; /* somebody reads its answer */
	int to, from;
};

struct sum_request {
	uint64_t start, words;
};

struct hostcalls {
	pthread_mutex_t lock; /* everything but the log */
	struct child child[HOSTCALL_CHILDREN_MAX];
	bool stopped;
	struct hva_range arena[HOSTCALL_ARENAS_MAX];
	unsigned int arenas;
	struct hostcall_stats stats;

	pthread_mutex_t log_lock;
	size_t log_bytes;      /* of one bitmap */
	uint64_t *accumulated; /* accessed, then dirty, since LOG_RESET; mapped when first wanted */
	uint64_t *collected;   /* the same, of one umbra_log_collect() */
};

const char *hostcall_name(uint32_t nr)
{
	return nr < GUEST_CALL_NR ? names[nr] : "unknown";
}

int hostcalls_create(struct vm *vm, struct vm_error *err)
{
	struct hostcalls *h = calloc(1, sizeof(*h));

	if (!h)
		return vm_fail_host(err, ENOMEM, "host calls");
	pthread_mutex_init(&h->lock, NULL);
	pthread_mutex_init(&h->log_lock, NULL);
	h->log_bytes = (size_t)((vm->config.memory >> UMBRA_PAGE_SHIFT) + 63) / 64 * 8;
	vm->hostcalls = h;
	return 0;
}

void hostcalls_stop(struct vm *vm)
{
	struct hostcalls *h = vm->hostcalls;

	if (!h)
		return;
	pthread_mutex_lock(&h->lock);
	h->stopped = true;
	for (unsigned int i = 0; i < HOSTCALL_CHILDREN_MAX; i++) {
		if (h->child[i].pid > 0)
			kill(h->child[i].pid, SIGKILL);
	}
	pthread_mutex_unlock(&h->lock);
}

/* Ends a child and forgets it; by pid, and only while nobody else may have reaped it. Locks:
 * h->lock is held. */
static void child_end_locked(struct child *c)
{
	kill(c->pid, SIGKILL);
	while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR)
		;
	close(c->to);
	close(c->from);
	*c = (struct child){ 0 };
}

void hostcalls_destroy(struct vm *vm)
{
	struct hostcalls *h = vm->hostcalls;

	if (!h)
		return;
	pthread_mutex_lock(&h->lock);
	for (unsigned int i = 0; i < HOSTCALL_CHILDREN_MAX; i++) {
		if (h->child[i].pid > 0)
			child_end_locked(&h->child[i]);
	}
	pthread_mutex_unlock(&h->lock);
	if (h->accumulated)
		munmap(h->accumulated, 2 * h->log_bytes);
	if (h->collected)
		munmap(h->collected, 2 * h->log_bytes);
	pthread_mutex_destroy(&h->lock);
	pthread_mutex_destroy(&h->log_lock);
	free(h);
	vm->hostcalls = NULL;
}

void hostcall_stats(struct vm *vm, struct hostcall_stats *stats)
{
	pthread_mutex_lock(&vm->hostcalls->lock);
	*stats = vm->hostcalls->stats;
	pthread_mutex_unlock(&vm->hostcalls->lock);
}

/* ---- arenas ------------------------------------------------------------------------------------
 */

static int64_t arena_add(struct hostcalls *h, struct hva_range r)
{
	int64_t ret = -ENOSPC;

	pthread_mutex_lock(&h->lock);
	if (h->arenas < HOSTCALL_ARENAS_MAX) {
		h->arena[h->arenas++] = r;
		ret = 0;
	}
	pthread_mutex_unlock(&h->lock);
	return ret;
}

bool hostcall_arena(struct vm *vm, uint64_t i, struct hva_range *r)
{
	struct hostcalls *h = vm->hostcalls;
	bool found;

	pthread_mutex_lock(&h->lock);
	found = h->arenas != 0;
	if (found)
		*r = h->arena[i % h->arenas];
	pthread_mutex_unlock(&h->lock);
	return found;
}

/* ---- children ----------------------------------------------------------------------------------
 */

static bool read_all(int fd, void *to, size_t len)
{
	for (char *p = to; len;) {
		ssize_t n = read(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		p += n;
		len -= (size_t)n;
	}
	return true;
}

/* In the child: nothing of the machine stays open, /dev/kvm least of all. Only async-signal-safe
 * calls. */
static void __attribute__((noreturn)) child_main(int requests, int answers)
{
	struct sum_request r;
	uint64_t sum;

	if (dup2(requests, 0) != 0 || dup2(answers, 1) != 1 || close_range(2, ~0U, 0) != 0)
		_exit(1);
	if (!read_all(0, &r, sizeof(r)))
		_exit(0);
	sum = guest_sum((const uint64_t *)(uintptr_t)r.start, r.words);
	_exit(write(1, &sum, sizeof(sum)) == (ssize_t)sizeof(sum) ? 0 : 1);
}

static int64_t child_fork(struct vm *vm)
{
	struct hostcalls *h = vm->hostcalls;
	int requests[2], answers[2];
	unsigned int slot;
	pid_t pid;

	if (pipe2(requests, O_CLOEXEC) < 0)
		return -errno;
	if (pipe2(answers, O_CLOEXEC) < 0) {
		int e = -errno;

		close(requests[0]);
		close(requests[1]);
		return e;
	}
	memory_access_close(vm);
	pthread_mutex_lock(&h->lock);
	for (slot = 0; slot < HOSTCALL_CHILDREN_MAX && h->child[slot].pid; slot++)
		;
	pid = h->stopped                      ? -ECANCELED
	      : slot == HOSTCALL_CHILDREN_MAX ? -EAGAIN
					      : umbra_fork(vm->own);
	if (pid == 0)
		child_main(requests[0], answers[1]);
	if (pid > 0)
		h->child[slot] = (struct child){ pid, false, requests[1], answers[0] };
	pthread_mutex_unlock(&h->lock);
	memory_access_open(vm);
	close(requests[0]);
	close(answers[1]);
	if (pid < 0) {
		close(requests[1]);
		close(answers[0]);
		return pid;
	}
	return slot + 1;
}

static int64_t child_sum(struct vm *vm, uint64_t number, struct hva_range r, uint64_t *sum)
{
	const struct sum_request request = { r.start.v, (r.end.v - r.start.v) / 8 };
	struct hostcalls *h = vm->hostcalls;
	struct child *c = NULL;
	bool answered;

	pthread_mutex_lock(&h->lock);
	if (number && number <= HOSTCALL_CHILDREN_MAX)
		c = &h->child[number - 1];
	if (!c || !c->pid || c->asked) {
		pthread_mutex_unlock(&h->lock);
		return -ECHILD;
	}
	c->asked = true; /* its slot is ours until child_end_locked() */
	pthread_mutex_unlock(&h->lock);
	answered = write(c->to, &request, sizeof(request)) == (ssize_t)sizeof(request) &&
		   read_all(c->from, sum, sizeof(*sum));
	pthread_mutex_lock(&h->lock);
	child_end_locked(c);
	pthread_mutex_unlock(&h->lock);
	/* hugetlb: the kernel ends a child whose page it had to take for the parent's copy */
	return answered ? 0 : -EIO;
}

/* ---- accessed and dirty ------------------------------------------------------------------------
 */

static uint64_t *map_bitmaps(size_t bytes)
{
	void *p = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* Page @n of the collected bitmap and those that follow: one call for each run of bits. */
static void tell_young(struct vm *vm, const uint64_t *accessed, size_t words)
{
	uint64_t start = 0, run = 0;

	for (uint64_t page = 0; page <= words * 64; page++) {
		if (page < words * 64 && accessed[page / 64] == 0 && !run) {
			page |= 63; /* nothing in this word */
			continue;
		}
		if (page < words * 64 && accessed[page / 64] >> page % 64 & 1) {
			start = run++ ? start : page;
			continue;
		}
		if (run)
			umbra_module_young(
				vm->module,
				(struct hva_range){
					{ vm->ram.v + (start << UMBRA_PAGE_SHIFT) },
					{ vm->ram.v + ((start + run) << UMBRA_PAGE_SHIFT) } });
		run = 0;
	}
}

/* Locks: h->log_lock is held. @dirty: that, too; else only accessed. */
static int log_collect_locked(struct vm *vm, bool dirty)
{
	struct hostcalls *h = vm->hostcalls;
	size_t words = h->log_bytes / 8;
	int e;

	if (!h->accumulated)
		h->accumulated = map_bitmaps(h->log_bytes);
	if (!h->collected)
		h->collected = map_bitmaps(h->log_bytes);
	if (!h->accumulated || !h->collected)
		return -ENOMEM;
	e = umbra_log_collect(vm->mmu, VM_SLOT_ID_RAM, h->collected,
			      dirty ? h->collected + words : NULL);
	if (vm->module && !e)
		tell_young(vm, h->collected, words);
	for (size_t i = 0; i < (dirty ? 2 * words : words) && !e; i++) {
		/* Not stored where nothing is new: the bitmaps stay as sparse as what was touched.
		 */
		if (h->collected[i] & ~h->accumulated[i])
			h->accumulated[i] |= h->collected[i];
	}
	return e;
}

void hostcall_age(struct vm *vm)
{
	struct hostcalls *h = vm->hostcalls;

	pthread_mutex_lock(&h->log_lock);
	(void)log_collect_locked(vm, false); /* without the memory for it pages seem old, no more */
	pthread_mutex_unlock(&h->log_lock);
}

static int64_t log_reset(struct vm *vm)
{
	struct hostcalls *h = vm->hostcalls;
	int e;

	pthread_mutex_lock(&h->log_lock);
	e = log_collect_locked(vm, true);
	if (!e && madvise(h->accumulated, 2 * h->log_bytes, MADV_DONTNEED) < 0)
		e = -errno;
	pthread_mutex_unlock(&h->log_lock);
	return e;
}

/* 64 bits of @map from bit @at on, of which @n are wanted. */
static uint64_t bits_from(const uint64_t *map, uint64_t at, uint64_t n)
{
	unsigned int shift = at % 64;
	uint64_t word = map[at / 64] >> shift;

	if (shift && n > 64 - shift)
		word |= map[at / 64 + 1] << (64 - shift);
	return n < 64 ? word & ((1ULL << n) - 1) : word;
}

static int64_t log_read(struct vm *vm, struct hva_range r, uint64_t buffer)
{
	uint64_t first = (r.start.v - vm->ram.v) >> UMBRA_PAGE_SHIFT;
	uint64_t pages = (r.end.v - r.start.v) >> UMBRA_PAGE_SHIFT;
	uint64_t words = (pages + 63) / 64;
	struct hostcalls *h = vm->hostcalls;
	struct hva_range to;
	uint64_t chunk[512];
	int e;

	if (buffer % 8)
		return -EINVAL;
	if (memory_range(vm, buffer, words * 16, &to))
		return -EFAULT;
	pthread_mutex_lock(&h->log_lock);
	e = log_collect_locked(vm, true);
	for (unsigned int which = 0; which < 2 && !e; which++) {
		const uint64_t *map =
			h->accumulated ? h->accumulated + which * (h->log_bytes / 8) : NULL;

		for (uint64_t done = 0; done < words && !e;) {
			uint64_t n = words - done < 512 ? words - done : 512;

			for (uint64_t i = 0; i < n; i++)
				chunk[i] = bits_from(map, first + (done + i) * 64,
						     pages - (done + i) * 64);
			e = guest_write(vm, (gpa_t){ buffer + (which * words + done) * 8 }, chunk,
					n * 8);
			done += n;
		}
	}
	pthread_mutex_unlock(&h->log_lock);
	return e;
}

/* ---- leaves ------------------------------------------------------------------------------------
 */

static int count_leaf(void *arg, const struct umbra_leaf *leaf)
{
	uint64_t *n = arg;

	*n += leaf->level == UMBRA_LEVEL_2M ? 1ULL << 32 : 1;
	return 0;
}

static int64_t count_leaves(struct vm *vm, struct hva_range r, uint64_t *val)
{
	struct gfn_range gfns = { { (r.start.v - vm->ram.v) >> UMBRA_PAGE_SHIFT },
				  { (r.end.v - vm->ram.v) >> UMBRA_PAGE_SHIFT } };

	*val = 0;
	return umbra_for_each_leaf(vm->root, gfns, count_leaf, val);
}

/* ---- the call ----------------------------------------------------------------------------------
 */

static bool takes_range(uint32_t nr)
{
	switch (nr) {
	case GUEST_CALL_NOP:
	case GUEST_CALL_PROTECT_HITS:
	case GUEST_CALL_FORK:
	case GUEST_CALL_LOG_RESET:
	case GUEST_CALL_CHECK: return false;
	default: return true;
	}
}

static int64_t carry_out(struct vm *vm, struct guest_hostcall *c)
{
	struct hva_range r = { { 0 }, { 0 } };
	struct action_stats stats;

	if (c->nr >= GUEST_CALL_NR)
		return -ENOSYS;
	if (c->reserved)
		return -EINVAL;
	if (takes_range(c->nr)) {
		if ((c->gpa | c->len) & (UMBRA_PAGE_SIZE - 1) || !c->len)
			return -EINVAL;
		if (memory_range(vm, c->gpa, c->len, &r))
			return -EFAULT;
	}
	switch ((enum guest_hostcall_nr)c->nr) {
	case GUEST_CALL_ARENA: return arena_add(vm->hostcalls, r);
	case GUEST_CALL_DISCARD: return action_discard(vm, r);
	case GUEST_CALL_PROTECT: return action_protect(vm, r, ACTION_BY_GUEST);
	case GUEST_CALL_PROTECT_HITS: action_stats(vm, &stats); return (int64_t)stats.protect_hits;
	case GUEST_CALL_SPLIT: return action_split(vm, r);
	case GUEST_CALL_COLLAPSE: return action_collapse(vm, r);
	case GUEST_CALL_SWAPOUT: return action_swapout(vm, r);
	case GUEST_CALL_REMAP: return action_remap(vm, r);
	case GUEST_CALL_FORK: return child_fork(vm);
	case GUEST_CALL_FORK_SUM: return child_sum(vm, c->arg, r, &c->val);
	case GUEST_CALL_LOG_RESET: return log_reset(vm);
	case GUEST_CALL_LOG_READ: return log_read(vm, r, c->arg);
	case GUEST_CALL_CHECK: return (int64_t)action_check(vm);
	case GUEST_CALL_LEAVES: return count_leaves(vm, r, &c->val);
	case GUEST_CALL_FREE: return action_free(vm, r);
	case GUEST_CALL_NOP:
	case GUEST_CALL_NR: break;
	}
	return 0;
}

/* --audit: after every call that changes something. */
static void audit_after(struct vm *vm, uint32_t nr)
{
	if (vm->config.audit && nr != GUEST_CALL_CHECK && nr < GUEST_CALL_NR && action_check(vm))
		vm_stop(vm, VMM_EXIT_INTERNAL, "the tables were wrong after host call \"%s\"",
			names[nr]);
}

void hostcall(struct vm *vm, struct vcpu *vcpu, gpa_t request)
{
	struct hostcalls *h = vm->hostcalls;
	struct guest_hostcall c;

	(void)vcpu;
	if (guest_read(vm, request, &c, sizeof(c))) {
		vm_log(vm, VM_LOG_WARN,
		       "host call: request at 0x%" PRIx64 " is not in memory: ignored", request.v);
		pthread_mutex_lock(&h->lock);
		h->stats.unknown++;
		pthread_mutex_unlock(&h->lock);
		return;
	}
	c.val = 0;
	c.ret = request.v % 8 ? -EINVAL : carry_out(vm, &c);
	vm_log(vm, VM_LOG_DEBUG, "host call %s(0x%" PRIx64 ", %" PRIu64 ", %" PRIu64 "): %" PRId64,
	       hostcall_name(c.nr), c.gpa, c.len, c.arg, c.ret);
	pthread_mutex_lock(&h->lock);
	if (c.nr >= GUEST_CALL_NR) {
		h->stats.unknown++;
	} else {
		h->stats.calls[c.nr]++;
		h->stats.failed[c.nr] += c.ret < 0;
	}
	pthread_mutex_unlock(&h->lock);
	audit_after(vm, c.nr);
	if (guest_write(vm, (gpa_t){ request.v + offsetof(struct guest_hostcall, val) }, &c.val,
			sizeof(c.val) + sizeof(c.ret)))
		vm_log(vm, VM_LOG_WARN, "host call %s: its answer cannot be written at 0x%" PRIx64,
		       hostcall_name(c.nr), request.v);
}
