#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# Runs in the lab, called by tests/lab/kmod.sh: inside.sh DIRECTORY-OF-THE-MODULE KMOD_TEST [NAME...]; kmod_gate lies beside
dir=$1 program=$2
shift 2

insmod "$dir/umbra.ko" || { echo "not ok - insmod"; exit 1; }
echo "ok - insmod"
# What the kernel does on its own would be announced among what the tests do.
echo 0 >/proc/sys/kernel/numa_balancing
echo 100000 >/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs
echo always >/sys/kernel/mm/transparent_hugepage/enabled
UMBRA_KO=$dir/umbra.ko UMBRA_FAIL_KO=$dir/fail_nth/umbra.ko "$program" "$@"
"${program%/*}/kmod_gate" "$@"
[ $? -le 1 ] || echo "not ok - kmod_gate"
rmmod umbra || { echo "not ok - rmmod"; exit 1; }
echo "ok - rmmod"
if dmesg | grep -E 'WARNING:|BUG:|Oops|general protection|KASAN|KCSAN|UBSAN|refcount_t|INFO: (possible|suspicious)|Call Trace' |
	sed 's/^/# /' | grep .; then
	echo "not ok - dmesg_is_clean"
else
	echo "ok - dmesg_is_clean"
fi
