/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The VMM's side of a consumer in other processes: the part that XPMEM plays beside KVM. Peers map
 * the file that is the guest's memory. Each invalidation of it is sent to them and waited for, but
 * not for longer than a deadline; a peer that dies, stops, answers wrongly or too late is cut off.
 *
 * What start promises of each peer that is attached when it is called:
 *
 *   range                    when start returns, the peer ...
 *   blockable                has dropped the range, or is cut off
 *   non-blockable            start answers -EAGAIN while there is a peer: it would have to wait
 *   non-blockable, forced    has been told, and drops it when it reads that; cut off if it does not
 *                            within the deadline. remote_drain() waits for it
 *
 * In the last case the source can neither wait nor ask again (events of userfaultfd). Cutting the
 * peer off at once would gain nothing: it would have to read that message too.
 *
 * Cut off means: told to drop everything if it can still hear, then never waited for again. What
 * that takes from a peer that does not obey, and what it does not, is in examples/README.md.
 */
#ifndef EXAMPLES_REMOTE_H
#define EXAMPLES_REMOTE_H

#include <umbra/notifier.h>

#include "remote_proto.h"

#define REMOTE_PEERS  16
#define REMOTE_WINDOW 128 /* STARTs that a peer may owe answers for; one more is REMOTE_FULL */

struct remote;

/*
 * struct remote_config
 * @hva: the mapping of the file that the chain speaks of: host-virtual bytes, whole pages, there
 *   until remote_destroy(). @fd: the file (not owned), @offset of its byte at @hva.start.
 * @deadline_ms: of each START, from its sending. 1 to 60000.
 * @peers_write: else peers get a descriptor that cannot be written through (needs /proc).
 * @cut: a peer was lost for @reason; not called for REMOTE_DETACHED. May be NULL. Called before the
 *   start that was waiting returns, with no lock held, by a thread that may be the one that reads
 *   from peers: it must not call the chain nor wait. It may kill: see README.md.
 */
struct remote_config {
	struct umbra_chain *chain;
	struct hva_range hva;
	int fd;
	uint64_t offset;
	unsigned int deadline_ms;
	bool peers_write;
	void (*cut)(void *ctx, uint64_t peer, enum remote_reason reason);
	void *ctx;
};

/*
 * remote_create - a consumer on @config->chain, without peers, with a thread that reads from them.
 * Returns: 0, -EINVAL, -ENOMEM, -errno.   Pairs with: remote_destroy(), which detaches all peers.
 */
int remote_create(struct remote **remote, const struct remote_config *config);
void remote_destroy(struct remote *remote);

/*
 * remote_attach - a peer at the other end of @sock (SOCK_SEQPACKET; taken over, closed on error
 * too). What is open just now is closed for it from the start.
 * Returns: 0; -ENOSPC; -ESHUTDOWN (released); -errno.   @peer: its number, never used twice.
 * Pairs with: remote_detach(): waits until it has dropped everything, or the deadline; -ENOENT if
 * it is gone already. Context: any thread, not from a callback.
 */
int remote_attach(struct remote *remote, int sock, uint64_t *peer);
int remote_detach(struct remote *remote, uint64_t peer);

/* Waits until every peer has acknowledged all that was sent before, or is cut off. */
void remote_drain(struct remote *remote);

struct remote_stats {
	uint64_t starts, ends; /* of the chain                                         */
	uint64_t sent, acked;  /* STARTs to peers, and their answers                   */
	uint64_t posted;       /* of these, not waited for (forced, non-blockable)      */
	uint64_t refused;      /* non-blockable starts answered -EAGAIN                 */
	uint64_t cut[REMOTE_REASON_NR];
	uint64_t peers; /* attached now */
};
void remote_stats(struct remote *remote, struct remote_stats *stats);

#endif
