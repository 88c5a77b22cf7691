# SPDX-License-Identifier: BSD-2-Clause
# Builds libumbra, vmm, the guest images and the tests. `make help` lists the targets.
#
# Sources are found by wildcard: a new file needs no line here. Every variant has its own objects:
#   obj   what is installed          pic   for the shared library
#   asan  gcc, ASan and UBSan        tsan  gcc, ThreadSanitizer        lint  clang, warnings only
#   cov   gcc, counting lines

BUILD	?= build
# One name for each directory, or what is known of headers would not hold for objects called by the other.
override BUILD := $(patsubst $(CURDIR)/%,%,$(abspath $(BUILD)))
PREFIX	?= /usr/local
DESTDIR ?=
BINDIR	?= $(PREFIX)/bin
LIBDIR	?= $(PREFIX)/lib
INCDIR	?= $(PREFIX)/include
MANDIR	?= $(PREFIX)/share/man
CLANG	?= clang
CLANG_FORMAT ?= clang-format
PKG_CONFIG   ?= pkg-config
OBJCOPY	     ?= objcopy
INSTALL	     ?= install

VERSION := 0.1.0
SOMAJOR := 0
SONAME	:= libumbra.so.$(SOMAJOR)
SHARED	:= libumbra.so.$(VERSION)

CFLAGS ?= -O2 -g
WARN   := -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror
UCFLAGS := -std=gnu11 -D_GNU_SOURCE -DUMBRA_VERSION=\"$(VERSION)\" $(WARN) -Iinclude -I. -pthread
ASAN   := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
TSAN   := -O1 -g -fno-omit-frame-pointer -fsanitize=thread

