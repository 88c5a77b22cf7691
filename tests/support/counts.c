/* SPDX-License-Identifier: BSD-2-Clause */
/* Linked into the programs that count lines: a process that ends by _exit() or abort() writes its counts first. */
#include <stdlib.h>
#include <unistd.h>

void __gcov_dump(void);
void __real__exit(int status) __attribute__((noreturn, weak));
void __real_abort(void) __attribute__((noreturn, weak));
void __wrap__exit(int status) __attribute__((noreturn));
void __wrap_abort(void) __attribute__((noreturn));

/* The linker puts these in the place of the others, where it is told to: --wrap in the Makefile. */
void __wrap__exit(int status)
{
	__gcov_dump();
	__real__exit(status);
}

void __wrap_abort(void)
{
	__gcov_dump();
	__real_abort();
}
