/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The reader of a userfaultfd: any sequence of messages leaves the counts balanced and the tables right. The
 * descriptor is replaced by a socket that the messages come from; everything else is as it is in a program.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/socket.h>
#include <umbra/events.h>
#include <unistd.h>
#include "tests/fuzz/fuzz.h"
#include "tests/support/fakehost.h"

#define MESSAGES_MAX 64

static struct fake *fake;
static struct umbra_uffd *uffd;
static int feed, null_fd;
static pthread_t the_reader;

/* The messages of one input. Each fault has a thread id of its own: one more than its place. */
static struct uffd_msg messages[MESSAGES_MAX];
static struct told {
	uint64_t events; /* announced before this input and to be announced before this message */
	bool handed;
} told[MESSAGES_MAX];
static size_t nmessages;

static void *reader(void *arg)
{
	(void)arg;
	umbra_uffd_run(uffd);
	return NULL;
}

static uint64_t events_announced(void)
{
	struct umbra_uffd_stats now;

	umbra_uffd_stats(uffd, &now);
	return now.removes + now.unmaps + now.remaps + now.forks;
}

/* A fault comes as it was written, once, on the reader, after the events that came before it. */
static void on_fault(void *ctx, struct umbra_uffd *u, hva_t hva, uint32_t flags, uint32_t tid)
{
	const struct uffd_msg *m = &messages[(tid - 1) % MESSAGES_MAX];
	struct told *t = &told[(tid - 1) % MESSAGES_MAX];

	(void)ctx;
	fuzz_require(u == uffd && pthread_equal(pthread_self(), the_reader));
	fuzz_require(tid && tid <= nmessages && m->event == UFFD_EVENT_PAGEFAULT && !t->handed);
	fuzz_require(hva.v == m->arg.pagefault.address);
	fuzz_require(flags == (uint32_t)m->arg.pagefault.flags);
	fuzz_require(events_announced() >= t->events);
	t->handed = true;
}

static void set_up(void)
{
	struct umbra_uffd_config config = { .fd = -1, .fault = on_fault };
	int pair[2];

	fake = fake_create(NULL);
	if (umbra_uffd_open(&uffd, fake->chain, &config, NULL))
		fuzz_skip("no userfaultfd here");
	fuzz_require(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair));
	fuzz_require(dup2(pair[0], umbra_uffd_fd(uffd)) >= 0);
	feed = pair[1];
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	fuzz_require(!pthread_create(&the_reader, NULL, reader, NULL));
	pthread_detach(the_reader);
	while (umbra_uffd_drain(uffd))
		usleep(100);
}

/* An address that often meets the fake host's memory. */
static uint64_t address(struct fuzz_input *in)
{
	const uint64_t v = fuzz_number(in, 4);

	return v & 1 ? fuzz_number(in, 8) : fake_hva(v % fake->npages).v + (v >> 16 & 0xfff);
}

static void message(struct fuzz_input *in, struct uffd_msg *m)
{
	uint64_t a, b;

	memset(m, 0, sizeof(*m));
	m->event = (uint8_t)(fuzz_number(in, 1) % 8 + UFFD_EVENT_PAGEFAULT);
	a = address(in);
	b = address(in);
	switch (m->event) {
	case UFFD_EVENT_PAGEFAULT:
		m->arg.pagefault.address = a;
		m->arg.pagefault.flags = b;
		m->arg.pagefault.feat.ptid = (uint32_t)(m - messages) + 1;
		break;
	case UFFD_EVENT_FORK: m->arg.fork.ufd = (uint32_t)dup(null_fd); break;
	case UFFD_EVENT_REMAP:
		m->arg.remap.from = a;
		m->arg.remap.to = b;
		m->arg.remap.len = fuzz_number(in, 4);
		break;
	default: m->arg.remove.start = a; m->arg.remove.end = a <= b ? b : a;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input in = { data, size };
	struct umbra_chain_counts counts;
	uint64_t pfn, events;

	if (!fake)
		set_up();
	events = events_announced();
	for (nmessages = 0; in.left && nmessages < MESSAGES_MAX; nmessages++) {
		struct uffd_msg *m = &messages[nmessages];

		message(&in, m);
		told[nmessages] = (struct told){ .events = events };
		events += m->event > UFFD_EVENT_PAGEFAULT && m->event <= UFFD_EVENT_UNMAP;
	}
	for (unsigned int i = 0; i < 8; i++)
		fuzz_require(fake_access(fake, 0, (uint64_t)i * 300, true, &pfn) == 0);
	for (size_t i = 0; i < nmessages; i++)
		fuzz_require(send(feed, &messages[i], sizeof(messages[i]), 0) ==
			     (ssize_t)sizeof(messages[i]));
	fuzz_require(!umbra_uffd_drain(uffd));
	counts = umbra_chain_counts(fake->chain, UMBRA_SOURCE_UFFD);
	fuzz_require(counts.begun == counts.ended);
	fuzz_require(events_announced() == events);
	for (size_t i = 0; i < nmessages; i++)
		fuzz_require(told[i].handed == (messages[i].event == UFFD_EVENT_PAGEFAULT));
	fuzz_require(!fake_check(fake));
	return 0;
}
