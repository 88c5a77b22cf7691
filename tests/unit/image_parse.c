/* SPDX-License-Identifier: BSD-2-Clause */
/* image_parse, image_fits: a good image in its parts, and every way in which one can be bad. */
#include <criterion/criterion.h>
#include <elf.h>
#include <stdlib.h>
#include <string.h>
#include <vmm/boot.h>

#define SEGMENTS 2
#define FILE_LEN 0x3000

static struct {
	union {
		struct {
			Elf64_Ehdr h;
			Elf64_Phdr p[SEGMENTS];
		};
		unsigned char bytes[FILE_LEN];
	};
} file;
static struct image image;
static struct vm_error err;

/* Code at 1M, data with a zeroed tail at 2M. */
static void good(void)
{
	memset(&file, 0, sizeof(file));
	memset(&err, 0, sizeof(err));
	memcpy(file.h.e_ident, ELFMAG, SELFMAG);
	file.h.e_ident[EI_CLASS] = ELFCLASS64;
	file.h.e_ident[EI_DATA] = ELFDATA2LSB;
	file.h.e_ident[EI_VERSION] = EV_CURRENT;
	file.h.e_type = ET_EXEC;
	file.h.e_machine = EM_X86_64;
	file.h.e_phoff = sizeof(Elf64_Ehdr);
	file.h.e_phentsize = sizeof(Elf64_Phdr);
	file.h.e_phnum = SEGMENTS;
	file.h.e_entry = 0x100010;
	file.p[0] = (Elf64_Phdr){ PT_LOAD,  PF_R | PF_X, 0x1000, 0x100000,
				  0x100000, 0x800,       0x800,  0x1000 };
	file.p[1] = (Elf64_Phdr){ PT_LOAD,  PF_R | PF_W, 0x2000, 0x200000,
				  0x200000, 0x100,       0x5000, 0x1000 };
}

static void bad(const char *word)
{
	cr_expect_eq(image_parse(&file, sizeof(file), &image, &err), VMM_EXIT_USAGE,
		     "\"%s\" was accepted", word);
	cr_expect(strstr(err.text, word), "\"%s\" does not say \"%s\"", err.text, word);
	good();
}

Test(image, a_good_one_comes_out_in_its_parts, .init = good)
{
	cr_assert_eq(image_parse(&file, sizeof(file), &image, &err), 0, "%s", err.text);
	cr_expect_eq(image.nr, 2);
	cr_expect_eq(image.entry, 0x100010);
	cr_expect_eq(image.end, 0x205000);
	cr_expect_eq(image.segment[0].gpa, 0x100000);
	cr_expect_eq(image.segment[0].offset, 0x1000);
	cr_expect_eq(image.segment[0].file_bytes, 0x800);
	cr_expect(image.segment[0].executable);
	cr_expect_eq(image.segment[1].memory_bytes, 0x5000);
	cr_expect_not(image.segment[1].executable);
	cr_expect_eq(image_fits(&image, 4ULL << 20, &err), 0, "%s", err.text);
}

Test(image, not_elf_or_cut_short, .init = good)
{
	file.h.e_ident[0] = 'X';
	bad("not an ELF file");
	for (size_t len = 0; len < sizeof(Elf64_Ehdr) + SEGMENTS * sizeof(Elf64_Phdr); len++)
		cr_expect_eq(image_parse(&file, len, &image, &err), VMM_EXIT_USAGE, "%zu bytes",
			     len);
	cr_expect_eq(image_parse(&file, 0x20ff, &image, &err), VMM_EXIT_USAGE);
	cr_expect(strstr(err.text, "truncated"));
	cr_expect_eq(image_parse(&file, 0x2100, &image, &err), 0);
}

Test(image, of_another_kind, .init = good)
{
	file.h.e_ident[EI_CLASS] = ELFCLASS32;
	bad("not for x86-64");
	file.h.e_machine = EM_AARCH64;
	bad("not for x86-64");
	file.h.e_ident[EI_DATA] = ELFDATA2MSB;
	bad("little-endian");
	file.h.e_type = ET_DYN;
	bad("-static -no-pie");
	file.h.e_type = ET_REL;
	bad("not an executable");
	file.p[1].p_type = PT_INTERP;
	bad("dynamically linked");
	file.p[0].p_type = PT_DYNAMIC;
	bad("dynamically linked");
}

