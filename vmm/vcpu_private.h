/* SPDX-License-Identifier: BSD-2-Clause */
/* struct vcpu: shared by vcpu.c (life and run loop) and crash.c (what is shown of it). */
#ifndef VMM_VCPU_PRIVATE_H
#define VMM_VCPU_PRIVATE_H

#include <linux/kvm.h>
#include <sys/types.h>
#include <vmm/emulate.h>
#include <vmm/monitor.h>
#include <vmm/vcpu.h>

/* The guest's state at an exit, for people. */
struct vcpu_snapshot {
	bool valid, has_page;
	struct kvm_regs regs;
	struct monitor_frame frame;
	uint64_t cr2;
	gpa_t page; /* whose history is of interest */
};

/*
 * struct vcpu
 * @place: where the registers in @run say that the CPU is.
 * @flushing: a flush command was aimed at, and its iretq has not been seen: the guest's registers
 * are in
 *   @saved and @saved_frame, not in @run.
 */
struct vcpu {
	struct vm *vm;
	unsigned int index;
	int fd;
	struct kvm_run *run;
	size_t run_bytes;
	_Atomic pid_t tid;

	enum monitor_place place;
	bool flushing;
	struct kvm_regs saved;
	struct monitor_frame saved_frame;
	struct monitor_flush flush;

	struct emulate_state emulate;
	_Atomic bool halted;
	unsigned int host_faults_in_a_row, no_memory_in_a_row;
	struct vcpu_stats stats;
	struct vcpu_snapshot last;
};

/* Counters have one writer, the vCPU's thread, and readers on others. */
#define VCPU_COUNT(v, name, n) \
	__atomic_store_n(&(v)->stats.name, (v)->stats.name + (n), __ATOMIC_RELAXED)

/* Stops the machine as a guest crash and prints the state, if nobody stopped it before. @page may
 * be NULL. */
void vcpu_crash(struct vcpu *v, const gpa_t *page, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* The same for what can only be our own error. */
void vcpu_bug(struct vcpu *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Takes @v->last from the registers and the frame. */
void vcpu_snapshot(struct vcpu *v);

#endif
