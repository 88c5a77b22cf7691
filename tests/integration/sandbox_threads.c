/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The sandbox by kind of thread: each forbidden call ends the process with VMM_EXIT_INTERNAL and a line that says who
 * did what; each needed one goes through. Every case runs in a forked child, for there is no way back.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <sched.h>
#include <shadow/events/uapi.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vmm/sandbox.h>

#define BAD_FD 999 /* a call that is let through answers EBADF */

/* Each returns 0 when the kernel did, or would have done, what was asked. */
static int try_socket(void)
{
	return socket(AF_UNIX, SOCK_STREAM, 0) < 0;
}

static int try_exec(void)
{
	char *argv[] = { (char *)(uintptr_t) "true", NULL };

	return execv("/bin/true", argv);
}

static int try_open_write(void)
{
	return open("/dev/null", O_RDWR) < 0;
}

static int try_open_read(void)
{
	return open("/proc/self/task", O_RDONLY | O_DIRECTORY) < 0;
}

static int try_executable_memory(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
	       MAP_FAILED;
}

static int try_make_executable(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED || mprotect(p, 4096, PROT_READ | PROT_EXEC);
}

static int try_terminal_ioctl(void)
{
	return ioctl(BAD_FD, TIOCSTI, "x") < 0 && errno != EBADF;
}

static int try_kvm_run(void)
{
	return ioctl(BAD_FD, KVM_RUN, 0) < 0 && errno != EBADF;
}

static int try_kvm_create(void)
{
	return ioctl(BAD_FD, KVM_CREATE_VM, 0) < 0 && errno != EBADF;
}

static int try_add_slot(void)
{
	return ioctl(BAD_FD, KVM_SET_USER_MEMORY_REGION, NULL) < 0 && errno != EBADF;
}

static int try_pagemap_scan(void)
{
	return ioctl(BAD_FD, UMBRA_PAGEMAP_SCAN, NULL) < 0 && errno != EBADF;
}

static int try_signal_parent(void)
{
	return syscall(SYS_tgkill, getppid(), getppid(), 0) != 0;
}

static int try_signal_self(void)
{
	return syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), 0) != 0;
}

static int try_terminate_parent(void)
{
	return kill(getppid(), SIGCONT);
}

static int try_write_parent(void)
{
	char c = 0;
	struct iovec local = { &c, 1 }, remote = { &c, 1 };

	return process_vm_writev(getppid(), &local, 1, &remote, 1, 0) != 1;
}

static int try_write_self(void)
{
	char from = 1, to = 0;
	struct iovec local = { &from, 1 }, remote = { &to, 1 };

	return process_vm_writev(getpid(), &local, 1, &remote, 1, 0) != 1 || to != 1;
}

static int try_fork(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	return pid < 0 || waitpid(pid, NULL, 0) != pid;
}

static int try_ptrace(void)
{
	return syscall(SYS_ptrace, 0, 0, 0, 0) != 0;
}

static int try_memory_advice(void)
{
	void *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED || madvise(p, 4096, MADV_DONTNEED) || mprotect(p, 4096, PROT_READ) ||
	       munmap(p, 8192);
}

static int try_remap(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED || mremap(p, 4096, 4096, MREMAP_MAYMOVE) == MAP_FAILED;
}

static int try_punch(void)
{
	return fallocate(BAD_FD, 0, 0, 4096) && errno != EBADF;
}

static int try_poll(void)
{
	return poll(NULL, 0, 0) != 0;
}

static int try_bare_thread(void)
{
	/* No stack is given: were it let through, the kernel would refuse it for its flags. */
	return syscall(SYS_clone, CLONE_THREAD, 0, 0, 0, 0) < 0 && errno != EINVAL;
}

static int try_userfaultfd(void)
{
	return syscall(SYS_userfaultfd, ~0) < 0 && errno != EINVAL;
}

#define M (1U << SANDBOX_MAIN)
#define V (1U << SANDBOX_VCPU)
#define R (1U << SANDBOX_READER)
#define C (1U << SANDBOX_CHAOS)
#define K (1U << SANDBOX_MODULE | 1U << SANDBOX_WITNESS)

static const struct {
	const char *name;
	int (*call)(void);
	unsigned int allowed; /* kinds */
} cases[] = {
	{ "socket", try_socket, 0 },
	{ "execve", try_exec, 0 },
	{ "open for writing", try_open_write, 0 },
	{ "executable mmap", try_executable_memory, 0 },
	{ "mprotect to executable", try_make_executable, 0 },
	{ "terminal ioctl", try_terminal_ioctl, 0 },
	{ "KVM_CREATE_VM", try_kvm_create, 0 },
	{ "tgkill another process", try_signal_parent, 0 },
	{ "kill but not SIGKILL", try_terminate_parent, 0 },
	{ "write another process", try_write_parent, 0 },
	{ "ptrace", try_ptrace, 0 },
	{ "a thread", try_bare_thread, 0 },
	{ "userfaultfd", try_userfaultfd, 0 },
	{ "KVM_RUN", try_kvm_run, V },
	{ "open /proc/self/task", try_open_read, M | R },
	{ "fork", try_fork, V | C },
	{ "fallocate", try_punch, V | C },
	{ "write own memory", try_write_self, M | V | C },
	{ "PAGEMAP_SCAN", try_pagemap_scan, M | V | C },
	{ "memory slot", try_add_slot, M | V | R | C | K },
	{ "mremap", try_remap, M | V | R | C | K },
	{ "madvise, mprotect, munmap", try_memory_advice, M | V | R | C | K },
	{ "tgkill itself", try_signal_self, M | V | R | C | K },
	{ "poll", try_poll, M | V | R | C | K },
};
#define CASES (sizeof(cases) / sizeof(cases[0]))

