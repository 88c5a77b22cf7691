/* SPDX-License-Identifier: BSD-2-Clause */
/* The ring-0 monitor: its pages in the window, the frames it leaves behind, the flush commands it
 * carries out. */
#ifndef VMM_MONITOR_H
#define VMM_MONITOR_H

#include <linux/kvm.h>
#include <vmm/vm.h>

/* Ports the monitor leaves by. */
#define MONITOR_PORT_VECTOR 0xc0 /* + exception vector, 0..31 */
#define MONITOR_PORT_OTHER  0xe0 /* a vector above 31 */
#define MONITOR_PORT_ROUND  0xe1 /* a flush command is done and another must follow */

/* Selectors. */
enum {
	MONITOR_CS0 = 0x08,
	MONITOR_DS0 = 0x10,
	MONITOR_SS3 = 0x18 | 3,
	MONITOR_CS3 = 0x20 | 3,
	MONITOR_TSS = 0x28
};

/* What the CPU pushes when ring 3 is interrupted, at the top of the vCPU's monitor stack. */
struct monitor_frame {
	__u64 error; /* only with vectors that have one */
	__u64 rip, cs, rflags, rsp, ss;
};

/* Where a vCPU's registers say that it is. */
enum monitor_place {
	MONITOR_IN_GUEST,   /* ring 3 */
	MONITOR_AT_STUB,    /* the out is done; the frame holds the guest */
	MONITOR_BEFORE_OUT, /* at a stub whose out has not been executed */
	MONITOR_IN_FLUSH,   /* in a flush routine */
	MONITOR_LOST,       /* none of these: a bug */
};

#define MONITOR_LIST_MAX 508 /* words of one flush command */

/*
 * struct monitor_flush - one command. Entries and tables are touched, then the TLB is flushed by
 * page or, with @pages 0, as a whole; then @ticket appears in the ack word.
 * @pages is 0 if there is a table or no entry. @list: virtual addresses, tables first, then
 * entries, then pages.
 * @leave: do not go on to the guest but out by MONITOR_PORT_ROUND.
 */
struct monitor_flush {
	unsigned int tables, entries, pages;
	bool leave;
	uint64_t ticket;
	uint64_t list[MONITOR_LIST_MAX];
};

/*
 * monitor_create - build the monitor's pages in vm->window and reserve the top-level entry in
 * vm->root. Needs window_create() and the root. Returns: 0, or vm_fail().
 */
int monitor_create(struct vm *vm, struct vm_error *err);

/* Table entry for the top-level slot WINDOW_ROOT_INDEX of any root. */
uint64_t monitor_root_entry(const struct vm *vm);

/*
 * monitor_init_sregs - ring-0 system registers of vCPU @index, paging on @root_phys.
 * @cr4_more: SMEP, SMAP and UMIP, where the CPU has them. @sregs: as read from KVM, changed.
 */
void monitor_init_sregs(unsigned int index, uint64_t root_phys, uint64_t cr4_more,
			struct kvm_sregs *sregs);

/* The frame of vCPU @index. Valid when it is MONITOR_AT_STUB. */
struct monitor_frame *monitor_frame(const struct vm *vm, unsigned int index);

/* Where a `syscall` in ring 3 would land (no guest may get there). */
uint64_t monitor_lstar(void);

enum monitor_place monitor_place(const struct kvm_regs *regs, const struct kvm_sregs *sregs);
bool monitor_vector_has_error(unsigned int vector);
const char *monitor_vector_name(unsigned int vector);

/* Aims @regs so that the vCPU resumes the guest through the frame. It must be in ring 0. */
void monitor_aim_resume(unsigned int index, struct kvm_regs *regs);

/*
 * monitor_aim_flush - write @flush to the vCPU's command page, the guest's four scratch registers
 * from @guest to its stack, and aim @regs at the routine. The frame must hold the guest already.
 */
void monitor_aim_flush(const struct vm *vm, unsigned int index, const struct monitor_flush *flush,
		       const struct kvm_regs *guest, struct kvm_regs *regs);

/* Makes a vCPU that was in ring 3 continue in ring 0. */
void monitor_aim_ring0(struct kvm_sregs *sregs);

/* The ticket of the newest command that vCPU @index has completed. Any thread. */
uint64_t monitor_ack(const struct vm *vm, unsigned int index);

#endif
