/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * escape: what a hostile guest tries, one attempt a run, and what must become of it.
 *
 * Arguments: list (the table), n=NUMBER, or name=NAME. A CRASH ends the machine as a guest crash; a
 * HARMLESS attempt is survived and its effect checked; REFUSED is a host call that answers a
 * negative errno; EITHER depends on the processor, but is one of crash and harmless.
 */
#include "guest.h"

enum expect { CRASH, HARMLESS, REFUSED, EITHER, HALT };

#define KERNEL_CS 0x08UL
#define HIGH      0xffff800000000000UL
#define MONITOR   0xffffff8000000000UL /* the top 512 GiB: where the monitor and the tables live */

/* A failed attempt says what was wrong; NULL: went as it should for one who survives. */
typedef const char *attempt_fn(uint64_t arg);

#define ATTEMPT(name) static const char *name(uint64_t arg)
#define INSN(name, ...)                                                                    \
	ATTEMPT(name)                                                                      \
	{                                                                                  \
		__asm__ __volatile__(__VA_ARGS__                                           \
				     : "+D"(arg)::"rax", "rbx", "rcx", "rdx", "rsi", "r8", \
				       "memory", "cc");                                    \
		return NULL;                                                               \
	}

/* ---- memory that is not the guest's ---- */
INSN(peek, "mov (%%rdi), %%rax")
INSN(poke, "movq $-1, (%%rdi)")
INSN(jump, "jmp *%%rdi")
INSN(add, "lock addq $1, (%%rdi)")
INSN(prefetch, "prefetcht0 (%%rdi)\n\tprefetchw (%%rdi)")
INSN(clflush, "clflush (%%rdi)")
INSN(stack_there, "mov %%rdi, %%rsp\n\tpush %%rax")
INSN(stack_bad_fault, "mov %%rdi, %%rsp\n\tud2")
INSN(stack_bad_out, "mov %%rdi, %%rsp\n\tmov $0x3fd, %%edx\n\tin %%dx, %%al\n\tud2")

/* Offsets from the end of memory. */
ATTEMPT(peek_end)
{
	return peek(guest_boot->memory + arg);
}
ATTEMPT(poke_end)
{
	return poke(guest_boot->memory + arg);
}
ATTEMPT(jump_end)
{
	return jump(guest_boot->memory + arg);
}

/* @arg: little-endian bytes, at most 8, that end exactly at the end of memory, and are run. */
ATTEMPT(run_last)
{
	uint64_t n = 0;

	while (n < 8 && arg >> 8 * n)
		n++;
	for (uint64_t i = 0; i < n; i++)
		*(uint8_t *)(guest_boot->memory - n + i) = (uint8_t)(arg >> 8 * i);
	return jump(guest_boot->memory - n);
}

/* Code made at run time: b8 imm32 (mov eax), c3 (ret). */
static uint32_t run_mov(uint64_t at, uint32_t value)
{
	uint8_t *code = (uint8_t *)at;
	uint32_t (*run)(void) = (uint32_t(*)(void))at;

	code[0] = 0xb8;
	memcpy(code + 1, &value, 4);
	code[5] = 0xc3;
	__asm__ __volatile__("" ::: "memory");
	return run();
}

ATTEMPT(self_modify)
{
	uint64_t at = memory_take(2 * PAGE, PAGE).at + arg;

	for (uint32_t i = 1; i < 200; i++) {
		if (run_mov(at, i * 77) != i * 77)
			return "old code ran";
		/* The page under the code changes too: first by remapping, then by protection. */
		if (i % 50 == 0)
			host(i % 100 ? GUEST_CALL_REMAP : GUEST_CALL_PROTECT, at & ~(PAGE - 1),
			     2 * PAGE);
	}
	return NULL;
}

/* An emulated instruction whose bytes lie on two pages, the second one not there yet. */
ATTEMPT(straddle)
{
	uint64_t at = memory_take(4 * PAGE, PAGE).at + PAGE - arg;
	static const uint8_t code[] = { 0x66, 0xba, 0xfd, 0x03, 0xec, 0xc3 }; /* in 0x3fd */
	void (*run)(void) = (void (*)(void))at;

	memcpy((void *)at, code, sizeof(code));
	__asm__ __volatile__("call *%0" ::"r"(run) : "rax", "rdx", "memory");
	return NULL;
}

/* ---- privileged instructions ---- */
INSN(i_lgdt,
     "sub $16, %%rsp\n\tmovw $0x7f, (%%rsp)\n\tmov %%rdi, 2(%%rsp)\n\tlgdt (%%rsp)\n\tadd $16, %%rsp")
