# SPDX-License-Identifier: BSD-2-Clause
# What the suites of this directory need inside the lab: memory pressure, and vmm's memory offered to KSM. The oracle there.
LAB_HOG	      := $(BUILD)/lab-tests/hog
LAB_MERGEABLE := $(BUILD)/lab-tests/mergeable.so

$(LAB_HOG): tests/lab/hog.c
	@mkdir -p $(@D)
	$(call say,CC,$@)$(CC) $(CFLAGS) $(UCFLAGS) -o $@ $<
$(LAB_MERGEABLE): tests/lab/mergeable.c
	@mkdir -p $(@D)
	$(call say,CC,$@)$(CC) $(CFLAGS) $(UCFLAGS) -fPIC -shared -o $@ $<
CHECK_BUILD += $(LAB_HOG) $(LAB_MERGEABLE)
lab-long-build: $(LAB_HOG) $(LAB_MERGEABLE)

.PHONY: lab-catalogue
lab-catalogue: ##@ vmm oracle on both kernels, npt=1 and npt=0, for `make catalogue`; takes minutes
	@tools/deps check
	@$(MAKE) --no-print-directory all
	@BUILD='$(BUILD)' tools/lab/oracle
