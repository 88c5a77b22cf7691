/* SPDX-License-Identifier: BSD-2-Clause */
/* The consumer in other processes: what each peer is told and waited for, and that none that fails harms anybody else. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include "tests/examples/remote_peers.h"

#define PAGE UMBRA_PAGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static void tear_down(void)
{
	remote_destroy(remote);
	cr_assert(host_sound(&h));
	host_destroy(&h);
}

static struct umbra_range range_of(uint64_t offset, uint64_t bytes, uint32_t flags)
{
	return (struct umbra_range){
		.hull = hva_range_of(guest + offset, bytes),
		.flags = flags,
		.source = UMBRA_SOURCE_TEST,
	};
}

static void must_go_on(int nr)
{
	const uint64_t before = progress[nr];

	wait_until(progress[nr] != before);
}

/* ---- peers that behave ------------------------------------------------------------------------ */

/* Two peers write everywhere all the time. From start to end a hole stays a hole: nobody touched it. */
Test(remote, nobody_touches_between_start_and_end, .timeout = 120)
{
	struct child a, b;

	remote_set_up(NEVER, true);
	a = spawn(good_peer, 0);
	b = spawn(good_peer, 1);
	wait_until(progress[0] && progress[1]);
	for (unsigned int i = 0; i < 100; i++) {
		const uint64_t offset = i * 37 % 1000 * PAGE, bytes = (1 + i % 24) * PAGE;
		const struct hva_range r = hva_range_of(guest + offset, bytes);

		cr_assert_eq(umbra_own_start(h.own, r, UMBRA_CAUSE_REMOVE, true), 0);
		cr_assert_eq(fallocate(guest_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				       (off_t)offset, (off_t)bytes),
			     0);
		for (int k = 0; k < 5; k++) {
			cr_assert(is_hole(offset, bytes), "touched in round %u", i);
			usleep(200);
		}
		umbra_own_end(h.own, r, UMBRA_CAUSE_REMOVE, true);
		if (i % 10 == 0)
			must_go_on(i % 20 ? 0 : 1);
	}
	cr_assert_eq(remote_now().sent, 200);
	cr_assert_eq(remote_now().acked, 200);
	cr_assert_eq(remote_now().peers, 2);
	tear_down();
	cr_assert_eq(wait_for_child(a), HEARD(REMOTE_DETACHED));
	cr_assert_eq(wait_for_child(b), HEARD(REMOTE_DETACHED));
}

static void *serve(void *peer)
{
	remote_peer_serve(peer);
	return NULL;
}

/* The user of a peer holds a page: the peer sleeps, and start with it. */
static int sleeping_user(int sock, int nr)
{
	struct remote_peer *peer;
	pthread_t server;
	int error;
	char *p;

	(void)nr;
	if (remote_peer_open(&peer, sock))
		return 1;
	p = remote_peer_get(peer, 0, 1, &error);
	if (!p || pthread_create(&server, NULL, serve, peer))
		return 1;
	progress[0] = 1;
	wait_until(progress[1]); /* the start is under way */
	usleep(20000);
	progress[2] = p[0] == 42; /* still what it was */
	remote_peer_put(peer);
	pthread_join(server, NULL);
	remote_peer_close(peer);
	return 0;
}

static void *tell_when_sent(void *arg)
{
	(void)arg;
	wait_until(remote_now().sent);
	progress[1] = 1;
	return NULL;
}

Test(remote, start_waits_while_the_peer_sleeps, .timeout = 60)
{
	pthread_t thread;
	struct child c;

	remote_set_up(NEVER, true);
	guest[0] = 42;
	c = spawn(sleeping_user, 0);
	wait_until(progress[0]);
	cr_assert_eq(pthread_create(&thread, NULL, tell_when_sent, NULL), 0);
	cr_assert_eq(punch(0, PAGE), 0);
	cr_assert_eq(progress[2], 1);
	pthread_join(thread, NULL);
	tear_down();
	cr_assert_eq(wait_for_child(c), 0);
}

/* Long enough for a peer that maps too early to be noticed, on a busy machine too. */
static void expect_kept_out(void)
{
	wait_until(remote_now().peers);
	for (int i = 0; i < 20; i++) {
		usleep(10000);
		cr_assert_eq(progress[0], 0);
	}
}

