# SPDX-License-Identifier: BSD-2-Clause
# What the suites of this directory need inside the lab: memory pressure, pages moved from node to node, and vmm's memory
# offered to KSM. The oracle there.
LAB_DISTURB	:= $(BUILD)/lab-tests/hog $(BUILD)/lab-tests/mover $(BUILD)/lab-tests/mergeable.so

$(BUILD)/lab-tests/hog $(BUILD)/lab-tests/mover: $(BUILD)/lab-tests/%: tests/lab/%.c
	@mkdir -p $(@D)
	$(call say,CC,$@)$(CC) $(CFLAGS) $(UCFLAGS) -o $@ $<
$(BUILD)/lab-tests/mergeable.so: tests/lab/mergeable.c
	@mkdir -p $(@D)
	$(call say,CC,$@)$(CC) $(CFLAGS) $(UCFLAGS) -fPIC -shared -o $@ $<
CHECK_BUILD += $(LAB_DISTURB)
lab-long-build: $(LAB_DISTURB)

.PHONY: lab-catalogue
lab-catalogue: ##@ vmm oracle on both kernels, npt=1 and npt=0, for `make catalogue`; takes minutes
	@tools/deps check
	@$(MAKE) --no-print-directory all
	@BUILD='$(BUILD)' tools/lab/oracle
