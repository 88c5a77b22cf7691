/* SPDX-License-Identifier: BSD-2-Clause */
/* The rest of the catalogue's rows: splits, hugetlb, moves of 2M pages, files, and what the kernel does by itself. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>

#include "kmod_test.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static struct seen seen;
static struct sub sub;

static void split_of_a_thp(void)
{
	char *p = huge_memory(2 * HUGE);

	subscribe(&sub, p, 2 * HUGE, 10);
	CHECK(mprotect(p + 9 * PAGE, PAGE, PROT_READ) == 0);
	drain(&sub, &seen);
	want_pair(&seen, p, HUGE, UMBRA_NTF_CLEAR);
	want_pair(&seen, p + 9 * PAGE, PAGE, UMBRA_NTF_PROTECTION_VMA);
	CHECK(find_cover(&seen, p + HUGE, PAGE) < 0); /* its neighbour stays */
	CHECK(mprotect(p + 9 * PAGE, PAGE, PROT_READ | PROT_WRITE) == 0);
	drain(&sub, &seen);
	want_pair(&seen, p + 9 * PAGE, PAGE, UMBRA_NTF_PROTECTION_VMA);
}

static void cut_of_a_mapping_of_4k(void)
{
	char *p = memory(3 * HUGE);

	subscribe(&sub, p, 3 * HUGE, 10);
	CHECK(mlock(p + HUGE + 5 * PAGE, PAGE) == 0);
	drain(&sub, &seen);
	want_pair(&seen, p + HUGE, HUGE, UMBRA_NTF_CLEAR); /* 2M, though no page there is */
	CHECK(find_cover(&seen, p, PAGE) < 0);
	CHECK(find_cover(&seen, p + 2 * HUGE, PAGE) < 0);
}

static char *hugetlb(int *fd)
{
	char *p;

	if (!put("/proc/sys/vm/nr_hugepages", "4") || get("/proc/sys/vm/nr_hugepages") < 2)
		skip("no hugetlb pages to be had");
	*fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);
	CHECK(*fd >= 0 && ftruncate(*fd, 2 * HUGE) == 0);
	p = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	CHECK(p != MAP_FAILED);
	memset(p, 1, 2 * HUGE);
	return p;
}

static int punch_first_huge(void *arg)
{
	return fallocate(*(int *)arg, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, HUGE);
}

static void hugetlb_discarded(void)
{
	int fd;
	char *p = hugetlb(&fd);

	subscribe(&sub, p, 2 * HUGE, 10);
	CHECK(madvise(p, HUGE, MADV_DONTNEED) == 0);
	drain(&sub, &seen);
	CHECK(find_pair(&seen, 0, p, HUGE) >= 0);
	CHECK(find_cover(&seen, p + HUGE, PAGE) < 0);
}

static void hugetlb_hole_by_another_process(void)
{
	int fd;
	char *p = hugetlb(&fd);

	subscribe(&sub, p, 2 * HUGE, 10);
	by_another(punch_first_huge, &fd);
	drain(&sub, &seen);
	CHECK(find_cover(&seen, p, HUGE) >= 0);
	EQUAL(seen.v[0].flags, UMBRA_NTF_BLOCKABLE);
	CHECK(find_cover(&seen, p + HUGE, PAGE) < 0);
	put("/proc/sys/vm/nr_hugepages", "0");
}

static void discard_across_mappings(void)
{
	char *p = memory(HUGE);

	CHECK(mprotect(p + 4 * PAGE, 4 * PAGE, PROT_READ) == 0);
	subscribe(&sub, p, HUGE, 10);
	CHECK(madvise(p, 12 * PAGE, MADV_DONTNEED) == 0);
	drain(&sub, &seen);
	EQUAL(seen.nr, 6);
	for (unsigned int i = 0; i < 3; i++)
		EQUAL(find_pair(&seen, 0, p + 4 * i * PAGE, 4 * PAGE), 2 * i);
}

static void cold_part_of_a_thp(void)
{
	char *p = huge_memory(HUGE);

	subscribe(&sub, p, HUGE, 10);
	CHECK(madvise(p, 16 * PAGE, MADV_COLD) == 0);
	drain(&sub, &seen);
	want_pair(&seen, p, HUGE, UMBRA_NTF_CLEAR);
	EQUAL(p[100 * PAGE], 1);
}

static void swap_out_of_a_thp(void)
{
	char *p = huge_memory(HUGE);

	subscribe(&sub, p, HUGE, 12);
	CHECK(madvise(p, HUGE, MADV_PAGEOUT) == 0);
	if (now(&sub).begun == 0)
		skip("nothing was swapped out");
	drain(&sub, &seen);
	CHECK(find_cover(&seen, p, HUGE) >= 0);
	EQUAL(p[300 * PAGE], 1);
}

