/* SPDX-License-Identifier: BSD-2-Clause */
/* What the fuzzers share: taking values from the input, and stopping with a reason. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A property of the code is broken: libFuzzer keeps the input. */
#define fuzz_require(cond)                                                                   \
	do {                                                                                 \
		if (!(cond)) {                                                               \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond); \
			abort();                                                             \
		}                                                                            \
	} while (0)

/* It cannot run here. Not by exit(): libFuzzer takes that for a crash of the target. */
static inline _Noreturn void fuzz_skip(const char *why)
{
	fprintf(stderr, "SKIP: %s\n", why);
	_exit(77);
}

struct fuzz_input {
	const uint8_t *p;
	size_t left;
};

/* @len bytes, zeroes where the input has ended. */
static inline void fuzz_bytes(struct fuzz_input *in, void *to, size_t len)
{
	const size_t n = len < in->left ? len : in->left;

	memset(to, 0, len);
	memcpy(to, in->p, n);
	in->p += n;
	in->left -= n;
}

static inline uint64_t fuzz_number(struct fuzz_input *in, size_t bytes)
{
	uint64_t v = 0;

	fuzz_bytes(in, &v, bytes);
	return v;
}

#endif
