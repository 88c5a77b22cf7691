#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# What a fuzzer finds is a failure of tests/fuzz/replay.sh, whichever way it ends; only what cannot run here is skipped.
set -u
cd "$(dirname "$0")/../.." || exit 1
passed=0 failed=0
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

mkdir -p "$tmp/fuzz"
cat >"$tmp/ends.c" <<'C'
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *how = getenv("ENDS");
	static volatile char *at;

	(void)data, (void)size;
	fuzz_require(*how != 'r');
	if (*how == 'm')
		at = malloc(1), at[1] = 0;
	if (*how == 'c')
		*(volatile char *)8 = 0;
	if (*how == 's')
		fuzz_skip("not to be had here");
	return 0;
}
C
"${CLANG:-clang}" -std=gnu11 -D_GNU_SOURCE -I. -O0 -fsanitize=address,fuzzer -o "$tmp/ends" "$tmp/ends.c" || exit 1
for src in tests/fuzz/fuzz_*.c; do ln "$tmp/ends" "$tmp/fuzz/$(basename "$src" .c)"; done

replay() { # replay HOW WORDS WORDS...: how the first input ends; what all are said to be
	local how=$1 said=$tmp/said words
	shift
	ENDS=$how BUILD=$tmp tests/fuzz/replay.sh >"$said" 2>&1
	for words; do
		if grep -qE -- "$words" "$said"; then passed=$((passed + 1)); else
			failed=$((failed + 1))
			echo "FAIL: a fuzzer that ends by '$how': there is no \"$words\" in:"
			tail -n 12 "$said" | sed 's/^/    /'
		fi
	done
}
n=$(ls tests/fuzz/fuzz_*.c | wc -l)
replay nothing "^$n passed, 0 failed, 0 skipped\$"
replay skip "^0 passed, 0 failed, $n skipped\$" '^skip: fuzz_ops: not to be had here'
replay require "^0 passed, $n failed, 0 skipped\$" 'not true: '
replay memory "^0 passed, $n failed, 0 skipped\$" heap-buffer-overflow
replay crash "^0 passed, $n failed, 0 skipped\$" 'SEGV|deadly signal'
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
