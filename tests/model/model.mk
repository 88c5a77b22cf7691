# SPDX-License-Identifier: BSD-2-Clause
# The model-based test as a program, and its long run.

MODEL_SRC := tests/model/tool/model.c $(wildcard tests/support/model*.c)
MODEL_STEPS ?= 10000000
MODEL_SEED ?= 100000
FORMATTED += tests/model/tool/model.c

$(BUILD)/model: $(patsubst %.c,$(BUILD)/obj/%.o,$(MODEL_SRC)) $(BUILD)/libcore.a
	$(call say,LD,$@)$(CC) -pthread $(CFLAGS) $(LDFLAGS) -o $@ $^
# core with the names of its insides, as the model sees it
$(BUILD)/libcore.a: $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard shadow/core/*.c))
	@rm -f $@
	$(call say,AR,$@)$(AR) rcs $@ $^

CHECK_BUILD += $(BUILD)/model

# Other fragments add to it; UMBRA_SEED of a run is printed, and replays.
.PHONY: check-long
check-long:: $(BUILD)/model ##@ what takes long: ten million operations against the model, the long search of spin, every fuzzer
	$(Q)$(BUILD)/model --seed $(MODEL_SEED) --steps $(MODEL_STEPS) --to $(BUILD)/model-long.script
