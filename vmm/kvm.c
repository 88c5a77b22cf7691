/* SPDX-License-Identifier: BSD-2-Clause */
/* /dev/kvm: opening, capabilities, memory slots, and the ioctls each kind of thread needs
 * afterwards. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <vmm/kvm.h>
#include <vmm/limits.h>
#include <vmm/vm_private.h>

static const unsigned long vcpu_ioctls[] = { KVM_RUN, KVM_SET_USER_MEMORY_REGION, KVM_GET_MSRS };
static const unsigned long other_ioctls[] = { KVM_SET_USER_MEMORY_REGION };

const struct kvm_ioctls kvm_ioctls[KVM_THREAD_NR] = {
	[KVM_THREAD_VCPU] = { vcpu_ioctls, sizeof(vcpu_ioctls) / sizeof(vcpu_ioctls[0]) },
	[KVM_THREAD_OTHER] = { other_ioctls, sizeof(other_ioctls) / sizeof(other_ioctls[0]) },
};

static const struct {
	int cap;
	int least;
	const char *name;
} needed_caps[] = {
	{ KVM_CAP_USER_MEMORY, 1, "KVM_CAP_USER_MEMORY" },
	{ KVM_CAP_IMMEDIATE_EXIT, 1, "KVM_CAP_IMMEDIATE_EXIT (Linux 4.13)" },
	{ KVM_CAP_SYNC_REGS, KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS,
	  "KVM_CAP_SYNC_REGS (Linux 4.17)" },
	{ KVM_CAP_NR_MEMSLOTS, KVM_SLOT_RAM + (int)(VM_MEMORY_MAX >> 24), "enough memory slots" },
};

/* Joining a group helps only where the group may do something. */
static int no_permission(struct vm_error *err)
{
	const char *why = strerror(errno);
	struct stat st = { 0 };
	bool group = stat("/dev/kvm", &st) == 0 && (st.st_mode & 0060) == 0060;

	return vm_fail(
		err, VMM_EXIT_CANNOT_RUN,
		"/dev/kvm: %s: %sjoin its group (usermod -aG %s $USER, then log in again), or "
		"pass an open one with --kvm-fd",
		why,
		group ? ""
		      : "its group may not use it: as root, chgrp kvm /dev/kvm && chmod 660 /dev/kvm; then ",
		group ? "\"$(stat -c %G /dev/kvm)\"" : "kvm");
}

static int open_device(struct vm *vm, struct vm_error *err)
{
	if (vm->config.kvm_fd >= 0) {
		vm->kvm_fd = vm->config.kvm_fd;
		return 0;
	}
	vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm_fd >= 0)
		return 0;
	switch (errno) {
	case ENOENT:
	case ENXIO:
	case ENODEV:
		return vm_fail(
			err, VMM_EXIT_CANNOT_RUN,
			"/dev/kvm: %s: this kernel offers no KVM. Load it (modprobe kvm_intel "
			"or kvm_amd), switch virtualisation on in the firmware, or allow "
			"nested virtualisation if this is a virtual machine",
			strerror(errno));
	case EACCES:
	case EPERM: return no_permission(err);
	default: return vm_fail_host(err, errno, "/dev/kvm");
	}
}

/* What was opened is something else: say what it is. */
static int not_kvm(struct vm *vm, struct vm_error *err)
{
	char link[40], target[128] = "?", what[64];
	const int fd = vm->kvm_fd;
	struct stat st = { 0 };
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, target, sizeof(target) - 1);
	if (n > 0)
		target[n] = '\0';
	fstat(fd, &st);
	if (S_ISCHR(st.st_mode))
		snprintf(what, sizeof(what), "character device %u:%u", major(st.st_rdev),
			 minor(st.st_rdev));
	else
		snprintf(what, sizeof(what), "%s",
			 S_ISREG(st.st_mode)    ? "a plain file"
			 : S_ISFIFO(st.st_mode) ? "a pipe"
						: "no device");
	kvm_close(vm);
	if (fd == vm->config.kvm_fd)
		return vm_fail(
			err, VMM_EXIT_CANNOT_RUN,
			"--kvm-fd %d: that is %s (%s), not KVM; pass an open /dev/kvm, such as: "
			"--kvm-fd 3 ... 3<>/dev/kvm",
			fd, target, what);
	return vm_fail(
		err, VMM_EXIT_CANNOT_RUN,
		"/dev/kvm is %s, not KVM's device (10:232); as root: rm /dev/kvm; mknod -m 660 "
		"/dev/kvm c 10 232; chgrp kvm /dev/kvm",
		what);
}

