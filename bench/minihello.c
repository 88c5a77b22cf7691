/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The floor of a start: minihello MIB TEXT makes a VM of that size, whose guest of four instructions sends TEXT to a
 * port and halts. No tables, no threads, no sandbox, no checks.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "minikvm.h"

#define CODE 0x1000
#define TEXT 0x2000 /* to 0xffff */

/* 16-bit: mov cx, bytes; mov si, TEXT; rep outsb; hlt */
static const uint8_t code[] = { 0xb9, 0, 0, 0xbe, TEXT & 0xff, TEXT >> 8, 0xf3, 0x6e, 0xf4 };

static int run(struct minikvm *m)
{
	for (;;) {
		const struct kvm_run *r = m->run;

		if (ioctl(m->vcpu, KVM_RUN, 0)) {
			if (errno != EINTR && errno != EAGAIN)
				return 1;
		} else if (r->exit_reason == KVM_EXIT_IO) {
			const size_t bytes = (size_t)r->io.size * r->io.count;

			if (write(1, (const uint8_t *)r + r->io.data_offset, bytes) < 0)
				return 1;
		} else {
			return r->exit_reason == KVM_EXIT_HLT ? 0 : 1;
		}
	}
}

int main(int argc, char **argv)
{
	struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rdx = 0x3f8 };
	size_t length = argc == 3 ? strlen(argv[2]) : 0;
	struct kvm_sregs sregs;
	struct minikvm m;

	if (!length || length > 0x10000 - TEXT ||
	    minikvm_create(&m, strtoull(argv[1], NULL, 10) << 20))
		return 1;
	memcpy(m.mem + CODE, code, sizeof(code));
	m.mem[CODE + 1] = (uint8_t)length;
	m.mem[CODE + 2] = (uint8_t)(length >> 8);
	memcpy(m.mem + TEXT, argv[2], length);
	if (ioctl(m.vcpu, KVM_GET_SREGS, &sregs))
		return 1;
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(m.vcpu, KVM_SET_SREGS, &sregs) || ioctl(m.vcpu, KVM_SET_REGS, &regs))
		return 1;
	return run(&m);
}
