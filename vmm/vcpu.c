/* SPDX-License-Identifier: BSD-2-Clause */
/* A virtual CPU: its life, its thread's run loop, and the way into and out of the guest. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vmm/exits.h>
#include <vmm/kvm.h>
#include <vmm/limits.h>
#include <vmm/shootdown.h>
#include <vmm/vcpu_private.h>
#include <vmm/vm_private.h>

#define SYNC_ALL  (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS)
#define MSR_STAR  0xc0000081
#define MSR_LSTAR 0xc0000082
#define CR4_UMIP  (1ULL << 11)
#define CR4_SMEP  (1ULL << 20)
#define CR4_SMAP  (1ULL << 21)

/* ---- life ---------------------------------------------------------------------------------- */

static void on_kick(int signal)
{
	(void)signal; /* interrupting KVM_RUN is all */
}

static int set_up_cpuid(struct vcpu *v, uint64_t *cr4)
{
	const struct kvm_cpuid_entry2 *leaf;
	struct kvm_cpuid2 *cpuid;
	int ret = kvm_cpuid(v->vm, &cpuid);

	if (ret)
		return ret;
	leaf = kvm_cpuid_find(cpuid, 7);
	if (leaf) {
		*cr4 |= leaf->ebx & 1U << 7 ? CR4_SMEP : 0;
		*cr4 |= leaf->ebx & 1U << 20 ? CR4_SMAP : 0;
		*cr4 |= leaf->ecx & 1U << 2 ? CR4_UMIP : 0;
	}
	return ioctl(v->fd, KVM_SET_CPUID2, cpuid) ? -errno : 0;
}

static int set_up_msrs(struct vcpu *v)
{
	/* `syscall` of ring 3 then ends in a supervisor page, on KVMs that let it happen at all. */
	const struct kvm_msr_entry entries[] = {
		{ .index = MSR_LSTAR, .data = monitor_lstar() },
		{ .index = MSR_STAR, .data = 0 },
	};
	struct kvm_msrs *msrs = calloc(1, sizeof(*msrs) + sizeof(entries));
	int ret;

	if (!msrs)
		return -ENOMEM;
	msrs->nmsrs = 2;
	memcpy(msrs->entries, entries, sizeof(entries));
	ret = ioctl(v->fd, KVM_SET_MSRS, msrs);
	ret = ret < 0 ? -errno : ret;
	free(msrs);
	return ret < 0 ? ret : ret == 2 ? 0 : -EINVAL;
}

/* In ring 0 at an iretq to the guest's entry point. */
static int set_up_registers(struct vcpu *v, uint64_t cr4)
{
	struct monitor_frame *frame = monitor_frame(v->vm, v->index);
	struct kvm_regs regs = {
		.rdi = v->vm->boot_info.v,
		.rsi = v->index,
	};
	struct kvm_sregs sregs;

	if (ioctl(v->fd, KVM_GET_SREGS, &sregs))
		return -errno;
	monitor_init_sregs(v->index, umbra_root_phys(v->vm->root), cr4, &sregs);
	if (ioctl(v->fd, KVM_SET_SREGS, &sregs))
		return -errno;
	*frame = (struct monitor_frame){
		.rip = v->vm->entry.v,
		.cs = MONITOR_CS3,
		.rflags = 0x202, /* the real IF; the guest's own starts off, see emulate.c */
		.ss = MONITOR_SS3,
	};
	monitor_aim_resume(v->index, &regs);
	if (ioctl(v->fd, KVM_SET_REGS, &regs))
		return -errno;
	v->run->kvm_valid_regs = SYNC_ALL; /* 3 % of an exit, against 4.6 us for each ioctl */
	v->run->s.regs.regs = regs;
	v->run->s.regs.sregs = sregs;
	v->place = MONITOR_AT_STUB;
	return 0;
}

