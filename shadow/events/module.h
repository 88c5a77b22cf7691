/* SPDX-License-Identifier: BSD-2-Clause */
/* Private to shadow/events: the module's shared pages, wherever they come from. */
#ifndef SHADOW_EVENTS_MODULE_H
#define SHADOW_EVENTS_MODULE_H

#include <umbra/module.h>
#include <abi/notifier_ring.h>

/* What a bit of the accessed bitmap stands for. */
struct module_range {
	struct hva_range hva;
	uint64_t bit;
};

/*
 * module_over - the source over shared pages that somebody has mapped; @ring.tail is where reading
 * starts. @bitmap may be NULL. Takes nothing over: the pages stay the caller's.
 */
int module_over(struct umbra_module **out, struct umbra_chain *chain,
		const struct umbra_ring_consumer *ring, uint64_t *bitmap,
		const struct hva_range *ranges, uint32_t nr, uint32_t page_shift);

/* Before umbra_module_run(): as struct umbra_module_config says. */
void module_age_by(struct umbra_module *m, uint32_t age_ms, void (*age)(void *ctx), void *ctx);

#endif
