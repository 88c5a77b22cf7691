# SPDX-License-Identifier: BSD-2-Clause
# The examples use the public API only; tests/examples builds them against the installed library. Here their objects are
# linked into the programs that test them.

EXAMPLE_TLB    := examples/device_tlb.c
EXAMPLE_REMOTE := examples/remote.c examples/remote_peer.c
ALL_HDR += $(sort $(wildcard examples/*.h))

# $1 variant
define link_examples
$(BUILD)/$1/tests/integration/examples_device_tlb $(BUILD)/$1/tests/race/race_device_tlb: $(EXAMPLE_TLB:%.c=$(BUILD)/$1/%.o)
$(BUILD)/$1/tests/integration/examples_remote $(BUILD)/$1/tests/integration/examples_remote_hostile \
$(BUILD)/$1/tests/race/race_remote: $(EXAMPLE_REMOTE:%.c=$(BUILD)/$1/%.o)
endef
$(foreach v,asan tsan cov,$(eval $(call link_examples,$v)))