int vcpu_create(struct vm *vm, unsigned int index, struct vcpu **vcpu, struct vm_error *err)
{
	struct sigaction action = { .sa_handler = on_kick };
	const char *what = "out of memory";
	struct vcpu *v = calloc(1, sizeof(*v));
	uint64_t cr4 = 0;
	int bytes, ret;

	if (!v)
		return vm_fail_host(err, ENOMEM, "vCPU %u", index);
	v->vm = vm;
	v->index = index;
	emulate_init(&v->emulate);
	ret = sigaction(VCPU_KICK_SIGNAL, &action, NULL) ? -errno : 0;
	what = "KVM_CREATE_VCPU";
	v->fd = ret ? -1 : ioctl(vm->vm_fd, KVM_CREATE_VCPU, index);
	if (v->fd < 0) {
		ret = ret ? ret : -errno;
		goto fail;
	}
	what = "mapping its run page";
	bytes = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	v->run_bytes = bytes > 0 ? (size_t)bytes : 0;
	v->run = mmap(NULL, v->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED) {
		v->run = NULL;
		ret = -errno;
		goto fail;
	}
	madvise(v->run, v->run_bytes, MADV_DONTFORK);
	what = "KVM_SET_CPUID2";
	ret = set_up_cpuid(v, &cr4);
	if (ret)
		goto fail;
	what = "KVM_SET_MSRS";
	ret = set_up_msrs(v);
	if (ret)
		goto fail;
	what = "KVM_SET_SREGS";
	ret = set_up_registers(v, cr4);
	if (ret)
		goto fail;
	vm->vcpus[index] = v;
	*vcpu = v;
	return 0;
fail:
	vcpu_destroy(v);
	if (limits_error(-ret))
		return vm_fail_host(err, -ret, "vCPU %u: %s", index, what);
	return vm_fail(err, VMM_EXIT_INTERNAL, "vCPU %u: %s: %s", index, what, strerror(-ret));
}

void vcpu_destroy(struct vcpu *v)
{
	if (!v)
		return;
	if (v->vm->vcpus[v->index] == v)
		v->vm->vcpus[v->index] = NULL;
	if (v->run)
		munmap(v->run, v->run_bytes);
	if (v->fd >= 0)
		close(v->fd);
	free(v);
}

unsigned int vcpu_index(const struct vcpu *v)
{
	return v->index;
}

void vcpu_stats(const struct vcpu *v, struct vcpu_stats *stats)
{
#define COPY(name) stats->name = __atomic_load_n(&v->stats.name, __ATOMIC_RELAXED);
	VCPU_STATS(COPY)
#undef COPY
}

/* ---- kicks --------------------------------------------------------------------------------- */

static void set_immediate_exit(struct vcpu *v, uint8_t value)
{
	__atomic_store_n(&v->run->immediate_exit, value, __ATOMIC_SEQ_CST);
}

void vcpu_kick(struct vcpu *v)
{
	pid_t tid = atomic_load(&v->tid);

	set_immediate_exit(v, 1);
	if (tid)
		syscall(SYS_tgkill, getpid(), tid, VCPU_KICK_SIGNAL);
}

void vcpu_kick_all(struct vm *vm)
{
	for (unsigned int i = 0; i < VM_VCPUS_MAX; i++)
		if (vm->vcpus[i])
			vcpu_kick(vm->vcpus[i]);
}

/* ---- in and out ---------------------------------------------------------------------------- */

/*
 * Turns the way back to the guest into a flush and then the way back. A command that was
 * interrupted is begun anew: guest code has not run since it was begun, so what was saved then is
 * still the guest.
 */
static void aim_flush(struct vcpu *v)
{
	struct monitor_frame *frame = monitor_frame(v->vm, v->index);
	struct kvm_regs *regs = &v->run->s.regs.regs;
	struct kvm_sregs *sregs = &v->run->s.regs.sregs;

	if (v->flushing) {
		VCPU_COUNT(v, restarts, 1);
	} else {
		v->saved = *regs;
		if (v->place == MONITOR_IN_GUEST) {
			*frame = (struct monitor_frame){
				.rip = regs->rip,
				.cs = sregs->cs.selector,
				.rflags = regs->rflags,
				.rsp = regs->rsp,
				.ss = sregs->ss.selector,
			};
			monitor_aim_ring0(sregs);
			v->run->kvm_dirty_regs |= KVM_SYNC_X86_SREGS;
		}
		v->saved_frame = *frame;
		v->flushing = true;
	}
	*frame = v->saved_frame;
	monitor_aim_flush(v->vm, v->index, &v->flush, &v->saved, regs);
	v->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
	v->place = MONITOR_IN_FLUSH;
	VCPU_COUNT(v, flushes, 1);
	VCPU_COUNT(v, flushed_entries, v->flush.tables + v->flush.entries);
}

/*
 * Ready to call KVM_RUN, IN or rightly OUT; see shootdown.c for the order of things.
 * Returns: false when the machine is stopping.
 */
static bool enter(struct vcpu *v)
{
	for (;;) {
		uint64_t covers;
		bool needed;

		set_immediate_exit(v, 0);
		if (v->place == MONITOR_BEFORE_OUT) {
			/* Only the stub's out comes next, no guest code: stay OUT, flush after it.
			 */
			VCPU_COUNT(v, deferred, 1);
			return !vm_stopping(v->vm);
		}
		covers = shootdown_collect(v->vm, v->index, &v->flush, &needed);
		if (needed)
			aim_flush(v);
		if (needed && v->flush.leave)
			return !vm_stopping(v->vm);
		if (!shootdown_enter(v->vm, v->index, covers))
			continue;
		if (!vm_stopping(v->vm))
			return true;
		shootdown_exit(v->vm, v->index);
		return false;
	}
}

