/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The frame of all benchmarks: rounds that alternate ours with what it is held against, medians,
 * noise, a line for people and a row of bench.tsv.
 *
 * A benchmark is one program, bench/NAME.c, with a main() like this:
 *
 *	static double ours(void *ctx)    { ... return nanoseconds per page; }
 *	static double against(void *ctx) { ... return nanoseconds per page; }
 *
 *	int main(void)
 *	{
 *		bench_begin("zap", 0);
 *		... set up ...
 *		bench_row(&(struct bench_row){
 *			.name = "zap", .unit = "ns", .what = "a present leaf",
 *			.floor = "atomic exchange per entry", .at_most = 1.2,
 *			.ours = ours, .against = against, .ctx = &state });
 *		return bench_end();
 *	}
 *
 * A sample function does its own inner loop, long enough to be measured well (1 to 50 ms), times
 * only what belongs to it, and returns one number in the row's unit. Several rows of one program
 * have names that begin with the program's: zap, zap_whole.
 */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * struct bench_row
 * @name: first column of bench.tsv, no blanks. @unit: of both numbers.
 * @what, @floor: what is measured and what it is held against, a few words each.
 * @ours, @against: one sample, or BENCH_FAILED (then bench_fail() has said why).
 * @limit: instead of @against, a fixed number in the row's unit.
 * @at_most, @at_least: the target for ours / against; one of them, or none: a row to know, no verdict.
 * @rounds: 0 is the ordinary number; never fewer than 9.
 * @spread: how far p90 of the floor may lie above its median before the row counts as noisy; 0 is 0.25.
 */
struct bench_row {
	const char *name, *unit, *what, *floor;
	double (*ours)(void *ctx);
	double (*against)(void *ctx);
	void *ctx;
	double limit;
	double at_most, at_least;
	unsigned int rounds;
	double spread;
};

#define BENCH_FAILED NAN

/*
 * bench_begin - first call of a program. @cpu: main is pinned there; -1: not pinned. Threads that main makes
 * later inherit that, unless bench_pin() moves them.
 */
void bench_begin(const char *program, int cpu);

/* Measures, prints, appends to $BENCH_TSV and $BENCH_TABLE. Returns: 0; -1 when a sample failed. */
int bench_row(const struct bench_row *row);

/* This benchmark cannot be done here; says why. Counted in bench_end(). */
void bench_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Something to know beside the rows, indented. */
void bench_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Returns: what main returns: 0, or 1 when something could not be measured. A missed target is 0. */
int bench_end(void);

/* @pid works for this benchmark until its end: what it does is not the work of others. One process. */
void bench_owns(pid_t pid);

/* ---- for sample functions ------------------------------------------------------------------- */

uint64_t bench_ns(void); /* CLOCK_MONOTONIC_RAW */

/* CPUs that this process was given; bench_begin() does not lessen it. */
unsigned int bench_cpus(void);

/* Pins a thread to the @nth of them (modulo their number). */
void bench_pin(pthread_t thread, unsigned int nth);

/* The compiler must take @p's memory as read and written here. */
static inline void bench_clobber(void *p)
{
	__asm__ __volatile__("" : : "r"(p) : "memory");
}

/* A pseudo-random sequence, the same in every run. */
static inline uint64_t bench_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

#endif
