/* SPDX-License-Identifier: BSD-2-Clause */
/* The guest image: parsing it (pure, so that it can be fuzzed), loading it, and the boot
 * information page. */
#ifndef VMM_BOOT_H
#define VMM_BOOT_H

#include <vmm/vm.h>

#define IMAGE_SEGMENTS_MAX 64
#define IMAGE_FILE_MAX     (64ULL << 20)

struct image_segment {
	uint64_t offset, file_bytes; /* in the file                       */
	uint64_t gpa, memory_bytes;  /* in the guest; the rest is zero    */
	bool executable;
};

struct image {
	uint64_t entry; /* gpa */
	uint64_t end;   /* gpa after the last byte of any segment */
	unsigned int nr;
	struct image_segment segment[IMAGE_SEGMENTS_MAX];
};

/*
 * image_parse - is @buf a static x86-64 executable, and where do its parts go? No I/O, no globals,
 * no allocation. Returns: 0, or VMM_EXIT_USAGE with @err saying what is wrong with it and how such
 * an image is made.
 */
int image_parse(const void *buf, size_t len, struct image *image, struct vm_error *err);

/* Does it fit into @memory bytes together with the boot information? Returns: as image_parse. */
int image_fits(const struct image *image, uint64_t memory, struct vm_error *err);

/* boot_load - read vm->config.image, copy it, write struct guest_boot_info; fills vm->entry and
 * vm->boot_info. */
int boot_load(struct vm *vm, struct vm_error *err);

#endif
