/* SPDX-License-Identifier: BSD-2-Clause */
/* The module as a source over a descriptor that is passed in: here a file laid out as the module's. */
#include <abi/notifier.h>
#include <criterion/criterion.h>
#include <poll.h>
#include <sys/resource.h>
#include <umbra/module.h>
#include "events_host.h"
#include "shadow/events/module.h"

#define PAGE    UMBRA_PAGE_SIZE
#define RECORDS 16U

static struct host h;
static char *p;
static int fd;
static struct umbra_ntf_state *state;
static struct umbra_ntf_record *records;
static struct umbra_ntf_consumer *consumer;
static struct umbra_ring_producer kernel;

/* What the kernel's half would have mapped for whoever attached. */
static void lay_out(void)
{
	fd = memfd_create("module", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(fd, (off_t)(UMBRA_NTF_OFFSET_CONSUMER + 16 * PAGE)), 0);
	state = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		     (off_t)UMBRA_NTF_OFFSET_STATE);
	consumer = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			(off_t)UMBRA_NTF_OFFSET_CONSUMER);
	cr_assert(state != MAP_FAILED && consumer != MAP_FAILED);
	records = (void *)((char *)state + UMBRA_NTF_PAGE);
	*state = (struct umbra_ntf_state){
		.magic = UMBRA_NTF_MAGIC,
		.abi = UMBRA_NTF_ABI,
		.size = sizeof(*state),
		.record_size = sizeof(struct umbra_ntf_record),
		.nr_records = RECORDS,
		.bitmap_bits = 8 * PAGE,
		.page_shift = UMBRA_PAGE_SHIFT,
	};
	kernel = (struct umbra_ring_producer){ records, RECORDS - 1, 0, 0, state, consumer };
}

static void begin(void)
{
	host_create(&h);
	p = host_anon(&h, 64 * PAGE);
	cr_assert(host_touch(&h, p, 8 * PAGE, UMBRA_ACCESS_WRITE));
	lay_out();
}

static void end(void)
{
	munmap(state, 2 * PAGE);
	munmap(consumer, 2 * PAGE);
	close(fd);
	cr_expect(host_sound(&h));
	host_destroy(&h);
}

static int open_it(struct umbra_module **m, int passed)
{
	static struct hva_range all;
	const struct umbra_module_config config = { .fd = passed, .ranges = &all, .nr = 1 };

	all = hva_range_of(p, 64 * PAGE);
	return umbra_module_open(m, h.chain, &config);
}

static void publish(uint8_t kind, uint8_t event, uint16_t flags)
{
	struct umbra_ntf_record rec = { .start = (uintptr_t)p,
					.end = (uintptr_t)p + PAGE,
					.kind = kind,
					.event = event,
					.flags = flags };

	if (kind == UMBRA_NTF_START)
		state->begun++;
	if (kind == UMBRA_NTF_END)
		state->ended++;
	rec.begun = state->begun;
	umbra_ring_push(&kernel, &rec);
}

Test(module_fd, a_passed_descriptor_is_taken_over_and_left_open)
{
	static const struct {
		uint8_t event;
		uint16_t flags;
		enum umbra_cause cause;
	} events[] = {
		{ UMBRA_NTF_UNMAP, UMBRA_NTF_OWNER, UMBRA_CAUSE_UNMAP },
		{ UMBRA_NTF_CLEAR, UMBRA_NTF_RECLAIM, UMBRA_CAUSE_SWAP },
		{ UMBRA_NTF_CLEAR, UMBRA_NTF_OWNER, UMBRA_CAUSE_UNKNOWN },
		{ UMBRA_NTF_PROTECTION_VMA, UMBRA_NTF_OWNER, UMBRA_CAUSE_PROTECT },
		{ UMBRA_NTF_PROTECTION_PAGE, 0, UMBRA_CAUSE_PROTECT },
		{ UMBRA_NTF_SOFT_DIRTY, 0, UMBRA_CAUSE_SOFT_DIRTY },
		{ UMBRA_NTF_MIGRATE, UMBRA_NTF_KTHREAD, UMBRA_CAUSE_MIGRATE },
		{ 200, UMBRA_NTF_KTHREAD, UMBRA_CAUSE_UNKNOWN },
	};
	struct umbra_module_stats stats;
	struct umbra_module *m;

	begin();
	cr_assert_eq(open_it(&m, fd), 0);
	for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++) {
		struct umbra_event e;

		cr_assert(host_touch(&h, p, PAGE, UMBRA_ACCESS_WRITE));
		publish(UMBRA_NTF_START, events[i].event, events[i].flags);
		umbra_module_drain(m);
		cr_expect_eq(host_leaf(&h, p), 0);
		cr_expect_eq(host_fault_once(&h, p, UMBRA_ACCESS_READ), UMBRA_FAULT_RETRY);
		cr_assert_eq(umbra_history(h.mmu, hva_range_of(p, PAGE), &e, 1), 1);
		cr_expect_eq(e.cause, events[i].cause, "event %u", events[i].event);
		publish(UMBRA_NTF_END, events[i].event, events[i].flags);
		publish(99, 0, 0); /* of a later version: passed over */
		umbra_module_drain(m);
	}
	umbra_module_stats(m, &stats);
	cr_expect_eq(stats.starts, 8);
	cr_expect_eq(stats.by_kthread, 2);
	cr_expect_eq(stats.by_reclaim, 1);
	umbra_module_young(m, hva_range_of(p + PAGE, PAGE));
	cr_expect_eq(((uint8_t *)consumer)[UMBRA_NTF_PAGE], 1 << 1);
	publish(UMBRA_NTF_START, UMBRA_NTF_UNMAP, 0); /* open in the kernel when we go */
	umbra_module_close(m);
	umbra_module_close(NULL);
	cr_expect_geq(fcntl(fd, F_GETFD), 0);
	end();
}

