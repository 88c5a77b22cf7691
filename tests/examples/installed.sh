#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# The examples stand on the installed library alone: they compile by umbra.pc, with gcc's and clang's warnings, link both ways, and
# run. The demonstrations skip where frames are hidden.
set -u
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0 skipped=0
# try WHAT COMMAND...: 77 is a skip
try() {
	local what=$1 out code
	shift
	out=$("$@" 2>&1 </dev/null)
	code=$?
	case $code in
	0) passed=$((passed + 1)) ;;
	77)
		skipped=$((skipped + 1))
		echo "SKIP: $what: $out"
		;;
	*)
		printf '%s: failed (%d)\n%s\n' "$what" "$code" "$out"
		failed=$((failed + 1))
		;;
	esac
}

# umbra.pc names the prefix: a build directory of its own, with what was built in this one.
mkdir "$tmp/pc" && cp -a "$BUILD"/. "$tmp/pc" && rm -rf "$tmp/pc/umbra.pc" "$tmp/pc/check"
try install "$MAKE" --no-print-directory BUILD="$tmp/pc" PREFIX=/opt/umbra DESTDIR="$tmp/dest" install
dest=$tmp/dest/opt/umbra
pc() {
	PKG_CONFIG_PATH=$dest/lib/pkgconfig pkg-config --define-variable=prefix="$dest" \
		--define-variable=libdir="$dest/lib" --define-variable=includedir="$dest/include" "$@" umbra
}
try 'umbra.pc' pc --exists

# Away from the tree: an include of anything else does not compile.
cp -r examples "$tmp/src"
warn='-std=gnu11 -D_GNU_SOURCE -O1 -g -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror'
public() { ! grep -nE '^#include "' "$tmp"/src/*.[ch] | grep -vE '"(device_tlb|remote|remote_peer|remote_proto)\.h"'; }
try 'examples include the public API and each other only' public
build() {
	local cc=$1 out=$2
	shift 2
	# shellcheck disable=SC2046,SC2086
	(cd "$tmp/src" && "$cc" $warn $(pc --cflags) -pthread "$@" -o "$out")
}
libs=$(pc --libs)
for cc in gcc clang; do
	# shellcheck disable=SC2086
	{
		try "device_demo, $cc" build "$cc" "$tmp/device-$cc" device_demo.c device_tlb.c $libs
		try "remote_demo, $cc" build "$cc" "$tmp/remote-$cc" remote_demo.c remote.c remote_peer.c $libs
	}
done
try 'device_demo, static' build gcc "$tmp/device-static" device_demo.c device_tlb.c "$dest/lib/libumbra.a"
try 'a peer needs no Umbra at all' build gcc "$tmp/peer.o" -I. -c remote_peer.c
try 'peer: nothing of Umbra' sh -c "! nm -u '$tmp/peer.o' | grep umbra"

export LD_LIBRARY_PATH=$dest/lib
try 'device_demo runs' timeout 60 "$tmp/device-gcc"
try 'device_demo runs, static' timeout 60 env -u LD_LIBRARY_PATH "$tmp/device-static"
try 'remote_demo runs' timeout 60 "$tmp/remote-gcc"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
