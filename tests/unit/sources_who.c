/* SPDX-License-Identifier: BSD-2-Clause */
/* How an invalidation is put into words: by whom, whether that could have waited, direct or collateral. */
#include <criterion/criterion.h>
#include <vmm/sources.h>

static const char *said(enum umbra_source source, int32_t who, uint32_t flags)
{
	static char buf[SOURCES_WHO_MAX];

	return sources_who(source, who, flags, buf);
}

Test(sources_who, what_the_module_tells_names_doer_waiting_and_kind)
{
	cr_expect_str_eq(said(UMBRA_SOURCE_MODULE, 7, UMBRA_RANGE_DIRECT),
			 "thread 7, direct: announced by vmm, too");
	cr_expect_str_eq(said(UMBRA_SOURCE_MODULE, 7, 0),
			 "thread 7, collateral: told by the kernel alone");
	cr_expect_str_eq(
		said(UMBRA_SOURCE_MODULE, 0, UMBRA_RANGE_NO_WAIT),
		"another process, which cannot wait, collateral: told by the kernel alone");
	cr_expect_str_eq(said(UMBRA_SOURCE_MODULE, UMBRA_WHO_KERNEL, UMBRA_RANGE_KTHREAD),
			 "a kernel thread, collateral: told by the kernel alone");
	cr_expect_str_eq(said(UMBRA_SOURCE_MODULE, UMBRA_WHO_KERNEL, UMBRA_RANGE_RECLAIM),
			 "reclaim for whoever wanted memory, collateral: told by the kernel alone");
	cr_expect_str_eq(
		said(UMBRA_SOURCE_MODULE, UMBRA_WHO_KERNEL,
		     UMBRA_RANGE_RECLAIM | UMBRA_RANGE_KTHREAD | UMBRA_RANGE_NO_WAIT),
		"reclaim by a kernel thread, which cannot wait, collateral: told by the kernel alone");
}

Test(sources_who, other_sources_tell_of_threads_only)
{
	cr_expect_str_eq(said(UMBRA_SOURCE_OWN, 7, UMBRA_RANGE_BLOCKABLE), "thread 7");
	cr_expect_str_eq(said(UMBRA_SOURCE_UFFD, 0, 0), "thread unknown");
}

Test(sources_who, every_doer_has_a_name_and_the_longest_text_has_room)
{
	for (int i = 0; i < SOURCES_DOER_NR; i++)
		cr_expect_not_null(sources_doers[i]);
	cr_expect_lt(strlen(said(UMBRA_SOURCE_MODULE, UMBRA_WHO_KERNEL,
				 UMBRA_RANGE_RECLAIM | UMBRA_RANGE_KTHREAD | UMBRA_RANGE_NO_WAIT)),
		     SOURCES_WHO_MAX - 1U);
}
