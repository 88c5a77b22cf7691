/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Guest memory in a memfd, a remote consumer over it, and peers: processes that behave, and processes that do not. What a peer
 * has heard last is its exit status, 10 + enum remote_reason, or 9 when it heard the end of the connection only.
 */
#ifndef TESTS_EXAMPLES_REMOTE_PEERS_H
#define TESTS_EXAMPLES_REMOTE_PEERS_H

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "examples/remote.h"
#include "examples/remote_peer.h"
#include "tests/integration/events_host.h"

#define SHARED_BYTES (2 * UMBRA_HUGE_SIZE)
#define HEARD(r)     (10 + (int)(r))
#define HEARD_END    9
/* Where only the deadline can end a wait, it is one that a peer on a busy machine keeps; elsewhere it never comes. */
#define SOON  2500U
#define NEVER 60000U

static struct host h;
static struct remote *remote;
static char *guest;
static int guest_fd;
static _Atomic uint64_t *progress; /* of each peer, shared with them */
static _Atomic uint64_t cut_peer, cut_reason;

static inline void remember_cut(void *ctx, uint64_t peer, enum remote_reason reason)
{
	(void)ctx;
	cut_reason = reason;
	cut_peer = peer;
}

static inline struct remote_stats remote_now(void)
{
	struct remote_stats s;

	remote_stats(remote, &s);
	s.cut[REMOTE_GONE]--; /* of remote_settle() */
	return s;
}

/* Polled without a limit of its own: a test that hangs here fails by its timeout. */
#define wait_until(what)              \
	do {                          \
		while (!(what))       \
			usleep(1000); \
	} while (0)

/*
 * Until the reader's thread runs, shown by a first peer that goes at once: while a thread starts, a sanitizer's allocator may be
 * locked, and a process forked just then would have it locked for ever.
 */
static inline void remote_settle(void)
{
	uint64_t id;
	int sv[2];

	HOST_NEED(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv));
	HOST_NEED(!remote_attach(remote, sv[0], &id) && id == 1);
	close(sv[1]);
	wait_until(!remote_now().cut[REMOTE_GONE]);
}

static inline void remote_set_up(unsigned int deadline_ms, bool peers_write)
{
	struct remote_config config = {
		.deadline_ms = deadline_ms,
		.peers_write = peers_write,
		.cut = remember_cut,
	};

	host_create(&h);
	progress = mmap(NULL, UMBRA_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			-1, 0);
	HOST_NEED(progress != MAP_FAILED);
	guest = host_memfd(&h, SHARED_BYTES, &guest_fd);
	HOST_NEED(guest);
	config.chain = h.chain;
	config.hva = hva_range_of(guest, SHARED_BYTES);
	config.fd = guest_fd;
	HOST_NEED(!remote_create(&remote, &config));
	remote_settle();
}

/* ---- peers ------------------------------------------------------------------------------------ */

struct child {
	pid_t pid;
	uint64_t id;
};

/* A process that runs @body on its end of a connection; the other end is attached. */
static inline struct child spawn(int (*body)(int sock, int arg), int arg)
{
	struct child c = { 0 };
	int sv[2];

	HOST_NEED(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv));
	fflush(NULL);
	c.pid = fork();
	HOST_NEED(c.pid >= 0);
	if (!c.pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
		close(sv[0]);
		_exit(body(sv[1], arg));
	}
	close(sv[1]);
	HOST_NEED(!remote_attach(remote, sv[0], &c.id));
	return c;
}

static inline int wait_for_child(struct child c)
{
	int status = -1;

	if (waitpid(c.pid, &status, 0) != c.pid)
		return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

struct user {
	struct remote_peer *peer;
	int nr;
};

/* Writes all over the shared memory, page by page, for as long as it may. */
static inline void *use_memory(void *arg)
{
	const struct user *u = arg;
	const uint64_t pages = remote_peer_size(u->peer) / UMBRA_PAGE_SIZE;
	unsigned int state = (unsigned int)u->nr;
	int error = 0;

	while (error != -EPIPE) {
		const uint64_t page = (unsigned int)rand_r(&state) % pages;
		uint64_t *p = remote_peer_get(u->peer, page * UMBRA_PAGE_SIZE, 8, &error);

		if (p) {
			if (remote_peer_writable(u->peer))
				*p = page + 1;
			else if (*p == ~0ULL)
				abort();
			remote_peer_put(u->peer);
			progress[u->nr]++;
		} else {
			usleep(100);
		}
		if (progress[u->nr] % 1024 == 0)
			usleep(100);
	}
	return NULL;
}

/* As it should be. @nr: its place in progress. */
static inline int good_peer(int sock, int nr)
{
	struct user u = { .nr = nr };
	enum remote_reason reason;
	pthread_t user;

	if (remote_peer_open(&u.peer, sock) || pthread_create(&user, NULL, use_memory, &u))
		return 1;
	reason = remote_peer_serve(u.peer);
	pthread_join(user, NULL);
	remote_peer_close(u.peer);
	return HEARD(reason);
}

/* Reads on until the end, and says what it heard. */
static inline int hear(int sock)
{
	int heard = HEARD_END;
	struct remote_msg m;
	ssize_t n;

	do {
		n = recv(sock, &m, sizeof(m), 0);
		if (n == (ssize_t)sizeof(m) && m.type == REMOTE_BYE)
			heard = HEARD(m.flags);
	} while (n > 0 || (n < 0 && errno == ECONNRESET));
	return heard;
}

/* HELLO, whose descriptor is returned. */
static inline int hello(int sock, struct remote_msg *m)
{
	char control[64];
	struct iovec iov = { m, sizeof(*m) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	int fd;

	if (recvmsg(sock, &msg, 0) != (ssize_t)sizeof(*m) || m->type != REMOTE_HELLO ||
	    !CMSG_FIRSTHDR(&msg))
		_exit(2);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	return fd;
}

/* The next START. */
static inline struct remote_msg start_message(int sock)
{
	struct remote_msg m;

	do
		if (recv(sock, &m, sizeof(m), 0) != (ssize_t)sizeof(m))
			_exit(3);
	while (m.type != REMOTE_START);
	return m;
}

static inline struct remote_msg ack_of(uint64_t seq)
{
	return (struct remote_msg){
		.size = sizeof(struct remote_msg),
		.version = REMOTE_VERSION,
		.type = REMOTE_ACK,
		.seq = seq,
	};
}

static inline void say(int sock, const void *bytes, size_t n)
{
	if (send(sock, bytes, n, MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET)
		_exit(4);
}

/* ---- the host changes memory ------------------------------------------------------------------ */

static inline int punch(uint64_t offset, uint64_t bytes)
{
	return umbra_fallocate(h.own, guest_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
			       bytes);
}

/* Is there no page of the file in the range? Then nobody has touched it since it was punched. */
static inline bool is_hole(uint64_t offset, uint64_t bytes)
{
	const off_t data = lseek(guest_fd, (off_t)offset, SEEK_DATA);

	return data < 0 ? errno == ENXIO : (uint64_t)data >= offset + bytes;
}

#endif