Test(remote, who_attaches_late_finds_closed_what_is_open, .timeout = 60)
{
	struct hva_range all;
	struct child c;

	remote_set_up(NEVER, true);
	all = hva_range_of(guest, SHARED_BYTES);
	cr_assert_eq(umbra_own_start(h.own, all, UMBRA_CAUSE_REMOVE, true), 0);
	c = spawn(good_peer, 0);
	expect_kept_out();
	cr_assert(is_hole(0, SHARED_BYTES));
	umbra_own_end(h.own, all, UMBRA_CAUSE_REMOVE, true);
	wait_until(progress[0]);
	tear_down();
	cr_assert_eq(wait_for_child(c), HEARD(REMOTE_DETACHED));
}

/* Who has shut its end for reading is gone, also when END is what finds it; its window was never full. */
Test(remote, who_left_before_the_end_is_gone, .timeout = 60)
{
	struct hva_range all;
	uint64_t id;
	int sv[2];

	remote_set_up(NEVER, true);
	all = hva_range_of(guest, SHARED_BYTES);
	cr_assert_eq(umbra_own_start(h.own, all, UMBRA_CAUSE_REMOVE, true), 0);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	cr_assert_eq(remote_attach(remote, sv[0], &id), 0);
	cr_assert_eq(shutdown(sv[1], SHUT_RD), 0);
	umbra_own_end(h.own, all, UMBRA_CAUSE_REMOVE, true);
	cr_assert_eq(remote_now().cut[REMOTE_GONE], 1);
	cr_assert_eq(remote_now().cut[REMOTE_FULL], 0);
	cr_assert_eq(remote_now().peers, 0);
	close(sv[1]);
	tear_down();
}

/* A consumer that joins is told of the union of what is open: here that meets us, and neither of the ends does. */
Test(remote, counts_balance_when_the_chain_was_busy, .timeout = 60)
{
	struct hva_range before, after;
	struct remote_config config = { .deadline_ms = NEVER, .peers_write = true };
	struct child c;

	remote_set_up(NEVER, true);
	remote_destroy(remote);
	before = hva_range_of(guest - 2 * PAGE, PAGE);
	after = hva_range_of(guest + SHARED_BYTES + PAGE, PAGE);
	cr_assert_eq(umbra_own_start(h.own, before, UMBRA_CAUSE_COW, false), 0);
	cr_assert_eq(umbra_own_start(h.own, after, UMBRA_CAUSE_COW, false), 0);
	config.chain = h.chain;
	config.hva = hva_range_of(guest, SHARED_BYTES);
	config.fd = guest_fd;
	cr_assert_eq(remote_create(&remote, &config), 0);
	remote_settle();
	umbra_own_end(h.own, before, UMBRA_CAUSE_COW, false);
	c = spawn(good_peer, 0);
	expect_kept_out();
	umbra_own_end(h.own, after, UMBRA_CAUSE_COW, false);
	wait_until(progress[0]);
	tear_down();
	cr_assert_eq(wait_for_child(c), HEARD(REMOTE_DETACHED));
}

Test(remote, what_lies_elsewhere_is_nobodys_business, .timeout = 60)
{
	struct umbra_range r;
	struct child c;

	remote_set_up(NEVER, true);
	c = spawn(good_peer, 0);
	r = range_of(SHARED_BYTES, PAGE, 0);
	cr_assert_eq(umbra_invalidate_start(h.chain, &r), 0);
	umbra_invalidate_end(h.chain, &r);
	r = range_of(0, PAGE, UMBRA_RANGE_BLOCKABLE);
	r.hull.end = r.hull.start;
	r.hull.start.v -= 1;
	cr_assert_eq(umbra_invalidate_start(h.chain, &r), 0);
	umbra_invalidate_end(h.chain, &r);
	cr_assert_eq(remote_now().starts, 2);
	cr_assert_eq(remote_now().sent, 0);
	tear_down();
	cr_assert_eq(wait_for_child(c), HEARD(REMOTE_DETACHED));
}

