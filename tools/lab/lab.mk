# SPDX-License-Identifier: BSD-2-Clause
# The lab: a stock Debian kernel with hardware-style KVM, in QEMU. See docs/lab.md.
.PHONY: lab
lab: ##@ boot a Debian kernel in QEMU and run CMD="..." inside; a shell without CMD
	@CMD='$(subst ','\'',$(CMD))' BUILD='$(BUILD)' tools/lab/make

# By environment or on make's command line: the settings of docs/lab.md.
export KERNEL NPT SMP MEM SWAP HUGEPAGES LIMIT LAB_ENV
