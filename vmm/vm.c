/* SPDX-License-Identifier: BSD-2-Clause */
/* The machine: built in order, run by its threads, stopped by whoever comes first, taken down in
 * reverse. */
#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>
#include <vmm/actions.h>
#include <vmm/boot.h>
#include <vmm/chaos.h>
#include <vmm/devices.h>
#include <vmm/hostcall.h>
#include <vmm/kvm.h>
#include <vmm/limits.h>
#include <vmm/memory.h>
#include <vmm/monitor.h>
#include <vmm/report.h>
#include <vmm/resolve.h>
#include <vmm/sandbox.h>
#include <vmm/shootdown.h>
#include <vmm/sources.h>
#include <vmm/vcpu.h>
#include <vmm/vm_private.h>
#include <vmm/window.h>
#include <vmm/witness.h>

/* ---- saying things -----------------------------------------------------------------------------
 */

#define WARNINGS_MAX 100U
#define STACK_BYTES  (1UL << 20)

void vm_log(struct vm *vm, enum vm_log level, const char *fmt, ...)
{
	char line[1200];
	va_list ap;
	int n, m;

	if (level > vm->config.log)
		return;
	/* most warnings are of what a guest did, and it may do that for ever */
	if (level == VM_LOG_WARN) {
		const unsigned int before = atomic_fetch_add(&vm->warnings, 1);

		if (before > WARNINGS_MAX)
			return;
		if (before == WARNINGS_MAX)
			fmt = "more warnings than that are not shown";
	}
	n = snprintf(line, sizeof(line), "umbra: ");
	va_start(ap, fmt);
	m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	va_end(ap);
	n = m < 0 ? n : n + m;
	if (n > (int)sizeof(line) - 2)
		n = (int)sizeof(line) - 2;
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return; /* nowhere left to say so */
}

