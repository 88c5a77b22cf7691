# SPDX-License-Identifier: BSD-2-Clause
# The gate on the real module: a program of its own beside kmod_test, which knows the module's ABI alone. Both run in the
# lab: tests/kmod/inside.sh.
KMOD_GATE := $(BUILD)/kmod/kmod_gate
KMOD_TEST_SRC := $(filter-out tests/kmod/gate.c,$(KMOD_TEST_SRC))

$(KMOD_GATE): tests/kmod/gate.c tests/integration/events_host.h shadow/events/uapi.h $(API_HDR) $(BUILD)/libumbra.a
	@mkdir -p $(@D)
	$(call say,CC,$@)$(CC) $(CFLAGS) $(UCFLAGS) -o $@ $< $(BUILD)/libumbra.a
CHECK_BUILD += $(KMOD_GATE)
