/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The remote consumer of examples/ under ThreadSanitizer: invalidators, peers (threads here, so that both sides are watched) that
 * come and go, and the consumer itself that joins and leaves the chain. Usage: race_remote [ROUNDS]. Exit 0: from start to end
 * nobody touched a hole, everything was acknowledged, and nobody was cut off; 1.
 */
#include "tests/examples/remote_peers.h"

#define INVALIDATORS 3
#define PEERS        3

static int rounds = 6;
static _Atomic int running;
static _Atomic uint64_t touched;

struct served {
	struct remote_peer *peer;
	pthread_t server, user;
	struct user u;
	uint64_t id;
	int sock;
};

static void *serve(void *arg)
{
	struct served *s = arg;

	remote_peer_serve(s->peer);
	return NULL;
}

static void attach(struct served *s, int nr)
{
	int sv[2];

	HOST_NEED(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv));
	HOST_NEED(!remote_attach(remote, sv[0], &s->id));
	s->sock = sv[1];
	HOST_NEED(!remote_peer_open(&s->peer, s->sock));
	s->u = (struct user){ s->peer, nr };
	HOST_NEED(!pthread_create(&s->server, NULL, serve, s));
	HOST_NEED(!pthread_create(&s->user, NULL, use_memory, &s->u));
}

static void reap(struct served *s)
{
	pthread_join(s->server, NULL);
	pthread_join(s->user, NULL);
	remote_peer_close(s->peer);
	close(s->sock);
}

static void *invalidate(void *arg)
{
	unsigned int state = (unsigned int)(uintptr_t)arg;

	while (running) {
		const uint64_t pages = 1 + (unsigned int)rand_r(&state) % 16;
		const uint64_t offset = (unsigned int)rand_r(&state) % 500 * UMBRA_PAGE_SIZE;
		const struct hva_range r = hva_range_of(guest + offset, pages * UMBRA_PAGE_SIZE);

		HOST_NEED(!umbra_own_start(h.own, r, UMBRA_CAUSE_REMOVE, true));
		HOST_NEED(!fallocate(guest_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				     (off_t)offset, (off_t)(pages * UMBRA_PAGE_SIZE)));
		sched_yield();
		if (!is_hole(offset, pages * UMBRA_PAGE_SIZE))
			touched++;
		umbra_own_end(h.own, r, UMBRA_CAUSE_REMOVE, true);
		usleep(500); /* the last end opens: without a pause there may be none */
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct remote_config config = { .deadline_ms = NEVER, .peers_write = true };
	pthread_t threads[INVALIDATORS];
	struct served served[PEERS];
	uint64_t acked = 0, cut = 0;

	if (argc > 1)
		rounds = atoi(argv[1]);
	remote_set_up(NEVER, true);
	config.chain = h.chain;
	config.hva = hva_range_of(guest, SHARED_BYTES);
	config.fd = guest_fd;
	running = 1;
	for (uintptr_t i = 0; i < INVALIDATORS; i++)
		HOST_NEED(!pthread_create(&threads[i], NULL, invalidate, (void *)i));
	for (int round = 0; round < rounds; round++) {
		struct remote_stats s;
		uint64_t before;

		for (int i = 0; i < PEERS; i++)
			attach(&served[i], i);
		before = progress[1];
		wait_until(progress[1] > before + 100);
		HOST_NEED(!remote_detach(remote, served[0].id));
		reap(&served[0]);
		attach(&served[0], 0);
		remote_drain(remote);
		if (round % 2)
			for (int i = 0; i < PEERS; i++)
				HOST_NEED(!remote_detach(remote, served[i].id));
		s = remote_now();
		acked += s.acked;
		cut += s.cut[REMOTE_GONE] + s.cut[REMOTE_LATE] + s.cut[REMOTE_WRONG] +
		       s.cut[REMOTE_FULL];
		remote_destroy(remote);
		for (int i = 0; i < PEERS; i++)
			reap(&served[i]);
		HOST_NEED(!remote_create(&remote, &config));
		remote_settle();
	}
	running = 0;
	for (int i = 0; i < INVALIDATORS; i++)
		pthread_join(threads[i], NULL);
	remote_destroy(remote);
	printf("%d rounds, %llu starts acknowledged, %llu peers cut off, %llu holes touched\n",
	       rounds, (unsigned long long)acked, (unsigned long long)cut,
	       (unsigned long long)touched);
	if (!host_sound(&h) || !acked || cut || touched)
		return 1;
	host_destroy(&h);
	return 0;
}
