/* SPDX-License-Identifier: BSD-2-Clause */
/* Peers in other processes: starts are sent to all, then waited for together, up to a deadline. */
#include "remote.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct peer {
	uint64_t id; /* 0: free */
	int sock;
	uint64_t sent, acked;               /* number of STARTs */
	struct timespec due[REMOTE_WINDOW]; /* of START n: at n % REMOTE_WINDOW */
	bool closed;                        /* told of a range since the last END */
	bool leaving;                       /* asked for all it has: never opened again */
};

/* Cut off while the lock was held: the embedder is told after. */
struct cuts {
	unsigned int n;
	struct {
		uint64_t id;
		enum remote_reason reason;
	} v[REMOTE_PEERS];
};

struct remote {
	struct umbra_notifier notifier;
	struct remote_config config;
	int epoll, wake;
	pthread_t reader;
	/*
	 * Guards all below. Held over no wait but that of the condition, and over sends that do not
	 * block, so that every peer gets its messages in the order of what they say.
	 */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* a peer answered or is gone */
	uint64_t begun, ended;  /* all of the chain: also what lies elsewhere */
	struct hva_range open;  /* of the shared memory, what is closed now; empty: nothing */
	bool released, stop;
	uint64_t last_id;
	struct peer peers[REMOTE_PEERS];
	struct remote_stats stats;
};

#define for_each_peer(p, r)                                                   \
	for (struct peer *p = (r)->peers; p < (r)->peers + REMOTE_PEERS; p++) \
		if (p->id)

static struct remote *remote_of(struct umbra_notifier *n)
{
	return (struct remote *)((char *)n - offsetof(struct remote, notifier));
}

static struct timespec deadline_of(const struct remote *r)
{
	struct timespec t;
	int64_t ns;

	clock_gettime(CLOCK_MONOTONIC, &t);
	ns = t.tv_nsec + (int64_t)r->config.deadline_ms * 1000000;
	t.tv_sec += ns / 1000000000;
	t.tv_nsec = ns % 1000000000;
	return t;
}

/* Milliseconds until @t, rounded up; 0 when it has passed. */
static int ms_until(const struct timespec *t)
{
	struct timespec now;
	int64_t ns;

	clock_gettime(CLOCK_MONOTONIC, &now);
	ns = (int64_t)(t->tv_sec - now.tv_sec) * 1000000000 + (t->tv_nsec - now.tv_nsec);
	return ns > 0 ? (int)((ns + 999999) / 1000000) : 0;
}

/* ---- messages, lock held ---------------------------------------------------------------------- */

