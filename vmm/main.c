/* SPDX-License-Identifier: BSD-2-Clause */
/* The program: the only place that prints errors of set-up and that exits. */
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vmm/args.h>
#include <vmm/oracle.h>

#ifndef UMBRA_VERSION
#define UMBRA_VERSION "0.1.0"
#endif

/* So that `vmm --help >/dev/full` is no success. */
static int finish_output(void)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return VMM_EXIT_OK;
	perror("umbra: standard output");
	return VMM_EXIT_INTERNAL;
}

static int run(const struct vm_config *config)
{
	struct vm_error err = { 0 };
	struct vm *vm = NULL;
	int code = vm_create(&vm, config, &err);

	if (code) {
		fprintf(stderr, "umbra: %s\n", err.text);
	} else {
		code = (int)vm_run(vm);
		/* whoever asked for a report and has none must see it; a failure of the guest weighs more */
		if (vm_report(vm) && code == VMM_EXIT_OK)
			code = VMM_EXIT_INTERNAL;
	}
	vm_destroy(vm);
	return code;
}

/*
 * What we open must never become standard input, output or error: the guest's bytes would go there. In place of one
 * that is closed stands one that cannot be used: writing to it fails, as it would have without.
 */
static bool open_standard_descriptors(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		if (fcntl(fd, F_GETFD) >= 0)
			continue;
		/* the lowest free number is @fd */
		if (open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
			return false;
	}
	return true;
}

/*
 * Signals as they are set when nobody meddled: a kick that is blocked interrupts no vCPU, and with SIGCHLD ignored the
 * number of a child that ended is free for somebody else, whom we would end in its place. What ends us keeps the
 * disposition that whoever starts us gave it (nohup), and stays blocked if it was: vm.c reads it from a descriptor.
 */
static void reset_signals(void)
{
	sigset_t set;

	signal(SIGCHLD, SIG_DFL);
	sigfillset(&set);
	sigdelset(&set, SIGINT);
	sigdelset(&set, SIGTERM);
	sigdelset(&set, SIGHUP);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
}

int main(int argc, char **argv)
{
	enum args_command command = ARGS_HELP;
	struct vm_config config;
	struct vm_error err = { 0 };

	if (!open_standard_descriptors()) {
		perror("umbra: /dev/null");
		return VMM_EXIT_CANNOT_RUN;
	}
	/* one arena: glibc opens a file of /proc before it shrinks another, which the sandbox forbids */
	mallopt(M_ARENA_MAX, 1);
	reset_signals();
	signal(SIGXFSZ, SIG_IGN); /* a limit on files is an error like others, with its text */
	if (args_parse(argc, argv, &command, &config, &err)) {
		fprintf(stderr, "umbra: %s\n", err.text);
		return (int)err.code;
	}
	switch (command) {
	case ARGS_HELP: args_help(stdout); break;
	case ARGS_HELP_RUN: args_help_run(stdout); break;
	case ARGS_VERSION: printf("vmm (Umbra) %s\n", UMBRA_VERSION); break;
	case ARGS_RUN: return run(&config);
	case ARGS_ORACLE: return oracle_main(argc - 1, argv + 1);
	}
	return finish_output();
}
