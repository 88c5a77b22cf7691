/* SPDX-License-Identifier: BSD-2-Clause */
/* The ring-0 monitor: building its pages, aiming vCPUs at its code, reading what it left. */
#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <vmm/kvm.h>
#include <vmm/monitor.h>
#include <vmm/vm_private.h>
#include <vmm/window.h>

/* Pages of the window. The task state segment lies at the bottom of its vCPU's stack page. */
enum {
	PAGE_GDT,
	PAGE_IDT,
	PAGE_STUBS, /* 256 of 16 bytes */
	PAGE_CODE,
	PAGE_L3,
	PAGE_L2,
	PAGE_VCPU = 8, /* + 2 * index: stack, command */
};

_Static_assert(PAGE_VCPU + 2 * VM_VCPUS_MAX <= WINDOW_MONITOR_PAGES, "monitor pages");

#define STUB_BYTES  16
#define VECTORS     256
#define TSS_LIMIT   0x67
#define SCRATCH     4 /* registers that a flush routine uses: rdx, rcx, rsi, rax */
#define LIST_END    (UMBRA_PAGE_SIZE / 8 - 2)
#define WORD_TICKET LIST_END
#define WORD_ACK    (LIST_END + 1)

#define PTE_P  (1ULL << 0)
#define PTE_W  (1ULL << 1)
#define PTE_A  (1ULL << 5)
#define PTE_D  (1ULL << 6)
#define PTE_PS (1ULL << 7)

_Static_assert(MONITOR_LIST_MAX <= LIST_END, "the list fits in front of ticket and ack");

extern const uint8_t monitor_code_begin[], monitor_code_end[], monitor_code_iretq[],
	monitor_code_round[], monitor_code_tables[], monitor_code_entries[], monitor_code_all[],
	monitor_code_flush_end[];

static uint64_t page_virt(unsigned int page)
{
	return WINDOW_VIRT + ((uint64_t)page << UMBRA_PAGE_SHIFT);
}

static uint64_t code_virt(const uint8_t *label)
{
	return page_virt(PAGE_CODE) + (uint64_t)(label - monitor_code_begin);
}

static unsigned int stack_page(unsigned int index)
{
	return PAGE_VCPU + 2 * index;
}

static uint64_t stack_top(unsigned int index)
{
	return page_virt(stack_page(index) + 1);
}

static uint64_t *command_page(const struct vm *vm, unsigned int index)
{
	return window_page(vm, stack_page(index) + 1);
}

/* The frame without the error code: what iretq takes, and where rsp points then. */
static uint64_t frame_virt(unsigned int index)
{
	return stack_top(index) - (sizeof(struct monitor_frame) - 8);
}

struct monitor_frame *monitor_frame(const struct vm *vm, unsigned int index)
{
	uint8_t *top = (uint8_t *)window_page(vm, stack_page(index)) + UMBRA_PAGE_SIZE;

	return (struct monitor_frame *)(void *)(top - sizeof(struct monitor_frame));
}

bool monitor_vector_has_error(unsigned int vector)
{
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 ||
	       vector == 29 || vector == 30;
}

const char *monitor_vector_name(unsigned int vector)
{
	static const char *const names[] = {
		"divide error (#DE)",
		"debug trap (#DB)",
		"NMI",
		"breakpoint (#BP)",
		"overflow (#OF)",
		"bound range (#BR)",
		"invalid opcode (#UD)",
		"no FPU (#NM)",
		"double fault (#DF)",
		"vector 9",
		"invalid TSS (#TS)",
		"segment not present (#NP)",
		"stack fault (#SS)",
		"general protection (#GP)",
		"page fault (#PF)",
		"vector 15",
		"x87 error (#MF)",
		"alignment check (#AC)",
		"machine check (#MC)",
		"SIMD error (#XM)",
	};

	return vector < sizeof(names) / sizeof(names[0]) ? names[vector] : "unknown vector";
}

/*
 * out to the vector's port, drop the error code, iretq. The out is at offset 0, so that rip alone
 * says whether it has been executed.
 */
