/* SPDX-License-Identifier: BSD-2-Clause */
/* The guest image: parsed without I/O, copied into guest memory, and the boot information page. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>
#include <vmm/boot.h>
#include <vmm/limits.h>
#include <vmm/memory.h>
#include <vmm/vm_private.h>

#define BAD(err, ...) vm_fail(err, VMM_EXIT_USAGE, __VA_ARGS__)

static int check_header(const Elf64_Ehdr *h, size_t len, struct vm_error *err)
{
	if (h->e_ident[EI_CLASS] != ELFCLASS64 || h->e_machine != EM_X86_64)
		return BAD(err, "not for x86-64 (ELF class %u, machine %u); compile it with -m64",
			   h->e_ident[EI_CLASS], h->e_machine);
	if (h->e_ident[EI_DATA] != ELFDATA2LSB || h->e_ident[EI_VERSION] != EV_CURRENT)
		return BAD(err, "not a little-endian ELF file of version 1");
	if (h->e_type == ET_DYN)
		return BAD(
			err,
			"position-independent or a shared library; link it with -static -no-pie");
	if (h->e_type != ET_EXEC)
		return BAD(err, "not an executable (ELF type %u); link it with -static -nostdlib",
			   h->e_type);
	if (!h->e_phnum)
		return BAD(err, "no program headers, so nothing to load");
	if (h->e_phnum > IMAGE_SEGMENTS_MAX)
		return BAD(err, "%u program headers; at most %d", h->e_phnum, IMAGE_SEGMENTS_MAX);
	if (h->e_phentsize != sizeof(Elf64_Phdr))
		return BAD(err, "program headers of %u bytes instead of %zu", h->e_phentsize,
			   sizeof(Elf64_Phdr));
	if (h->e_phoff > len || (uint64_t)h->e_phnum * sizeof(Elf64_Phdr) > len - h->e_phoff)
		return BAD(
			err,
			"truncated: the program headers lie past the end of the file (%zu bytes)",
			len);
	return 0;
}

static int add_segment(struct image *image, unsigned int index, const Elf64_Phdr *p, size_t len,
		       struct vm_error *err)
{
	struct image_segment s = { p->p_offset, p->p_filesz, p->p_vaddr, p->p_memsz,
				   (p->p_flags & PF_X) != 0 };

	if (s.file_bytes > s.memory_bytes)
		return BAD(err, "segment %u has more bytes in the file than in memory", index);
	if (s.offset > len || s.file_bytes > len - s.offset)
		return BAD(err,
			   "truncated: segment %u ends at byte %" PRIu64 "+%" PRIu64
			   " of a file of %zu bytes",
			   index, s.offset, s.file_bytes, len);
	if (s.memory_bytes > ~0ULL - s.gpa)
		return BAD(err, "segment %u wraps around the end of the address space", index);
	for (unsigned int i = 0; i < image->nr; i++) {
		const struct image_segment *o = &image->segment[i];

		if (s.gpa < o->gpa + o->memory_bytes && o->gpa < s.gpa + s.memory_bytes)
			return BAD(err, "segments overlap at 0x%" PRIx64,
				   s.gpa > o->gpa ? s.gpa : o->gpa);
	}
	if (s.gpa + s.memory_bytes > image->end)
		image->end = s.gpa + s.memory_bytes;
	image->segment[image->nr++] = s;
	return 0;
}

int image_parse(const void *buf, size_t len, struct image *image, struct vm_error *err)
{
	const unsigned char *bytes = buf;
	bool entry_found = false;
	Elf64_Ehdr h;
	int e;

	memset(image, 0, sizeof(*image));
	if (len < SELFMAG || memcmp(bytes, ELFMAG, SELFMAG) != 0)
		return BAD(err, "not an ELF file");
	if (len < sizeof(h))
		return BAD(err, "truncated: %zu bytes are less than an ELF header", len);
	/* Copied out: @buf need not be aligned. */
	memcpy(&h, bytes, sizeof(h));
	e = check_header(&h, len, err);
	if (e)
		return e;
	image->entry = h.e_entry;
	for (unsigned int i = 0; i < h.e_phnum; i++) {
		Elf64_Phdr p;

		memcpy(&p, bytes + h.e_phoff + i * sizeof(p), sizeof(p));
		if (p.p_type == PT_INTERP || p.p_type == PT_DYNAMIC)
			return BAD(err, "dynamically linked; link it with -static");
		if (p.p_type != PT_LOAD || !p.p_memsz)
			continue;
		e = add_segment(image, i, &p, len, err);
		if (e)
			return e;
	}
	if (!image->nr)
		return BAD(err, "no segment to load");
	for (unsigned int i = 0; i < image->nr; i++) {
		const struct image_segment *s = &image->segment[i];

		entry_found |= s->executable && image->entry >= s->gpa &&
			       image->entry - s->gpa < s->memory_bytes;
	}
	if (!entry_found)
		return BAD(err, "the entry point 0x%" PRIx64 " lies in no executable segment",
			   image->entry);
	return 0;
}

