# SPDX-License-Identifier: BSD-2-Clause
# The guest images: every guest-images/NAME.c with the little library becomes $(BUILD)/guests/NAME.
# Included by the top Makefile; uses BUILD and CC.
GUEST_CC ?= $(CC)
GUEST_DIR := guest-images
GUEST_NAMES := $(sort $(patsubst $(GUEST_DIR)/%.c,%,$(wildcard $(GUEST_DIR)/*.c)))
GUESTS := $(GUEST_NAMES:%=$(BUILD)/guests/%)

# Red zone off, as for any code that runs without an operating system: nothing of ours pushes on a guest's stack (the
# monitor has one of its own), but a guest that handles interrupts on its stack would. No SSE: nothing here needs it.
GUEST_CFLAGS := -std=gnu11 -O2 -g0 -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes \
	-Wmissing-prototypes -Werror -ffreestanding -fno-stack-protector -fno-pic -fno-pie \
	-fno-asynchronous-unwind-tables -fcf-protection=none -mno-red-zone -mgeneral-regs-only \
	-Iinclude -I$(GUEST_DIR)/lib
GUEST_LDFLAGS := -static -nostdlib -Wl,-T,$(GUEST_DIR)/lib/link.ld -Wl,--build-id=none \
	-Wl,-z,noexecstack -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments
GUEST_LIB := $(patsubst %,$(BUILD)/guests/obj/lib/%.o,start guest print)

$(BUILD)/guests/obj/%.o: $(GUEST_DIR)/%.c
	@mkdir -p $(@D)
	$(GUEST_CC) $(GUEST_CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/guests/obj/%.o: $(GUEST_DIR)/%.S
	@mkdir -p $(@D)
	$(GUEST_CC) $(GUEST_CFLAGS) -MMD -MP -c $< -o $@

$(GUESTS): $(BUILD)/guests/%: $(BUILD)/guests/obj/%.o $(GUEST_LIB) $(GUEST_DIR)/lib/link.ld
	$(GUEST_CC) $(GUEST_LDFLAGS) $(filter %.o,$^) -o $@

.PHONY: guests
guests: $(GUESTS)

# Kept: make would otherwise remove them as intermediate files.
.SECONDARY: $(GUEST_LIB) $(GUEST_NAMES:%=$(BUILD)/guests/obj/%.o)

-include $(wildcard $(BUILD)/guests/obj/*.d $(BUILD)/guests/obj/lib/*.d)