static void build_stub(uint8_t *stub, unsigned int vector)
{
	static const uint8_t drop[] = { 0x48, 0x83, 0xc4, 0x08 }; /* add $8, %rsp */

	*stub++ = 0xe6; /* outb %al, $port */
	*stub++ = (uint8_t)(vector < 32 ? MONITOR_PORT_VECTOR + vector : MONITOR_PORT_OTHER);
	if (monitor_vector_has_error(vector)) {
		memcpy(stub, drop, sizeof(drop));
		stub += sizeof(drop);
	}
	*stub++ = 0x48; /* iretq */
	*stub = 0xcf;
}

/* An interrupt gate that ring 3 cannot call: `int n` there is #GP, or #UD on some KVMs. */
static void build_gate(uint64_t *gate, uint64_t target)
{
	gate[0] = (target & 0xffff) | (uint64_t)MONITOR_CS0 << 16 | 0x8eULL << 40 |
		  (target >> 16 & 0xffff) << 48;
	gate[1] = target >> 32;
}

static void build_segments(const struct vm *vm)
{
	uint64_t *gdt = window_page(vm, PAGE_GDT);

	gdt[MONITOR_CS0 / 8] = 0x00af9b000000ffffULL;
	gdt[MONITOR_DS0 / 8] = 0x00cf93000000ffffULL;
	gdt[MONITOR_SS3 / 8] = 0x00cff3000000ffffULL;
	gdt[MONITOR_CS3 / 8] = 0x00affb000000ffffULL;
	for (unsigned int i = 0; i < VM_VCPUS_MAX; i++) {
		uint64_t tss = page_virt(stack_page(i)), top = stack_top(i);
		uint8_t *bytes = window_page(vm, stack_page(i));
		uint64_t *entry = &gdt[MONITOR_TSS / 8 + 2 * i];
		const uint16_t no_io_map = TSS_LIMIT + 1;

		entry[0] = TSS_LIMIT | (tss & 0xffffff) << 16 | 0x89ULL << 40 |
			   (tss >> 24 & 0xff) << 56;
		entry[1] = tss >> 32;
		memcpy(bytes + 4, &top, sizeof(top)); /* rsp0 */
		memcpy(bytes + 0x66, &no_io_map, sizeof(no_io_map));
	}
}

int monitor_create(struct vm *vm, struct vm_error *err)
{
	uint8_t *stubs = window_page(vm, PAGE_STUBS);
	uint64_t *idt = window_page(vm, PAGE_IDT);
	uint64_t *l3 = window_page(vm, PAGE_L3), *l2 = window_page(vm, PAGE_L2);
	int ret;

	build_segments(vm);
	for (unsigned int v = 0; v < VECTORS; v++) {
		build_stub(stubs + v * STUB_BYTES, v);
		build_gate(&idt[2 * v], page_virt(PAGE_STUBS) + v * STUB_BYTES);
	}
	memcpy(window_page(vm, PAGE_CODE), monitor_code_begin,
	       (size_t)(monitor_code_end - monitor_code_begin));

	/* Supervisor only at every level. A and D are set, so that no walk ever writes here. */
	l3[0] = window_phys(vm, PAGE_L2) | PTE_P | PTE_W | PTE_A;
	for (uint64_t i = 0; i < 512; i++)
		l2[i] = (window_phys(vm, 0) + (i << UMBRA_HUGE_SHIFT)) | PTE_P | PTE_W | PTE_A |
			PTE_D | PTE_PS;

	ret = umbra_root_reserve(vm->root, WINDOW_ROOT_INDEX, monitor_root_entry(vm));
	if (ret)
		return vm_fail(err, VMM_EXIT_INTERNAL, "top-level entry %u: %s", WINDOW_ROOT_INDEX,
			       strerror(-ret));
	return 0;
}

uint64_t monitor_root_entry(const struct vm *vm)
{
	return window_phys(vm, PAGE_L3) | PTE_P | PTE_W | PTE_A;
}

static struct kvm_segment flat(uint16_t selector, bool code)
{
	return (struct kvm_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.type = code ? 11 : 3,
		.present = 1,
		.dpl = selector & 3,
		.s = 1,
		.l = code,
		.db = !code,
		.g = 1,
	};
}

