/* SPDX-License-Identifier: BSD-2-Clause */
/* The operations of core, in any order and with any numbers, against the flat reference of the model-based test. */
#include "tests/fuzz/fuzz.h"
#include "tests/support/model.h"

#define OPS_MAX 200

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint64_t starts[] = { 0, (1ULL << 31) - 20, (1ULL << 32) - 20, 0ULL - 20 };
	static struct m_op ops[OPS_MAX];
	const struct m_options options = { .whole_every = 16, .seconds = 20, .here = true };
	struct fuzz_input in = { data, size };
	struct m_script s = { .ops = ops };
	struct m_result res;
	const uint64_t first = fuzz_number(&in, 1);

	memset(&res, 0, sizeof(res));
	memset(ops, 0, sizeof(ops));
	s.seq = starts[first & 3];
	s.base = first & 4 ? 512 : 0;
	while (in.left && s.n < OPS_MAX) {
		struct m_op *op = &ops[s.n++];
		const uint64_t kind = fuzz_number(&in, 1);

		op->kind = (uint8_t)(kind % OP_NR);
		op->thread = (uint8_t)(kind / OP_NR % (M_THREADS + 1));
		for (unsigned int i = 0; i < M_ARGS; i++)
			op->a[i] = fuzz_number(&in, 2);
	}
	m_execute(&s, &options, &res);
	if (res.failed) {
		fprintf(stderr, "step %lu: %s\n", (unsigned long)res.step, res.why);
		m_write(stderr, &s);
		abort();
	}
	return 0;
}