static int post(int sock, enum remote_type type, struct remote_msg msg)
{
	msg.size = sizeof(msg);
	msg.version = REMOTE_VERSION;
	msg.type = (uint16_t)type;
	return send(sock, &msg, sizeof(msg), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* If the socket is full BYE is not heard, but its end is. */
static void drop_peer(struct remote *r, struct peer *p, enum remote_reason reason,
		      struct cuts *cuts)
{
	post(p->sock, REMOTE_BYE, (struct remote_msg){ .flags = reason });
	/* Taken out by hand: a child of fork() may keep the socket open behind our back. */
	epoll_ctl(r->epoll, EPOLL_CTL_DEL, p->sock, NULL);
	shutdown(p->sock, SHUT_RDWR);
	close(p->sock);
	r->stats.cut[reason]++;
	r->stats.peers--;
	if (cuts && reason != REMOTE_DETACHED) {
		cuts->v[cuts->n].id = p->id;
		cuts->v[cuts->n++].reason = reason;
	}
	p->id = 0;
	pthread_cond_broadcast(&r->changed);
}

/* Called without the lock. */
static void tell(struct remote *r, const struct cuts *cuts)
{
	for (unsigned int i = 0; r->config.cut && i < cuts->n; i++)
		r->config.cut(r->config.ctx, cuts->v[i].id, cuts->v[i].reason);
}

/* @rc: of post(). Returns: was it sent? */
static bool sent_or_drop(struct remote *r, struct peer *p, int rc, struct cuts *cuts)
{
	if (rc)
		drop_peer(r, p, rc == -EPIPE || rc == -ECONNRESET ? REMOTE_GONE : REMOTE_FULL,
			  cuts);
	return !rc;
}

static void send_start(struct remote *r, struct peer *p, struct hva_range part, struct cuts *cuts)
{
	const struct remote_msg msg = {
		.seq = p->sent + 1,
		.offset = part.start.v - r->config.hva.start.v + r->config.offset,
		.length = part.end.v - part.start.v,
	};
	int rc = -ENOBUFS;

	if (p->sent - p->acked < REMOTE_WINDOW)
		rc = post(p->sock, REMOTE_START, msg);
	if (!sent_or_drop(r, p, rc, cuts))
		return;
	p->sent++;
	p->due[p->sent % REMOTE_WINDOW] = deadline_of(r);
	p->closed = true;
	r->stats.sent++;
	if (p->sent == p->acked + 1) /* the reader has a new time to look at */
		eventfd_write(r->wake, 1);
}

/* ---- waiting, lock held ----------------------------------------------------------------------- */

/* What each peer had been sent at one moment. */
struct wait_set {
	uint64_t id[REMOTE_PEERS], seq[REMOTE_PEERS];
};

static void wait_set_fill(struct remote *r, struct wait_set *w)
{
	memset(w, 0, sizeof(*w));
	for_each_peer(p, r)
	{
		w->id[p - r->peers] = p->id;
		w->seq[p - r->peers] = p->sent;
	}
}

static bool owes(const struct peer *p, uint64_t id, uint64_t seq)
{
	return id && p->id == id && p->acked < seq;
}

/* Until each has answered or is gone. A place that another peer has taken meanwhile is not waited for. */
static void wait_for(struct remote *r, const struct wait_set *w, struct cuts *cuts)
{
	for (unsigned int i = 0; i < REMOTE_PEERS; i++) {
		struct peer *p = &r->peers[i];

		while (owes(p, w->id[i], w->seq[i])) {
			const struct timespec due = p->due[(p->acked + 1) % REMOTE_WINDOW];

			if (pthread_cond_timedwait(&r->changed, &r->lock, &due) == ETIMEDOUT &&
			    owes(p, w->id[i], w->seq[i]) &&
			    !ms_until(&p->due[(p->acked + 1) % REMOTE_WINDOW]))
				drop_peer(r, p, REMOTE_LATE, cuts);
		}
	}
}

/* ---- the chain -------------------------------------------------------------------------------- */

static struct hva_range part_of(const struct remote *r, struct hva_range hull)
{
	struct hva_range part = hva_range_widen(hull);

	if (part.start.v < r->config.hva.start.v)
		part.start = r->config.hva.start;
	if (part.end.v > r->config.hva.end.v)
		part.end = r->config.hva.end;
	return part;
}

/*
 * All ranges are counted, also those that lie elsewhere: a consumer that joins late is told of the
 * union, so an end cannot be known for ours by its range.
 */
static void count_begin(struct remote *r, struct hva_range part)
{
	r->begun++;
	r->stats.starts++;
	if (hva_range_empty(part))
		return;
	if (hva_range_empty(r->open)) {
		r->open = part;
		return;
	}
	if (part.start.v < r->open.start.v)
		r->open.start = part.start;
	if (part.end.v > r->open.end.v)
		r->open.end = part.end;
}

static int remote_start(struct umbra_notifier *n, const struct umbra_range *range)
{
	const bool may_wait = range->flags & UMBRA_RANGE_BLOCKABLE;
	const bool forced = range->flags & UMBRA_RANGE_FORCED;
	struct remote *r = remote_of(n);
	const struct hva_range part = part_of(r, range->hull);
	const bool ours = !hva_range_empty(part);
	struct cuts cuts = { 0 };
	struct wait_set w;

	if (may_wait || forced) /* nobody waits while holding it */
		pthread_mutex_lock(&r->lock);
	else if (pthread_mutex_trylock(&r->lock))
		return -EAGAIN;
	if (ours && !may_wait && !forced && r->stats.peers) {
		r->stats.refused++;
		pthread_mutex_unlock(&r->lock);
		return -EAGAIN;
	}
	count_begin(r, part);
	if (ours) {
		for_each_peer(p, r) send_start(r, p, part, &cuts);
		wait_set_fill(r, &w);
		if (may_wait)
			wait_for(r, &w, &cuts);
		else
			r->stats.posted += r->stats.peers;
	}
	pthread_mutex_unlock(&r->lock);
	tell(r, &cuts);
	return 0;
}

static void remote_end(struct umbra_notifier *n, const struct umbra_range *range)
{
	struct remote *r = remote_of(n);
	struct cuts cuts = { 0 };

	(void)range;
	pthread_mutex_lock(&r->lock);
	r->stats.ends++;
	if (++r->ended == r->begun) {
		r->open = (struct hva_range){ 0 };
		for_each_peer(p, r)
		{
			if (!p->closed || p->leaving)
				continue;
			p->closed = false;
			sent_or_drop(r, p, post(p->sock, REMOTE_END, (struct remote_msg){ 0 }),
				     &cuts);
		}
	}
	pthread_mutex_unlock(&r->lock);
	tell(r, &cuts);
}

/* Lock held: everything is asked back, with the patience of a start; then it is no peer any more. */
static void detach(struct remote *r, uint64_t id, struct cuts *cuts)
{
	struct wait_set w;

	for_each_peer(p, r)
	{
		if (id && p->id != id)
			continue;
		p->leaving = true;
		send_start(r, p, r->config.hva, cuts);
	}
	wait_set_fill(r, &w);
	for (unsigned int i = 0; id && i < REMOTE_PEERS; i++)
		if (w.id[i] != id)
			w.id[i] = 0;
	wait_for(r, &w, cuts);
	for (unsigned int i = 0; i < REMOTE_PEERS; i++)
		if (w.id[i] && r->peers[i].id == w.id[i])
			drop_peer(r, &r->peers[i], REMOTE_DETACHED, NULL);
}

static void remote_release(struct umbra_notifier *n)
{
	struct remote *r = remote_of(n);
	struct cuts cuts = { 0 };

	pthread_mutex_lock(&r->lock);
	r->released = true;
	detach(r, 0, &cuts);
	pthread_mutex_unlock(&r->lock);
	tell(r, &cuts);
}

static const struct umbra_notifier_ops remote_ops = {
	.invalidate_range_start = remote_start,
	.invalidate_range_end = remote_end,
	.release = remote_release,
};

/* ---- the reader ------------------------------------------------------------------------------- */

static bool is_next_ack(const struct peer *p, const struct remote_msg *m)
{
	return m->size == sizeof(*m) && m->version == REMOTE_VERSION && m->type == REMOTE_ACK &&
	       !m->flags && !m->reserved && !m->offset && !m->length && m->seq == p->acked + 1 &&
	       m->seq <= p->sent;
}

/* Lock held. One packet. Descriptors that a peer sends along are closed by the kernel: nobody asked. */
static void read_peer(struct remote *r, struct peer *p, struct cuts *cuts)
{
	struct remote_msg msg;
	const ssize_t n = recv(p->sock, &msg, sizeof(msg), MSG_DONTWAIT | MSG_TRUNC);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		drop_peer(r, p, REMOTE_GONE, cuts);
	} else if (n != sizeof(msg) || !is_next_ack(p, &msg)) {
		drop_peer(r, p, REMOTE_WRONG, cuts);
	} else {
		p->acked++;
		r->stats.acked++;
		pthread_cond_broadcast(&r->changed);
	}
}

/* Lock held. Who was told and not waited for has a deadline all the same. Returns: ms until the next, or -1. */
static int cut_late(struct remote *r, struct cuts *cuts)
{
	int next = -1;

	for_each_peer(p, r)
	{
		int ms;

		if (p->acked == p->sent)
			continue;
		ms = ms_until(&p->due[(p->acked + 1) % REMOTE_WINDOW]);
		if (!ms)
			drop_peer(r, p, REMOTE_LATE, cuts);
		else if (next < 0 || ms < next)
			next = ms;
	}
	return next;
}

static void *read_peers(void *arg)
{
	struct remote *r = arg;
	bool stop = false;
	int timeout = -1;

	while (!stop) {
		struct epoll_event events[REMOTE_PEERS + 1];
		const int n = epoll_wait(r->epoll, events, REMOTE_PEERS + 1, timeout);
		struct cuts cuts = { 0 };
		eventfd_t dummy;

		pthread_mutex_lock(&r->lock);
		for (int i = 0; i < n; i++) {
			if (!events[i].data.u64)
				eventfd_read(r->wake, &dummy);
			for_each_peer(p, r) if (p->id == events[i].data.u64) read_peer(r, p, &cuts);
		}
		timeout = cut_late(r, &cuts);
		stop = r->stop;
		pthread_mutex_unlock(&r->lock);
		tell(r, &cuts);
	}
	return NULL;
}

/* ---- life ------------------------------------------------------------------------------------- */

static int start_reader(struct remote *r)
{
	struct epoll_event event = { .events = EPOLLIN };
	sigset_t all, old;
	int rc;

	r->epoll = epoll_create1(EPOLL_CLOEXEC);
	r->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->epoll < 0 || r->wake < 0 || epoll_ctl(r->epoll, EPOLL_CTL_ADD, r->wake, &event))
		return -errno;
	/* Signals are for the embedder's threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = -pthread_create(&r->reader, NULL, read_peers, r);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return rc;
}

static void stop_reader(struct remote *r)
{
	pthread_mutex_lock(&r->lock);
	r->stop = true;
	pthread_mutex_unlock(&r->lock);
	eventfd_write(r->wake, 1);
	pthread_join(r->reader, NULL);
}

static void free_remote(struct remote *r)
{
	if (r->epoll >= 0)
		close(r->epoll);
	if (r->wake >= 0)
		close(r->wake);
	pthread_cond_destroy(&r->changed);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

int remote_create(struct remote **out, const struct remote_config *config)
{
	const uint64_t mask = UMBRA_PAGE_SIZE - 1;
	pthread_condattr_t attr;
	struct remote *r;
	int rc;

	if (hva_range_empty(config->hva) ||
	    ((config->hva.start.v | config->hva.end.v | config->offset) & mask) ||
	    !config->deadline_ms || config->deadline_ms > 60000 || config->fd < 0)
		return -EINVAL;
	r = calloc(1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	r->notifier = (struct umbra_notifier){ .ops = &remote_ops, .name = "remote" };
	r->config = *config;
	pthread_mutex_init(&r->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&r->changed, &attr);
	pthread_condattr_destroy(&attr);
	rc = start_reader(r);
	if (rc) {
		free_remote(r);
		return rc;
	}
	/* Before there are peers: its start callbacks run under the chain's lock here. */
	rc = umbra_chain_register(config->chain, &r->notifier);
	if (rc) {
		stop_reader(r);
		free_remote(r);
		return rc;
	}
	*out = r;
	return 0;
}

