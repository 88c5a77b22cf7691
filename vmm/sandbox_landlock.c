/* SPDX-License-Identifier: BSD-2-Clause */
/* Landlock by raw system calls: Debian 12's header knows ABI 2, the kernel may know more. */
#include <errno.h>
#include <fcntl.h>
#include <linux/types.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vmm/sandbox_landlock.h>

#define LANDLOCK_VERSION      1
#define LANDLOCK_PATH_BENEATH 1

#define FS_READ_FILE (1ULL << 2)
#define FS_READ_DIR  (1ULL << 3)

struct landlock_ruleset {
	__u64 fs;     /* in: accesses that are forbidden unless a rule allows them */
	__u64 net;    /* in: ABI 4 */
	__u64 scoped; /* in: ABI 6 */
};

struct landlock_path {
	__u64 allowed;
	__s32 fd;
} __attribute__((packed));

/* Rights the kernel of ABI @abi knows: 13, with refer (2) 14, truncate (3) 15, device ioctl (5) 16.
 */
static __u64 all_fs_rights(int abi)
{
	unsigned int n = abi >= 5 ? 16 : abi >= 3 ? 15 : abi == 2 ? 14 : 13;

	return (1ULL << n) - 1;
}

static int allow_below(int ruleset, const char *path)
{
	struct landlock_path rule = { FS_READ_FILE | FS_READ_DIR, 0 };
	long e;

	rule.fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (rule.fd < 0)
		return -errno;
	e = syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_PATH_BENEATH, &rule, 0);
	if (e < 0)
		e = -errno;
	close(rule.fd);
	return (int)e;
}

int sandbox_landlock(const char *read_only)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_VERSION);
	struct landlock_ruleset rules = { 0 };
	size_t size = sizeof(rules.fs);
	int fd, e;

	if (abi < 1)
		return 0; /* not built in, or not switched on */
	rules.fs = all_fs_rights((int)abi);
	if (abi >= 4) {
		rules.net = 3; /* bind and connect */
		size = offsetof(struct landlock_ruleset, scoped);
	}
	if (abi >= 6) {
		/* abstract sockets and signals: to nobody else. Threads and children of ours are of one domain with us. */
		rules.scoped = 3;
		size = sizeof(rules);
	}
	fd = (int)syscall(SYS_landlock_create_ruleset, &rules, size, 0);
	if (fd < 0)
		return -errno;
	e = allow_below(fd, read_only);
	if (!e && syscall(SYS_landlock_restrict_self, fd, 0) < 0)
		e = -errno;
	close(fd);
	return e ? e : (int)abi;
}
