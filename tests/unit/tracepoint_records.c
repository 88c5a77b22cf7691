/* SPDX-License-Identifier: BSD-2-Clause */
/* Records of perf as the kernel writes them, whole, cut short and strange: what the witness makes of them. */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/perf_event.h>
#include <stdlib.h>
#include <string.h>

#include "shadow/events/tracepoint.h"

static const struct hva_range ranges[2] = { { { 0x10000 }, { 0x20000 } },
					    { { 0x40000 }, { 0x50000 } } };
static struct tracepoint_parser p;
static struct umbra_tracepoint_record rec;
static char bytes[1024];

static void begin(bool stacks)
{
	const struct umbra_tracepoint_config config = {
		.formats = { [UMBRA_TRACEPOINT_UNMAP] = { 27, 8, 16, "start", "end" },
			     [UMBRA_TRACEPOINT_TEST_AGE] = { 25, 8, 8, "hva", "hva" } },
		.ranges = ranges,
		.nr = 2,
		.stacks = stacks,
	};

	memset(&p, 0, sizeof(p));
	cr_assert_eq(tracepoint_parser_init(&p, &config), 0);
}

static size_t put(size_t at, const void *from, size_t n)
{
	memcpy(bytes + at, from, n);
	return at + n;
}

/* TID, TIME, CALLCHAIN, RAW, as perf_event_open(2) orders them. Returns the size. */
static size_t sample(uint16_t id, uint64_t start, uint64_t end, uint64_t stack)
{
	const uint32_t who[2] = { 7, 8 }, raw = 28; /* padded, with its size, to a multiple of 8 */
	const uint64_t time = 99, chain[4] = { 3, (uint64_t)PERF_CONTEXT_KERNEL, 0xffffffff81000010,
					       0xffffffff81000020 };
	struct perf_event_header h = { .type = PERF_RECORD_SAMPLE };
	char event[28] = { 0 };
	size_t at = put(sizeof(h), who, sizeof(who));

	at = put(at, &time, 8);
	if (stack)
		at = put(at, chain, sizeof(chain));
	memcpy(event, &id, 2);
	memcpy(event + 8, &start, 8);
	memcpy(event + 16, &end, 8);
	at = put(at, &raw, 4);
	at = put(at, event, sizeof(event));
	h.size = (uint16_t)at;
	put(0, &h, sizeof(h));
	return at;
}

static void end(void)
{
	free(p.ranges);
}

Test(tracepoint, a_record_says_what_when_and_who)
{
	begin(false);
	cr_assert(tracepoint_parse(&p, bytes, sample(27, 0x11000, 0x12000, 0), &rec));
	cr_expect_eq(rec.kind, UMBRA_TRACEPOINT_UNMAP);
	cr_expect_eq(rec.hva.start.v, 0x11000);
	cr_expect_eq(rec.hva.end.v, 0x12000);
	cr_expect_eq(rec.time_ns, 99);
	cr_expect_eq(rec.pid, 7);
	cr_expect_eq(rec.tid, 8);
	cr_expect_eq(rec.nr_stack, 0);
	cr_assert(tracepoint_parse(&p, bytes, sample(25, 0x13000, 0, 0), &rec));
	cr_expect_eq(rec.kind, UMBRA_TRACEPOINT_TEST_AGE);
	cr_expect_eq(rec.hva.end.v, 0x14000, "one page");
	cr_expect_eq(p.stats.records[UMBRA_TRACEPOINT_UNMAP], 1);
	cr_expect_eq(p.stats.records[UMBRA_TRACEPOINT_TEST_AGE], 1);
	end();
}

Test(tracepoint, a_stack_has_functions_only)
{
	begin(true);
	cr_assert(tracepoint_parse(&p, bytes, sample(27, 0x11000, 0x12000, 1), &rec));
	cr_expect_eq(rec.nr_stack, 2, "the mark is none");
	cr_expect_eq(rec.stack[0], 0xffffffff81000010);
	cr_expect_eq(rec.stack[1], 0xffffffff81000020);
	end();
}

Test(tracepoint, only_what_meets_a_range_is_handed_over)
{
	const struct {
		uint64_t start, end;
		bool meets;
	} v[] = { { 0, 0x10000, false },      { 0, 0x10001, true },
		  { 0x1ffff, 0x20000, true }, { 0x20000, 0x40000, false },
		  { 0x30000, 0x40001, true }, { 0x50000, ~0ULL, false },
		  { 0, ~0ULL, true } };

	begin(false);
	for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); i++)
		cr_expect_eq(tracepoint_parse(&p, bytes, sample(27, v[i].start, v[i].end, 0), &rec),
			     v[i].meets, "%zu", i);
	cr_expect_eq(p.stats.elsewhere, 3);
	end();
}

Test(tracepoint, a_record_cut_short_anywhere_is_none)
{
	for (unsigned int stacks = 0; stacks < 2; stacks++) {
		size_t whole;

		begin(stacks);
		whole = sample(27, 0x11000, 0x12000, stacks);
		for (size_t n = 0; n < whole; n++)
			cr_expect_not(tracepoint_parse(&p, bytes, n, &rec), "%zu of %zu", n, whole);
		cr_expect_eq(p.stats.records[UMBRA_TRACEPOINT_UNMAP], 0);
		end();
	}
}

Test(tracepoint, a_chain_or_a_size_that_cannot_be_is_no_record)
{
	const uint64_t many = ~0ULL;
	const uint32_t large = ~0U, tiny = 4;
	size_t n;

	begin(true);
	n = sample(27, 0x11000, 0x12000, 1);
	put(8 + 8 + 8, &many, 8);
	cr_expect_not(tracepoint_parse(&p, bytes, n, &rec));
	n = sample(27, 0x11000, 0x12000, 1);
	put(n - 32, &large, 4);
	cr_expect_not(tracepoint_parse(&p, bytes, n, &rec));
	n = sample(27, 0x11000, 0x12000, 1);
	put(n - 32, &tiny, 4);
	cr_expect_not(tracepoint_parse(&p, bytes, n, &rec));
	cr_expect_not(tracepoint_parse(&p, bytes, sample(26, 0x11000, 0x12000, 1), &rec),
		      "another event");
	end();
}

Test(tracepoint, what_was_lost_is_counted)
{
	const struct perf_event_header h = { .type = PERF_RECORD_LOST, .size = 24 };
	const uint64_t lost[2] = { 1, 40 };

	begin(false);
	put(put(0, &h, sizeof(h)), lost, sizeof(lost));
	cr_expect_not(tracepoint_parse(&p, bytes, 24, &rec));
	cr_expect_not(tracepoint_parse(&p, bytes, 16, &rec), "cut short");
	cr_expect_eq(p.stats.lost, 40);
	end();
}

Test(tracepoint, without_ranges_or_events_there_is_nothing_to_open)
{
	struct umbra_tracepoint_config config = { .nr = 0 };
	struct umbra_tracepoint *w;

	cr_expect_eq(umbra_tracepoint_open(&w, &config), -EINVAL);
	config.ranges = ranges;
	config.nr = 2;
	cr_expect_eq(umbra_tracepoint_open(&w, &config), -ENOENT);
	config.ring_order = 40;
	cr_expect_eq(umbra_tracepoint_open(&w, &config), -EINVAL);
	umbra_tracepoint_close(NULL);
}
