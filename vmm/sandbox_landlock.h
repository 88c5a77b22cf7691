/* SPDX-License-Identifier: BSD-2-Clause */
/* Landlock: nothing of the file system and no TCP for this thread and those it starts. */
#ifndef VMM_SANDBOX_LANDLOCK_H
#define VMM_SANDBOX_LANDLOCK_H

/*
 * sandbox_landlock - from now on only files below @read_only can be opened, and those for reading.
 * Needs no_new_privs. Returns: the kernel's Landlock ABI; 0 when it has none; -errno.
 */
int sandbox_landlock(const char *read_only);

#endif
