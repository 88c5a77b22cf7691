#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# README's table of promises says what umbra_source_promises() says.
set -u
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${CC:-cc}" -Wall -Iinclude -o "$tmp/promises" tools/promises.c "$BUILD/libumbra.a" -pthread || exit 1
"$tmp/promises" >"$tmp/code"
sed -n '/<!-- promises: begin -->/,/<!-- promises: end -->/p' README.md | sed '1d;$d' >"$tmp/readme"
[ -s "$tmp/readme" ] || {
	echo "README.md has no table between the promises marks"
	exit 1
}
diff -u "$tmp/readme" "$tmp/code" || {
	echo "README.md and shadow/events say different things; the second is the code's (make promises prints it)"
	exit 1
}
