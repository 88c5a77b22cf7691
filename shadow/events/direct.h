/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Private to shadow/events: what other sources announced of late, so that of a callout of the kernel it can be said whether
 * somebody had told of it (direct) or it was the kernel's own doing, or more than was asked for (collateral). For people:
 * nothing is decided by it.
 */
#ifndef SHADOW_EVENTS_DIRECT_H
#define SHADOW_EVENTS_DIRECT_H

#include <pthread.h>
#include <umbra/notifier.h>
#include <abi/notifier.h>

#define DIRECT_ANNOUNCED 64U /* powers of two */
#define DIRECT_TOLD      64U

struct direct {
	struct umbra_notifier listener;
	struct umbra_chain *chain;

	pthread_mutex_t lock; /* of @announced; a leaf: nothing is called under it */
	struct direct_announced {
		struct hva_range hva;
		uint64_t from, to; /* CLOCK_MONOTONIC; ~0 while it is open */
		enum umbra_source source;
		int32_t who;
	} announced[DIRECT_ANNOUNCED];
	_Atomic uint64_t nr; /* ever announced */

	/* What the kernel told: of whoever drains, one at a time. */
	struct direct_told {
		struct hva_range hva;
		uint64_t time;
		int32_t who;
		bool direct;
	} told[DIRECT_TOLD];
	uint64_t told_nr, looked;
};

/* What @rec says, as it goes on the chain. */
struct umbra_range record_range(const struct umbra_ntf_record *rec);

/* Listens on @chain. Returns: 0, -errno. Pairs with: direct_fini(), when nobody drains. */
int direct_init(struct direct *d, struct umbra_chain *chain);
void direct_fini(struct direct *d);

/*
 * direct_told - the kernel told of a start: had somebody else, of all of it that lies in @within? @late grows by those
 * told before of which userfaultfd, which comes after the change, has told since. Context: one thread at a time.
 */
bool direct_told(struct direct *d, const struct umbra_ntf_record *rec, struct hva_range within,
		 uint64_t *late);
/* The same without a new one. */
void direct_catch_up(struct direct *d, uint64_t *late);

#endif
