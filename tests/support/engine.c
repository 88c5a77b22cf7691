/* SPDX-License-Identifier: BSD-2-Clause */
/* The engine of vmm without its front: see engine.h. */
#include "engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <vmm/devices.h>
#include <vmm/kvm.h>
#include <vmm/memory.h>
#include <vmm/resolve.h>
#include <vmm/window.h>

/* rdi: mailboxes, rsi: number of the vCPU. */
__asm__(".pushsection .rodata\n"
	"engine_guest_begin:\n"
	"	shl	$6, %rsi\n"
	"	lea	(%rdi,%rsi), %rbx\n"
	"0:	pause\n"
	"	mov	(%rbx), %rax\n"
	"	test	%rax, %rax\n"
	"	jz	0b\n"
	"	mov	8(%rbx), %rdx\n"
	"	mov	16(%rbx), %rcx\n"
	"	mov	24(%rbx), %rsi\n"
	"	cmp	$1, %rax\n"
	"	je	1f\n"
	"	cmp	$2, %rax\n"
	"	je	2f\n"
	"	cmp	$3, %rax\n"
	"	je	3f\n"
	"	cmp	$4, %rax\n"
	"	je	4f\n"
	"	cmp	$5, %rax\n"
	"	je	5f\n"
	"	cmp	$6, %rax\n"
	"	je	6f\n"
	"9:	movq	$0, (%rbx)\n"
	"	jmp	0b\n"
	"1:	xor	%r8, %r8\n"
	"11:	add	(%rdx), %r8\n"
	"	add	%rsi, %rdx\n"
	"	dec	%rcx\n"
	"	jnz	11b\n"
	"	mov	%r8, 32(%rbx)\n"
	"	jmp	9b\n"
	"2:	mov	32(%rbx), %r8\n"
	"22:	mov	%r8, (%rdx)\n"
	"	add	%rsi, %rdx\n"
	"	dec	%rcx\n"
	"	jnz	22b\n"
	"	jmp	9b\n"
	"3:	hlt\n"
	"4:	incq	(%rdx)\n"
	"	incq	32(%rbx)\n"
	"	cmpq	$4, (%rbx)\n"
	"	je	4b\n"
	"	jmp	9b\n"
	"5:	jmp	*%rdx\n"
	"6:	mov	32(%rbx), %r8\n"
	"66:	imul	$1103515245, %r8, %r8\n"
	"	add	$12345, %r8\n"
	"	mov	%r8, %r9\n"
	"	shr	$16, %r9\n"
	"	and	%rcx, %r9\n"
	"	shl	$12, %r9\n"
	"	incq	(%rdx,%r9)\n"
	"	cmpq	$6, (%rbx)\n"
	"	je	66b\n"
	"	jmp	9b\n"
	"engine_guest_end:\n"
	".popsection\n");
extern const uint8_t engine_guest_begin[], engine_guest_end[];

static int set_up(struct engine *e, struct vm_error *err)
{
	struct vm *vm = &e->vm;
	struct umbra_mmu_config config = {
		.os = &umbra_os_posix,
		.ops = &vm_mmu_ops,
		.ctx = vm,
		.flags = UMBRA_MMU_RECORD_PFN,
	};
	struct umbra_memslot slot = {
		.id = VM_SLOT_ID_RAM,
		.flags = UMBRA_SLOT_LOG,
		.npages = vm->config.memory >> UMBRA_PAGE_SHIFT,
	};
	int ret = kvm_open(vm, err);

	if (ret)
		return ret;
	if (umbra_chain_create(&vm->chain, &umbra_os_posix) || umbra_hostmap_open(&vm->hostmap, 0))
		return vm_fail(err, VMM_EXIT_INTERNAL, "chain or hostmap");
	ret = memory_create(vm, err);
	ret = ret ? ret : devices_create(vm, err);
	ret = ret ? ret : window_create(vm, err);
	ret = ret ? ret : shootdown_create(vm, err);
	if (ret)
		return ret;
	window_configure(vm, &config);
	slot.hva = vm->ram;
	if (umbra_mmu_create(&vm->mmu, &config) ||
	    umbra_chain_register(vm->chain, umbra_mmu_notifier(vm->mmu)) ||
	    umbra_root_create(vm->mmu, UMBRA_ROOT_DIRECT, &vm->root) ||
	    umbra_memslot_add(vm->mmu, &slot))
		return vm_fail(err, VMM_EXIT_INTERNAL, "mmu");
	ret = monitor_create(vm, err);
	memcpy(engine_at(e, ENGINE_CODE), engine_guest_begin,
	       (size_t)(engine_guest_end - engine_guest_begin));
	vm->entry.v = ENGINE_CODE;
	vm->boot_info.v = ENGINE_MAILBOX;
	for (unsigned int i = 0; !ret && i < vm->config.vcpus; i++)
		ret = vcpu_create(vm, i, &vm->vcpus[i], err);
	return ret;
}

