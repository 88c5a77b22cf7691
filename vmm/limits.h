/* SPDX-License-Identifier: BSD-2-Clause */
/* What this process may have of the host: which limit an error speaks of, and the command that lifts it. */
#ifndef VMM_LIMITS_H
#define VMM_LIMITS_H

#include <vmm/vm.h>

/*
 * limits_advice - the limit behind @error, its value and the command that lifts it, as "; ..." to
 * stand behind strerror(@error); "" when no limit of this process explains it.
 * @buf: of LIMITS_ADVICE_MAX bytes; also what is returned. Context: not from inside the sandbox.
 */
#define LIMITS_ADVICE_MAX 320
const char *limits_advice(int error, char *buf);

/* The number that a file of /proc or /sys holds; 0 without one. Context: not from inside the sandbox. */
uint64_t limits_number(const char *path);

/* Does @error say that the host has no more of something to give? Then it is not our own fault. */
bool limits_error(int error);

/*
 * vm_fail_host - as vm_fail(), for something that the host refused with @error: this host cannot run it.
 * The text is "FMT: strerror; advice".
 */
int vm_fail_host(struct vm_error *err, int error, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* So many descriptors must be free at the start that no later step or host call wants for one. */
int limits_check(struct vm *vm, struct vm_error *err);

#endif
