#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# The kernel module by W=1 and sparse for each kernel of the lab, and its sources built as DKMS builds them.
set -u
cd "$(dirname "$0")/../.." || exit 1
export BUILD=${BUILD:-$PWD/build}
unset KDIR MAKEFLAGS MFLAGS MAKELEVEL
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

kmod/check >"$tmp/check" 2>&1
code=$?
cat "$tmp/check"
if [ $code -eq 77 ]; then
	echo "SKIP: $(tail -n 1 "$tmp/check")"
	exit 77
fi
[ $code -eq 0 ] || exit 1

# What is installed is complete.
make -s BUILD="$BUILD" DESTDIR="$tmp/dest" install-dkms || exit 1
src=$(echo "$tmp"/dest/usr/src/umbra-*)
bash -eu -c 'kernel_source_dir=$1 dkms_tree=$2; . "$3/dkms.conf"
	mkdir -p "$2/umbra/$PACKAGE_VERSION" && ln -s "$3" "$2/umbra/$PACKAGE_VERSION/build"
	eval "${MAKE[0]}" && [ -s "$3/$BUILT_MODULE_LOCATION/umbra.ko" ]' \
	sh "$BUILD/kmod/headers/6.1/build" "$tmp/dkms-tree" "$src" >"$tmp/dkms" 2>&1 || {
	cat "$tmp/dkms"
	exit 1
}
echo "2 passed, 0 failed, 0 skipped"
