/* SPDX-License-Identifier: BSD-2-Clause */
/* What the kernel and other processes do to a subscribed process: swap, migration, KSM, truncation, reaping, aging. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "kmod_test.h"

static struct seen seen;
static struct sub sub;

static void nap(long ms)
{
	nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

/* ---- swap and migration ----------------------------------------------------------------------- */

static void swap_out_and_in(void)
{
	char *p = memory(HUGE);
	volatile char sum = 0;

	subscribe(&sub, p, HUGE, 12);
	CHECK(madvise(p, 16 * PAGE, MADV_PAGEOUT) == 0);
	for (int i = 0; i < 500 && now(&sub).ended < 16; i++)
		nap(10);
	if (get("/proc/sys/vm/swappiness") < 0 || now(&sub).begun == 0)
		skip("nothing was swapped out: no swap space?");
	nap(50);
	drain(&sub, &seen);
	for (unsigned int i = 0; i < 16; i++)
		CHECK(find_cover(&seen, p + i * PAGE, PAGE) >= 0);
	CHECK(find_cover(&seen, p + 16 * PAGE, PAGE) < 0);
	/* it comes back with what was in it, and nothing is announced */
	for (unsigned int i = 0; i < 16; i++) {
		sum = p[i * PAGE];
		EQUAL(sum, i + 1);
	}
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
}

static void move_pages_between_nodes(void)
{
	char *p = memory(HUGE);
	void *pages[1] = { p + 3 * PAGE };
	int node[1] = { -1 }, status[1] = { -1 };

	if (syscall(SYS_move_pages, 0, 1UL, pages, NULL, status, 0) || status[0] < 0)
		skip("move_pages: %s", strerror(errno));
	node[0] = !status[0];
	subscribe(&sub, p, HUGE, 10);
	if (syscall(SYS_move_pages, 0, 1UL, pages, node, status, 2) || status[0] != node[0])
		skip("the page does not move: one node?");
	drain(&sub, &seen);
	want_pair(&seen, pages[0], PAGE, UMBRA_NTF_CLEAR);
	EQUAL(p[3 * PAGE], 4);
}

static void ksm_merges(void)
{
	char *p = memory(HUGE);
	const struct umbra_ntf_record *rec;
	bool by_kernel = false;

	memset(p, 0x5a, 4 * PAGE);
	subscribe(&sub, p, HUGE, 12);
	CHECK(madvise(p, 4 * PAGE, MADV_MERGEABLE) == 0);
	put("/sys/kernel/mm/ksm/sleep_millisecs", "10");
	put("/sys/kernel/mm/ksm/pages_to_scan", "1000");
	if (!put("/sys/kernel/mm/ksm/run", "1"))
		skip("no KSM");
	for (int i = 0; i < 1000 && get("/sys/kernel/mm/ksm/pages_sharing") < 3; i++)
		nap(10);
	put("/sys/kernel/mm/ksm/run", "0");
	CHECK(get("/sys/kernel/mm/ksm/pages_sharing") >= 3);
	drain(&sub, &seen);
	for (unsigned int i = 0; i < 4; i++)
		want_pair(&seen, p + i * PAGE, PAGE, UMBRA_NTF_CLEAR);
	for (rec = seen.v; rec < seen.v + seen.nr; rec++)
		by_kernel |= (rec->flags & UMBRA_NTF_KTHREAD) && rec->who == 0;
	CHECK(by_kernel);
	p[2 * PAGE] = 1; /* breaks it */
	drain(&sub, &seen);
	want_only(&seen, p + 2 * PAGE, PAGE);
	EQUAL(p[PAGE], 0x5a);
	put("/sys/kernel/mm/ksm/run", "2");
}

/* ---- files ------------------------------------------------------------------------------------ */

static int punch(void *arg)
{
	return fallocate(*(int *)arg, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 6 * PAGE, PAGE);
}

static int punch_bytes(void *arg)
{
	return fallocate(*(int *)arg, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 7 * PAGE + 8,
			 100);
}

static int shrink(void *arg)
{
	return ftruncate(*(int *)arg, 16 * PAGE);
}

static void hole_by_another_process(void)
{
	int fd;
	char *p = file_memory(&fd);

	subscribe(&sub, p, HUGE, 10);
	by_another(punch, &fd);
	drain(&sub, &seen);
	want_only(&seen, p + 6 * PAGE, PAGE);
	EQUAL(seen.v[0].flags, UMBRA_NTF_BLOCKABLE);
	EQUAL(seen.v[0].who, 0);
	EQUAL(p[6 * PAGE], 0);
	by_another(punch_bytes, &fd); /* zeroed in place */
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
	EQUAL(p[7 * PAGE + 8], 0);
}

static void truncation_by_another_process(void)
{
	int fd, first;
	char *p = file_memory(&fd);

	subscribe(&sub, p, HUGE, 10);
	by_another(shrink, &fd);
	drain(&sub, &seen);
	first = find_cover(&seen, p + 16 * PAGE, HUGE - 16 * PAGE);
	CHECK(first >= 0);
	CHECK(!(seen.v[first].flags & UMBRA_NTF_OWNER));
	CHECK(find_cover(&seen, p + 15 * PAGE, PAGE) < 0);
}

