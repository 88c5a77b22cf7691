/* SPDX-License-Identifier: BSD-2-Clause */
/* One row of the oracle: memory, tables and sources of its own, the action, and what came of it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <vmm/oracle_machine.h>

#define WINDOW_PAGES 64
#define FAULT_TRIES  1000
#define SETTLE_TRIES 20
#define REST_LOOKS   250 /* of 20 ms */
#define REST_STILL   5

/* ---- for the actions ------------------------------------------------------------------------------ */

struct hva_range oracle_range(const struct oracle *o, uint64_t offset, uint64_t bytes)
{
	return (struct hva_range){ { o->mem.v + offset }, { o->mem.v + offset + bytes } };
}

void oracle_names(struct oracle *o, uint64_t offset, uint64_t bytes)
{
	if (o->named_nr < sizeof(o->named) / sizeof(o->named[0]))
		o->named[o->named_nr++] = oracle_range(o, offset, bytes);
}

void oracle_refuses(struct oracle *o, uint64_t offset, uint64_t bytes)
{
	if (o->refused_nr < sizeof(o->refused) / sizeof(o->refused[0]))
		o->refused[o->refused_nr++] = oracle_range(o, offset, bytes);
}

int oracle_why(struct oracle *o, int error, const char *fmt, ...)
{
	va_list ap;

	if (!error || o->why[0])
		return error;
	va_start(ap, fmt);
	vsnprintf(o->why, sizeof(o->why), fmt, ap);
	va_end(ap);
	return error;
}

/* ---- the process beside -------------------------------------------------------------------------------- */

/* What an action leaves, as a child tells it. */
struct told {
	int rc;
	struct hva_range named[4];
	unsigned int named_nr;
	char why[160];
};

static void child_main(struct oracle *o, int from, int to)
{
	struct told told = { 0 };
	char go;

	if (read(from, &go, 1) == 1) {
		told.rc = o->row->act(o);
		memcpy(told.named, o->named, sizeof(told.named));
		told.named_nr = o->named_nr;
		memcpy(told.why, o->why, sizeof(told.why));
		if (write(to, &told, sizeof(told)) < 0)
			_exit(1);
	}
	while (read(from, &go, 1) > 0)
		;
	_exit(0);
}

static int child_start(struct oracle *o)
{
	int down[2], up[2];

	if (pipe2(down, O_CLOEXEC) < 0)
		return -errno;
	if (pipe2(up, O_CLOEXEC) < 0) {
		close(down[0]);
		close(down[1]);
		return -ENFILE;
	}
	o->child = fork();
	if (o->child == 0) {
		close(down[1]);
		close(up[0]);
		child_main(o, down[0], up[1]);
	}
	close(down[0]);
	close(up[1]);
	o->to_child = down[1];
	o->from_child = up[0];
	return o->child < 0 ? -EAGAIN : 0;
}

int oracle_child_acts(struct oracle *o)
{
	struct told told;

	if (write(o->to_child, "", 1) != 1 ||
	    read(o->from_child, &told, sizeof(told)) != (ssize_t)sizeof(told))
		return oracle_why(o, -ECHILD, "the other process ended early");
	memcpy(o->named, told.named, sizeof(o->named));
	o->named_nr = told.named_nr;
	memcpy(o->why, told.why, sizeof(o->why));
	return told.rc;
}

void oracle_child_ends(struct oracle *o)
{
	if (o->child > 0) {
		kill(o->child, SIGKILL);
		waitpid(o->child, NULL, 0);
	}
	if (o->to_child >= 0)
		close(o->to_child);
	if (o->from_child >= 0)
		close(o->from_child);
	o->child = o->to_child = o->from_child = -1;
}

/* ---- the tables ------------------------------------------------------------------------------------------ */

static int op_alloc(void *ctx, uint64_t *index)
{
	struct oracle *o = ctx;

	if (!o->window_nr)
		return -ENOSPC;
	*index = o->window_free[--o->window_nr];
	return 0;
}