/* Runs @call sandboxed in a child. Returns: its exit status, or -1; what it said is in @said. */
static int in_child(enum vm_sandbox mode, enum sandbox_kind kind, int (*call)(void), char *said,
		    size_t size)
{
	struct sandbox_effective effective;
	int pipes[2], status = 0;
	ssize_t n, got = 0;
	pid_t pid;

	cr_assert_eq(pipe(pipes), 0);
	pid = fork();
	cr_assert_geq(pid, 0);
	if (pid == 0) {
		dup2(pipes[1], STDERR_FILENO);
		if (sandbox_process(mode, &effective) || sandbox_thread(mode, kind))
			_exit(99);
		_exit(call() ? 98 : 0);
	}
	close(pipes[1]);
	while ((n = read(pipes[0], said + got, size - 1 - (size_t)got)) > 0)
		got += n;
	said[got] = '\0';
	close(pipes[0]);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void check_kind(enum sandbox_kind kind)
{
	char said[512], who[64];

	snprintf(who, sizeof(who), "the %s thread", sandbox_kind_name(kind));
	for (size_t i = 0; i < CASES; i++) {
		int got = in_child(VM_SANDBOX_ON, kind, cases[i].call, said, sizeof(said));

		if (cases[i].allowed & 1U << kind) {
			cr_expect_eq(got, 0, "%s: %s: status %d: %s", who, cases[i].name, got,
				     said);
			continue;
		}
		cr_expect_eq(got, VMM_EXIT_INTERNAL, "%s: %s was not stopped: status %d", who,
			     cases[i].name, got);
		cr_expect(strstr(said, who) && strstr(said, "system call"), "%s: %s: said \"%s\"",
			  who, cases[i].name, said);
	}
}

Test(sandbox, main_thread)
{
	check_kind(SANDBOX_MAIN);
}

Test(sandbox, vcpu_thread)
{
	check_kind(SANDBOX_VCPU);
}

Test(sandbox, reader_thread)
{
	check_kind(SANDBOX_READER);
}

Test(sandbox, chaos_thread)
{
	check_kind(SANDBOX_CHAOS);
}

Test(sandbox, module_thread)
{
	check_kind(SANDBOX_MODULE);
}

Test(sandbox, witness_thread)
{
	check_kind(SANDBOX_WITNESS);
}

static int try_everything_is_gone(void)
{
	/* no_new_privs, no capability that would let us take one back */
	return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1;
}

Test(sandbox, log_mode_lets_forbidden_calls_through)
{
	char said[512];

	cr_expect_eq(in_child(VM_SANDBOX_LOG, SANDBOX_VCPU, try_socket, said, sizeof(said)), 0,
		     "%s", said);
	cr_expect_eq(
		in_child(VM_SANDBOX_LOG, SANDBOX_VCPU, try_everything_is_gone, said, sizeof(said)),
		0, "%s", said);
}

Test(sandbox, off_is_off)
{
	char said[512];

	cr_expect_eq(in_child(VM_SANDBOX_OFF, SANDBOX_READER, try_open_write, said, sizeof(said)),
		     0, "%s", said);
}

static int open_outside(void)
{
	return open("/etc/passwd", O_RDONLY) >= 0 || errno != EACCES;
}

Test(sandbox, what_the_reader_may_open_is_held_by_landlock)
{
	char said[512];

	if (syscall(SYS_landlock_create_ruleset, NULL, 0, 1) < 1)
		cr_skip_test("this kernel has no Landlock");
	cr_expect_eq(in_child(VM_SANDBOX_ON, SANDBOX_READER, open_outside, said, sizeof(said)), 0,
		     "%s", said);
}

static pid_t bystander;

/* Whom we made may be ended, and nobody else. */
static int end_others(void)
{
	const bool spared = kill(bystander, SIGKILL) < 0 && errno == EPERM;
	pid_t ours = fork();

	if (ours == 0) {
		for (;;)
			poll(NULL, 0, -1);
	}
	if (ours < 0 || kill(ours, SIGKILL) || waitpid(ours, NULL, 0) != ours)
		return 1;
	return !spared;
}

Test(sandbox, who_may_be_ended_is_held_by_landlock)
{
	char said[512];
	int status;

	if (syscall(SYS_landlock_create_ruleset, NULL, 0, 1) < 6)
		cr_skip_test("this kernel's Landlock does not know of signals (Linux 6.12)");
	bystander = fork();
	cr_assert_geq(bystander, 0);
	if (bystander == 0) {
		for (;;)
			pause();
	}
	cr_expect_eq(in_child(VM_SANDBOX_ON, SANDBOX_VCPU, end_others, said, sizeof(said)), 0, "%s",
		     said);
	cr_expect_eq(waitpid(bystander, &status, WNOHANG), 0,
		     "a process that is not ours was ended");
	kill(bystander, SIGKILL);
	waitpid(bystander, &status, 0);
}
