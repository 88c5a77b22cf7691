/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * --chaos: host actions on guest memory at a rate, while the guest runs. The plan is a pure
 * function of the seed, so a seed repeats its plan; what the host answers to each action may
 * differ.
 */
#ifndef VMM_CHAOS_H
#define VMM_CHAOS_H

#include <vmm/vm.h>

enum chaos_action {
	CHAOS_DISCARD,
	CHAOS_FREE,
	CHAOS_PROTECT,
	CHAOS_SPLIT,
	CHAOS_COLLAPSE,
	CHAOS_SWAP,
	CHAOS_REMAP,
	CHAOS_FORK,
	CHAOS_ACTION_NR
};
const char *chaos_action_name(enum chaos_action action);
/* What it means that the host answered @action with @error, for people. */
const char *chaos_why(enum chaos_action action, int error);
/* Those that destroy contents happen only inside arenas that the guest declared (GUEST_CALL_ARENA).
 */
bool chaos_action_destroys(enum chaos_action action);

/*
 * chaos_parse - "on", "calm", or "rate=2000,seed=7,mix=discard+protect,count=N" in any order, each
 * at most once. Returns: 0, or VMM_EXIT_USAGE with @err pointing at the bad word.
 */
int chaos_parse(const char *text, struct chaos_spec *spec, struct vm_error *err);

/*
 * Does what --chaos asks for go together with the rest? Without mix=, it becomes what can be done here.
 * Returns: as chaos_parse.
 */
int chaos_check(struct vm_config *config, struct vm_error *err);

/* The @i-th step. @start and @pages are in 4K pages and lie in [0, memory_pages). */
struct chaos_step {
	enum chaos_action action;
	uint64_t start, pages;
	uint64_t arena; /* for a destroying action: which arena, and */
	uint64_t where; /* at which random number inside it          */
};
struct chaos_step chaos_plan(const struct chaos_spec *spec, uint64_t i, uint64_t memory_pages);

int chaos_create(struct vm *vm, struct vm_error *err);
/* The thread's body: until the count is reached or the machine stops. */
void chaos_run(struct vm *vm);
void chaos_stop(struct vm *vm);
void chaos_destroy(struct vm *vm);

/* errnos of refused actions, the most frequent first are not sorted: a small table in order of
 * appearance. */
#define CHAOS_ERRNOS_MAX 6
struct chaos_stats {
	uint64_t steps;
	struct chaos_action_stats {
		uint64_t done, refused, skipped; /* skipped: no arena to do it in */
		struct {
			int error;
			uint64_t n;
		} why[CHAOS_ERRNOS_MAX];
	} action[CHAOS_ACTION_NR];
};
void chaos_stats(struct vm *vm, struct chaos_stats *stats);

#endif
