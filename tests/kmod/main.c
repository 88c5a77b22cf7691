/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The tests of the kernel module, one process each: kmod_test [NAME...], as root, with /dev/umbra there.
 * Prints a line for each test, "ok - name", "not ok - name" or "ok - name # SKIP why"; exit 0 when none failed.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <sys/wait.h>

#include "kmod_test.h"

#define SECONDS_FOR_ONE 300 /* of the clock inside, which may run fast */

static const struct test *const suites[] = { callout_tests, event_tests,  row_tests,
					     ring_tests,    attach_tests, hostile_tests,
					     life_tests,    rest_tests,   inject_tests };

void fail(const char *file, int line, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("# %s:%d: ", file, line);
	vprintf(format, args);
	printf("\n");
	va_end(args);
	fflush(stdout);
	_exit(1);
}

void skip(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("# skipped: ");
	vprintf(format, args);
	printf("\n");
	va_end(args);
	fflush(stdout);
	_exit(77);
}

static int run_one(void *arg)
{
	alarm(SECONDS_FOR_ONE);
	((const struct test *)arg)->run();
	return 0;
}

/* Tests of what only some kernels can do are run when they are named. */
static bool wanted(const char *name, int nr, char **names)
{
	if (nr == 0 && strncmp(name, "inject_", strlen("inject_")) == 0)
		return false;
	for (int i = 0; i < nr; i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return nr == 0;
}

int main(int argc, char **argv)
{
	unsigned int passed = 0, failed = 0, skipped = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; i < sizeof(suites) / sizeof(suites[0]); i++) {
		for (const struct test *t = suites[i]; t->name; t++) {
			int status;

			if (!wanted(t->name, argc - 1, argv + 1))
				continue;
			status = wait_for(child_of(run_one, (void *)(uintptr_t)t));
			if (status == 0) {
				passed++;
				printf("ok - %s\n", t->name);
			} else if (status == 77) {
				skipped++;
				printf("ok - %s # SKIP see above\n", t->name);
			} else {
				failed++;
				printf("not ok - %s (%s %d)\n", t->name,
				       status < 0 ? "signal" : "exit",
				       status < 0 ? -status : status);
			}
		}
	}
	printf("%u passed, %u failed, %u skipped\n", passed, failed, skipped);
	return failed > 0;
}
