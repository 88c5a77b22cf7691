/* SPDX-License-Identifier: BSD-2-Clause */
/* Limits of the process and of the host, put into words with the command that lifts them. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <vmm/hostcall.h>
#include <vmm/limits.h>
#include <vmm/vm_private.h>

/* Open at once at most, beside one for each vCPU and two for each forked child: measured, and some more. */
#define DESCRIPTORS 26

static bool limited(__rlimit_resource_t resource, unsigned long long *value)
{
	struct rlimit limit;

	if (getrlimit(resource, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY)
		return false;
	*value = limit.rlim_cur;
	return true;
}

uint64_t limits_number(const char *path)
{
	unsigned long long n = 0;
	FILE *f = fopen(path, "re");

	if (!f)
		return 0;
	if (fscanf(f, "%llu", &n) != 1)
		n = 0;
	fclose(f);
	return n;
}

__attribute__((format(printf, 2, 3))) static void add(char *buf, const char *fmt, ...)
{
	const size_t at = strlen(buf);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(buf + at, LIMITS_ADVICE_MAX - at, fmt, ap);
	va_end(ap);
}

static void no_memory(char *buf)
{
	unsigned long long n;

	if (limited(RLIMIT_AS, &n))
		add(buf, "; the limit of address space is %lluM; run: ulimit -v unlimited",
		    n >> 20);
	if (limited(RLIMIT_DATA, &n))
		add(buf, "; the limit of private memory is %lluM; run: ulimit -d unlimited",
		    n >> 20);
	if (!*buf && limits_number("/proc/sys/vm/overcommit_memory") == 2)
		add(buf, "; this host promises no more memory than it has; as root: sysctl "
			 "vm.overcommit_memory=0");
}

const char *limits_advice(int error, char *buf)
{
	unsigned long long n;

	*buf = '\0';
	switch (error) {
	case EMFILE:
		if (limited(RLIMIT_NOFILE, &n))
			add(buf, "; the limit of open files is %llu; run: ulimit -n %llu", n,
			    n + DESCRIPTORS + VM_VCPUS_MAX + 2 * HOSTCALL_CHILDREN_MAX);
		break;
	case ENFILE:
		n = limits_number("/proc/sys/fs/file-max");
		add(buf,
		    "; all programs of this host may have %llu files open together; as root: sysctl "
		    "fs.file-max=%llu",
		    n, 2 * n);
		break;
	case EAGAIN:
		if (limited(RLIMIT_NPROC, &n))
			add(buf,
			    "; the limit of this user's processes and threads is %llu; run: ulimit -u "
			    "%llu, or end some of them",
			    n, n + 64);
		else
			add(buf,
			    "; this host may have %llu threads (sysctl kernel.threads-max), and "
			    "this program's cgroup as many as its pids.max says",
			    (unsigned long long)limits_number("/proc/sys/kernel/threads-max"));
		break;
	case ENOMEM: no_memory(buf); break;
	case EFBIG:
		if (limited(RLIMIT_FSIZE, &n))
			add(buf, "; the limit of a file's size is %lluM; run: ulimit -f unlimited",
			    n >> 20);
		break;
	default: break;
	}
	return buf;
}

bool limits_error(int error)
{
	return error == EMFILE || error == ENFILE || error == EAGAIN || error == ENOMEM ||
	       error == EFBIG;
}

int vm_fail_host(struct vm_error *err, int error, const char *fmt, ...)
{
	char what[256], advice[LIMITS_ADVICE_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	return vm_fail(err, VMM_EXIT_CANNOT_RUN, "%s: %s%s", what, strerror(error),
		       limits_advice(error, advice));
}

int limits_check(struct vm *vm, struct vm_error *err)
{
	const long cpus = vm->config.events_tracepoints ? sysconf(_SC_NPROCESSORS_CONF) : 0;
	const unsigned long long need = DESCRIPTORS + vm->config.vcpus + 2 * HOSTCALL_CHILDREN_MAX +
					3 * (cpus > 0 ? (unsigned long long)cpus : 0);
	unsigned long long limit, unused = 0;

	if (!limited(RLIMIT_NOFILE, &limit))
		return 0;
	for (unsigned long long fd = 0; fd < limit && unused < need; fd++)
		unused += fcntl((int)fd, F_GETFD) < 0;
	if (unused >= need)
		return 0;
	return vm_fail(
		err, VMM_EXIT_CANNOT_RUN,
		"the limit of open files is %llu, of which %llu are free; this machine needs "
		"%llu; run: ulimit -n %llu",
		limit, unused, need, limit + need - unused);
}
