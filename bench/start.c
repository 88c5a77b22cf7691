/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * start: from spawn to exit of `vmm run hello`, against the least that a KVM program can be (minihello, which prints the
 * same) and against QEMU's microvm with a boot ROM that prints the same; with little memory and with much; and its
 * resident peak.
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench.h"

#define ROM_BYTES  65536
#define ROM_TEXT   0xc000
#define ROM_CODE   0xff00
#define ROM_RESET  0xfff0
#define TEXT_MAX   (ROM_CODE - ROM_TEXT)
#define QEMU_EXITS 1 /* isa-debug-exit: what was written, times 2, plus 1 */
#define STARTS     2 /* in one sample */

extern char **environ;

struct program {
	char *argv[40];
	int exits;
};

static struct program small, large, mini, mini_large, qemu, qemu_large;
static char vmm[512], hello[512], floor_path[512], rom[512], text[TEXT_MAX + 1];
static long peak; /* KiB, of the last program that ended */

/* Runs it with its output in @out, or thrown away (-1). Returns: ns from spawn to exit, 0 when it failed. */
static uint64_t run(const struct program *p, int out)
{
	posix_spawn_file_actions_t actions;
	struct rusage usage;
	int status = -1;
	uint64_t t0;
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	if (out < 0)
		posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
	else
		posix_spawn_file_actions_adddup2(&actions, out, 1);
	posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
	t0 = bench_ns();
	if (posix_spawnp(&pid, p->argv[0], &actions, NULL, p->argv, environ))
		pid = -1;
	else if (wait4(pid, &status, 0, &usage) == pid)
		peak = usage.ru_maxrss;
	t0 = bench_ns() - t0;
	posix_spawn_file_actions_destroy(&actions);
	if (pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == p->exits)
		return t0;
	bench_fail("%s %s: status %#x", p->argv[0], p->argv[1], (unsigned int)status);
	return 0;
}

/* ms for one start. */
static double start(const struct program *p)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < STARTS; i++) {
		uint64_t ns = run(p, -1);

		if (!ns)
			return BENCH_FAILED;
		sum += ns;
	}
	return (double)sum / STARTS / 1e6;
}

#define START(name)                           \
	static double start_##name(void *ctx) \
	{                                     \
		(void)ctx;                    \
		return start(&name);          \
	}
START(small)
START(large)
START(mini)
START(mini_large)
START(qemu)
START(qemu_large)

static double resident(void *ctx)
{
	return run(ctx, -1) ? (double)peak : BENCH_FAILED;
}

/* ---- what is started ------------------------------------------------------------------------- */

static void program(struct program *p, int exits, const char *line)
{
	char *copy = strdup(line), *save = NULL;
	size_t n = 0;

	for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save))
		p->argv[n++] = word;
	p->exits = exits;
}

static void program_vmm(struct program *p, const char *memory)
{
	char line[1200];

	snprintf(line, sizeof(line), "%s run -m %s -c 1 %s", vmm, memory, hello);
	program(p, 0, line);
}

static void program_mini(struct program *p, char *mib)
{
	*p = (struct program){ .argv = { floor_path, mib, text, NULL } };
}

static void program_qemu(struct program *p, const char *memory)
{
	char line[1200];

	/* All that can be left out is left out; memory as sparse as ours. */
	snprintf(
		line, sizeof(line),
		"qemu-system-x86_64 "
		"-M microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,memory-backend=m "
		"-accel kvm -m %s -object memory-backend-ram,id=m,size=%s,reserve=off -smp 1 "
		"-nodefaults -no-user-config -display none -no-reboot -bios %s -serial stdio "
		"-device isa-debug-exit,iobase=0xf4,iosize=1",
		memory, memory, rom);
	program(p, QEMU_EXITS, line);
}

