#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# vmm oracle --disruptive on Linux 6.12 with the kernel module: it sees every change of every row, also of those in which the
# kernel acts by itself, and nothing stays stale.
. "$(dirname "$0")/common"
with_module 6.12 || exit
KERNEL=6.12 NPT=1 HUGEPAGES=8 in_lab "insmod '$module' && tests/cli/oracle.sh"
