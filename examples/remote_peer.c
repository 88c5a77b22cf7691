/* SPDX-License-Identifier: BSD-2-Clause */
/* A peer of remote.c: maps the guest's memory in 2M pieces, and drops them when it is told. */
#include "remote_peer.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIECE (2ULL << 20)

struct remote_peer {
	int sock, fd, prot;
	uint64_t offset, length; /* of the file, what is shared */
	char *reserved;          /* where the piece with @offset begins: reserved, without rights */
	uint64_t pieces;
	/* Users hold it for reading, who drops for writing: this is where a START sleeps. */
	pthread_rwlock_t users;
	uint64_t closed_start, closed_end; /* of the file; empty: open */
	bool gone;
	_Atomic bool *mapped; /* of each piece; two users may both map one: it is the same */
};

/* File offset at which piece 0 begins. */
static uint64_t first_of(const struct remote_peer *p)
{
	return p->offset & ~(PIECE - 1);
}

/* The part of piece @i that is shared. */
static void piece_range(const struct remote_peer *p, uint64_t i, uint64_t *start, uint64_t *end)
{
	*start = first_of(p) + i * PIECE;
	*end = *start + PIECE;
	if (*start < p->offset)
		*start = p->offset;
	if (*end > p->offset + p->length)
		*end = p->offset + p->length;
}

static char *place_of(const struct remote_peer *p, uint64_t offset)
{
	return p->reserved + (offset - first_of(p));
}

static int map_piece(struct remote_peer *p, uint64_t i)
{
	uint64_t start, end;

	if (p->mapped[i])
		return 0;
	piece_range(p, i, &start, &end);
	if (mmap(place_of(p, start), end - start, p->prot, MAP_SHARED | MAP_FIXED, p->fd,
		 (off_t)start) == MAP_FAILED)
		return -errno;
	p->mapped[i] = true;
	return 0;
}

/* Held for writing. What cannot be dropped must not be acknowledged. */
static int drop(struct remote_peer *p, uint64_t start, uint64_t end)
{
	for (uint64_t i = 0; i < p->pieces; i++) {
		uint64_t from, to;

		piece_range(p, i, &from, &to);
		if (!p->mapped[i] || from >= end || start >= to)
			continue;
		if (mmap(place_of(p, from), to - from, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
			 0) == MAP_FAILED)
			return -errno;
		p->mapped[i] = false;
	}
	return 0;
}

/* ---- users ------------------------------------------------------------------------------------ */

void *remote_peer_get(struct remote_peer *p, uint64_t offset, size_t bytes, int *error)
{
	const uint64_t start = p->offset + offset, end = start + bytes;

	*error = 0;
	if (!bytes || offset >= p->length || bytes > p->length - offset) {
		*error = -EINVAL;
		return NULL;
	}
	pthread_rwlock_rdlock(&p->users);
	if (p->gone)
		*error = -EPIPE;
	else if (start < p->closed_end && p->closed_start < end)
		*error = -EAGAIN;
	for (uint64_t i = (start - first_of(p)) / PIECE;
	     !*error && i <= (end - 1 - first_of(p)) / PIECE; i++)
		*error = map_piece(p, i);
	if (!*error)
		return place_of(p, start);
	pthread_rwlock_unlock(&p->users);
	return NULL;
}

void remote_peer_put(struct remote_peer *p)
{
	pthread_rwlock_unlock(&p->users);
}

/* ---- the VMM ---------------------------------------------------------------------------------- */

static bool understood(const struct remote_msg *m, ssize_t n)
{
	return n == sizeof(*m) && m->size == sizeof(*m) && m->version == REMOTE_VERSION &&
	       !m->reserved;
}

static int obey_start(struct remote_peer *p, const struct remote_msg *m)
{
	const uint64_t end = m->offset + m->length;
	struct remote_msg ack = {
		.size = sizeof(ack),
		.version = REMOTE_VERSION,
		.type = REMOTE_ACK,
		.seq = m->seq,
	};
	int rc;

	pthread_rwlock_wrlock(&p->users); /* sleeps until those who use it have put it back */
	if (p->closed_start == p->closed_end) {
		p->closed_start = m->offset;
		p->closed_end = end;
	}
	if (m->offset < p->closed_start)
		p->closed_start = m->offset;
	if (end > p->closed_end)
		p->closed_end = end;
	rc = drop(p, m->offset, end);
	pthread_rwlock_unlock(&p->users);
	if (!rc && send(p->sock, &ack, sizeof(ack), MSG_NOSIGNAL) != sizeof(ack))
		rc = -errno;
	return rc;
}

