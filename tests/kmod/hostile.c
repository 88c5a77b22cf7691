/* SPDX-License-Identifier: BSD-2-Clause */
/* A consumer that lies, maps oddly, stops or dies, and processes that come by the descriptor: nobody else is hurt. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "kmod_test.h"

static struct seen seen;
static struct sub sub;
static _Atomic bool stop;

static void *discard(void *arg)
{
	while (!stop)
		madvise(arg, PAGE, MADV_DONTNEED);
	return NULL;
}

static void lies_about_its_tail(void)
{
	static const uint64_t lies[] = { 1, 17, 1ULL << 63, ~0ULL, 0x7fffffffffffffff, 16, 15 };
	char *p = memory(HUGE);
	pthread_t thread;
	struct umbra_ntf_snapshot n;

	subscribe(&sub, p, HUGE, 4);
	CHECK(pthread_create(&thread, NULL, discard, p) == 0);
	for (unsigned int i = 0; i < 20000; i++) {
		umbra_ring_store(&sub.consumer->tail,
				 i % 3 ? lies[i % 7] : sub.state->head + lies[i % 7]);
		n = now(&sub);
		EQUAL(n.head + n.lost, n.begun + n.ended);
	}
	stop = true;
	pthread_join(thread, NULL);
	/* honest again, and so exact again */
	n = now(&sub);
	sub.ring.tail = n.head;
	umbra_ring_store(&sub.consumer->tail, n.head);
	for (unsigned int i = 0; i < 40; i++) {
		struct umbra_ntf_record rec;

		madvise(p + i * PAGE, PAGE, MADV_DONTNEED);
		CHECK(umbra_ring_pop(&sub.ring, &rec));
		EQUAL(rec.start, (uintptr_t)p + i * PAGE);
		CHECK(umbra_ring_pop(&sub.ring, &rec));
	}
	EQUAL(now(&sub).lost, n.lost);
}

static void maps_twice(void)
{
	char *p = memory(HUGE);
	static struct sub twice;

	subscribe(&sub, p, HUGE, 10);
	sub_map(&twice, sub.fd);
	madvise(p, PAGE, MADV_DONTNEED);
	EQUAL(now(&twice).begun, 1);
	drain(&twice, &seen);
	EQUAL(seen.nr, 2);
	EQUAL(sub.consumer->tail, 2);
	munmap(twice.state, twice.a.state_bytes);
	munmap(twice.consumer, twice.a.consumer_bytes);
	madvise(p, PAGE, MADV_DONTNEED);
	EQUAL(now(&sub).begun, 2);
}

static void writes_what_is_read_only(void)
{
	char *p = memory(HUGE);
	const uint64_t zero = 0;
	int fd;

	subscribe(&sub, p, HUGE, 10);
	madvise(p, PAGE, MADV_DONTNEED);
	REFUSED(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, sub.fd, 0) == MAP_FAILED ? -1
											      : 0,
		EACCES);
	REFUSED(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, sub.fd, PAGE) == MAP_FAILED ? -1 : 0,
		EACCES);
	REFUSED(mprotect(sub.state, PAGE, PROT_READ | PROT_WRITE), EACCES);
	REFUSED(mprotect((char *)sub.state + PAGE, PAGE, PROT_WRITE), EACCES);
	/* not through the kernel either, root's way or any other */
	fd = open("/proc/self/mem", O_RDWR);
	CHECK(fd >= 0);
	CHECK(pwrite(fd, &zero, 8, (off_t)(uintptr_t)&sub.state->begun) == -1);
	close(fd);
	fd = open("/dev/zero", O_RDONLY);
	REFUSED(read(fd, &sub.state->begun, 8), EFAULT);
	close(fd);
	CHECK(process_vm_writev(getpid(), &(struct iovec){ (void *)(uintptr_t)&zero, 8 }, 1,
				&(struct iovec){ &sub.state->begun, 8 }, 1, 0) == -1);
	EQUAL(sub.state->begun, 1);
}

static void *map_at(uint64_t offset, size_t bytes, int prot, int flags)
{
	return mmap(NULL, bytes, prot, flags, sub.fd, (off_t)offset);
}

