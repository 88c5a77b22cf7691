/* SPDX-License-Identifier: BSD-2-Clause */
/* Rows of the catalogue for which the machine has to be given something first: a GiB of hugetlb addresses, a file system. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <shadow/events/uapi.h>
#include "kmod_test.h"

#define GIB (1UL << 30)

#define PM_SCAN_WP_MATCHING   (1ULL << 0)
#define PM_SCAN_CHECK_WPASYNC (1ULL << 1)

static struct seen seen;
static struct sub sub;

/* What a kernel may tell of a GiB, for it shares the tables of whole ones among processes; here nobody shares them. */
static void hugetlb_of_a_gib_protected(void)
{
	char *p, *middle, *page;

	if (!put("/proc/sys/vm/nr_hugepages", "4") || get("/proc/sys/vm/nr_hugepages") < 2)
		skip("no hugetlb pages to be had");
	/* addresses only: the pool has pages for the few that are touched */
	p = mmap(NULL, 4 * GIB, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE | 21 << 26, -1, 0);
	CHECK(p != MAP_FAILED);
	middle = (char *)(((uintptr_t)p + 2 * GIB - 1) & -GIB);
	page = middle + 5 * HUGE;
	page[0] = 1;
	page[HUGE] = 2;
	subscribe(&sub, p, 4 * GIB, 10);
	CHECK(mprotect(page, HUGE, PROT_READ) == 0);
	drain(&sub, &seen);
	CHECK(find_cover(&seen, page, HUGE) >= 0);
	CHECK(find_cover(&seen, middle, GIB) >= 0);
	for (unsigned int i = 0; i < seen.nr; i++)
		CHECK(seen.v[i].start >= (uintptr_t)middle &&
		      seen.v[i].end <= (uintptr_t)middle + GIB);
	EQUAL(page[0], 1);
	EQUAL(page[HUGE], 2);
	CHECK(munmap(p, 4 * GIB) == 0);
	put("/proc/sys/vm/nr_hugepages", "0");
}

static int userfaultfd_with(uint64_t features, void *p, size_t bytes, uint64_t mode)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = { .range = { (uintptr_t)p, bytes }, .mode = mode };
	const int fd = (int)syscall(SYS_userfaultfd, 0);

	if (fd < 0)
		skip("userfaultfd: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_API, &api))
		skip("this kernel's userfaultfd cannot do it: %s", strerror(errno));
	CHECK(ioctl(fd, UFFDIO_REGISTER, &reg) == 0);
	return fd;
}

static void thp_moved_by_userfaultfd(void)
{
	char *p = huge_memory(2 * HUGE), *to = p + HUGE;
	struct uffdio_move move = { .dst = (uintptr_t)to, .src = (uintptr_t)p, .len = HUGE };
	int fd;

	CHECK(madvise(to, HUGE, MADV_DONTNEED) == 0);
	fd = userfaultfd_with(UFFD_FEATURE_MOVE, to, HUGE, UFFDIO_REGISTER_MODE_MISSING);
	subscribe(&sub, p, 2 * HUGE, 10);
	CHECK(ioctl(fd, UFFDIO_MOVE, &move) == 0);
	drain(&sub, &seen);
	want_pair(&seen, p, HUGE, UMBRA_NTF_CLEAR);
	CHECK(find_cover(&seen, to, PAGE) < 0); /* of where nothing was, nothing is told */
	EQUAL(to[5 * PAGE], 1);
	close(fd);
}

static void scanned_and_write_protected(void)
{
	char *p = huge_memory(2 * HUGE);
	struct umbra_pm_region found[4];
	struct umbra_pm_scan scan = {
		.size = sizeof(scan),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)p,
		.end = (uintptr_t)p + HUGE,
		.vec = (uintptr_t)found,
		.vec_len = 4,
		.category_mask = UMBRA_PM_IS_WRITTEN,
		.return_mask = UMBRA_PM_IS_WRITTEN,
	};
	const int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	const int fd =
		userfaultfd_with(UFFD_FEATURE_WP_ASYNC, p, 2 * HUGE, UFFDIO_REGISTER_MODE_WP);

	CHECK(map >= 0);
	subscribe(&sub, p, 2 * HUGE, 10);
	EQUAL(ioctl(map, UMBRA_PAGEMAP_SCAN, &scan), 1);
	drain(&sub, &seen);
	want_pair(&seen, p, HUGE, UMBRA_NTF_PROTECTION_VMA);
	CHECK(find_cover(&seen, p + HUGE, PAGE) < 0);
	/* nobody is asked for the write; the 2M page is cut for it */
	p[7 * PAGE] = 2;
	drain(&sub, &seen);
	CHECK(find_cover(&seen, p + 7 * PAGE, PAGE) >= 0);
	CHECK(find_cover(&seen, p + HUGE, PAGE) < 0);
	p[HUGE + 7 * PAGE] = 3;
	drain(&sub, &seen);
	EQUAL(seen.nr, 0); /* not protected, nothing to tell */
	close(fd);
	close(map);
}

/* A file system on a disk in memory, that writes back as one on a disk does. */
static int file_on_a_disk(void)
{
	static const char dir[] = "/run/umbra-kmod-disk";
	int fd;

	if (system("modprobe brd rd_nr=1 rd_size=16384 && mke2fs -F /dev/ram0 >/dev/null 2>&1") ||
	    (mkdir(dir, 0700) && errno != EEXIST) ||
	    (mount("/dev/ram0", dir, "ext2", 0, NULL) && mount("/dev/ram0", dir, "ext4", 0, NULL)))
		skip("no file system that writes back: %s", strerror(errno));
	fd = open("/run/umbra-kmod-disk/file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && umount2(dir, MNT_DETACH) == 0);
	return fd;
}

static void written_back(void)
{
	const int fd = file_on_a_disk();
	char *p;

	CHECK(ftruncate(fd, 16 * PAGE) == 0);
	p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED);
	memset(p, 1, 16 * PAGE);
	CHECK(msync(p, 16 * PAGE, MS_SYNC) == 0);
	subscribe(&sub, p, 16 * PAGE, 10);
	p[3 * PAGE] = 2;
	drain(&sub, &seen);
	EQUAL(seen.nr, 0); /* it becomes dirty, and writable in place */
	CHECK(msync(p, 16 * PAGE, MS_SYNC) == 0);
	drain(&sub, &seen);
	want_pair(&seen, p + 3 * PAGE, PAGE, UMBRA_NTF_PROTECTION_PAGE);
	CHECK(find_cover(&seen, p + 4 * PAGE, PAGE) < 0); /* clean ones are left alone */
	CHECK(msync(p, 16 * PAGE, MS_SYNC) == 0);
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
	EQUAL(p[3 * PAGE], 2);
}

const struct test rest_tests[] = {
	{ "d9_hugetlb_of_a_gib_protected", hugetlb_of_a_gib_protected },
	{ "d40_thp_moved_by_userfaultfd", thp_moved_by_userfaultfd },
	{ "d43_scanned_and_write_protected", scanned_and_write_protected },
	{ "d62_written_back", written_back },
	{ NULL, NULL },
};
