/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a subscription to the kernel module costs those whose memory it is, and whether it hears everything. Wants
 * /dev/umbra: `make bench` runs this in the lab, on a stock kernel in an emulated machine.
 *
 * MADV_DONTNEED of 4K in a subscribed process against the same in one that is not; then 70,000 of them as the module has
 * them and as KVM's own tracepoint has them.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <umbra/module.h>
#include <unistd.h>
#include <vmm/tracefs.h>

#include "bench.h"

#define PAGE     4096UL
#define GROUPS   125UL
#define CALLS    16UL /* discards in a group */
#define PAGES    (GROUPS * CALLS)
#define CALLOUTS 70000UL

struct subscribed {
	char *memory;
	struct umbra_chain *chain;
	struct umbra_module *module;
	int ask, answer; /* pipes of the process that is not subscribed */
	double heard, witnessed;
};

static int by_size(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Of one discard: the median of small groups. Whatever else the emulator's processor did in one of them does not count. */
static double discard_all(char *memory)
{
	uint64_t ns[GROUPS], start;
	int bad = 0;

	memset(memory, 1, PAGES * PAGE);
	for (unsigned long g = 0; g < GROUPS; g++) {
		start = bench_ns();
		for (unsigned long i = g * CALLS; i < (g + 1) * CALLS; i++)
			bad |= madvise(memory + i * PAGE, PAGE, MADV_DONTNEED);
		ns[g] = bench_ns() - start;
	}
	qsort(ns, GROUPS, sizeof(ns[0]), by_size);
	return bad ? BENCH_FAILED : (double)ns[GROUPS / 2] / CALLS;
}

/* The ring has room for all of a sample; it is emptied when nothing is timed. */
static double subscribed(void *ctx)
{
	struct subscribed *s = ctx;
	const double ns = discard_all(s->memory);

	umbra_module_drain(s->module);
	return ns;
}

static double unsubscribed(void *ctx)
{
	const struct subscribed *s = ctx;
	double ns;

	if (write(s->ask, "", 1) != 1 || read(s->answer, &ns, sizeof(ns)) != sizeof(ns))
		return BENCH_FAILED;
	return ns;
}

/* Another process with as much memory, which does as it is asked until the pipe ends. */
static bool fork_unsubscribed(struct subscribed *s)
{
	int ask[2], answer[2];
	double ns;
	pid_t pid;
	char c;

	if (pipe(ask) || pipe(answer))
		return false;
	pid = fork();
	switch (pid) {
	case -1: return false;
	case 0:
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(ask[1]);
		while (read(ask[0], &c, 1) == 1) {
			ns = discard_all(s->memory);
			if (write(answer[1], &ns, sizeof(ns)) != sizeof(ns))
				break;
		}
		_exit(0);
	default: bench_owns(pid); break;
	}
	close(ask[0]);
	close(answer[1]);
	s->ask = ask[1];
	s->answer = answer[0];
	return true;
}

/* KVM hears of all memory of a process that has a virtual machine. */
static int create_machine(void)
{
	const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	return kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
}

/* Returns: false, having said why, when there is no witness. */
static bool witness(struct subscribed *s)
{
	const struct hva_range r = { { (uintptr_t)s->memory },
				     { (uintptr_t)s->memory + PAGES * PAGE } };
	struct umbra_tracepoint_config config = { .ranges = &r, .nr = 1, .ring_order = 8 };
	struct umbra_tracepoint_stats seen;
	struct umbra_module_stats before, after;
	struct umbra_tracepoint *w;
	char why[200] = "";
	int e = create_machine();

	if (e < 0)
		bench_fail("no virtual machine: %s", strerror(errno));
	else if (tracefs_formats(config.formats, why, sizeof(why)))
		bench_fail("%s", why);
	if (e < 0 || why[0])
		return false;
	e = umbra_tracepoint_open(&w, &config);
	if (e) {
		bench_fail("KVM's tracepoints: %s", strerror(-e));
		return false;
	}
	umbra_module_stats(s->module, &before);
	for (unsigned long done = 0; done < CALLOUTS; done += PAGES) {
		discard_all(s->memory);
		umbra_module_drain(s->module);
		umbra_tracepoint_drain(w, NULL, NULL);
	}
	umbra_module_stats(s->module, &after);
	umbra_tracepoint_stats(w, &seen);
	umbra_tracepoint_close(w);
	if (seen.lost)
		bench_fail("the tracepoint lost %lu records", (unsigned long)seen.lost);
	s->heard = (double)(after.starts - before.starts);
	s->witnessed = (double)seen.records[UMBRA_TRACEPOINT_UNMAP];
	bench_note("%lu discards: KVM was told of %.0f, the module of %.0f (%lu records lost)",
		   CALLOUTS, s->witnessed, s->heard, (unsigned long)(after.lost - before.lost));
	return !seen.lost;
}

static double heard(void *ctx)
{
	return ((struct subscribed *)ctx)->heard;
}

static double witnessed(void *ctx)
{
	return ((struct subscribed *)ctx)->witnessed;
}

static bool set_up(struct subscribed *s)
{
	struct umbra_module_config config = { .fd = -1, .nr = 1 };
	struct hva_range r;
	int e;

	s->memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);
	if (s->memory == MAP_FAILED || madvise(s->memory, PAGES * PAGE, MADV_NOHUGEPAGE) ||
	    !fork_unsubscribed(s) || umbra_chain_create(&s->chain, &umbra_os_posix)) {
		bench_fail("%s", strerror(errno));
		return false;
	}
	r.start.v = (uintptr_t)s->memory;
	r.end.v = r.start.v + PAGES * PAGE;
	config.ranges = &r;
	e = umbra_module_open(&s->module, s->chain, &config);
	if (e)
		bench_fail("/dev/umbra: %s", strerror(-e));
	return !e;
}

int main(void)
{
	static struct subscribed s;

	bench_begin("inval_subscribed", 0);
	if (!set_up(&s))
		return bench_end();
	bench_row(&(struct bench_row){
		.name = "inval_subscribed",
		.unit = "ns",
		.what = "MADV_DONTNEED of 4K in a subscribed process,",
		.floor = "in one that is not",
		.at_most = 1.5,
		.ours = subscribed,
		.against = unsubscribed,
		.ctx = &s,
		.rounds = 31,
	});
	if (witness(&s))
		bench_row(&(struct bench_row){
			.name = "inval_subscribed_heard",
			.unit = "callouts",
			.what = "callouts that the module has,",
			.floor = "KVM's tracepoint",
			.at_least = 1,
			.ours = heard,
			.against = witnessed,
			.ctx = &s,
		});
	umbra_module_close(s.module);
	umbra_chain_destroy(s.chain);
	return bench_end();
}
