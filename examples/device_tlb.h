/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A device's TLB as a consumer of the notifier chain: the part that SGI's GRU plays beside KVM.
 *
 * The device addresses guest memory by host-virtual address (a passed-through device would first go
 * through umbra_gpa_to_hva()). Each port, a unit of the device that makes accesses, has a TLB of
 * its own, with entries of 4K and 2M:
 *
 *   for (;;) {
 *           if (device_tlb_enter(port, hva, access, &t)) {     hit: no lock taken
 *                   ... one access to frame t.pfn ...
 *                   device_tlb_leave(port);
 *                   break;
 *           }
 *           rc = device_tlb_fill(port, hva, access);           miss: asks the host, may sleep
 *           if (rc && rc != -EAGAIN)
 *                   break;
 *   }
 *
 * What it promises: an entry is never larger than the page by which the host maps the memory; any
 * range that meets an entry drops it whole; a fill that an invalidation raced is refused; and when
 * a blockable start has returned, no access that used an entry of the range is still under way. A
 * non-blockable one answers -EAGAIN instead of waiting; one that is forced as well returns with the
 * entries gone, and an access under way ends by itself.
 *
 * What it does not have: accessed bits. Like GRU it has no clear_flush_young, so what only the
 * device uses looks idle to who asks umbra_test_young().
 */
#ifndef EXAMPLES_DEVICE_TLB_H
#define EXAMPLES_DEVICE_TLB_H

#include <umbra/events.h>
#include <umbra/notifier.h>
#include <umbra/types.h>

#define DEVICE_TLB_PORTS 8
#define DEVICE_TLB_SETS  16 /* of each size; a power of two */
#define DEVICE_TLB_WAYS  4

struct device_tlb;
struct device_port;

struct device_translation {
	uint64_t pfn; /* host frame of the 4K page asked for, inside a 2M entry too */
	enum umbra_level level;
	bool writable;
};

/*
 * device_tlb_create - a TLB on @chain, without ports.
 * @map: of this process; frames are known with CAP_SYS_ADMIN only. Stays the caller's.
 * Returns: 0; -EPERM (frames are hidden); -ENOMEM; -ENOSPC (the chain is full).
 * Pairs with: device_tlb_destroy(), when no port is open and nobody invalidates by its leave.
 */
int device_tlb_create(struct device_tlb **tlb, struct umbra_chain *chain,
		      struct umbra_hostmap *map);
void device_tlb_destroy(struct device_tlb *tlb);

/*
 * device_tlb_port_open - a port with an empty TLB, for one thread at a time.
 * Returns: NULL when all are in use.   Pairs with: device_tlb_port_close(), not inside a section.
 */
struct device_port *device_tlb_port_open(struct device_tlb *tlb);
void device_tlb_port_close(struct device_port *port);

/*
 * device_tlb_enter - translate @hva for @access (enum umbra_access).
 * True: @t holds until device_tlb_leave(), for which every invalidation that drops it waits. So
 * between the two: one access of bounded length; no fill, no call that invalidates, no lock that
 * somebody holds who invalidates.
 * False: no entry allows this access; there is no section.
 * Context: the port's thread. Takes no lock.
 */
bool device_tlb_enter(struct device_port *port, hva_t hva, uint32_t access,
		      struct device_translation *t);
void device_tlb_leave(struct device_port *port);

/*
 * device_tlb_fill - one attempt to have an entry for @hva: snapshot, ask the host unlocked, check
 * under the lock, install.
 * Context: the port's thread, outside of a section; may sleep, may announce a copy-on-write.
 * Returns: 0; -EAGAIN (an invalidation is open or came between: again, later); -EFAULT (nothing is
 * mapped there); -EACCES (the mapping forbids it); -ESHUTDOWN (released); else as the resolve op.
 */
int device_tlb_fill(struct device_port *port, hva_t hva, uint32_t access);

struct device_tlb_stats {
	uint64_t filled_4k, filled_2m;
	uint64_t retried_open;           /* fills refused: an invalidation was open      */
	uint64_t retried_seq;            /* ... one had ended since the snapshot         */
	uint64_t flushed_4k, flushed_2m; /* entries dropped by invalidations             */
	uint64_t starts;
	uint64_t waited;   /* starts that waited for an access under way      */
	uint64_t unwaited; /* forced, non-blockable starts that could not     */
	uint64_t refused;  /* non-blockable starts answered -EAGAIN           */
	uint64_t entries;  /* present now                                     */
};
void device_tlb_stats(struct device_tlb *tlb, struct device_tlb_stats *stats);

/*
 * device_tlb_audit - every entry against the kernel's page tables: there, of the same frame, 2M
 * only over 2M, writable only where a write would stay in place. What is open just now is skipped.
 * @out: a line for each mismatch, may be NULL. Returns: number of mismatches, or -errno.
 */
int device_tlb_audit(struct device_tlb *tlb, FILE *out);

#endif
