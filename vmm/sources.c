/* SPDX-License-Identifier: BSD-2-Clause */
/* Opening, reading and asking the sources of invalidations that are not vmm's own calls. */
#include <abi/notifier.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vmm/hostcall.h>
#include <vmm/limits.h>
#include <vmm/sources.h>
#include <vmm/vm_private.h>

#define AGE_MS      1000
#define AUDIT_TRIES 50

/* ---- userfaultfd --------------------------------------------------------------------------------- */

static const char *tried_text(int result)
{
	return result == 1 ? "not tried" : result ? strerror(-result) : "worked";
}

static int create_uffd(struct vm *vm, struct vm_error *err)
{
	const struct umbra_uffd_config config = { .fd = vm->config.uffd_fd, .own = vm->own };
	struct umbra_uffd_tried tried = { 1, 1, 1 };
	int e = umbra_uffd_open(&vm->uffd, vm->chain, &config, &tried);

	if (!e && config.fd >= 0 && tried.passed_fd) {
		umbra_uffd_close(vm->uffd);
		vm->uffd = NULL;
		return vm_fail(
			err, VMM_EXIT_CANNOT_RUN,
			"--uffd-fd %d: %s; give a descriptor that userfaultfd(2), or USERFAULTFD_IOC_NEW on "
			"/dev/userfaultfd, has returned and nobody has used, or leave the option out",
			config.fd, strerror(-tried.passed_fd));
	}
	if (!e)
		return 0;
	if (limits_error(-e))
		return vm_fail_host(err, -e, "userfaultfd");
	return vm_fail(
		err, VMM_EXIT_CANNOT_RUN,
		"no userfaultfd: %s\n"
		"  --uffd-fd:          %s\n"
		"  /dev/userfaultfd:   %s\n"
		"  userfaultfd(2):     %s\n"
		"one of these, as root, mends it:\n"
		"  chown %u /dev/userfaultfd     (Linux 6.1 or later)\n"
		"  sysctl vm.unprivileged_userfaultfd=1\n"
		"or run with --source own: then changes that other code of this process makes to guest "
		"memory are not seen",
		strerror(-e), tried_text(tried.passed_fd), tried_text(tried.dev),
		tried_text(tried.syscall), getuid());
}

int sources_create(struct vm *vm, struct vm_error *err)
{
	if (vm->config.events_uffd)
		return create_uffd(vm, err);
	if (!vm->config.events_module)
		vm_log(vm, VM_LOG_INFO,
		       "--source own: changes by code that is not vmm's own are not seen");
	return 0;
}

/* ---- the kernel module --------------------------------------------------------------------------- */

/* What the CPU marked as accessed is young for the kernel's reclaim, too. */
static void age(void *ctx)
{
	hostcall_age(ctx);
}

/* One that was attached watches whoever attached it: that was not this process. */
static int check_passed(int fd, struct vm_error *err)
{
	void *state = mmap(NULL, UMBRA_NTF_PAGE, PROT_READ, MAP_SHARED, fd,
			   (off_t)UMBRA_NTF_OFFSET_STATE);
	const int e = state == MAP_FAILED ? errno : 0;

	if (e == ENOTCONN)
		return 0;
	if (!e)
		munmap(state, UMBRA_NTF_PAGE);
	return vm_fail(err, VMM_EXIT_CANNOT_RUN,
		       "--module-fd %d: %s; give a descriptor of " UMBRA_NTF_DEVICE
		       " that nobody has attached, or leave the option out",
		       fd, e ? strerror(e) : "attached already, to another process");
}

static int no_module(struct vm *vm, int error, struct vm_error *err)
{
	const char *fix = "; leave module out of --source to run without";

	switch (error) {
	case ENOENT:
	case ENXIO:
	case ENODEV:
		fix = ": the kernel module is not loaded. As root: modprobe umbra (to build it: make kmod), "
		      "or leave module out of --source: then what the kernel does by itself to guest "
		      "memory is not seen";
		break;
	case EACCES:
	case EPERM:
		fix = ", which is root's alone without kmod/99-umbra.rules; as root: chgrp kvm " UMBRA_NTF_DEVICE
		      " && chmod 660 " UMBRA_NTF_DEVICE ", or pass it open by --module-fd";
		break;
	case EPROTO:
	case E2BIG:
	case EINVAL:
	case ENOTTY:
		fix = ": the module that is loaded is of another version than this vmm; load the one built "
		      "with it";
		break;
	case ENOSPC:
		fix = ": past a limit of the module; see max_bitmap_kib, max_ranges and max_ring_order "
		      "in /sys/module/umbra/parameters";
		break;
	case EMFILE:
		fix = ": too many subscriptions, or too many open files; see max_subscriptions in "
		      "/sys/module/umbra/parameters, and ulimit -n";
		break;
	default:
		if (limits_error(error))
			return vm_fail_host(err, error, UMBRA_NTF_DEVICE);
	}
	(void)vm;
	return vm_fail(err, VMM_EXIT_CANNOT_RUN, UMBRA_NTF_DEVICE ": %s%s", strerror(error), fix);
}

