/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The kernel module as a source: every callout that the kernel makes for the ranges watched, on the
 * notifier chain, and the counters by which a lookup can be sure of what it found.
 *
 * The callout does not wait for us: it counts, writes a record, and goes on. So after a drain
 * nothing stale is left (T0); and a lookup that asks the gate yields nothing stale that a callout
 * which had returned before took away (T1). See docs/events.md.
 */
#ifndef UMBRA_MODULE_H
#define UMBRA_MODULE_H

#include <umbra/notifier.h>

struct umbra_module;

/*
 * struct umbra_module_config - what to watch.
 * @fd: an open /dev/umbra, perhaps one that another process attached and passed on, or -1: it is
 *   opened and attached to this process. A passed one is not owned.
 * @ranges, @nr: whole pages, sorted, apart from each other; copied.
 * @ring_order: log2 of the records in the ring, 0: 14. @page_shift: bytes that one bit of the
 *   accessed bitmap stands for, log2, 0: 12.
 * @age: every @age_ms called by umbra_module_run() with no lock held, to say by umbra_module_young()
 *   what was accessed since; NULL: never.
 */
struct umbra_module_config {
	int fd;
	const struct hva_range *ranges;
	uint32_t nr;
	uint32_t ring_order;
	uint32_t page_shift;
	uint32_t age_ms;
	void (*age)(void *ctx);
	void *ctx;
};

/*
 * umbra_module_open - attach, and announce on @chain from the first drain on.
 * Context: any thread of the process whose memory it is.
 * Returns: 0; -ENOENT no /dev/umbra: the module is not loaded; -EACCES; -EINVAL a range; -ENOSPC
 * past a limit of the module; -EPROTO the module speaks another version; -errno.
 * Pairs with: umbra_module_close(), when umbra_module_run() has returned.
 */
int umbra_module_open(struct umbra_module **module, struct umbra_chain *chain,
		      const struct umbra_module_config *config);
/* Ends what is still open on the chain. What the kernel does from here on is not seen. */
void umbra_module_close(struct umbra_module *module);

/*
 * umbra_module_run - drain until umbra_module_stop(). The caller gives the thread; nothing is
 * allocated. Returns: 0 when stopped; -ESHUTDOWN when the address space is gone; -errno.
 */
int umbra_module_run(struct umbra_module *module);
void umbra_module_stop(struct umbra_module *module);

/*
 * umbra_module_drain - announce all that the kernel had recorded when this was called.
 * Context: any thread that may wait, a faulting vCPU's too; not from a callback of the chain.
 */
void umbra_module_drain(struct umbra_module *module);

/*
 * umbra_module_ranges - watch these instead. The kernel changes them only at a moment when no invalidation is open anywhere
 * in the address space; for one this waits, with pauses, at most a second. Pages marked young before it are forgotten.
 * Context: any thread that may wait, and that has no invalidation of its own open: it would wait for itself.
 * Returns: 0; -EBUSY: there was no such moment; -ENOSPC; -EIO: another process attached.
 */
int umbra_module_ranges(struct umbra_module *module, const struct hva_range *ranges, uint32_t nr);

/*
 * struct umbra_gate - the counters that a lookup compares. Read-only, valid until the close.
 *
 * A lookup asks umbra_gate_current() first, then reads its entry. True: the entry it then reads was
 * taken away by no callout that had returned before the question. False: drain, and ask again. (The
 * other order is wrong: read, then dropped by another thread's drain, then found current.)
 */
struct umbra_gate {
	const uint64_t *begun;   /* the kernel's: callouts begun */
	const uint64_t *applied; /* ours: of these, gone through the chain */
};
const struct umbra_gate *umbra_module_gate(const struct umbra_module *module);

static inline bool umbra_gate_current(const struct umbra_gate *g)
{
	/* pairs with the stores inside the callout, and in a drain after what it dropped */
	const uint64_t begun = __atomic_load_n(g->begun, __ATOMIC_ACQUIRE);

	return begun == __atomic_load_n(g->applied, __ATOMIC_ACQUIRE);
}

/*
 * umbra_module_young - pages of @r were accessed: the kernel's next young callout says so.
 * Context: any thread, no lock. Outside of what is watched it does nothing.
 */
void umbra_module_young(struct umbra_module *module, struct hva_range r);

struct umbra_module_stats {
	uint64_t starts, ends;
	uint64_t by_owner, by_reclaim, by_kthread, by_others; /* of the starts */
	uint64_t
		nested; /* of the starts, begun inside another of the same thread: a split, for one */
	/* Of the starts: a call that an own call's bracket or userfaultfd announced, too, in all its range. The others are
	 * collateral: the kernel did it by itself, or more than was asked for. */
	uint64_t direct;
	uint64_t not_blockable;
	uint64_t lost;       /* records that found no room */
	uint64_t recoveries; /* times that everything was dropped because of it */
	uint64_t young_asked, young_yes;
	bool dead;
};
void umbra_module_stats(struct umbra_module *module, struct umbra_module_stats *stats);

#endif
