/* SPDX-License-Identifier: BSD-2-Clause */
/* With the module, an audit under which the kernel never held still has shown nothing, and is counted as such. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <vmm/report_private.h>
#include <vmm/vm_private.h>

#include "shadow/events/module.h"
#include "tests/integration/events_host.h"

#define RECORDS 16U
#define BYTES   (4 * UMBRA_PAGE_SIZE)

/* The kernel's half: it counts what it begins, and writes the record when this test lets it. */
static struct umbra_ntf_record records[RECORDS];
static struct umbra_ntf_state state;
static struct umbra_ntf_consumer consumer;
static struct host h;
static struct vm vm;
static char *ram;

static void set_up(void)
{
	const struct umbra_ring_consumer ring = {
		.records = records, .mask = RECORDS - 1, .state = &state, .consumer = &consumer
	};
	struct hva_range all;

	host_create(&h);
	ram = host_anon(&h, BYTES);
	cr_assert_not_null(ram);
	all = hva_range_of(ram, BYTES);
	vm.root = h.root;
	vm.hostmap = h.map;
	cr_assert_eq(module_over(&vm.module, h.chain, &ring, NULL, &all, 1, UMBRA_PAGE_SHIFT), 0);
	cr_assert(host_touch(&h, ram, BYTES, UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE));
}

static void tear_down(void)
{
	umbra_module_close(vm.module);
	host_destroy(&h);
}

TestSuite(sources_audit, .init = set_up, .fini = tear_down);

/* The page is gone, and nobody but the kernel could have said so. */
static void taken_by_the_kernel(void)
{
	state.begun++;
	cr_assert_eq(madvise(ram, UMBRA_PAGE_SIZE, MADV_DONTNEED), 0);
}

static void told_at_last(void)
{
	struct umbra_ring_producer kernel = { records, RECORDS - 1, 0, 0, &state, &consumer };
	struct umbra_ntf_record rec = { .start = (uintptr_t)ram,
					.end = (uintptr_t)ram + UMBRA_PAGE_SIZE,
					.begun = state.begun,
					.kind = UMBRA_NTF_START,
					.event = UMBRA_NTF_CLEAR };

	umbra_ring_push(&kernel, &rec);
	state.ended++;
	rec.kind = UMBRA_NTF_END;
	umbra_ring_push(&kernel, &rec);
}

Test(sources_audit, a_kernel_that_never_holds_still_leaves_it_open)
{
	struct umbra_audit_report report = { .leaves = 7 };
	bool inconclusive = false;

	taken_by_the_kernel();
	cr_expect_eq(sources_audit(&vm, &report, &inconclusive, NULL), 0);
	cr_expect(inconclusive);
	cr_expect_eq(report.stale, 0);
	cr_expect_eq(report.leaves, 0, "what was looked at says nothing");

	told_at_last();
	cr_expect_eq(sources_audit(&vm, &report, &inconclusive, NULL), 0);
	cr_expect_not(inconclusive);
	cr_expect_eq(report.leaves, BYTES / UMBRA_PAGE_SIZE - 1);
}

Test(sources_audit, a_kernel_that_holds_still_has_no_excuse)
{
	struct umbra_audit_report report;
	bool inconclusive = true;

	cr_assert_eq(madvise(ram, UMBRA_PAGE_SIZE, MADV_DONTNEED), 0);
	cr_expect_eq(sources_audit(&vm, &report, &inconclusive, NULL), 1);
	cr_expect_not(inconclusive);
}

static const char *text_of(const struct action_stats *s)
{
	static char text[1000];
	FILE *out = fmemopen(text, sizeof(text), "w");

	cr_assert_not_null(out);
	report_print_checks(s, out);
	fclose(out);
	return text;
}

Test(sources_report, an_audit_that_says_nothing_is_in_the_account_when_there_was_one)
{
	struct action_stats s = { .checks = 5 };
	json_t *json = report_checks_json(&s);

	cr_expect_null(strstr(text_of(&s), "say nothing"));
	cr_expect_null(json_object_get(json, "audits_inconclusive"));
	json_decref(json);

	s.audits_inconclusive = 2;
	json = report_checks_json(&s);
	cr_expect_not_null(strstr(text_of(&s), "\n2 of these audits say nothing: "));
	cr_expect_eq(json_integer_value(json_object_get(json, "audits_inconclusive")), 2);
	json_decref(json);
}
