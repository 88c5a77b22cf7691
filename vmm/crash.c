/* SPDX-License-Identifier: BSD-2-Clause */
/* What is shown of a vCPU when its guest crashed: registers, instruction bytes, the page's history.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vmm/memory.h>
#include <vmm/sources.h>
#include <vmm/vcpu_private.h>
#include <vmm/vm_private.h>

#define HISTORY_SHOWN 8

void vcpu_snapshot(struct vcpu *v)
{
	struct vcpu_snapshot *s = &v->last;
	const struct kvm_sregs *sregs = &v->run->s.regs.sregs;

	*s = (struct vcpu_snapshot){ .valid = true, .cr2 = sregs->cr2 };
	if (v->flushing) {
		s->regs = v->saved;
		s->frame = v->saved_frame;
		return;
	}
	s->regs = v->run->s.regs.regs;
	if (v->place == MONITOR_IN_GUEST)
		s->frame = (struct monitor_frame){ .rip = s->regs.rip,
						   .cs = sregs->cs.selector,
						   .rflags = s->regs.rflags,
						   .rsp = s->regs.rsp,
						   .ss = sregs->ss.selector };
	else
		s->frame = *monitor_frame(v->vm, v->index);
}

static void print_code(FILE *out, struct vm *vm, uint64_t rip)
{
	uint8_t bytes[INSN_MAX];
	unsigned int n = 0;

	while (n < sizeof(bytes) && !guest_read(vm, (gpa_t){ rip + n }, &bytes[n], 1))
		n++;
	fprintf(out, "  code at rip:");
	for (unsigned int i = 0; i < n; i++)
		fprintf(out, " %02x", bytes[i]);
	fprintf(out, "%s\n", n ? "" : " (not readable)");
}

static void print_history(FILE *out, struct vm *vm, gpa_t page)
{
	struct umbra_event events[HISTORY_SHOWN];
	struct umbra_translation t;
	unsigned int n;
	char who[SOURCES_WHO_MAX];
	hva_t hva;

	page.v &= ~(UMBRA_PAGE_SIZE - 1);
	fprintf(out, "  page at gpa %#llx: ", (unsigned long long)page.v);
	if (umbra_gpa_to_hva(vm->mmu, page, &hva)) {
		fprintf(out, "not memory\n");
		return;
	}
	if (umbra_lookup(vm->root, page, &t))
		fprintf(out, "no translation now");
	else
		fprintf(out, "%s%s now", t.level == UMBRA_LEVEL_2M ? "2M leaf" : "4K leaf",
			t.writable ? ", writable," : ", read-only,");
	n = umbra_history(vm->mmu, (struct hva_range){ hva, { hva.v + UMBRA_PAGE_SIZE } }, events,
			  HISTORY_SHOWN);
	fprintf(out, "; %s\n", n ? "its last invalidations, newest first:" : "never invalidated");
	for (unsigned int i = 0; i < n; i++)
		fprintf(out, "    #%llu %s by %s (%s), hva %#llx..%#llx, dropped %u 4K %u 2M%s\n",
			(unsigned long long)events[i].nr, umbra_cause_name(events[i].cause),
			umbra_source_name(events[i].source),
			sources_who(events[i].source, events[i].who, events[i].flags, who),
			(unsigned long long)events[i].hva.start.v,
			(unsigned long long)events[i].hva.end.v, events[i].zapped_4k,
			events[i].zapped_2m, events[i].open ? ", still open" : "");
}

void vcpu_print_state(FILE *out, struct vcpu *v)
{
	const struct vcpu_snapshot *s = &v->last;
	const struct kvm_regs *r = &s->regs;
	const struct {
		const char *name;
		uint64_t value;
	} regs[] = {
		{ "rip", s->frame.rip }, { "rsp", s->frame.rsp }, { "rflags", s->frame.rflags },
		{ "rax", r->rax },       { "rbx", r->rbx },       { "rcx", r->rcx },
		{ "rdx", r->rdx },       { "rsi", r->rsi },       { "rdi", r->rdi },
		{ "rbp", r->rbp },       { "r8", r->r8 },         { "r9", r->r9 },
		{ "r10", r->r10 },       { "r11", r->r11 },       { "r12", r->r12 },
		{ "r13", r->r13 },       { "r14", r->r14 },       { "r15", r->r15 },
		{ "cs", s->frame.cs },   { "ss", s->frame.ss },   { "cr2", s->cr2 },
	};

	if (!s->valid) {
		fprintf(out, "vCPU %u has not run\n", v->index);
		return;
	}
	fprintf(out, "vCPU %u at its last exit:\n", v->index);
	for (size_t i = 0; i < sizeof(regs) / sizeof(regs[0]); i++)
		fprintf(out, "%s %-6s %016llx%s", i % 3 ? "" : " ", regs[i].name,
			(unsigned long long)regs[i].value, i % 3 == 2 ? "\n" : "");
	print_code(out, v->vm, s->frame.rip);
	if (s->has_page)
		print_history(out, v->vm, s->page);
}

static void end(struct vcpu *v, enum vmm_exit code, const char *why)
{
	bool first = !vm_stopping(v->vm);
	size_t bytes = 0;
	char *text = NULL;
	FILE *out;

	vm_stop(v->vm, code, "vCPU %u: %s", v->index, why);
	if (!first)
		return;
	out = open_memstream(&text, &bytes);
	if (!out)
		return;
	vcpu_print_state(out, v);
	fclose(out);
	(void)vm_write(STDERR_FILENO, text, bytes); /* nowhere left to say that it failed */
	free(text);
}

static void end_here(struct vcpu *v, enum vmm_exit code, const gpa_t *page, const char *fmt,
		     va_list ap)
{
	char why[200];

	vsnprintf(why, sizeof(why), fmt, ap);
	vcpu_snapshot(v);
	if (page) {
		v->last.has_page = true;
		v->last.page = *page;
	}
	end(v, code, why);
}

void vcpu_crash(struct vcpu *v, const gpa_t *page, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	end_here(v, VMM_EXIT_GUEST_CRASH, page, fmt, ap);
	va_end(ap);
}

void vcpu_bug(struct vcpu *v, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	end_here(v, VMM_EXIT_INTERNAL, NULL, fmt, ap);
	va_end(ap);
}
