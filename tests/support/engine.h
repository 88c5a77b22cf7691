/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The engine of vmm without its front: a machine made by hand around a tiny guest that does one
 * thing at a time, as its mailbox says. Needs /dev/kvm.
 */
#ifndef TESTS_ENGINE_H
#define TESTS_ENGINE_H

#include <pthread.h>
#include <vmm/shootdown.h>
#include <vmm/vcpu.h>
#include <vmm/vm_private.h>

#define ENGINE_CODE    0x1000ULL
#define ENGINE_MAILBOX 0x2000ULL   /* + 64 * vCPU */
#define ENGINE_LOOSE   0x200000ULL /* from here on tests do what they like */

/* What the guest is told to do. It clears @op when done. */
enum engine_op {
	ENGINE_IDLE = 0,
	ENGINE_READ =
		1, /* @count words, @stride bytes apart, from @addr; their sum comes in @value */
	ENGINE_WRITE = 2, /* @value to each */
	ENGINE_HALT = 3,
	ENGINE_HAMMER =
		4, /* increments the word at @addr and counts in @value, until @op changes */
	ENGINE_RANDOM = 6, /* increments words on pages picked at random, until @op changes */
	ENGINE_JUMP = 5,   /* to @addr */
};

/* None of the guest's: ends HAMMER and RANDOM. */
#define ENGINE_STOP 7

struct engine_mailbox {
	uint64_t op, addr, count, stride, value;
	uint64_t pad[3];
};

struct engine {
	struct vm vm;
	pthread_t threads[VM_VCPUS_MAX];
	bool running;
};

/*
 * engine_create - a machine of @vcpus and @bytes of private memory, 2M aligned on both sides.
 * Returns: 0; -ENODEV with a reason on stderr: this host cannot run it.
 */
int engine_create(struct engine *e, unsigned int vcpus, uint64_t bytes, enum guest_page_kind pages);
void engine_destroy(struct engine *e); /* stops it first */

void engine_start(struct engine *e);
void engine_stop(struct engine *e); /* returns when every vCPU's thread has ended */

struct engine_mailbox *engine_mailbox(struct engine *e, unsigned int vcpu);
void *engine_at(struct engine *e, uint64_t gpa);

/* Tell a vCPU; wait until it has done it. Returns: false when the machine stopped instead. */
void engine_tell(struct engine *e, unsigned int vcpu, enum engine_op op, uint64_t addr,
		 uint64_t value);
bool engine_wait(struct engine *e, unsigned int vcpu);
bool engine_do(struct engine *e, unsigned int vcpu, enum engine_op op, uint64_t addr,
	       uint64_t value);
bool engine_read(struct engine *e, unsigned int vcpu, uint64_t addr, uint64_t *value);

/* Pages addr + (random & @mask) * 4K, until told to stop. */
void engine_tell_random(struct engine *e, unsigned int vcpu, uint64_t addr, uint64_t mask);
void engine_tell_stop(struct engine *e, unsigned int vcpu);

/* The same over @count words. */
bool engine_sweep(struct engine *e, unsigned int vcpu, enum engine_op op, uint64_t addr,
		  uint64_t count, uint64_t stride);

/* Page faults that vCPU (or all, with ~0U) has taken. */
uint64_t engine_faults(struct engine *e, unsigned int vcpu);

/* Brackets madvise(MADV_DONTNEED) of [gpa, gpa + len) as umbra's own calls do. */
void engine_discard(struct engine *e, uint64_t gpa, uint64_t len);

/*
 * Opens an invalidation of the page, looks whether its first word changes within @us, discards the page and closes.
 * While it is open no vCPU may have a translation: a word that changes was written through a stale one. (A page that
 * comes back after the discard would prove nothing: KVM drops its own shadow then and walks our tables anew.)
 */
bool engine_revoke_is_obeyed(struct engine *e, uint64_t gpa, unsigned int us);

/* umbra_check, to stderr. Returns: violations. */
unsigned int engine_check(struct engine *e);

void engine_pause(unsigned int us);

#endif
