/* SPDX-License-Identifier: BSD-2-Clause */
/* KVM's tracepoints while a guest runs: each unmap is looked for among what was announced about that time. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <vmm/limits.h>
#include <vmm/tracefs.h>
#include <vmm/vm_private.h>
#include <vmm/witness.h>

#define ANNOUNCED_MAX 32768U /* powers of two */
#define PENDING_MAX   32768U
#define WAIT_MS       100
/* Userfaultfd and the module announce when they are read: so much later, at most, and REMOVE a little earlier. */
#define SLACK_NS 1000000000ULL

/* One range that was announced. @to: when it ended; ~0 while it is open. */
struct announced {
	struct hva_range hva;
	uint64_t from, to;
	enum umbra_source source;
	bool exact; /* a bracket: what it covers comes between its ends */
};

struct witness {
	struct umbra_tracepoint *rings;
	struct tracefs_symbols *symbols;
	_Atomic bool stop;
	pid_t self;
	struct hva_range ram;

	struct umbra_notifier listener;
	pthread_mutex_t lock; /* over @announced, a leaf: nothing is called under it */
	struct announced announced[ANNOUNCED_MAX];
	uint64_t announced_nr; /* ever */

	struct umbra_tracepoint_record pending[PENDING_MAX];
	uint64_t head, tail;
	struct witness_stats stats;

	struct {
		pid_t pid;
		char name[20];
	} kthreads[64];
	unsigned int kthreads_nr;
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/* ---- what is announced ----------------------------------------------------------------------------- */

static void announce(struct witness *w, const struct umbra_range *of, struct hva_range r,
		     uint64_t now)
{
	/* a copy that a write of ours turns out to have made is announced when it is seen */
	const bool bracket = of->source == UMBRA_SOURCE_OWN || of->source == UMBRA_SOURCE_CORE;

	w->announced[w->announced_nr++ % ANNOUNCED_MAX] =
		(struct announced){ r, now, ~0ULL, of->source,
				    bracket && of->cause != UMBRA_CAUSE_COW };
}

static struct witness *witness_of(struct umbra_notifier *n)
{
	return (struct witness *)(void *)((char *)n - offsetof(struct witness, listener));
}

static int on_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct witness *w = witness_of(n);
	const uint64_t now = now_ns();

	pthread_mutex_lock(&w->lock);
	for (uint32_t i = 0; i < r->nr; i++)
		announce(w, r, r->v[i], now);
	if (!r->nr)
		announce(w, r, r->hull, now);
	pthread_mutex_unlock(&w->lock);
	return 0;
}

/* The newest open one of that range and source is over. */
static void end_one(struct witness *w, enum umbra_source source, struct hva_range r, uint64_t now)
{
	const uint64_t oldest =
		w->announced_nr > ANNOUNCED_MAX ? w->announced_nr - ANNOUNCED_MAX : 0;

	for (uint64_t i = w->announced_nr; i > oldest; i--) {
		struct announced *a = &w->announced[(i - 1) % ANNOUNCED_MAX];

		if (a->to == ~0ULL && a->source == source && a->hva.start.v == r.start.v &&
		    a->hva.end.v == r.end.v) {
			a->to = now;
			return;
		}
	}
}

static void on_end(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct witness *w = witness_of(n);
	const uint64_t now = now_ns();

	pthread_mutex_lock(&w->lock);
	for (uint32_t i = 0; i < r->nr; i++)
		end_one(w, r->source, r->v[i], now);
	if (!r->nr)
		end_one(w, r->source, r->hull, now);
	pthread_mutex_unlock(&w->lock);
}

static const struct umbra_notifier_ops listener_ops = {
	.invalidate_range_start = on_start,
	.invalidate_range_end = on_end,
};

/* ---- the comparison ---------------------------------------------------------------------------------- */

static bool in_time(const struct announced *a, uint64_t time)
{
	const uint64_t slack = a->exact ? 0 : SLACK_NS;

	return a->from <= time + slack && (a->to == ~0ULL || time <= a->to + slack);
}

enum announcement { NOBODY, NARROWER, WHOLE, FORGOTTEN };

static enum announcement look_up(struct witness *w, const struct umbra_tracepoint_record *rec)
{
	const uint64_t oldest =
		w->announced_nr > ANNOUNCED_MAX ? w->announced_nr - ANNOUNCED_MAX : 0;
	struct hva_range need = {
		{ rec->hva.start.v > w->ram.start.v ? rec->hva.start.v : w->ram.start.v },
		{ rec->hva.end.v < w->ram.end.v ? rec->hva.end.v : w->ram.end.v },
	};
	bool met = false, forgot;