int engine_create(struct engine *e, unsigned int vcpus, uint64_t bytes, enum guest_page_kind pages)
{
	struct vm_error err = { 0 };

	memset(e, 0, sizeof(*e));
	e->vm.config = (struct vm_config){
		.memory = bytes,
		.vcpus = vcpus,
		.pages = pages,
		.kvm_fd = -1,
		.uffd_fd = -1,
		.log = VM_LOG_WARN,
	};
	e->vm.kvm_fd = e->vm.vm_fd = e->vm.ram_fd = -1;
	e->vm.stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&e->vm.stop_lock, NULL);
	if (!set_up(e, &err))
		return 0;
	fprintf(stderr, "engine: %s\n", err.text);
	engine_destroy(e);
	return -ENODEV;
}

static void *thread(void *arg)
{
	vcpu_thread_run(arg);
	return NULL;
}

void engine_start(struct engine *e)
{
	for (unsigned int i = 0; i < e->vm.config.vcpus; i++)
		pthread_create(&e->threads[i], NULL, thread, e->vm.vcpus[i]);
	e->running = true;
}

void engine_stop(struct engine *e)
{
	if (!e->running)
		return;
	vm_stop(&e->vm, VMM_EXIT_OK, "the test is over");
	for (unsigned int i = 0; i < e->vm.config.vcpus; i++)
		pthread_join(e->threads[i], NULL);
	e->running = false;
}

void engine_destroy(struct engine *e)
{
	struct vm *vm = &e->vm;

	engine_stop(e);
	for (unsigned int i = 0; i < VM_VCPUS_MAX; i++)
		vcpu_destroy(vm->vcpus[i]);
	if (vm->mmu)
		umbra_chain_unregister(vm->chain, umbra_mmu_notifier(vm->mmu));
	if (vm->root)
		umbra_root_destroy(vm->root);
	if (vm->mmu)
		umbra_mmu_destroy(vm->mmu);
	shootdown_destroy(vm);
	window_destroy(vm);
	kvm_close(vm);
	devices_destroy(vm);
	memory_destroy(vm);
	if (vm->hostmap)
		umbra_hostmap_close(vm->hostmap);
	if (vm->chain)
		umbra_chain_destroy(vm->chain);
	close(vm->stop_event);
	pthread_mutex_destroy(&vm->stop_lock);
}

void *engine_at(struct engine *e, uint64_t gpa)
{
	return (uint8_t *)(uintptr_t)e->vm.ram.v + gpa;
}

struct engine_mailbox *engine_mailbox(struct engine *e, unsigned int vcpu)
{
	return (struct engine_mailbox *)engine_at(e, ENGINE_MAILBOX) + vcpu;
}

void engine_pause(unsigned int us)
{
	struct timespec t = { 0, (long)us * 1000 };

	nanosleep(&t, NULL);
}

static void tell(struct engine *e, unsigned int vcpu, enum engine_op op,
		 const struct engine_mailbox *m)
{
	struct engine_mailbox *box = engine_mailbox(e, vcpu);

	box->addr = m->addr;
	box->count = m->count;
	box->stride = m->stride;
	box->value = m->value;
	__atomic_store_n(&box->op, op, __ATOMIC_RELEASE);
}

