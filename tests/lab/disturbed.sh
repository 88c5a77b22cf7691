#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Guests with --source module on Linux 6.12, while the kernel by itself swaps, moves, merges and collapses their memory.
. "$(dirname "$0")/common"
with_module 6.12 || exit
KERNEL=6.12 NPT=1 in_lab "tests/lab/disturbed_inside quick '$module'"