# ---- what there is -------------------------------------------------------------------------------
LIB_SRC	    := $(sort $(wildcard shadow/core/*.c shadow/events/*.c))
VMM_SRC	    := $(sort $(wildcard vmm/*.c vmm/*.S))
SUPPORT_SRC := $(sort $(wildcard tests/support/*.c))
CRIT_SRC    := $(sort $(wildcard tests/unit/*.c tests/model/*.c tests/integration/*.c tests/regress/*.c))
RACE_SRC    := $(sort $(wildcard tests/race/*.c))
API_HDR	    := $(sort $(wildcard include/umbra/*.h include/abi/*.h))
ALL_HDR	    := $(sort $(API_HDR) $(wildcard shadow/*/*.h vmm/*.h))
GUEST_SRC   := $(sort $(wildcard guest-images/*.[ch] guest-images/lib/*.[ch]))
MAN_PAGES   := $(sort $(wildcard docs/man/*.[1-9]))
FORMATTED   := $(sort $(filter-out %.S,$(LIB_SRC) $(VMM_SRC) $(CRIT_SRC) $(RACE_SRC) $(SUPPORT_SRC)) \
		 $(ALL_HDR) $(GUEST_SRC) $(wildcard tests/*/*.[ch] bench/*.[ch] examples/*.[ch]))

objects = $(patsubst %,$(BUILD)/$1/%.o,$(basename $2))
VMM_MAIN := vmm/main.c
VMM_PART := $(filter-out $(VMM_MAIN),$(VMM_SRC))

# Deferred: asked only when something is compiled or linked, so that `make help` works on a bare machine.
VMM_LIBS   = $(shell $(PKG_CONFIG) --libs libseccomp jansson libtraceevent)
CRIT_CFLAGS = $(shell $(PKG_CONFIG) --cflags criterion)
CRIT_LIBS  = $(shell $(PKG_CONFIG) --libs criterion)

TARGETS := $(BUILD)/libumbra.a $(BUILD)/$(SHARED) $(BUILD)/umbra.pc
ifneq ($(wildcard $(VMM_MAIN)),)
TARGETS += $(BUILD)/vmm
endif

# ---- how commands are shown ----------------------------------------------------------------------
ifeq ($(V),1)
say =
Q =
else
say = @printf '  %-7s %s\n' $1 '$(patsubst $(BUILD)/%,%,$2)';
Q = @
endif

.DEFAULT_GOAL := all
.PHONY: all
all: $(TARGETS) guests ##@ the library, vmm and the guest images, in $(BUILD)/

GUEST_CC = $(call say,GUEST,$@)$(if $(filter 1,$(V)),,)$(CC)
# A room with rules of its own brings a fragment; it may add to CHECK_BUILD (built for `make check`) and FORMATTED.
CHECK_BUILD :=
include $(sort $(wildcard guest-images/*.mk bench/*.mk examples/*.mk kmod/*.mk tests/*/*.mk tools/lab/*.mk))

# ---- compiling -----------------------------------------------------------------------------------
# $1 variant, $2 its flags
define variant
$(BUILD)/$1/%.o: %.c Makefile | $(BUILD)/.dir
	@mkdir -p $$(@D)
	$$(call say,CC,$$@)$$(CC) $(UCFLAGS) $(if $(filter obj pic,$1),$$(CFLAGS)) $2 -MMD -MP -c $$< -o $$@
$(BUILD)/$1/%.o: %.S Makefile | $(BUILD)/.dir
	@mkdir -p $$(@D)
	$$(call say,AS,$$@)$$(CC) $(UCFLAGS) $(if $(filter obj pic,$1),$$(CFLAGS)) $2 -MMD -MP -c $$< -o $$@
$(BUILD)/$1/libumbra.a: $$(call objects,$1,$(LIB_SRC))
	@rm -f $$@
	$$(call say,AR,$$@)$$(AR) rcs $$@ $$^
$(BUILD)/$1/libvmm.a: $$(call objects,$1,$(VMM_PART))
	@rm -f $$@
	$$(call say,AR,$$@)$$(AR) rcs $$@ $$^
$(BUILD)/$1/libsupport.a: $$(call objects,$1,$(SUPPORT_SRC))
	@rm -f $$@
	$$(call say,AR,$$@)$$(AR) rcs $$@ $$^
endef
$(eval $(call variant,obj,))
$(eval $(call variant,pic,-fPIC))
$(eval $(call variant,asan,$(ASAN)))
$(eval $(call variant,tsan,$(TSAN)))
$(eval $(call variant,cov,-O0 -g --coverage))

# A range is two words, stored one by one; copied by one vector load it would stall for both stores (bench/inval_own.c).
$(foreach v,obj pic,$(call objects,$v,$(LIB_SRC))): override CFLAGS += -mgeneral-regs-only

$(BUILD)/.dir:
	@mkdir -p $(@D) && : >$@

# ---- the library ---------------------------------------------------------------------------------
# The static library is one object with the same exports: names of its insides must not meet the program's.
$(BUILD)/obj/umbra.o: $(call objects,obj,$(LIB_SRC)) $(BUILD)/umbra.map
	$(call say,LD,$@)$(LD) -r -o $@.tmp $(filter %.o,$^) && \
		sed -n 's/^\t\(umbra_.*\);/\1/p' $(BUILD)/umbra.map >$@.exports && \
		$(OBJCOPY) --keep-global-symbols=$@.exports $@.tmp $@ && rm -f $@.tmp

$(BUILD)/libumbra.a: $(BUILD)/obj/umbra.o
	@rm -f $@
	$(call say,AR,$@)$(AR) rcs $@ $<

# What the public headers declare is exported, and nothing else.
$(BUILD)/umbra.map: tools/export-map $(API_HDR) | $(BUILD)/.dir
	$(call say,MAP,$@)tools/export-map UMBRA_$(SOMAJOR) include/umbra/*.h >$@

$(BUILD)/$(SHARED): $(call objects,pic,$(LIB_SRC)) $(BUILD)/umbra.map
	$(call say,LD,$@)$(CC) -shared -pthread $(LDFLAGS) -Wl,-soname,$(SONAME) \
		-Wl,--version-script=$(BUILD)/umbra.map -Wl,-z,defs -o $@ $(filter %.o,$^)
	$(Q)ln -sf $(SHARED) $(BUILD)/$(SONAME) && ln -sf $(SONAME) $(BUILD)/libumbra.so

# It names PREFIX, and `make install PREFIX=...` may follow a `make` without: written anew when that has changed.
.PHONY: FORCE
$(BUILD)/umbra.pc: FORCE | $(BUILD)/.dir
	$(Q){ \
		echo 'prefix=$(PREFIX)'; echo 'libdir=$(LIBDIR)'; echo 'includedir=$(INCDIR)'; echo; \
		echo 'Name: umbra'; echo 'Description: a secondary MMU in user space for KVM guests'; \
		echo 'Version: $(VERSION)'; echo 'Libs: -L$${libdir} -lumbra'; \
		echo 'Libs.private: -pthread'; echo 'Cflags: -I$${includedir}'; } >$@.tmp; \
	if cmp -s $@.tmp $@; then rm -f $@.tmp; else mv $@.tmp $@; fi

# ---- vmm -----------------------------------------------------------------------------------------
$(BUILD)/vmm: $(call objects,obj,$(VMM_SRC)) $(BUILD)/libumbra.a
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) -pthread $(CFLAGS) $(LDFLAGS) -o $@ $^ $(VMM_LIBS)

$(BUILD)/asan/bin/vmm: $(call objects,asan,$(VMM_SRC)) $(BUILD)/asan/libumbra.a
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) -pthread $(ASAN) -o $@ $^ $(VMM_LIBS)

# ---- tests ---------------------------------------------------------------------------------------
CRIT_BIN := $(CRIT_SRC:%.c=$(BUILD)/asan/%)
RACE_BIN := $(RACE_SRC:%.c=$(BUILD)/tsan/%)
COV_BIN  := $(CRIT_SRC:%.c=$(BUILD)/cov/%) $(RACE_SRC:%.c=$(BUILD)/cov/%)

$(CRIT_BIN:=.o) $(call objects,asan,$(SUPPORT_SRC)) $(call objects,tsan,$(SUPPORT_SRC)): UCFLAGS += $(CRIT_CFLAGS)
$(CRIT_BIN): %: %.o $(BUILD)/asan/libsupport.a $(BUILD)/asan/libvmm.a $(BUILD)/asan/libumbra.a
	$(call say,LD,$@)$(CC) -pthread $(ASAN) -o $@ $^ $(CRIT_LIBS) $(VMM_LIBS)

# Race programs are plain programs: Criterion and ThreadSanitizer do not go together.
$(RACE_BIN): %: %.o $(BUILD)/tsan/libsupport.a $(BUILD)/tsan/libvmm.a $(BUILD)/tsan/libumbra.a
	$(call say,LD,$@)$(CC) -pthread $(TSAN) -o $@ $^ $(VMM_LIBS)

$(COV_BIN:=.o) $(call objects,cov,$(SUPPORT_SRC)): UCFLAGS += $(CRIT_CFLAGS)
# Not where a filter forbids to write: nothing of shadow/ is tested there.
COV_ENDS := -Wl,--wrap=_exit,--wrap=abort
$(BUILD)/cov/tests/integration/sandbox_threads: COV_ENDS :=
$(COV_BIN): %: %.o $(BUILD)/cov/tests/support/counts.o $(BUILD)/cov/libsupport.a $(BUILD)/cov/libvmm.a $(BUILD)/cov/libumbra.a
	$(call say,LD,$@)$(CC) -pthread --coverage $(COV_ENDS) -o $@ $^ $(CRIT_LIBS) $(VMM_LIBS)

# clang must be as silent as gcc; a header must compile alone.
LINT := $(patsubst %.c,$(BUILD)/lint/%.ok,$(filter %.c,$(LIB_SRC) $(VMM_SRC) $(CRIT_SRC) $(RACE_SRC) $(SUPPORT_SRC) \
	$(wildcard bench/*.c examples/*.c)))
HDR_OK := $(ALL_HDR:%=$(BUILD)/lint/%.ok)

$(BUILD)/lint/%.ok: %.c | $(BUILD)/.dir
	@mkdir -p $(@D)
	$(call say,CLANG,$<)$(CLANG) $(UCFLAGS) -fsyntax-only -MD -MP -MF $(@:.ok=.d) -MT $@ $< && : >$@
$(BUILD)/lint/%.h.ok: %.h | $(BUILD)/.dir
	@mkdir -p $(@D)
	$(call say,HEADER,$<)for cc in $(CC) $(CLANG); do \
		printf '#include "%s"\n#include "%s"\n' $< $< | \
		$$cc $(UCFLAGS) -fsyntax-only -MD -MP -MF $(@:.ok=.d) -MT $@ -x c - || exit 1; done && : >$@

.PHONY: check-build lint
check-build: all $(CRIT_BIN) $(RACE_BIN) $(CHECK_BUILD) lint
lint: $(LINT) $(HDR_OK) ##@ clang without a warning; every header compiles alone

.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

# ---- what people call ----------------------------------------------------------------------------
RUN_ARGS ?= -m 32M -c 2 --pages thp --chaos rate=500,seed=1 --stats --audit
RUN_IMAGE ?= $(BUILD)/guests/tour

.PHONY: promises
promises: $(BUILD)/libumbra.a ##@ print README's table of promises from the code
	$(Q)$(CC) $(UCFLAGS) tools/promises.c $< -o $(BUILD)/promises && $(BUILD)/promises

.PHONY: coverage
coverage: ##@ lines of shadow/ that no test reaches, each with its reason
	@tools/deps check
	$(Q)$(MAKE) --no-print-directory $(COV_BIN)
	@tools/coverage '$(BUILD)'

.PHONY: catalogue
catalogue: ##@ write docs/catalogue.md from the results of the last `make check` and of vmm oracle
	$(Q)'$(BUILD)/vmm' oracle --json >'$(BUILD)/oracle.json' && \
		tools/oracle-merge host "$$(uname -r)" 'vmm oracle --json' <'$(BUILD)/oracle.json'
	$(Q)tools/catalogue '$(BUILD)' >'$(BUILD)/catalogue.md' && cp '$(BUILD)/catalogue.md' docs/catalogue.md

.PHONY: run check check-layers check-format format install uninstall clean help deps
run: ##@ install what is missing, build, run the demonstration guest
	@tools/deps run
	@tools/kvm-usable || tools/deps lab
	@$(MAKE) --no-print-directory all
	@BUILD='$(BUILD)' tools/run-demo $(BUILD)/vmm run $(RUN_ARGS) $(RUN_IMAGE)

check: ##@ install what is missing, build and run every test; SUITES=... for some
	@tools/deps check
	@BUILD='$(BUILD)' MAKE='$(MAKE)' CLANG_FORMAT='$(CLANG_FORMAT)' tests/run $(SUITES)

check-layers: $(BUILD)/libumbra.a ##@ includes and symbols follow the layers
	$(Q)tools/check-layers --self-test
	$(Q)tools/check-layers $(BUILD)

check-format: ##@ say which files clang-format would change
	$(Q)$(CLANG_FORMAT) --dry-run -Werror $(FORMATTED)

format: ##@ let clang-format have its way
	$(Q)$(CLANG_FORMAT) -i $(FORMATTED)

deps: ##@ install what building and testing need
	@tools/deps check

D := $(DESTDIR)
install: all ##@ binary, libraries, headers, umbra.pc, man pages (PREFIX, DESTDIR)
	$(INSTALL) -d '$D$(BINDIR)' '$D$(LIBDIR)/pkgconfig' '$D$(INCDIR)/umbra' '$D$(INCDIR)/abi'
	$(INSTALL) -m 755 $(BUILD)/vmm '$D$(BINDIR)/vmm'
	$(INSTALL) -m 644 $(BUILD)/libumbra.a '$D$(LIBDIR)/libumbra.a'
	$(INSTALL) -m 755 $(BUILD)/$(SHARED) '$D$(LIBDIR)/$(SHARED)'
	ln -sf $(SHARED) '$D$(LIBDIR)/$(SONAME)'
	ln -sf $(SONAME) '$D$(LIBDIR)/libumbra.so'
	$(INSTALL) -m 644 $(BUILD)/umbra.pc '$D$(LIBDIR)/pkgconfig/umbra.pc'
	$(INSTALL) -m 644 include/umbra/*.h '$D$(INCDIR)/umbra/'
	$(INSTALL) -m 644 include/abi/*.h '$D$(INCDIR)/abi/'
	set -e; for page in $(MAN_PAGES); do dir='$D$(MANDIR)'/man$${page##*.}; \
		$(INSTALL) -d "$$dir"; $(INSTALL) -m 644 $$page "$$dir/"; done

uninstall: ##@ remove what install put there
	rm -f '$D$(BINDIR)/vmm' '$D$(LIBDIR)/libumbra.a' '$D$(LIBDIR)/$(SHARED)' '$D$(LIBDIR)/$(SONAME)' \
		'$D$(LIBDIR)/libumbra.so' '$D$(LIBDIR)/pkgconfig/umbra.pc'
	rm -f $(patsubst include/%,'$D$(INCDIR)/%',$(API_HDR))
	rm -f $(foreach p,$(MAN_PAGES),'$D$(MANDIR)/man$(subst .,,$(suffix $p))/$(notdir $p)')
	-rmdir '$D$(INCDIR)/umbra' '$D$(INCDIR)/abi' 2>/dev/null

clean: ##@ remove $(BUILD)/
	rm -rf '$(BUILD)'

help: ##@ this list
	@echo 'make [target] [V=1] [BUILD=dir] [PREFIX=/usr/local] [DESTDIR=]'
	@awk -F ':.*##@ ' '/^[a-z-]+:.*##@ /{ printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
