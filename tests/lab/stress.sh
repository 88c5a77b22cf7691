#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Under load nobody here wrote, on Linux 6.12 without two-dimensional paging: half a minute of stress-ng, see stress_inside.
# STRESS_SECONDS: longer.
. "$(dirname "$0")/common"
export BUILD=${BUILD:-$PWD/build}
unset KDIR MAKEFLAGS MFLAGS MAKELEVEL
built=$(KERNEL=6.12 kmod/build 2>&1)
code=$?
if [ $code -ne 0 ]; then
	echo "$built"
	[ $code -eq 77 ] && echo "SKIP: the module cannot be built: ${built##*$'\n'}"
	exit $code
fi
KERNEL=6.12 NPT=0 SMP=4 MEM=1024 SWAP=512 LAB_LIMIT=$((${STRESS_SECONDS:-20} * 3 + 180)) \
	in_lab "tests/lab/stress_inside '$BUILD/kmod/6.12' ${STRESS_SECONDS:-20}"
