/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Random operations on core, each compared with a flat reference and checked by umbra_check(): see
 * tests/support/model.h. Worlds of a thousand operations, each from a seed of its own; the seed of a failing one is
 * printed, and its operations are shrunk to a short script, printed and written to $BUILD/model-SEED.script.
 *
 * UMBRA_SEED replays, UMBRA_STEPS sets how many operations. `make check-long` does ten million.
 * A script becomes a regression test by
 *
 *	cp $BUILD/model-SEED.script tests/regress/WHAT_IT_SHOWS.script
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/model.h"

static uint64_t env(const char *name, uint64_t otherwise)
{
	const char *s = getenv(name);

	return s ? strtoull(s, NULL, 0) : otherwise;
}

static void run(uint64_t seed, uint64_t steps)
{
	const struct m_options o = { .whole_every = 16 };
	struct m_result res = { 0 };
	char file[256];

	seed = env("UMBRA_SEED", seed);
	steps = env("UMBRA_STEPS", steps);
	fprintf(stderr, "%lu steps from seed %lu\n", steps, seed);
	snprintf(file, sizeof(file), "%s/model-%lu.script", getenv("BUILD") ? getenv("BUILD") : ".",
		 seed);
	cr_assert_eq(m_campaign(seed, steps, &o, file, &res, NULL), 0, "%s", res.why);
	/* a test that never meets a thing proves nothing about it */
	for (unsigned int i = 0; i < SEEN_NR && steps >= 50000; i++)
		cr_expect_neq(res.seen[i], 0, "%s was not met", m_seen_name(i));
}

Test(model, random_steps_reach_the_page_the_host_has_now)
{
	run(1, 50000);
}

/* Four worlds in five start just below 2^31, 2^32 or 2^64; these begin with other seeds, so that two processors share the work. */
Test(model, random_steps_across_the_borders_of_the_sequence)
{
	run(1001, 50000);
}

Test(model, random_steps_with_faults_invalidations_and_slots_interleaved)
{
	run(2001, 50000);
}

Test(model, random_steps_of_several_mmus_on_one_chain)
{
	run(3001, 50000);
}

/* ---- the tool itself ------------------------------------------------------------------------ */

/* A reference that is wrong on purpose is found out, and what shows it is short, and shows it again. */
static void wrong_is_found(enum m_wrong wrong, uint64_t most)
{
	const struct m_options o = { .whole_every = 16, .wrong = wrong },
			       right = { .whole_every = 1 };
	struct m_result res = { 0 };
	struct m_script s = { 0 };

	cr_assert_eq(m_campaign(1, 50000, &o, NULL, &res, &s), 1, "not found");
	cr_assert_leq(s.n, most, "%lu operations are left", s.n);
	cr_assert(!m_run(&s, &(struct m_options){ .whole_every = 1, .wrong = wrong }, &res));
	/* it is the reference that is wrong, not core */
	cr_assert(m_run(&s, &right, &res), "%s", res.why);
	m_free(&s);
}

Test(model, a_reference_that_forgets_aliases_is_found_and_shrunk)
{
	wrong_is_found(WRONG_ALIAS, 8);
}

Test(model, a_reference_that_loses_dirty_on_split_is_found_and_shrunk)
{
	wrong_is_found(WRONG_DIRTY, 8);
}

Test(model, a_reference_that_drops_half_of_a_2m_leaf_is_found_and_shrunk)
{
	wrong_is_found(WRONG_HALF, 8);
}

Test(model, scripts_are_read_as_they_were_written)
{
	struct m_script s, again;
	FILE *f = tmpfile();

	cr_assert_not_null(f);
	m_generate(&s, 7, 1000);
	m_write(f, &s);
	rewind(f);
	cr_assert_eq(m_read(f, &again), 0);
	cr_assert_eq(again.n, s.n);
	cr_assert_eq(again.seq, s.seq);
	cr_assert_eq(again.base, s.base);
	for (uint64_t i = 0; i < s.n; i++)
		cr_assert(s.ops[i].kind == again.ops[i].kind &&
				  s.ops[i].thread == again.ops[i].thread,
			  "operation %lu", i);
	fclose(f);
	m_free(&s);
	m_free(&again);
}

Test(model, a_script_with_a_line_that_is_no_operation_is_refused)
{
	char text[] = "world 0 0\nfault 0 0 0 1\nfly 1 2\n";
	struct m_script s;
	FILE *f = fmemopen(text, strlen(text), "r");

	cr_assert_eq(m_read(f, &s), 3);
	fclose(f);
	m_free(&s);
}

/* Crashes and hangs of core are answers too. */
Test(model, a_run_that_crashes_fails)
{
	struct m_op ops[] = { { .kind = OP_join }, { .kind = OP_NR } }; /* abort() */
	const struct m_script s = { .n = 2, .ops = ops };
	struct m_result res = { 0 };

	cr_assert(!m_run(&s, &(struct m_options){ .whole_every = 1 }, &res));
	cr_assert(strstr(res.why, "wait status"), "%s", res.why);
}