int vm_write(int fd, const char *p, size_t len)
{
	while (len) {
		const ssize_t n = write(fd, p, len);
		struct pollfd wait = { .fd = fd, .events = POLLOUT };

		if (n >= 0) {
			p += n;
			len -= (size_t)n;
		} else if (errno == EAGAIN) {
			poll(&wait, 1, 100);
		} else if (errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

int vm_fail(struct vm_error *err, enum vmm_exit code, const char *fmt, ...)
{
	va_list ap;

	err->code = code;
	va_start(ap, fmt);
	vsnprintf(err->text, sizeof(err->text), fmt, ap);
	va_end(ap);
	/* Arguments and names of files come from anywhere: they do not command the terminal. */
	for (char *p = err->text; *p; p++) {
		if ((unsigned char)*p < ' ' && *p != '\n')
			*p = '?';
	}
	return (int)code;
}

/* ---- stopping ----------------------------------------------------------------------------------
 */

bool vm_stopping(const struct vm *vm)
{
	return atomic_load(&vm->stop_state) != 0;
}

void vm_stop(struct vm *vm, enum vmm_exit code, const char *why_fmt, ...)
{
	const uint64_t one = 1;
	bool first;

	pthread_mutex_lock(&vm->stop_lock);
	first = !vm_stopping(vm);
	if (first) {
		va_list ap;

		vm->stop_code = code;
		va_start(ap, why_fmt);
		vsnprintf(vm->stop_why, sizeof(vm->stop_why), why_fmt, ap);
		va_end(ap);
		atomic_store(&vm->stop_state, 1);
	}
	pthread_mutex_unlock(&vm->stop_lock);
	if (!first)
		return;
	if (write(vm->stop_event, &one, sizeof(one)) < 0)
		vm_log(vm, VM_LOG_ERROR, "waking the main thread: %s", strerror(errno));
	vcpu_kick_all(vm);
}

/* ---- building ----------------------------------------------------------------------------------
 */

/* The library's objects that everything else stands on. */
static int create_library(struct vm *vm, struct vm_error *err)
{
	int e = umbra_chain_create(&vm->chain, &umbra_os_posix);

	if (e)
		return vm_fail_host(err, -e, "notifier chain");
	e = umbra_hostmap_open(&vm->hostmap, 0);
	if (e && limits_error(-e))
		return vm_fail_host(err, -e, "/proc/self/pagemap");
	if (e)
		return vm_fail(err, VMM_EXIT_CANNOT_RUN,
			       "/proc/self/pagemap: %s; vmm needs /proc mounted, and a kernel with "
			       "CONFIG_PROC_PAGE_MONITOR",
			       strerror(-e));
	e = umbra_own_create(&vm->own, vm->chain, vm->hostmap);
	if (e)
		return vm_fail_host(err, -e, "own calls");
	return 0;
}

static int create_mmu(struct vm *vm, struct vm_error *err)
{
	struct umbra_mmu_config config = {
		.os = &umbra_os_posix,
		.ops = &vm_mmu_ops,
		.ctx = vm,
		.flags = UMBRA_MMU_RECORD_PFN,
	};
	int e;

	window_configure(vm, &config);
	e = umbra_mmu_create(&vm->mmu, &config);
	if (!e)
		e = umbra_chain_register(vm->chain, umbra_mmu_notifier(vm->mmu));
	if (e)
		return vm_fail_host(err, -e, "shadow MMU");
	e = umbra_root_create(vm->mmu, UMBRA_ROOT_DIRECT, &vm->root);
	if (e)
		return vm_fail_host(err, -e, "shadow root");
	return 0;
}

static int create_vcpus(struct vm *vm, struct vm_error *err)
{
	int e = 0;

	for (unsigned int i = 0; i < vm->config.vcpus && !e; i++)
		e = vcpu_create(vm, i, &vm->vcpus[i], err);
	return e;
}

static void stop_signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGHUP);
}

/* These are read by the main thread only; every later thread inherits that. */
static int create_signals(struct vm *vm, struct vm_error *err)
{
	sigset_t set;

	stop_signals(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	vm->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	vm->stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vm->signal_fd < 0 || vm->stop_event < 0)
		return vm_fail_host(err, errno, "signalfd, eventfd");
	return 0;
}

int vm_create(struct vm **out, const struct vm_config *config, struct vm_error *err)
{
	/* In this order: each needs what stands above it. */
	static int (*const steps[])(struct vm *, struct vm_error *) = {
		limits_check,   create_signals, kvm_open,       create_library,   memory_create,
		window_create,  create_mmu,     monitor_create, shootdown_create, report_create,
		sources_create, actions_create, devices_create, hostcalls_create, chaos_create,
		memory_publish, witness_create, sources_watch,  boot_load,        create_vcpus,
	};
	struct vm *vm = calloc(1, sizeof(*vm));
	struct timespec now;
	int e = 0;

	*out = vm;
	if (!vm)
		return vm_fail_host(err, ENOMEM, "the machine");
	vm->config = *config;
	vm->kvm_fd = vm->vm_fd = vm->ram_fd = vm->signal_fd = vm->stop_event = -1;
	pthread_mutex_init(&vm->stop_lock, NULL);
	clock_gettime(CLOCK_MONOTONIC, &now);
	vm->start_ns = (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]) && !e; i++)
		e = steps[i](vm, err);
	return e;
}

void vm_destroy(struct vm *vm)
{
	if (!vm)
		return;
	for (unsigned int i = 0; i < VM_VCPUS_MAX; i++) {
		if (vm->vcpus[i])
			vcpu_destroy(vm->vcpus[i]);
	}
	hostcalls_destroy(vm);
	chaos_destroy(vm);
	sources_destroy(vm);
	witness_destroy(vm);
	if (vm->mmu)
		umbra_chain_unregister(vm->chain, umbra_mmu_notifier(vm->mmu));
	report_destroy(vm);
	if (vm->root)
		umbra_root_destroy(vm->root);
	if (vm->mmu)
		umbra_mmu_destroy(vm->mmu);
	shootdown_destroy(vm);
	window_destroy(vm);
	kvm_close(vm);
	actions_destroy(vm);
	devices_destroy(vm);
	if (vm->own)
		umbra_own_destroy(vm->own);
	if (vm->hostmap)
		umbra_hostmap_close(vm->hostmap);
	memory_destroy(vm);
	if (vm->chain)
		umbra_chain_destroy(vm->chain);
	if (vm->signal_fd >= 0)
		close(vm->signal_fd);
	if (vm->stop_event >= 0)
		close(vm->stop_event);
	pthread_mutex_destroy(&vm->stop_lock);
	free(vm);
}

/* ---- running -----------------------------------------------------------------------------------
 */

struct thread {
	struct vm *vm;
	enum sandbox_kind kind;
	unsigned int index;            /* of a vCPU */
	_Atomic unsigned int *running; /* vCPUs that have not ended */
	sem_t *ready; /* of the reader: posted when it will allocate nothing any more */
	pthread_t id;
	bool started;
};