INSN(i_lidt,
     "sub $16, %%rsp\n\tmovw $0xfff, (%%rsp)\n\tmov %%rdi, 2(%%rsp)\n\tlidt (%%rsp)\n\tadd $16, %%rsp")
INSN(i_lldt, "mov $0x28, %%eax\n\tlldt %%ax")
INSN(i_ltr, "mov $0x28, %%eax\n\tltr %%ax")
INSN(i_sgdt, "sub $16, %%rsp\n\tsgdt (%%rsp)\n\tsidt (%%rsp)\n\tadd $16, %%rsp")
INSN(i_str, "str %%eax\n\tsldt %%eax\n\tsmsw %%rax")
INSN(i_lmsw, "mov $0, %%eax\n\tlmsw %%ax")
INSN(i_cr0_read, "mov %%cr0, %%rax")
INSN(i_cr3_read, "mov %%cr3, %%rax")
INSN(i_cr0_write, "mov %%rdi, %%cr0")
INSN(i_cr3_write, "mov %%rdi, %%cr3\n\tmov %%cr3, %%rax")
INSN(i_cr4_write, "mov %%rdi, %%cr4")
INSN(i_cr8_write, "mov %%rdi, %%cr8")
INSN(i_dr7_write, "mov %%rdi, %%dr7")
INSN(i_dr0_read, "mov %%dr0, %%rax")
INSN(i_rdmsr, "mov %%edi, %%ecx\n\trdmsr")
INSN(i_wrmsr, "mov %%edi, %%ecx\n\tmov $0x100000, %%eax\n\txor %%edx, %%edx\n\twrmsr")
INSN(i_wrmsr_high, "mov %%edi, %%ecx\n\tmov $0x1000, %%eax\n\tmov $0x80000000, %%edx\n\twrmsr")
INSN(i_rdpmc, "mov %%edi, %%ecx\n\trdpmc")
INSN(i_xsetbv, "xor %%ecx, %%ecx\n\txor %%edx, %%edx\n\tmov $1, %%eax\n\txsetbv")
INSN(i_invlpg, "invlpg (%%rdi)")
INSN(i_invpcid, "sub $16, %%rsp\n\tmov $2, %%eax\n\tinvpcid (%%rsp), %%rax\n\tadd $16, %%rsp")
INSN(i_wbinvd, "wbinvd")
INSN(i_invd, "invd")
INSN(i_clts, "clts")
INSN(i_swapgs, "swapgs")
INSN(i_cli, "cli\n\tsti")
INSN(i_monitor, "mov %%rsp, %%rax\n\txor %%ecx, %%ecx\n\txor %%edx, %%edx\n\tmonitor\n\tmwait")
INSN(i_vmcall, "mov %%rdi, %%rax\n\tvmcall")
INSN(i_vmmcall, "mov %%rdi, %%rax\n\tvmmcall")
INSN(i_vmrun, "mov %%rdi, %%rax\n\tvmrun")
INSN(i_vmload, "mov %%rdi, %%rax\n\tvmload")
INSN(i_stgi, "stgi\n\tclgi")
INSN(i_skinit, "xor %%eax, %%eax\n\tskinit")
INSN(i_rsm, "rsm")
INSN(i_getsec, "xor %%eax, %%eax\n\t.byte 0x0f, 0x37")
INSN(i_cpuid, "xor %%eax, %%eax\n\tcpuid\n\trdtsc")
INSN(i_wrfsbase, "mov %%rdi, %%rax\n\twrfsbase %%rax")

/* ---- ways into ring 0 ---- */
INSN(g_syscall, "syscall")
INSN(g_sysenter, "mov %%rsp, %%rcx\n\tlea 1f(%%rip), %%rdx\n\tsysenter\n1:")
INSN(g_sysret, "lea 1f(%%rip), %%rcx\n\tpushfq\n\tpop %%r11\n\tsysretq\n1:")
INSN(g_sysexit, "lea 1f(%%rip), %%rdx\n\tmov %%rsp, %%rcx\n\t.byte 0x48, 0x0f, 0x35\n1:")
INSN(g_int3, "int3")
INSN(g_int1, ".byte 0xf1")
INSN(g_into, ".byte 0xce")
INSN(g_int0, "int $0")
INSN(g_int2, "int $2")
INSN(g_int8, "int $8")
INSN(g_int13, "int $13")
INSN(g_int14, "int $14")
INSN(g_int30, "int $0x30")
INSN(g_int80, "int $0x80")
INSN(g_int255, "int $0xff")
INSN(g_far_jump,
     "push %%rdi\n\tlea 1f(%%rip), %%rax\n\tpush %%rax\n\t.byte 0x48\n\tljmp *(%%rsp)\n1:\tadd $16, %%rsp")