void engine_tell_random(struct engine *e, unsigned int vcpu, uint64_t addr, uint64_t mask)
{
	tell(e, vcpu, ENGINE_RANDOM,
	     &(struct engine_mailbox){ .addr = addr, .count = mask, .value = vcpu + 7 });
}

void engine_tell_stop(struct engine *e, unsigned int vcpu)
{
	/* Not 0: the guest clears it on its way out, and must not clear the next order instead. */
	__atomic_store_n(&engine_mailbox(e, vcpu)->op, ENGINE_STOP, __ATOMIC_RELEASE);
}

void engine_tell(struct engine *e, unsigned int vcpu, enum engine_op op, uint64_t addr,
		 uint64_t value)
{
	tell(e, vcpu, op, &(struct engine_mailbox){ .addr = addr, .count = 1, .value = value });
}

bool engine_wait(struct engine *e, unsigned int vcpu)
{
	while (__atomic_load_n(&engine_mailbox(e, vcpu)->op, __ATOMIC_ACQUIRE)) {
		if (vm_stopping(&e->vm))
			return false;
		engine_pause(20);
	}
	return true;
}

bool engine_do(struct engine *e, unsigned int vcpu, enum engine_op op, uint64_t addr,
	       uint64_t value)
{
	engine_tell(e, vcpu, op, addr, value);
	return engine_wait(e, vcpu);
}

bool engine_read(struct engine *e, unsigned int vcpu, uint64_t addr, uint64_t *value)
{
	if (!engine_do(e, vcpu, ENGINE_READ, addr, 0))
		return false;
	*value = engine_mailbox(e, vcpu)->value;
	return true;
}

bool engine_sweep(struct engine *e, unsigned int vcpu, enum engine_op op, uint64_t addr,
		  uint64_t count, uint64_t stride)
{
	tell(e, vcpu, op,
	     &(struct engine_mailbox){
		     .addr = addr, .count = count, .stride = stride, .value = 1 });
	return engine_wait(e, vcpu);
}

uint64_t engine_faults(struct engine *e, unsigned int vcpu)
{
	uint64_t faults = 0;

	for (unsigned int i = 0; i < e->vm.config.vcpus; i++) {
		struct vcpu_stats stats;

		if (vcpu != ~0U && vcpu != i)
			continue;
		vcpu_stats(e->vm.vcpus[i], &stats);
		faults += stats.faults;
	}
	return faults;
}

void engine_discard(struct engine *e, uint64_t gpa, uint64_t len)
{
	struct umbra_range r = {
		.hull = hva_range_of(engine_at(e, gpa), len),
		.flags = UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_FORCED | UMBRA_RANGE_RELOCATES,
		.cause = UMBRA_CAUSE_DISCARD,
		.source = UMBRA_SOURCE_OWN,
	};

	umbra_invalidate_start(e->vm.chain, &r);
	madvise(engine_at(e, gpa), len, MADV_DONTNEED);
	umbra_invalidate_end(e->vm.chain, &r);
}

bool engine_revoke_is_obeyed(struct engine *e, uint64_t gpa, unsigned int us)
{
	struct umbra_range r = {
		.hull = hva_range_of(engine_at(e, gpa), UMBRA_PAGE_SIZE),
		.flags = UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_FORCED | UMBRA_RANGE_RELOCATES,
		.cause = UMBRA_CAUSE_DISCARD,
		.source = UMBRA_SOURCE_OWN,
	};
	const uint64_t *word = engine_at(e, gpa);
	uint64_t before, after;

	umbra_invalidate_start(e->vm.chain, &r);
	before = __atomic_load_n(word, __ATOMIC_RELAXED);
	engine_pause(us);
	after = __atomic_load_n(word, __ATOMIC_RELAXED);
	madvise(engine_at(e, gpa), UMBRA_PAGE_SIZE, MADV_DONTNEED);
	umbra_invalidate_end(e->vm.chain, &r);
	return after == before || !after; /* 0: another thread of the test discarded it */
}

static void print_line(void *arg, const char *line)
{
	(void)arg;
	fprintf(stderr, "check: %s\n", line);
}

unsigned int engine_check(struct engine *e)
{
	return umbra_check(e->vm.mmu, print_line, NULL);
}
