/* SPDX-License-Identifier: BSD-2-Clause */
/* The account at the end: collected while everything still stands, printed when the guest is gone.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/resource.h>
#include <vmm/actions.h>
#include <vmm/chaos.h>
#include <vmm/devices.h>
#include <vmm/hostcall.h>
#include <vmm/limits.h>
#include <vmm/memory.h>
#include <vmm/report_private.h>
#include <vmm/vm_private.h>

static void count(struct report_cell *cell, uint64_t bytes)
{
	atomic_fetch_add_explicit(&cell->n, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&cell->bytes, bytes, memory_order_relaxed);
}

static void log_range(struct vm *vm, const struct umbra_range *r)
{
	char who[SOURCES_WHO_MAX];

	vm_log(vm, VM_LOG_DEBUG, "invalidation: %s by %s (%s), hva %#" PRIx64 "..%#" PRIx64 "%s",
	       umbra_cause_name(r->cause), umbra_source_name(r->source),
	       sources_who(r->source, r->who, r->flags, who), r->hull.start.v, r->hull.end.v,
	       r->nr > 1 ? ", parts of it" : "");
}

static int on_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	struct report *rep =
		(struct report *)(void *)((char *)n - offsetof(struct report, notifier));
	uint64_t bytes = 0;

	if (r->source >= UMBRA_SOURCE_NR || r->cause >= UMBRA_CAUSE_NR)
		return 0;
	for (uint32_t i = 0; i < r->nr; i++)
		bytes += r->v[i].end.v - r->v[i].start.v;
	if (!r->nr)
		bytes = r->hull.end.v - r->hull.start.v;
	count(&rep->cell[r->source][r->cause], bytes);
	if (r->source == UMBRA_SOURCE_MODULE)
		count(&rep->callout[r->cause][sources_doer(r->who, r->flags)][!!(
			      r->flags & UMBRA_RANGE_DIRECT)][!(r->flags & UMBRA_RANGE_NO_WAIT)],
		      bytes);
	if (rep->vm->config.log >= VM_LOG_DEBUG)
		log_range(rep->vm, r);
	return 0;
}

static const struct umbra_notifier_ops ops = { .invalidate_range_start = on_start };

int report_create(struct vm *vm, struct vm_error *err)
{
	struct report *r = calloc(1, sizeof(*r));
	int e;

	if (!r)
		return vm_fail_host(err, ENOMEM, "the report");
	r->notifier = (struct umbra_notifier){ .ops = &ops, .name = "report" };
	r->vm = vm;
	e = umbra_chain_register(vm->chain, &r->notifier);
	if (e) {
		free(r);
		return vm_fail(err, VMM_EXIT_INTERNAL, "report: %s", strerror(-e));
	}
	vm->report = r;
	return 0;
}

void report_destroy(struct vm *vm)
{
	if (!vm->report)
		return;
	umbra_chain_unregister(vm->chain, &vm->report->notifier);
	free(vm->report);
	vm->report = NULL;
}

void report_collect(struct vm *vm)
{
	struct report *r = vm->report;
	struct timespec now;
	struct rusage usage;

	clock_gettime(CLOCK_MONOTONIC, &now);
	r->seconds = (double)((uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec -
			      vm->start_ns) /
		     1e9;
	umbra_mmu_stats(vm->mmu, &r->mmu);
	shootdown_stats(vm, &r->shootdown);
	for (unsigned int i = 0; i < vm->config.vcpus; i++) {
		struct vcpu_stats one;

		vcpu_stats(vm->vcpus[i], &one);
#define ADD(name) r->vcpu.name += one.name;
		VCPU_STATS(ADD)
#undef ADD
	}
	action_stats(vm, &r->action);
	chaos_stats(vm, &r->chaos);
	hostcall_stats(vm, &r->hostcall);
	devices_stats(vm, &r->devices);
	if (vm->uffd)
		umbra_uffd_stats(vm->uffd, &r->uffd);
	if (vm->module)
		umbra_module_stats(vm->module, &r->module);
	if (vm->witness)
		witness_collect(vm, &r->witness);
	if (getrusage(RUSAGE_SELF, &usage) == 0)
		r->peak_rss = (uint64_t)usage.ru_maxrss * 1024;
}

/* ---- text --------------------------------------------------------------------------------------
 */

static const char *human(uint64_t bytes, char *buf, size_t size)
{
	static const char units[] = "KMGT";
	double v = (double)bytes / 1024;
	unsigned int u = 0;

	while (v >= 1024 && units[u + 1]) {
		v /= 1024;
		u++;
	}
	snprintf(buf, size, v < 10 ? "%.1f%c" : "%.0f%c", v, units[u]);
	return buf;
}