/* Where the CPU is, after an exit that the monitor did not ask for. */
static void find_place(struct vcpu *v)
{
	const struct kvm_vcpu_events *events = &v->run->s.regs.events;
	enum monitor_place place = monitor_place(&v->run->s.regs.regs, &v->run->s.regs.sregs);

	if (place != MONITOR_IN_FLUSH)
		v->flushing = false; /* its iretq is behind us */
	/*
	 * An exception on its way into ring 3 code: registers set now would lose it or be lost. It
	 * ends at a stub's out.
	 */
	if (place == MONITOR_IN_GUEST &&
	    (events->exception.injected || events->exception.pending || events->interrupt.injected))
		place = MONITOR_BEFORE_OUT;
	v->place = place;
	if (place == MONITOR_LOST)
		vcpu_bug(v, "lost at ring 0 address %#llx",
			 (unsigned long long)v->run->s.regs.regs.rip);
}

static void handle_io(struct vcpu *v)
{
	unsigned int port = v->run->io.port;

	if (v->run->io.direction != KVM_EXIT_IO_OUT || v->run->s.regs.sregs.cs.selector & 3) {
		vcpu_bug(v, "port %#x accessed around the monitor", port);
		return;
	}
	if (port == MONITOR_PORT_ROUND && v->flushing) {
		v->place = MONITOR_IN_FLUSH; /* the next part starts from the saved registers */
		return;
	}
	v->place = MONITOR_AT_STUB;
	v->flushing = false;
	if (port < MONITOR_PORT_VECTOR || port >= MONITOR_PORT_VECTOR + 32) {
		vcpu_bug(v, "the monitor left by port %#x", port);
		return;
	}
	exits_vector(v, port - MONITOR_PORT_VECTOR);
	/*
	 * Straight to the iretq: the stub would drop the error code first, and one interpreted instruction costs more
	 * than to hand in the registers (0.8 us of a fault's 39: bench/fault1).
	 */
	monitor_aim_resume(v->index, &v->run->s.regs.regs);
	v->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
}

static void handle_error(struct vcpu *v, int error)
{
	if (error == EINTR || error == EAGAIN) {
		VCPU_COUNT(v, interrupted, 1);
		find_place(v);
		return;
	}
	if (error == EFAULT) {
		/*
		 * The host has nothing, or nothing we may use, behind a present leaf: somebody
		 * changed it and has not told us yet. Without leaves our own fault path finds out,
		 * with the address.
		 */
		VCPU_COUNT(v, host_faults, 1);
		find_place(v);
		if (++v->host_faults_in_a_row > 1000) {
			vcpu_bug(v, "KVM_RUN: %s, again and again", strerror(error));
			return;
		}
		umbra_zap_all(v->vm->mmu);
		return;
	}
	vcpu_bug(v, "KVM_RUN: %s", strerror(error));
}

static void handle_exit(struct vcpu *v)
{
	const struct kvm_run *run = v->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		v->host_faults_in_a_row = 0;
		handle_io(v);
		return;
	case KVM_EXIT_INTR: find_place(v); return;
	case KVM_EXIT_MMIO:
		vcpu_bug(v,
			 "KVM knows no memory at gpa %#llx (%s of %u bytes), yet a leaf led there",
			 (unsigned long long)run->mmio.phys_addr,
			 run->mmio.is_write ? "write" : "read", run->mmio.len);
		return;
	case KVM_EXIT_INTERNAL_ERROR:
		vcpu_bug(v, "KVM internal error, suberror %u, at rip %#llx cs %#x",
			 run->internal.suberror, (unsigned long long)run->s.regs.regs.rip,
			 run->s.regs.sregs.cs.selector);
		return;
	case KVM_EXIT_FAIL_ENTRY:
		vcpu_bug(v, "KVM cannot enter the guest, hardware reason %#llx",
			 (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		return;
	case KVM_EXIT_SHUTDOWN: vcpu_bug(v, "triple fault in the monitor"); return;
	default: vcpu_bug(v, "unexpected KVM exit %u", run->exit_reason);
	}
}

int vcpu_thread_run(struct vcpu *v)
{
	atomic_store(&v->tid, (pid_t)syscall(SYS_gettid));
	while (!atomic_load(&v->halted) && enter(v)) {
		int ret = ioctl(v->fd, KVM_RUN, 0);
		int error = errno;

		shootdown_exit(v->vm, v->index);
		VCPU_COUNT(v, exits, 1);
		if (ret < 0)
			handle_error(v, error);
		else
			handle_exit(v);
	}
	if (!v->last.valid || !v->last.has_page)
		vcpu_snapshot(v);
	atomic_store(&v->tid, 0);
	return 0;
}
