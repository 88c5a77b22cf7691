/* SPDX-License-Identifier: BSD-2-Clause */
/* Runs scripts in a child, so that a crash or a hang is an answer like any other; and makes failing ones short. */
#include "model.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORLD_STEPS \
	1000 /* operations in one world: short enough to shrink soon, long enough to fill tables */

const char *m_seen_name(unsigned int i)
{
	static const char *const names[SEEN_NR] = {
#define M_SEEN_NAME(name) #name,
		M_SEEN(M_SEEN_NAME)
#undef M_SEEN_NAME
	};

	return names[i];
}

static void child(const struct m_script *s, const struct m_options *o, struct m_result *shared)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGALRM, SIG_DFL);
	alarm(o->seconds ? o->seconds : 60);
	m_execute(s, o, shared);
	_exit(0);
}

bool m_run(const struct m_script *s, const struct m_options *o, struct m_result *res)
{
	struct m_result *shared;
	int status = 0;
	pid_t pid;

	if (o->here) {
		m_execute(s, o, res);
		return !res->failed;
	}
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED)
		abort();
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		abort();
	if (pid == 0)
		child(s, o, shared);
	if (waitpid(pid, &status, 0) != pid)
		abort();
	if (!shared->failed && status) {
		shared->failed = true;
		snprintf(shared->why, sizeof(shared->why), "the program ended with wait status %#x",
			 (unsigned int)status);
	}
	res->failed = shared->failed;
	res->step = shared->step;
	memcpy(res->why, shared->why, sizeof(res->why));
	for (unsigned int i = 0; i < SEEN_NR; i++)
		res->seen[i] += shared->seen[i];
	munmap(shared, sizeof(*shared));
	return !res->failed;
}

/* ---- making it short ------------------------------------------------------------------------ */

struct shrinker {
	struct m_script *s;
	const struct m_options *o;
	struct m_result *res;
	unsigned int runs;
};

/* Does @try fail too? Then it is the script from now on, up to the step where it failed. */
static bool take_if_failing(struct shrinker *k, const struct m_script *try)
{
	struct m_result res = { 0 };

	k->runs++;
	if (m_run(try, k->o, &res))
		return false;
	memcpy(k->s->ops, try->ops, try->n * sizeof(*try->ops));
	k->s->n = res.step + 1 < try->n ? res.step + 1 : try->n;
	k->s->seq = try->seq;
	k->s->base = try->base;
	*k->res = res;
	return true;
}

/* Leaves out pieces of @size operations, from the end. */
static bool without_pieces(struct shrinker *k, uint64_t size)
{
	struct m_op *ops = calloc(k->s->n + 1, sizeof(*ops));
	bool any = false;

	if (!ops)
		abort();
	for (uint64_t end = k->s->n; end > 0;) {
		const uint64_t start = end > size ? end - size : 0;
		struct m_script try = *k->s;

		try.ops = ops;
		try.n = k->s->n - (end - start);
		memcpy(ops, k->s->ops, start * sizeof(*ops));
		memcpy(ops + start, k->s->ops + end, (k->s->n - end) * sizeof(*ops));
		any |= take_if_failing(k, &try);
		end = start < k->s->n ? start : k->s->n;
	}
	free(ops);
	return any;
}

/* Makes numbers small, and takes operations off their threads. */
static bool simpler(struct shrinker *k)
{
	struct m_op *ops = calloc(k->s->n, sizeof(*ops));
	struct m_script try = *k->s;
	bool any = false;

	if (!ops)
		abort();
	try.ops = ops;
	for (uint64_t i = 0; i < k->s->n; i++)
		for (unsigned int a = 0; a < M_ARGS + 1; a++) {
			const uint64_t old = a < M_ARGS ? k->s->ops[i].a[a] : k->s->ops[i].thread;
			const uint64_t simple[] = { 0, 1, old & ~511ULL, old & ~4095ULL };

			for (unsigned int v = 0; v < (a < M_ARGS ? 4 : 1) && i < k->s->n; v++) {
				if (simple[v] >= old)
					continue;
				memcpy(ops, k->s->ops, k->s->n * sizeof(*ops));
				try.n = k->s->n;
				if (a < M_ARGS)
					ops[i].a[a] = simple[v];
				else
					ops[i].thread = 0;
				if (take_if_failing(k, &try)) {
					any = true;
					break;
				}
			}
		}
	memcpy(ops, k->s->ops, k->s->n * sizeof(*ops));
	try.n = k->s->n;
	try.base = 0;
	any |= k->s->base && take_if_failing(k, &try);
	try.base = k->s->base;
	try.seq = 0;
	any |= k->s->seq && take_if_failing(k, &try);
	try.seq = k->s->seq | 31; /* just below the border that it was below */
	try.n = k->s->n;
	memcpy(ops, k->s->ops, k->s->n * sizeof(*ops));
	any |= k->s->seq != try.seq && k->s->seq && take_if_failing(k, &try);
	free(ops);
	return any;
}

unsigned int m_shrink(struct m_script *s, const struct m_options *o, struct m_result *res)
{
	struct m_options every = *o;
	struct shrinker k = { .s = s, .o = &every, .res = res };
	struct m_script same = { .ops = calloc(s->n + 1, sizeof(*s->ops)), .n = s->n };

	if (!same.ops)
		abort();
	memcpy(same.ops, s->ops, s->n * sizeof(*s->ops));
	same.seq = s->seq;
	same.base = s->base;
	/* everything compared after each step: it fails where it goes wrong, not where that is noticed */
	every.whole_every = 1;
	if (!take_if_failing(&k, &same))
		every.whole_every = o->whole_every;
	free(same.ops);
	for (bool again = true; again && s->n;) {
		again = false;
		for (uint64_t size = (s->n + 1) / 2; size; size /= 2)
			while (without_pieces(&k, size) && size == 1)
				again = true;
		again |= simpler(&k);
		if (k.runs > 4000)
			break;
	}
	return k.runs;
}

int m_campaign(uint64_t seed, uint64_t steps, const struct m_options *o, const char *file,
	       struct m_result *res, struct m_script *shrunk)
{
	struct m_script s;
	unsigned int runs;
	FILE *to;

	for (uint64_t done = 0; done < steps; done += WORLD_STEPS, seed++) {
		uint64_t n;

		m_generate(&s, seed, steps - done < WORLD_STEPS ? steps - done : WORLD_STEPS);
		if (m_run(&s, o, res)) {
			m_free(&s);
			continue;
		}
		fprintf(stderr, "seed %lu fails after %lu steps (%lu of its own): %s\n", seed,
			done + res->step, res->step, res->why);
		n = s.n;
		runs = m_shrink(&s, o, res);
		fprintf(stderr, "shrunk in %u runs from %lu operations to %lu: %s\n", runs, n, s.n,
			res->why);
		m_write(stderr, &s);
		to = file ? fopen(file, "w") : NULL;
		if (to) {
			fprintf(to, "# seed %lu: %s\n", seed, res->why);
			m_write(to, &s);
			fclose(to);
			fprintf(stderr, "written to %s\n", file);
		}
		res->failed = true;
		if (shrunk)
			*shrunk = s;
		else
			m_free(&s);
		return 1;
	}
	return 0;
}
