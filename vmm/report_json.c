/* SPDX-License-Identifier: BSD-2-Clause */
/* The account as one JSON object on one line. Keys are the names of the counters; docs/ has the
 * list. */
#include <errno.h>
#include <jansson.h>
#include <string.h>
#include <vmm/memory.h>
#include <vmm/report_private.h>
#include <vmm/vm_private.h>

static json_t *integer(uint64_t n)
{
	return json_integer((json_int_t)n);
}

static json_t *host_json(const struct report *r)
{
	json_t *all = json_array();

	for (unsigned int s = 0; s < UMBRA_SOURCE_NR; s++) {
		for (unsigned int c = 0; c < UMBRA_CAUSE_NR; c++) {
			if (!r->cell[s][c].n)
				continue;
			json_array_append_new(
				all, json_pack("{ss ss so so}", "source",
					       umbra_source_name((enum umbra_source)s), "cause",
					       umbra_cause_name((enum umbra_cause)c),
					       "invalidations", integer(r->cell[s][c].n), "bytes",
					       integer(r->cell[s][c].bytes)));
		}
	}
	return all;
}

static json_t *chaos_json(const struct vm *vm, const struct report *r)
{
	json_t *all = json_object(), *actions = json_object();

	json_object_set_new(all, "seed", integer(vm->config.chaos.seed));
	json_object_set_new(all, "steps", integer(r->chaos.steps));
	for (unsigned int a = 0; a < CHAOS_ACTION_NR; a++) {
		const struct chaos_action_stats *s = &r->chaos.action[a];
		json_t *why = json_object();

		for (unsigned int i = 0; i < CHAOS_ERRNOS_MAX && s->why[i].n; i++)
			json_object_set_new(why, strerrorname_np(s->why[i].error),
					    integer(s->why[i].n));
		json_object_set_new(actions, chaos_action_name((enum chaos_action)a),
				    json_pack("{so so so so}", "done", integer(s->done), "refused",
					      integer(s->refused), "no_arena", integer(s->skipped),
					      "why", why));
	}
	json_object_set_new(all, "actions", actions);
	return all;
}

static json_t *hostcalls_json(const struct report *r)
{
	json_t *all = json_object();

	for (uint32_t i = 0; i < GUEST_CALL_NR; i++) {
		if (r->hostcall.calls[i])
			json_object_set_new(all, hostcall_name(i),
					    json_pack("{so so}", "calls",
						      integer(r->hostcall.calls[i]), "failed",
						      integer(r->hostcall.failed[i])));
	}
	return all;
}

/* For the functions below: the counter @name of @from becomes a member of @all. */
#define FIELD(name) json_object_set_new(all, #name, integer(from->name));

static json_t *mmu_json(const struct umbra_stats *from)
{
	json_t *all = json_object();

	UMBRA_STATS(FIELD)
	FIELD(leaves_4k)
	FIELD(leaves_2m)
	FIELD(tables)
	FIELD(tables_unlinked)
	return all;
}

static json_t *vcpu_json(const struct vcpu_stats *from)
{
	json_t *all = json_object();

	VCPU_STATS(FIELD)
	return all;
}

static json_t *with_shootdown(json_t *all, const struct shootdown_stats *from)
{
	FIELD(posts)
	FIELD(kicks)
	FIELD(waits)
	FIELD(recycles)
	return all;
}

static json_t *uffd_json(const struct umbra_uffd_stats *from)
{
	json_t *all = json_object();

	FIELD(faults_missing)
	FIELD(faults_minor)
	FIELD(faults_wp)
	FIELD(removes)
	FIELD(unmaps)
	FIELD(remaps)
	FIELD(forks)
	FIELD(own_removes)
	FIELD(settled)
	FIELD(unsettled)
	FIELD(eagain)
	return all;
}

/* What the kernel told, by cause and doer; direct as it was known when it was applied. */
static json_t *callouts_json(const struct report *r)
{
	json_t *all = json_array();

	for (unsigned int i = 0; i < UMBRA_CAUSE_NR * SOURCES_DOER_NR * 4; i++) {
		const unsigned int cause = i / 4 / SOURCES_DOER_NR, doer = i / 4 % SOURCES_DOER_NR,
				   direct = i / 2 % 2, may_wait = i % 2;
		const struct report_cell *c = &r->callout[cause][doer][direct][may_wait];

		if (c->n)
			json_array_append_new(
				all, json_pack("{ss ss sb sb so so}", "cause",
					       umbra_cause_name((enum umbra_cause)cause), "who",
					       sources_doers[doer], "direct", (int)direct,
					       "blockable", (int)may_wait, "invalidations",
					       integer(c->n), "bytes", integer(c->bytes)));
	}
	return all;
}