int sources_watch(struct vm *vm, struct vm_error *err)
{
	const struct hva_range ram = { vm->ram, { vm->ram.v + vm->config.memory } };
	const struct umbra_module_config config = {
		.fd = vm->config.module_fd,
		.ranges = &ram,
		.nr = 1,
		.age_ms = AGE_MS,
		.age = age,
		.ctx = vm,
	};
	int e = 0;

	if (!vm->config.events_module)
		return 0;
	if (config.fd >= 0)
		e = check_passed(config.fd, err);
	if (e)
		return e;
	e = umbra_module_open(&vm->module, vm->chain, &config);
	return e ? no_module(vm, -e, err) : 0;
}

/* ---- all of them --------------------------------------------------------------------------------- */

void sources_destroy(struct vm *vm)
{
	if (vm->module)
		umbra_module_close(vm->module);
	if (vm->uffd)
		umbra_uffd_close(vm->uffd);
	vm->module = NULL;
	vm->uffd = NULL;
}

void sources_read_uffd(struct vm *vm)
{
	const int e = umbra_uffd_run(vm->uffd);

	if (e)
		vm_stop(vm, VMM_EXIT_INTERNAL, "reading userfaultfd: %s", strerror(-e));
}

void sources_read_module(struct vm *vm)
{
	const int e = umbra_module_run(vm->module);

	if (e)
		vm_stop(vm, VMM_EXIT_INTERNAL, "reading " UMBRA_NTF_DEVICE ": %s", strerror(-e));
}

void sources_stop(struct vm *vm)
{
	if (vm->uffd)
		umbra_uffd_stop(vm->uffd);
	if (vm->module)
		umbra_module_stop(vm->module);
}

const char *const sources_doers[SOURCES_DOER_NR] = {
	[SOURCES_THREAD] = "a thread of this process",
	[SOURCES_PROCESS] = "another process",
	[SOURCES_RECLAIM] = "reclaim for whoever wanted memory",
	[SOURCES_KTHREAD] = "a kernel thread",
	[SOURCES_KTHREAD_RECLAIM] = "reclaim by a kernel thread",
};

enum sources_doer sources_doer(int32_t who, uint32_t flags)
{
	if (flags & UMBRA_RANGE_KTHREAD)
		return flags & UMBRA_RANGE_RECLAIM ? SOURCES_KTHREAD_RECLAIM : SOURCES_KTHREAD;
	if (flags & UMBRA_RANGE_RECLAIM)
		return SOURCES_RECLAIM;
	return who > 0 ? SOURCES_THREAD : SOURCES_PROCESS;
}

const char *sources_who(enum umbra_source source, int32_t who, uint32_t flags,
			char buf[SOURCES_WHO_MAX])
{
	char thread[24];

	snprintf(thread, sizeof(thread), "thread %d", who);
	if (source != UMBRA_SOURCE_MODULE)
		snprintf(buf, SOURCES_WHO_MAX, "%s", who > 0 ? thread : "thread unknown");
	else
		snprintf(buf, SOURCES_WHO_MAX, "%s%s, %s",
			 who > 0 ? thread : sources_doers[sources_doer(who, flags)],
			 flags & UMBRA_RANGE_NO_WAIT ? ", which cannot wait" : "",
			 flags & UMBRA_RANGE_DIRECT ? "direct: announced by vmm, too"
						    : "collateral: told by the kernel alone");
	return buf;
}

void sources_drain(struct vm *vm)
{
	if (vm->module)
		umbra_module_drain(vm->module);
}

int64_t sources_audit(struct vm *vm, struct umbra_audit_report *report, bool *inconclusive,
		      FILE *out)
{
	const struct umbra_gate *gate;
	uint64_t begun;
	int64_t wrong;

	*inconclusive = false;
	if (!vm->module)
		return umbra_audit(vm->root, vm->hostmap, report, out);
	gate = umbra_module_gate(vm->module);
	for (unsigned int i = 0; i < AUDIT_TRIES; i++) {
		sources_drain(vm);
		begun = __atomic_load_n(gate->applied, __ATOMIC_ACQUIRE);
		wrong = umbra_audit(vm->root, vm->hostmap, report, NULL);
		if (wrong < 0 || (!wrong && !report->moved_by_kernel))
			return wrong;
		if (begun != __atomic_load_n(gate->begun, __ATOMIC_ACQUIRE))
			continue; /* the kernel moved something under the audit */
		/* nothing was begun from before to after: there is no excuse, and another look finds the same */
		if (out)
			(void)umbra_audit(vm->root, vm->hostmap, report, out);
		if (report->moved_by_kernel)
			vm_log(vm, VM_LOG_ERROR,
			       "audit: %llu pages were moved by the kernel and the module did not say so",
			       (unsigned long long)report->moved_by_kernel);
		wrong += (int64_t)report->moved_by_kernel;
		report->moved_by_kernel = 0;
		return wrong;
	}
	/*
	 * The kernel never held still: what it moved is dropped at the next drain, and each look found something that may have
	 * been no more than that.
	 */
	sources_drain(vm);
	*report = (struct umbra_audit_report){ 0 };
	*inconclusive = true;
	return 0;
}
