/* SPDX-License-Identifier: BSD-2-Clause */
/* The floor: the least that a KVM program can be. See minikvm.h. */
#include "minikvm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

int minikvm_create(struct minikvm *m, uint64_t bytes)
{
	struct kvm_userspace_memory_region region = { .memory_size = bytes };
	int size;

	*m = (struct minikvm){ .kvm = -1, .vm = -1, .vcpu = -1, .bytes = bytes };
	m->mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m->mem == MAP_FAILED) {
		m->mem = NULL;
		return -errno;
	}
	region.userspace_addr = (uint64_t)(uintptr_t)m->mem;
	m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (m->kvm < 0)
		return -errno;
	m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	if (m->vm < 0 || ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region))
		return -errno;
	m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
	size = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (m->vcpu < 0 || size < 0)
		return -errno;
	m->run_bytes = (size_t)size;
	m->run = mmap(NULL, m->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	if (m->run == MAP_FAILED) {
		m->run = NULL;
		return -errno;
	}
	return 0;
}

void minikvm_destroy(struct minikvm *m)
{
	if (m->run)
		munmap(m->run, m->run_bytes);
	if (m->vcpu >= 0)
		close(m->vcpu);
	if (m->vm >= 0)
		close(m->vm);
	if (m->kvm >= 0)
		close(m->kvm);
	if (m->mem)
		munmap(m->mem, m->bytes);
	*m = (struct minikvm){ .kvm = -1, .vm = -1, .vcpu = -1 };
}

int minikvm_run(struct minikvm *m)
{
	while (ioctl(m->vcpu, KVM_RUN, 0))
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
	return m->run->exit_reason == KVM_EXIT_IO ? m->run->io.port : -EPROTO;
}

/* ---- a guest in 64-bit mode ------------------------------------------------------------------ */

/* Guest-physical. The first 2M are the supervisor's, one 2M leaf; the rest is the user's. */
enum {
	GDT = 0x1000,
	IDT = 0x2000,
	TSS = 0x3000,
	STACK_TOP = 0x5000,
	CODE0 = 0x5000,
	PML4 = 0x8000,
	PDPT = 0x9000,
	PD_LOW = 0xa000,
	PD_HIGH = 0xb000,
	PT_CODE = 0xc000,
	CODE3 = 0x200000,
	TABLES = 0x400000, /* of block i at + i * 4096 */
	DATA = 0x1000000,
	EXITS3 = 0x800, /* in that page */
};

#define CS0   0x08
#define DS0   0x10
#define SS3   (0x18 | 3)
#define CS3   (0x20 | 3)
#define IOPL3 (3ULL << 12)

__asm__(".pushsection .rodata\n"
	"minikvm_exits:\n"
	"1:	outb %al, $0x10\n"
	"	jmp 1b\n"
	"minikvm_stub:\n"
	"	outb %al, $0xc0\n"
	"minikvm_iretq:\n"
	"	iretq\n"
	"minikvm_code0_end:\n"
	"minikvm_sweep:\n" /* rdi: first page, rcx: pages */
	"2:	mov %rdi, (%rdi)\n"
	"	add $4096, %rdi\n"
	"	dec %rcx\n"
	"	jnz 2b\n"
	"	mov %rcx, (%rcx)\n"
	"minikvm_sweep_end:\n"
	".popsection\n");
extern const uint8_t minikvm_exits[], minikvm_stub[], minikvm_iretq[], minikvm_code0_end[],
	minikvm_sweep[], minikvm_sweep_end[];

static struct kvm_segment flat(uint16_t selector, int code)
{
	return (struct kvm_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.type = code ? 11 : 3,
		.present = 1,
		.dpl = selector & 3,
		.s = 1,
		.l = (uint8_t)(code != 0),
		.db = (uint8_t)(code == 0),
		.g = 1,
	};
}

static uint64_t *at(struct minikvm *m, uint64_t gpa)
{
	return (uint64_t *)(void *)(m->mem + gpa);
}