INSN(g_far_call,
     "push %%rdi\n\tlea 1f(%%rip), %%rax\n\tpush %%rax\n\t.byte 0x48\n\tlcall *(%%rsp)\n1:\tud2")
INSN(g_far_ret, "push %%rdi\n\tlea 1f(%%rip), %%rax\n\tpush %%rax\n\tlretq\n1:")
INSN(g_iretq,
     "mov %%rsp, %%rax\n\tmov %%ss, %%ecx\n\tpush %%rcx\n\tpush %%rax\n\tpushfq\n\tpush %%rdi\n\t"
     "lea 1f(%%rip), %%rax\n\tpush %%rax\n\tiretq\n1:")
INSN(g_iretq_ss,
     "mov %%rsp, %%rax\n\tmov %%cs, %%ecx\n\tpush %%rdi\n\tpush %%rax\n\tpushfq\n\tpush %%rcx\n\t"
     "lea 1f(%%rip), %%rax\n\tpush %%rax\n\tiretq\n1:")
/* rflags of @arg: IOPL 3, NT, VM, RF ... by an iretq that stays in ring 3. */
INSN(g_iretq_flags,
     "mov %%rsp, %%rax\n\tmov %%ss, %%ecx\n\tpush %%rcx\n\tpush %%rax\n\tpush %%rdi\n\t"
     "mov %%cs, %%ecx\n\tpush %%rcx\n\tlea 1f(%%rip), %%rax\n\tpush %%rax\n\tiretq\n1:")
INSN(g_iretq_noncanonical,
     "mov %%rsp, %%rax\n\tmov %%ss, %%ecx\n\tpush %%rcx\n\tpush %%rax\n\tpushfq\n\t"
     "mov %%cs, %%ecx\n\tpush %%rcx\n\tpush %%rdi\n\tiretq")
INSN(g_mov_ss, "mov %%edi, %%ss")
INSN(g_mov_ds, "mov %%edi, %%ds")
INSN(g_mov_fs, "mov %%edi, %%fs")
INSN(g_mov_ss_shadow,
     "mov %%ss, %%eax\n\tpushfq\n\torl $0x100, (%%rsp)\n\tpopfq\n\tmov %%eax, %%ss\n\tint3")
INSN(g_popf_tf, "pushfq\n\torl $0x100, (%%rsp)\n\tpopfq\n\tnop\n\tnop")
INSN(g_popf_nt, "pushfq\n\torl $0x4000, (%%rsp)\n\tpopfq\n\tmov $0x3fd, %%edx\n\tin %%dx, %%al\n\t"
		"pushfq\n\tandl $~0x4000, (%%rsp)\n\tpopfq")
INSN(g_popf_ac, "pushfq\n\torl $0x40000, (%%rsp)\n\tpopfq\n\tmov 1(%%rsp), %%rax\n\tpushfq\n\t"
		"andl $~0x40000, (%%rsp)\n\tpopfq")

ATTEMPT(g_popf_iopl)
{
	uint64_t flags;

	__asm__ __volatile__("pushfq\n\torl %1, (%%rsp)\n\tpopfq\n\tpushfq\n\tpop %0"
			     : "=r"(flags)
			     : "r"((uint32_t)arg)
			     : "memory", "cc");
	return flags & 0x3000 ? "the guest raised its I/O privilege" : NULL;
}

/* ---- faults ---- */
INSN(f_divide, "xor %%ecx, %%ecx\n\tmov $1, %%eax\n\txor %%edx, %%edx\n\tdiv %%ecx")
INSN(f_ud2, "ud2")
INSN(f_lock, ".byte 0xf0, 0x90")
INSN(f_long, ".fill 15, 1, 0x66\n\tnop")
INSN(f_long_hlt, ".fill 15, 1, 0x66\n\thlt")
INSN(f_lock_hlt, ".byte 0xf0, 0xf4")
INSN(f_lock_out, ".byte 0xf0, 0xee")
INSN(f_x87, "fninit\n\tpush $0\n\tfldcw (%%rsp)\n\tfld1\n\tfldz\n\tfdivrp\n\tfwait")
INSN(f_sse,
     "push $0\n\tldmxcsr (%%rsp)\n\tpxor %%xmm0, %%xmm0\n\tmov $1, %%eax\n\tcvtsi2ss %%eax, %%xmm1\n\t"
     "divss %%xmm0, %%xmm1")