/* A ROM that sends the text to the serial port and ends QEMU. */
static bool write_rom(void)
{
	const size_t n = strlen(text);
	const uint8_t code[] = {
		0xb9,
		(uint8_t)n,
		(uint8_t)(n >> 8), /* mov cx, length */
		0xbe,
		ROM_TEXT & 0xff,
		ROM_TEXT >> 8, /* mov si, text */
		0xba,
		0xf8,
		0x03, /* mov dx, 0x3f8 */
		0x2e,
		0xf3,
		0x6e, /* rep outsb cs: */
		0xba,
		0xf4,
		0x00, /* mov dx, 0xf4 */
		0x30,
		0xc0, /* xor al, al */
		0xee,
		0xf4, /* out, hlt */
	};
	const uint8_t reset[] = { 0xe9, 0x0d, 0xff }; /* jmp to the code */
	static uint8_t image[ROM_BYTES];
	FILE *f = fopen(rom, "we");
	bool ok;

	memcpy(image + ROM_TEXT, text, n);
	memcpy(image + ROM_CODE, code, sizeof(code));
	memcpy(image + ROM_RESET, reset, sizeof(reset));
	ok = f && fwrite(image, sizeof(image), 1, f) == 1;
	if (f && fclose(f))
		ok = false;
	return ok;
}

/* What hello prints with @memory, so that all print the same. */
static bool take_text(const struct program *p)
{
	FILE *f = tmpfile();
	bool ok = f && run(p, fileno(f));

	if (ok) {
		rewind(f);
		ok = fread(text, 1, TEXT_MAX, f) > 0;
	}
	if (f)
		fclose(f);
	return ok;
}

static bool set_up(void)
{
	const char *v = getenv("VMM"), *g = getenv("GUESTS"), *b = getenv("BENCH_BIN");

	if (!v || !g || !b) {
		bench_fail("VMM, GUESTS and BENCH_BIN say where they are; `make bench` sets them");
		return false;
	}
	snprintf(vmm, sizeof(vmm), "%s", v);
	snprintf(hello, sizeof(hello), "%s/hello", g);
	snprintf(floor_path, sizeof(floor_path), "%s/minihello", b);
	snprintf(rom, sizeof(rom), "%s/start.rom", b);
	program_vmm(&small, "64M");
	program_vmm(&large, "64G");
	program_mini(&mini, "64");
	program_mini(&mini_large, "65536");
	program_qemu(&qemu, "64M");
	program_qemu(&qemu_large, "64G");
	if (!take_text(&small))
		return false;
	if (write_rom())
		return true;
	bench_fail("%s: %s", rom, strerror(errno));
	return false;
}

int main(void)
{
	const char *ours = "hello, spawn to exit, 64 MiB", *huge = "hello, spawn to exit, 64 GiB";

	bench_begin("start", -1);
	if (!set_up())
		return bench_end();
	bench_row(&(struct bench_row){ .name = "start",
				       .unit = "ms",
				       .what = ours,
				       .floor = "a minimal KVM program",
				       .at_most = 1.5,
				       .ours = start_small,
				       .against = start_mini });
	bench_row(&(struct bench_row){ .name = "start_qemu",
				       .unit = "ms",
				       .what = ours,
				       .floor = "QEMU microvm",
				       .at_most = 0.35,
				       .ours = start_small,
				       .against = start_qemu });
	bench_row(&(struct bench_row){ .name = "start_large",
				       .unit = "ms",
				       .what = huge,
				       .floor = "a minimal KVM program",
				       .at_most = 1.5,
				       .ours = start_large,
				       .against = start_mini_large });
	bench_row(&(struct bench_row){ .name = "start_large_qemu",
				       .unit = "ms",
				       .what = huge,
				       .floor = "QEMU microvm",
				       .at_most = 0.35,
				       .ours = start_large,
				       .against = start_qemu_large });
	bench_row(&(struct bench_row){ .name = "start_flat",
				       .unit = "ms",
				       .what = huge,
				       .floor = "64 MiB",
				       .at_most = 1.1,
				       .ours = start_large,
				       .against = start_small });
	bench_row(&(struct bench_row){ .name = "start_rss",
				       .unit = "KiB",
				       .what = "resident peak, 64 MiB",
				       .floor = "3 MiB",
				       .at_most = 1,
				       .limit = 3072,
				       .ours = resident,
				       .ctx = &small });
	bench_row(&(struct bench_row){ .name = "start_rss_large",
				       .unit = "KiB",
				       .what = "resident peak, 64 GiB",
				       .floor = "3 MiB",
				       .at_most = 1,
				       .limit = 3072,
				       .ours = resident,
				       .ctx = &large });
	unlink(rom);
	return bench_end();
}