static void build_memory(struct minikvm *m)
{
	const uint64_t stub = CODE0 + (uint64_t)(minikvm_stub - minikvm_exits);
	const uint64_t stack = STACK_TOP;

	memcpy(m->mem + CODE0, minikvm_exits, (size_t)(minikvm_code0_end - minikvm_exits));
	memcpy(m->mem + CODE3, minikvm_sweep, (size_t)(minikvm_sweep_end - minikvm_sweep));
	memcpy(m->mem + CODE3 + EXITS3, minikvm_exits, (size_t)(minikvm_stub - minikvm_exits));
	at(m, GDT)[CS0 / 8] = 0x00af9b000000ffffULL;
	at(m, GDT)[DS0 / 8] = 0x00cf93000000ffffULL;
	at(m, GDT)[SS3 / 8] = 0x00cff3000000ffffULL;
	at(m, GDT)[CS3 / 8] = 0x00affb000000ffffULL;
	at(m, GDT)[5] = 0x67 | (uint64_t)TSS << 16 | 0x89ULL << 40;
	at(m, IDT)[2 * 14] = (stub & 0xffff) | (uint64_t)CS0 << 16 | 0x8eULL << 40;
	memcpy(m->mem + TSS + 4, &stack, sizeof(stack));

	at(m, PML4)[0] = PDPT | 7;
	at(m, PDPT)[0] = PD_LOW | 7;
	at(m, PDPT)[1] = PD_HIGH | 7;
	at(m, PD_LOW)[0] = 0 | 0xe3; /* 2M, supervisor */
	at(m, PD_LOW)[1] = PT_CODE | 7;
	at(m, PT_CODE)[0] = CODE3 | 5;
	for (uint64_t i = 0; i < MINIKVM_BLOCKS; i++)
		at(m, PD_HIGH)[i] = (TABLES + i * 4096) | 7;
}

int minikvm_long_mode(struct minikvm *m)
{
	static union {
		struct kvm_cpuid2 head;
		uint8_t bytes[sizeof(struct kvm_cpuid2) + 256 * sizeof(struct kvm_cpuid_entry2)];
	} cpuid = { .head.nent = 256 };

	/* Host memory is there before anything is measured. */
	if (madvise(m->mem, 32ULL << 20, MADV_POPULATE_WRITE))
		return -errno;
	build_memory(m);
	if (ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) ||
	    ioctl(m->vcpu, KVM_SET_CPUID2, &cpuid))
		return -errno;
	return 0;
}

static int aim(struct minikvm *m, const struct kvm_regs *regs, unsigned int ring)
{
	struct kvm_sregs sregs;

	if (ioctl(m->vcpu, KVM_GET_SREGS, &sregs))
		return -errno;
	sregs.cr0 = 0x80050033;
	sregs.cr3 = PML4;
	sregs.cr4 = 0x620;
	sregs.efer = 0xd00;
	sregs.cs = flat(ring ? CS3 : CS0, 1);
	sregs.ss = flat(ring ? SS3 : DS0, 0);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = flat(SS3, 0);
	sregs.tr = (struct kvm_segment){
		.base = TSS, .limit = 0x67, .selector = 0x28, .type = 11, .present = 1
	};
	sregs.ldt = (struct kvm_segment){ .unusable = 1 };
	sregs.gdt.base = GDT;
	sregs.gdt.limit = 0x37;
	sregs.idt.base = IDT;
	sregs.idt.limit = 16 * 32 - 1;
	if (ioctl(m->vcpu, KVM_SET_SREGS, &sregs) || ioctl(m->vcpu, KVM_SET_REGS, regs))
		return -errno;
	m->run->kvm_valid_regs = KVM_SYNC_X86_SREGS | KVM_SYNC_X86_REGS;
	return 0;
}

int minikvm_aim_exits(struct minikvm *m, unsigned int ring)
{
	struct kvm_regs regs = {
		.rip = ring ? CODE3 + EXITS3 : CODE0,
		.rflags = 2 | (ring ? IOPL3 : 0),
		.rsp = STACK_TOP,
	};

	return aim(m, &regs, ring);
}

int minikvm_aim_sweep(struct minikvm *m, uint64_t block)
{
	struct kvm_regs regs = {
		.rip = CODE3,
		.rflags = 2,
		.rdi = MINIKVM_VIRT + block * (MINIKVM_PAGES << 12),
		.rcx = MINIKVM_PAGES,
	};

	return aim(m, &regs, 3);
}

bool minikvm_install(struct minikvm *m)
{
	struct kvm_sync_regs *s = &m->run->s.regs;
	uint64_t page = (s->sregs.cr2 - MINIKVM_VIRT) >> 12;

	if (s->sregs.cr2 < MINIKVM_VIRT || page >= MINIKVM_BLOCKS * MINIKVM_PAGES)
		return false;
	__atomic_store_n(&at(m, TABLES)[page], (DATA + page % MINIKVM_PAGES * 4096) | 7,
			 __ATOMIC_RELEASE);
	s->regs.rip = CODE0 + (uint64_t)(minikvm_iretq - minikvm_exits);
	s->regs.rsp = STACK_TOP - 5 * sizeof(uint64_t);
	m->run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	return true;
}