Test(remote, nonblockable_is_refused_or_posted_and_never_waited_for, .timeout = 60)
{
	struct umbra_range r;
	struct child c;

	remote_set_up(NEVER, true);
	r = range_of(0, PAGE, 0);
	cr_assert_eq(umbra_invalidate_start(h.chain, &r), 0); /* nobody is there */
	umbra_invalidate_end(h.chain, &r);
	c = spawn(good_peer, 0);
	wait_until(progress[0]);
	cr_assert_eq(kill(c.pid, SIGSTOP), 0);
	cr_assert_eq(umbra_invalidate_start(h.chain, &r), -EAGAIN);
	cr_assert_eq(remote_now().refused, 1);
	cr_assert_eq(remote_now().sent, 0);
	/* Forced: told, and the end as well, in this order; it obeys when it runs again. */
	r.flags = UMBRA_RANGE_FORCED;
	cr_assert_eq(umbra_invalidate_start(h.chain, &r), 0);
	cr_assert_eq(remote_now().posted, 1);
	cr_assert_eq(remote_now().acked, 0);
	cr_assert_eq(kill(c.pid, SIGCONT), 0);
	remote_drain(remote);
	cr_assert_eq(remote_now().acked, 1);
	cr_assert_eq(fallocate(guest_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE), 0);
	usleep(5000);
	cr_assert(is_hole(0, PAGE));
	umbra_invalidate_end(h.chain, &r);
	must_go_on(0);
	tear_down();
	cr_assert_eq(wait_for_child(c), HEARD(REMOTE_DETACHED));
}

Test(remote, detach_and_release, .timeout = 60)
{
	struct child a, b;
	uint64_t id;
	int sv[2];

	remote_set_up(NEVER, true);
	a = spawn(good_peer, 0);
	b = spawn(good_peer, 1);
	wait_until(progress[0] && progress[1]);
	cr_assert_eq(remote_detach(remote, a.id), 0);
	cr_assert_eq(wait_for_child(a), HEARD(REMOTE_DETACHED));
	cr_assert_eq(remote_detach(remote, a.id), -ENOENT);
	must_go_on(1);
	umbra_release(h.chain);
	cr_assert_eq(wait_for_child(b), HEARD(REMOTE_DETACHED));
	cr_assert_eq(remote_now().cut[REMOTE_DETACHED], 2);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv), 0);
	cr_assert_eq(remote_attach(remote, sv[0], &id), -ESHUTDOWN);
	close(sv[1]);
	tear_down();
}

Test(remote, no_more_than_there_are_places, .timeout = 60)
{
	int sv[2], ends[REMOTE_PEERS];
	uint64_t id;

	remote_set_up(SOON, true);
	for (int i = 0; i < REMOTE_PEERS; i++) {
		cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv), 0);
		cr_assert_eq(remote_attach(remote, sv[0], &id), 0);
		cr_assert_eq(id, (uint64_t)i + 2);
		ends[i] = sv[1];
	}
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv), 0);
	cr_assert_eq(remote_attach(remote, sv[0], &id), -ENOSPC);
	close(sv[1]);
	/* One goes: its place is free, its number is not used again. */
	close(ends[3]);
	wait_until(remote_now().cut[REMOTE_GONE] == 1);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv), 0);
	cr_assert_eq(remote_attach(remote, sv[0], &id), 0);
	cr_assert_eq(id, REMOTE_PEERS + 2);
	/* None of them answers: one deadline for all of them together, then none is left. */
	cr_assert_eq(punch(0, PAGE), 0);
	cr_assert_eq(remote_now().peers, 0);
	cr_assert_eq(remote_now().cut[REMOTE_LATE], REMOTE_PEERS);
	tear_down();
}

/* ---- peers that do not ------------------------------------------------------------------------ */

enum misdeed {
	DIES,
	CLOSES,
	SILENT,
	DEAF,
	LATE,
	STOPPED,
	WRONG_SEQ,
	OLD_SEQ,
	TWICE,
	GARBAGE,
	EMPTY,
	HALF,
	LONG,
	BAD_SIZE,
	BAD_VERSION,
	BAD_TYPE,
	BAD_RESERVED,
	FLOOD,
};

