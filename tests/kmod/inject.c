/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The kernel fails what the module asks of it, one call after the other: allocations of every kind and copies from and
 * to user space (fault injection, fail-nth of a thread). Only where the kernel can: the lab's KERNEL=debug and kcsan.
 * That nothing is lost by a failure is for kmemleak to tell.
 */
#include <fcntl.h>
#include <sys/syscall.h>

#include "kmod_test.h"

#define MOST 2000 /* calls that can fail in one operation */

static struct seen seen;
static struct sub sub;
static char *p;
static int fail_nth = -1;

static void prepare(void)
{
	p = memory(HUGE);
	fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (fail_nth < 0)
		skip("this kernel injects no failures (CONFIG_FAULT_INJECTION)");
	/* Otherwise an allocation that may wait, as all of ours may, does not fail. */
	if (access("/sys/kernel/debug/failslab/ignore-gfp-wait", F_OK))
		skip("this kernel injects no failures of allocations (CONFIG_FAILSLAB)");
}

/* The @nth call that can fail from here on fails. */
static void arm(unsigned int nth)
{
	char text[16];
	const int n = snprintf(text, sizeof(text), "%u", nth);

	if (pwrite(fail_nth, text, (size_t)n, 0) != n)
		FAIL("fail-nth: %s", strerror(errno));
}

/* Whether it has failed; from here on nothing does. Reading is itself a call that may fail, when it was not. */
static bool has_failed(void)
{
	char text[16] = "";
	const ssize_t n = pread(fail_nth, text, sizeof(text) - 1, 0);

	if (pwrite(fail_nth, "0", 1, 0) != 1 && pwrite(fail_nth, "0", 1, 0) != 1)
		FAIL("fail-nth: %s", strerror(errno));
	return n > 0 && strtoul(text, NULL, 10) == 0;
}

/* What a failure may be told as. */
static bool told(int error)
{
	return error == ENOMEM || error == EFAULT;
}

/*
 * Does @operation again and again, each time with the next of its calls failing, until none is left to fail. It returns
 * 0 or an errno; a failure must be told as one, or be without any effect. @then sees what is left: after a failure (@err)
 * and after none, and sets up for the next.
 */
static void fail_each(const char *what, int (*operation)(void), void (*then)(int err))
{
	unsigned int nth, harmless = 0;

	for (nth = 1; nth < MOST; nth++) {
		bool failed;
		int err;

		arm(nth);
		err = operation();
		failed = has_failed();
		if (!failed)
			EQUAL(err, 0);
		if (err && !told(err))
			FAIL("%s, call %u fails: %s", what, nth, strerror(err));
		harmless += failed && !err;
		then(err);
		if (!failed)
			break;
	}
	CHECK(nth > 1 && nth < MOST);
	printf("# %s: %u calls have failed, %u of them without harm\n", what, nth - 1, harmless);
}

/* ---- opening ---------------------------------------------------------------------------------- */

static int open_it(void)
{
	sub.fd = open(UMBRA_NTF_DEVICE, O_RDWR | O_CLOEXEC);
	return sub.fd < 0 ? errno : 0;
}

static void close_it(int err)
{
	if (!err)
		CHECK(close(sub.fd) == 0);
}

static void inject_open(void)
{
	prepare();
	fail_each("open", open_it, close_it);
}

/* ---- attaching -------------------------------------------------------------------------------- */

static struct umbra_ntf_range range;

static int attach_it(void)
{
	struct umbra_ntf_attach a = attach_to(&range);

	return ioctl(sub.fd, UMBRA_NTF_ATTACH, &a) ? errno : 0;
}

/* After a failure the same descriptor attaches, and then it works. */
static void attached(int err)
{
	if (err)
		EQUAL(attach_it(), 0);
	REFUSED(attach_it() ? -1 : 0, EBUSY);
	sub_map(&sub, sub.fd);
	madvise(p, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	want_only(&seen, p, PAGE);
	munmap(sub.state, sub.a.state_bytes);
	munmap(sub.consumer, sub.a.consumer_bytes);
	close(sub.fd);
	sub.fd = device_open();
}

static void inject_attach(void)
{
	prepare();
	range = (struct umbra_ntf_range){ (uintptr_t)p, (uintptr_t)p + HUGE };
	sub.fd = device_open();
	fail_each("ATTACH", attach_it, attached);
}

/* ---- other ranges ----------------------------------------------------------------------------- */

static int half_it(void)
{
	return set_ranges(&sub, &(struct umbra_ntf_range){ range.start, range.end - HUGE / 2 }, 1)
		       ? errno
		       : 0;
}

/* A failure leaves the ranges as they were: the second half is still watched. */
static void halved(int err)
{
	madvise(p + HUGE / 2, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	if (err)
		want_only(&seen, p + HUGE / 2, PAGE);
	else
		EQUAL(seen.nr, 0);
	CHECK(set_ranges(&sub, &range, 1) == 0);
}

static void inject_ranges(void)
{
	prepare();
	range = (struct umbra_ntf_range){ (uintptr_t)p, (uintptr_t)p + HUGE };
	subscribe(&sub, p, HUGE, 10);
	fail_each("RANGES", half_it, halved);
}

/* ---- mapping ---------------------------------------------------------------------------------- */

/* At an address of its own page table, so that this, too, must be had. */
#define FAR ((void *)0x100000000000)

static int map_it(void)
{
	const void *at = mmap(FAR, sub.a.state_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, sub.fd,
			      UMBRA_NTF_OFFSET_STATE);

	return at == MAP_FAILED ? errno : 0;
}

static void mapped(int err)
{
	const struct umbra_ntf_state *state = FAR;
	unsigned char there;

	if (err) /* nothing of it is left behind */
		REFUSED(mincore(FAR, PAGE, &there), ENOMEM);
	else
		EQUAL(state->magic, UMBRA_NTF_MAGIC);
	munmap(FAR, sub.a.state_bytes);
	madvise(p, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	want_only(&seen, p, PAGE);
}

static void inject_mmap(void)
{
	prepare();
	subscribe(&sub, p, HUGE, 10);
	fail_each("mmap", map_it, mapped);
}

/* ---- loading ---------------------------------------------------------------------------------- */

static int module_fd;

static int load_it(void)
{
	return syscall(SYS_finit_module, module_fd, "", 0) ? errno : 0;
}

static void loaded(int err)
{
	for (int i = 0; !err && i < 1000 && access(UMBRA_NTF_DEVICE, F_OK); i++)
		usleep(1000);
	CHECK(err || access(UMBRA_NTF_DEVICE, F_OK) == 0);
	CHECK(err || syscall(SYS_delete_module, "umbra", 0) == 0);
}

static void inject_load(void)
{
	const char *file = getenv("UMBRA_KO");

	prepare();
	if (!file)
		skip("UMBRA_KO does not say where the module is");
	module_fd = open(file, O_RDONLY | O_CLOEXEC);
	CHECK(module_fd >= 0);
	CHECK(syscall(SYS_delete_module, "umbra", 0) == 0);
	fail_each("finit_module", load_it, loaded);
	EQUAL(load_it(), 0);
	subscribe(&sub, p, HUGE, 10);
	madvise(p, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	want_only(&seen, p, PAGE);
}

const struct test inject_tests[] = {
	{ "inject_open", inject_open },     { "inject_attach", inject_attach },
	{ "inject_ranges", inject_ranges }, { "inject_mmap", inject_mmap },
	{ "inject_load", inject_load },     { NULL, NULL },
};
