#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# The kernel module's tests on Linux 6.12.
exec "$(dirname "$0")/../kmod/lab" 6.12