static int bad_peer(int sock, int misdeed)
{
	char many[4096];
	struct pollfd end = { .fd = sock };
	struct remote_msg m, ack;

	hello(sock, &m);
	if (misdeed == DEAF) {
		poll(&end, 1, -1); /* for the hangup only */
		return hear(sock);
	}
	m = start_message(sock);
	ack = ack_of(m.seq);
	memset(many, 0xa5, sizeof(many));
	switch (misdeed) {
	case DIES: raise(SIGKILL); break;
	case CLOSES: return 0;
	case SILENT: break;
	case LATE:
		poll(&end, 1, -1);
		say(sock, &ack, sizeof(ack));
		break;
	case WRONG_SEQ:
		ack.seq++;
		say(sock, &ack, sizeof(ack));
		break;
	case OLD_SEQ:
		ack.seq--;
		say(sock, &ack, sizeof(ack));
		break;
	case TWICE:
		say(sock, &ack, sizeof(ack));
		say(sock, &ack, sizeof(ack));
		break;
	case GARBAGE: say(sock, many, sizeof(ack)); break;
	case EMPTY: say(sock, many, 0); break;
	case HALF:
		say(sock, &ack, sizeof(ack) / 2);
		say(sock, (char *)&ack + sizeof(ack) / 2, sizeof(ack) / 2);
		break;
	case LONG:
		memcpy(many, &ack, sizeof(ack));
		say(sock, many, sizeof(many));
		break;
	case BAD_SIZE:
		ack.size++;
		say(sock, &ack, sizeof(ack));
		break;
	case BAD_VERSION:
		ack.version++;
		say(sock, &ack, sizeof(ack));
		break;
	case BAD_TYPE:
		ack.type = REMOTE_END;
		say(sock, &ack, sizeof(ack));
		break;
	case BAD_RESERVED:
		ack.reserved = 1;
		say(sock, &ack, sizeof(ack));
		break;
	case FLOOD:
		say(sock, &ack, sizeof(ack));
		for (int i = 0; i < 100000 && send(sock, &ack, sizeof(ack), MSG_NOSIGNAL) > 0; i++)
			ack.seq++;
		break;
	default: return 5;
	}
	return hear(sock);
}

struct crime {
	enum misdeed misdeed;
	enum remote_reason reason;
	int heard;
	unsigned int deadline_ms;
};

/*
 * The invalidation returns, the culprit is cut off, told, and not waited for again; the other peer and the tables are as right as
 * before. Where the deadline is NEVER, that it returns before the test's timeout shows that it was not waited out.
 */
static void punish(const struct crime *crime)
{
	struct child good, bad;

	remote_set_up(crime->deadline_ms, true);
	good = spawn(good_peer, 0);
	wait_until(progress[0]);
	bad = spawn(crime->misdeed == STOPPED ? good_peer : bad_peer,
		    crime->misdeed == STOPPED ? 1 : (int)crime->misdeed);
	if (crime->misdeed == STOPPED) {
		wait_until(progress[1]);
		cr_assert_eq(kill(bad.pid, SIGSTOP), 0);
	}
	cr_assert(host_touch(&h, guest, 16 * PAGE, RW));
	cr_assert_eq(punch(0, 8 * PAGE), 0);
	cr_assert_eq(host_leaf(&h, guest), 0);
	/* An answer too many may come after the one that was waited for. */
	wait_until(remote_now().cut[crime->reason] == 1);
	wait_until(cut_peer == bad.id);
	cr_assert_eq(cut_reason, crime->reason);
	cr_assert_eq(remote_now().peers, 1);
	for (uint64_t i = 0; i < 8; i++) {
		cr_assert(host_touch(&h, guest, 16 * PAGE, RW));
		cr_assert_eq(punch(i * PAGE, PAGE), 0);
		must_go_on(0);
	}
	cr_assert_eq(remote_now().peers, 1);
	if (crime->misdeed == STOPPED)
		cr_assert_eq(kill(bad.pid, SIGCONT), 0);
	cr_assert_eq(wait_for_child(bad), crime->heard);
	tear_down();
	cr_assert_eq(wait_for_child(good), HEARD(REMOTE_DETACHED));
}

#define WRONG_HEARD HEARD(REMOTE_WRONG)

ParameterizedTestParameters(remote, one_peer_fails)
{
	static struct crime crimes[] = {
		{ DIES, REMOTE_GONE, 1000 + SIGKILL, NEVER },
		{ CLOSES, REMOTE_GONE, 0, NEVER },
		{ SILENT, REMOTE_LATE, HEARD(REMOTE_LATE), SOON },
		{ DEAF, REMOTE_LATE, HEARD(REMOTE_LATE), SOON },
		{ LATE, REMOTE_LATE, HEARD(REMOTE_LATE), SOON },
		{ STOPPED, REMOTE_LATE, HEARD(REMOTE_LATE), SOON },
		{ WRONG_SEQ, REMOTE_WRONG, WRONG_HEARD, NEVER },
		{ OLD_SEQ, REMOTE_WRONG, WRONG_HEARD, NEVER },
		{ TWICE, REMOTE_WRONG, WRONG_HEARD, NEVER },
		{ GARBAGE, REMOTE_WRONG, WRONG_HEARD, NEVER },
		{ EMPTY, REMOTE_GONE, HEARD(REMOTE_GONE), NEVER },
		{ HALF, REMOTE_WRONG, WRONG_HEARD, NEVER },
		{ LONG, REMOTE_WRONG, WRONG_HEARD, NEVER },
		{ BAD_SIZE, REMOTE_WRONG, WRONG_HEARD, NEVER },
		{ BAD_VERSION, REMOTE_WRONG, WRONG_HEARD, NEVER },
		{ BAD_TYPE, REMOTE_WRONG, WRONG_HEARD, NEVER },
		{ BAD_RESERVED, REMOTE_WRONG, WRONG_HEARD, NEVER },
		{ FLOOD, REMOTE_WRONG, WRONG_HEARD, NEVER },
	};

	return cr_make_param_array(struct crime, crimes, sizeof(crimes) / sizeof(crimes[0]));
}

