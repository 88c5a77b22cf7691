/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Messages between a VMM and a process that maps its guest's memory. Both run on one machine; each
 * message is one packet of a SOCK_SEQPACKET socket, of exactly sizeof(struct remote_msg) bytes.
 *
 *   VMM                                      peer
 *   HELLO + the memory's descriptor  ----->  reserves address space, maps nothing yet
 *   START seq 1, [offset, +length)   ----->  waits for its own users, drops what it maps there
 *                                    <-----  ACK 1
 *   (the host changes the range)
 *   END                              ----->  may map everything again, as it needs it
 *   BYE                              ----->  drops everything for ever
 *
 * A START closes a range; several may be closed at once, and all are opened by one END. The peer
 * acknowledges each START, in order, each once. It sends nothing else. The end of the connection
 * means BYE; but an error (EPIPE, ECONNRESET) does not yet: BYE may be there to be read.
 */
#ifndef EXAMPLES_REMOTE_PROTO_H
#define EXAMPLES_REMOTE_PROTO_H

#include <stdint.h>

#define REMOTE_VERSION 1

enum remote_type {
	REMOTE_HELLO = 1, /* [offset, +length) is what is shared; REMOTE_HELLO_WRITE in flags */
	REMOTE_START = 2,
	REMOTE_ACK = 3, /* the only one that a peer sends; offset, length and flags are 0 */
	REMOTE_END = 4,
	REMOTE_BYE = 5, /* flags: enum remote_reason */
};

#define REMOTE_HELLO_WRITE  1U
#define REMOTE_HELLO_CLOSED 2U /* something is closed now: map nothing before the first END */

/* Why a peer is no longer one. */
enum remote_reason {
	REMOTE_DETACHED, /* as the VMM wished: it, or the guest's memory, ends           */
	REMOTE_GONE,     /* the connection ended                                         */
	REMOTE_LATE,     /* a START was not acknowledged before its deadline             */
	REMOTE_WRONG,    /* a message that is none, or an ACK of what was not to be acked */
	REMOTE_FULL,     /* it reads nothing: there is no room for another message       */
	REMOTE_REASON_NR
};

/*
 * struct remote_msg
 * @size: bytes of the message as its sender knows it. @version: REMOTE_VERSION. A message with
 *   another size or version is not understood, and ends the connection.
 * @seq: START: 1, 2, 3 ... of this peer. ACK: that of the START. Others: 0.
 * @offset, @length: HELLO, START: bytes in the file that came with HELLO; whole pages. Others: 0.
 */
struct remote_msg {
	uint32_t size;
	uint16_t version;
	uint16_t type; /* enum remote_type */
	uint32_t flags;
	uint32_t reserved; /* 0 */
	uint64_t seq;
	uint64_t offset;
	uint64_t length;
};

_Static_assert(sizeof(struct remote_msg) == 40, "the layout is the protocol");

#endif
