/* SPDX-License-Identifier: BSD-2-Clause */
/* What a process's own calls and faults announce: which ranges, which events, by whom. */
#include <linux/userfaultfd.h>
#include <sys/syscall.h>

#include "kmod_test.h"

static struct seen seen;
static struct sub sub;

static void dontneed_4k(void)
{
	char *p = memory(HUGE);
	const struct umbra_ntf_record *rec;

	subscribe(&sub, p, HUGE, 10);
	CHECK(madvise(p + 5 * PAGE, PAGE, MADV_DONTNEED) == 0);
	drain(&sub, &seen);
	want_only(&seen, p + 5 * PAGE, PAGE);
	rec = want_pair(&seen, p + 5 * PAGE, PAGE, UMBRA_NTF_CLEAR);
	EQUAL(rec->flags, UMBRA_NTF_BLOCKABLE | UMBRA_NTF_OWNER);
	EQUAL(rec->who, gettid());
	EQUAL(rec->begun, 1);
	EQUAL(seen.v[1].begun, 1);
	CHECK(rec->time_ns > 0 && rec->time_ns <= seen.v[1].time_ns);
	/* the same again, where nothing is any more */
	CHECK(madvise(p + 5 * PAGE, PAGE, MADV_DONTNEED) == 0);
	drain(&sub, &seen);
	want_only(&seen, p + 5 * PAGE, PAGE);
	EQUAL(seen.v[0].begun, 2);
}

static void dontneed_in_thp_is_nested(void)
{
	char *p = huge_memory(HUGE);

	subscribe(&sub, p, HUGE, 10);
	CHECK(madvise(p + 7 * PAGE, PAGE, MADV_DONTNEED) == 0);
	drain(&sub, &seen);
	EQUAL(seen.nr, 4);
	EQUAL(find_pair(&seen, 0, p + 7 * PAGE, PAGE), 0);
	EQUAL(find_pair(&seen, 0, p, HUGE), 1);
	EQUAL(seen.v[2].kind, UMBRA_NTF_END);
	EQUAL(seen.v[2].end, (uintptr_t)p + HUGE);
	EQUAL(seen.v[1].begun, 2);
}

