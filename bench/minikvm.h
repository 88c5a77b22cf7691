/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The floor: the least that a KVM program can be. One VM, one slot of memory, one vCPU, and nothing
 * that Umbra does: no tables kept, no contract, no monitor beyond one stub.
 */
#ifndef BENCH_MINIKVM_H
#define BENCH_MINIKVM_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * struct minikvm
 * @mem: @bytes of guest-physical memory from 0, private and anonymous.
 */
struct minikvm {
	int kvm, vm, vcpu;
	struct kvm_run *run;
	size_t run_bytes;
	uint8_t *mem;
	uint64_t bytes;
};

/* Returns: 0, -errno of the step that failed. Pairs with: minikvm_destroy(), in any state. */
int minikvm_create(struct minikvm *m, uint64_t bytes);
void minikvm_destroy(struct minikvm *m);

/* Enters the guest until it leaves by a port. Returns: the port, -errno, -EPROTO for any other exit. */
int minikvm_run(struct minikvm *m);

/* ---- a guest in 64-bit mode ------------------------------------------------------------------ */

#define MINIKVM_PAGES  512ULL       /* data pages, host memory present */
#define MINIKVM_BLOCKS 256ULL       /* each a fresh table over the same data pages */
#define MINIKVM_VIRT   (1ULL << 30) /* block i begins at + i * 2M */
#define MINIKVM_FAULT  0xc0         /* ports: a page fault's stub */
#define MINIKVM_EXIT   0x10         /* the loop of exits */

/* Tables, segments, one gate, code. Needs 32 MiB. Returns: 0, -errno. */
int minikvm_long_mode(struct minikvm *m);

/*
 * A loop that does nothing but out: one port exit for each minikvm_run(). In ring 3, with the right to ports, as a
 * guest's code runs here; in ring 0 a KVM that interprets ring 0 does not even enter the guest. Returns: 0, -errno.
 */
int minikvm_aim_exits(struct minikvm *m, unsigned int ring);

/*
 * Ring 3, writing one word to each page of @block; every one faults once: #PF, the stub in ring 0, out, and after
 * minikvm_install() iretq. Ends by a fault at an address below 4096. Returns: 0, -errno.
 */
int minikvm_aim_sweep(struct minikvm *m, uint64_t block);

/*
 * What a VMM must do at least: store the entry, and aim the vCPU at the iretq, which costs less than to let it execute
 * the instruction that drops the error code. Returns: false at the end of the sweep.
 */
bool minikvm_install(struct minikvm *m);

#endif
