/* SPDX-License-Identifier: BSD-2-Clause */
/* Beginning and end of a Criterion test on the engine; each test is a process of its own. */
#ifndef TESTS_ENGINE_TEST_H
#define TESTS_ENGINE_TEST_H

#include "engine.h"

#include <criterion/criterion.h>
#include <stdlib.h>

static struct engine e;

static inline void begin(unsigned int vcpus, enum guest_page_kind pages)
{
	if (engine_create(&e, vcpus, 64ULL << 20, pages)) {
		if (getenv("REQUIRE_KVM"))
			cr_assert(0, "KVM is required and not usable");
		cr_skip_test("no usable KVM");
	}
	engine_start(&e);
	/* The guest's own pages are there. */
	for (unsigned int i = 0; i < vcpus; i++)
		cr_assert(engine_do(&e, i, ENGINE_READ, ENGINE_MAILBOX, 0));
}

static inline void end(void)
{
	engine_stop(&e);
	cr_expect_eq(engine_check(&e), 0);
	cr_expect_eq(e.vm.stop_code, VMM_EXIT_OK, "%s", e.vm.stop_why);
	engine_destroy(&e);
}

#endif
