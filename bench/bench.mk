# SPDX-License-Identifier: BSD-2-Clause
# The benchmarks: every bench/NAME.c is a program $(BUILD)/bench/NAME, built as what is installed, never sanitised.
# Included by the top Makefile. bench.c is the frame, minikvm.c the floor, machine.c ours: in each program that wants them.
BENCH_PARTS := bench/bench.c bench/minikvm.c bench/machine.c
BENCH_SRC   := $(sort $(filter-out $(BENCH_PARTS),$(wildcard bench/*.c)))
BENCH_BIN   := $(BENCH_SRC:%.c=$(BUILD)/%)
BENCH_ROWS  := $(filter-out minihello,$(notdir $(BENCH_SRC:.c=)))
ROWS	    ?= $(BENCH_ROWS)

$(BUILD)/obj/bench/libbench.a: $(call objects,obj,$(wildcard $(BENCH_PARTS)))
	@rm -f $@
	$(call say,AR,$@)$(AR) rcs $@ $^

# Of what tests share, the engine alone: the rest wants the test framework.
$(BUILD)/obj/bench/libengine.a: $(BUILD)/obj/tests/support/engine.o
	@mkdir -p $(@D)
	@rm -f $@
	$(call say,AR,$@)$(AR) rcs $@ $^

# As small as a program can be: nothing to load but itself.
$(BUILD)/bench/minihello: private CFLAGS += -static
$(BUILD)/bench/minihello: private VMM_LIBS :=

# What only one program wants.
$(BUILD)/bench/walk: private BENCH_LIBS := -lJudy

$(BENCH_BIN): $(BUILD)/bench/%: $(BUILD)/obj/bench/%.o $(BUILD)/obj/bench/libbench.a $(BUILD)/obj/bench/libengine.a \
		$(BUILD)/obj/libvmm.a $(BUILD)/obj/libumbra.a
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) -pthread $(CFLAGS) $(LDFLAGS) -o $@ $^ $(VMM_LIBS) $(BENCH_LIBS) -lm

.PHONY: bench bench-build
bench-build: $(BENCH_BIN)
bench: ##@ install what is missing, build and run the benchmarks; ROWS="zap age" for some
	@tools/deps bench
	@$(MAKE) --no-print-directory all bench-build
	@BUILD='$(BUILD)' bench/run $(ROWS)
