/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * TLB shootdown: every removed or downgraded entry is made effective by a vCPU in the monitor.
 *
 * Tickets. Every record (changed entries side by side in one table page, or one unlinked table page) has a number, 1 and
 * up.
 *
 *	touched <= head <= tail
 *
 * tail: queued. head: posted, that is complete and visible to vCPUs. touched: some vCPU has
 * completed touching all up to here, so KVM has forgotten it; these records are gone. Each vCPU has
 * flushed <= touched: its own TLB holds nothing older.
 *
 * A vCPU is OUT or IN(covers). IN means that it may run guest code; covers is the ticket up to
 *which it flushed, or flushes in the monitor before it goes on to the guest. OUT counts as
 * acknowledged: before a vCPU becomes IN it collects everything posted. While it only delivers an
 * exception or carries out a part of a command, after which it leaves again without running guest
 * code, it stays OUT.
 *
 * Lock record (shootdown->lock): protects touched and the records up to head (they are
 * read under it, and overwritten only once touched has passed them), and the two condition
 * "somebody left" and "hold is over". Taken after the mmu lock (flush_done) or with nothing held;
 * nothing of the MMU is called under it. tail and the records beyond head belong to the holder of
 * the mmu lock. state, kicked, head, lost and hold are atomics.
 *
 * No lost kick, 1: poster against vCPU
 *
 *	poster                                  vCPU
 *	memory: entry changed                   covers = head; command built for it
 *	(1) head = ticket                       immediate_exit = 0; kicked = 0
 *	(2) read state                          (3) state = IN(covers)
 *	      OUT: done                         (4) read head
 *	      IN(c), c >= ticket: done                > covers: state = OUT, collect again
 *	      IN(c), c < ticket: kick, wait     KVM_RUN
 *
 *	1 to 4 are seq_cst, so they have one order for all. If the poster reads OUT, 2 is before 3,
 *	hence 1 before 4: the vCPU reads the new head and collects again. If the vCPU reads the old
 *	head, 4 is before 1, hence 3 before 2: the poster reads IN and kicks.
 *
 * No lost kick, 2: kicker against KVM_RUN
 *
 *	kicker (has seen IN)                    vCPU
 *	kicked: was 1 -> nothing to do          immediate_exit = 0
 *	immediate_exit = 1                      kicked = 0
 *	tgkill                                  state = IN
 *	                                        KVM_RUN
 *
 *	The kicker stores immediate_exit itself, so it does not matter when the handler (which does
 *	nothing) runs. Before KVM looks at it: KVM_RUN returns EINTR by immediate_exit. After: by
 *	the signal. The kicker read an IN that was stored after the two zeroes, so they cannot undo
 *	its ones; if that IN is over by now, the next stay is cut short for nothing. Who finds
 *kicked = 1 knows that a signal follows in this stay: kicked was set after it was zeroed for this
 *stay.
 *
 * No lost wake: waiter against vCPU
 *
 *	waiter (lock held)                      vCPU
 *	waiters++                               state = OUT
 *	read state: IN(c < ticket)              read waiters: > 0: lock, broadcast, unlock
 *	wait (drops the lock)
 *
 *	Again all seq_cst. If the vCPU reads no waiter, its OUT was stored before the waiter reads
 *it.
 *
 * No deadlock: who waits is not a vCPU that is IN (a vCPU's thread is OUT whenever it is not in
 *KVM_RUN), so two vCPU threads that wait for each other find each other OUT.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <vmm/limits.h>
#include <vmm/shootdown.h>
#include <vmm/vcpu.h>
#include <vmm/vm_private.h>
#include <vmm/window.h>

#define RING       65536ULL /* records kept; what comes beyond is answered by a recycle */
#define RECYCLE_AT 8192ULL
#define BY_PAGE    8 /* up to so many pages invlpg each, beyond a CR3 reload costs less */
#define OUT        0ULL
#define LOOK_NS    60000 /* a vCPU elsewhere is out sooner than a sleeper is woken: bench/shootdown */

/* One table page, or up to RECORD_ENTRIES entries that stand side by side in one. */
struct record {
	uint64_t entry; /* index << 1 | table, of the first */
	uint64_t addr;  /* of the first | (entries - 1) << 3 | level */
};

