#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# A fork before the event reader is ready must not wait for it for ever: fork holds the locks of malloc, and the
# reader was still building its filter. Forks from the first moment on, many starts; each must end by itself.
set -u
. "$(dirname "$0")/common"

needs_kvm
out=$("$VMM" run "$GUESTS/hello" 2>&1)
if [ $? -eq 77 ]; then
	echo "SKIP: ${out%%$'\n'*}"
	exit 77
fi
for seed in $(seq 1 30); do
	out=$(timeout -k 1 10 "$VMM" run -m 64M -c 1 --chaos "mix=fork,rate=50000,seed=$seed" "$GUESTS/hello" 2>&1)
	code=$?
	if [ $code -ne 0 ]; then
		echo "FAIL: start $seed: exit status $code"
		echo "$out"
		exit 1
	fi
done
