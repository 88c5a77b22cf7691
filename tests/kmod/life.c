/* SPDX-License-Identifier: BSD-2-Clause */
/* Ends: exit and exec, close and unmap in either order, loading and unloading, memory that is not there. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/syscall.h>

#include "kmod_test.h"

static struct seen seen;
static struct sub sub;

static long references(void)
{
	return get("/sys/module/umbra/refcnt");
}

struct mortal {
	char *p;
	int ready[2], go[2];
	bool exec, busy;
};

static void *discard(void *arg)
{
	for (;;)
		madvise(arg, PAGE, MADV_DONTNEED);
	return NULL;
}

/* Attaches the descriptor that it inherits to itself, and ends when told. */
static int mortal(void *arg)
{
	struct mortal *m = arg;
	const struct umbra_ntf_range range = { (uintptr_t)m->p, (uintptr_t)m->p + HUGE };
	struct umbra_ntf_attach a = attach_to(&range);
	pthread_t thread;
	char c;

	if (ioctl(sub.fd, UMBRA_NTF_ATTACH, &a))
		return 1;
	if (m->busy && pthread_create(&thread, NULL, discard, m->p))
		return 2;
	if (write(m->ready[1], "", 1) != 1 || read(m->go[0], &c, 1) != 1)
		return 3;
	if (m->exec)
		execl("/bin/true", "true", (char *)NULL);
	return 0;
}

static pid_t start_mortal(struct mortal *m)
{
	pid_t pid;
	char c;

	CHECK(pipe(m->ready) == 0 && pipe(m->go) == 0);
	sub.fd = device_open();
	pid = child_of(mortal, m);
	CHECK(read(m->ready[0], &c, 1) == 1);
	return pid;
}

static void end_mortal(struct mortal *m)
{
	for (unsigned int i = 0; i < 2; i++) {
		close(m->ready[i]);
		close(m->go[i]);
	}
}

static void released(bool exec)
{
	struct mortal m = { .p = memory(HUGE), .exec = exec };
	const pid_t pid = start_mortal(&m);
	struct pollfd fd = { .fd = sub.fd, .events = POLLIN };

	sub_map(&sub, sub.fd);
	EQUAL(poll(&fd, 1, 0), 0);
	EQUAL(now(&sub).dead, 0);
	CHECK(write(m.go[1], "", 1) == 1);
	CHECK(poll(&fd, 1, 20000) == 1 && (fd.revents & POLLHUP));
	EQUAL(now(&sub).dead, 1);
	EQUAL(wait_for(pid), 0);
	drain(&sub, &seen);
	/* nothing before it: the unmapping of the dying makes no callouts */
	EQUAL(seen.nr, 1);
	EQUAL(seen.v[0].kind, UMBRA_NTF_RELEASE);
	EQUAL(seen.v[0].event, UMBRA_NTF_EVENT_RELEASE);
	EQUAL(seen.v[0].start, 0);
	EQUAL(seen.v[0].end, ~0ULL);
	EQUAL(seen.v[0].begun, 1);
	EQUAL(now(&sub).begun, 1);
	EQUAL(now(&sub).ended, 1);
	fd.revents = 0;
	CHECK(poll(&fd, 1, 0) == 1 && (fd.revents & POLLHUP)); /* for ever */
}

static void released_on_exit(void)
{
	released(false);
}

static void released_on_exec(void)
{
	released(true);
}

static void close_with_the_ring_mapped(void)
{
	char *p = memory(HUGE);
	const long before = references();

	subscribe(&sub, p, HUGE, 10);
	close(sub.fd);
	EQUAL(references(), before + 1);
	madvise(p, PAGE, MADV_DONTNEED);
	EQUAL(now(&sub).begun, 1);
	drain(&sub, &seen);
	want_only(&seen, p, PAGE);
	munmap(sub.state, sub.a.state_bytes);
	EQUAL(references(), before + 1);
	munmap(sub.consumer, sub.a.consumer_bytes);
	for (int i = 0; i < 1000 && references() != before; i++)
		usleep(1000);
	EQUAL(references(), before);
}

static void no_unloading_while_in_use(void)
{
	char *p = memory(HUGE);
	int fd = device_open();

	REFUSED(syscall(SYS_delete_module, "umbra", O_NONBLOCK), EAGAIN);
	close(fd);
	subscribe(&sub, p, HUGE, 10);
	close(sub.fd);
	REFUSED(syscall(SYS_delete_module, "umbra", O_NONBLOCK), EAGAIN);
	madvise(p, PAGE, MADV_DONTNEED);
	EQUAL(now(&sub).begun, 1);
}