static void op_free(void *ctx, uint64_t index)
{
	struct oracle *o = ctx;

	o->window_free[o->window_nr++] = index;
}

static int op_resolve(void *ctx, const struct umbra_resolve_req *req, struct umbra_resolved *res)
{
	struct oracle *o = ctx;
	int e;

	if (o->module)
		umbra_module_drain(o->module);
	e = umbra_hostmap_resolve(o->map, o->chain, req, res);
	if (o->module)
		umbra_module_drain(o->module);
	return e;
}

/* Nobody walks a mirror: there is nothing to flush. */
static void op_flush_queue(void *ctx, const struct umbra_flush_entry *e)
{
	(void)ctx;
	(void)e;
}

static uint64_t op_flush_post(void *ctx)
{
	(void)ctx;
	return 0;
}

static int op_flush_wait(void *ctx, uint64_t ticket, bool may_wait)
{
	(void)ctx;
	(void)ticket;
	(void)may_wait;
	return 0;
}

static bool op_flush_done(void *ctx, uint64_t ticket)
{
	(void)ctx;
	(void)ticket;
	return true;
}

static const struct umbra_mmu_ops mmu_ops = {
	.table_alloc = op_alloc,
	.table_free = op_free,
	.resolve = op_resolve,
	.flush_queue = op_flush_queue,
	.flush_post = op_flush_post,
	.flush_wait = op_flush_wait,
	.flush_done = op_flush_done,
};

