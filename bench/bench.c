/* SPDX-License-Identifier: BSD-2-Clause */
/* The frame of all benchmarks: see bench.h. */
#include "bench.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS_LEAST 9U
#define ROUNDS_MOST  101U
#define TRIES        3             /* of a row, until one was not disturbed */
#define TRY_NS       8000000000ULL /* no further one after that */
#define SPREAD       0.25 /* p90 over median of the floor: beyond, the machine was not ours */
#define FOREIGN      0.15 /* CPUs' worth of work by others while we measured */
#define FOREIGN_NS   200000000ULL /* the kernel counts in ticks: shorter rows cannot tell */

static const char *program = "bench";
static cpu_set_t cpus;
static unsigned int failures;

struct sample_set {
	double v[ROUNDS_MOST];
	unsigned int n;
	double min, median, p90;
};

struct result {
	struct sample_set ours, against;
	unsigned int rounds;
	double spread, foreign;
	bool noisy;
};

/* Who worked meanwhile: CPU seconds of the machine, and ours of these. */
struct work {
	uint64_t ns;
	double all, own;
};

uint64_t bench_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC_RAW, &t);
	return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

unsigned int bench_cpus(void)
{
	return (unsigned int)CPU_COUNT(&cpus);
}

void bench_pin(pthread_t thread, unsigned int nth)
{
	cpu_set_t one;

	nth %= bench_cpus();
	for (unsigned int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &cpus) || nth--)
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		pthread_setaffinity_np(thread, sizeof(one), &one);
		return;
	}
}

static double load_average(void)
{
	double load = 0;

	return getloadavg(&load, 1) == 1 ? load : 0;
}

void bench_begin(const char *name, int cpu)
{
	program = name;
	sched_getaffinity(0, sizeof(cpus), &cpus);
	if (cpu >= 0)
		bench_pin(pthread_self(), (unsigned int)cpu);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("%s: %u CPUs, ", name, bench_cpus());
	if (cpu < 0)
		printf("main not pinned");
	else
		printf("main on CPU no. %d of these", cpu % (int)bench_cpus());
	printf(", load %.2f\n", load_average());
}

void bench_fail(const char *fmt, ...)
{
	va_list args;

	failures++;
	printf("  %s: cannot be measured: ", program);
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	putchar('\n');
}

void bench_note(const char *fmt, ...)
{
	va_list args;

	printf("    ");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	putchar('\n');
}

int bench_end(void)
{
	return failures ? 1 : 0;
}

/* ---- statistics ----------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void summarise(struct sample_set *s)
{
	double sorted[ROUNDS_MOST];

	memcpy(sorted, s->v, s->n * sizeof(*sorted));
	qsort(sorted, s->n, sizeof(*sorted), by_size);
	s->min = sorted[0];
	s->median = s->n % 2 ? sorted[s->n / 2] : (sorted[s->n / 2 - 1] + sorted[s->n / 2]) / 2;
	s->p90 = sorted[(s->n * 9 + 9) / 10 - 1];
}

static double seconds(const struct timeval *t)
{
	return (double)t->tv_sec + (double)t->tv_usec / 1e6;
}

/* Idle and waiting apart, what all CPUs did, time stolen by a hypervisor included. */
static double machine_seconds(void)
{
	unsigned long long t[8] = { 0 };
	FILE *f = fopen("/proc/stat", "re");
	int n = 0;

	if (f) {
		n = fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &t[0], &t[1], &t[2],
			   &t[3], &t[4], &t[5], &t[6], &t[7]);
		fclose(f);
	}
	if (n != 8)
		return 0;
	return (double)(t[0] + t[1] + t[2] + t[5] + t[6] + t[7]) / (double)sysconf(_SC_CLK_TCK);
}

static pid_t owned;

void bench_owns(pid_t pid)
{
	owned = pid;
}

