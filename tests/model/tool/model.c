/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The model-based test as a program, for long runs and for scripts by hand.
 *
 *   model [--seed N] [--steps N] [--every N] [--to FILE]   random worlds, from seed N on; a failure is shrunk to FILE
 *   model [--here] [--shrink] FILE                         one script, replayed or shrunk; --here: without a child
 *   model --print SEED                                     the script of a seed
 *
 * Exit: 0; 1 when the library and the reference differ; 2 for wrong arguments.
 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/model.h"

static int usage(void)
{
	fprintf(stderr,
		"model [--seed N] [--steps N] [--every N] [--wrong N] [--to FILE] | [--here] [--shrink] FILE | --print SEED\n");
	return 2;
}

static int one_file(const char *name, struct m_options *o, bool shrink)
{
	FILE *from = fopen(name, "r");
	struct m_result res = { 0 };
	struct m_script s;
	int line;

	if (!from) {
		perror(name);
		return 2;
	}
	line = m_read(from, &s);
	fclose(from);
	if (line) {
		fprintf(stderr, "%s:%d: not an operation\n", name, line);
		return 2;
	}
	o->whole_every = 1;
	if (m_run(&s, o, &res)) {
		m_free(&s);
		return 0;
	}
	fprintf(stderr, "%s: operation %lu: %s\n", name, res.step + 1, res.why);
	if (res.step < s.n)
		m_write_op(stderr, &s.ops[res.step]);
	if (shrink) {
		m_shrink(&s, o, &res);
		printf("# %s\n", res.why);
		m_write(stdout, &s);
	}
	m_free(&s);
	return 1;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seed", required_argument, NULL, 's' },
		{ "steps", required_argument, NULL, 'n' },
		{ "every", required_argument, NULL, 'e' },
		{ "to", required_argument, NULL, 't' },
		{ "wrong", required_argument, NULL, 'w' },
		{ "print", required_argument, NULL, 'p' },
		{ "here", no_argument, NULL, 'h' },
		{ "shrink", no_argument, NULL, 'k' },
		{ NULL, 0, NULL, 0 },
	};
	struct m_options o = { .whole_every = 16 };
	uint64_t seed = 1, steps = 200000;
	const char *to = "failed.script";
	struct m_result res = { 0 };
	bool shrink = false;
	struct m_script s;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 's': seed = strtoull(optarg, NULL, 0); break;
		case 'n': steps = strtoull(optarg, NULL, 0); break;
		case 'e': o.whole_every = (unsigned int)strtoul(optarg, NULL, 0); break;
		case 'w': o.wrong = (enum m_wrong)strtoul(optarg, NULL, 0); break;
		case 't': to = optarg; break;
		case 'h': o.here = true; break;
		case 'k': shrink = true; break;
		case 'p':
			m_generate(&s, strtoull(optarg, NULL, 0), 1000);
			m_write(stdout, &s);
			m_free(&s);
			return 0;
		default: return usage();
		}
	}
	if (optind + 1 == argc)
		return one_file(argv[optind], &o, shrink);
	if (optind != argc || !o.whole_every)
		return usage();
	printf("%lu steps from seed %lu\n", steps, seed);
	if (m_campaign(seed, steps, &o, to, &res, NULL))
		return 1;
	for (unsigned int i = 0; i < SEEN_NR; i++)
		printf("%s%s %lu", i % 6 ? ", " : i ? "\n" : "", m_seen_name(i), res.seen[i]);
	printf("\n");
	return 0;
}
