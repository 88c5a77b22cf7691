/* SPDX-License-Identifier: BSD-2-Clause */
/* ATTACH and RANGES: what is refused and why, whose address space it may be, and attaching amid traffic. */
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "kmod_test.h"

static struct seen seen;
static struct sub sub;
static _Atomic bool stop;

static int attach(int fd, const struct umbra_ntf_attach *a)
{
	struct umbra_ntf_attach copy = *a;

	return ioctl(fd, UMBRA_NTF_ATTACH, &copy);
}

static void attach_once(void)
{
	char *p = memory(HUGE);

	subscribe(&sub, p, HUGE, 10);
	REFUSED(attach(sub.fd, &sub.a), EBUSY);
	madvise(p, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	want_only(&seen, p, PAGE);
}

static void two_subscriptions_see_the_same(void)
{
	static struct sub other;
	char *p = memory(HUGE);

	subscribe(&sub, p, HUGE, 10);
	subscribe(&other, p, HUGE, 10);
	madvise(p, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	want_only(&seen, p, PAGE);
	drain(&other, &seen);
	want_only(&seen, p, PAGE);
}

static void sizes_of_the_argument(void)
{
	char *p = memory(HUGE);
	const struct umbra_ntf_range range = { (uintptr_t)p, (uintptr_t)p + HUGE };
	union {
		struct umbra_ntf_attach a;
		char bytes[2 * PAGE];
	} u = { .a = attach_to(&range) };
	const int fd = device_open();
	const uint32_t size = sizeof(u.a);

	u.a.size = 0;
	REFUSED(ioctl(fd, UMBRA_NTF_ATTACH, &u), EINVAL);
	u.a.size = size - 1;
	REFUSED(ioctl(fd, UMBRA_NTF_ATTACH, &u), EINVAL);
	u.a.size = PAGE + 1;
	REFUSED(ioctl(fd, UMBRA_NTF_ATTACH, &u), E2BIG);
	u.a.size = ~0U;
	REFUSED(ioctl(fd, UMBRA_NTF_ATTACH, &u), E2BIG);
	/* of a newer ABI: right when what we do not know is zero */
	u.a.size = size + 16;
	u.bytes[size + 15] = 1;
	REFUSED(ioctl(fd, UMBRA_NTF_ATTACH, &u), E2BIG);
	u.bytes[size + 15] = 0;
	CHECK(ioctl(fd, UMBRA_NTF_ATTACH, &u) == 0);
	REFUSED(ioctl(fd, UMBRA_NTF_ATTACH, NULL), EFAULT);
	REFUSED(ioctl(fd, UMBRA_NTF_RANGES, NULL), EFAULT);
	REFUSED(ioctl(fd, _IO('u', 0xb2)), ENOTTY);
	REFUSED(ioctl(fd, _IO('u', 0xb0)), ENOTTY);
	REFUSED(lseek(fd, 0, SEEK_SET), ESPIPE);
}

static void fields_out_of_range(void)
{
	char *p = memory(HUGE);
	const struct umbra_ntf_range range = { (uintptr_t)p, (uintptr_t)p + HUGE };
	const struct umbra_ntf_attach good = attach_to(&range);
	const int fd = device_open();
	struct umbra_ntf_attach a;
	static const struct {
		size_t offset, bytes;
		uint64_t value;
		int error;
	} bad[] = {
#define BAD(field, value, error) \
	{ offsetof(struct umbra_ntf_attach, field), sizeof(a.field), value, error }
		BAD(flags, 2, EINVAL),
		BAD(flags, ~0U, EINVAL),
		BAD(pid, 1, EINVAL),
		BAD(nr_ranges, 0, EINVAL),
		BAD(nr_ranges, 1025, ENOSPC),
		BAD(nr_ranges, ~0U, ENOSPC),
		BAD(ranges, 0, EFAULT),
		BAD(ranges, ~0ULL, EFAULT),
		BAD(ring_order, 3, EINVAL),
		BAD(ring_order, 19, ENOSPC),
		BAD(ring_order, 21, EINVAL),
		BAD(ring_order, ~0U, EINVAL),
		BAD(watermark, 1025, EINVAL),
		BAD(watermark, ~0U, EINVAL),
		BAD(page_shift, 11, EINVAL),
		BAD(page_shift, 31, EINVAL),
		BAD(page_shift, ~0U, EINVAL),
		BAD(reserved0, 1, EINVAL),
		BAD(bitmap_bits, (1ULL << 27) + 1, ENOSPC),
		BAD(bitmap_bits, (1ULL << 40) + 1, EINVAL),
		BAD(bitmap_bits, ~0ULL, EINVAL),
		BAD(reserved[0], 1, EINVAL),
		BAD(reserved[1], 1ULL << 63, EINVAL),
#undef BAD
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		a = good;
		memcpy((char *)&a + bad[i].offset, &bad[i].value, bad[i].bytes);
		errno = 0;
		if (attach(fd, &a) != -1 || errno != bad[i].error)
			FAIL("the field at %zu with %#llx: %s", bad[i].offset,
			     (unsigned long long)bad[i].value, strerror(errno));
	}
	REFUSED(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0, ENOTCONN);
	REFUSED(set_ranges(&(struct sub){ .fd = fd }, &range, 1), ENOTCONN);
	CHECK(attach(fd, &good) == 0); /* none of them has left anything behind */
}

static void ranges_out_of_order(void)
{
	const uint64_t top = (1ULL << 47) - PAGE, x = 1ULL << 32;
	const struct {
		struct umbra_ntf_range v[2];
	} bad[] = {
		{ { { x + PAGE, x + 2 * PAGE }, { x, x + PAGE } } },         /* not sorted */
		{ { { x, x + 2 * PAGE }, { x + PAGE, x + 3 * PAGE } } },     /* overlap */
		{ { { x, x + PAGE }, { x, x + PAGE } } },                    /* the same */
		{ { { x, x + PAGE }, { x + 2 * PAGE + 1, x + 4 * PAGE } } }, /* not on a page */
		{ { { x, x + PAGE }, { x + 2 * PAGE, x + 4 * PAGE + 8 } } }, /* not on a page */
		{ { { x, x }, { x + PAGE, x + 2 * PAGE } } },                /* empty */
		{ { { x + PAGE, x }, { x + PAGE, x + 2 * PAGE } } },         /* backwards */
		{ { { x, x + PAGE }, { top, -PAGE } } },                     /* beyond user space */
		{ { { x, x + PAGE }, { ~0ULL - 2 * PAGE + 1, ~0ULL - PAGE + 1 } } },
		{ { { x, x + PAGE }, { x + PAGE, ~0ULL } } },
	};
	const struct umbra_ntf_range fine[2] = { { 0, PAGE }, { PAGE, top } };
	const int fd = device_open();
	struct umbra_ntf_attach a = attach_to(NULL);

	a.nr_ranges = 2;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		a.ranges = (uintptr_t)bad[i].v;
		errno = 0;
		if (attach(fd, &a) != -1 || errno != EINVAL)
			FAIL("case %zu: %s", i, strerror(errno));
	}
	a.ranges = (uintptr_t)fine;
	REFUSED(attach(fd, &a), ENOSPC); /* 32 Gi bits */
	a.page_shift = 30;
	CHECK(attach(fd, &a) == 0);
	sub_map(&sub, fd);
	/* two ranges share their first GiB: a bit for each */
	EQUAL(sub.state->bitmap_bits, (1ULL << 17) + 64);
}

static bool set_limit(const char *name, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/module/umbra/parameters/%s", name);
	return put(path, value);
}

static void limits(void)
{
	char *p = memory(HUGE);
	const struct umbra_ntf_range v[2] = { { (uintptr_t)p, (uintptr_t)p + PAGE },
					      { (uintptr_t)p + PAGE, (uintptr_t)p + HUGE } };
	struct umbra_ntf_attach a = attach_to(v);
	int fd[3];

	CHECK(set_limit("max_subscriptions", "2"));
	fd[0] = device_open();
	fd[1] = device_open();
	REFUSED(fd[2] = open(UMBRA_NTF_DEVICE, O_RDWR), EMFILE);
	close(fd[1]);
	fd[1] = device_open();
	CHECK(set_limit("max_subscriptions", "64"));
	CHECK(set_limit("max_ranges", "1"));
	a.nr_ranges = 2;
	REFUSED(attach(fd[0], &a), ENOSPC);
	CHECK(set_limit("max_ranges", "1024"));
	CHECK(set_limit("max_ring_order", "9"));
	REFUSED(attach(fd[0], &a), ENOSPC);
	CHECK(set_limit("max_ring_order", "18"));
	CHECK(set_limit("max_bitmap_kib", "0"));
	REFUSED(attach(fd[0], &a), ENOSPC);
	CHECK(set_limit("max_bitmap_kib", "16384"));
	CHECK(attach(fd[0], &a) == 0);
	REFUSED(set_limit("max_ranges", "-1") ? 0 : -1, EINVAL);
	/* a limit past what there is: an error, and no noise */
	CHECK(set_limit("max_bitmap_kib", "134217728"));
	a.bitmap_bits = 1ULL << 39;
	REFUSED(attach(fd[1], &a), ENOMEM);
	CHECK(set_limit("max_bitmap_kib", "16384"));
	a.bitmap_bits = 0;
	CHECK(attach(fd[1], &a) == 0);
}

/* ---- by pid ----------------------------------------------------------------------------------- */

struct other {
	char *p;
	int go[2];
};

static int discards_when_told(void *arg)
{
	struct other *o = arg;
	char c;

	for (unsigned int i = 0; read(o->go[0], &c, 1) == 1; i++)
		madvise(o->p + i * PAGE, PAGE, MADV_DONTNEED);
	return 0;
}

static pid_t other_process(struct other *o, struct umbra_ntf_range *range)
{
	pid_t pid;

	o->p = memory(HUGE);
	*range = (struct umbra_ntf_range){ (uintptr_t)o->p, (uintptr_t)o->p + HUGE };
	CHECK(pipe(o->go) == 0);
	pid = child_of(discards_when_told, o);
	return pid;
}

static void drop_capability(int cap)
{
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2];

	CHECK(syscall(SYS_capget, &h, d) == 0);
	d[cap / 32].effective &= ~(1U << cap % 32);
	CHECK(syscall(SYS_capset, &h, d) == 0);
}

