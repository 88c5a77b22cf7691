/* SPDX-License-Identifier: BSD-2-Clause */
/* The gate of the module as a source says "current" no earlier than when every consumer has dropped what changed. */
#include <criterion/criterion.h>

#include "shadow/events/module.h"
#include "tests/support/fakehost.h"

#define RECORDS 16U

static struct umbra_ntf_record records[RECORDS];
static struct umbra_ntf_state state;
static struct umbra_ntf_consumer consumer;
static uint64_t bitmap[64];
static struct umbra_module *m;
static unsigned int told, released, too_early;

static int on_start(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	(void)r;
	told++;
	too_early += umbra_gate_current(umbra_module_gate(m));
	return 0;
}

static void on_release(struct umbra_notifier *n)
{
	(void)n;
	if (!released++) /* it may come more than once */
		too_early += umbra_gate_current(umbra_module_gate(m));
}

static void publish(struct umbra_ring_producer *kernel, uint8_t kind)
{
	const struct hva_range r = fake_range(3, 1);
	struct umbra_ntf_record rec = { .start = r.start.v, .end = r.end.v, .kind = kind };

	if (kind == UMBRA_NTF_END)
		state.ended++;
	else
		state.begun++;
	rec.begun = state.begun;
	umbra_ring_push(kernel, &rec);
}

/* What the consumer is told of a start, of a loss, and of the release: the gate is shut meanwhile, and open after. */
Test(gate, is_shut_until_the_consumers_are_through)
{
	static const struct umbra_notifier_ops ops = { .invalidate_range_start = on_start,
						       .release = on_release };
	struct umbra_notifier witness = { .ops = &ops, .name = "witness" };
	struct umbra_ring_producer kernel = { records, RECORDS - 1, 0, 0, &state, &consumer };
	const struct umbra_ring_consumer ring = { records, RECORDS - 1, 0, &state, &consumer, 0 };
	struct fake *f = fake_create(NULL);
	const struct hva_range all = fake_range(0, f->npages);

	state.bitmap_bits = sizeof(bitmap) * 8;
	cr_assert_eq(module_over(&m, f->chain, &ring, bitmap, &all, 1, UMBRA_PAGE_SHIFT), 0);
	cr_assert_eq(umbra_chain_register(f->chain, &witness), 0);

	publish(&kernel, UMBRA_NTF_START);
	publish(&kernel, UMBRA_NTF_END);
	umbra_module_drain(m);
	cr_expect_eq(told, 1);
	cr_expect(umbra_gate_current(umbra_module_gate(m)));

	for (unsigned int i = 0; i < RECORDS; i++) {
		publish(&kernel, UMBRA_NTF_START);
		publish(&kernel, UMBRA_NTF_END);
	}
	cr_assert_neq(state.lost, 0);
	umbra_module_drain(m);
	cr_expect_eq(told, 2, "one bracket over everything");
	cr_expect(umbra_gate_current(umbra_module_gate(m)));

	publish(&kernel, UMBRA_NTF_RELEASE);
	umbra_module_drain(m);
	cr_expect_geq(released, 1);
	cr_expect(umbra_gate_current(umbra_module_gate(m)));
	cr_expect_eq(too_early, 0);
	umbra_module_close(m);
	umbra_chain_unregister(f->chain, &witness);
	fake_destroy(f);
}
