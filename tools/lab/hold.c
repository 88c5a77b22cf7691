/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Runs in the lab and keeps one empty virtual machine. With the first machine and after the last KVM switches its hook
 * in the scheduler by patching __schedule() under the CPUs that run it. QEMU's TCG may keep the breakpoint of that
 * patch in a translation of its own, and the kernel then dies of it. So there is always one more machine.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0 || ioctl(kvm, KVM_CREATE_VM, 0) < 0) {
		perror("/dev/kvm");
		return 1;
	}
	puts("held");
	fclose(stdout);
	for (;;)
		pause();
}
