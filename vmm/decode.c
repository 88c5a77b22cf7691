/* SPDX-License-Identifier: BSD-2-Clause */
/* Decoding of privileged instructions in 64-bit mode: a pure function over at most 15 bytes. */
#include <errno.h>
#include <vmm/emulate.h>

/* What has been read so far; @error sticks. */
struct reader {
	const uint8_t *code;
	size_t len, at;
	int error;
};

static uint8_t next(struct reader *r)
{
	if (r->error)
		return 0;
	if (r->at >= INSN_MAX)
		r->error = -EINVAL; /* longer than any instruction may be */
	else if (r->at >= r->len)
		r->error = -ENODATA;
	else
		return r->code[r->at++];
	return 0;
}

struct prefixes {
	bool rep, op16, addr32, far_segment, lock;
	uint8_t rex; /* 0: none */
};

/* Returns: the first opcode byte. A REX prefix counts only right in front of it. */
static uint8_t read_prefixes(struct reader *r, struct prefixes *p)
{
	for (;;) {
		uint8_t b = next(r);

		if (r->error)
			return 0;
		switch (b) {
		case 0xf2:
		case 0xf3: p->rep = true; break;
		case 0x66: p->op16 = true; break;
		case 0x67: p->addr32 = true; break;
		case 0x64:
		case 0x65: p->far_segment = true; break;
		case 0x26: /* without meaning in 64-bit mode, but allowed; they undo FS and GS not
			    */
		case 0x2e:
		case 0x36:
		case 0x3e: break;
		case 0xf0: p->lock = true; break;
		default:
			if ((b & 0xf0) == 0x40) {
				p->rex = b;
				continue;
			}
			return b;
		}
		p->rex = 0;
	}
}

/* Steps over what a ModRM byte of a memory operand is followed by. */
static void skip_memory(struct reader *r, uint8_t modrm)
{
	unsigned int mod = modrm >> 6, rm = modrm & 7;
	unsigned int displacement = mod == 1 ? 1 : mod == 2 ? 4 : 0;

	if (mod == 3)
		return;
	if (rm == 4) {
		if ((next(r) & 7) == 5 && !mod)
			displacement = 4;
	} else if (rm == 5 && !mod) {
		displacement = 4;
	}
	while (displacement--)
		next(r);
}

static void named(struct insn *insn, enum insn_op op, const char *name)
{
	insn->op = op;
	insn->name = name;
}

/* 0f 01: descriptor tables, invlpg, and instructions that use the register forms. */
static void decode_0f01(struct reader *r, struct insn *insn)
{
	static const char *const memory[] = { "sgdt", "sidt", "lgdt", "lidt",
					      "smsw", NULL,   "lmsw", "invlpg" };
	uint8_t modrm = next(r);
	unsigned int reg = modrm >> 3 & 7;

	if (modrm >> 6 == 3) {
		if (modrm == 0xd1)
			named(insn, INSN_OTHER, "xsetbv");
		else if (modrm == 0xf8)
			named(insn, INSN_OTHER, "swapgs");
		else if (reg == 6)
			named(insn, INSN_OTHER, "lmsw");
		else if (reg == 4)
			named(insn, INSN_OTHER, "smsw");
		else
			r->error = r->error ? r->error : -EINVAL;
		return;
	}
	if (!memory[reg]) {
		r->error = r->error ? r->error : -EINVAL;
		return;
	}
	named(insn,
	      reg == 2   ? INSN_LGDT
	      : reg == 3 ? INSN_LIDT
	      : reg == 7 ? INSN_INVLPG
			 : INSN_OTHER,
	      memory[reg]);
	skip_memory(r, modrm);
}

static void decode_0f00(struct reader *r, struct insn *insn)
{
	static const char *const names[] = { "sldt", "str", "lldt", "ltr", "verr", "verw" };
	uint8_t modrm = next(r);

	if ((modrm >> 3 & 7) > 5) {
		r->error = r->error ? r->error : -EINVAL;
		return;
	}
	named(insn, INSN_OTHER, names[modrm >> 3 & 7]);
	skip_memory(r, modrm);
}

