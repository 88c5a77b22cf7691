/* SPDX-License-Identifier: BSD-2-Clause */
/* Own calls on hugetlb memory: the kernel rounds to whole hugepages, and so must what is bracketed. */
#include <criterion/criterion.h>
#include <linux/falloc.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "tests/integration/events_host.h"

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define RW   (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)

static const char knob[] = "/proc/sys/vm/nr_hugepages";
static char old_knob[32];
static struct host h;

TestSuite(hugetlb, .timeout = 60);

#define must(what)                                                                 \
	do {                                                                       \
		if (!(what)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
			_exit(1);                                                  \
		}                                                                  \
	} while (0)

/* In a child, so that the hugepages are given back whatever happens. 77: there are none. */
static void with_hugepages(void (*body)(void))
{
	char more[32];
	int status = -1;
	pid_t pid;

	if (!host_read(knob, old_knob, sizeof(old_knob)))
		cr_skip_test("no hugetlb here");
	snprintf(more, sizeof(more), "%d", atoi(old_knob) + 8);
	if (!host_write(knob, more))
		cr_skip_test("hugepages cannot be reserved here (root is needed)");
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		host_create(&h);
		h.slot_flags =
			UMBRA_SLOT_4K_ONLY; /* so that each page has a leaf that may be forgotten */
		body();
		_exit(host_sound(&h) ? 0 : 1);
	}
	waitpid(pid, &status, 0);
	host_write(knob, old_knob);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned int)status);
}

static char *huge(size_t bytes)
{
	char *p = host_map(&h, bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);

	must(p);
	must(host_touch(&h, p, bytes, RW));
	must(host_sound(&h));
	return p;
}

static void map_over_a_page(void)
{
	char *p = huge(2 * HUGE);

	must(!umbra_mmap_over(h.own, hva_range_of(p, PAGE), PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0));
	must(host_leaves(&h, p, HUGE) == 0);
	must(host_leaves(&h, p + HUGE, HUGE) == 512);
	must(host_sound(&h));
}

Test(hugetlb, mmap_over_with_hugepages_replaces_whole_ones)
{
	with_hugepages(map_over_a_page);
}

static void map_file_over_a_page(void)
{
	const int fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);
	char *p = host_anon(&h, 2 * HUGE);

	must(fd >= 0 && !ftruncate(fd, (off_t)HUGE));
	must(host_touch(&h, p, 2 * HUGE, RW));
	must(!umbra_mmap_over(h.own, hva_range_of(p, PAGE), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			      0));
	must(host_leaves(&h, p, HUGE) == 0);
	must(host_leaves(&h, p + HUGE, HUGE) == 512);
	must(host_touch(&h, p, HUGE, RW) && host_sound(&h));
	/* The region is as large as what is mapped. */
	must(!umbra_fallocate(h.own, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, HUGE));
	must(host_leaves(&h, p, HUGE) == 0);
}

Test(hugetlb, mmap_over_with_a_hugetlb_file_replaces_whole_ones)
{
	with_hugepages(map_file_over_a_page);
}

static void move_a_page(void)
{
	char *p = huge(2 * HUGE), *q = host_reserve(2 * HUGE);
	hva_t at;

	host_slot(&h, q, 2 * HUGE);
	must(!umbra_mremap(h.own, hva_range_of(p, PAGE), PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   (hva_t){ (uintptr_t)q }, &at));
	must(host_leaves(&h, p, HUGE) == 0);
	must(host_leaves(&h, p + HUGE, HUGE) == 512);
	must(host_touch(&h, q, HUGE, RW) && host_sound(&h));
	/* and over what is mapped already */
	must(!umbra_mremap(h.own, hva_range_of(p + HUGE, PAGE), PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   (hva_t){ (uintptr_t)q }, &at));
	must(host_leaves(&h, p, 2 * HUGE) == 0 && host_leaves(&h, q, HUGE) == 0);
}

Test(hugetlb, mremap_moves_whole_ones)
{
	with_hugepages(move_a_page);
}

/* Without a map, and of memory that was not named, nobody says how large its pages are. */
static void move_the_unknown(void)
{
	char *p = huge(HUGE), *q = host_reserve(HUGE);
	struct umbra_own *own;
	hva_t at;

	must(!umbra_region_remove(h.own, hva_range_of(p, HUGE)));
	must(!umbra_own_create(&own, h.chain, NULL));
	must(!umbra_mremap(own, hva_range_of(p, PAGE), PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   (hva_t){ (uintptr_t)q }, &at));
	must(host_leaves(&h, p, HUGE) == 0);
	umbra_own_destroy(own);
}

Test(hugetlb, mremap_of_what_is_not_known_is_taken_for_whole_ones)
{
	with_hugepages(move_the_unknown);
}

static void shrink_to_a_page(void)
{
	char *p = huge(3 * HUGE);
	hva_t at;

	must(!umbra_mremap(h.own, hva_range_of(p, 3 * HUGE), HUGE + PAGE, 0, (hva_t){ 0 }, &at));
	must(host_leaves(&h, p + 2 * HUGE, HUGE) == 0);
	must(host_leaves(&h, p, HUGE) == 512);
}

Test(hugetlb, mremap_to_a_part_of_one_keeps_it)
{
	with_hugepages(shrink_to_a_page);
}

static void cut(void)
{
	char *p = huge(2 * HUGE);
	int err;

	must(umbra_munmap(h.own, hva_range_of(p, PAGE)) == -EINVAL);
	must(umbra_mprotect(h.own, hva_range_of(p, PAGE), PROT_READ) == -EINVAL);
	must(umbra_madvise(h.own, hva_range_of(p + PAGE, PAGE), MADV_DONTNEED) == -EINVAL);
	/* it is huge already, if that is told; else the kernel is asked */
	err = umbra_madvise(h.own, hva_range_of(p, HUGE), MADV_COLLAPSE);
	must(!err || (!umbra_hostmap_has_scan(h.map) && err == -EINVAL));
	must(umbra_madvise(h.own, hva_range_of(p, HUGE), MADV_COLD) == -EINVAL);
	must(umbra_madvise(h.own, hva_range_of(p, HUGE), MADV_PAGEOUT) == -EINVAL);
	must(umbra_madvise(h.own, hva_range_of(p, HUGE), MADV_FREE) == -EINVAL);
	must(host_touch(&h, p, 2 * HUGE, RW));
}

Test(hugetlb, what_would_cut_one_is_refused)
{
	with_hugepages(cut);
}
