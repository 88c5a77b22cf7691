#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Every fuzzer over its corpus: what was once found stays mended. With --fuzz: FUZZ_SECONDS of looking for more; what
# is found is kept in BUILD/fuzz/found, and belongs into tests/fuzz/corpus with its mend.
set -u
cd "$(dirname "$0")/../.." || exit 1
BUILD=$(cd "${BUILD:-build}" && pwd)
export GUESTS=${GUESTS:-$BUILD/guests}
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
# By itself libFuzzer ends with 77 where a property is broken, and that would be a skip.
limits=(-timeout=25 -rss_limit_mb=2048 -error_exitcode=1)
passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

for src in tests/fuzz/fuzz_*.c; do
	name=$(basename "$src" .c)
	program=$BUILD/fuzz/$name
	corpus=tests/fuzz/corpus/${name#fuzz_}
	[ -x "$program" ] || {
		echo "not built: $program"
		failed=$((failed + 1))
		continue
	}
	if [ "${1-}" = --fuzz ]; then
		mkdir -p "$BUILD/fuzz/found" "$BUILD/fuzz/corpus/$name"
		timeout -k 20 $((FUZZ_SECONDS + 60)) "$program" -max_total_time="$FUZZ_SECONDS" "${limits[@]}" \
			-max_len=4096 -artifact_prefix="$BUILD/fuzz/found/$name-" -print_final_stats=1 \
			"$BUILD/fuzz/corpus/$name" "$corpus" >"$log" 2>&1 </dev/null
		code=$?
		what="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1) inputs"
	else
		files=("$corpus"/*)
		[ -e "${files[0]}" ] || {
			echo "no corpus in $corpus"
			failed=$((failed + 1))
			continue
		}
		timeout -k 20 120 "$program" "${limits[@]}" "${files[@]}" >"$log" 2>&1 </dev/null
		code=$?
		what="${#files[@]} inputs"
	fi
	case $code in
	0)
		passed=$((passed + 1))
		printf 'ok   %-16s %s\n' "$name" "$what"
		;;
	77)
		skipped=$((skipped + 1))
		echo "skip: $name: $(sed -n 's/^SKIP: //p' "$log" | head -n 1)"
		;;
	*)
		failed=$((failed + 1))
		echo "FAIL $name: exit status $code"
		tail -n 40 "$log"
		;;
	esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
