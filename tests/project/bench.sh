#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# The frame of the benchmarks tells the truth about numbers that are given to it: medians, verdicts, noise, failures;
# and `bench/run` fails only when something could not be measured. No time is measured here.
set -u
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
check() {
	local what=$1
	shift
	if "$@"; then passed=$((passed + 1)); else
		echo "$what: no"
		cat "$tmp/out" "$tmp/bench.tsv" 2>/dev/null
		failed=$((failed + 1))
	fi
}

cat >"$tmp/given.c" <<'END'
#include "bench/bench.h"
static unsigned int turn;
static double two(void *ctx) { (void)ctx; return 2; }
static double one(void *ctx) { (void)ctx; return 1; }
static double mostly_one(void *ctx) { (void)ctx; return ++turn % 5 ? 1 : 7; } /* 3 of 15: p90 is 7, the median 1 */
static double once_late(void *ctx) { (void)ctx; return ++turn == 8 ? 7 : 1; } /* 1 of 15: nobody minds */
static double broken(void *ctx) { (void)ctx; return BENCH_FAILED; }
#define ROW(n, o, a, ...) bench_row(&(struct bench_row){ .name = n, .unit = "u", .what = "w", .floor = "f", \
	.ours = o, .against = a, __VA_ARGS__ })
int main(int argc, char **argv)
{
	(void)argv;
	bench_begin("given", -1);
	ROW("met", two, one, .at_most = 2);
	ROW("missed", two, one, .at_most = 1.9);
	ROW("least", two, one, .at_least = 1.9);
	ROW("least_missed", two, one, .at_least = 2.1);
	ROW("limit", two, NULL, .limit = 4, .at_most = 1);
	ROW("known", two, one);
	ROW("noisy", two, mostly_one, .at_most = 9);
	turn = 0;
	ROW("late", two, once_late, .at_most = 2);
	if (argc > 1)
		ROW("broken", broken, one);
	return bench_end();
}
END
${CC:-cc} -std=gnu11 -D_GNU_SOURCE -O1 -I. "$tmp/given.c" bench/bench.c -o "$tmp/given" -lm -pthread >"$tmp/out" 2>&1
check 'the frame builds by itself' test -x "$tmp/given"

run() { # OPTIONS...: fresh results
	: >"$tmp/bench.tsv"
	: >"$tmp/bench.table"
	BENCH_TSV=$tmp/bench.tsv BENCH_TABLE=$tmp/bench.table "$tmp/given" "$@" >"$tmp/out" 2>&1
}
row() { grep -P "^$1\t" "$tmp/bench.tsv" | tr '\t' ' '; }
verdict() { awk -F '\t' -v n="$1" '$1 == n { print $7 }' "$tmp/bench.table"; }

run
check 'missed targets are no failure' test $? -eq 0
check 'six columns in every row' test -z "$(awk -F '\t' 'NF != 6' "$tmp/bench.tsv")"
check 'at most: met' test "$(row met) $(verdict met)" = 'met 2 1 2 <=2 u met'
check 'at most: missed' test "$(row missed) $(verdict missed)" = 'missed 2 1 2 <=1.9 u missed'
check 'at least: met' test "$(row least) $(verdict least)" = 'least 2 1 2 >=1.9 u met'
check 'at least: missed' test "$(verdict least_missed)" = missed
check 'a fixed limit' test "$(row limit) $(verdict limit)" = 'limit 2 4 0.5 <=1 u met'
check 'no target, no verdict' test "$(row known) $(verdict known)" = 'known 2 1 2 - u -'
check 'a floor that jumps: noisy, and no ratio' test "$(row noisy) $(verdict noisy)" = 'noisy 2 1 noisy <=9 u noisy'
check 'one late sample: the median stands' test "$(row late) $(verdict late)" = 'late 2 1 2 <=2 u met'
check 'nine rounds at least, each printed' grep -qE '\((9|[1-9][0-9]+) rounds' "$tmp/out"
run broken
check 'what cannot be measured is a failure' test $? -eq 1
check 'and has no row of numbers' test -z "$(row broken)"
check 'but a line in the table' test "$(verdict broken)" = 'not measured'

# bench/run: programs of that name in $BUILD/bench.
mkdir -p "$tmp/build/bench"
cp "$tmp/given" "$tmp/build/bench/given"
BUILD=$tmp/build bench/run given >"$tmp/out" 2>&1
check 'run: exit 0 though a target is missed' test $? -eq 0
check 'run: the table counts verdicts' grep -q '^4 met, 2 missed, 1 too noisy to say, 1 without a target$' "$tmp/out"
check 'run: header and rows in bench.tsv' test "$(head -n 1 "$tmp/build/bench.tsv" | tr '\t' ' ')" = 'name ours against ratio target unit'
BUILD=$tmp/build bench/run given nothing >"$tmp/out" 2>&1
check 'run: a benchmark that is not there is a failure' test $? -eq 1
check 'run: and is named' grep -q '^could not run: nothing$' "$tmp/out"

echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
