/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The other side of remote.h: a process that maps the guest's memory piece by piece, as it uses it,
 * and drops what is invalidated before it acknowledges. Needs nothing of Umbra.
 */
#ifndef EXAMPLES_REMOTE_PEER_H
#define EXAMPLES_REMOTE_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "remote_proto.h"

struct remote_peer;

/*
 * remote_peer_open - waits for HELLO on @sock (not owned). Nothing is mapped yet.
 * Returns: 0; -EPIPE (nobody there); -EPROTO (not our protocol); -ENOMEM; -errno.
 * Pairs with: remote_peer_close(), when remote_peer_serve() has returned and nothing is in use.
 */
int remote_peer_open(struct remote_peer **peer, int sock);
void remote_peer_close(struct remote_peer *peer);

/* Bytes of memory that are shared; whether they may be written. */
uint64_t remote_peer_size(const struct remote_peer *peer);
bool remote_peer_writable(const struct remote_peer *peer);

/*
 * remote_peer_serve - obeys the VMM until the end; then everything is dropped. The caller gives the
 * thread; it sleeps in here while others use what a START asks for.
 * Returns: enum remote_reason as the VMM said it, REMOTE_GONE (the VMM is), REMOTE_WRONG (it sent
 * what is no message).
 */
enum remote_reason remote_peer_serve(struct remote_peer *peer);

/*
 * remote_peer_get - use @bytes at @offset of the shared memory, until remote_peer_put() by the same
 * thread. Keep it short: the VMM waits, and cuts off who lets it wait too long. One at a time for
 * each thread.
 * Returns: the bytes; NULL with @error -EAGAIN (closed just now), -EPIPE (cut off: never again),
 * -EINVAL, -errno of mmap.
 */
void *remote_peer_get(struct remote_peer *peer, uint64_t offset, size_t bytes, int *error);
void remote_peer_put(struct remote_peer *peer);

#endif
