# SPDX-License-Identifier: BSD-2-Clause
# The fuzzers: libFuzzer of clang, with ASan and UBSan. `make check` replays what is in tests/fuzz/corpus.
FUZZ_SRC  := $(sort $(wildcard tests/fuzz/fuzz_*.c))
FUZZ_BIN  := $(FUZZ_SRC:tests/fuzz/%.c=$(BUILD)/fuzz/%)
FUZZ_SECONDS ?= 60
FUZZ_FLAGS := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all

$(BUILD)/fuzz/obj/%.o: %.c Makefile tests/fuzz/fuzz.mk | $(BUILD)/.dir
	@mkdir -p $(@D)
	$(call say,CLANG,$@)$(CLANG) $(UCFLAGS) $(FUZZ_FLAGS) -MMD -MP -c $< -o $@
$(BUILD)/fuzz/obj/%.o: %.S Makefile tests/fuzz/fuzz.mk | $(BUILD)/.dir
	@mkdir -p $(@D)
	$(call say,CLANG,$@)$(CLANG) $(UCFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/fuzz/obj/tests/support/%.o: UCFLAGS += $(CRIT_CFLAGS)

FUZZ_PARTS := $(patsubst %,$(BUILD)/fuzz/obj/%.o,$(basename $(LIB_SRC) $(VMM_PART)))
# The engine of the tests is Criterion's; the fakes and the model are not.
FUZZ_SUPPORT := $(patsubst %,$(BUILD)/fuzz/obj/%.o,$(basename $(filter-out tests/support/engine.c,$(SUPPORT_SRC))))
$(BUILD)/fuzz/libparts.a: $(FUZZ_PARTS) $(FUZZ_SUPPORT)
	@rm -f $@
	$(call say,AR,$@)$(AR) rcs $@ $^

$(FUZZ_BIN): $(BUILD)/fuzz/%: $(BUILD)/fuzz/obj/tests/fuzz/%.o $(BUILD)/fuzz/libparts.a
	$(call say,LD,$@)$(CLANG) -pthread -g -fsanitize=address,undefined,fuzzer -o $@ $^ $(VMM_LIBS) $(CRIT_LIBS)

CHECK_BUILD += $(FUZZ_BIN)

.PHONY: fuzz
fuzz: $(FUZZ_BIN) guests ##@ every fuzzer for FUZZ_SECONDS (60)
	@tools/deps check
	@FUZZ_SECONDS='$(FUZZ_SECONDS)' BUILD='$(BUILD)' tests/fuzz/replay.sh --fuzz

check-long:: $(FUZZ_BIN) guests
	@FUZZ_SECONDS=60 BUILD='$(BUILD)' tests/fuzz/replay.sh --fuzz
