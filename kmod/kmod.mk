# SPDX-License-Identifier: BSD-2-Clause
# The kernel module, its checks and its tests. The program of the tests runs in the lab: tests/lab/kmod.sh.
KMOD_TEST_SRC := $(sort $(wildcard tests/kmod/*.c))
KMOD_TEST := $(BUILD)/kmod/kmod_test

.PHONY: kmod kmod-check kmod-checkpatch install-dkms
kmod: ##@ the kernel module, for the lab's kernel (KERNEL=6.1 or 6.12) or for KDIR=..., in $(BUILD)/kmod/
	@BUILD='$(BUILD)' KERNEL='$(KERNEL)' KDIR='$(KDIR)' kmod/build
kmod-check: ##@ the kernel module by W=1 and sparse, for both kernels of the lab
	@BUILD='$(BUILD)' kmod/check
kmod-checkpatch: ##@ the kernel module by the kernel's checkpatch.pl (downloads 130 MB once)
	@BUILD='$(BUILD)' kmod/checkpatch

$(KMOD_TEST): $(KMOD_TEST_SRC) $(wildcard tests/kmod/*.h) $(wildcard include/abi/notifier*.h)
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(CFLAGS) $(UCFLAGS) -o $@ $(KMOD_TEST_SRC)
CHECK_BUILD += $(KMOD_TEST)

DKMS_DIR := $(DESTDIR)/usr/src/umbra-$(VERSION)
install-dkms: ##@ the module's sources for DKMS in /usr/src, and its udev rule
	$(INSTALL) -d $(DKMS_DIR)/kmod $(DKMS_DIR)/include/abi $(DESTDIR)/usr/lib/udev/rules.d
	$(INSTALL) -m 644 kmod/umbra.c kmod/compat.h kmod/Kbuild $(DKMS_DIR)/kmod/
	$(INSTALL) -m 644 include/abi/notifier.h include/abi/notifier_ring.h $(DKMS_DIR)/include/abi/
	sed 's/@VERSION@/$(VERSION)/' kmod/dkms.conf >$(DKMS_DIR)/dkms.conf
	$(INSTALL) -m 644 kmod/99-umbra.rules $(DESTDIR)/usr/lib/udev/rules.d/
