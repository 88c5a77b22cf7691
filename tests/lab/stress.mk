# SPDX-License-Identifier: BSD-2-Clause
# Watches stress-ng's processes through the kernel module, in the lab: tests/lab/stress.
LAB_STRESS := $(BUILD)/lab-tests/stress

$(LAB_STRESS): tests/lab/stress.c $(wildcard include/abi/notifier*.h)
	@mkdir -p $(@D)
	$(call say,CC,$@)$(CC) $(CFLAGS) $(UCFLAGS) -o $@ $<
lab-long-build: $(LAB_STRESS)

.PHONY: lab-stress
lab-stress: ##@ stress-ng in processes that are watched through the module, in the lab; KERNEL= NPT= STRESS_SECONDS=20
	@tools/deps check
	@$(MAKE) --no-print-directory all $(LAB_STRESS)
	@BUILD='$(BUILD)' tests/lab/stress
