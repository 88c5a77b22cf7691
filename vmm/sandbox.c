/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One seccomp filter for each kind of thread. What is allowed stands in the tables below: a system
 * call, and where its arguments matter, which ones.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <seccomp.h>
#include <shadow/events/uapi.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <vmm/kvm.h>
#include <vmm/sandbox.h>
#include <vmm/sandbox_landlock.h>

#define KIND(k)  (1U << SANDBOX_##k)
#define ALL      (KIND(MAIN) | KIND(VCPU) | KIND(READER) | KIND(CHAOS) | KIND(MODULE) | KIND(WITNESS))
#define ACTORS   (KIND(VCPU) | KIND(CHAOS)) /* they change guest memory, and fork */
#define SETTLERS (KIND(READER) | KIND(MAIN))

static const char *const kind_names[SANDBOX_KIND_NR] = { "main",  "vCPU",          "event reader",
							 "chaos", "module reader", "witness" };

/* Of the calling thread, for the handler's message. */
static __thread enum sandbox_kind current_kind;

const char *sandbox_kind_name(enum sandbox_kind kind)
{
	return kind < SANDBOX_KIND_NR ? kind_names[kind] : "unknown";
}

static const struct {
	int nr;
	unsigned int kinds;
} allowed[] = {
	/* the C library under threads, allocation and ending */
	{ SCMP_SYS(futex), ALL },
	{ SCMP_SYS(munmap), ALL },
	{ SCMP_SYS(madvise), ALL },
	{ SCMP_SYS(brk), ALL },
	{ SCMP_SYS(rt_sigprocmask), ALL },
	{ SCMP_SYS(rt_sigreturn), ALL },
	{ SCMP_SYS(restart_syscall), ALL },
	{ SCMP_SYS(clock_gettime), ALL },
	{ SCMP_SYS(clock_nanosleep), ALL },
	{ SCMP_SYS(sched_yield), ALL },
	{ SCMP_SYS(getcpu), ALL },
	{ SCMP_SYS(getpid), ALL },
	{ SCMP_SYS(gettid), ALL },
	{ SCMP_SYS(exit), ALL },
	{ SCMP_SYS(exit_group), ALL },
	{ SCMP_SYS(set_robust_list), ACTORS },
	{ SCMP_SYS(rseq), ALL },
	{ SCMP_SYS(getrandom), ALL },
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	/* the sanitizers' own */
	{ SCMP_SYS(sigaltstack), ALL },
	{ SCMP_SYS(sched_getaffinity), ALL },
	{ SCMP_SYS(readlink), ALL },
	{ SCMP_SYS(getppid), ALL },
#endif
	/* what is open already */
	{ SCMP_SYS(read), ALL },
	{ SCMP_SYS(write), ALL },
	{ SCMP_SYS(writev), ALL },
	{ SCMP_SYS(pread64), ALL },
	{ SCMP_SYS(lseek), ALL },
	{ SCMP_SYS(poll), ALL },
	{ SCMP_SYS(ppoll), ALL },
	{ SCMP_SYS(close), ALL },
	{ SCMP_SYS(fstat), ALL },
	/* glibc's fstat() */
	{ SCMP_SYS(getrusage), KIND(MAIN) },
	{ SCMP_SYS(newfstatat), SETTLERS },
	/* guest memory */
	{ SCMP_SYS(mremap), ALL },
	{ SCMP_SYS(fallocate), ACTORS },
	{ SCMP_SYS(mincore), ACTORS }, /* the library's resolve */
	/* children with a copy-on-write view */
	{ SCMP_SYS(wait4), ACTORS | KIND(MAIN) },
	{ SCMP_SYS(pipe2), ACTORS },
	{ SCMP_SYS(dup2), ACTORS },
	{ SCMP_SYS(close_range), ACTORS },
	/* waiting for foreign callers of madvise: what is every thread doing? Main does it when closing. */
	{ SCMP_SYS(getdents64), SETTLERS },
	{ SCMP_SYS(getuid), SETTLERS },
	{ SCMP_SYS(kcmp), SETTLERS }, /* has another process our address space? */
};