INSN(f_noncanonical, "movabs $0x8000000000000000, %%rax\n\tmov (%%rax), %%rax")
INSN(f_recursion, "movabs $0xcccccccccccccccc, %%rax\n1: push %%rax\n\tjmp 1b")

ATTEMPT(f_hlt)
{
	(void)arg;
	for (int i = 0; i < 1000; i++)
		__asm__ __volatile__("hlt");
	return NULL;
}

/* ---- ports ---- */
ATTEMPT(p_monitor_ports)
{
	for (uint16_t port = 0xc0; port < 0xf0; port++) {
		__asm__ __volatile__("outb %%al, %%dx" ::"a"((uint8_t)arg), "d"(port));
		__asm__ __volatile__("outw %%ax, %%dx" ::"a"((uint16_t)arg), "d"(port));
		__asm__ __volatile__("outl %%eax, %%dx" ::"a"((uint32_t)arg), "d"(port));
		(void)port_in32(port);
	}
	return NULL;
}

ATTEMPT(p_other_ports)
{
	static const uint16_t ports[] = { 0x20, 0x21,  0x60,  0x64, 0x70,  0x71,
					  0x80, 0xcf8, 0xcfc, 0x92, 0xffff };

	for (unsigned int i = 0; i < sizeof(ports) / sizeof(ports[0]); i++) {
		port_out32(ports[i], (uint32_t)arg);
		(void)port_in32(ports[i]);
	}
	return NULL;
}

static const char *outs(uint16_t port, uint64_t from, uint64_t count)
{
	__asm__ __volatile__("rep outsb" : "+S"(from), "+c"(count) : "d"(port) : "memory");
	return NULL;
}

ATTEMPT(p_outs_across)
{
	return outs(GUEST_PORT_SERIAL, guest_boot->memory - 16, arg);
}
ATTEMPT(p_outs_from)
{
	return outs(GUEST_PORT_SERIAL, arg, 64);
}
ATTEMPT(p_outs_zero)
{
	return outs(GUEST_PORT_SERIAL, arg, 0);
}
INSN(p_ins, "mov $0x3fd, %%edx\n\tmov $16, %%ecx\n\trep insb")
INSN(p_outs_backwards,
     "mov %%rdi, %%rsi\n\tmov $64, %%ecx\n\tmov $0x80, %%edx\n\tstd\n\trep outsb\n\tcld")
INSN(p_outs_addr32, "mov %%rdi, %%rsi\n\tmov $4, %%ecx\n\tmov $0x80, %%edx\n\taddr32 rep outsb")
INSN(p_outs_fs, "mov %%rdi, %%rsi\n\tmov $4, %%ecx\n\tmov $0x80, %%edx\n\tfs rep outsb")
INSN(p_exit_byte, "mov $0xf4, %%edx\n\txor %%eax, %%eax\n\toutb %%al, %%dx")

/* ---- host calls ---- */
ATTEMPT(h_wild)
{
	port_out32(GUEST_PORT_HOSTCALL, (uint32_t)arg);
	return NULL;
}
ATTEMPT(h_wild_end)
{
	return h_wild(guest_boot->memory + arg);
}

static const char *refused(int64_t ret)
{
	say("host answered %ld\n", ret);
	return ret < 0 ? NULL : "the host agreed";
}

ATTEMPT(h_number)
{
	return refused(host((enum guest_hostcall_nr)arg, guest_boot->free_base, PAGE));
}
ATTEMPT(h_reserved)
{
	struct guest_hostcall c = { .nr = GUEST_CALL_NOP, .reserved = (uint32_t)arg };

	port_out32(GUEST_PORT_HOSTCALL, (uint32_t)(uintptr_t)&c);
	__asm__ __volatile__("" : "+m"(c)::"memory");
	return refused(c.ret);
}

/* Each call that takes a range, with a range that is not one; all must be refused. */
static const char *all_refused(uint64_t gpa, uint64_t len)
{
	static const enum guest_hostcall_nr calls[] = {
		GUEST_CALL_ARENA,    GUEST_CALL_DISCARD, GUEST_CALL_PROTECT, GUEST_CALL_SPLIT,
		GUEST_CALL_COLLAPSE, GUEST_CALL_SWAPOUT, GUEST_CALL_REMAP,   GUEST_CALL_FORK_SUM,
		GUEST_CALL_LOG_READ, GUEST_CALL_LEAVES,  GUEST_CALL_FREE,
	};

	for (unsigned int i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		int64_t ret = host(calls[i], gpa, len);

		if (ret >= 0) {
			say("call %u agreed to gpa 0x%lx len 0x%lx: %ld\n", calls[i], gpa, len,
			    ret);
			return "the host agreed";
		}
	}
	return NULL;
}

