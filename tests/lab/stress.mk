# SPDX-License-Identifier: BSD-2-Clause
# Watches stress-ng's processes through the kernel module, in the lab: tests/lab/stress.sh.
LAB_STRESS := $(BUILD)/lab-tests/stress

$(LAB_STRESS): tests/lab/stress.c $(wildcard include/abi/notifier*.h)
	@mkdir -p $(@D)
	$(call say,CC,$@)$(CC) $(CFLAGS) $(UCFLAGS) -o $@ $<
CHECK_BUILD += $(LAB_STRESS)
lab-long-build: $(LAB_STRESS)