#define NO_MAP(call, error) REFUSED((call) == MAP_FAILED ? -1 : 0, error)

static void maps_parts(void)
{
	char *p = memory(HUGE);
	const int rw = PROT_READ | PROT_WRITE;
	const uint64_t c = UMBRA_NTF_OFFSET_CONSUMER;
	struct umbra_ntf_record *rec;
	size_t all;

	subscribe(&sub, p, HUGE, 10);
	all = sub.a.state_bytes;
	madvise(p + PAGE, PAGE, MADV_DONTNEED);
	rec = map_at(PAGE, PAGE, PROT_READ, MAP_SHARED); /* the ring's first page alone */
	CHECK(rec != MAP_FAILED);
	EQUAL(rec->start, (uintptr_t)p + PAGE);
	CHECK(map_at(all - PAGE, PAGE, PROT_READ, MAP_SHARED) != MAP_FAILED);
	NO_MAP(map_at(all, PAGE, PROT_READ, MAP_SHARED), EINVAL);
	NO_MAP(map_at(all - PAGE, 2 * PAGE, PROT_READ, MAP_SHARED), EINVAL);
	NO_MAP(map_at(0, all + PAGE, PROT_READ, MAP_SHARED), EINVAL);
	NO_MAP(map_at(c - PAGE, 2 * PAGE, PROT_READ, MAP_SHARED), EINVAL);
	NO_MAP(map_at(c + sub.a.consumer_bytes, PAGE, rw, MAP_SHARED), EINVAL);
	NO_MAP(map_at(c, sub.a.consumer_bytes + PAGE, rw, MAP_SHARED), EINVAL);
	CHECK(map_at(0x7ffffffffffff000, PAGE, PROT_READ, MAP_SHARED) == MAP_FAILED);
	NO_MAP(map_at(0, PAGE, PROT_READ, MAP_PRIVATE), EINVAL);
	NO_MAP(map_at(c, PAGE, rw, MAP_PRIVATE), EINVAL);
	/* it does not grow; moved, it is still the same pages */
	CHECK(mremap(rec, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED);
	rec = mremap(rec, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory(PAGE));
	CHECK(rec != MAP_FAILED);
	EQUAL(rec->start, (uintptr_t)p + PAGE);
}

static int touches_what_it_dropped(void *arg)
{
	madvise(arg, PAGE, MADV_DONTNEED);
	return *(volatile unsigned char *)arg;
}

static int sees_no_mapping(void *arg)
{
	unsigned char core;

	return !(mincore(arg, PAGE, &core) == -1 && errno == ENOMEM);
}

static void mappings_and_fork(void)
{
	char *p = memory(HUGE);

	subscribe(&sub, p, HUGE, 10);
	by_another(sees_no_mapping, sub.state);
	by_another(sees_no_mapping, sub.consumer);
	/* who insists on a copy has one; what it drops from it is its own loss */
	CHECK(madvise(sub.state, sub.a.state_bytes, MADV_DOFORK) == 0);
	EQUAL(wait_for(child_of(touches_what_it_dropped, sub.state)), -SIGBUS);
	EQUAL(sub.state->magic, UMBRA_NTF_MAGIC);
	madvise(p, PAGE, MADV_DONTNEED);
	CHECK(now(&sub).begun > 0);
}

static int uses_the_parents(void *arg)
{
	const struct umbra_ntf_range *range = arg;
	struct umbra_ntf_attach a = attach_to(range);

	if (set_ranges(&sub, range, 1) != -1 || errno != EIO)
		return 1;
	if (ioctl(sub.fd, UMBRA_NTF_ATTACH, &a) != -1 || errno != EBUSY)
		return 2;
	madvise((void *)(uintptr_t)range->start, PAGE, MADV_DONTNEED); /* its own memory */
	close(sub.fd);
	return 0;
}

static void forked_child_uses_the_descriptor(void)
{
	char *p = memory(HUGE);
	struct umbra_ntf_range range = { (uintptr_t)p, (uintptr_t)p + HUGE };
	struct umbra_ntf_snapshot before;

	subscribe(&sub, p, HUGE, 10);
	by_another(uses_the_parents, &range);
	before = now(&sub);
	madvise(p + 3 * PAGE, PAGE, MADV_DONTNEED);
	EQUAL(now(&sub).begun, before.begun + 1);
	EQUAL(now(&sub).dead, 0);
	drain(&sub, &seen);
	want_pair(&seen, p + 3 * PAGE, PAGE, UMBRA_NTF_CLEAR);
	CHECK(find_pair(&seen, 0, p, PAGE) < 0); /* the child's */
}

/* ---- a monitor in another process ------------------------------------------------------------- */

static int sockets[2];

static void send_fd(int sock, int fd)
{
	char c = 0, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { &c, 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	CHECK(sendmsg(sock, &msg, 0) == 1);
}

static int receive_fd(int sock)
{
	char c, control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { &c, 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control,
			      .msg_controllen = sizeof(control) };
	int fd = -1;

	if (recvmsg(sock, &msg, 0) == 1 && CMSG_FIRSTHDR(&msg))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
	return fd;
}

/* Counts the starts it reads until the address space is gone; tells the socket when it is ready. */
static int monitor(void *arg)
{
	const int fd = receive_fd(sockets[1]);
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	struct umbra_ntf_record rec;
	int starts = 0;

	(void)arg;
	sub_map(&sub, fd);
	if (write(sockets[1], "", 1) != 1)
		return 101;
	for (;;) {
		while (umbra_ring_pop(&sub.ring, &rec)) {
			starts += rec.kind == UMBRA_NTF_START;
			if (rec.kind == UMBRA_NTF_RELEASE)
				return now(&sub).dead ? starts : 102;
		}
		if (poll(&pfd, 1, 20000) != 1)
			return 103;
	}
}

static int monitored(void *arg)
{
	char *p = arg, c;

	subscribe(&sub, p, HUGE, 10);
	send_fd(sockets[0], sub.fd);
	if (read(sockets[0], &c, 1) != 1)
		return 1;
	for (unsigned int i = 0; i < 20; i++)
		madvise(p + i * PAGE, PAGE, MADV_DONTNEED);
	return 0;
}

static void monitor_in_another_process(void)
{
	char *p = memory(HUGE);
	pid_t reader;

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
	reader = child_of(monitor, NULL);
	by_another(monitored, p); /* its exit is the release that ends the monitor */
	EQUAL(wait_for(reader), 20);
}

static void stopped_or_killed_monitor_holds_nobody(void)
{
	char *p = memory(HUGE), c;
	struct umbra_ntf_snapshot n;
	pid_t reader;

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
	reader = child_of(monitor, NULL);
	subscribe(&sub, p, HUGE, 4);
	send_fd(sockets[0], sub.fd);
	CHECK(read(sockets[0], &c, 1) == 1);
	kill(reader, SIGSTOP);
	CHECK(waitpid(reader, NULL, WUNTRACED) == reader);
	for (unsigned int i = 0; i < 1000; i++)
		madvise(p, PAGE, MADV_DONTNEED);
	n = now(&sub);
	EQUAL(n.begun, 1000);
	EQUAL(n.ended, 1000);
	CHECK(n.lost >= 2000 - 16 - 16 && n.head + n.lost == 2000);
	kill(reader, SIGKILL);
	EQUAL(wait_for(reader), -SIGKILL);
	sub.ring.tail = n.head;
	umbra_ring_store(&sub.consumer->tail, n.head);
	madvise(p, PAGE, MADV_DONTNEED);
	EQUAL(now(&sub).lost, n.lost);
	EQUAL(now(&sub).begun, 1001);
}

const struct test hostile_tests[] = {
	{ "lies_about_its_tail", lies_about_its_tail },
	{ "maps_twice", maps_twice },
	{ "writes_what_is_read_only", writes_what_is_read_only },
	{ "maps_parts", maps_parts },
	{ "mappings_and_fork", mappings_and_fork },
	{ "d77_forked_child_uses_the_descriptor", forked_child_uses_the_descriptor },
	{ "d78_monitor_in_another_process", monitor_in_another_process },
	{ "stopped_or_killed_monitor_holds_nobody", stopped_or_killed_monitor_holds_nobody },
	{ NULL, NULL },
};
