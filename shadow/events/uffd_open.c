/* SPDX-License-Identifier: BSD-2-Clause */
/* Where a userfaultfd comes from: a passed descriptor, /dev/userfaultfd, the system call; and its handshake. */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "shadow/events/uffd.h"

#define WANTED_FEATURES                                                             \
	((uint64_t)(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_FORK |      \
		    UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |          \
		    UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MISSING_SHMEM |   \
		    UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_THREAD_ID |             \
		    UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_MINOR_SHMEM |       \
		    UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | \
		    UFFD_FEATURE_POISON | UFFD_FEATURE_MOVE))

static int new_uffd(int dev)
{
	int fd;

	if (dev >= 0)
		fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	else
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

static int handshake(int fd, uint64_t want, uint64_t *features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = want };

	if (ioctl(fd, UFFDIO_API, &api))
		return -errno;
	*features = api.features;
	return 0;
}

/*
 * All of @want, or what may be had of it: events of forks need CAP_SYS_PTRACE, whoever made the descriptor. A handshake that
 * failed may be repeated, one that succeeded may not.
 */
static int enable(int fd, uint64_t want, uint64_t *features)
{
	const uint64_t fork_events = UFFD_FEATURE_EVENT_FORK;
	uint64_t unused;
	int err = handshake(fd, want, &unused);

	if (err == -EPERM) {
		want &= ~fork_events;
		err = handshake(fd, want, &unused);
	}
	*features = want;
	return err;
}

/* What there is can only be asked by a handshake, so the first descriptor is spent on it. */
static int open_way(int dev, uint64_t *features)
{
	uint64_t offered = 0;
	int fd = new_uffd(dev), err;

	if (fd < 0)
		return fd;
	err = handshake(fd, 0, &offered);
	close(fd);
	if (err)
		return err;
	fd = new_uffd(dev);
	if (fd < 0)
		return fd;
	err = enable(fd, offered & WANTED_FEATURES, features);
	if (!err)
		return fd;
	close(fd);
	return err;
}

/* There is no second one to spend: features are left off from the newest on until the kernel knows them all. */
static int open_passed(int passed, uint64_t *features)
{
	const int flags = fcntl(passed, F_GETFL);
	uint64_t want = WANTED_FEATURES;
	int err;

	if (flags < 0 || fcntl(passed, F_SETFL, flags | O_NONBLOCK))
		return -errno;
	for (int bit = 63; bit >= 0; bit--) {
		err = enable(passed, want, features);
		if (err != -EINVAL)
			return err ? err : passed;
		while (bit >= 0 && !(want & 1ULL << bit))
			bit--;
		if (bit >= 0)
			want &= ~(1ULL << bit);
	}
	return -EINVAL; /* also: it has had its handshake */
}

int uffd_open_fd(struct umbra_uffd *u, struct umbra_uffd_tried *tried)
{
	int dev, fd = -ENOENT;

	*tried = (struct umbra_uffd_tried){ 1, 1, 1 };
	if (u->config.fd >= 0) {
		fd = open_passed(u->config.fd, &u->features);
		tried->passed_fd = fd < 0 ? fd : 0;
		if (fd >= 0)
			return fd;
	}
	u->owned = true;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	fd = dev < 0 ? -errno : open_way(dev, &u->features);
	if (dev >= 0)
		close(dev);
	tried->dev = fd < 0 ? fd : 0;
	if (fd >= 0)
		return fd;
	fd = open_way(-1, &u->features);
	tried->syscall = fd < 0 ? fd : 0;
	return fd;
}
