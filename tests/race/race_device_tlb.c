/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The device TLB of examples/: mutators by own calls against devices that translate and access, while a second TLB joins and
 * leaves the chain. Usage: race_device_tlb [SEED [STEPS]]. Exit 0: no stale use, no lost write; 1; 77 where frames are hidden.
 */
#include "tests/examples/device_chaos.h"

static struct chaos c;
static _Atomic uint64_t joins;

/* Joins in the middle of open invalidations, fills, leaves while others are told. */
static void *join_and_leave(void *arg)
{
	unsigned int state = c.seed;

	(void)arg;
	while (c.mutating) {
		struct device_tlb *tlb;
		struct device_port *port;

		HOST_NEED(!device_tlb_create(&tlb, c.h.chain, c.h.map));
		port = device_tlb_port_open(tlb);
		for (int i = 0; i < 8; i++) {
			const hva_t hva =
				block_hva(&c, (uint32_t)rand_r(&state) % CHAOS_BLOCKS).start;
			struct device_translation t;

			device_tlb_fill(port, hva, UMBRA_ACCESS_WRITE);
			if (device_tlb_enter(port, hva, UMBRA_ACCESS_READ, &t))
				device_tlb_leave(port);
		}
		if (device_tlb_audit(tlb, stderr))
			c.stale++;
		device_tlb_port_close(port);
		device_tlb_destroy(tlb);
		joins++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const unsigned int seed = argc > 1 ? (unsigned int)strtoul(argv[1], NULL, 0) : 1;
	const int steps = argc > 2 ? atoi(argv[2]) : 2000;
	uint64_t wrong;

	if (!chaos_create(&c, UMBRA_PAGE_SIZE, steps, seed)) {
		puts("SKIP: frames are hidden here (CAP_SYS_ADMIN is needed)");
		return 77;
	}
	c.moves = true;
	wrong = chaos_run(&c, join_and_leave);
	printf("%llu joins\n", (unsigned long long)joins);
	wrong += (joins ? 0U : 1U) + (host_sound(&c.h) ? 0U : 1U);
	chaos_destroy(&c);
	return wrong ? 1 : 0;
}