static void by_pid(void)
{
	struct other o;
	struct umbra_ntf_range range;
	const pid_t pid = other_process(&o, &range);
	struct umbra_ntf_attach a = attach_to(&range);
	struct pollfd hup;

	a.flags = UMBRA_NTF_ATTACH_PID;
	a.pid = pid;
	sub.fd = device_open();
	CHECK(attach(sub.fd, &a) == 0);
	sub_map(&sub, sub.fd);
	CHECK(write(o.go[1], "", 1) == 1);
	hup = (struct pollfd){ .fd = sub.fd, .events = POLLIN };
	CHECK(poll(&hup, 1, 20000) == 1);
	while (now(&sub).ended < 1)
		sched_yield();
	drain(&sub, &seen);
	want_only(&seen, o.p, PAGE);
	EQUAL(seen.v[0].flags, UMBRA_NTF_BLOCKABLE | UMBRA_NTF_OWNER);
	EQUAL(seen.v[0].who, pid);
	/* our own memory, at the same address, is not what was asked for */
	madvise(o.p, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
	CHECK(set_ranges(&sub, &(struct umbra_ntf_range){ range.start + PAGE, range.end }, 1) == 0);
	kill(pid, SIGKILL);
	CHECK(poll(&hup, 1, 20000) == 1 && (hup.revents & POLLHUP));
	EQUAL(now(&sub).dead, 1);
	wait_for(pid);
	REFUSED(set_ranges(&sub, &range, 1), ESRCH);
}

static void by_pid_needs_the_capability(void)
{
	struct other o;
	struct umbra_ntf_range range;
	const pid_t pid = other_process(&o, &range);
	struct umbra_ntf_attach a = attach_to(&range);
	const int fd = device_open();

	a.flags = UMBRA_NTF_ATTACH_PID;
	a.pid = pid;
	drop_capability(CAP_SYS_PTRACE);
	REFUSED(attach(fd, &a), EPERM);
	a.pid = getpid(); /* nor one's own by its number */
	REFUSED(attach(fd, &a), EPERM);
	a.pid = 0;
	a.flags = 0;
	CHECK(attach(fd, &a) == 0); /* one's own needs none */
	kill(pid, SIGKILL);
	wait_for(pid);
}

static void no_such_address_space(void)
{
	const struct umbra_ntf_range range = { PAGE, HUGE };
	struct umbra_ntf_attach a = attach_to(&range);
	struct other o;
	struct umbra_ntf_range unused;
	const int fd = device_open();
	const pid_t pid = other_process(&o, &unused);
	siginfo_t info;

	a.flags = UMBRA_NTF_ATTACH_PID;
	kill(pid, SIGKILL);
	CHECK(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) == 0);
	a.pid = pid;
	REFUSED(attach(fd, &a), ESRCH); /* a zombie */
	wait_for(pid);
	REFUSED(attach(fd, &a), ESRCH); /* dead */
	a.pid = 2;
	REFUSED(attach(fd, &a), ESRCH); /* kthreadd */
	a.pid = 0;
	REFUSED(attach(fd, &a), ESRCH);
	a.pid = -1;
	REFUSED(attach(fd, &a), ESRCH);
	a.pid = 0x7fffffff;
	REFUSED(attach(fd, &a), ESRCH);
}

