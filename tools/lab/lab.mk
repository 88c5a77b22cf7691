# SPDX-License-Identifier: BSD-2-Clause
# The lab: a stock Debian kernel with hardware-style KVM, in QEMU. See docs/lab.md.
.PHONY: lab
lab: ##@ boot a Debian kernel in QEMU and run CMD="..." inside; a shell without CMD
	@CMD='$(subst ','\'',$(CMD))' BUILD='$(BUILD)' tools/lab/make

# Without sanitizers: the processor is emulated.
LAB_BIN := $(patsubst %.c,$(BUILD)/plain/%,$(wildcard tests/unit/core_*.c tests/integration/engine_*.c \
	tests/integration/events_*.c))
$(LAB_BIN:$(BUILD)/plain/%=$(BUILD)/obj/%.o) $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard tests/support/*.c)): UCFLAGS += $(CRIT_CFLAGS)
$(LAB_BIN): $(BUILD)/plain/%: $(BUILD)/obj/%.o $(BUILD)/obj/libsupport.a $(BUILD)/obj/libvmm.a $(BUILD)/obj/libumbra.a
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) -pthread $(CFLAGS) -o $@ $^ $(CRIT_LIBS) $(VMM_LIBS)

.PHONY: lab-long lab-long-build
lab-long-build: all $(LAB_BIN) $(BUILD)/tsan/tests/race/race_core $(BUILD)/kmod/kmod_test $(BUILD)/kmod/kmod_gate
lab-long: ##@ every test in the lab on both kernels, npt=1 and npt=0; takes some hours
	@tools/deps check
	@$(MAKE) --no-print-directory lab-long-build
	@BUILD='$(BUILD)' tools/lab/long

.PHONY: lab-debug lab-debug-build
lab-debug-build: all $(BUILD)/kmod/kmod_test $(BUILD)/lab-tests/stress
lab-debug: ##@ the module on kernels with KASAN, lockdep, kmemleak and KCSAN; builds them first, an hour in all
	@tools/deps check
	@$(MAKE) --no-print-directory lab-debug-build
	@BUILD='$(BUILD)' tools/lab/debug/run

# By environment or on make's command line: the settings of docs/lab.md.
export KERNEL NPT SMP MEM SWAP HUGEPAGES LIMIT LAB_ENV
