/* SPDX-License-Identifier: BSD-2-Clause */
/* Guest images: whatever the file holds, what is accepted lies inside the file and inside memory, and is apart. */
#include <vmm/boot.h>
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct image image;
	struct vm_error err = { .code = VMM_EXIT_OK };
	const uint64_t memory = 64ULL << 20;

	memset(&image, 0, sizeof(image));
	if (image_parse(data, size, &image, &err)) {
		fuzz_require(err.code == VMM_EXIT_USAGE && err.text[0]);
		return 0;
	}
	fuzz_require(image.nr && image.nr <= IMAGE_SEGMENTS_MAX);
	for (unsigned int i = 0; i < image.nr; i++) {
		const struct image_segment *s = &image.segment[i];

		fuzz_require(s->offset <= size && s->file_bytes <= size - s->offset);
		fuzz_require(s->file_bytes <= s->memory_bytes);
		fuzz_require(s->gpa + s->memory_bytes >= s->gpa);
		fuzz_require(s->gpa + s->memory_bytes <= image.end);
		for (unsigned int k = 0; k < i; k++) {
			const struct image_segment *o = &image.segment[k];

			fuzz_require(s->gpa + s->memory_bytes <= o->gpa ||
				     o->gpa + o->memory_bytes <= s->gpa);
		}
	}
	if (!image_fits(&image, memory, &err))
		fuzz_require(image.end <= memory && image.entry < image.end);
	else
		fuzz_require(err.text[0]);
	return 0;
}