static void no_sandbox(struct vm *vm, const char *whose, int error)
{
	char advice[LIMITS_ADVICE_MAX];

	limits_advice(error, advice);
	vm_stop(vm, limits_error(error) ? VMM_EXIT_CANNOT_RUN : VMM_EXIT_INTERNAL,
		"sandbox of the %s: %s%s; --sandbox off runs without", whose, strerror(error),
		advice);
}

static void *thread_main(void *arg)
{
	struct thread *t = arg;
	struct vm *vm = t->vm;
	int e = sandbox_thread(vm->config.sandbox, t->kind);

	if (t->ready)
		sem_post(t->ready);
	if (e) {
		no_sandbox(vm, sandbox_kind_name(t->kind), -e);
		return NULL;
	}
	switch (t->kind) {
	case SANDBOX_VCPU:
		e = vcpu_thread_run(vm->vcpus[t->index]);
		if (e)
			vm_stop(vm, VMM_EXIT_INTERNAL, "vCPU %u: %s", t->index, strerror(-e));
		if (atomic_fetch_sub(t->running, 1) == 1 && !vm_stopping(vm))
			vm_stop(vm, VMM_EXIT_GUEST_FAIL,
				"every vCPU has halted and the guest reported no result");
		break;
	case SANDBOX_READER: sources_read_uffd(vm); break;
	case SANDBOX_MODULE: sources_read_module(vm); break;
	case SANDBOX_WITNESS: witness_run(vm); break;
	case SANDBOX_CHAOS: chaos_run(vm); break;
	case SANDBOX_MAIN:
	case SANDBOX_KIND_NR: break;
	}
	return NULL;
}

static void thread_start(struct thread *t)
{
	char advice[LIMITS_ADVICE_MAX];
	pthread_attr_t attr;
	int e;

	if (vm_stopping(t->vm))
		return;
	pthread_attr_init(&attr);
	/* a known size: by default it is what ulimit -s says, which may be too little or 64G */
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	e = pthread_create(&t->id, &attr, thread_main, t);
	pthread_attr_destroy(&attr);
	if (e)
		vm_stop(t->vm, VMM_EXIT_CANNOT_RUN, "no thread for the %s: %s%s",
			sandbox_kind_name(t->kind), strerror(e), limits_advice(e, advice));
	t->started = !e;
}

/*
 * fork() holds the locks of malloc until the reader has read of it. Building a filter allocates: so before anybody may
 * fork, the reader must have its own.
 */
static void start_reader(struct thread *t)
{
	sem_t ready;

	sem_init(&ready, 0, 0);
	t->ready = &ready;
	thread_start(t);
	while (t->started && sem_wait(&ready) < 0 && errno == EINTR)
		;
	sem_destroy(&ready);
}

/* A vCPU's thread may have gone to sleep in a system call just after a kick: kick until it is gone.
 */
static void thread_join(struct thread *t)
{
	struct timespec until;

	if (!t->started)
		return;
	do {
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += 50 * 1000 * 1000;
		if (until.tv_nsec >= 1000000000L) {
			until.tv_nsec -= 1000000000L;
			until.tv_sec++;
		}
		if (t->kind == SANDBOX_VCPU)
			vcpu_kick_all(t->vm);
	} while (pthread_clockjoin_np(t->id, NULL, CLOCK_MONOTONIC, &until) == ETIMEDOUT);
	t->started = false;
}

