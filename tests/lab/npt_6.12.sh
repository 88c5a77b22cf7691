#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Guests and the engine on Linux 6.12 with kvm_amd npt=1, in the lab.
. "$(dirname "$0")/common"
KERNEL=6.12 NPT=1 HUGEPAGES=40 in_lab tests/lab/guests_inside
