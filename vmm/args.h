/* SPDX-License-Identifier: BSD-2-Clause */
/* The command line. No I/O and no exit: what to do, or an error that names the argument and the
 * fix. */
#ifndef VMM_ARGS_H
#define VMM_ARGS_H

#include <stdio.h>
#include <vmm/vm.h>

enum args_command { ARGS_RUN, ARGS_HELP, ARGS_HELP_RUN, ARGS_VERSION, ARGS_ORACLE };

/* Returns: 0 with @command, and for ARGS_RUN @config, filled (what follows oracle is not looked at); or VMM_EXIT_USAGE with @err filled.
 */
int args_parse(int argc, char **argv, enum args_command *command, struct vm_config *config,
	       struct vm_error *err);

/* "2M", "512k", "1G", "4096": bytes. Returns: 0, -EINVAL, -ERANGE. */
int args_size(const char *text, uint64_t *bytes);

void args_help(FILE *out);
void args_help_run(FILE *out);

#endif