static void collapse_of_a_file(void)
{
	const int fd = memfd_create("guest", MFD_CLOEXEC);
	char *p = memory(2 * HUGE);

	put("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise");
	CHECK(fd >= 0 && ftruncate(fd, HUGE) == 0);
	p = mmap(p, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	CHECK(p != MAP_FAILED);
	for (size_t i = 0; i < HUGE; i += PAGE)
		p[i] = 1;
	madvise(p, HUGE, MADV_HUGEPAGE);
	subscribe(&sub, p, HUGE, 12);
	if (madvise(p, HUGE, MADV_COLLAPSE))
		skip("MADV_COLLAPSE of shared memory: %s", strerror(errno));
	drain(&sub, &seen);
	for (size_t i = 0; i < HUGE; i += PAGE)
		CHECK(find_cover(&seen, p + i, PAGE) >= 0);
	EQUAL(p[77 * PAGE], 1);
}

static void removed_from_a_file(void)
{
	int fd;
	char *p = file_memory(&fd);

	subscribe(&sub, p, HUGE, 10);
	CHECK(madvise(p + 3 * PAGE, 2 * PAGE, MADV_REMOVE) == 0);
	drain(&sub, &seen);
	want_only(&seen, p + 3 * PAGE, 2 * PAGE);
	EQUAL(p[3 * PAGE], 0);
}

static int punch_under_copy(void *arg)
{
	return fallocate(*(int *)arg, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * PAGE, PAGE);
}

static void hole_under_a_private_copy(void)
{
	int fd;
	char *q, *p = file_memory(&fd);

	q = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(q != MAP_FAILED && p[0] == 1);
	q[2 * PAGE] = 5;
	CHECK(madvise(q, HUGE, MADV_DONTFORK) == 0);
	subscribe(&sub, q, HUGE, 10);
	by_another(punch_under_copy, &fd);
	drain(&sub, &seen);
	want_only(&seen, q + 2 * PAGE, PAGE);
	EQUAL(q[2 * PAGE], 5); /* the copy survives */
}

static void thp_moved(void)
{
	char *area = huge_memory(HUGE), *to = memory(3 * HUGE);

	subscribe(&sub, area, HUGE, 10);
	CHECK(mremap(area, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	drain(&sub, &seen);
	CHECK(find_cover(&seen, area, HUGE) >= 0);
	EQUAL(to[5 * PAGE], 1);
	CHECK(is_huge(to));
}

static void thp_moved_to_an_odd_address(void)
{
	char *area = huge_memory(HUGE), *to = memory(3 * HUGE) + PAGE;

	subscribe(&sub, area, HUGE, 12);
	CHECK(mremap(area, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	drain(&sub, &seen);
	CHECK(find_cover(&seen, area, HUGE) >= 0);
	EQUAL(to[5 * PAGE], 1);
	CHECK(!is_huge(to));
}

static void moved_and_left_mapped(void)
{
	char *p = memory(HUGE), *to = memory(3 * HUGE);

	subscribe(&sub, p, HUGE, 10);
	CHECK(mremap(p, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == to);
	drain(&sub, &seen);
	CHECK(find_cover(&seen, p, HUGE) >= 0);
	EQUAL(p[PAGE], 0);
	EQUAL(to[PAGE], 2);
}

static void shrunk_in_place(void)
{
	char *p = memory(2 * HUGE);

	subscribe(&sub, p, 2 * HUGE, 10);
	CHECK(mremap(p, 2 * HUGE, HUGE, 0) == p);
	drain(&sub, &seen);
	CHECK(find_cover(&seen, p + HUGE, HUGE) >= 0);
	CHECK(find_cover(&seen, p, PAGE) < 0);
}

static void populated_silently(void)
{
	char *p = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	subscribe(&sub, p, HUGE, 10);
	CHECK(madvise(p, HUGE, MADV_POPULATE_WRITE) == 0);
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
}

static void write_protection_in_a_thp(void)
{
	char *p = huge_memory(HUGE);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { (uintptr_t)p, HUGE },
				       .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = { { (uintptr_t)p + PAGE, PAGE },
					  UFFDIO_WRITEPROTECT_MODE_WP };
	const int fd = (int)syscall(SYS_userfaultfd, 0);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		skip("userfaultfd: %s", strerror(errno));
	subscribe(&sub, p, HUGE, 10);
	CHECK(ioctl(fd, UFFDIO_WRITEPROTECT, &wp) == 0);
	drain(&sub, &seen);
	EQUAL(find_pair(&seen, 0, p + PAGE, PAGE), 0);
	EQUAL(find_pair(&seen, 0, p, HUGE), 1);
}

static void zero_page_by_userfaultfd(void)
{
	char *p = memory(HUGE);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { (uintptr_t)p, HUGE },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_zeropage zero = { .range = { (uintptr_t)p + PAGE, PAGE } };
	const int fd = (int)syscall(SYS_userfaultfd, 0);

	madvise(p, HUGE, MADV_DONTNEED);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		skip("userfaultfd: %s", strerror(errno));
	subscribe(&sub, p, HUGE, 10);
	CHECK(ioctl(fd, UFFDIO_ZEROPAGE, &zero) == 0);
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
	p[PAGE] = 1;
	drain(&sub, &seen);
	want_only(&seen, p + PAGE, PAGE);
}

static void guarded(void)
{
	char *p = memory(HUGE);

	subscribe(&sub, p, HUGE, 10);
	if (madvise(p + PAGE, PAGE, MADV_GUARD_INSTALL))
		skip("MADV_GUARD_INSTALL is of Linux 6.13");
	drain(&sub, &seen);
	CHECK(find_cover(&seen, p + PAGE, PAGE) >= 0);
}

static void collapse_by_khugepaged(void)
{
	static const char dir[] = "/sys/kernel/mm/transparent_hugepage/khugepaged/";
	char *p = memory(HUGE), path[128];
	int i;

	madvise(p, HUGE, MADV_HUGEPAGE);
	subscribe(&sub, p, HUGE, 12);
	snprintf(path, sizeof(path), "%sscan_sleep_millisecs", dir);
	CHECK(put(path, "10"));
	for (i = 0; i < 2000 && !is_huge(p); i++)
		usleep(10000);
	CHECK(put(path, "100000"));
	if (!is_huge(p))
		skip("khugepaged does not come");
	drain(&sub, &seen);
	i = find_cover(&seen, p, HUGE);
	CHECK(i >= 0);
	EQUAL(seen.v[i].flags, UMBRA_NTF_BLOCKABLE | UMBRA_NTF_KTHREAD);
	EQUAL(seen.v[i].who, 0);
	EQUAL(p[9 * PAGE], 10);
}

static void *unmap_and_map_again(void *arg)
{
	char *p = arg;

	CHECK(munmap(p, PAGE) == 0);
	CHECK(umbra_ring_load(&sub.state->begun) > 0); /* before anybody can map there again */
	CHECK(mmap(p, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		   0) == p);
	return NULL;
}

static void mapped_again_after_unmap(void)
{
	char *p = memory(HUGE);
	pthread_t thread;

	subscribe(&sub, p, PAGE, 10);
	CHECK(pthread_create(&thread, NULL, unmap_and_map_again, p) == 0);
	pthread_join(thread, NULL);
	drain(&sub, &seen);
	want_pair(&seen, p, PAGE, UMBRA_NTF_UNMAP);
	EQUAL(p[0], 0);
}

static void numa_balancing(void)
{
	char *p = memory(4 * HUGE);
	bool scanned = false;

	subscribe(&sub, p, 4 * HUGE, 14);
	if (!put("/proc/sys/kernel/numa_balancing", "1"))
		skip("no NUMA balancing");
	/* it comes by what the thread has computed */
	while (clock() < 10 * CLOCKS_PER_SEC && now(&sub).ended == 0)
		for (size_t k = 0; k < 4 * HUGE; k += PAGE)
			p[k]++;
	put("/proc/sys/kernel/numa_balancing", "0");
	if (now(&sub).ended == 0)
		skip("the scanner did not come");
	drain(&sub, &seen);
	for (unsigned int i = 0; i < seen.nr; i++)
		scanned |= seen.v[i].event == UMBRA_NTF_PROTECTION_VMA;
	CHECK(scanned);
}

static void taken_offline(void)
{
	char *p = memory(HUGE);

	subscribe(&sub, p, HUGE, 10);
	if (madvise(p + PAGE, PAGE, MADV_SOFT_OFFLINE))
		skip("no memory failure in this kernel: %s", strerror(errno));
	drain(&sub, &seen);
	CHECK(find_cover(&seen, p + PAGE, PAGE) >= 0);
	EQUAL(p[PAGE], 2);
}

const struct test row_tests[] = {
	{ "d1_split_of_a_thp", split_of_a_thp },
	{ "d3_cut_of_a_mapping_of_4k", cut_of_a_mapping_of_4k },
	{ "d7_hugetlb_discarded", hugetlb_discarded },
	{ "d8_hugetlb_hole_by_another_process", hugetlb_hole_by_another_process },
	{ "d20_discard_across_mappings", discard_across_mappings },
	{ "d23_cold_part_of_a_thp", cold_part_of_a_thp },
	{ "d25_swap_out_of_a_thp", swap_out_of_a_thp },
	{ "d27_collapse_of_a_file", collapse_of_a_file },
	{ "d28_removed_from_a_file", removed_from_a_file },
	{ "d29_populated_silently", populated_silently },
	{ "d32_mapped_again_after_unmap", mapped_again_after_unmap },
	{ "d35_thp_moved", thp_moved },
	{ "d36_thp_moved_to_an_odd_address", thp_moved_to_an_odd_address },
	{ "d37_moved_and_left_mapped", moved_and_left_mapped },
	{ "d38_shrunk_in_place", shrunk_in_place },
	{ "d39_write_protection_in_a_thp", write_protection_in_a_thp },
	{ "d41_zero_page_by_userfaultfd", zero_page_by_userfaultfd },
	{ "d46_guarded", guarded },
	{ "d53_collapse_by_khugepaged", collapse_by_khugepaged },
	{ "d57_numa_balancing", numa_balancing },
	{ "d60_hole_under_a_private_copy", hole_under_a_private_copy },
	{ "d61_taken_offline", taken_offline },
	{ NULL, NULL },
};
