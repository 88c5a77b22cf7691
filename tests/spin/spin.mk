# SPDX-License-Identifier: BSD-2-Clause
# The protocol models at sizes that take minutes.
.PHONY: check-long
check-long::
	tests/spin/run.sh --long