static int make_tables(struct oracle *o)
{
	struct umbra_mmu_config config = {
		.os = &umbra_os_posix,
		.ops = &mmu_ops,
		.ctx = o,
		.window_pages = WINDOW_PAGES,
		.flags = UMBRA_MMU_RECORD_PFN,
	};
	const struct umbra_memslot slot = {
		.id = 1,
		.npages = ORACLE_PAGES,
		.hva = o->mem,
		.out = { o->mem.v >> UMBRA_PAGE_SHIFT },
	};
	int e;

	o->window = mmap(NULL, WINDOW_PAGES * UMBRA_PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (o->window == MAP_FAILED) {
		o->window = NULL;
		return -ENOMEM;
	}
	for (unsigned int i = WINDOW_PAGES; i > 0; i--)
		o->window_free[o->window_nr++] = i - 1;
	config.window = o->window;
	e = umbra_chain_create(&o->chain, &umbra_os_posix);
	e = e ? e : umbra_hostmap_open(&o->map, 0);
	e = e ? e : umbra_own_create(&o->own, o->chain, o->map);
	e = e ? e : umbra_mmu_create(&o->mmu, &config);
	e = e ? e : umbra_chain_register(o->chain, umbra_mmu_notifier(o->mmu));
	if (e)
		return e;
	o->listener = (struct umbra_notifier){ .ops = &oracle_listener_ops, .name = "oracle" };
	e = umbra_chain_register(o->chain, &o->listener);
	o->on_chain = !e;
	e = e ? e : umbra_root_create(o->mmu, UMBRA_ROOT_MIRROR, &o->root);
	return e ? e : umbra_memslot_add(o->mmu, &slot);
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

static int make_fd(struct oracle *o)
{
	char path[] = "/var/tmp/umbra-oracle.XXXXXX";

	switch (o->row->memory) {
	case ORACLE_MEMFD:
	case ORACLE_MEMFD_THP:
	case ORACLE_PRIVATE: o->fd = memfd_create("umbra-oracle", MFD_CLOEXEC); break;
	case ORACLE_HUGETLB_FD:
		o->fd = memfd_create("umbra-oracle", MFD_CLOEXEC | MFD_HUGETLB | 21U << 26);
		break;
	case ORACLE_FILE:
		o->fd = mkostemp(path, O_CLOEXEC);
		if (o->fd >= 0)
			unlink(path);
		break;
	default: return 0;
	}
	if (o->fd < 0 || ftruncate(o->fd, (off_t)ORACLE_BYTES) < 0)
		return oracle_why(o, -errno, "a file of 6M");
	return 0;
}

static int make_memory(struct oracle *o)
{
	const enum oracle_memory m = o->row->memory;
	int flags = MAP_FIXED, e = make_fd(o);
	uintptr_t at;

	if (e)
		return e;
	o->reservation = mmap(NULL, ORACLE_BYTES + 2 * UMBRA_HUGE_SIZE, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (o->reservation == MAP_FAILED) {
		o->reservation = NULL;
		return -errno;
	}
	at = ((uintptr_t)o->reservation + UMBRA_HUGE_SIZE) & ~(UMBRA_HUGE_SIZE - 1);
	flags |= o->fd >= 0 && m != ORACLE_PRIVATE ? MAP_SHARED : MAP_PRIVATE;
	flags |= o->fd < 0 ? MAP_ANONYMOUS : 0;
	flags |= m == ORACLE_HUGETLB ? MAP_HUGETLB | 21 << 26 : 0;
	if (mmap((void *)at, ORACLE_BYTES, PROT_READ | PROT_WRITE, flags, o->fd, 0) == MAP_FAILED)
		return oracle_why(o, -errno, "%s",
				  m >= ORACLE_HUGETLB
					  ? "no three free hugepages of 2M (nr_hugepages)"
					  : "6M of memory");
	o->mem = (hva_t){ at };
	if (m == ORACLE_THP || m == ORACLE_MEMFD_THP)
		return oracle_why(o, madvise((void *)at, ORACLE_BYTES, MADV_HUGEPAGE) ? -errno : 0,
				  "this kernel has no transparent hugepages");
	if (m < ORACLE_HUGETLB)
		madvise((void *)at, ORACLE_BYTES, MADV_NOHUGEPAGE); /* EINVAL: has none */
	return 0;
}

static bool is_hole(const struct oracle *o, uint64_t offset)
{
	return (o->row->flags & ORACLE_HOLE &&
		offset / UMBRA_PAGE_SIZE == ORACLE_AT / UMBRA_PAGE_SIZE) ||
	       (o->row->flags & ORACLE_HOLE_LAST && offset >= ORACLE_LAST);
}

void oracle_touch(struct oracle *o)
{
	for (uint64_t at = 0; at < ORACLE_BYTES; at += UMBRA_PAGE_SIZE) {
		volatile char *p = (char *)(uintptr_t)(o->mem.v + at);

		if (is_hole(o, at))
			continue;
		if (o->row->flags & ORACLE_ZEROES)
			(void)*p;
		else
			*p = (char)(at >> UMBRA_PAGE_SHIFT | 1);
	}
}

static int make_kvm_slot(struct oracle *o, uint64_t bytes)
{
	struct kvm_userspace_memory_region slot = {
		.slot = 0,
		.memory_size = bytes,
		.userspace_addr = o->mem.v,
	};

	if (o->vm_fd < 0 || !o->mem.v)
		return 0;
	return oracle_why(o, ioctl(o->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) ? -errno : 0,
			  "KVM's memory slot");
}

/* ---- sources ------------------------------------------------------------------------------------------------- */

static void *read_uffd(void *arg)
{
	struct oracle *o = arg;

	umbra_uffd_run(o->uffd);
	return NULL;
}

static int start_uffd(struct oracle *o)
{
	const struct umbra_uffd_config config = { .fd = -1, .own = o->own };
	struct umbra_uffd_tried tried;
	int e = umbra_uffd_open(&o->uffd, o->chain, &config, &tried);

	if (e)
		return oracle_why(o, e, "userfaultfd");
	e = -pthread_create(&o->reader, NULL, read_uffd, o);
	o->reading = !e;
	if (e)
		return e;
	/* a kind of memory that this kernel's userfaultfd does not take is a cell, not an error */
	o->registered =
		!(o->row->flags & ORACLE_NO_UFFD) &&
		!umbra_uffd_register(o->uffd, oracle_range(o, 0, ORACLE_BYTES), UMBRA_UFFD_WP);
	if (!o->registered && o->row->flags & ORACLE_NEEDS_UFFD)
		return oracle_why(o, -ENOTSUP, "userfaultfd does not take this memory");
	return 0;
}

static int start_sources(struct oracle *o, const struct oracle_sources *s)
{
	const struct hva_range all = oracle_range(o, 0, ORACLE_BYTES);
	const struct umbra_module_config module = { .fd = -1, .ranges = &all, .nr = 1 };
	const bool fd = o->fd >= 0, hugetlb = o->row->memory >= ORACLE_HUGETLB;
	const struct umbra_region region = {
		.hva = all,
		.fd = o->fd,
		.hugepage = hugetlb ? UMBRA_HUGE_SIZE : 0,
		.is_private = !fd || o->row->memory == ORACLE_PRIVATE,
	};
	int e = umbra_region_add(o->own, &region);

	if (!e && !s->off[UMBRA_SOURCE_UFFD])
		e = start_uffd(o);
	else if (!e && o->row->flags & ORACLE_NEEDS_UFFD)
		return oracle_why(o, -ENOTSUP, "there is no userfaultfd");
	if (!e && !s->off[UMBRA_SOURCE_MODULE])
		e = oracle_why(o, umbra_module_open(&o->module, o->chain, &module), "the module");
	o->tracepoint = s->witness;
	return e;
}

void oracle_drain(struct oracle *o)
{
	if (o->reading)
		umbra_uffd_drain(o->uffd);
	if (o->module)
		umbra_module_drain(o->module);
	if (o->tracepoint)
		umbra_tracepoint_drain(o->tracepoint, oracle_on_record, o);
}

/* ---- leaves ------------------------------------------------------------------------------------ */

static int install(struct oracle *o)
{
	for (uint64_t at = 0; at < ORACLE_BYTES; at += UMBRA_PAGE_SIZE) {
		struct umbra_fault f = {
			.gpa = { at },
			.access = o->row->flags & ORACLE_READ
					  ? UMBRA_ACCESS_READ
					  : UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE,
		};
		enum umbra_fault_result r = UMBRA_FAULT_RETRY;
		struct umbra_page p;

		/* absent ones stay so: a fault would bring them back */
		if (umbra_hostmap_query(o->map, (hva_t){ o->mem.v + at }, &p) ||
		    !(p.flags & UMBRA_PAGE_PRESENT))
			continue;
		for (int i = 0; i < FAULT_TRIES && r == UMBRA_FAULT_RETRY; i++) {
			if (i > 8)
				oracle_drain(o);
			r = umbra_fault(o->root, &f);
		}
		if (r != UMBRA_FAULT_INSTALLED && r != UMBRA_FAULT_SPURIOUS)
			return oracle_why(o, -EIO, "no leaf at page %u: %s",
					  (unsigned int)(at >> UMBRA_PAGE_SHIFT),
					  umbra_fault_name(r));
	}
	return 0;
}

/* ---- one row ----------------------------------------------------------------------------------------------------- */

static void *act_thread(void *arg)
{
	struct oracle *o = arg;

	return (void *)(intptr_t)o->row->act(o);
}

static int act(struct oracle *o)
{
	pthread_t id;
	void *rc;

	switch (o->actor) {
	case ORACLE_PROCESS: return oracle_child_acts(o);
	case ORACLE_THREAD:
		if (pthread_create(&id, NULL, act_thread, o))
			return -EAGAIN;
		pthread_join(id, &rc);
		return (int)(intptr_t)rc;
	default: return o->row->act(o);
	}
}

static void destroy(struct oracle *o)
{
	oracle_child_ends(o);
	oracle_keeper_end(o);
	if (o->reading) {
		umbra_uffd_stop(o->uffd);
		pthread_join(o->reader, NULL);
	}
	if (o->uffd)
		umbra_uffd_close(o->uffd);
	umbra_module_close(o->module);
	if (o->on_chain)
		umbra_chain_unregister(o->chain, &o->listener);
	if (o->root) {
		umbra_chain_unregister(o->chain, umbra_mmu_notifier(o->mmu));
		umbra_root_destroy(o->root);
	}
	if (o->mmu)
		umbra_mmu_destroy(o->mmu);
	if (o->own)
		umbra_own_destroy(o->own);
	if (o->map)
		umbra_hostmap_close(o->map);
	if (o->chain)
		umbra_chain_destroy(o->chain);
	make_kvm_slot(o, 0);
	if (o->reservation)
		munmap(o->reservation, ORACLE_BYTES + 2 * UMBRA_HUGE_SIZE);
	if (o->window)
		munmap(o->window, WINDOW_PAGES * UMBRA_PAGE_SIZE);
	if (o->ballast)
		munmap(o->ballast, ORACLE_BALLAST);
	if (o->fd >= 0)
		close(o->fd);
	pthread_mutex_destroy(&o->lock);
	free(o);
}

static int prepare(struct oracle *o, const struct oracle_sources *s)
{
	int e = 0;

	if (o->row->flags & ORACLE_SWAPS && !oracle_host_swaps())
		return oracle_why(o, -ENOTSUP, "there is no swap");
	if (o->row->flags & ORACLE_SETTINGS)
		e = oracle_keeper_start(o);
	e = e ? e : make_memory(o);
	if (e)
		return e;
	oracle_touch(o);
	if (o->row->flags & ORACLE_CHILD || o->actor == ORACLE_PROCESS)
		e = child_start(o);
	e = e ? e : make_tables(o);
	e = e ? e : make_kvm_slot(o, ORACLE_BYTES);
	e = e ? e : start_sources(o, s);
	if (!e && o->row->prepare)
		e = o->row->prepare(o);
	if (!e)
		oracle_drain(o);
	e = e ? e : install(o);
	if (e)
		return e;
	oracle_drain(o);
	oracle_look(o);
	return 0;
}

/* What the kernel had begun goes on for a moment: until nothing is heard any more. */
static void come_to_rest(struct oracle *o)
{
	const struct timespec moment = { 0, 20 * 1000 * 1000 };
	unsigned int heard = 0, still = 0;

	for (int i = 0; i < REST_LOOKS && still < REST_STILL; i++) {
		nanosleep(&moment, NULL);
		oracle_drain(o);
		still = oracle_heard_so_far(o) == heard ? still + 1 : 0;
		heard = oracle_heard_so_far(o);
	}
}

/* The kernel may go on by itself (khugepaged collapses what was split): what it does while we look is heard, and looked at again. */
static void judge_at_rest(struct oracle *o, const struct oracle_sources *s, struct oracle_result *r)
{
	unsigned int heard;

	for (int i = 0; i < SETTLE_TRIES; i++) {
		oracle_drain(o);
		heard = oracle_heard_so_far(o);
		memset(r, 0, sizeof(*r));
		r->run = true;
		oracle_judge(o, s, r);
		oracle_drain(o);
		if (oracle_heard_so_far(o) == heard)
			return;
	}
}

int oracle_run(const struct oracle_row *row, enum oracle_actor actor,
	       const struct oracle_sources *s, int vm_fd, struct oracle_result *r)
{
	struct oracle *o = calloc(1, sizeof(*o));
	int e;

	memset(r, 0, sizeof(*r));
	if (!o)
		return -ENOMEM;
	o->row = row;
	o->actor = actor;
	o->vm_fd = vm_fd;
	o->fd = o->child = o->to_child = o->from_child = o->keeper = o->to_keeper = -1;
	pthread_mutex_init(&o->lock, NULL);
	e = prepare(o, s);
	if (!e) {
		o->named_nr = 0;
		o->listening = true;
		e = act(o);
		oracle_keeper_end(o);
		if (o->row->flags & ORACLE_SETTINGS)
			come_to_rest(o);
	}
	if (e == -ETIMEDOUT && o->why[0]) {
		snprintf(r->why, sizeof(r->why), "%s", o->why);
	} else if (e) {
		snprintf(r->why, sizeof(r->why), "%s%s%s", o->why, o->why[0] ? ": " : "",
			 strerror(-e));
	} else {
		judge_at_rest(o, s, r);
	}
	destroy(o);
	return 0;
}