/* ---- reaping a victim that is dying ----------------------------------------------------------- */

struct victim {
	struct sub *sub;
	char *p;
	int ready[2], go[2];
};

static int victim(void *arg)
{
	struct victim *v = arg;
	const struct umbra_ntf_range range = { (uintptr_t)v->p, (uintptr_t)v->p + HUGE };
	struct umbra_ntf_attach a = attach_to(&range);
	char c;

	memset(v->p, 1, HUGE); /* its own now */
	if (ioctl(v->sub->fd, UMBRA_NTF_ATTACH, &a) || write(v->ready[1], "", 1) != 1)
		return 1;
	return read(v->go[0], &c, 1) != 1;
}

static bool freezer(char *dir, size_t bytes)
{
	snprintf(dir, bytes, "/run/kmod-freezer");
	mkdir(dir, 0700);
	return mount("none", dir, "cgroup", 0, "freezer") == 0 || errno == EBUSY;
}

static void reaped_without_blocking(void)
{
	struct victim v = { &sub, memory(HUGE), { 0, 0 }, { 0, 0 } };
	char dir[64], path[128], text[32], c;
	int pidfd, i, reaped = -1;
	pid_t pid;

	if (!freezer(dir, sizeof(dir)))
		skip("no freezer cgroup of version 1 to hold a dying process: %s", strerror(errno));
	snprintf(path, sizeof(path), "%s/v", dir);
	mkdir(path, 0700);
	CHECK(pipe(v.ready) == 0 && pipe(v.go) == 0);
	sub.fd = device_open();
	pid = child_of(victim, &v);
	CHECK(read(v.ready[0], &c, 1) == 1);
	sub_map(&sub, sub.fd);
	snprintf(path, sizeof(path), "%s/v/cgroup.procs", dir);
	snprintf(text, sizeof(text), "%d", (int)pid);
	CHECK(put(path, text));
	snprintf(path, sizeof(path), "%s/v/freezer.state", dir);
	CHECK(put(path, "FROZEN"));
	nap(200);
	/* It cannot die as long as it is frozen; its memory can be taken from it. */
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	CHECK(kill(pid, SIGKILL) == 0);
	for (i = 0; i < 100 && reaped; i++) {
		reaped = (int)syscall(SYS_process_mrelease, pidfd, 0);
		if (reaped && errno != EAGAIN)
			break;
	}
	i = errno;
	if (!reaped)
		drain(&sub, &seen);
	put(path, "THAWED");
	wait_for(pid);
	if (reaped)
		FAIL("process_mrelease: %s", strerror(i));
	i = find_cover(&seen, v.p, HUGE);
	CHECK(i >= 0);
	EQUAL(seen.v[i].flags, 0); /* not blockable, by another process */
	/* what came then was its end */
	CHECK(now(&sub).dead);
}

/* ---- aging ------------------------------------------------------------------------------------ */

static _Atomic bool hammering;

static void *hammer(void *arg)
{
	while (hammering)
		*(volatile uint64_t *)arg = ~0ULL;
	return NULL;
}

static bool lru_gen;

/*
 * Puts the process into a control group of its own that can be told to give memory back, and has the older of the two
 * ways to age memory used, which asks the notifiers about every page. Before there is memory.
 */
