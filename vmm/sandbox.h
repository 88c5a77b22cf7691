/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is left to each thread once it is set up. A thread that does anything else ends the process
 * with a line that names the kind of thread and the system call.
 */
#ifndef VMM_SANDBOX_H
#define VMM_SANDBOX_H

#include <vmm/vm.h>

enum sandbox_kind {
	SANDBOX_MAIN,
	SANDBOX_VCPU,
	SANDBOX_READER, /* of the userfaultfd */
	SANDBOX_CHAOS,
	SANDBOX_MODULE,  /* reads the module's ring */
	SANDBOX_WITNESS, /* reads perf rings */
	SANDBOX_KIND_NR
};
const char *sandbox_kind_name(enum sandbox_kind kind);

/*
 * sandbox_process - once, by the only thread there is, before it starts others: handler for refused
 * calls, no new privileges, no capabilities, no file system (Landlock) but this process's own
 * /proc/self/task.
 * @effective: what is in force, for the log. Returns: 0, -errno.
 */
struct sandbox_effective {
	bool seccomp, no_new_privs, no_capabilities;
	int landlock; /* ABI, 0: the kernel has none */
};
int sandbox_process(enum vm_sandbox mode, struct sandbox_effective *effective);

/* sandbox_thread - the calling thread's own filter; there is no way back. Returns: 0, -errno. */
int sandbox_thread(enum vm_sandbox mode, enum sandbox_kind kind);

#endif
