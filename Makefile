# SPDX-License-Identifier: BSD-2-Clause
# Minimal for now: objects by wildcard.
BUILD ?= build
CFLAGS ?= -O2 -g
UCFLAGS := -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror -Iinclude -I. -pthread
LIB_SRC := $(wildcard shadow/core/*.c shadow/events/*.c)
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o)
all: $(BUILD)/libumbra.a
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(UCFLAGS) $(CFLAGS) -MMD -c $< -o $@
$(BUILD)/libumbra.a: $(LIB_OBJ)
	ar rcs $@ $^
-include $(LIB_OBJ:.o=.d)
