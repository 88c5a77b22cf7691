/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Runs in the lab and shows a bug of QEMU's TCG without Umbra. When a CPU loads x87 state, QEMU also clears a bit in a
 * word of the first CPU (cpu_clear_ignne(): env->hflags2, not atomically, from the other CPU's thread). That word holds
 * SVM's state too: nested paging, global interrupts. What the first CPU changes in it at that moment, entering or
 * leaving a guest, is lost: its guest then runs without nested paging, or the host with it.
 *
 *	first_cpu CPU OTHER SECONDS
 *
 * A guest that does nothing but leave by CPUID runs on CPU; OTHER loads x87 state, or with "-" nobody does. Exit 0: the
 * guest ran all the time. 1: it ended otherwise. 77: no KVM. With CPU 0 the kernel under it may also die or stand still.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define GPA    0xb0000000ULL /* memory of the guest only: without nested paging nothing is there */
#define ROUNDS 1000          /* CPUIDs for one exit to user space */
#define PORT   0x10

static _Atomic int stop;

static int pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set);
}

static void *load_x87(void *cpu)
{
	static _Alignas(16) unsigned char state[512];

	if (pin(*(int *)cpu)) {
		perror("OTHER");
		exit(2);
	}
	__asm__ volatile("fxsave64 %0" : "=m"(state));
	while (!atomic_load_explicit(&stop, memory_order_relaxed))
		for (int i = 0; i < 1000; i++)
			__asm__ volatile("fxrstor64 %0" : : "m"(state));
	return NULL;
}

static int make_guest(int kvm, struct kvm_run **run)
{
	/* again: mov $ROUNDS, %bp; next: cpuid; dec %bp; jnz next; out %al, $PORT; jmp again */
	static const unsigned char code[] = { 0xbd, ROUNDS & 0xff, ROUNDS >> 8, 0x0f, 0xa2, 0x4d,
					      0x75, 0xfb,          0xe6,        PORT, 0xeb, 0xf4 };
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = { .guest_phys_addr = GPA,
						      .memory_size = 4096,
						      .userspace_addr = (unsigned long)page };
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_sregs sregs;
	int vm = ioctl(kvm, KVM_CREATE_VM, 0), vcpu, bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	if (page == MAP_FAILED || vm < 0 || bytes < 0)
		return -1;
	memcpy(page, code, sizeof(code));
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) ||
	    ioctl(vcpu, KVM_GET_SREGS, &sregs))
		return -1;
	sregs.cs.base = sregs.ds.base = sregs.ss.base = sregs.es.base = GPA;
	sregs.cs.selector = 0;
	*run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (*run == MAP_FAILED || ioctl(vcpu, KVM_SET_SREGS, &sregs) ||
	    ioctl(vcpu, KVM_SET_REGS, &regs))
		return -1;
	return vcpu;
}

int main(int argc, char **argv)
{
	int cpu = argc == 4 ? atoi(argv[1]) : -1,
	    other = argc != 4 || *argv[2] == '-' ? -1 : atoi(argv[2]);
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vcpu;
	unsigned long exits = 0;
	struct kvm_run *run;
	pthread_t thread;
	time_t end;

	if (cpu < 0 || cpu == other) {
		fprintf(stderr, "usage: first_cpu CPU OTHER SECONDS\n");
		return 2;
	}
	if (kvm < 0) {
		printf("SKIP: /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	if (pin(cpu) || (vcpu = make_guest(kvm, &run)) < 0 ||
	    (other >= 0 && pthread_create(&thread, NULL, load_x87, &other))) {
		perror("first_cpu");
		return 2;
	}
	for (end = time(NULL) + atoi(argv[3]); time(NULL) < end; exits++) {
		int ret = ioctl(vcpu, KVM_RUN, 0);

		if (!ret && run->exit_reason == KVM_EXIT_IO && run->io.port == PORT)
			continue;
		printf("guest on CPU %d, x87 on CPU %d: after %lu exits the guest ended: %s, exit reason %u\n",
		       cpu, other, exits * ROUNDS, ret ? strerror(errno) : "no error",
		       run->exit_reason);
		return 1;
	}
	atomic_store(&stop, 1);
	if (other >= 0)
		pthread_join(thread, NULL);
	printf("guest on CPU %d, x87 on CPU %d: %lu exits, each as it should be\n", cpu, other,
	       exits * ROUNDS);
	return exits ? 0 : 1;
}
