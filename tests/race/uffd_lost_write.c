/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * REMOVE is read before the zap: who writes to the page as soon as it is read loses the write. Here a thread discards by a bare
 * madvise, and a guest writes as soon as umbra_fault() lets it: not one write may be lost, and no leaf may be stale. The same without
 * asking Umbra is counted beside it, to show that the window is there. Exit 0, 1, or 77 without userfaultfd.
 */
#include "tests/integration/events_host.h"

#define ROUNDS 200

static struct host h;
static struct umbra_uffd *uffd;
static char *page;
static _Atomic int go, gone;

static void *read_events(void *arg)
{
	(void)arg;
	umbra_uffd_run(uffd);
	return NULL;
}

static void *discarder(void *arg)
{
	(void)arg;
	for (int i = 1; i <= 2 * ROUNDS; i++) {
		while (go < i)
			sched_yield();
		if (go > 2 * ROUNDS)
			break;
		HOST_NEED(!madvise(page, UMBRA_PAGE_SIZE, MADV_DONTNEED));
		gone = i;
	}
	return NULL;
}

static uint64_t removes(void)
{
	struct umbra_uffd_stats s;

	umbra_uffd_stats(uffd, &s);
	return s.removes;
}

/* One discard by the other thread, and a write as soon as its event was read. Says whether the write is still there. */
static bool round_keeps_the_write(int nr, bool ask, uint64_t *refused)
{
	const uint64_t before = removes();
	volatile char *byte = page;
	enum umbra_fault_result r;

	HOST_NEED(host_touch(&h, page, UMBRA_PAGE_SIZE, UMBRA_ACCESS_WRITE));
	*byte = 1;
	go = nr;
	while (removes() == before)
		;
	while (ask) {
		r = host_fault_once(&h, page, UMBRA_ACCESS_WRITE);
		if (r != UMBRA_FAULT_RETRY)
			break;
		++*refused;
	}
	*byte = 42;
	while (gone < nr)
		sched_yield();
	return *byte == 42;
}

int main(void)
{
	struct umbra_uffd_config config = { .fd = -1 };
	struct umbra_uffd_stats s;
	struct umbra_uffd_tried tried;
	uint64_t refused = 0;
	int lost = 0, lost_bare = 0, bad = 0;
	pthread_t reader, other;

	host_create(&h);
	config.own = h.own;
	if (umbra_uffd_open(&uffd, h.chain, &config, &tried)) {
		printf("skipped: no userfaultfd (device %d, system call %d)\n", tried.dev,
		       tried.syscall);
		return 77;
	}
	page = host_anon(&h, UMBRA_HUGE_SIZE);
	madvise(page, UMBRA_HUGE_SIZE, MADV_NOHUGEPAGE);
	HOST_NEED(!umbra_uffd_register(uffd, hva_range_of(page, UMBRA_HUGE_SIZE), UMBRA_UFFD_WP));
	HOST_NEED(!pthread_create(&reader, NULL, read_events, NULL));
	HOST_NEED(!pthread_create(&other, NULL, discarder, NULL));
	for (int i = 1; i <= ROUNDS; i++) {
		lost += !round_keeps_the_write(i, true, &refused);
		while (umbra_uffd_drain(uffd))
			sched_yield();
		bad += !host_sound(&h);
	}
	for (int i = ROUNDS + 1; i <= 2 * ROUNDS; i++) {
		lost_bare += !round_keeps_the_write(i, false, &refused);
		while (umbra_uffd_drain(uffd))
			sched_yield();
	}
	umbra_uffd_stats(uffd, &s);
	umbra_uffd_stop(uffd);
	pthread_join(other, NULL);
	pthread_join(reader, NULL);
	printf("%d rounds: %d writes lost, %d stale (refused %llu times); without asking: %d lost\n",
	       ROUNDS, lost, bad, (unsigned long long)refused, lost_bare);
	bad += s.unsettled != 0 || s.settled != s.removes || s.removes != 2 * ROUNDS;
	umbra_uffd_close(uffd);
	bad += !host_sound(&h);
	host_destroy(&h);
	return lost || bad ? 1 : 0;
}