static void only_the_ranges(void)
{
	char *p = memory(HUGE);

	subscribe(&sub, p + 64 * PAGE, 64 * PAGE, 10);
	madvise(p + 63 * PAGE, PAGE, MADV_DONTNEED);
	madvise(p + 128 * PAGE, PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
	EQUAL(now(&sub).begun, 0);
	/* what reaches into them is told whole */
	madvise(p + 60 * PAGE, 5 * PAGE, MADV_DONTNEED);
	drain(&sub, &seen);
	want_only(&seen, p + 60 * PAGE, 5 * PAGE);
}

static void munmap_of_a_part(void)
{
	char *p = memory(2 * HUGE);

	subscribe(&sub, p, 2 * HUGE, 10);
	CHECK(munmap(p + 10 * PAGE, 3 * PAGE) == 0);
	drain(&sub, &seen);
	want_pair(&seen, p + 10 * PAGE, 3 * PAGE, UMBRA_NTF_UNMAP);
	CHECK(find_cover(&seen, p + HUGE, PAGE) < 0);
}

static void map_fixed_over(void)
{
	char *p = memory(HUGE);

	subscribe(&sub, p, HUGE, 10);
	CHECK(mmap(p + PAGE, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
	      MAP_FAILED);
	drain(&sub, &seen);
	want_pair(&seen, p + PAGE, 2 * PAGE, UMBRA_NTF_UNMAP);
}

static void mremap_moves(void)
{
	char *area = memory(4 * HUGE), *p = area, *to = area + 2 * HUGE;
	const struct umbra_ntf_range both[2] = { { (uintptr_t)p, (uintptr_t)p + HUGE },
						 { (uintptr_t)to, (uintptr_t)to + HUGE } };
	struct umbra_ntf_attach a = attach_to(both);
	int first;

	a.nr_ranges = 2;
	sub.fd = device_open();
	CHECK(ioctl(sub.fd, UMBRA_NTF_ATTACH, &a) == 0);
	sub_map(&sub, sub.fd);
	CHECK(mremap(p, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	drain(&sub, &seen);
	CHECK(find_cover(&seen, to, HUGE) >= 0);
	first = find_pair(&seen, 0, p, HUGE);
	CHECK(first >= 0);
	CHECK(find_pair(&seen, (unsigned int)first + 1, p, HUGE) >= 0); /* once more as it goes */
}

static void mprotect_of_a_part(void)
{
	char *p = memory(HUGE);

	subscribe(&sub, p, HUGE, 10);
	CHECK(mprotect(p + 4 * PAGE, 4 * PAGE, PROT_READ) == 0);
	drain(&sub, &seen);
	want_pair(&seen, p + 4 * PAGE, 4 * PAGE, UMBRA_NTF_PROTECTION_VMA);
	CHECK(mprotect(p + 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE) == 0);
	drain(&sub, &seen);
	want_pair(&seen, p + 4 * PAGE, 4 * PAGE, UMBRA_NTF_PROTECTION_VMA);
}

static int nothing(void *arg)
{
	return arg != NULL;
}

static void fork_announces_private(void)
{
	char *p = memory(HUGE), *q;

	subscribe(&sub, p, HUGE, 10);
	by_another(nothing, NULL);
	drain(&sub, &seen);
	CHECK(find_cover(&seen, p, HUGE) >= 0);
	EQUAL(seen.v[0].event, UMBRA_NTF_PROTECTION_PAGE);

	q = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(q != MAP_FAILED);
	memset(q, 1, HUGE);
	subscribe(&sub, q, HUGE, 10);
	by_another(nothing, NULL);
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
}

static int sleep_till_read(void *arg)
{
	char c;

	return read(*(int *)arg, &c, 1) != 1;
}

static void copy_on_write(void)
{
	char *p = memory(HUGE);
	int hold[2];
	pid_t child;

	CHECK(pipe(hold) == 0);
	subscribe(&sub, p, HUGE, 10);
	child = child_of(sleep_till_read, &hold[0]);
	drain(&sub, &seen);
	p[3 * PAGE] = 9;
	drain(&sub, &seen);
	want_only(&seen, p + 3 * PAGE, PAGE);
	EQUAL(seen.v[0].who, gettid());
	CHECK(write(hold[1], "", 1) == 1);
	EQUAL(wait_for(child), 0);
	p[4 * PAGE] = 9; /* nobody shares it any more: it is reused */
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
}

static void zero_page_upgrade(void)
{
	char *p = memory(HUGE);
	volatile char sink;

	CHECK(madvise(p, HUGE, MADV_DONTNEED) == 0);
	subscribe(&sub, p, HUGE, 10);
	sink = p[2 * PAGE];
	(void)sink;
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
	p[2 * PAGE] = 1;
	drain(&sub, &seen);
	want_only(&seen, p + 2 * PAGE, PAGE);
}

static void first_touch_is_silent(void)
{
	char *p = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	subscribe(&sub, p, HUGE, 10);
	memset(p, 1, HUGE);
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
}

static void collapse(void)
{
	char *p = memory(HUGE);

	madvise(p, HUGE, MADV_HUGEPAGE);
	subscribe(&sub, p, HUGE, 10);
	if (madvise(p, HUGE, MADV_COLLAPSE))
		skip("MADV_COLLAPSE: %s", strerror(errno));
	drain(&sub, &seen);
	want_pair(&seen, p, HUGE, UMBRA_NTF_CLEAR);
	EQUAL(p[9 * PAGE], 10);
}

static void nothing_for_advice_that_takes_nothing(void)
{
	char *p = memory(HUGE);
	unsigned char core[HUGE / PAGE];

	subscribe(&sub, p, HUGE, 10);
	CHECK(madvise(p, HUGE, MADV_WILLNEED) == 0);
	CHECK(madvise(p, HUGE, MADV_COLD) == 0);
	CHECK(mincore(p, HUGE, core) == 0);
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
}

static void madvise_free(void)
{
	char *p = memory(HUGE);

	subscribe(&sub, p, HUGE, 10);
	CHECK(madvise(p + PAGE, 3 * PAGE, MADV_FREE) == 0);
	drain(&sub, &seen);
	want_only(&seen, p + PAGE, 3 * PAGE);
}

static void clear_refs_reaches_to_the_end(void)
{
	char *p = memory(HUGE);

	subscribe(&sub, p, HUGE, 10);
	if (!put("/proc/self/clear_refs", "4"))
		skip("clear_refs: %s", strerror(errno));
	drain(&sub, &seen);
	EQUAL(seen.nr, 2);
	EQUAL(seen.v[0].event, UMBRA_NTF_SOFT_DIRTY);
	EQUAL(seen.v[0].start, 0);
	EQUAL(seen.v[0].end, ~0ULL);
	CHECK(put("/proc/self/clear_refs", "1"));
	drain(&sub, &seen);
	EQUAL(seen.nr, 0);
}

static int uffd_over(char *p, size_t bytes, __u64 mode)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { (uintptr_t)p, bytes }, .mode = mode };
	const int fd = (int)syscall(SYS_userfaultfd, 0);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		skip("userfaultfd: %s", strerror(errno));
	return fd;
}

static void userfaultfd_write_protect(void)
{
	char *p = memory(HUGE);
	const int fd = uffd_over(p, HUGE, UFFDIO_REGISTER_MODE_WP);
	struct uffdio_writeprotect wp = { { (uintptr_t)p, 4 * PAGE }, UFFDIO_WRITEPROTECT_MODE_WP };

	subscribe(&sub, p, HUGE, 10);
	CHECK(ioctl(fd, UFFDIO_WRITEPROTECT, &wp) == 0);
	drain(&sub, &seen);
	want_only(&seen, p, 4 * PAGE);
	close(fd); /* takes the protection off the whole of it */
	drain(&sub, &seen);
	CHECK(find_cover(&seen, p, HUGE) >= 0);
}

const struct test callout_tests[] = {
	{ "d17_d18_dontneed_4k", dontneed_4k },
	{ "d19_dontneed_in_thp_is_nested", dontneed_in_thp_is_nested },
	{ "only_the_ranges", only_the_ranges },
	{ "d31_munmap_of_a_part", munmap_of_a_part },
	{ "d33_map_fixed_over", map_fixed_over },
	{ "d34_mremap_moves", mremap_moves },
	{ "d30_mprotect_of_a_part", mprotect_of_a_part },
	{ "d47_d48_fork_announces_private", fork_announces_private },
	{ "d49_d50_copy_on_write", copy_on_write },
	{ "d51_zero_page_upgrade", zero_page_upgrade },
	{ "d29_first_touch_is_silent", first_touch_is_silent },
	{ "d26_collapse", collapse },
	{ "d22_d45_nothing_for_advice_that_takes_nothing", nothing_for_advice_that_takes_nothing },
	{ "d21_madvise_free", madvise_free },
	{ "d44_d80_clear_refs_reaches_to_the_end", clear_refs_reaches_to_the_end },
	{ "d42_userfaultfd_write_protect", userfaultfd_write_protect },
	{ NULL, NULL },
};