Test(image, with_program_headers_that_lie, .init = good)
{
	file.h.e_phnum = 0;
	bad("no program headers");
	file.h.e_phnum = 65;
	bad("65 program headers");
	file.h.e_phnum = 0xffff;
	bad("65535 program headers");
	file.h.e_phentsize = 32;
	bad("32 bytes");
	file.h.e_phoff = FILE_LEN - 8;
	bad("truncated");
	file.h.e_phoff = ~0ULL - 8;
	bad("truncated");
	file.h.e_phoff = ~0ULL - 2 * sizeof(Elf64_Phdr) + 1;
	bad("truncated");
}

Test(image, with_segments_that_lie, .init = good)
{
	file.p[0].p_filesz = 0x801;
	bad("more bytes in the file than in memory");
	file.p[0].p_offset = FILE_LEN + 1;
	bad("truncated");
	file.p[0].p_offset = ~0ULL;
	bad("truncated");
	file.p[0].p_filesz = file.p[0].p_memsz = ~0ULL;
	bad("truncated");
	file.p[1].p_vaddr = ~0ULL - 0x100;
	bad("wraps around");
	file.p[1].p_memsz = ~0ULL;
	bad("wraps around");
	file.p[0].p_type = file.p[1].p_type = PT_NOTE;
	bad("no segment to load");
}

Test(image, with_overlapping_segments, .init = good)
{
	file.p[1].p_vaddr = 0x1007ff;
	bad("overlap at 0x1007ff");
	file.p[1].p_vaddr = 0x100000 - 0x4fff;
	bad("overlap at 0x100000");
	/* Touching is not overlapping. */
	file.p[1].p_vaddr = 0x100800;
	cr_expect_eq(image_parse(&file, sizeof(file), &image, &err), 0, "%s", err.text);
}

Test(image, whose_entry_is_no_code, .init = good)
{
	file.h.e_entry = 0x100800;
	bad("entry point 0x100800");
	file.h.e_entry = 0xfffff;
	bad("entry point");
	file.h.e_entry = 0x200000;
	bad("no executable segment");
}

Test(image, that_does_not_fit, .init = good)
{
	cr_assert_eq(image_parse(&file, sizeof(file), &image, &err), 0);
	cr_expect_eq(image_fits(&image, 2ULL << 20, &err), VMM_EXIT_USAGE);
	cr_expect(strstr(err.text, "outside guest memory of 2M"), "%s", err.text);
	/* Up to the last byte, so that the boot information has no room. */
	file.p[1].p_memsz = 0x200000;
	cr_assert_eq(image_parse(&file, sizeof(file), &image, &err), 0);
	cr_expect_eq(image_fits(&image, 4ULL << 20, &err), VMM_EXIT_USAGE);
	cr_expect(strstr(err.text, "boot information"), "%s", err.text);
	cr_expect_eq(image_fits(&image, 6ULL << 20, &err), 0);
	/* Far away, but without wrapping. */
	file.p[1].p_vaddr = 1ULL << 63;
	cr_assert_eq(image_parse(&file, sizeof(file), &image, &err), 0);
	cr_expect_eq(image_fits(&image, 64ULL << 30, &err), VMM_EXIT_USAGE);
}

/* Whatever the bytes, what is accepted obeys the rules that the loader relies on. */
Test(image, nothing_accepted_breaks_the_loaders_rules, .init = good)
{
	unsigned int accepted = 0;

	srand(1);
	for (unsigned int round = 0; round < 200000; round++) {
		size_t len = (size_t)rand() % (FILE_LEN + 1);

		good();
		for (int i = rand() % 4; i >= 0; i--)
			file.bytes[(size_t)rand() % (sizeof(Elf64_Ehdr) + sizeof(file.p))] =
				(unsigned char)(rand() % 3   ? rand()
						: rand() % 2 ? 0xff
							     : 0);
		if (image_parse(&file, len, &image, &err) || image_fits(&image, 8ULL << 20, &err))
			continue;
		accepted++;
		for (unsigned int i = 0; i < image.nr; i++) {
			const struct image_segment *s = &image.segment[i];

			cr_assert_leq(s->offset, len);
			cr_assert_leq(s->file_bytes, len - s->offset);
			cr_assert_leq(s->file_bytes, s->memory_bytes);
			cr_assert_leq(s->gpa, 8ULL << 20);
			cr_assert_leq(s->memory_bytes, (8ULL << 20) - s->gpa);
		}
	}
	cr_expect_gt(accepted, 100, "the mutations are too wild: %u of 200000 accepted", accepted);
}