/* Requests of ioctl beside those that kvm_ioctls[] lists. */
static const struct {
	unsigned long request;
	unsigned int kinds;
} ioctls[] = {
	{ UMBRA_PAGEMAP_SCAN, ACTORS | KIND(MAIN) },
	{ UMBRA_PROCMAP_QUERY, ACTORS | KIND(MAIN) },
	{ UFFDIO_WAKE, ALL },
	{ UFFDIO_COPY, KIND(READER) },
	{ UFFDIO_ZEROPAGE, KIND(READER) },
	{ UFFDIO_CONTINUE, KIND(READER) },
	{ UFFDIO_WRITEPROTECT, KIND(READER) },
	{ UFFDIO_UNREGISTER, KIND(MAIN) },
	{ TCGETS, KIND(MAIN) }, /* stdio asks at its first write whether it is a terminal */
};

/* ---- refusal -----------------------------------------------------------------------------------
 */

/* Writes decimal or hexadecimal digits: nothing of stdio may be used in a signal handler. */
static size_t put_number(char *to, unsigned long n, unsigned int base)
{
	char digits[24];
	size_t len = 0, at = 0;

	do {
		digits[len++] = "0123456789abcdef"[n % base];
		n /= base;
	} while (n);
	while (len)
		to[at++] = digits[--len];
	return at;
}

static size_t put_text(char *to, const char *text)
{
	size_t len = strlen(text);

	memcpy(to, text, len);
	return len;
}

static void on_refused(int signal, siginfo_t *info, void *context)
{
	const ucontext_t *uc = context;
	char line[160];
	size_t n = put_text(line, "umbra: sandbox: the ");

	(void)signal;
	n += put_text(line + n, sandbox_kind_name(current_kind));
	n += put_text(line + n, " thread made system call ");
	n += put_number(line + n, (unsigned long)info->si_syscall, 10);
	if (info->si_syscall == __NR_ioctl) {
		n += put_text(line + n, " (ioctl 0x");
		n += put_number(line + n, (unsigned long)uc->uc_mcontext.gregs[REG_RSI], 16);
		n += put_text(line + n, ")");
	}
	n += put_text(line + n, ", which it may not; --sandbox log shows all such calls\n");
	if (write(STDERR_FILENO, line, n) < 0)
		_exit(VMM_EXIT_INTERNAL);
	_exit(VMM_EXIT_INTERNAL);
}

/* ---- the process -------------------------------------------------------------------------------
 */

static int drop_capabilities(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct none[2] = { { 0, 0, 0 }, { 0, 0, 0 } };

	/* pagemap was opened with them: its frame numbers go on showing, for the kernel asks the
	 * opener's. */
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++) {
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
			break; /* without CAP_SETPCAP: no_new_privs makes the bounding set moot */
	}
	return syscall(SYS_capset, &header, none) < 0 ? -errno : 0;
}

#if defined(__SANITIZE_ADDRESS__)
/* The leak check at exit opens files and traces threads: not from inside a sandbox. --sandbox off has it. */
static bool sandboxed;
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
	return sandboxed;
}
#endif

int sandbox_process(enum vm_sandbox mode, struct sandbox_effective *effective)
{
	struct sigaction action = { .sa_sigaction = on_refused, .sa_flags = SA_SIGINFO };
	int e;

	*effective = (struct sandbox_effective){ 0 };
	if (mode == VM_SANDBOX_OFF)
		return 0;
#if defined(__SANITIZE_ADDRESS__)
	sandboxed = true;
#endif
	if (sigaction(SIGSYS, &action, NULL) < 0)
		return -errno;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	effective->no_new_privs = true;
	e = drop_capabilities();
	if (e)
		return e;
	effective->no_capabilities = true;
	/* Landlock cannot only log: in log mode it is left out. */
	if (mode == VM_SANDBOX_ON) {
		effective->landlock = sandbox_landlock("/proc/self/task");
		if (effective->landlock < 0)
			return effective->landlock;
	}
	effective->seccomp = true;
	return 0;
}

/* ---- the thread --------------------------------------------------------------------------------
 */

