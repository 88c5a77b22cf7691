#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# The kernel module: its static checks, its sources as DKMS builds them, and its tests on each kernel of the lab.
#
# V=1 shows every test. ONLY="6.12 swap_out_and_in" runs one kernel, and of its tests only those named.
set -u
cd "$(dirname "$0")/../.." || exit 1
export BUILD=${BUILD:-$PWD/build}
read -r only_kernel only_tests <<<"${ONLY-}"
passed=0 failed=0 skipped=0
unset KDIR MAKEFLAGS MFLAGS MAKELEVEL

result() { # result STATUS NAME [WHY]
	case $1 in
	0) passed=$((passed + 1)) ;;
	77) skipped=$((skipped + 1)) && echo "SKIP: $2: ${3-}" ;;
	*) failed=$((failed + 1)) && echo "not ok - $2 ${3-}" ;;
	esac
	[ "${V:-0}" = 1 ] && [ "$1" -eq 0 ] && echo "ok - $2"
}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

if [ -z "${ONLY-}" ]; then
	kmod/check >"$tmp/check" 2>&1
	code=$?
	[ $code -ne 0 ] && cat "$tmp/check"
	result $code static_checks "$(tail -n 1 "$tmp/check")"
fi

# one KERNEL: every test of it, and its results in $BUILD/kmod/KERNEL/results
one() {
	local kernel=$1 log=$BUILD/kmod/$1/results code lines name
	KERNEL=$kernel kmod/build >"$tmp/build" 2>&1 && FAIL_NTH=1 KERNEL=$kernel kmod/build >>"$tmp/build" 2>&1
	code=$?
	if [ $code -ne 0 ]; then
		cat "$tmp/build"
		result $code "$kernel" "the module cannot be built: $(tail -n 1 "$tmp/build")"
		return
	fi
	KERNEL=$kernel SMP=4 SWAP=256 LIMIT=${LIMIT:-170} tools/lab/lab \
		"tests/kmod/inside.sh '$BUILD/kmod/$kernel' '$BUILD/kmod/kmod_test' $only_tests" >"$log" 2>&1 </dev/null
	code=$?
	if [ $code -eq 77 ]; then
		result 77 "$kernel" "$(tail -n 1 "$log")"
		return
	fi
	# A reason stands in front of what it is of; a lab that ends otherwise than by its command has failed.
	lines=$(grep -cE '^(not )?ok - ' "$log")
	if [ $code -ne 0 ] || [ "$lines" -eq 0 ]; then
		tail -n 30 "$log"
		result 1 "$kernel.lab" "ended with $code"
	fi
	while read -r line; do
		name=${line#*- }
		name=${name%% *}
		case $line in
		"# skipped: "*) why=${line#*: } && continue ;;
		"# "*) why=${line#??} && continue ;;
		*"# SKIP"*) result 77 "$kernel.$name" "$why" ;;
		"ok - "*) result 0 "$kernel.$name" ;;
		"not ok - "*) result 1 "$kernel.$name" "$why" ;;
		*) continue ;;
		esac
		why=
	done < <(cat "$log")
}

why=
for kernel in 6.1 6.12; do
	[ -z "$only_kernel" ] || [ "$only_kernel" = "$kernel" ] || continue
	one $kernel
done

# What DKMS would build: what is installed is complete.
if [ -z "${ONLY-}" ] && [ -e "$BUILD/kmod/headers/6.1/build" ]; then
	make -s BUILD="$BUILD" DESTDIR="$tmp/dest" install-dkms >"$tmp/dkms" 2>&1 &&
		src=$(echo "$tmp"/dest/usr/src/umbra-*) &&
		bash -c 'kernel_source_dir=$1 dkms_tree=$2; . "$3/dkms.conf"; mkdir -p "$2/umbra/$PACKAGE_VERSION"
			ln -s "$3" "$2/umbra/$PACKAGE_VERSION/build"; eval "${MAKE[0]}" && [ -s "$3/$BUILT_MODULE_LOCATION/umbra.ko" ]' \
			sh "$BUILD/kmod/headers/6.1/build" "$tmp/dkms-tree" "$src" >>"$tmp/dkms" 2>&1
	code=$?
	[ $code -ne 0 ] && cat "$tmp/dkms"
	result $code dkms_sources_build
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