static void wait_for_stop(struct vm *vm)
{
	struct pollfd p[2] = { { .fd = vm->signal_fd, .events = POLLIN },
			       { .fd = vm->stop_event, .events = POLLIN } };
	struct signalfd_siginfo info;

	while (!vm_stopping(vm)) {
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			vm_stop(vm, VMM_EXIT_INTERNAL, "poll: %s", strerror(errno));
		if (read(vm->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
			vm_stop(vm, VMM_EXIT_INTERRUPTED, "interrupted by signal %u",
				info.ssi_signo);
	}
}

/* The machine stops, whatever comes. Who interrupts again, because something is stuck, means it: the default applies. */
static void let_signals_end_us(struct vm *vm)
{
	struct signalfd_siginfo info;
	sigset_t set;

	while (read(vm->signal_fd, &info, sizeof(info)) > 0)
		;
	stop_signals(&set);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void log_sandbox(struct vm *vm, const struct sandbox_effective *s)
{
	vm_log(vm, VM_LOG_INFO,
	       "sandbox: seccomp %s, no new privileges %s, capabilities %s, Landlock %s%d",
	       s->seccomp ? "on" : "off", s->no_new_privs ? "on" : "off",
	       s->no_capabilities ? "dropped" : "kept", s->landlock ? "ABI " : "", s->landlock);
}

enum vmm_exit vm_run(struct vm *vm)
{
	_Atomic unsigned int running = vm->config.vcpus;
	struct thread vcpus[VM_VCPUS_MAX], reader = { vm, SANDBOX_READER, 0, NULL, NULL, 0, false };
	struct thread witness = { vm, SANDBOX_WITNESS, 0, NULL, NULL, 0, false };
	struct thread module = { vm, SANDBOX_MODULE, 0, NULL, NULL, 0, false };
	struct thread chaos = { vm, SANDBOX_CHAOS, 0, NULL, NULL, 0, false };
	struct sandbox_effective effective = { 0 };
	int e = sandbox_process(vm->config.sandbox, &effective);

	if (e)
		no_sandbox(vm, "process", -e);
	log_sandbox(vm, &effective);
	if (vm->uffd)
		start_reader(&reader);
	if (vm->module)
		start_reader(&module);
	if (vm->witness)
		start_reader(&witness);
	for (unsigned int i = 0; i < vm->config.vcpus; i++) {
		vcpus[i] = (struct thread){ vm, SANDBOX_VCPU, i, &running, NULL, 0, false };
		thread_start(&vcpus[i]);
	}
	if (vm->chaos)
		thread_start(&chaos);
	e = sandbox_thread(vm->config.sandbox, SANDBOX_MAIN);
	if (e)
		no_sandbox(vm, sandbox_kind_name(SANDBOX_MAIN), -e);
	wait_for_stop(vm);
	let_signals_end_us(vm);
	chaos_stop(vm);
	hostcalls_stop(vm);
	for (unsigned int i = 0; i < vm->config.vcpus; i++)
		thread_join(&vcpus[i]);
	thread_join(&chaos);
	devices_flush(vm);
	/* The reader goes last: without it, whoever changes registered memory would wait for ever.
	 */
	if (vm->uffd && reader.started)
		umbra_uffd_drain(vm->uffd);
	if (action_check(vm) && vm->stop_code != VMM_EXIT_INTERNAL) {
		vm->stop_code = VMM_EXIT_INTERNAL;
		snprintf(vm->stop_why, sizeof(vm->stop_why), "the tables were wrong at the end");
	}
	witness_stop(vm);
	thread_join(&witness);
	report_collect(vm);
	sources_stop(vm);
	thread_join(&module);
	thread_join(&reader);
	e = devices_output_error(vm);
	if (e && vm->stop_code == VMM_EXIT_OK) {
		vm->stop_code = VMM_EXIT_INTERNAL;
		snprintf(vm->stop_why, sizeof(vm->stop_why),
			 "standard output: %s: what the guest said is lost; it reported success",
			 strerror(-e));
	}
	if (vm->stop_code != VMM_EXIT_OK)
		vm_log(vm, VM_LOG_ERROR, "%s", vm->stop_why);
	else
		vm_log(vm, VM_LOG_INFO, "%s", vm->stop_why);
	return vm->stop_code;
}

int vm_report(struct vm *vm)
{
	const bool json = vm->config.stats == VM_STATS_JSON;
	size_t len = 0;
	char *text = NULL;
	FILE *out;
	int e;

	if (vm->config.stats == VM_STATS_NONE)
		return 0;
	/* Into memory first: a report is written whole, and where it fails is seen. */
	out = open_memstream(&text, &len);
	e = out ? 0 : -ENOMEM;
	if (!e)
		e = json ? report_print_json(vm, out) : report_print_text(vm, out);
	if (out && fclose(out) && !e)
		e = -ENOMEM;
	if (!e)
		e = vm_write(json ? STDOUT_FILENO : STDERR_FILENO, text, len);
	free(text);
	if (e)
		vm_log(vm, VM_LOG_ERROR,
		       "--stats%s: the report cannot be written to %s: %s; the run itself: %s",
		       json ? "=json" : "", json ? "standard output" : "standard error",
		       strerror(-e), vm->stop_why);
	return e;
}