/* mov to and from control registers: always 64 bits, always a register, whatever mod says. */
static void decode_cr(struct reader *r, const struct prefixes *p, struct insn *insn, bool to)
{
	uint8_t modrm = next(r);

	named(insn, to ? INSN_MOV_TO_CR : INSN_MOV_FROM_CR, to ? "mov to cr" : "mov from cr");
	insn->bytes = 8;
	insn->cr = (modrm >> 3 & 7) | (p->rex & 4 ? 8 : 0);
	insn->gpr = (modrm & 7) | (p->rex & 1 ? 8 : 0);
	if (p->lock && !insn->cr)
		insn->cr = 8; /* AMD's other way to write it */
	if (insn->cr != 0 && insn->cr != 2 && insn->cr != 3 && insn->cr != 4 && insn->cr != 8)
		r->error = r->error ? r->error : -EINVAL;
}

static void decode_0f(struct reader *r, const struct prefixes *p, struct insn *insn)
{
	uint8_t op = next(r);

	switch (op) {
	case 0x00: decode_0f00(r, insn); return;
	case 0x01: decode_0f01(r, insn); return;
	case 0x06: named(insn, INSN_CLTS, "clts"); return;
	case 0x08: named(insn, INSN_OTHER, "invd"); return; /* would throw away what others wrote */
	case 0x09: named(insn, INSN_WBINVD, "wbinvd"); return;
	case 0x20:
	case 0x22: decode_cr(r, p, insn, op == 0x22); return;
	case 0x21:
	case 0x23:
		next(r);
		named(insn, INSN_OTHER, "mov with a debug register");
		return;
	case 0x30: named(insn, INSN_WRMSR, "wrmsr"); return;
	case 0x32: named(insn, INSN_RDMSR, "rdmsr"); return;
	case 0x33: named(insn, INSN_OTHER, "rdpmc"); return;
	case 0x35: named(insn, INSN_OTHER, "sysexit"); return;
	case 0x07: named(insn, INSN_OTHER, "sysret"); return;
	default: r->error = r->error ? r->error : -EINVAL;
	}
}

static void decode_port(struct reader *r, const struct prefixes *p, uint8_t op, struct insn *insn)
{
	static const char *const names[] = { "ins", "outs", "in", "out" };
	bool out = op & 2;

	insn->bytes = !(op & 1) ? 1 : p->op16 ? 2 : 4;
	if (op < 0x70) { /* 6c..6f */
		named(insn, out ? INSN_OUTS : INSN_INS, names[out]);
		insn->port_in_dx = true;
		return;
	}
	named(insn, out ? INSN_OUT : INSN_IN, names[2 + out]);
	insn->port_in_dx = op >= 0xec;
	if (!insn->port_in_dx)
		insn->port = next(r);
}

int insn_decode(const uint8_t *code, size_t len, struct insn *insn)
{
	struct reader r = { .code = code, .len = len };
	struct prefixes p = { 0 };
	uint8_t op;

	*insn = (struct insn){ .name = "?" };
	op = read_prefixes(&r, &p);
	if (r.error)
		return r.error;
	switch (op) {
	case 0x0f: decode_0f(&r, &p, insn); break;
	case 0x6c ... 0x6f:
	case 0xe4 ... 0xe7:
	case 0xec ... 0xef: decode_port(&r, &p, op, insn); break;
	case 0xf4: named(insn, INSN_HLT, "hlt"); break;
	case 0xfa: named(insn, INSN_CLI, "cli"); break;
	case 0xfb: named(insn, INSN_STI, "sti"); break;
	default: return -EINVAL;
	}
	if (r.error)
		return r.error;
	if (p.lock && insn->op != INSN_MOV_TO_CR && insn->op != INSN_MOV_FROM_CR)
		return -EINVAL; /* that is #UD */
	insn->length = (unsigned int)r.at;
	insn->rep = p.rep;
	insn->addr32 = p.addr32;
	insn->far_segment = p.far_segment;
	return 0;
}
