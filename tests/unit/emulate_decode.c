/* SPDX-License-Identifier: BSD-2-Clause */
/* insn_decode: a pure function over byte strings. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <vmm/emulate.h>

#define DECODE(insn, ...)                                                                       \
	insn_decode((const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }), \
		    insn)

Test(decode, every_form_of_in_and_out)
{
	static const struct {
		uint8_t code[4];
		size_t len;
		enum insn_op op;
		unsigned int bytes;
		bool dx;
	} forms[] = {
		{ { 0xe4, 0x60 }, 2, INSN_IN, 1, false },
		{ { 0xe5, 0x60 }, 2, INSN_IN, 4, false },
		{ { 0x66, 0xe5, 0x60 }, 3, INSN_IN, 2, false },
		{ { 0xe6, 0x60 }, 2, INSN_OUT, 1, false },
		{ { 0xe7, 0x60 }, 2, INSN_OUT, 4, false },
		{ { 0x66, 0xe7, 0x60 }, 3, INSN_OUT, 2, false },
		{ { 0xec }, 1, INSN_IN, 1, true },
		{ { 0xed }, 1, INSN_IN, 4, true },
		{ { 0x66, 0xed }, 2, INSN_IN, 2, true },
		{ { 0xee }, 1, INSN_OUT, 1, true },
		{ { 0xef }, 1, INSN_OUT, 4, true },
		{ { 0x66, 0xef }, 2, INSN_OUT, 2, true },
		{ { 0x48, 0xef }, 2, INSN_OUT, 4, true }, /* REX.W does not widen it */
		{ { 0x6c }, 1, INSN_INS, 1, true },
		{ { 0x6d }, 1, INSN_INS, 4, true },
		{ { 0x66, 0x6d }, 2, INSN_INS, 2, true },
		{ { 0x6e }, 1, INSN_OUTS, 1, true },
		{ { 0x66, 0x6f }, 2, INSN_OUTS, 2, true },
		{ { 0x6f }, 1, INSN_OUTS, 4, true },
	};
	struct insn insn;

	for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
		cr_assert_eq(insn_decode(forms[i].code, forms[i].len, &insn), 0, "form %zu", i);
		cr_assert_eq(insn.op, forms[i].op, "form %zu", i);
		cr_assert_eq(insn.bytes, forms[i].bytes, "form %zu", i);
		cr_assert_eq(insn.port_in_dx, forms[i].dx, "form %zu", i);
		cr_assert_eq(insn.length, forms[i].len, "form %zu", i);
		if (!forms[i].dx)
			cr_assert_eq(insn.port, 0x60, "form %zu", i);
	}
}

Test(decode, prefixes_of_string_instructions)
{
	struct insn insn;

	cr_assert_eq(DECODE(&insn, 0xf3, 0x67, 0x66, 0x6f), 0);
	cr_assert(insn.rep && insn.addr32 && insn.bytes == 2 && insn.length == 4);
	cr_assert_eq(DECODE(&insn, 0xf2, 0x6e), 0);
	cr_assert(insn.rep && !insn.addr32 && !insn.far_segment);
	cr_assert_eq(DECODE(&insn, 0x65, 0x6e), 0);
	cr_assert(insn.far_segment && !insn.rep);
	cr_assert_eq(DECODE(&insn, 0x2e, 0x6e), 0);
	cr_assert(!insn.far_segment);
}

Test(decode, control_registers_and_rex)
{
	struct insn insn;

	cr_assert_eq(DECODE(&insn, 0x0f, 0x20, 0xd8), 0); /* mov %cr3, %rax */
	cr_assert(insn.op == INSN_MOV_FROM_CR && insn.cr == 3 && insn.gpr == 0 && insn.length == 3);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x22, 0xe1), 0); /* mov %rcx, %cr4 */
	cr_assert(insn.op == INSN_MOV_TO_CR && insn.cr == 4 && insn.gpr == 1);
	cr_assert_eq(DECODE(&insn, 0x44, 0x0f, 0x20, 0xc0), 0); /* mov %cr8, %rax */
	cr_assert(insn.cr == 8 && insn.gpr == 0);
	cr_assert_eq(DECODE(&insn, 0x41, 0x0f, 0x22, 0xc7), 0); /* mov %r15, %cr0 */
	cr_assert(insn.cr == 0 && insn.gpr == 15);
	cr_assert_eq(DECODE(&insn, 0xf0, 0x0f, 0x20, 0xc0), 0); /* AMD's mov %cr8, %rax */
	cr_assert_eq(insn.cr, 8);
	/* a REX prefix that is not the last prefix does not count */
	cr_assert_eq(DECODE(&insn, 0x41, 0x66, 0x0f, 0x22, 0xc7), 0);
	cr_assert_eq(insn.gpr, 7);
	/* mod is ignored: still a register */
	cr_assert_eq(DECODE(&insn, 0x0f, 0x20, 0x18), 0);
	cr_assert(insn.cr == 3 && insn.length == 3);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x20, 0xc8), -EINVAL);       /* cr1 */
	cr_assert_eq(DECODE(&insn, 0x0f, 0x22, 0xf8), -EINVAL);       /* cr7 */
	cr_assert_eq(DECODE(&insn, 0x44, 0x0f, 0x20, 0xc8), -EINVAL); /* cr9 */
}