void monitor_init_sregs(unsigned int index, uint64_t root_phys, uint64_t cr4_more,
			struct kvm_sregs *sregs)
{
	sregs->cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
	sregs->cr3 = root_phys;
	sregs->cr4 = 0x620 | cr4_more; /* OSXMMEXCPT OSFXSR PAE */
	sregs->efer = 0xd00;           /* NXE LMA LME */
	sregs->cs = flat(MONITOR_CS0, true);
	sregs->ss = flat(MONITOR_DS0, false);
	sregs->ds = sregs->es = sregs->fs = sregs->gs = flat(MONITOR_SS3, false);
	sregs->tr = (struct kvm_segment){
		.base = page_virt(stack_page(index)),
		.limit = TSS_LIMIT,
		.selector = (uint16_t)(MONITOR_TSS + 16 * index),
		.type = 11,
		.present = 1,
	};
	sregs->ldt = (struct kvm_segment){ .unusable = 1 };
	sregs->gdt.base = page_virt(PAGE_GDT);
	sregs->gdt.limit = MONITOR_TSS + 16 * VM_VCPUS_MAX - 1;
	sregs->idt.base = page_virt(PAGE_IDT);
	sregs->idt.limit = VECTORS * 16 - 1;
}

void monitor_aim_ring0(struct kvm_sregs *sregs)
{
	sregs->cs = flat(MONITOR_CS0, true);
	sregs->ss = flat(MONITOR_DS0, false);
}

uint64_t monitor_lstar(void)
{
	return code_virt(monitor_code_round);
}

enum monitor_place monitor_place(const struct kvm_regs *regs, const struct kvm_sregs *sregs)
{
	uint64_t stubs = page_virt(PAGE_STUBS);

	if ((sregs->cs.selector & 3) == 3)
		return MONITOR_IN_GUEST;
	if (regs->rip >= stubs && regs->rip < stubs + VECTORS * STUB_BYTES)
		return regs->rip % STUB_BYTES ? MONITOR_AT_STUB : MONITOR_BEFORE_OUT;
	if (regs->rip >= code_virt(monitor_code_begin) &&
	    regs->rip < code_virt(monitor_code_flush_end))
		return MONITOR_IN_FLUSH;
	if (regs->rip >= code_virt(monitor_code_round) && regs->rip < code_virt(monitor_code_end))
		return MONITOR_IN_FLUSH;
	return MONITOR_LOST;
}

void monitor_aim_resume(unsigned int index, struct kvm_regs *regs)
{
	regs->rip = code_virt(monitor_code_iretq);
	regs->rsp = frame_virt(index);
	regs->rflags = 2;
}

void monitor_aim_flush(const struct vm *vm, unsigned int index, const struct monitor_flush *flush,
		       const struct kvm_regs *guest, struct kvm_regs *regs)
{
	unsigned int n = flush->tables + flush->entries + flush->pages;
	uint64_t *command = command_page(vm, index);
	/* The stack grows from the frame: four scratch registers, or below them a frame that
	 * leaves. */
	uint64_t *stack = (uint64_t *)(void *)&monitor_frame(vm, index)->rip;
	uint64_t rsp = frame_virt(index) - SCRATCH * 8;

	memcpy(&command[LIST_END - n], flush->list, n * sizeof(*flush->list));
	command[WORD_TICKET] = flush->ticket;
	stack -= SCRATCH;
	if (flush->leave) {
		stack -= 5;
		rsp -= 5 * 8;
		stack[SCRATCH] = code_virt(monitor_code_round);
		stack[SCRATCH + 1] = MONITOR_CS0;
		stack[SCRATCH + 2] = 2;
		stack[SCRATCH + 3] = frame_virt(index);
		stack[SCRATCH + 4] = MONITOR_DS0;
	}
	stack[0] = guest->rdx;
	stack[1] = guest->rcx;
	stack[2] = guest->rsi;
	stack[3] = guest->rax;

	*regs = *guest;
	regs->rsi = page_virt(stack_page(index) + 1) + (LIST_END - n) * 8;
	if (flush->tables) {
		regs->rip = code_virt(monitor_code_tables);
		regs->rcx = flush->tables;
		regs->rdx = flush->entries;
	} else if (flush->entries) {
		regs->rip = code_virt(monitor_code_entries);
		regs->rcx = flush->entries;
		regs->rdx = flush->pages;
	} else {
		regs->rip = code_virt(monitor_code_all);
	}
	regs->rsp = rsp;
	regs->rflags = 2;
}

uint64_t monitor_ack(const struct vm *vm, unsigned int index)
{
	/* Pairs with the routine's last store; what it touched is touched before. */
	return __atomic_load_n(&command_page(vm, index)[WORD_ACK], __ATOMIC_ACQUIRE);
}