static bool reclaim(char *dir, size_t bytes)
{
	char path[128], text[32];

	lru_gen = put("/sys/kernel/mm/lru_gen/enabled", "n");
	snprintf(dir, bytes, "/sys/fs/cgroup/kmod-%d", (int)getpid());
	put("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir(dir, 0700))
		return false;
	snprintf(path, sizeof(path), "%s/cgroup.procs", dir);
	snprintf(text, sizeof(text), "%d", (int)getpid());
	return put(path, text);
}

static void young_from_the_bitmap(void)
{
	const size_t bytes = 16 * HUGE;
	const uint64_t bits = bytes / PAGE;
	char dir[64], path[128], *p;
	uint64_t cleared = 0, asked, yes;
	pthread_t thread;

	if (!reclaim(dir, sizeof(dir)))
		skip("no memory control group: %s", strerror(errno));
	p = memory(bytes);
	subscribe(&sub, p, bytes, 16);
	memset(sub.bitmap, 0xff, bits / 8);
	hammering = true;
	CHECK(pthread_create(&thread, NULL, hammer, sub.bitmap + bits / 64 - 1) == 0);
	snprintf(path, sizeof(path), "%s/memory.reclaim", dir);
	for (int i = 0; i < 50 && sub.state->young_asked < 64; i++)
		put(path, "4M");
	hammering = false;
	pthread_join(thread, NULL);
	if (lru_gen)
		put("/sys/kernel/mm/lru_gen/enabled", "y");
	put("/sys/fs/cgroup/cgroup.procs", "0");
	rmdir(dir);

	asked = sub.state->young_asked;
	yes = sub.state->young_yes;
	if (asked == 0)
		skip("this kernel ages without asking anybody");
	for (uint64_t i = 0; i < bits - 64; i++)
		cleared += !(sub.bitmap[i / 64] >> i % 64 & 1);
	printf("# asked about %llu times, %llu times young, %llu bits taken\n",
	       (unsigned long long)asked, (unsigned long long)yes, (unsigned long long)cleared);
	CHECK(yes > 0 && yes <= asked);
	CHECK(cleared > 0);
	/* a bit is taken once: as often as it was said, plus what the other thread set again */
	CHECK(cleared <= yes);
	for (uint64_t i = 0; i < bits; i += 97)
		EQUAL(p[i * PAGE], (char)(i + 1));
}

static void old_when_no_bit_is_set(void)
{
	char dir[64], path[128], *p;

	if (!reclaim(dir, sizeof(dir)))
		skip("no memory control group: %s", strerror(errno));
	p = memory(8 * HUGE);
	subscribe(&sub, p, 8 * HUGE, 16);
	snprintf(path, sizeof(path), "%s/memory.reclaim", dir);
	for (int i = 0; i < 50 && sub.state->young_asked < 64; i++)
		put(path, "4M");
	if (lru_gen)
		put("/sys/kernel/mm/lru_gen/enabled", "y");
	put("/sys/fs/cgroup/cgroup.procs", "0");
	rmdir(dir);
	if (sub.state->young_asked == 0)
		skip("this kernel ages without asking anybody");
	EQUAL(sub.state->young_yes, 0);
	for (uint64_t i = 0; i < 8 * HUGE / PAGE / 64; i++)
		EQUAL(sub.bitmap[i], 0);
}

/* Subscribes to @p and has the kernel age it until it has asked @asked times or has no mind to. */
static void age(const char *p, size_t bytes, uint32_t page_shift, uint64_t asked)
{
	const struct umbra_ntf_range range = { (uintptr_t)p, (uintptr_t)p + bytes };
	struct umbra_ntf_attach a = attach_to(&range);
	char dir[64], path[128];

	a.page_shift = page_shift;
	sub.fd = device_open();
	CHECK(ioctl(sub.fd, UMBRA_NTF_ATTACH, &a) == 0);
	sub_map(&sub, sub.fd);
	memset(sub.bitmap, 0xff, bytes >> page_shift >> 3);
	snprintf(dir, sizeof(dir), "/sys/fs/cgroup/kmod-%d", (int)getpid());
	snprintf(path, sizeof(path), "%s/memory.reclaim", dir);
	for (int i = 0; i < 50 && sub.state->young_asked < asked; i++)
		put(path, "4M");
	if (lru_gen)
		put("/sys/kernel/mm/lru_gen/enabled", "y");
	put("/sys/fs/cgroup/cgroup.procs", "0");
	rmdir(dir);
	if (sub.state->young_asked == 0)
		skip("this kernel ages without asking anybody");
	printf("# asked about %llu times, %llu times young\n", sub.state->young_asked,
	       sub.state->young_yes);
}

static void young_2m_takes_the_bits_of_all_its_pages(void)
{
	const size_t blocks = 16;
	char dir[64], *p;
	unsigned int taken = 0;

	if (!reclaim(dir, sizeof(dir)))
		skip("no memory control group: %s", strerror(errno));
	p = huge_memory(blocks * HUGE);
	age(p, blocks * HUGE, 12, 1);
	for (size_t b = 0; b < blocks; b++) {
		unsigned int left = 0;

		for (size_t i = b * 8; i < (b + 1) * 8; i++)
			left += (unsigned int)__builtin_popcountll(sub.bitmap[i]);
		taken += left == 0;
		CHECK(left == 0 || left == 512 || sub.state->young_asked > blocks);
	}
	CHECK(taken > 0 && taken <= sub.state->young_yes);
}

static void a_bit_may_stand_for_2m(void)
{
	const size_t blocks = 16;
	char dir[64], *p;
	unsigned int taken;

	if (!reclaim(dir, sizeof(dir)))
		skip("no memory control group: %s", strerror(errno));
	p = memory(blocks * HUGE);
	age(p, blocks * HUGE, 21, 64);
	taken = (unsigned int)(blocks - (size_t)__builtin_popcountll(sub.bitmap[0] & 0xffff));
	CHECK(taken > 0);
	EQUAL(taken, sub.state->young_yes); /* the first question about a block takes its bit */
}

const struct test event_tests[] = {
	{ "d16_d24_d55_swap_out_and_in", swap_out_and_in },
	{ "d56_move_pages_between_nodes", move_pages_between_nodes },
	{ "d52_ksm_merges", ksm_merges },
	{ "d58_d59_hole_by_another_process", hole_by_another_process },
	{ "d10_truncation_by_another_process", truncation_by_another_process },
	{ "d14_reaped_without_blocking", reaped_without_blocking },
	{ "d54_young_from_the_bitmap", young_from_the_bitmap },
	{ "d6_old_when_no_bit_is_set", old_when_no_bit_is_set },
	{ "d5_young_2m_takes_the_bits_of_all_its_pages", young_2m_takes_the_bits_of_all_its_pages },
	{ "d4_a_bit_may_stand_for_2m", a_bit_may_stand_for_2m },
	{ NULL, NULL },
};
