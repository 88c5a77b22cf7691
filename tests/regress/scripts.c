/* SPDX-License-Identifier: BSD-2-Clause */
/* Replays tests/regress/NAME.script: what the model once found, shrunk. A new file there is a new test. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <glob.h>
#include <string.h>

#include "tests/support/model.h"

struct name {
	char path[200];
};

ParameterizedTestParameters(regress, script_finds_nothing_wrong)
{
	static struct name *names;
	glob_t found = { 0 };
	size_t n = 0;

	if (glob("tests/regress/*.script", 0, NULL, &found) == 0)
		n = found.gl_pathc;
	names = cr_malloc((n + 1) * sizeof(*names));
	for (size_t i = 0; i < n; i++)
		snprintf(names[i].path, sizeof(names[i].path), "%s", found.gl_pathv[i]);
	globfree(&found);
	/* none at all is a failure: the tests run in the wrong place */
	if (n == 0)
		snprintf(names[n++].path, sizeof(names[0].path), "tests/regress/*.script");
	return cr_make_param_array(struct name, names, n);
}

ParameterizedTest(struct name *name, regress, script_finds_nothing_wrong)
{
	struct m_result res = { 0 };
	struct m_script s;
	FILE *f = fopen(name->path, "r");

	cr_assert_not_null(f, "%s", name->path);
	cr_assert_eq(m_read(f, &s), 0, "%s: not a script", name->path);
	fclose(f);
	cr_assert(m_run(&s, &(struct m_options){ .whole_every = 1 }, &res), "%s: operation %lu: %s",
		  name->path, res.step + 1, res.why);
	m_free(&s);
}
