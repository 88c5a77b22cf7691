/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The host calls of a guest, on a real machine whose vCPUs stand still: any request is answered, changes nothing but
 * the guest, and leaves the tables right. Needs /dev/kvm; GUESTS is where the built images are.
 */
#include <unistd.h>
#include <vmm/actions.h>
#include <vmm/hostcall.h>
#include <vmm/memory.h>
#include <vmm/vm_private.h>
#include "tests/fuzz/fuzz.h"

#define MEMORY  (16ULL << 20)
#define REQUEST (8ULL << 20)

static struct vm *vm;

static void set_up(void)
{
	static char image[4096];
	struct vm_config config = {
		.memory = MEMORY,
		.vcpus = 2,
		.backing = GUEST_BACKING_ANON,
		.pages = GUEST_PAGES_THP,
		.sandbox = VM_SANDBOX_OFF,
		.log = VM_LOG_ERROR,
		.uffd_fd = -1,
		.kvm_fd = -1,
		.image = image,
	};
	const char *guests = getenv("GUESTS");
	struct vm_error err;

	snprintf(image, sizeof(image), "%s/hello", guests ? guests : "build/guests");
	if (vm_create(&vm, &config, &err))
		fuzz_skip(err.text);
}

/* Often inside memory and on a page, sometimes anything. */
static uint64_t number(struct fuzz_input *in)
{
	const uint64_t v = fuzz_number(in, 2);

	switch (v & 7) {
	case 0: return fuzz_number(in, 8);
	case 1: return ~0ULL - (v >> 3);
	case 2: return v >> 3;
	default: return (v >> 3 & 0x1fff) << 12;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input in = { data, size };

	if (!vm)
		set_up();
	for (unsigned int calls = 0; in.left && calls < 32; calls++) {
		struct guest_hostcall c = { .nr = (uint32_t)(fuzz_number(&in, 1) %
							     (GUEST_CALL_NR + 1)) };
		const uint64_t kind = fuzz_number(&in, 1);
		uint64_t at = REQUEST + (kind & 0xf) * 64;
		struct umbra_fault f = { .gpa = { number(&in) }, .access = UMBRA_ACCESS_WRITE };

		if (kind == 0xff)
			at = number(&in);
		c.gpa = number(&in);
		c.len = number(&in);
		c.arg = number(&in);
		c.reserved = kind == 0xfe;
		c.ret = 0x5a5a;
		umbra_fault(vm->root, &f); /* so that there is something to drop */
		if (at <= MEMORY - sizeof(c) && at % 8 == 0 && kind != 0xff) {
			if (guest_write(vm, (gpa_t){ at }, &c, sizeof(c)))
				continue;
		}
		hostcall(vm, NULL, (gpa_t){ at });
		fuzz_require(!vm_stopping(vm));
	}
	fuzz_require(action_check(vm) == 0);
	return 0;
}