/* The actions that both a guest and chaos can ask for. */
static const enum guest_hostcall_nr call_of[CHAOS_ACTION_NR] = {
	[CHAOS_DISCARD] = GUEST_CALL_DISCARD,   [CHAOS_FREE] = GUEST_CALL_FREE,
	[CHAOS_PROTECT] = GUEST_CALL_PROTECT,   [CHAOS_SPLIT] = GUEST_CALL_SPLIT,
	[CHAOS_COLLAPSE] = GUEST_CALL_COLLAPSE, [CHAOS_SWAP] = GUEST_CALL_SWAPOUT,
	[CHAOS_REMAP] = GUEST_CALL_REMAP,       [CHAOS_FORK] = GUEST_CALL_FORK,
};

static void print_refused(const struct report *r, FILE *out)
{
	bool skipped = false;

	for (unsigned int a = 0; a < CHAOS_ACTION_NR; a++) {
		const struct chaos_action_stats *s = &r->chaos.action[a];

		skipped |= s->skipped != 0;
		for (unsigned int i = 0; i < CHAOS_ERRNOS_MAX && s->why[i].n; i++)
			fprintf(out, "  %s refused %" PRIu64 " times: %s (%s)\n",
				chaos_action_name((enum chaos_action)a), s->why[i].n,
				chaos_why((enum chaos_action)a, s->why[i].error),
				strerrorname_np(s->why[i].error));
	}
	if (skipped)
		fprintf(out,
			"  left out: what empties memory, as the guest gave none for it (an arena)\n");
}

static void print_host(const struct report *r, FILE *out)
{
	bool chaos = r->chaos.steps, any = false;

	fprintf(out, "\nWhat the host did to guest memory%s\n",
		chaos ? "\n               asked by the guest               by chaos\n"
			"                   done   refused       done   refused  left out"
		      : "          done   refused");
	for (unsigned int a = 0; a < CHAOS_ACTION_NR; a++) {
		const struct chaos_action_stats *s = &r->chaos.action[a];
		const uint64_t calls = r->hostcall.calls[call_of[a]],
			       failed = r->hostcall.failed[call_of[a]];

		if (!calls && !s->done && !s->refused && !s->skipped)
			continue;
		any = true;
		fprintf(out, "  %-10s %10" PRIu64 " %9" PRIu64,
			chaos_action_name((enum chaos_action)a), calls - failed, failed);
		if (chaos)
			fprintf(out, " %10" PRIu64 " %9" PRIu64 " %9" PRIu64, s->done, s->refused,
				s->skipped);
		fputc('\n', out);
	}
	if (!any)
		fprintf(out, "  nothing\n");
	print_refused(r, out);
}

static void print_invalidations(const struct report *r, FILE *out)
{
	static const char *const sources[UMBRA_SOURCE_NR] = {
		[UMBRA_SOURCE_OWN] = "vmm's own calls",
		[UMBRA_SOURCE_UFFD] = "userfaultfd",
		[UMBRA_SOURCE_MODULE] = "kernel module",
	};
	bool any = false;
	char size[16];

	for (unsigned int s = 0; s < UMBRA_SOURCE_NR; s++) {
		for (unsigned int c = 0; c < UMBRA_CAUSE_NR; c++) {
			uint64_t n = r->cell[s][c].n;

			if (!n)
				continue;
			if (!any)
				fprintf(out,
					"\nInvalidations that Umbra obeyed, by who told of them\n");
			any = true;
			fprintf(out, "  %-10s %-15s %12" PRIu64 " %8s\n",
				umbra_cause_name((enum umbra_cause)c),
				sources[s] ? sources[s] : umbra_source_name((enum umbra_source)s),
				n, human(r->cell[s][c].bytes, size, sizeof(size)));
		}
	}
}

static void print_stack(const struct vm *vm, const uint64_t *stack, uint32_t nr, FILE *out)
{
	for (uint32_t i = 0; i < nr; i++) {
		const char *name = witness_symbol(vm, stack[i]);

		if (name)
			fprintf(out, "        %s\n", name);
		else
			fprintf(out, "        %#" PRIx64 "\n", stack[i]);
	}
}

static void print_blamed(const struct vm *vm, const struct witness_stats *w, bool wider, FILE *out)
{
	for (unsigned int i = 0; i < w->nr; i++) {
		if (w->by[i].wider != wider)
			continue;
		fprintf(out, "    %-34s %12" PRIu64 "\n", w->by[i].name, w->by[i].n);
		print_stack(vm, w->by[i].stack, w->by[i].nr_stack, out);
	}
}

static void print_witness(const struct vm *vm, const struct witness_stats *w, FILE *out)
{
	const uint64_t *n = w->seen.records;

	fprintf(out,
		"\nWitness: what KVM was told of guest memory, by its tracepoints\n"
		"  %-36s %12" PRIu64 "\n  %-36s %12" PRIu64 "\n  %-36s %12" PRIu64 "\n",
		"unmaps", n[UMBRA_TRACEPOINT_UNMAP], "asked whether a page is young",
		n[UMBRA_TRACEPOINT_AGE] + n[UMBRA_TRACEPOINT_TEST_AGE], "records lost",
		w->seen.lost);
	if (w->not_compared)
		fprintf(out, "  %-36s %12" PRIu64 "\n", "unmaps too many to compare",
			w->not_compared);
	fprintf(out, "  %-36s %12" PRIu64 "\n", "seen by KVM, announced by nobody", w->unannounced);
	print_blamed(vm, w, false, out);
	fprintf(out, "  %-36s %12" PRIu64 "\n", "seen by KVM, announced in part", w->wider);
	print_blamed(vm, w, true, out);
}