Test(decode, length_of_memory_operands)
{
	struct insn insn;

	cr_assert_eq(DECODE(&insn, 0x0f, 0x01, 0x38), 0); /* invlpg (%rax) */
	cr_assert(insn.op == INSN_INVLPG && insn.length == 3);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x01, 0x3c, 0x24), 0); /* (%rsp) */
	cr_assert_eq(insn.length, 4);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x01, 0x7c, 0x24, 0x10), 0); /* 16(%rsp) */
	cr_assert_eq(insn.length, 5);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x01, 0xb8, 1, 2, 3, 4), 0); /* disp32(%rax) */
	cr_assert_eq(insn.length, 7);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x01, 0x3d, 1, 2, 3, 4), 0); /* disp32(%rip) */
	cr_assert_eq(insn.length, 7);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x01, 0x3c, 0x25, 1, 2, 3, 4), 0); /* disp32 alone */
	cr_assert_eq(insn.length, 8);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x01, 0x10), 0);
	cr_assert_eq(insn.op, INSN_LGDT);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x01, 0x18), 0);
	cr_assert_eq(insn.op, INSN_LIDT);
}

Test(decode, what_is_named_but_not_carried_out)
{
	struct insn insn;

	cr_assert_eq(DECODE(&insn, 0x0f, 0x01, 0xf8), 0);
	cr_assert_str_eq(insn.name, "swapgs");
	cr_assert_eq(DECODE(&insn, 0x0f, 0x01, 0xd1), 0);
	cr_assert_str_eq(insn.name, "xsetbv");
	cr_assert_eq(DECODE(&insn, 0x0f, 0x00, 0xd8), 0);
	cr_assert_str_eq(insn.name, "ltr");
	cr_assert_eq(DECODE(&insn, 0x0f, 0x23, 0xf8), 0);
	cr_assert_eq(insn.op, INSN_OTHER);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x08), 0);
	cr_assert_eq(insn.op, INSN_OTHER);
}

Test(decode, unprivileged_and_locked_instructions_are_refused)
{
	struct insn insn;

	cr_assert_eq(DECODE(&insn, 0x90), -EINVAL);
	cr_assert_eq(DECODE(&insn, 0xcd, 0x80), -EINVAL);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x0b), -EINVAL);
	cr_assert_eq(DECODE(&insn, 0xf0, 0xee), -EINVAL);
	cr_assert_eq(DECODE(&insn, 0xf0, 0xf4), -EINVAL);
	cr_assert_eq(DECODE(&insn, 0x0f, 0x01, 0x28), -EINVAL); /* no /5 with memory */
	cr_assert_eq(DECODE(&insn, 0x0f, 0x00, 0x30), -EINVAL); /* no /6 */
}

Test(decode, truncation_at_every_byte_is_told)
{
	static const struct {
		uint8_t code[10];
		size_t len;
	} whole[] = {
		{ { 0xf4 }, 1 },
		{ { 0xe4, 0x60 }, 2 },
		{ { 0xf3, 0x67, 0x66, 0x6f }, 4 },
		{ { 0x0f, 0x20, 0xd8 }, 3 },
		{ { 0x0f, 0x01, 0x3c, 0x25, 1, 2, 3, 4 }, 8 },
		{ { 0x0f, 0x01, 0xbc, 0x24, 1, 2, 3, 4 }, 8 },
		{ { 0x66, 0x41, 0x0f, 0x30 }, 4 },
	};
	struct insn insn;

	for (size_t i = 0; i < sizeof(whole) / sizeof(whole[0]); i++) {
		for (size_t n = 0; n < whole[i].len; n++)
			cr_assert_eq(insn_decode(whole[i].code, n, &insn), -ENODATA, "%zu at %zu",
				     i, n);
		cr_assert_eq(insn_decode(whole[i].code, whole[i].len, &insn), 0, "%zu", i);
		cr_assert_eq(insn.length, whole[i].len, "%zu", i);
	}
}

Test(decode, fifteen_bytes_are_the_most)
{
	uint8_t code[32];
	struct insn insn;

	memset(code, 0x66, sizeof(code));
	code[14] = 0xf4;
	cr_assert_eq(insn_decode(code, sizeof(code), &insn), 0);
	cr_assert_eq(insn.length, 15);
	code[14] = 0x66;
	code[15] = 0xf4;
	cr_assert_eq(insn_decode(code, sizeof(code), &insn), -EINVAL);
	cr_assert_eq(insn_decode(code, 15, &insn), -EINVAL);
	cr_assert_eq(insn_decode(code, 14, &insn), -ENODATA);
}

/* Any three bytes behind any prefix: an answer, never more bytes than there are. */
Test(decode, all_short_strings_have_an_answer)
{
	static const uint8_t prefixes[] = { 0x66, 0x67, 0xf3, 0xf0, 0x64, 0x41, 0x90 };
	unsigned int known = 0;
	struct insn insn;

	for (size_t p = 0; p < sizeof(prefixes); p++) {
		for (uint32_t v = 0; v < 1U << 24; v += 3) {
			uint8_t code[4] = { prefixes[p], (uint8_t)v, (uint8_t)(v >> 8),
					    (uint8_t)(v >> 16) };
			int ret = insn_decode(code, sizeof(code), &insn);

			cr_assert(ret == 0 || ret == -EINVAL || ret == -ENODATA);
			if (ret)
				continue;
			known++;
			cr_assert(insn.length >= 1 && insn.length <= sizeof(code));
			cr_assert_not_null(insn.name);
		}
	}
	cr_assert_gt(known, 0);
}
