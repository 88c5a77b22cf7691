#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# The layer check and the tree check find nothing, and do find what is broken on purpose.
passed=0 failed=0
try() {
	if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}
try tools/check-layers --self-test
try tools/check-layers "$BUILD"
try tools/check-tree --self-test
try tools/check-tree
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
