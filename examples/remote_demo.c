/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A process that maps the guest's memory, and another that stops answering: the host punches holes all the while. Exit: 0 when
 * every hole stayed one until its end, and the second was cut off; 1; 77 this host lacks something.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <umbra/events.h>

#include "remote.h"
#include "remote_peer.h"

#define BYTES (4 * UMBRA_HUGE_SIZE)

/* ---- the peer --------------------------------------------------------------------------------- */

static void *use_memory(void *arg)
{
	struct remote_peer *peer = arg;
	uint64_t page = 0;
	int error = 0;

	while (error != -EPIPE) {
		char *p = remote_peer_get(peer, page++ * UMBRA_PAGE_SIZE % remote_peer_size(peer),
					  1, &error);

		if (p) {
			*p = 1;
			remote_peer_put(peer);
		} else {
			usleep(100);
		}
	}
	return NULL;
}

static int be_peer(int sock)
{
	enum remote_reason reason;
	struct remote_peer *peer;
	pthread_t user;

	if (remote_peer_open(&peer, sock) || pthread_create(&user, NULL, use_memory, peer))
		return 1;
	reason = remote_peer_serve(peer);
	pthread_join(user, NULL);
	remote_peer_close(peer);
	return (int)reason;
}

/* ---- the VMM ---------------------------------------------------------------------------------- */

static const char *const reasons[REMOTE_REASON_NR] = {
	[REMOTE_DETACHED] = "detached",  [REMOTE_GONE] = "gone",          [REMOTE_LATE] = "late",
	[REMOTE_WRONG] = "wrong answer", [REMOTE_FULL] = "reads nothing",
};

static void say_cut(void *ctx, uint64_t peer, enum remote_reason reason)
{
	(void)ctx;
	printf("peer %llu is cut off: %s\n", (unsigned long long)peer, reasons[reason]);
}

static pid_t new_peer(struct remote *remote, uint64_t *id)
{
	int sv[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		return -1;
	pid = fork();
	if (!pid) {
		close(sv[0]);
		_exit(be_peer(sv[1]));
	}
	close(sv[1]);
	if (pid < 0 || remote_attach(remote, sv[0], id))
		return -1;
	return pid;
}

/* Punches a page, bracketed by hand so as to look at it in between. Returns: was it touched? */
static bool touched_in_hole(struct umbra_own *own, const char *memory, int fd, uint64_t offset)
{
	const struct hva_range r = hva_range_of(memory + offset, UMBRA_PAGE_SIZE);
	off_t data;

	if (umbra_own_start(own, r, UMBRA_CAUSE_REMOVE, true))
		return true;
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
		      (off_t)UMBRA_PAGE_SIZE))
		return true;
	usleep(500);
	data = lseek(fd, (off_t)offset, SEEK_DATA);
	umbra_own_end(own, r, UMBRA_CAUSE_REMOVE, true);
	return data >= 0 && (uint64_t)data < offset + UMBRA_PAGE_SIZE;
}

int main(void)
{
	struct remote_config config = {
		.deadline_ms = 500,
		.peers_write = true,
		.cut = say_cut,
	};
	struct umbra_chain *chain;
	struct remote_stats s;
	struct remote *remote;
	struct umbra_own *own;
	uint64_t good_id, bad_id;
	int touched = 0, status;
	pid_t good, bad;
	char *memory;

	setvbuf(stdout, NULL, _IONBF, 0);
	config.fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (config.fd < 0 || ftruncate(config.fd, (off_t)BYTES) ||
	    fcntl(config.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return 77;
	memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, config.fd, 0);
	if (memory == MAP_FAILED || umbra_chain_create(&chain, &umbra_os_posix) ||
	    umbra_own_create(&own, chain, NULL))
		return 77;
	config.chain = chain;
	config.hva = hva_range_of(memory, BYTES);
	if (remote_create(&remote, &config))
		return 77;
	good = new_peer(remote, &good_id);
	bad = new_peer(remote, &bad_id);
	if (good < 0 || bad < 0)
		return 77;
	printf("peers %llu and %llu write to all of the guest's memory\n",
	       (unsigned long long)good_id, (unsigned long long)bad_id);
	for (uint64_t i = 0; i < 200; i++) {
		if (i == 100) {
			printf("peer %llu is stopped\n", (unsigned long long)bad_id);
			kill(bad, SIGSTOP);
		}
		touched +=
			touched_in_hole(own, memory, config.fd, i * 31 * UMBRA_PAGE_SIZE % BYTES);
	}
	kill(bad, SIGCONT);
	waitpid(bad, &status, 0);
	remote_stats(remote, &s);
	printf("200 holes, %d touched before their end; %llu starts sent, %llu acknowledged\n",
	       touched, (unsigned long long)s.sent, (unsigned long long)s.acked);
	remote_destroy(remote);
	waitpid(good, &status, 0);
	umbra_own_destroy(own);
	umbra_chain_destroy(chain);
	return touched || s.cut[REMOTE_LATE] != 1 || !WIFEXITED(status) ||
	       WEXITSTATUS(status) != REMOTE_DETACHED;
}