Test(module_fd, other_ranges_need_the_module_itself)
{
	struct umbra_module *m;
	struct hva_range r;

	begin();
	r = hva_range_of(p, PAGE);
	cr_assert_eq(open_it(&m, fd), 0);
	cr_expect_eq(umbra_module_ranges(m, &r, 1), -ENOTTY, "a file has no such ioctl");
	umbra_module_young(m, hva_range_of(p + 2 * PAGE, PAGE));
	cr_expect_eq(((uint8_t *)consumer)[UMBRA_NTF_PAGE], 1 << 2, "the old ranges hold");
	umbra_module_close(m);
	end();
}

Test(module_fd, what_is_no_module_or_another_version_is_said)
{
	struct umbra_module *m;
	const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	const struct umbra_module_config none = { .fd = -1 };
	struct rlimit limit, few;

	begin();
	cr_expect_eq(umbra_module_open(&m, h.chain, &none), -EINVAL, "no range");
	cr_expect_eq(open_it(&m, null), -ENODEV);
	state->abi++;
	cr_expect_eq(open_it(&m, fd), -EPROTO);
	state->abi--;
	state->record_size--;
	cr_expect_eq(open_it(&m, fd), -EPROTO);
	state->record_size++;
	state->magic++;
	cr_expect_eq(open_it(&m, fd), -EPROTO);
	state->magic--;
	state->nr_records = 1ULL << 50;
	cr_expect_eq(open_it(&m, fd), -ENOMEM, "no address space for so many");
	state->nr_records = RECORDS;
	state->bitmap_bits = 1ULL << 55;
	cr_expect_eq(open_it(&m, fd), -ENOMEM);
	state->bitmap_bits = 8 * PAGE;
	getrlimit(RLIMIT_NOFILE, &limit);
	few = limit;
	few.rlim_cur = (rlim_t)dup(null); /* no descriptor is left */
	close((int)few.rlim_cur);
	setrlimit(RLIMIT_NOFILE, &few);
	cr_expect_eq(open_it(&m, fd), -EMFILE);
	setrlimit(RLIMIT_NOFILE, &limit);
	if (access(UMBRA_NTF_DEVICE, F_OK))
		cr_expect_eq(open_it(&m, -1), -ENOENT);
	close(null);
	end();
}

static struct umbra_module *running;

static void *run(void *arg)
{
	*(int *)arg = umbra_module_run(running);
	return NULL;
}

Test(module_fd, the_reader_ends_with_the_address_space, .timeout = 30)
{
	pthread_t t;
	int rc = 1;

	begin();
	cr_assert_eq(open_it(&running, fd), 0);
	publish(UMBRA_NTF_START, UMBRA_NTF_UNMAP, 0);
	umbra_module_drain(running);
	publish(UMBRA_NTF_RELEASE, 0, 0);
	pthread_create(&t, NULL, run, &rc);
	pthread_join(t, NULL);
	cr_expect_eq(rc, -ESHUTDOWN);
	cr_expect_eq(host_fault_once(&h, p, UMBRA_ACCESS_READ), UMBRA_FAULT_RELEASED);
	umbra_module_close(running);
	end();
}