int kvm_open(struct vm *vm, struct vm_error *err)
{
	int version, ret;

	vm->kvm_fd = -1;
	vm->vm_fd = -1;
	ret = open_device(vm, err);
	if (ret)
		return ret;
	version = ioctl(vm->kvm_fd, KVM_GET_API_VERSION, 0);
	if (version < 0)
		return not_kvm(vm, err);
	if (version != KVM_API_VERSION) {
		kvm_close(vm);
		return vm_fail(err, VMM_EXIT_CANNOT_RUN,
			       "this KVM has API version %d, not %d: use a newer kernel", version,
			       KVM_API_VERSION);
	}
	for (size_t i = 0; i < sizeof(needed_caps) / sizeof(needed_caps[0]); i++) {
		int have = ioctl(vm->kvm_fd, KVM_CHECK_EXTENSION, needed_caps[i].cap);
		bool mask = needed_caps[i].cap == KVM_CAP_SYNC_REGS;
		int least = needed_caps[i].least;

		if (mask ? (have & least) == least : have >= least)
			continue;
		kvm_close(vm);
		return vm_fail(err, VMM_EXIT_CANNOT_RUN,
			       "this KVM lacks %s (has %d, needs %d): use a newer kernel",
			       needed_caps[i].name, have, least);
	}
	do {
		vm->vm_fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
	} while (vm->vm_fd < 0 && errno == EINTR);
	if (vm->vm_fd < 0) {
		int error = errno;

		kvm_close(vm);
		return vm_fail_host(err, error, "KVM_CREATE_VM%s",
				    error == EBUSY ? " (another hypervisor owns the CPU: stop it)"
						   : "");
	}
	return 0;
}

void kvm_close(struct vm *vm)
{
	if (vm->vm_fd >= 0)
		close(vm->vm_fd);
	if (vm->kvm_fd >= 0 && vm->kvm_fd != vm->config.kvm_fd)
		close(vm->kvm_fd);
	free(vm->cpuid);
	vm->cpuid = NULL;
	vm->vm_fd = -1;
	vm->kvm_fd = -1;
}

int kvm_slot_set(int vm_fd, uint32_t slot, uint64_t gpa, uint64_t bytes, void *hva)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (uint64_t)(uintptr_t)hva,
	};
	int ret;

	do {
		ret = ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region);
	} while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : 0;
}

int kvm_cpuid(struct vm *vm, struct kvm_cpuid2 **cpuid)
{
	for (uint32_t n = 128; !vm->cpuid && n <= 4096; n *= 2) {
		struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + n * sizeof(c->entries[0]));
		int error;

		if (!c)
			return -ENOMEM;
		c->nent = n;
		if (!ioctl(vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, c)) {
			vm->cpuid = c;
			break;
		}
		error = errno;
		free(c);
		if (error != E2BIG)
			return -error;
	}
	*cpuid = vm->cpuid;
	return vm->cpuid ? 0 : -E2BIG;
}

const struct kvm_cpuid_entry2 *kvm_cpuid_find(const struct kvm_cpuid2 *cpuid, uint32_t function)
{
	for (uint32_t i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == function && !cpuid->entries[i].index)
			return &cpuid->entries[i];
	return NULL;
}

int kvm_phys_bits(struct vm *vm)
{
	const struct kvm_cpuid_entry2 *leaf;
	struct kvm_cpuid2 *cpuid;
	int bits = 36; /* what every 64-bit CPU has */
	int ret = kvm_cpuid(vm, &cpuid);

	if (ret)
		return ret;
	leaf = kvm_cpuid_find(cpuid, 0x80000008);
	if (leaf && (leaf->eax & 0xff))
		bits = (int)(leaf->eax & 0xff);
	return bits;
}