static uint64_t info_at(const struct image *image)
{
	return (image->end + UMBRA_PAGE_SIZE - 1) & ~(UMBRA_PAGE_SIZE - 1);
}

int image_fits(const struct image *image, uint64_t memory, struct vm_error *err)
{
	for (unsigned int i = 0; i < image->nr; i++) {
		const struct image_segment *s = &image->segment[i];

		if (s->gpa >= memory || s->memory_bytes > memory - s->gpa)
			return BAD(err,
				   "segment at 0x%" PRIx64 " of %" PRIu64
				   " bytes lies outside guest memory of %" PRIu64
				   "M; give it more with --memory, or link it lower",
				   s->gpa, s->memory_bytes, memory >> 20);
	}
	/* end <= memory by now, so rounding it up does not wrap. */
	if (info_at(image) > memory || sizeof(struct guest_boot_info) > memory - info_at(image))
		return BAD(err,
			   "too large: no room for the boot information in %" PRIu64
			   "M; give it more with --memory",
			   memory >> 20);
	return 0;
}

static int read_file(int fd, const struct stat *st, void **buf, size_t *len, const char *name,
		     struct vm_error *err)
{
	size_t size = (size_t)st->st_size, at = 0;

	*buf = malloc(size ? size : 1);
	if (!*buf)
		return vm_fail_host(err, ENOMEM, "%s: %zu bytes to read", name, size);
	while (at < size) {
		ssize_t n = read(fd, (char *)*buf + at, size - at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			n = errno;
			free(*buf);
			return BAD(err, "%s: cannot be read: %s", name, strerror((int)n));
		}
		if (!n)
			break;
		at += (size_t)n;
	}
	*len = at;
	return 0;
}

static int open_image(const char *name, void **buf, size_t *len, struct vm_error *err)
{
	/* NONBLOCK: opening a FIFO must not hang; it is refused below. */
	int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	int e;

	if (fd < 0 && limits_error(errno))
		return vm_fail_host(err, errno, "%s", name);
	if (fd < 0)
		return BAD(err, "%s: %s", name, strerror(errno));
	if (fstat(fd, &st) < 0)
		e = BAD(err, "%s: %s", name, strerror(errno));
	else if (!S_ISREG(st.st_mode))
		e = BAD(err, "%s: not a regular file", name);
	else if ((uint64_t)st.st_size > IMAGE_FILE_MAX)
		e = BAD(err, "%s: too large: %lld bytes; at most %llu", name, (long long)st.st_size,
			(unsigned long long)IMAGE_FILE_MAX);
	else
		e = read_file(fd, &st, buf, len, name, err);
	close(fd);
	return e;
}

/* To a guest, 0 means calm; the plan of seed 0 is chaos like any other. */
static uint64_t guest_seed(const struct chaos_spec *chaos)
{
	return !chaos->rate ? 0 : chaos->seed ? chaos->seed : 1;
}

static void write_info(struct vm *vm, const struct image *image)
{
	struct guest_boot_info *info;
	uint64_t after = info_at(image) + sizeof(*info);
	struct sysinfo host;

	vm->boot_info = (gpa_t){ info_at(image) };
	info = (struct guest_boot_info *)(uintptr_t)(vm->ram.v + vm->boot_info.v);
	*info = (struct guest_boot_info){
		.magic = GUEST_BOOT_MAGIC,
		.size = sizeof(*info),
		.memory = vm->config.memory,
		.free_base = (after + UMBRA_HUGE_SIZE - 1) & ~(UMBRA_HUGE_SIZE - 1),
		.vcpus = vm->config.vcpus,
		.page_kind = vm->config.pages,
		.backing = vm->config.backing,
		.can_swap = sysinfo(&host) == 0 && host.totalswap != 0,
		.seed = guest_seed(&vm->config.chaos),
		.sees_2m = umbra_hostmap_has_scan(vm->hostmap),
	};
	memcpy(info->args, vm->config.args, sizeof(info->args));
}

int boot_load(struct vm *vm, struct vm_error *err)
{
	struct vm_error why = { 0 };
	struct image image;
	void *buf = NULL;
	size_t len = 0;
	int e;

	e = open_image(vm->config.image, &buf, &len, err);
	if (e)
		return e;
	e = image_parse(buf, len, &image, &why);
	if (!e)
		e = image_fits(&image, vm->config.memory, &why);
	if (e) {
		free(buf);
		return vm_fail(err, why.code, "%s: %s", vm->config.image, why.text);
	}
	/* Fresh memory is zero: what a segment has beyond its file bytes needs no store, and stays
	 * sparse. */
	for (unsigned int i = 0; i < image.nr; i++) {
		const struct image_segment *s = &image.segment[i];

		memcpy((void *)(uintptr_t)(vm->ram.v + s->gpa), (const char *)buf + s->offset,
		       s->file_bytes);
	}
	free(buf);
	write_info(vm, &image);
	vm->entry = (gpa_t){ image.entry };
	return 0;
}