static double owned_seconds(void)
{
	struct timespec t;
	clockid_t clock;

	if (!owned || clock_getcpuclockid(owned, &clock) || clock_gettime(clock, &t))
		return 0;
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct work work_now(void)
{
	struct rusage self, children;

	getrusage(RUSAGE_SELF, &self);
	getrusage(RUSAGE_CHILDREN, &children);
	return (struct work){
		.ns = bench_ns(),
		.all = machine_seconds(),
		.own = seconds(&self.ru_utime) + seconds(&self.ru_stime) +
		       seconds(&children.ru_utime) + seconds(&children.ru_stime) + owned_seconds(),
	};
}

/* CPUs' worth of work by others since @then. */
static double foreign_since(const struct work *then)
{
	struct work now = work_now();
	double others = (now.all - then->all) - (now.own - then->own);

	if (now.ns - then->ns < FOREIGN_NS || others < 0)
		return 0;
	return others / ((double)(now.ns - then->ns) / 1e9);
}

/* ---- one row -------------------------------------------------------------------------------- */

static bool take(struct sample_set *s, double (*sample)(void *), void *ctx)
{
	double v = sample(ctx);

	if (isnan(v))
		return false;
	s->v[s->n++] = v;
	return true;
}

/* One round unseen, so that caches, tables and frequency are warm; then each goes first in turn. */
static bool measure(const struct bench_row *row, unsigned int rounds, struct sample_set *ours,
		    struct sample_set *against)
{
	struct sample_set warm = { .n = 0 };

	if (!take(&warm, row->ours, row->ctx) ||
	    (row->against && !take(&warm, row->against, row->ctx)))
		return false;
	for (unsigned int i = 0; i < rounds; i++) {
		if (row->against && i % 2 && !take(against, row->against, row->ctx))
			return false;
		if (!take(ours, row->ours, row->ctx))
			return false;
		if (row->against && i % 2 == 0 && !take(against, row->against, row->ctx))
			return false;
	}
	if (!row->against)
		against->v[against->n++] = row->limit;
	summarise(ours);
	summarise(against);
	return true;
}

static void append(const char *variable, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static void append(const char *variable, const char *fmt, ...)
{
	const char *path = getenv(variable);
	FILE *f = path && *path ? fopen(path, "ae") : NULL;
	va_list args;

	if (!f) {
		if (path && *path)
			bench_fail("%s: %s", path, strerror(errno));
		return;
	}
	va_start(args, fmt);
	vfprintf(f, fmt, args);
	va_end(args);
	fclose(f);
}

static unsigned int rounds_of(const struct bench_row *row)
{
	const char *wish = getenv("BENCH_ROUNDS");
	unsigned int n = row->rounds ? row->rounds
			 : wish      ? (unsigned int)strtoul(wish, NULL, 10)
				     : 15;

	return n < ROUNDS_LEAST ? ROUNDS_LEAST : n > ROUNDS_MOST ? ROUNDS_MOST : n;
}

/* Measures until the machine was quiet, a few times at most. False: a sample failed. */
static bool measure_quiet(const struct bench_row *row, struct result *r)
{
	const double limit = row->spread > 0 ? row->spread : SPREAD;
	const uint64_t begun = bench_ns();

	r->rounds = rounds_of(row);
	for (unsigned int try = 0; try < TRIES; try++) {
		struct work then = work_now();
		const struct sample_set *steady = row->against ? &r->against : &r->ours;

		r->ours.n = r->against.n = 0;
		if (!measure(row, r->rounds, &r->ours, &r->against))
			return false;
		r->foreign = foreign_since(&then);
		r->spread = steady->median > 0 ? steady->p90 / steady->median - 1 : 0;
		r->noisy = r->spread > limit || r->foreign > FOREIGN;
		if (!r->noisy || bench_ns() - begun > TRY_NS)
			break;
	}
	return true;
}

int bench_row(const struct bench_row *row)
{
	static struct result r;
	const char *verdict = "-";
	char target[32] = "-", shown[32];
	double ratio;

	if (!measure_quiet(row, &r)) {
		bench_fail("row %s", row->name);
		append("BENCH_TABLE", "%s\t-\t-\t%s\t-\t-\tnot measured\t%s against %s\n",
		       row->name, row->unit, row->what, row->floor);
		return -1;
	}
	ratio = r.against.median > 0 ? r.ours.median / r.against.median : NAN;
	if (row->at_most > 0) {
		snprintf(target, sizeof(target), "<=%g", row->at_most);
		verdict = ratio <= row->at_most ? "met" : "missed";
	} else if (row->at_least > 0) {
		snprintf(target, sizeof(target), ">=%g", row->at_least);
		verdict = ratio >= row->at_least ? "met" : "missed";
	}
	if (r.noisy)
		verdict = "noisy";
	snprintf(shown, sizeof(shown), r.noisy ? "(%.3g)" : "%.3g", ratio);

	printf("  %-18s %s %s: median %.4g, min %.4g, p90 %.4g\n", row->name, row->what, row->unit,
	       r.ours.median, r.ours.min, r.ours.p90);
	if (row->against)
		printf("  %-18s %s %s: median %.4g, min %.4g, p90 %.4g\n", "", row->floor,
		       row->unit, r.against.median, r.against.min, r.against.p90);
	else
		printf("  %-18s %s: %g %s\n", "", row->floor, row->limit, row->unit);
	printf("  %-18s ratio %s, target %s: %s (%u rounds, floor spread %.0f %%, others %.2f CPUs, load %.2f)\n",
	       "", shown, target, verdict, r.rounds, r.spread * 100, r.foreign, load_average());
	if (r.noisy)
		append("BENCH_TSV", "%s\t%.6g\t%.6g\tnoisy\t%s\t%s\n", row->name, r.ours.median,
		       r.against.median, target, row->unit);
	else
		append("BENCH_TSV", "%s\t%.6g\t%.6g\t%.6g\t%s\t%s\n", row->name, r.ours.median,
		       r.against.median, ratio, target, row->unit);
	append("BENCH_TABLE", "%s\t%.4g\t%.4g\t%s\t%s\t%s\t%s\t%s against %s\n", row->name,
	       r.ours.median, r.against.median, row->unit, shown, target, verdict, row->what,
	       row->floor);
	return 0;
}
