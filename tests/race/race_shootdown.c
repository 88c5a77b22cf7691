/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Two vCPUs write to random pages while two threads revoke them and a third interrupts whoever runs. A page
 * that changes while its invalidation is open was written through a translation that should be gone.
 * Exit: 0 held, 1 did not, 77 no usable KVM.
 */
#include "../support/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PAGES  128ULL
#define ROUNDS 3000

static struct engine e;
static _Atomic unsigned int bad, ended;

struct invalidator {
	pthread_t id;
	uint64_t seed;
};

static void *invalidate(void *arg)
{
	struct invalidator *me = arg;

	for (int i = 0; i < ROUNDS && !vm_stopping(&e.vm); i++) {
		uint64_t r, page, many;

		me->seed = me->seed * 6364136223846793005ULL + 1442695040888963407ULL;
		r = me->seed >> 33;
		page = r % PAGES;
		many = 1 + (r >> 8) % (PAGES - page < 8 ? PAGES - page : 8);
		switch (r >> 16 & 3) {
		case 0: engine_discard(&e, ENGINE_LOOSE + page * 4096, many * 4096); break;
		case 1:
			umbra_write_protect(
				e.vm.mmu,
				(struct gfn_range){ { (ENGINE_LOOSE >> 12) + page },
						    { (ENGINE_LOOSE >> 12) + page + many } });
			break;
		default:
			if (!engine_revoke_is_obeyed(&e, ENGINE_LOOSE + page * 4096,
						     (unsigned int)(r >> 20) % 60))
				atomic_fetch_add(&bad, 1);
		}
		if (i % 100 == 99)
			umbra_zap_all(e.vm.mmu);
		umbra_reclaim(e.vm.mmu, 8);
		engine_pause(40);
	}
	atomic_fetch_add(&ended, 1);
	return NULL;
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	struct invalidator invalidators[2] = { { .seed = seed }, { .seed = seed + 1 } };
	unsigned int violations;

	if (engine_create(&e, 2, 16ULL << 20, GUEST_PAGES_4K)) {
		printf("skipped: no usable KVM\n");
		return getenv("REQUIRE_KVM") ? 1 : 77;
	}
	printf("seed %llu\n", (unsigned long long)seed);
	engine_start(&e);
	for (unsigned int v = 0; v < 2; v++)
		engine_tell_random(&e, v, ENGINE_LOOSE, PAGES - 1);
	for (unsigned int i = 0; i < 2; i++)
		pthread_create(&invalidators[i].id, NULL, invalidate, &invalidators[i]);
	while (atomic_load(&ended) < 2) {
		vcpu_kick_all(&e.vm); /* in the guest, in the monitor, on the way in or out */
		engine_pause(150);
	}
	for (unsigned int i = 0; i < 2; i++)
		pthread_join(invalidators[i].id, NULL);
	for (unsigned int v = 0; v < 2; v++) {
		engine_tell_stop(&e, v);
		if (!engine_wait(&e, v))
			printf("vCPU %u: %s\n", v, e.vm.stop_why);
	}
	engine_stop(&e);
	violations = engine_check(&e);
	printf("%u pages written to while revoked, %u violations, %llu faults, %s\n",
	       atomic_load(&bad), violations, (unsigned long long)engine_faults(&e, ~0U),
	       e.vm.stop_why);
	bad += violations + (e.vm.stop_code != VMM_EXIT_OK);
	engine_destroy(&e);
	return atomic_load(&bad) ? 1 : 0;
}
