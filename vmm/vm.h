/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The machine: what its parts share, and who may call what. Every part is one .c file with its
 * header:
 *
 *   engine                                  front
 *   kvm       /dev/kvm, ioctls, caps        main      the only place that exits
 *   window    hidden slot: table pages,     args      command line -> struct vm_config
 *             monitor pages                 memory    guest RAM: backing, regions, safe access
 *   monitor   ring-0 code, GDT, IDT, TSS    boot      ELF image, boot information
 *   shootdown kicks, batches, tickets       devices   serial, exit port, clock
 *   vcpu      the run loop                  hostcall  what a guest may ask the host to do
 *   emulate   privileged instructions       chaos     host actions at a rate, mix and seed
 *   resolve   the MMU's ops                 sandbox   seccomp, capabilities, Landlock
 *   limits    what the host allows us       actions   host actions themselves
 *   sources   userfaultfd, kernel module    witness   KVM's tracepoints
 *                                           report    what happened, as text and JSON
 *   vm        puts it together, owns struct vm
 */
#ifndef VMM_VM_H
#define VMM_VM_H

#include <abi/guest.h>
#include <stdatomic.h>
#include <umbra/events.h>
#include <umbra/mmu.h>

#define VM_VCPUS_MAX   8
#define VM_MEMORY_MIN  (2ULL << 20)
#define VM_MEMORY_MAX  (64ULL << 30)
#define VM_SLOT_ID_RAM 1

enum vm_sandbox { VM_SANDBOX_ON, VM_SANDBOX_LOG, VM_SANDBOX_OFF };
enum vm_stats_format { VM_STATS_NONE, VM_STATS_TEXT, VM_STATS_JSON };
enum vm_log { VM_LOG_ERROR, VM_LOG_WARN, VM_LOG_INFO, VM_LOG_DEBUG };

/* --chaos: parsed by chaos_parse(). All zero: calm. */
struct chaos_spec {
	uint32_t rate; /* actions a second */
	uint64_t seed;
	uint32_t mix;   /* bit per action, see vmm/chaos.h */
	uint64_t count; /* stop after so many, 0: never */
};

struct vm_config {
	uint64_t memory; /* bytes, whole 2M */
	unsigned int vcpus;
	enum guest_backing backing;
	enum guest_page_kind pages;
	struct chaos_spec chaos;
	enum vm_sandbox sandbox;
	enum vm_stats_format stats;
	enum vm_log log;
	bool audit; /* umbra_check and umbra_audit after every host action, and at the end always */
	bool events_uffd, events_module,
		events_tracepoints; /* --source; vmm's own calls are always bracketed */
	int uffd_fd;                /* --uffd-fd N: passed in, else -1 */
	bool stacks;                /* --stacks: tracepoints say which kernel path it was */
	int module_fd;              /* --module-fd N: passed in, else -1 */
	int kvm_fd;                 /* --kvm-fd N: passed in, else -1 */
	const char *image;
	char args[GUEST_ARGS_MAX];
};

struct vm;
struct vcpu;

/* Why the machine stops; the first caller of vm_stop() decides. */
void vm_stop(struct vm *vm, enum vmm_exit code, const char *why_fmt, ...)
	__attribute__((format(printf, 3, 4)));
bool vm_stopping(const struct vm *vm);

/* Prints "umbra: ..." to stderr when the level is on. Callable from every thread; one write(2). */
void vm_log(struct vm *vm, enum vm_log level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* All of @len bytes, however slowly the reader takes them. Returns: 0, -errno. */
int vm_write(int fd, const char *p, size_t len);

/* Errors of set-up: the text names the thing and the fix. Printed by main; returns @code for
 * `return vm_fail(...)`. */
struct vm_error {
	enum vmm_exit code;
	char text[1200];
};
int vm_fail(struct vm_error *err, enum vmm_exit code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* ---- the machine's life (vm.c), used by main
 * ----------------------------------------------------------- */

/* Everything but running: a guest in memory, its vCPUs ready. Returns: 0, or the exit code with
 * @err filled. */
int vm_create(struct vm **vm, const struct vm_config *config, struct vm_error *err);
/* Runs until somebody calls vm_stop() or a signal does; ends with a check. Returns: the process's
 * exit status. */
enum vmm_exit vm_run(struct vm *vm);
/* The account asked for by --stats. After vm_run(). Returns: 0, -errno (said by then) if it could not be written. */
int vm_report(struct vm *vm);
/* Takes whatever vm_create() left, complete or not. */
void vm_destroy(struct vm *vm);

#endif