void report_print_checks(const struct action_stats *s, FILE *out)
{
	fprintf(out,
		"\nCheck and audit: %" PRIu64 " times, %" PRIu64 " leaves, %" PRIu64
		" frames compared: %s",
		s->checks, s->audited_leaves, s->audited_pfns,
		s->violations ? "" : "no violation\n");
	if (s->violations)
		fprintf(out, "%" PRIu64 " VIOLATIONS\n", s->violations);
	if (s->audits_inconclusive)
		fprintf(out,
			"%" PRIu64
			" of these audits say nothing: the kernel moved memory under each look\n",
			s->audits_inconclusive);
	if (s->moved_by_kernel)
		fprintf(out,
			"%" PRIu64
			" pages were moved by the kernel itself (khugepaged, compaction), which "
			"no source in use sees\n",
			s->moved_by_kernel);
}

int report_print_text(struct vm *vm, FILE *out)
{
	const struct report *r = vm->report;
	const struct umbra_stats *m = &r->mmu;
	char size[16];

	fprintf(out, "\n%s\n", vm->stop_why);
	fprintf(out,
		"%" PRIu64 "M of memory, %s, pages %s; %u vCPUs; %.3f s; %s resident at most\n",
		vm->config.memory >> 20, vm->ram_fd < 0 ? "anon" : "memfd",
		memory_pages_effective(vm), vm->config.vcpus, r->seconds,
		human(r->peak_rss, size, sizeof(size)));
	print_host(r, out);
	print_invalidations(r, out);
	fprintf(out, "\nShadow tables\n");
#define ROW(name, value) fprintf(out, "  %-36s %12" PRIu64 "\n", name, (uint64_t)(value))
	ROW("faults", m->faults);
	ROW("leaves installed, 4K", m->installed_4k);
	ROW("leaves installed, 2M", m->installed_2m);
	ROW("leaves upgraded to writable", m->upgraded);
	ROW("retried, invalidation open", m->retried_open);
	ROW("retried, invalidation in between", m->retried_seq);
	ROW("leaves zapped, 4K", m->zapped_4k);
	ROW("leaves zapped, 2M", m->zapped_2m);
	ROW("leaves write-protected", m->protected);
	ROW("leaves split", m->split);
	ROW("starts refused", m->refused);
	ROW("leaves now, 4K", m->leaves_4k);
	ROW("leaves now, 2M", m->leaves_2m);
	ROW("table pages now", m->tables);
	fprintf(out, "\nShootdowns and vCPUs\n");
	ROW("shootdowns", r->shootdown.posts);
	ROW("kicks", r->shootdown.kicks);
	ROW("waits for a vCPU", r->shootdown.waits);
	ROW("exits", r->vcpu.exits);
	ROW("page faults served", r->vcpu.faults);
	ROW("instructions emulated", r->vcpu.emulated);
	ROW("flushes in the monitor", r->vcpu.flushes);
	ROW("serial lines", r->devices.serial_lines);
	ROW("writes caught by PROTECT", r->action.protect_hits);
	ROW("writes caught by chaos", r->action.chaos_hits);
	if (vm->uffd) {
		fprintf(out, "\nuserfaultfd\n");
		ROW("events: remove", r->uffd.removes);
		ROW("events: unmap", r->uffd.unmaps);
		ROW("events: remap", r->uffd.remaps);
		ROW("events: fork", r->uffd.forks);
		ROW("of removes, our own calls", r->uffd.own_removes);
		ROW("of removes, outside callers waited for", r->uffd.settled);
	}
	if (vm->module) {
		fprintf(out, "\nKernel module\n");
		ROW("callouts, begun", r->module.starts);
		ROW("of these, by this process", r->module.by_owner);
		ROW("of these, by reclaim", r->module.by_reclaim);
		ROW("of these, by kernel threads", r->module.by_kthread);
		ROW("of these, by others", r->module.by_others);
		ROW("of these, inside another", r->module.nested);
		ROW("of these, direct: announced by vmm, too", r->module.direct);
		ROW("of these, not blockable", r->module.not_blockable);
		ROW("records lost", r->module.lost);
		ROW("times all was dropped because of it", r->module.recoveries);
		ROW("asked whether a page is young", r->module.young_asked);
		ROW("of these, answered yes", r->module.young_yes);
	}
#undef ROW
	if (vm->witness)
		print_witness(vm, &r->witness, out);
	report_print_checks(&r->action, out);
	return ferror(out) ? -EIO : 0;
}