ParameterizedTest(struct crime *crime, remote, one_peer_fails, .timeout = 40)
{
	punish(crime);
}

/* Says something before it was asked. */
static int eager_peer(int sock, int arg)
{
	struct remote_msg m, ack = ack_of(1);

	(void)arg;
	hello(sock, &m);
	say(sock, &ack, sizeof(ack));
	return hear(sock);
}

Test(remote, nobody_answers_what_was_not_asked, .timeout = 40)
{
	struct child c;

	remote_set_up(NEVER, true);
	c = spawn(eager_peer, 0);
	cr_assert_eq(wait_for_child(c), WRONG_HEARD);
	cr_assert_eq(remote_now().cut[REMOTE_WRONG], 1);
	tear_down();
}

/* Told by a source that cannot wait: the deadline holds all the same, and a peer that reads nothing has an end, too. */
Test(remote, what_is_only_posted_has_a_deadline_and_an_end, .timeout = 40)
{
	struct umbra_range r;
	struct child c;

	remote_set_up(SOON, true);
	r = range_of(0, PAGE, UMBRA_RANGE_FORCED);
	c = spawn(bad_peer, SILENT);
	cr_assert_eq(umbra_invalidate_start(h.chain, &r), 0);
	cr_assert_eq(remote_now().peers, 1);
	wait_until(cut_peer == c.id);
	cr_assert_eq(cut_reason, REMOTE_LATE);
	umbra_invalidate_end(h.chain, &r);
	cr_assert_eq(wait_for_child(c), HEARD(REMOTE_LATE));
	tear_down();

	remote_set_up(NEVER, true);
	c = spawn(bad_peer, DEAF);
	for (int i = 0; i <= REMOTE_WINDOW; i++) {
		r = range_of(0, PAGE, UMBRA_RANGE_FORCED);
		cr_assert_eq(remote_now().peers, 1);
		cr_assert_eq(umbra_invalidate_start(h.chain, &r), 0);
		umbra_invalidate_end(h.chain, &r);
	}
	cr_assert_eq(remote_now().peers, 0);
	cr_assert_eq(remote_now().cut[REMOTE_FULL], 1);
	wait_for_child(c); /* whether there was room for BYE is the kernel's to say */
	tear_down();
}

/* Many threads invalidate while one of three peers is killed and one stops answering. */
static void *invalidate(void *arg)
{
	const uint64_t nr = (uintptr_t)arg;

	for (uint64_t i = 0; i < 100; i++)
		HOST_NEED(!punch((nr * 100 + i) * PAGE, 2 * PAGE));
	return NULL;
}

Test(remote, several_invalidators_and_peers_that_fail_meanwhile, .timeout = 100)
{
	pthread_t threads[4];
	struct child good, killed, stopped;

	remote_set_up(SOON, true);
	good = spawn(good_peer, 0);
	killed = spawn(good_peer, 1);
	stopped = spawn(good_peer, 2);
	wait_until(progress[0] && progress[1] && progress[2]);
	for (uintptr_t i = 0; i < 4; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, invalidate, (void *)i), 0);
	wait_until(remote_now().sent > 100);
	cr_assert_eq(kill(killed.pid, SIGKILL), 0);
	wait_until(remote_now().sent > 150);
	cr_assert_eq(kill(stopped.pid, SIGSTOP), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	cr_assert_eq(punch(0, PAGE), 0);
	cr_assert_eq(remote_now().peers, 1);
	cr_assert_eq(remote_now().cut[REMOTE_GONE], 1);
	cr_assert_eq(remote_now().cut[REMOTE_LATE], 1);
	must_go_on(0);
	cr_assert_eq(kill(stopped.pid, SIGCONT), 0);
	cr_assert_eq(wait_for_child(killed), 1000 + SIGKILL);
	cr_assert_eq(wait_for_child(stopped), HEARD(REMOTE_LATE));
	tear_down();
	cr_assert_eq(wait_for_child(good), HEARD(REMOTE_DETACHED));
}
