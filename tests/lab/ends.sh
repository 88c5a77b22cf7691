#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# How the lab ends: the command's own code and output, death by signal, panic, time limit, bad settings, a signal to
# the lab; and that nothing is left running then.
cd "$(dirname "$0")/../.." || exit 1
tmp=$(mktemp -d)
export TMPDIR=$tmp
trap 'rm -rf "$tmp"' EXIT
lab=tools/lab/lab
passed=0 failed=0
check() {
	local what=$1
	shift
	if "$@"; then passed=$((passed + 1)); else
		echo "$what: no; exit $code"
		sed 's/^/  stdout: /' "$tmp/out"
		sed 's/^/  stderr: /' "$tmp/err"
		failed=$((failed + 1))
	fi
}
run() { # run COMMAND [VARIABLE=VALUE...]
	local command=$1
	shift
	env "$@" $lab "$command" >"$tmp/out" 2>"$tmp/err" </dev/null
	code=$?
}
nothing_left() {
	! find "$tmp" -name 'umbra-lab.*' | grep -q . && ! pgrep -f "$tmp/umbra-lab" >/dev/null
}

$lab --prepare >"$tmp/out" 2>"$tmp/err" || {
	code=$?
	cat "$tmp/err"
	[ $code -eq 77 ] && sed -n 's/^lab: /SKIP: /p' "$tmp/err"
	exit $code
}
run true KERNEL=7
check 'unknown kernel: 2, and named' test "$code:$(grep -c 'KERNEL=7' "$tmp/err")" = 2:1
run true NPT=2
check 'wrong npt: 2' test $code -eq 2
run true LIMIT=soon
check 'wrong number: 2' test $code -eq 2
run 'printf "out\0put"; echo trouble >&2; exit 37'
check 'the exit code' test $code -eq 37
check 'stdout, byte by byte' cmp -s "$tmp/out" <(printf 'out\0put')
check 'stderr apart' grep -qx trouble "$tmp/err"
run 'kill -SEGV $$'
check 'death by signal: 128 + 11' test $code -eq 139
run 'no_such_command'
check 'not found: 127, and named' test "$code:$(grep -c no_such_command "$tmp/err")" = 127:1
run 'echo c >/proc/sysrq-trigger'
check 'panic: 123' test $code -eq 123
check 'panic: its last lines' grep -q 'Kernel panic' "$tmp/err"
run 'sleep 1000' LIMIT=8
check 'time limit: 124' test $code -eq 124
check 'after that, nothing is left' nothing_left
env --default-signal=INT $lab 'echo up; sleep 1000' >"$tmp/out" 2>"$tmp/err" </dev/null &
pid=$!
for _ in $(seq 600); do
	grep -q up "$tmp/out" && break
	sleep 0.1
done
kill -INT $pid
wait $pid
code=$?
check 'Ctrl-C: 130' test $code -eq 130
check 'after Ctrl-C, nothing is left' nothing_left
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
