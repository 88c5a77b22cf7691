/* SPDX-License-Identifier: BSD-2-Clause */
/* emulate() on a machine whose vCPU is not started: registers, string instructions, refusals. */
#include "../support/engine_test.h"

#include <string.h>
#include <vmm/emulate.h>

static struct kvm_regs regs;
static struct kvm_sregs sregs;
static struct monitor_frame frame;
static struct emulate_state state;
static struct emulate em;

static void set_up(void)
{
	if (engine_create(&e, 1, 64ULL << 20, GUEST_PAGES_4K))
		cr_skip_test("no usable KVM");
	emulate_init(&state);
	em = (struct emulate){
		.vm = &e.vm,
		.vcpu = e.vm.vcpus[0],
		.vcpu_fd = -1,
		.regs = &regs,
		.sregs = &sregs,
		.frame = &frame,
		.state = &state,
	};
}

static enum emulate_result run(uint64_t rip, const void *code, size_t n)
{
	memcpy(engine_at(&e, rip), code, n);
	frame.rip = rip;
	return emulate(&em);
}

#define RUN(...)                                            \
	run(ENGINE_LOOSE, (const uint8_t[]){ __VA_ARGS__ }, \
	    sizeof((const uint8_t[]){ __VA_ARGS__ }))

Test(engine_emulate, registers_are_read_and_written_as_documented)
{
	set_up();
	regs.rcx = GUEST_MSR_FS_BASE;
	regs.rax = 0x12345678;
	regs.rdx = 0x7;
	cr_expect_eq(RUN(0x0f, 0x30), EMULATE_DONE);
	cr_expect_eq(sregs.fs.base, 0x712345678);
	cr_expect_eq(em.dirty, KVM_SYNC_X86_SREGS);
	cr_expect_eq(frame.rip, ENGINE_LOOSE + 2);
	regs.rdx = 0x8000;
	cr_expect_eq(RUN(0x0f, 0x30), EMULATE_REFUSED, "a base beyond guest memory");
	regs.rcx = 0x1b;
	regs.rax = regs.rdx = ~0ULL;
	cr_expect_eq(RUN(0x0f, 0x32), EMULATE_DONE);
	cr_expect(regs.rax == 0xfee00000 && !regs.rdx, "not the first vCPU, upper halves cleared");
	cr_expect_eq(RUN(0x0f, 0x30), EMULATE_REFUSED, "read only");
	regs.rcx = 0xc0000082;
	cr_expect_eq(RUN(0x0f, 0x32), EMULATE_REFUSED);
	cr_expect_eq(frame.rip, ENGINE_LOOSE, "a refused instruction is not stepped over");
	regs.rax = 0;
	cr_expect_eq(RUN(0x0f, 0x22, 0xd8), EMULATE_DONE, "cr3 = 0");
	regs.rax = 0x1000;
	cr_expect_eq(RUN(0x0f, 0x22, 0xd8), EMULATE_REFUSED, "cr3 = a table");
	cr_expect_eq(RUN(0x0f, 0x20, 0xc0), EMULATE_DONE);
	regs.rax |= 1ULL << 31;
	cr_expect_eq(RUN(0x0f, 0x22, 0xc0), EMULATE_REFUSED, "paging on");
	cr_expect_eq(RUN(0x0f, 0x20, 0xc4), EMULATE_DONE, "into rsp");
	cr_expect_eq(frame.rsp, state.cr0);
	cr_expect(RUN(0xfb) == EMULATE_DONE && state.interrupts);
	cr_expect(RUN(0xfa) == EMULATE_DONE && !state.interrupts);
	cr_expect_eq(RUN(0xf4), EMULATE_HALT);
	engine_destroy(&e);
}

Test(engine_emulate, string_instructions_move_their_registers)
{
	const uint8_t rep_insb[] = { 0xf3, 0x6c }, rep_outsb[] = { 0xf3, 0x6e };

	set_up();
	regs.rdx = 0x9999; /* nobody's port: reads as all ones */
	regs.rdi = ENGINE_LOOSE + 0x2003;
	regs.rcx = 4;
	frame.rflags = 1U << 10;
	cr_expect_eq(RUN(0xf3, 0x6c), EMULATE_DONE, "downwards: %s", em.why);
	cr_expect(regs.rdi == ENGINE_LOOSE + 0x1fff && !regs.rcx);
	cr_expect_eq(*(uint32_t *)engine_at(&e, ENGINE_LOOSE + 0x2000), ~0U);
	frame.rflags = 0;
	cr_expect_eq(RUN(0xf3, 0x6c), EMULATE_DONE, "a count of 0 does nothing");
	cr_expect_eq(regs.rdi, ENGINE_LOOSE + 0x1fff);
	regs.rcx = 5000;
	cr_expect_eq(run(ENGINE_LOOSE, rep_insb, 2), EMULATE_DONE);
	cr_expect(frame.rip == ENGINE_LOOSE && regs.rcx == 5000 - 4096, "comes again for the rest");
	cr_expect_eq(emulate(&em), EMULATE_DONE);
	cr_expect(frame.rip == ENGINE_LOOSE + 2 && !regs.rcx);
	regs.rsi = 64ULL << 20;
	regs.rcx = 1;
	cr_expect_eq(run(ENGINE_LOOSE, rep_outsb, 2), EMULATE_REFUSED, "from beyond memory");
	cr_expect(regs.rsi == 64ULL << 20 && regs.rcx == 1, "nothing was put out");
	/* what was done before an element failed stays done, and the registers say how far it came */
	regs.rsi = (64ULL << 20) - 6;
	regs.rcx = 10;
	cr_expect_eq(run(ENGINE_LOOSE, rep_outsb, 2), EMULATE_REFUSED);
	cr_expect_eq(regs.rsi, 64ULL << 20);
	cr_expect_eq(regs.rcx, 4);
	cr_expect_eq(em.dirty, KVM_SYNC_X86_REGS);
	regs.rdi = (64ULL << 20) - 3;
	regs.rcx = 1ULL << 40;
	cr_expect_eq(run(ENGINE_LOOSE, rep_insb, 2), EMULATE_REFUSED);
	cr_expect(regs.rdi == 64ULL << 20 && regs.rcx == (1ULL << 40) - 3);
	regs.rdi = 3;
	regs.rcx = 9;
	frame.rflags = 1U << 10;
	cr_expect_eq(run(ENGINE_LOOSE, rep_insb, 2), EMULATE_REFUSED, "downwards, below 0");
	cr_expect(regs.rdi == ~0ULL && regs.rcx == 5, "%llx", regs.rdi);
	frame.rflags = 0;
	cr_expect_eq(frame.rip, ENGINE_LOOSE, "it is not stepped over");
	/* at a page's end, and at the end of memory */
	cr_expect_eq(run(ENGINE_LOOSE + 0xfff, "\x0f\x09", 2), EMULATE_DONE);
	cr_expect_eq(run((64ULL << 20) - 1, "\xfa", 1), EMULATE_DONE);
	cr_expect_eq(run((64ULL << 20) - 1, "\x0f", 1), EMULATE_REFUSED);
	engine_destroy(&e);
}