#define RECORD_ENTRIES 127U /* four full records are one full command */
_Static_assert(4 * RECORD_ENTRIES <= MONITOR_LIST_MAX, "a record fits in a command");

struct cpu {
	_Alignas(64) _Atomic uint64_t state; /* OUT, or IN: covers + 1 */
	_Atomic int kicked;
	_Atomic int at; /* the host CPU it became IN on: a hint */
	/* the vCPU's thread only */
	uint64_t flushed, commanded, acked;
	bool command_leaves;
};

struct shootdown {
	struct record *ring;
	uint64_t tail;
	_Atomic uint64_t head, touched;
	_Atomic uint64_t lost; /* newest ticket whose record found no room */
	_Atomic uint64_t recycle_at;
	_Atomic bool hold;     /* nobody may become IN */
	_Atomic bool ever_ran; /* before the first IN nothing can be cached */
	_Atomic int waiters;
	unsigned int ncpus;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	_Atomic uint64_t posts, kicks, waits, recycles;
	struct cpu cpus[VM_VCPUS_MAX];
};

int shootdown_create(struct vm *vm, struct vm_error *err)
{
	struct shootdown *sd = aligned_alloc(64, sizeof(*sd));

	if (!sd)
		return vm_fail_host(err, ENOMEM, "the shootdown ring");
	memset(sd, 0, sizeof(*sd));
	sd->ring = mmap(NULL, RING * sizeof(*sd->ring), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (sd->ring == MAP_FAILED) {
		free(sd);
		return vm_fail_host(err, ENOMEM, "the shootdown ring");
	}
	atomic_init(&sd->recycle_at, RECYCLE_AT);
	sd->ncpus = vm->config.vcpus;
	pthread_mutex_init(&sd->lock, NULL);
	pthread_cond_init(&sd->changed, NULL);
	vm->shootdown = sd;
	return 0;
}

void shootdown_destroy(struct vm *vm)
{
	struct shootdown *sd = vm->shootdown;

	if (!sd)
		return;
	pthread_cond_destroy(&sd->changed);
	pthread_mutex_destroy(&sd->lock);
	munmap(sd->ring, RING * sizeof(*sd->ring));
	free(sd);
	vm->shootdown = NULL;
}

void shootdown_set_recycle_at(struct vm *vm, uint64_t entries)
{
	atomic_store(&vm->shootdown->recycle_at, entries < RING ? entries : RING);
}

void shootdown_stats(const struct vm *vm, struct shootdown_stats *stats)
{
	struct shootdown *sd = vm->shootdown;

	*stats = (struct shootdown_stats){
		.posts = atomic_load(&sd->posts),
		.kicks = atomic_load(&sd->kicks),
		.waits = atomic_load(&sd->waits),
		.recycles = atomic_load(&sd->recycles),
	};
	/* In this order: touched never overtakes head. */
	stats->pending = atomic_load(&sd->touched);
	stats->pending = atomic_load(&sd->head) - stats->pending;
}

/* ---- what the MMU says --------------------------------------------------------------------- */

static void queue_record(struct shootdown *sd, const struct umbra_flush_entry *e, uint32_t n)
{
	uint64_t ticket = ++sd->tail;

	/* Pairs with touch_up_to(): a slot is free once nobody can be reading it any more. */
	if (ticket - atomic_load_explicit(&sd->touched, memory_order_acquire) > RING) {
		atomic_store_explicit(&sd->lost, ticket,
				      memory_order_relaxed); /* head publishes it */
		return;
	}
	sd->ring[ticket % RING] = (struct record){
		.entry = e->index << 1 | e->table,
		.addr = (e->addr & ~(UMBRA_PAGE_SIZE - 1)) | (uint64_t)(n - 1) << 3 | e->level,
	};
}

void shootdown_queue_run(struct vm *vm, const struct umbra_flush_entry *first, uint32_t n)
{
	struct umbra_flush_entry e = *first;

	while (n) {
		const uint32_t some = n < RECORD_ENTRIES ? n : RECORD_ENTRIES;

		queue_record(vm->shootdown, &e, some);
		e.index += some;
		e.addr += (uint64_t)some << UMBRA_PAGE_SHIFT;
		n -= some;
	}
}

void shootdown_queue(struct vm *vm, const struct umbra_flush_entry *e)
{
	queue_record(vm->shootdown, e, 1);
}

uint64_t shootdown_post(struct vm *vm)
{
	struct shootdown *sd = vm->shootdown;

	if (atomic_load_explicit(&sd->head, memory_order_relaxed) != sd->tail) {
		atomic_store(&sd->head, sd->tail);
		atomic_store_explicit(&sd->posts,
				      atomic_load_explicit(&sd->posts, memory_order_relaxed) + 1,
				      memory_order_relaxed); /* one writer: the mmu lock */
	}
	return sd->tail;
}

static bool runs_without(struct cpu *cpu, uint64_t ticket)
{
	uint64_t state = atomic_load(&cpu->state);

	return state != OUT && state - 1 < ticket;
}

static void kick(struct vm *vm, unsigned int index)
{
	struct shootdown *sd = vm->shootdown;

	if (atomic_exchange(&sd->cpus[index].kicked, 1))
		return;
	atomic_fetch_add_explicit(&sd->kicks, 1, memory_order_relaxed);
	vcpu_kick(vm->vcpus[index]);
}

/* Kicks each vCPU that runs without @ticket. Returns: is there one? */
static bool kick_laggards(struct vm *vm, uint64_t ticket)
{
	struct shootdown *sd = vm->shootdown;
	bool any = false;

	for (unsigned int i = 0; i < sd->ncpus; i++) {
		if (!runs_without(&sd->cpus[i], ticket))
			continue;
		kick(vm, i);
		any = true;
	}
	return any;
}

/* Until no vCPU runs without @ticket. Locks: sd->lock held, dropped while waiting. */
static void wait_for_laggards(struct vm *vm, uint64_t ticket)
{
	struct shootdown *sd = vm->shootdown;

	atomic_fetch_add(&sd->waiters, 1);
	while (kick_laggards(vm, ticket))
		pthread_cond_wait(&sd->changed, &sd->lock);
	atomic_fetch_sub(&sd->waiters, 1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/*
 * Kicks the laggards and looks for a while whether they are out: nobody has to be woken then. Not while one of them
 * is on this very CPU, where it gets on only when we sleep. Returns: is none left?
 */
static bool look_for_laggards(struct vm *vm, uint64_t ticket)
{
	struct shootdown *sd = vm->shootdown;
	const int here = sched_getcpu();
	const uint64_t end = now_ns() + LOOK_NS;

	for (unsigned int turn = 0;; turn++) {
		bool any = false, elsewhere = true;

		for (unsigned int i = 0; i < sd->ncpus; i++) {
			struct cpu *cpu = &sd->cpus[i];

			if (!runs_without(cpu, ticket))
				continue;
			if (!atomic_load_explicit(&cpu->kicked, memory_order_relaxed))
				kick(vm, i);
			any = true;
			elsewhere &= atomic_load_explicit(&cpu->at, memory_order_relaxed) != here;
		}
		if (!any)
			return true;
		if (!elsewhere || (turn % 64 == 63 && now_ns() >= end))
			return false;
		__builtin_ia32_pause();
	}
}

int shootdown_wait(struct vm *vm, uint64_t ticket, bool may_wait)
{
	struct shootdown *sd = vm->shootdown;
	bool any = false;

	for (unsigned int i = 0; i < sd->ncpus && !any; i++)
		any = runs_without(&sd->cpus[i], ticket);
	if (!any)
		return 0;
	if (!may_wait)
		return kick_laggards(vm, ticket) ? -EAGAIN : 0;
	atomic_fetch_add_explicit(&sd->waits, 1, memory_order_relaxed);
	if (look_for_laggards(vm, ticket))
		return 0;
	pthread_mutex_lock(&sd->lock);
	wait_for_laggards(vm, ticket);
	pthread_mutex_unlock(&sd->lock);
	return 0;
}

/* Records up to @ticket are done with. Locks: sd->lock held: so nobody is reading one. */
static void touch_up_to_locked(struct shootdown *sd, uint64_t ticket)
{
	if (ticket > atomic_load_explicit(&sd->touched, memory_order_relaxed))
		atomic_store_explicit(&sd->touched, ticket, memory_order_release);
}

bool shootdown_done(struct vm *vm, uint64_t ticket)
{
	struct shootdown *sd = vm->shootdown;

	if (!atomic_load(&sd->ever_ran))
		return true;
	if (atomic_load(&sd->touched) < ticket) {
		uint64_t acked = 0;

		/* A vCPU that runs on after its flush has not told yet; its ack word has. */
		for (unsigned int i = 0; i < sd->ncpus; i++) {
			uint64_t ack = monitor_ack(vm, i);

			acked = ack > acked ? ack : acked;
		}
		if (acked < ticket)
			return false;
		pthread_mutex_lock(&sd->lock);
		touch_up_to_locked(sd, acked);
		pthread_mutex_unlock(&sd->lock);
	}
	for (unsigned int i = 0; i < sd->ncpus; i++)
		if (runs_without(&sd->cpus[i], ticket))
			return false;
	return true;
}

/* ---- what a vCPU does ---------------------------------------------------------------------- */

/*
 * Everything posted is forgotten at once. Every vCPU is held OUT meanwhile: one that ran could walk
 * an entry that it cached between the deletion of the slot and the mark.
 */
static void recycle(struct vm *vm)
{
	struct shootdown *sd = vm->shootdown;
	uint64_t head;
	int ret;

	pthread_mutex_lock(&sd->lock);
	if (atomic_load(&sd->hold)) { /* somebody else does it: look again when that is over */
		while (atomic_load(&sd->hold))
			pthread_cond_wait(&sd->changed, &sd->lock);
		pthread_mutex_unlock(&sd->lock);
		return;
	}
	atomic_store(&sd->hold, true);
	wait_for_laggards(vm, ~0ULL);
	head = atomic_load(&sd->head);
	ret = window_forget_shadows(vm);
	if (!ret)
		touch_up_to_locked(sd, head);
	atomic_fetch_add(&sd->recycles, 1);
	atomic_store(&sd->hold, false);
	pthread_cond_broadcast(&sd->changed);
	pthread_mutex_unlock(&sd->lock);
	if (ret)
		vm_stop(vm, VMM_EXIT_INTERNAL, "KVM_SET_USER_MEMORY_REGION, spare slot: %s",
			strerror(-ret));
}

static unsigned int record_level(const struct record *r)
{
	return (unsigned int)(r->addr & 7);
}

static unsigned int record_entries(const struct record *r)
{
	return (unsigned int)(r->addr >> 3 & 0x1ff) + 1;
}

/*
 * Entries of the @n records after @from; with more than @most of them, @n becomes the number of records that have no
 * more than @most, and the answer is above @most. Locks: sd->lock held.
 */
static uint64_t count_locked(const struct shootdown *sd, uint64_t from, uint64_t *n, uint64_t most)
{
	uint64_t sum = 0;

	for (uint64_t i = 1; i <= *n; i++) {
		sum += record_entries(&sd->ring[(from + i) % RING]);
		if (sum > most) {
			*n = i - 1;
			break;
		}
	}
	return sum;
}

/* Sorts @n records after @from into @flush, tables first. Locks: sd->lock held. */
static bool fill_locked(struct shootdown *sd, uint64_t from, uint64_t n,
			struct monitor_flush *flush)
{
	bool small = true; /* and all are leaves of 4K */

	flush->tables = flush->entries = flush->pages = 0;
	for (int tables = 1; tables >= 0; tables--) {
		for (uint64_t t = from + 1; t <= from + n; t++) {
			const struct record *r = &sd->ring[t % RING];

			if ((int)(r->entry & 1) != tables)
				continue;
			for (unsigned int i = 0; i < record_entries(r); i++)
				flush->list[flush->tables + flush->entries + i] =
					WINDOW_VIRT + ((r->entry >> 1) + i) * 8;
			if (tables)
				flush->tables++;
			else
				flush->entries += record_entries(r);
			/* Above 4K the old entry may have been a table: any page below it. */
			if (tables || record_level(r) != UMBRA_LEVEL_4K)
				small = false;
		}
	}
	return small && flush->entries <= BY_PAGE;
}

static void fill_pages_locked(struct shootdown *sd, uint64_t from, uint64_t n,
			      struct monitor_flush *flush)
{
	for (uint64_t t = from + 1; t <= from + n; t++) {
		const struct record *r = &sd->ring[t % RING];
		const uint64_t addr = r->addr & ~(UMBRA_PAGE_SIZE - 1);

		for (unsigned int i = 0; i < record_entries(r); i++)
			flush->list[flush->entries + flush->pages++] =
				addr + ((uint64_t)i << UMBRA_PAGE_SHIFT);
	}
}

uint64_t shootdown_collect(struct vm *vm, unsigned int index, struct monitor_flush *flush,
			   bool *needed)
{
	struct shootdown *sd = vm->shootdown;
	struct cpu *cpu = &sd->cpus[index];
	uint64_t head, touched, n, some, most;
	bool by_page;

	for (;;) {
		/* Pairs with shootdown_post(). */
		head = atomic_load_explicit(&sd->head, memory_order_acquire);
		*needed = cpu->flushed != head;
		if (!*needed)
			return head;
		pthread_mutex_lock(&sd->lock);
		if (!atomic_load(&sd->ever_ran))
			touch_up_to_locked(sd, head); /* no vCPU has cached anything yet */
		touched = atomic_load_explicit(&sd->touched, memory_order_relaxed);
		if (touched > head)
			head = touched; /* posted and touched by another vCPU since */
		some = n = head - touched;
		most = atomic_load_explicit(&sd->recycle_at, memory_order_relaxed);
		if (!n || (atomic_load_explicit(&sd->lost, memory_order_relaxed) <= touched &&
			   count_locked(sd, touched, &some, most) <= most))
			break;
		pthread_mutex_unlock(&sd->lock);
		if (vm_stopping(vm))
			return head; /* it will not run any more */
		recycle(vm);
	}
	some = n;
	flush->leave = count_locked(sd, touched, &some, MONITOR_LIST_MAX) > MONITOR_LIST_MAX;
	n = some;
	by_page = fill_locked(sd, touched, n, flush);
	/* By page only if these records are all that this vCPU has not flushed. */
	if (by_page && cpu->flushed == touched)
		fill_pages_locked(sd, touched, n, flush);
	pthread_mutex_unlock(&sd->lock);
	flush->ticket = touched + n;
	cpu->commanded = flush->ticket;
	cpu->command_leaves = flush->leave;
	return flush->ticket;
}

/* Locks: none. Whoever waits for this vCPU, or for the end of a hold, looks again. */
static void leave(struct shootdown *sd, struct cpu *cpu)
{
	if (atomic_load_explicit(&cpu->state, memory_order_relaxed) == OUT)
		return;
	atomic_store(&cpu->state, OUT);
	if (!atomic_load(&sd->waiters))
		return;
	pthread_mutex_lock(&sd->lock);
	pthread_cond_broadcast(&sd->changed);
	pthread_mutex_unlock(&sd->lock);
}

bool shootdown_enter(struct vm *vm, unsigned int index, uint64_t ticket)
{
	struct shootdown *sd = vm->shootdown;
	struct cpu *cpu = &sd->cpus[index];

	if (!atomic_load_explicit(&sd->ever_ran, memory_order_relaxed))
		atomic_store(&sd->ever_ran, true);
	atomic_store_explicit(&cpu->at, sched_getcpu(), memory_order_relaxed);
	atomic_store(&cpu->kicked, 0);
	atomic_store(&cpu->state, ticket + 1);
	if (atomic_load(&sd->head) <= ticket && !atomic_load(&sd->hold))
		return true;
	leave(sd, cpu);
	pthread_mutex_lock(&sd->lock);
	while (atomic_load(&sd->hold))
		pthread_cond_wait(&sd->changed, &sd->lock);
	pthread_mutex_unlock(&sd->lock);
	return false;
}

void shootdown_exit(struct vm *vm, unsigned int index)
{
	struct shootdown *sd = vm->shootdown;
	struct cpu *cpu = &sd->cpus[index];

	leave(sd, cpu);
	/* The ack of a command, not of one before it: tickets of one vCPU's commands grow. */
	if (cpu->acked == cpu->commanded || monitor_ack(vm, index) != cpu->commanded)
		return;
	cpu->acked = cpu->commanded;
	if (!cpu->command_leaves)
		cpu->flushed = cpu->commanded;
	pthread_mutex_lock(&sd->lock);
	touch_up_to_locked(sd, cpu->acked);
	pthread_mutex_unlock(&sd->lock);
}