void remote_destroy(struct remote *remote)
{
	umbra_chain_unregister(remote->config.chain, &remote->notifier);
	stop_reader(remote);
	free_remote(remote);
}

/* The memory's descriptor, or one through which it can only be read. Returns: it, or -errno. */
static int fd_for_peer(const struct remote *r)
{
	char path[32];
	int fd;

	if (r->config.peers_write)
		fd = fcntl(r->config.fd, F_DUPFD_CLOEXEC, 0);
	else {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", r->config.fd);
		fd = open(path, O_RDONLY | O_CLOEXEC);
	}
	return fd < 0 ? -errno : fd;
}

static int send_hello(const struct remote *r, int sock, int fd)
{
	struct remote_msg msg = {
		.size = sizeof(msg),
		.version = REMOTE_VERSION,
		.type = REMOTE_HELLO,
		.flags = (r->config.peers_write ? REMOTE_HELLO_WRITE : 0) |
			 (hva_range_empty(r->open) ? 0 : REMOTE_HELLO_CLOSED),
		.offset = r->config.offset,
		.length = r->config.hva.end.v - r->config.hva.start.v,
	};
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { &msg, sizeof(msg) };
	struct msghdr m = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};

	control.head.cmsg_len = CMSG_LEN(sizeof(int));
	control.head.cmsg_level = SOL_SOCKET;
	control.head.cmsg_type = SCM_RIGHTS;
	memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	return sendmsg(sock, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Lock held. @fd: what it is to map. */
static int add_peer(struct remote *r, int sock, int fd, uint64_t *id)
{
	struct epoll_event event = { .events = EPOLLIN };
	struct peer *free_place = NULL;
	int rc;

	if (r->released)
		return -ESHUTDOWN;
	for (struct peer *p = r->peers; p < r->peers + REMOTE_PEERS && !free_place; p++)
		if (!p->id)
			free_place = p;
	if (!free_place)
		return -ENOSPC;
	event.data.u64 = r->last_id + 1;
	if (epoll_ctl(r->epoll, EPOLL_CTL_ADD, sock, &event))
		return -errno;
	rc = send_hello(r, sock, fd);
	if (rc) {
		epoll_ctl(r->epoll, EPOLL_CTL_DEL, sock, NULL);
		return rc;
	}
	*free_place = (struct peer){ .id = ++r->last_id, .sock = sock };
	*id = free_place->id;
	r->stats.peers++;
	free_place->closed = !hva_range_empty(r->open); /* HELLO said so: END opens it */
	return 0;
}

int remote_attach(struct remote *remote, int sock, uint64_t *peer)
{
	const int fd = fd_for_peer(remote);
	int rc = fd;

	if (fd >= 0) {
		pthread_mutex_lock(&remote->lock);
		rc = add_peer(remote, sock, fd, peer);
		pthread_mutex_unlock(&remote->lock);
		close(fd);
	}
	if (rc)
		close(sock);
	return rc;
}

int remote_detach(struct remote *remote, uint64_t peer)
{
	struct cuts cuts = { 0 };
	bool known = false;

	pthread_mutex_lock(&remote->lock);
	for_each_peer(p, remote) known |= p->id == peer;
	if (known)
		detach(remote, peer, &cuts);
	pthread_mutex_unlock(&remote->lock);
	tell(remote, &cuts);
	return known ? 0 : -ENOENT;
}

void remote_drain(struct remote *remote)
{
	struct cuts cuts = { 0 };
	struct wait_set w;

	pthread_mutex_lock(&remote->lock);
	wait_set_fill(remote, &w);
	wait_for(remote, &w, &cuts);
	pthread_mutex_unlock(&remote->lock);
	tell(remote, &cuts);
}

void remote_stats(struct remote *remote, struct remote_stats *stats)
{
	pthread_mutex_lock(&remote->lock);
	*stats = remote->stats;
	pthread_mutex_unlock(&remote->lock);
}
