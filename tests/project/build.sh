#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# A build directory is the same by whatever name: what was built as build/ knows its headers as $PWD/build/ too.
set -u
dir=no-such-directory-$$
commands() {
	"$MAKE" --no-print-directory -n BUILD="$1" "$dir/obj/shadow/core/map.o" 2>&1
}
by_name=$(commands $dir) by_path=$(commands "$PWD/$dir") by_dots=$(commands "./docs/../$dir")
passed=0 failed=0
for other in "$by_path" "$by_dots"; do
	if [ "$by_name" = "$other" ] && grep -q "$dir/obj/shadow/core/map.o" <<<"$other"; then
		passed=$((passed + 1))
	else
		echo "by one name: $by_name"
		echo "by another: $other"
		failed=$((failed + 1))
	fi
done
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