	pthread_mutex_lock(&w->lock);
	for (uint64_t i = w->announced_nr; i > oldest && need.start.v < need.end.v; i--) {
		const struct announced *a = &w->announced[(i - 1) % ANNOUNCED_MAX];

		met |= in_time(a, rec->time_ns) && hva_range_cut(&need, a->hva);
	}
	forgot = oldest && w->announced[oldest % ANNOUNCED_MAX].from > rec->time_ns;
	pthread_mutex_unlock(&w->lock);
	if (need.start.v >= need.end.v)
		return WHOLE;
	return forgot ? FORGOTTEN : met ? NARROWER : NOBODY;
}

/* Functions of the kernel that say what it was about; the first that is found, from the outermost inward. */
static const struct {
	const char *function, *path;
} paths[] = {
	{ "khugepaged", "khugepaged" },
	{ "madvise_collapse", "MADV_COLLAPSE" },
	{ "ksm_scan_thread", "KSM" },
	{ "kcompactd", "compaction" },
	{ "compact_zone", "compaction" },
	{ "kswapd", "reclaim by kswapd" },
	{ "try_to_free_pages", "direct reclaim" },
	{ "try_to_free_mem_cgroup_pages", "reclaim in a memory cgroup" },
	{ "reclaim_pages", "MADV_PAGEOUT" },
	{ "task_numa_work", "NUMA balancing" },
	{ "migrate_misplaced_folio", "NUMA balancing" },
	{ "migrate_misplaced_page", "NUMA balancing" },
	{ "migrate_pages", "migration" },
	{ "memory_failure", "memory failure" },
	{ "clear_refs_write", "clear_refs" },
	{ "dup_mmap", "fork" },
	{ "do_mprotect_pkey", "mprotect" },
	{ "userfaultfd_ioctl", "userfaultfd" },
	{ "do_madvise", "madvise" },
	{ "process_madvise", "madvise" },
	{ "__x64_sys_mremap", "mremap" },
	{ "__do_sys_mremap", "mremap" },
	{ "mremap_to", "mremap" },
	{ "__x64_sys_munmap", "munmap" },
	{ "__vm_munmap", "munmap" },
	{ "do_mmap", "mmap over" },
	{ "vfs_fallocate", "fallocate" },
	{ "do_truncate", "truncate" },
	{ "do_writepages", "writeback" },
	{ "do_wp_page", "copy-on-write" },
	{ "handle_mm_fault", "page fault" },
};

static const char *path_of(const struct witness *w, const struct umbra_tracepoint_record *rec)
{
	for (uint32_t i = rec->nr_stack; i > 0; i--) {
		const char *name = tracefs_symbol(w->symbols, rec->stack[i - 1]);

		for (size_t k = 0; name && k < sizeof(paths) / sizeof(paths[0]); k++) {
			if (strcmp(name, paths[k].function) == 0)
				return paths[k].path;
		}
	}
	return NULL;
}

static const char *who_of(const struct witness *w, const struct umbra_tracepoint_record *rec)
{
	for (unsigned int i = 0; i < w->kthreads_nr; i++) {
		if (w->kthreads[i].pid == rec->pid)
			return w->kthreads[i].name;
	}
	return rec->pid == w->self ? "this process" : "another process";
}

static void blame(struct witness *w, const struct umbra_tracepoint_record *rec, bool wider)
{
	struct witness_stats *s = &w->stats;
	const char *path = path_of(w, rec);
	char name[sizeof(s->by[0].name)];
	unsigned int i = 0;

	snprintf(name, sizeof(name), "%s%s%s", path ? path : "", path ? ", " : "", who_of(w, rec));
	while (i < s->nr && (s->by[i].wider != wider || strcmp(s->by[i].name, name) != 0))
		i++;
	if (i == WITNESS_KINDS)
		i--; /* the last stands for all that follow, too */
	if (i == s->nr) {
		s->nr++;
		memcpy(s->by[i].name, name, sizeof(name));
		s->by[i].wider = wider;
		s->by[i].nr_stack = rec->nr_stack;
		memcpy(s->by[i].stack, rec->stack, sizeof(rec->stack));
	}
	s->by[i].n++;
}

/* Those that are old enough for whatever source to have announced them. */
static void compare(struct witness *w, uint64_t until)
{
	for (; w->tail < w->head; w->tail++) {
		const struct umbra_tracepoint_record *rec = &w->pending[w->tail % PENDING_MAX];
		enum announcement said;

		if (rec->time_ns > until)
			break;
		said = look_up(w, rec);
		if (said == FORGOTTEN) {
			w->stats.not_compared++;
			continue;
		}
		w->stats.compared++;
		w->stats.unannounced += said == NOBODY;
		w->stats.wider += said == NARROWER;
		if (said != WHOLE)
			blame(w, rec, said == NARROWER);
	}
}

