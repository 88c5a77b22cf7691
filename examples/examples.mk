# SPDX-License-Identifier: BSD-2-Clause
# The examples use the public API only. Their objects are linked into the tests of them, and their programs are built
# for people to look at: `make examples`.

EXAMPLE_TLB := examples/device_tlb.c
ALL_HDR += $(sort $(wildcard examples/*.h))

$(BUILD)/asan/tests/integration/examples_device_tlb: $(EXAMPLE_TLB:%.c=$(BUILD)/asan/%.o)
$(BUILD)/tsan/tests/race/race_device_tlb: $(EXAMPLE_TLB:%.c=$(BUILD)/tsan/%.o)
