#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Guests and the engine on Linux 6.1 with kvm_amd npt=0, in the lab.
. "$(dirname "$0")/common"
KERNEL=6.1 NPT=0 HUGEPAGES=40 in_lab tests/lab/guests_inside