static int allow_ioctls(scmp_filter_ctx ctx, enum sandbox_kind kind)
{
	const struct kvm_ioctls *k =
		&kvm_ioctls[kind == SANDBOX_VCPU ? KVM_THREAD_VCPU : KVM_THREAD_OTHER];
	const int nr = SCMP_SYS(ioctl);
	int e = 0;

	/* The kernel looks at 32 bits of the request. */
	for (size_t i = 0; i < k->n && !e; i++)
		e = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, nr, 1,
				     SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffff, k->nr[i]));
	for (size_t i = 0; i < sizeof(ioctls) / sizeof(ioctls[0]) && !e; i++) {
		if (ioctls[i].kinds & 1U << kind)
			e = seccomp_rule_add(
				ctx, SCMP_ACT_ALLOW, nr, 1,
				SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffff, ioctls[i].request));
	}
	return e;
}

static int allow_with_arguments(scmp_filter_ctx ctx, enum sandbox_kind kind)
{
	const scmp_datum_t self = (scmp_datum_t)getpid();
	const scmp_datum_t fork_flags = CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD;
	const uint32_t ok = SCMP_ACT_ALLOW;
	int e;

	/* No memory that can be executed. */
	e = seccomp_rule_add(ctx, ok, SCMP_SYS(mmap), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	if (!e)
		e = seccomp_rule_add(ctx, ok, SCMP_SYS(mprotect), 1,
				     SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	/* glibc's fstat() */
	if (!e)
		e = seccomp_rule_add(ctx, ok, SCMP_SYS(newfstatat), 1,
				     SCMP_A3(SCMP_CMP_EQ, AT_EMPTY_PATH, 0));
	/* Signals to our own threads only. */
	if (!e)
		e = seccomp_rule_add(ctx, ok, SCMP_SYS(tgkill), 1, SCMP_A0(SCMP_CMP_EQ, self, 0));
	if (!e && kind != SANDBOX_READER && kind != SANDBOX_MODULE && kind != SANDBOX_WITNESS)
		e = seccomp_rule_add(ctx, ok, SCMP_SYS(process_vm_writev), 1,
				     SCMP_A0(SCMP_CMP_EQ, self, 0));
	/* fork and nothing else of clone; kill ends such a child. */
	if (!e && 1U << kind & ACTORS)
		e = seccomp_rule_add(ctx, ok, SCMP_SYS(clone), 1,
				     SCMP_A0(SCMP_CMP_EQ, fork_flags, 0));
	if (!e && 1U << kind & (ACTORS | KIND(MAIN)))
		e = seccomp_rule_add(ctx, ok, SCMP_SYS(kill), 1, SCMP_A1(SCMP_CMP_EQ, SIGKILL, 0));
	if (!e && 1U << kind & SETTLERS)
		e = seccomp_rule_add(ctx, ok, SCMP_SYS(rt_tgsigqueueinfo), 1,
				     SCMP_A0(SCMP_CMP_EQ, self, 0));
	/* /proc/self/task, read only; Landlock holds the path. */
	if (!e && 1U << kind & SETTLERS)
		e = seccomp_rule_add(
			ctx, ok, SCMP_SYS(openat), 1,
			SCMP_A2(SCMP_CMP_MASKED_EQ, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY));
	return e;
}

int sandbox_thread(enum vm_sandbox mode, enum sandbox_kind kind)
{
	scmp_filter_ctx ctx;
	int e;

	current_kind = kind;
	if (mode == VM_SANDBOX_OFF)
		return 0;
	ctx = seccomp_init(mode == VM_SANDBOX_LOG ? SCMP_ACT_LOG : SCMP_ACT_TRAP);
	if (!ctx)
		return -ENOMEM;
	/* KVM_RUN is the hot one. */
	e = seccomp_syscall_priority(ctx, SCMP_SYS(ioctl), 255);
	if (!e)
		e = allow_ioctls(ctx, kind);
	if (!e)
		e = allow_with_arguments(ctx, kind);
	for (size_t i = 0; i < sizeof(allowed) / sizeof(allowed[0]) && !e; i++) {
		if (allowed[i].kinds & 1U << kind)
			e = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i].nr, 0);
	}
	if (!e)
		e = seccomp_load(ctx);
	seccomp_release(ctx);
	return e;
}
