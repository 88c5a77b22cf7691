/* SPDX-License-Identifier: BSD-2-Clause */
/* Preloaded to vmm in the lab: guest memory is offered to KSM, as prctl(PR_SET_MEMORY_MERGE) does from Linux 6.4 on. */
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GUEST_MIN (2UL << 20)

void *mmap(void *addr, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	const int anon = MAP_PRIVATE | MAP_ANONYMOUS;
	const long at = syscall(SYS_mmap, addr, bytes, prot, flags, fd, offset);

	if (at == -1)
		return MAP_FAILED;
	/* not hugetlb, which the kernel refuses: then nothing is offered */
	if (bytes >= GUEST_MIN && (flags & anon) == anon && (prot & PROT_WRITE)) {
		const int before = errno;

		(void)madvise((void *)at, bytes, MADV_MERGEABLE);
		errno = before;
	}
	return (void *)at;
}
