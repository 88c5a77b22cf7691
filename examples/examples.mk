# SPDX-License-Identifier: BSD-2-Clause
# The examples use the public API only; tests/examples builds them against the installed library. Here their objects are
# linked into the programs that test them.

EXAMPLE_TLB    := examples/device_tlb.c
EXAMPLE_REMOTE := examples/remote.c examples/remote_peer.c
ALL_HDR += $(sort $(wildcard examples/*.h))

$(BUILD)/asan/tests/integration/examples_device_tlb: $(EXAMPLE_TLB:%.c=$(BUILD)/asan/%.o)
$(BUILD)/tsan/tests/race/race_device_tlb: $(EXAMPLE_TLB:%.c=$(BUILD)/tsan/%.o)
$(BUILD)/asan/tests/integration/examples_remote: $(EXAMPLE_REMOTE:%.c=$(BUILD)/asan/%.o)
$(BUILD)/asan/tests/integration/examples_remote_hostile: $(EXAMPLE_REMOTE:%.c=$(BUILD)/asan/%.o)
$(BUILD)/tsan/tests/race/race_remote: $(EXAMPLE_REMOTE:%.c=$(BUILD)/tsan/%.o)