/* ---- amid traffic ----------------------------------------------------------------------------- */

static void *discard(void *arg)
{
	while (!stop)
		madvise(arg, PAGE, MADV_DONTNEED);
	return NULL;
}

static void among_eight_busy_threads(void)
{
	char *p = memory(HUGE);
	const struct umbra_ntf_range range = { (uintptr_t)p, (uintptr_t)p + HUGE };
	struct umbra_ntf_attach a = attach_to(&range);
	pthread_t threads[8];
	struct umbra_ntf_record rec;
	struct umbra_ntf_snapshot n;
	uint64_t begun = 0, ended = 0;

	a.ring_order = 16;
	for (unsigned int i = 0; i < 8; i++)
		CHECK(pthread_create(&threads[i], NULL, discard, p + i * PAGE) == 0);
	for (unsigned int round = 0; round < 4; round++) {
		const int fd = device_open();

		CHECK(attach(fd, &a) == 0);
		sub_map(&sub, fd);
		usleep(20000);
		n = now(&sub);
		CHECK(n.begun > 0 && n.ended <= n.begun && n.begun - n.ended <= 8);
		/* from the first on each start counts, and no end comes without one */
		for (begun = ended = 0; umbra_ring_pop(&sub.ring, &rec);) {
			if (rec.kind == UMBRA_NTF_START)
				EQUAL(rec.begun, ++begun);
			else
				CHECK(++ended <= begun);
		}
		if (round == 3)
			break;
		munmap(sub.state, sub.a.state_bytes);
		munmap(sub.consumer, sub.a.consumer_bytes);
		close(fd);
	}
	stop = true;
	for (unsigned int i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	n = now(&sub);
	EQUAL(n.begun, n.ended);
}

static void on_signal(int nr)
{
	(void)nr;
}

struct fault {
	int uffd;
	pthread_t thread;
	char *page;
};

/* Serves the one fault; a signal is pending for the thread in ATTACH before it goes on. */
static void *serve(void *arg)
{
	const struct fault *f = arg;
	struct uffd_msg msg;
	struct uffdio_copy copy = { .dst = (uintptr_t)f->page,
				    .src = (uintptr_t)(f->page - PAGE),
				    .len = PAGE };

	CHECK(read(f->uffd, &msg, sizeof(msg)) == sizeof(msg));
	pthread_kill(f->thread, SIGUSR1);
	CHECK(ioctl(f->uffd, UFFDIO_COPY, &copy) == 0);
	return NULL;
}

static void with_a_pending_signal(void)
{
	char *p = memory(HUGE), *pages = memory(2 * PAGE);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { (uintptr_t)pages + PAGE, PAGE },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct fault f = { (int)syscall(SYS_userfaultfd, 0), pthread_self(), pages + PAGE };
	struct umbra_ntf_attach a = attach_to((void *)(pages + PAGE));
	const int fd = device_open();
	pthread_t server;

	signal(SIGUSR1, on_signal);
	if (f.uffd < 0 || ioctl(f.uffd, UFFDIO_API, &api))
		skip("userfaultfd: %s", strerror(errno));
	memcpy(pages, &(struct umbra_ntf_range){ (uintptr_t)p, (uintptr_t)p + HUGE },
	       sizeof(struct umbra_ntf_range));
	CHECK(madvise(pages + PAGE, PAGE, MADV_DONTNEED) == 0);
	CHECK(ioctl(f.uffd, UFFDIO_REGISTER, &reg) == 0);
	CHECK(pthread_create(&server, NULL, serve, &f) == 0);
	/* The ranges are read while nothing is there: the fault is when the signal comes. */
	REFUSED(attach(fd, &a), EINTR);
	pthread_join(server, NULL);
	CHECK(attach(fd, &a) == 0);
	sub_map(&sub, fd);
	madvise(p, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	want_only(&seen, p, PAGE);
}

/* ---- other ranges ----------------------------------------------------------------------------- */

static void ranges_change(void)
{
	char *p = memory(HUGE);
	const struct umbra_ntf_range half = { (uintptr_t)p, (uintptr_t)p + HUGE / 2 },
				     tail = { half.end, half.end + HUGE / 2 },
				     whole = { half.start, tail.end };

	subscribe(&sub, p, HUGE / 2, 10);
	CHECK(set_ranges(&sub, &tail, 1) == 0);
	madvise(p, PAGE, MADV_DONTNEED);
	madvise(p + HUGE / 2, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	want_only(&seen, p + HUGE / 2, PAGE);
	REFUSED(set_ranges(&sub, &whole, 1), ENOSPC); /* more bits than there are */
	REFUSED(set_ranges(&sub, &half, 0), EINVAL);
	REFUSED(set_ranges(&sub, NULL, 1), EFAULT);
	madvise(p, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	EQUAL(seen.nr, 0); /* as before */
	CHECK(set_ranges(&sub, &half, 1) == 0);
	madvise(p, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	want_only(&seen, p, PAGE);
}

/* Invalidations open outside the ranges: their ends must not be counted when the ranges come to them. */
static void ranges_wait_for_what_is_open(void)
{
	const size_t bytes = 4 * HUGE;
	char *p = memory(bytes + HUGE);
	const struct umbra_ntf_range busy = { (uintptr_t)p, (uintptr_t)p + bytes },
				     quiet = { busy.end, busy.end + HUGE };
	struct umbra_ntf_attach a = attach_to(&quiet);
	unsigned int refused = 0, done = 0;
	pthread_t threads[2];

	a.bitmap_bits = bytes / PAGE;
	a.ring_order = 16;
	sub.fd = device_open();
	CHECK(attach(sub.fd, &a) == 0);
	sub_map(&sub, sub.fd);
	for (unsigned int i = 0; i < 2; i++)
		CHECK(pthread_create(&threads[i], NULL, discard, p + i * PAGE) == 0);
	while (!refused || done < 200) {
		const struct umbra_ntf_snapshot n = now(&sub);

		CHECK(n.ended <= n.begun);
		if (set_ranges(&sub, done % 2 ? &quiet : &busy, 1) == 0) {
			done++;
		} else {
			EQUAL(errno, EBUSY);
			refused++;
		}
	}
	stop = true;
	for (unsigned int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	EQUAL(now(&sub).begun, now(&sub).ended);
	printf("# changed %u times, busy %u times\n", done, refused);
}

const struct test attach_tests[] = {
	{ "attach_once", attach_once },
	{ "two_subscriptions_see_the_same", two_subscriptions_see_the_same },
	{ "sizes_of_the_argument", sizes_of_the_argument },
	{ "fields_out_of_range", fields_out_of_range },
	{ "ranges_out_of_order", ranges_out_of_order },
	{ "limits", limits },
	{ "by_pid", by_pid },
	{ "by_pid_needs_the_capability", by_pid_needs_the_capability },
	{ "no_such_address_space", no_such_address_space },
	{ "d74_among_eight_busy_threads", among_eight_busy_threads },
	{ "d75_with_a_pending_signal", with_a_pending_signal },
	{ "ranges_change", ranges_change },
	{ "d73_ranges_wait_for_what_is_open", ranges_wait_for_what_is_open },
	{ NULL, NULL },
};
