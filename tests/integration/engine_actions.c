/* SPDX-License-Identifier: BSD-2-Clause */
/* Host actions on a whole machine whose vCPUs are not started: long ranges, holes in them, and a machine that stops. */
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vmm/actions.h>
#include <vmm/memory.h>
#include <vmm/report_private.h>
#include <vmm/vm_private.h>

#define GIB (1ULL << 30)

static struct vm *vm;

/* The smallest image there is; it never runs. */
static void write_image(int fd)
{
	struct {
		Elf64_Ehdr h;
		Elf64_Phdr p;
	} image = {
		.h = { .e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB,
				    EV_CURRENT },
		       .e_type = ET_EXEC,
		       .e_machine = EM_X86_64,
		       .e_entry = 0x100000,
		       .e_phoff = sizeof(Elf64_Ehdr),
		       .e_phentsize = sizeof(Elf64_Phdr),
		       .e_phnum = 1 },
		.p = { .p_type = PT_LOAD,
		       .p_flags = PF_R | PF_X,
		       .p_vaddr = 0x100000,
		       .p_memsz = 4096 },
	};

	cr_assert_eq(write(fd, &image, sizeof(image)), (ssize_t)sizeof(image));
}

static void set_up(uint64_t memory, enum guest_backing backing, enum guest_page_kind pages)
{
	char name[64];
	int fd = memfd_create("image", 0);
	struct vm_error err = { 0 };
	struct vm_config config = {
		.memory = memory,
		.vcpus = 1,
		.backing = backing,
		.pages = pages,
		.kvm_fd = -1,
		.uffd_fd = -1,
		.image = name,
	};
	int code;

	write_image(fd);
	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	code = vm_create(&vm, &config, &err);
	if (code == VMM_EXIT_CANNOT_RUN && !getenv("REQUIRE_KVM"))
		cr_skip_test("%s", err.text);
	cr_assert_eq(code, 0, "%s", err.text);
	close(fd);
}

static void tear_down(void)
{
	cr_expect_eq(action_check(vm), 0);
	vm_destroy(vm);
}

static struct hva_range all(void)
{
	return (struct hva_range){ vm->ram, { vm->ram.v + vm->config.memory } };
}

static uint64_t *word(uint64_t gpa)
{
	return (uint64_t *)(uintptr_t)(vm->ram.v + gpa);
}

static bool huge(uint64_t gpa)
{
	struct umbra_page page;

	cr_assert_eq(umbra_hostmap_query(vm->hostmap, (hva_t){ vm->ram.v + gpa }, &page), 0);
	return page.flags & UMBRA_PAGE_HUGE;
}

static uint64_t brackets(enum umbra_cause cause)
{
	return vm->report->cell[UMBRA_SOURCE_OWN][cause].n;
}

Test(engine_actions, a_stopping_machine_ends_long_actions)
{
	set_up(64 * GIB, GUEST_BACKING_MEMFD, GUEST_PAGES_THP);
	for (uint64_t gpa = 0; gpa < 64 * GIB; gpa += GIB)
		*word(gpa + UMBRA_HUGE_SIZE) = gpa;
	vm_stop(vm, VMM_EXIT_INTERRUPTED, "by the test");
	cr_expect_eq(action_split(vm, all()), -EINTR);
	cr_expect_eq(action_collapse(vm, all()), -EINTR);
	cr_expect_eq(action_swapout(vm, all()), -EINTR);
	cr_expect_eq(action_discard(vm, all()), -EINTR);
	cr_expect_eq(*word(5 * GIB + UMBRA_HUGE_SIZE), 5 * GIB, "nothing was done");
	tear_down();
	set_up(64 * GIB, GUEST_BACKING_ANON, GUEST_PAGES_4K);
	vm_stop(vm, VMM_EXIT_INTERRUPTED, "by the test");
	cr_expect_eq(action_free(vm, all()), -EINTR);
	tear_down();
}

