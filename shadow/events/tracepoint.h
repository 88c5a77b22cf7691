/* SPDX-License-Identifier: BSD-2-Clause */
/* Private to shadow/events: records of perf taken apart, apart from the rings they come from. */
#ifndef SHADOW_EVENTS_TRACEPOINT_H
#define SHADOW_EVENTS_TRACEPOINT_H

#include <umbra/tracepoint.h>

struct tracepoint_parser {
	struct umbra_tracepoint_format formats[UMBRA_TRACEPOINT_NR];
	struct hva_range *ranges;
	uint32_t nr;
	bool stacks;
	struct umbra_tracepoint_stats stats;
};

/* Copies the ranges: free() them. Returns: 0, -EINVAL, -ENOENT, -ENOMEM. */
int tracepoint_parser_init(struct tracepoint_parser *p, const struct umbra_tracepoint_config *c);

/* One record of perf, whole. Returns: whether @rec is one that meets the ranges. Counts what it sees. */
bool tracepoint_parse(struct tracepoint_parser *p, const void *bytes, size_t size,
		      struct umbra_tracepoint_record *rec);

#endif