ATTEMPT(h_unaligned)
{
	return all_refused(guest_boot->free_base + arg, PAGE);
}
ATTEMPT(h_length)
{
	return all_refused(guest_boot->free_base, arg);
}
ATTEMPT(h_beyond)
{
	return all_refused(guest_boot->memory + arg, 2 * PAGE);
}
ATTEMPT(h_at)
{
	return all_refused(arg, 2 * PAGE);
}
ATTEMPT(h_overflow)
{
	return all_refused(arg, 0UL - arg + PAGE);
}
ATTEMPT(h_child)
{
	uint64_t val;

	return refused(host_call(GUEST_CALL_FORK_SUM, guest_boot->free_base, PAGE, arg, &val));
}
ATTEMPT(h_log_to)
{
	host(GUEST_CALL_LOG_RESET, guest_boot->free_base, BLOCK);
	return refused(host_call(GUEST_CALL_LOG_READ, guest_boot->free_base, BLOCK, arg, NULL));
}
ATTEMPT(h_log_to_end)
{
	return h_log_to(guest_boot->memory + arg);
}
ATTEMPT(h_forks)
{
	int64_t ret = 0;

	for (uint64_t i = 0; i < arg && ret >= 0; i++)
		ret = host(GUEST_CALL_FORK, guest_boot->free_base, PAGE);
	return refused(ret);
}
ATTEMPT(h_arenas)
{
	int64_t ret = 0;

	for (uint64_t i = 0; i < arg && ret >= 0; i++)
		ret = host(GUEST_CALL_ARENA, guest_boot->free_base + i % 16 * BLOCK, host_page());
	return refused(ret);
}

/* The call discards, protects or moves the very page its request lies in. */
ATTEMPT(h_own_request)
{
	struct range r = memory_take(host_page(), host_page());
	struct guest_hostcall *c = (struct guest_hostcall *)(r.at + 256);

	*c = (struct guest_hostcall){ .nr = (uint32_t)arg, .gpa = r.at, .len = r.len, .ret = 1 };
	port_out32(GUEST_PORT_HOSTCALL, (uint32_t)(uintptr_t)c);
	__asm__ __volatile__("" ::: "memory");
	return c->ret == 0 ? NULL : "no answer at the request";
}

/* On all memory at once: code, stack and boot information with it. */
ATTEMPT(h_everything)
{
	int64_t ret = host((enum guest_hostcall_nr)arg, 0, guest_boot->memory);

	say("host answered %ld\n", ret);
	return guest_boot->magic == GUEST_BOOT_MAGIC ? NULL : "boot information is gone";
}

static const struct {
	const char *name;
	attempt_fn *run;
	uint64_t arg;
	enum expect expect;
} attempts[] = {
#include "escape_table.h"
};

#define ATTEMPTS (sizeof(attempts) / sizeof(attempts[0]))

static bool named(uint64_t i)
{
	return arg_is("name", attempts[i].name);
}

void guest_main(void)
{
	static const char *const words[] = { "CRASH", "HARMLESS", "REFUSED", "EITHER", "HALT" };
	uint64_t n = arg_number("n", ATTEMPTS);
	const char *wrong;

	if (arg_word("list")) {
		for (uint64_t i = 0; i < ATTEMPTS; i++)
			say("%lu %s %s\n", i, attempts[i].name, words[attempts[i].expect]);
		guest_exit(0);
	}
	if (arg_find("name"))
		for (n = 0; n < ATTEMPTS && !named(n); n++)
			;
	if (n >= ATTEMPTS) {
		say("escape: no such attempt; -- list shows %lu\n", ATTEMPTS);
		guest_exit(2);
	}
	say("n=%lu: trying %s, expected: %s\n", n, attempts[n].name, words[attempts[n].expect]);
	wrong = attempts[n].run(arg_number("arg", attempts[n].arg));
	if (wrong) {
		say("WRONG n=%lu: %s: %s\n", n, attempts[n].name, wrong);
		guest_exit(1);
	}
	/* The boundary still works after it. */
	if (host(GUEST_CALL_NOP, 0, 0) != 0 || host(GUEST_CALL_CHECK, 0, 0) != 0) {
		say("WRONG n=%lu: %s: host calls or tables are not right any more\n", n,
		    attempts[n].name);
		guest_exit(1);
	}
	say("SURVIVED n=%lu: %s\n", n, attempts[n].name);
	guest_exit(attempts[n].expect == CRASH ? 1 : 0);
}