static void on_record(void *ctx, const struct umbra_tracepoint_record *rec)
{
	struct witness *w = ctx;

	if (rec->kind != UMBRA_TRACEPOINT_UNMAP)
		return;
	if (w->head - w->tail == PENDING_MAX)
		w->stats.not_compared++;
	else
		w->pending[w->head++ % PENDING_MAX] = *rec;
}

void witness_run(struct vm *vm)
{
	struct witness *w = vm->witness;

	while (!w->stop) {
		const int e = umbra_tracepoint_wait(w->rings, WAIT_MS);

		if (e) {
			vm_log(vm, VM_LOG_WARN, "the witness fell asleep: %s", strerror(-e));
			return;
		}
		umbra_tracepoint_drain(w->rings, on_record, w);
		compare(w, now_ns() - 2 * SLACK_NS);
	}
}

void witness_stop(struct vm *vm)
{
	if (vm->witness)
		vm->witness->stop = true;
}

void witness_collect(struct vm *vm, struct witness_stats *stats)
{
	struct witness *w = vm->witness;

	umbra_tracepoint_drain(w->rings, on_record, w);
	compare(w, ~0ULL);
	*stats = w->stats;
	umbra_tracepoint_stats(w->rings, &stats->seen);
}

const char *witness_symbol(const struct vm *vm, uint64_t address)
{
	return tracefs_symbol(vm->witness->symbols, address);
}

/* ---- opening -------------------------------------------------------------------------------------------- */

/* Kernel threads have no memory of their own, so no command line. Their names are read before the sandbox is closed. */
static void learn_kthreads(struct witness *w)
{
	static const char *const names[] = { "kswapd", "kcompactd", "khugepaged", "ksmd",
					     "kworker" };
	DIR *proc = opendir("/proc");
	struct dirent *d;

	while (proc && (d = readdir(proc)) && w->kthreads_nr < 64) {
		char path[300], name[20] = "";
		FILE *f;

		if (!isdigit((unsigned char)d->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/comm", d->d_name);
		f = fopen(path, "re");
		if (f && !fgets(name, sizeof(name), f))
			name[0] = '\0';
		if (f)
			fclose(f);
		name[strcspn(name, "\n")] = '\0';
		for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
			if (strncmp(name, names[i], strlen(names[i])) != 0)
				continue;
			w->kthreads[w->kthreads_nr].pid = atoi(d->d_name);
			memcpy(w->kthreads[w->kthreads_nr].name, name, sizeof(name));
			w->kthreads_nr++;
			break;
		}
	}
	if (proc)
		closedir(proc);
}

static int no_witness(struct vm_error *err, const char *why)
{
	return vm_fail(
		err, VMM_EXIT_CANNOT_RUN,
		"--source tracepoints: %s; or leave tracepoints out: then nobody checks what the "
		"other sources saw",
		why);
}

int witness_create(struct vm *vm, struct vm_error *err)
{
	const struct hva_range ram = { vm->ram, { vm->ram.v + vm->config.memory } };
	struct umbra_tracepoint_config config = {
		.ranges = &ram, .nr = 1, .stacks = vm->config.stacks, .ring_order = 8
	};
	struct witness *w;
	char why[200];
	int e;

	if (!vm->config.events_tracepoints)
		return 0;
	if (tracefs_formats(config.formats, why, sizeof(why)))
		return no_witness(err, why);
	w = calloc(1, sizeof(*w));
	if (!w)
		return vm_fail_host(err, ENOMEM, "the witness");
	vm->witness = w;
	pthread_mutex_init(&w->lock, NULL);
	w->self = getpid();
	w->ram = ram;
	w->listener = (struct umbra_notifier){ .ops = &listener_ops, .name = "witness" };
	learn_kthreads(w);
	if (vm->config.stacks) {
		w->symbols = tracefs_symbols_load();
		if (!w->symbols)
			vm_log(vm, VM_LOG_WARN,
			       "--stacks: /proc/kallsyms shows no addresses; functions have no names");
	}
	e = umbra_tracepoint_open(&w->rings, &config);
	if (e && limits_error(-e))
		return vm_fail_host(err, -e, "perf rings");
	if (e) {
		tracefs_no_witness(-e, why, sizeof(why));
		return no_witness(err, why);
	}
	e = umbra_chain_register(vm->chain, &w->listener);
	if (e) {
		w->listener.ops = NULL;
		return vm_fail(err, VMM_EXIT_INTERNAL, "witness: %s", strerror(-e));
	}
	return 0;
}

void witness_destroy(struct vm *vm)
{
	struct witness *w = vm->witness;

	if (!w)
		return;
	if (w->rings && w->listener.ops)
		umbra_chain_unregister(vm->chain, &w->listener);
	umbra_tracepoint_close(w->rings);
	tracefs_symbols_free(w->symbols);
	pthread_mutex_destroy(&w->lock);
	free(w);
	vm->witness = NULL;
}