Test(engine_actions, long_losses_reach_the_end)
{
	set_up(8 * GIB, GUEST_BACKING_ANON, GUEST_PAGES_4K);
	for (uint64_t gpa = GIB / 2; gpa < 8 * GIB; gpa += GIB / 2)
		*word(gpa) = gpa;
	cr_expect_eq(
		action_discard(vm, (struct hva_range){ { vm->ram.v + GIB / 2 + UMBRA_PAGE_SIZE },
						       { vm->ram.v + 8 * GIB } }),
		0);
	cr_expect_eq(*word(GIB / 2), GIB / 2);
	for (uint64_t gpa = GIB; gpa < 8 * GIB; gpa += GIB / 2)
		cr_expect_eq(*word(gpa), 0);
	cr_expect_eq(action_free(vm, all()), 0);
	tear_down();
}

Test(engine_actions, pieces_without_a_page_are_not_swapped_out)
{
	uint64_t before;

	set_up(16 * GIB, GUEST_BACKING_MEMFD, GUEST_PAGES_4K);
	*word(5 * GIB) = 5;
	*word(11 * GIB) = 11;
	before = brackets(UMBRA_CAUSE_SWAP);
	cr_expect_geq(action_swapout(vm, all()), 0);
	/* those two, and the piece that holds the image */
	cr_expect_eq(brackets(UMBRA_CAUSE_SWAP) - before, 3);
	cr_expect(*word(5 * GIB) == 5 && *word(11 * GIB) == 11);
	tear_down();
}

Test(engine_actions, holes_do_not_refuse_a_collapse)
{
	const uint64_t mib = 1 << 20;

	set_up(GIB, GUEST_BACKING_ANON, GUEST_PAGES_THP);
	if (!umbra_hostmap_has_scan(vm->hostmap))
		cr_skip_test("this kernel does not tell huge pages");
	/* small pages first, in two blocks of one piece and one of another */
	cr_assert_eq(action_split(vm, all()), 0);
	*word(100 * mib) = 1;
	*word(106 * mib) = 2;
	*word(500 * mib) = 3;
	cr_assert(!huge(100 * mib) && !huge(106 * mib) && !huge(500 * mib));
	cr_expect_eq(action_collapse(vm, (struct hva_range){ { vm->ram.v + 64 * mib },
							     { vm->ram.v + 600 * mib } }),
		     0);
	cr_expect(huge(100 * mib) && huge(106 * mib) && huge(500 * mib));
	cr_expect(*word(100 * mib) == 1 && *word(106 * mib) == 2 && *word(500 * mib) == 3);
	cr_expect_eq(action_collapse(vm, (struct hva_range){ { vm->ram.v + 700 * mib },
							     { vm->ram.v + 900 * mib } }),
		     -EINVAL, "nothing there");
	tear_down();
}

Test(engine_actions, a_split_reaches_every_block_of_a_long_range)
{
	const uint64_t mib = 1 << 20;

	set_up(GIB, GUEST_BACKING_ANON, GUEST_PAGES_THP);
	if (!umbra_hostmap_has_scan(vm->hostmap))
		cr_skip_test("this kernel does not tell huge pages");
	for (uint64_t gpa = 100 * mib; gpa < 300 * mib; gpa += 10 * mib)
		*word(gpa) = gpa;
	cr_assert_eq(action_collapse(vm, all()), 0);
	cr_assert(huge(110 * mib) && huge(290 * mib));
	cr_expect_eq(action_split(vm, (struct hva_range){ { vm->ram.v + 101 * mib },
							  { vm->ram.v + 299 * mib } }),
		     0);
	for (uint64_t gpa = 100 * mib; gpa < 300 * mib; gpa += 10 * mib) {
		cr_expect(!huge(gpa) || gpa == 100 * mib, "%lu", gpa);
		cr_expect_eq(*word(gpa), gpa);
	}
	tear_down();
}

