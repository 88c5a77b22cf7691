/* SPDX-License-Identifier: BSD-2-Clause */
/* Large batches of advice, which the kernel is given many ranges at a time: each range has its own fate. */
#include <criterion/criterion.h>
#include <seccomp.h>
#include <sys/wait.h>
#include "tests/integration/events_host.h"

#define PAGE   UMBRA_PAGE_SIZE
#define RW     (UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE)
#define RANGES 700U
#define PAGES  (2 * RANGES)

static struct host h;

static void fini(void)
{
	host_destroy(&h);
}

static void init(void)
{
	host_create(&h);
}

TestSuite(batch, .init = init, .fini = fini, .timeout = 60);

enum fate { GOOD, UNALIGNED, EMPTY, HOLE };

/* Some at the edges of what one call takes, and some in a row. */
static enum fate fate_of(unsigned int i)
{
	switch (i) {
	case 3:
	case 128:
	case 300:
	case 301: return UNALIGNED;
	case 4:
	case 255:
	case 600: return EMPTY;
	case 127:
	case 450:
	case 699: return HOLE;
	default: return GOOD;
	}
}

/* Every second page, the last ranges first. */
static char *page_of(char *p, unsigned int i)
{
	return p + (size_t)(RANGES - 1 - i) * 2 * PAGE;
}

static void batch(int advice, bool zeroes)
{
	static struct hva_range v[RANGES];
	char *p = host_anon(&h, PAGES * PAGE);
	uint32_t done = 0, good = 0;
	uint64_t starts;

	cr_assert(p);
	cr_assert(!madvise(p, PAGES * PAGE, MADV_NOHUGEPAGE));
	memset(p, 'x', PAGES * PAGE);
	cr_assert(host_touch(&h, p, PAGES * PAGE, RW));
	for (unsigned int i = 0; i < RANGES; i++) {
		char *page = page_of(p, i);

		switch (fate_of(i)) {
		case GOOD: v[i] = hva_range_of(page, PAGE); break;
		case UNALIGNED: v[i] = hva_range_of(page + 8, PAGE - 8); break;
		case EMPTY: v[i] = hva_range_of(page, 0); break;
		case HOLE:
			v[i] = hva_range_of(page, PAGE);
			cr_assert(!umbra_munmap(h.own, v[i]));
			break;
		}
		good += fate_of(i) == GOOD || fate_of(i) == EMPTY;
	}
	starts = host_starts(&h);
	cr_assert_eq(umbra_madvise_batch(h.own, v, RANGES, advice, &done), -EINVAL,
		     "the first error: of range 3");
	cr_assert_eq(done, good);
	cr_assert_eq(host_starts(&h) - starts, 1);
	for (unsigned int i = 0; i < RANGES; i++) {
		char *page = page_of(p, i);

		cr_assert_eq(page[PAGE], 'x');
		cr_assert_eq(host_leaf(&h, page + PAGE), 1);
		if (fate_of(i) == GOOD)
			cr_assert_eq(host_leaf(&h, page), 0, "range %u", i);
		if (fate_of(i) == GOOD && zeroes)
			cr_assert_eq(*page, 0, "range %u", i);
		if (fate_of(i) == UNALIGNED || fate_of(i) == EMPTY)
			cr_assert_eq(*page, 'x', "range %u", i);
	}
	cr_assert(host_sound(&h));
}

Test(batch, of_discards_does_each_range_once_and_says_the_first_error)
{
	batch(MADV_DONTNEED, true);
}

Test(batch, of_lazy_frees_does_each_range_once_and_says_the_first_error)
{
	batch(MADV_FREE, false);
}

/* A range that the kernel would stop in the middle of, were it told of it with others. */
Test(batch, with_a_very_large_range_does_all_of_it)
{
	const size_t large = 3UL << 30;
	char *p = mmap(NULL, large + 4 * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	const struct hva_range v[] = { hva_range_of(p + large + PAGE, PAGE), hva_range_of(p, large),
				       hva_range_of(p + large + 3 * PAGE, PAGE) };
	uint32_t done = 0;

	cr_assert_neq(p, MAP_FAILED);
	for (size_t at = 0; at < large + 4 * PAGE; at += at < large ? large / 8 : PAGE)
		p[at] = 'x';
	p[large - PAGE] = 'x';
	cr_assert(!umbra_madvise_batch(h.own, v, 3, MADV_DONTNEED, &done));
	cr_assert_eq(done, 3);
	for (size_t at = 0; at < large; at += large / 8)
		cr_assert_eq(p[at], 0);
	cr_assert_eq(p[large - PAGE], 0);
	cr_assert_eq(p[large], 'x');
	cr_assert_eq(p[large + PAGE], 0);
	cr_assert_eq(p[large + 2 * PAGE], 'x');
	cr_assert_eq(p[large + 3 * PAGE], 0);
	munmap(p, large + 4 * PAGE);
}

/* An older kernel, or a sandbox: there is no such call. */
Test(batch, is_done_one_by_one_where_the_kernel_takes_one_only, .init = NULL, .fini = NULL)
{
	int status;
	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (!pid) {
		scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
		static struct hva_range v[RANGES];
		uint32_t done = 0;
		bool good;
		char *p;

		host_create(&h);
		p = host_anon(&h, PAGES * PAGE);
		if (!p || !filter ||
		    seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(process_madvise),
				     0) ||
		    seccomp_load(filter))
			_exit(2);
		memset(p, 'x', PAGES * PAGE);
		for (unsigned int i = 0; i < RANGES; i++)
			v[i] = hva_range_of(page_of(p, i), PAGE);
		good = !umbra_madvise_batch(h.own, v, RANGES, MADV_DONTNEED, &done) &&
		       done == RANGES;
		for (unsigned int i = 0; i < RANGES; i++)
			good = good && !*page_of(p, i) && page_of(p, i)[PAGE] == 'x';
		_exit(good ? 0 : 1);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status));
	cr_assert_eq(WEXITSTATUS(status), 0);
}