/* Deaths and closings in every order, with a thread that is in a callout most of the time. */
static void ends_in_any_order(void)
{
	struct mortal m = { .p = memory(HUGE), .busy = true };
	const long before = references();

	for (unsigned int i = 0; i < 40; i++) {
		const pid_t pid = start_mortal(&m);

		if (i % 2)
			sub_map(&sub, sub.fd);
		usleep(i * 100);
		if (i % 4 < 2)
			close(sub.fd);
		kill(pid, SIGKILL);
		if (i % 4 >= 2)
			close(sub.fd);
		if (i % 8 >= 4)
			EQUAL(wait_for(pid), -SIGKILL);
		if (i % 2) {
			munmap(sub.consumer, sub.a.consumer_bytes);
			munmap(sub.state, sub.a.state_bytes);
		}
		if (i % 8 < 4)
			EQUAL(wait_for(pid), -SIGKILL);
		end_mortal(&m);
	}
	for (int i = 0; i < 1000 && references() != before; i++)
		usleep(1000);
	EQUAL(references(), before);
}

/* ---- loading ---------------------------------------------------------------------------------- */

static int load(const char *file, const char *parameters)
{
	const int fd = open(file, O_RDONLY | O_CLOEXEC);
	const int rc = fd < 0 ? -1 : (int)syscall(SYS_finit_module, fd, parameters, 0);

	if (fd >= 0)
		close(fd);
	return rc;
}

static void unload(void)
{
	for (int i = 0; i < 1000; i++) {
		if (syscall(SYS_delete_module, "umbra", O_NONBLOCK) == 0)
			return;
		usleep(1000);
	}
	FAIL("the module cannot be unloaded: %s", strerror(errno));
}

/* The device appears beside the module, not before finit_module() returns on every kernel. */
static void wait_for_device(void)
{
	for (int i = 0; i < 1000 && access(UMBRA_NTF_DEVICE, F_OK); i++)
		usleep(1000);
}

static int attaches(void *arg)
{
	char *p = arg;

	wait_for_device();
	subscribe(&sub, p, HUGE, 4);
	madvise(p, PAGE, MADV_DONTNEED);
	return now(&sub).begun != 1;
}

static void loaded_200_times(void)
{
	const char *file = getenv("UMBRA_KO");
	char *p = memory(HUGE);

	if (!file)
		skip("UMBRA_KO does not say where the module is");
	unload();
	for (unsigned int i = 0; i < 200; i++) {
		CHECK(load(file, "") == 0);
		by_another(attaches, p);
		unload();
	}
	CHECK(load(file, "") == 0);
	wait_for_device();
}

/* A build of the same source in which the nth allocation fails: see fail_nth.h. */
static void each_allocation_fails_once(void)
{
	const char *good = getenv("UMBRA_KO"), *bad = getenv("UMBRA_FAIL_KO");
	static const char nth[] = "/sys/module/umbra/parameters/fail_nth";
	char *p = memory(HUGE), text[16];
	const struct umbra_ntf_range range = { (uintptr_t)p, (uintptr_t)p + HUGE };
	unsigned int failures = 0;

	if (!good || !bad)
		skip("UMBRA_FAIL_KO does not say where the module that fails is");
	unload();
	CHECK(load(bad, "") == 0);
	wait_for_device();
	for (unsigned int i = 1; i < 100; i++) {
		struct umbra_ntf_attach a = attach_to(&range);
		long left;
		int fd, rc = -1, error;

		snprintf(text, sizeof(text), "%u", i);
		CHECK(put(nth, text));
		fd = open(UMBRA_NTF_DEVICE, O_RDWR);
		error = errno;
		if (fd >= 0) {
			rc = ioctl(fd, UMBRA_NTF_ATTACH, &a);
			error = errno;
			if (rc == 0 && set_ranges(&(struct sub){ .fd = fd }, &range, 1))
				rc = -1, error = errno;
		}
		left = get(nth);
		if (left == 0) { /* one has failed: an error, and right the next time */
			CHECK(rc == -1);
			EQUAL(error, ENOMEM);
			failures++;
			if (fd >= 0) {
				rc = ioctl(fd, UMBRA_NTF_ATTACH, &a);
				CHECK(rc == 0 || errno == EBUSY);
				sub_map(&sub, fd);
				madvise(p, PAGE, MADV_DONTNEED);
				EQUAL(now(&sub).begun, 1);
				munmap(sub.state, sub.a.state_bytes);
				munmap(sub.consumer, sub.a.consumer_bytes);
			}
		} else {
			CHECK(rc == 0);
		}
		if (fd >= 0)
			close(fd);
		if (left > 0)
			break;
	}
	put(nth, "0");
	printf("# %u allocations, each has failed\n", failures);
	EQUAL(failures, 5); /* the subscription, its ranges, two buffers; the ranges again */
	unload();
	CHECK(load(good, "") == 0);
	wait_for_device();
}

const struct test life_tests[] = {
	{ "d63_d78_released_on_exit", released_on_exit },
	{ "d63_released_on_exec", released_on_exec },
	{ "d76_close_with_the_ring_mapped", close_with_the_ring_mapped },
	{ "no_unloading_while_in_use", no_unloading_while_in_use },
	{ "d76_ends_in_any_order", ends_in_any_order },
	{ "loaded_200_times", loaded_200_times },
	{ "each_allocation_fails_once", each_allocation_fails_once },
	{ NULL, NULL },
};