/* A guest can make the host warn for ever, e.g. by host calls from outside of memory. */
Test(engine_actions, warnings_end_after_a_hundred_and_errors_do_not)
{
	int err = memfd_create("stderr", 0), lines = 0, saved = dup(2);
	char line[400];
	FILE *in;

	set_up(2 << 20, GUEST_BACKING_ANON, GUEST_PAGES_4K);
	vm->config.log = VM_LOG_WARN;
	cr_assert_eq(dup2(err, 2), 2);
	for (uint64_t i = 0; i < 1000; i++)
		hostcall(vm, vm->vcpus[0], (gpa_t){ 0xdead0000 + i });
	vm_log(vm, VM_LOG_ERROR, "the last word");
	cr_assert_eq(dup2(saved, 2), 2);
	cr_assert_eq(lseek(err, 0, SEEK_SET), 0);
	in = fdopen(err, "r");
	while (fgets(line, sizeof(line), in)) {
		lines++;
		if (lines <= 100)
			cr_expect(strstr(line, "not in memory"), "%d: %s", lines, line);
		else if (lines == 101)
			cr_expect(strstr(line, "not shown"), "%s", line);
		else
			cr_expect(strstr(line, "the last word"), "%s", line);
	}
	cr_expect_eq(lines, 102);
	fclose(in);
	tear_down();
}

static bool writable(uint64_t gpa)
{
	const int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	const bool done = read(zero, word(gpa), 1) == 1;

	close(zero);
	return done;
}

/* A page that guest and chaos have protected is writable again when both have let go of it, not before. */
Test(engine_actions, a_protection_stays_until_the_last_who_asked_for_it_lets_go)
{
	static const enum action_by order[2][2] = { { ACTION_BY_GUEST, ACTION_BY_CHAOS },
						    { ACTION_BY_CHAOS, ACTION_BY_GUEST } };
	struct hva_range r;

	set_up(64ULL << 20, GUEST_BACKING_ANON, GUEST_PAGES_4K);
	r = (struct hva_range){ { vm->ram.v + 0x200000 }, { vm->ram.v + 0x204000 } };
	for (int i = 0; i < 2; i++) {
		cr_assert(writable(0x201000));
		cr_assert_eq(action_protect(vm, r, order[i][0]), 0);
		cr_assert_eq(action_protect(vm, r, order[i][1]), 0);
		cr_expect_not(writable(0x201000));
		cr_assert_eq(action_unprotect(vm, r, order[i][0]), 0);
		cr_expect_not(writable(0x201000), "the other one holds it");
		cr_assert_eq(action_unprotect(vm, r, order[i][1]), 0);
		cr_expect(writable(0x201000));
	}
	tear_down();
}

static _Atomic int discarder;
static _Atomic bool discarded;

static void *discard_a_page(void *arg)
{
	(void)arg;
	discarder = gettid();
	cr_expect_eq(action_discard(vm, (struct hva_range){ { vm->ram.v + 0x200000 },
							    { vm->ram.v + 0x201000 } }),
		     0);
	discarded = true;
	return NULL;
}

/* Until it is done, or asleep for a lock. */
static void wait_for_the_discarder(void)
{
	char path[64], number[8];

	while (!discarder)
		sched_yield();
	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", discarder);
	while (!discarded) {
		const int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd >= 0 && read(fd, number, 4) == 4 && !memcmp(number, "202 ", 4)) {
			close(fd);
			return;
		}
		close(fd);
		usleep(1000);
	}
}

/* While a remap has it away, there is nothing to discard at its place, and what is away would come back. */
Test(engine_actions, what_is_away_is_discarded_when_it_is_back)
{
	pthread_t thread;

	set_up(64ULL << 20, GUEST_BACKING_ANON, GUEST_PAGES_4K);
	*word(0x200000) = 42;
	memory_access_close(vm);
	cr_assert_eq(pthread_create(&thread, NULL, discard_a_page, NULL), 0);
	wait_for_the_discarder();
	cr_expect_not(discarded);
	cr_expect_eq(*word(0x200000), 42);
	memory_access_open(vm);
	pthread_join(thread, NULL);
	cr_expect_eq(*word(0x200000), 0);
	tear_down();
}
