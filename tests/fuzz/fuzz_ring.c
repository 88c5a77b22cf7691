/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The kernel module's ring: an honest consumer reads what was pushed, in order, or learns that something was lost; a
 * consumer that lies about its index makes the producer write nothing outside the ring.
 */
#include <abi/notifier_ring.h>
#include "tests/fuzz/fuzz.h"

#define RECORDS 16U

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct umbra_ntf_record *records =
		calloc(RECORDS, sizeof(*records)); /* ASan guards its ends */
	struct umbra_ntf_consumer *shared = calloc(1, sizeof(*shared));
	struct umbra_ntf_state *state = calloc(1, sizeof(*state));
	struct umbra_ring_producer p = { records, RECORDS - 1, 0, 0, state, shared };
	struct umbra_ring_consumer c = { records, RECORDS - 1, 0, state, shared, 0 };
	struct fuzz_input in = { data, size };
	uint64_t pushed[RECORDS] = { 0 }, number = 0, first = 0, held = 0;
	bool lied = false;

	fuzz_require(records && shared && state);
	while (in.left) {
		const uint64_t op = fuzz_number(&in, 1);
		struct umbra_ntf_record rec = { .start = number };

		if (op < 120) {
			const uint64_t lost = p.lost, unread = umbra_ring_push(&p, &rec);

			if (!lied) {
				fuzz_require((p.lost != lost) == (held == RECORDS));
				if (p.lost == lost)
					pushed[(first + held++) % RECORDS] = number;
				fuzz_require(unread == held);
			}
			fuzz_require(state->lost == p.lost && state->head == p.head);
			number++;
		} else if (op < 240) {
			const int got = umbra_ring_pop(&c, &rec);

			if (!lied) {
				fuzz_require(got == (held > 0));
				if (got) {
					fuzz_require(rec.start == pushed[first % RECORDS]);
					first++;
					held--;
				}
			}
		} else {
			shared->tail = fuzz_number(&in, 8);
			lied = true; /* from here on only the producer's own state is held */
		}
	}
	fuzz_require(p.head + p.lost == number);
	free(records);
	free(shared);
	free(state);
	return 0;
}