static json_t *module_json(const struct report *r)
{
	const struct umbra_module_stats *from = &r->module;
	json_t *all = json_object();

	FIELD(starts)
	FIELD(ends)
	FIELD(by_owner)
	FIELD(by_reclaim)
	FIELD(by_kthread)
	FIELD(by_others)
	FIELD(nested)
	FIELD(direct)
	FIELD(not_blockable)
	FIELD(lost)
	FIELD(recoveries)
	FIELD(young_asked)
	FIELD(young_yes)
	json_object_set_new(all, "by", callouts_json(r));
	return all;
}

static json_t *witness_json(const struct vm *vm, const struct witness_stats *w)
{
	json_t *all = json_object(), *by = json_array();

	json_object_set_new(all, "unmaps", integer(w->seen.records[UMBRA_TRACEPOINT_UNMAP]));
	json_object_set_new(all, "ages", integer(w->seen.records[UMBRA_TRACEPOINT_AGE]));
	json_object_set_new(all, "test_ages", integer(w->seen.records[UMBRA_TRACEPOINT_TEST_AGE]));
	json_object_set_new(all, "lost", integer(w->seen.lost));
	json_object_set_new(all, "compared", integer(w->compared));
	json_object_set_new(all, "not_compared", integer(w->not_compared));
	json_object_set_new(all, "unannounced", integer(w->unannounced));
	json_object_set_new(all, "in_part", integer(w->wider));
	for (unsigned int i = 0; i < w->nr; i++) {
		json_t *stack = json_array();

		for (uint32_t k = 0; k < w->by[i].nr_stack; k++) {
			const char *name = witness_symbol(vm, w->by[i].stack[k]);

			json_array_append_new(stack, json_string(name ? name : "?"));
		}
		json_array_append_new(by, json_pack("{ss sb so so}", "by", w->by[i].name, "in_part",
						    w->by[i].wider, "unmaps", integer(w->by[i].n),
						    "stack", stack));
	}
	json_object_set_new(all, "by", by);
	return all;
}

json_t *report_checks_json(const struct action_stats *from)
{
	json_t *all = json_object();

	FIELD(checks)
	FIELD(violations)
	if (from->audits_inconclusive)
		FIELD(audits_inconclusive)
	FIELD(audited_leaves)
	FIELD(audited_pages)
	FIELD(audited_pfns)
	FIELD(audit_skipped)
	FIELD(moved_by_kernel)
	FIELD(protect_hits)
	FIELD(chaos_hits)
	return all;
}

#undef FIELD

int report_print_json(struct vm *vm, FILE *out)
{
	const struct report *r = vm->report;
	json_t *all = json_object();
	int e;

	if (!all)
		return -ENOMEM;
	json_object_set_new(all, "exit", json_integer(vm->stop_code));
	json_object_set_new(all, "why", json_string(vm->stop_why));
	json_object_set_new(all, "guest_exit_code",
			    r->devices.exited ? json_integer(r->devices.exit_code) : json_null());
	json_object_set_new(all, "memory", integer(vm->config.memory));
	json_object_set_new(all, "backing", json_string(vm->ram_fd < 0 ? "anon" : "memfd"));
	json_object_set_new(all, "pages", json_string(memory_pages_effective(vm)));
	json_object_set_new(all, "cpus", json_integer(vm->config.vcpus));
	json_object_set_new(all, "seconds", json_real(r->seconds));
	json_object_set_new(all, "peak_rss", integer(r->peak_rss));
	json_object_set_new(all, "host", host_json(r));
	json_object_set_new(all, "hostcalls", hostcalls_json(r));
	json_object_set_new(all, "mmu", mmu_json(&r->mmu));
	json_object_set_new(all, "vcpu", with_shootdown(vcpu_json(&r->vcpu), &r->shootdown));
	json_object_set_new(all, "check", report_checks_json(&r->action));
	if (vm->chaos)
		json_object_set_new(all, "chaos", chaos_json(vm, r));
	if (vm->uffd)
		json_object_set_new(all, "uffd", uffd_json(&r->uffd));
	if (vm->module)
		json_object_set_new(all, "module", module_json(r));
	if (vm->witness)
		json_object_set_new(all, "witness", witness_json(vm, &r->witness));
	e = json_dumpf(all, out, JSON_COMPACT) ? -EIO : 0;
	json_decref(all);
	if (!e && fputc('\n', out) == EOF)
		e = -EIO;
	return e;
}