/* Everything goes, first of all the address space: what is mapped nowhere is touched by nobody. */
static void leave(struct remote_peer *p)
{
	pthread_rwlock_wrlock(&p->users);
	p->gone = true;
	munmap(p->reserved, p->pieces * PIECE);
	close(p->fd);
	p->fd = -1;
	pthread_rwlock_unlock(&p->users);
}

enum remote_reason remote_peer_serve(struct remote_peer *p)
{
	enum remote_reason reason = REMOTE_GONE;
	bool more = true;
	int rc;

	while (more) {
		struct remote_msg m;
		const ssize_t n = recv(p->sock, &m, sizeof(m), MSG_TRUNC);

		if (n < 0 && (errno == EINTR || errno == ECONNRESET))
			continue; /* reported once: what was sent before comes after it */
		if (n <= 0)
			break;
		if (!understood(&m, n)) {
			reason = REMOTE_WRONG;
			break;
		}
		switch (m.type) {
		case REMOTE_START:
			/* An answer that nobody takes any more: BYE says why, and waits to be read. */
			rc = obey_start(p, &m);
			more = !rc || rc == -EPIPE || rc == -ECONNRESET;
			break;
		case REMOTE_END:
			pthread_rwlock_wrlock(&p->users);
			p->closed_start = p->closed_end = 0;
			pthread_rwlock_unlock(&p->users);
			break;
		case REMOTE_BYE:
			reason = m.flags < REMOTE_REASON_NR ? (enum remote_reason)m.flags
							    : REMOTE_WRONG;
			more = false;
			break;
		default: reason = REMOTE_WRONG; more = false;
		}
	}
	leave(p);
	return reason;
}

/* ---- life ------------------------------------------------------------------------------------- */

/* HELLO, and the descriptor that comes with it. */
static int receive_hello(int sock, struct remote_msg *m, int *fd)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { m, sizeof(*m) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	const struct cmsghdr *c;
	ssize_t n;

	*fd = -1;
	do
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (!n)
		return -EPIPE;
	c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
	    c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(fd, CMSG_DATA(c), sizeof(*fd));
	if (*fd < 0 || !understood(m, n) || m->type != REMOTE_HELLO || !m->length ||
	    m->offset + m->length < m->length)
		return -EPROTO;
	return 0;
}

/* Address space congruent to the file modulo 2M, so that large pages can be mapped large. */
static int reserve(struct remote_peer *p)
{
	char *at, *aligned;

	p->pieces = (p->offset + p->length - first_of(p) + PIECE - 1) / PIECE;
	p->mapped = calloc(p->pieces, sizeof(*p->mapped));
	if (!p->mapped)
		return -ENOMEM;
	at = mmap(NULL, (p->pieces + 1) * PIECE, PROT_NONE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		return -errno;
	aligned = (char *)(((uintptr_t)at + PIECE - 1) & ~(uintptr_t)(PIECE - 1));
	if (aligned > at)
		munmap(at, (size_t)(aligned - at));
	munmap(aligned + p->pieces * PIECE, PIECE - (size_t)(aligned - at));
	p->reserved = aligned;
	return 0;
}

int remote_peer_open(struct remote_peer **out, int sock)
{
	struct remote_msg hello;
	pthread_rwlockattr_t attr;
	struct remote_peer *p;
	int fd, rc;

	rc = receive_hello(sock, &hello, &fd);
	p = rc ? NULL : calloc(1, sizeof(*p));
	if (!rc && !p)
		rc = -ENOMEM;
	if (p) {
		p->sock = sock;
		p->fd = fd;
		p->prot = PROT_READ | (hello.flags & REMOTE_HELLO_WRITE ? PROT_WRITE : 0);
		p->offset = hello.offset;
		p->length = hello.length;
		if (hello.flags & REMOTE_HELLO_CLOSED) {
			p->closed_start = hello.offset;
			p->closed_end = hello.offset + hello.length;
		}
		rc = reserve(p);
	}
	if (rc) {
		if (p)
			free(p->mapped);
		free(p);
		if (fd >= 0)
			close(fd);
		return rc;
	}
	/* Else users that come and go without a pause would keep a START waiting for ever. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&p->users, &attr);
	pthread_rwlockattr_destroy(&attr);
	*out = p;
	return 0;
}

void remote_peer_close(struct remote_peer *p)
{
	if (!p->gone)
		leave(p);
	pthread_rwlock_destroy(&p->users);
	free(p->mapped);
	free(p);
}

uint64_t remote_peer_size(const struct remote_peer *p)
{
	return p->length;
}

bool remote_peer_writable(const struct remote_peer *p)
{
	return p->prot & PROT_WRITE;
}
