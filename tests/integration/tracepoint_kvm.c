/* SPDX-License-Identifier: BSD-2-Clause */
/* KVM's tracepoints on the machine that there is: each discard is heard once, with its range, its thread and its path. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vmm/tracefs.h>

#define PAGES 64UL

static char *memory;
static struct umbra_tracepoint *w;
static unsigned int heard;
static struct umbra_tracepoint_record last;
static struct umbra_tracepoint_config config;

static void on_record(void *ctx, const struct umbra_tracepoint_record *rec)
{
	(void)ctx;
	if (rec->kind != UMBRA_TRACEPOINT_UNMAP)
		return;
	heard++;
	last = *rec;
}

/* KVM of this process is told of all its memory, as soon as there is a machine. */
static void begin(bool stacks)
{
	const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	const int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	static struct hva_range r;
	char why[200] = "";
	int e;

	if (vm < 0)
		cr_skip_test("no /dev/kvm: %s", strerror(errno));
	if (tracefs_formats(config.formats, why, sizeof(why)))
		cr_skip_test("%s", why);
	memory = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		      0);
	cr_assert_neq(memory, MAP_FAILED);
	memset(memory, 1, PAGES * 4096);
	r = (struct hva_range){ { (uintptr_t)memory }, { (uintptr_t)memory + PAGES / 2 * 4096 } };
	config.nr = 1;
	config.stacks = stacks;
	config.ranges = &r;
	e = umbra_tracepoint_open(&w, &config);
	if (e == -EACCES || e == -EPERM) {
		tracefs_no_witness(-e, why, sizeof(why));
		cr_skip_test("%s", why);
	}
	cr_assert_eq(e, 0, "%s", strerror(-e));
	heard = 0;
}

Test(witness, every_discard_is_heard_once_and_only_where_it_listens)
{
	struct umbra_tracepoint_stats stats;

	begin(false);
	for (unsigned long i = 0; i < PAGES; i++)
		cr_assert_eq(madvise(memory + i * 4096, 4096, MADV_DONTNEED), 0);
	cr_expect_eq(umbra_tracepoint_wait(w, 0), 0, "the rings are not half full");
	umbra_tracepoint_drain(w, on_record, NULL);
	cr_expect_eq(heard, PAGES / 2);
	cr_expect_eq(last.hva.start.v, (uintptr_t)memory + (PAGES / 2 - 1) * 4096);
	cr_expect_eq(last.hva.end.v, last.hva.start.v + 4096);
	cr_expect_eq(last.pid, getpid());
	cr_expect_eq(last.tid, (pid_t)syscall(SYS_gettid));
	umbra_tracepoint_stats(w, &stats);
	cr_expect_eq(stats.records[UMBRA_TRACEPOINT_UNMAP], PAGES / 2);
	cr_expect_eq(stats.lost, 0);
	umbra_tracepoint_drain(w, on_record, NULL);
	cr_expect_eq(heard, PAGES / 2, "each is handed over once");
	umbra_tracepoint_close(w);
}

Test(witness, rings_that_were_full_say_what_was_lost)
{
	struct umbra_tracepoint_stats stats;
	const unsigned int rounds = 40000;
	cpu_set_t here;

	begin(false);
	/* each CPU has its ring, and tells of its own losses */
	CPU_ZERO(&here);
	CPU_SET((size_t)sched_getcpu(), &here);
	cr_assert_eq(sched_setaffinity(0, sizeof(here), &here), 0);
	for (unsigned int i = 0; i < rounds; i++)
		cr_assert_eq(madvise(memory, 4096, MADV_DONTNEED), 0);
	umbra_tracepoint_drain(w, on_record, NULL);
	cr_assert_eq(madvise(memory, 4096, MADV_DONTNEED),
		     0); /* the kernel tells of a loss when there is room again */
	umbra_tracepoint_drain(w, on_record, NULL);
	umbra_tracepoint_stats(w, &stats);
	cr_expect_gt(stats.lost, 0);
	cr_expect_eq(stats.records[UMBRA_TRACEPOINT_UNMAP] + stats.lost, rounds + 1);
	umbra_tracepoint_close(w);
}

Test(witness, a_stack_names_the_path)
{
	struct tracefs_symbols *symbols;
	bool madvised = false;

	begin(true);
	symbols = tracefs_symbols_load();
	if (!symbols)
		cr_skip_test("/proc/kallsyms shows no addresses");
	cr_assert_eq(madvise(memory, 4096, MADV_DONTNEED), 0);
	umbra_tracepoint_drain(w, on_record, NULL);
	cr_assert_eq(heard, 1);
	cr_expect_gt(last.nr_stack, 3);
	for (uint32_t i = 0; i < last.nr_stack; i++) {
		const char *name = tracefs_symbol(symbols, last.stack[i]);

		madvised |= name && strstr(name, "madvise");
	}
	cr_expect(madvised);
	cr_expect_null(tracefs_symbol(symbols, 0));
	tracefs_symbols_free(symbols);
	umbra_tracepoint_close(w);
}

Test(witness, who_may_open_too_few_files_gets_none_and_keeps_none)
{
	struct rlimit files;
	int next;

	begin(false);
	umbra_tracepoint_close(w);
	next = dup(0);
	cr_assert_geq(next, 0);
	close(next);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &files), 0);
	files.rlim_cur = (rlim_t)next + 2;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &files), 0);
	cr_expect_eq(umbra_tracepoint_open(&w, &config), -EMFILE);
	cr_expect_eq(dup(0), next, "all are closed again");
}
