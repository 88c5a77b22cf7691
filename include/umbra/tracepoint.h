/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * KVM's tracepoints as a witness: what KVM's own mmu_notifier client was told, read from perf rings, after the fact.
 *
 * It needs no module, only the right to trace and a virtual machine of KVM in the process. It sees starts and no ends,
 * announces nothing on a chain, and is good for one thing: to hold other sources against it. A tracepoint carries
 * addresses and not whose they are, so a virtual machine of another process at the same addresses is heard, too.
 */
#ifndef UMBRA_TRACEPOINT_H
#define UMBRA_TRACEPOINT_H

#include <umbra/types.h>

struct umbra_tracepoint;

enum umbra_tracepoint_kind {
	UMBRA_TRACEPOINT_UNMAP,    /* kvm:kvm_unmap_hva_range */
	UMBRA_TRACEPOINT_AGE,      /* kvm:kvm_age_hva         */
	UMBRA_TRACEPOINT_TEST_AGE, /* kvm:kvm_test_age_hva    */
	UMBRA_TRACEPOINT_NR
};

/*
 * struct umbra_tracepoint_format - where an event has its fields, as its format file in tracefs says.
 * @id: 0: this kernel has not the event. @start_at, @end_at: byte offsets of 64-bit fields in the raw record; the same:
 *   it is one page.
 */
struct umbra_tracepoint_format {
	uint32_t id;
	uint32_t start_at, end_at;
	const char *start_name, *end_name; /* for the kernel's filter */
};

/*
 * struct umbra_tracepoint_config - what to listen to.
 * @ranges, @nr: sorted, apart from each other; copied. @stacks: each record says which kernel functions led to it.
 * @ring_order: log2 of the pages of each CPU's ring, 0: 6.
 */
struct umbra_tracepoint_config {
	struct umbra_tracepoint_format formats[UMBRA_TRACEPOINT_NR];
	const struct hva_range *ranges;
	uint32_t nr;
	bool stacks;
	uint32_t ring_order;
};

#define UMBRA_TRACEPOINT_STACK_MAX 32

struct umbra_tracepoint_record {
	enum umbra_tracepoint_kind kind;
	struct hva_range hva;
	uint64_t time_ns; /* CLOCK_MONOTONIC */
	int32_t pid, tid; /* who called the kernel, in this process's namespace */
	uint32_t nr_stack;
	uint64_t stack[UMBRA_TRACEPOINT_STACK_MAX]; /* kernel addresses, the innermost first */
};

/*
 * umbra_tracepoint_open - listen on every CPU from now on.
 * Returns: 0; -EINVAL; -ENOENT none of the events is there; -EACCES, -EPERM (see perf_event_paranoid); -ENOMEM, -errno.
 * Pairs with: umbra_tracepoint_close().
 */
int umbra_tracepoint_open(struct umbra_tracepoint **witness,
			  const struct umbra_tracepoint_config *config);
void umbra_tracepoint_close(struct umbra_tracepoint *witness);

/*
 * umbra_tracepoint_drain - hands over what was recorded so far, CPU by CPU, of each in order of time. @fn may be NULL.
 * Context: one thread at a time.
 */
void umbra_tracepoint_drain(struct umbra_tracepoint *witness,
			    void (*fn)(void *ctx, const struct umbra_tracepoint_record *record),
			    void *ctx);

/* Waits until a ring is half full, or @timeout_ms. Returns: 0, -errno. */
int umbra_tracepoint_wait(struct umbra_tracepoint *witness, int timeout_ms);

struct umbra_tracepoint_stats {
	uint64_t records[UMBRA_TRACEPOINT_NR]; /* that met the ranges */
	uint64_t elsewhere;                    /* that did not        */
	uint64_t lost;                         /* that found no room: what was heard is not all */
};
void umbra_tracepoint_stats(const struct umbra_tracepoint *witness,
			    struct umbra_tracepoint_stats *stats);

#endif
