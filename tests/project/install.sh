#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# make install puts there what a program needs: it compiles by umbra.pc, links both ways, runs; uninstall leaves no file.
set -u
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
try() {
	local what=$1 out
	shift
	if out=$("$@" 2>&1); then
		passed=$((passed + 1))
	else
		printf '%s: failed\n%s\n' "$what" "$out"
		failed=$((failed + 1))
	fi
}
prefix=$tmp/usr
mk() { "$MAKE" --no-print-directory BUILD="$tmp/pc" "$@"; }
# A build directory of its own, with the objects of this one. First built for another prefix, as by `make` alone.
cp -a "$BUILD" "$tmp/pc" && rm -rf "$tmp/pc/check"
try 'build for /usr/local' mk "$tmp/pc/umbra.pc"
try install mk install PREFIX="$prefix"
try 'umbra.pc names the prefix of the installation' grep -qx "prefix=$prefix" "$prefix/lib/pkgconfig/umbra.pc"

cat >"$tmp/a.c" <<'C'
#include <umbra/events.h>
#include <umbra/mmu.h>
#include <abi/guest.h>
#include <stdio.h>
int main(void)
{
	struct umbra_chain *chain;
	if (umbra_chain_create(&chain, &umbra_os_posix))
		return 1;
	umbra_chain_destroy(chain);
	return printf("%s %s\n", umbra_source_name(UMBRA_SOURCE_UFFD), umbra_cause_name(UMBRA_CAUSE_DISCARD)) != 13;
}
C
pc() { PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config "$@" umbra; }
# shellcheck disable=SC2046
{
	try 'compile, shared' "${CC:-cc}" $(pc --cflags) "$tmp/a.c" -o "$tmp/shared" $(pc --libs)
	try 'compile, static' "${CC:-cc}" $(pc --cflags) "$tmp/a.c" -o "$tmp/static" "$prefix/lib/libumbra.a" -pthread
}
try 'run, shared' env LD_LIBRARY_PATH="$prefix/lib" "$tmp/shared"
try 'run, static' "$tmp/static"
try 'soname' sh -c "readelf -d '$prefix/lib/libumbra.so' | grep -q 'SONAME.*libumbra.so.0\]'"

# Both libraries export what the public headers declare: all of it, and nothing else.
wanted=$(tools/export-map X include/umbra/*.h | sed -n 's/^\t\(umbra_.*\);/\1/p' | sort)
exports_are() { diff <(echo "$wanted") <(nm "$@" | awk 'NF == 3 && $2 ~ /[TDRBWV]/ { sub(/@.*/, "", $3); print $3 }' | grep -v '^UMBRA_' | sort -u); }
try 'exports, shared' exports_are -D --defined-only "$prefix/lib/libumbra.so"
try 'exports, static' exports_are -g --defined-only "$prefix/lib/libumbra.a"

try 'vmm and umbra.pc say the same version' test "$("$prefix/bin/vmm" --version | grep -oE '[0-9.]+$')" = "$(pc --modversion)"
try 'DESTDIR' mk install PREFIX=/opt/u DESTDIR="$tmp/dest"
try 'DESTDIR is where all went' test -x "$tmp/dest/opt/u/bin/vmm"
try 'uninstall' mk uninstall PREFIX="$prefix"
try 'uninstall leaves no file' sh -c "[ -z \"\$(find '$prefix' ! -type d)\" ]"
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
