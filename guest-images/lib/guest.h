/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What every guest image may use: console lines, checks, host calls, arguments, vCPUs, patterns.
 *
 * vCPU 0 runs guest_main(); the others run guest_secondary(), by default parked. Guest addresses
 * are plain uint64_t, because to a guest with paging off an address is a guest-physical address.
 */
#ifndef GUEST_IMAGES_GUEST_H
#define GUEST_IMAGES_GUEST_H

#include <abi/guest.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE  4096UL
#define BLOCK (2UL << 20)

/* Linux numbers of what a host call may answer. */
#define E_AGAIN  11
#define E_INVAL  22
#define E_NOTSUP 95

extern const struct guest_boot_info *guest_boot;

/* ---- written by each image ---- */
void guest_main(void);
void guest_secondary(unsigned int cpu);

/* ---- console and verdict ---- */
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
bool check_line(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define check(cond, ...) check_line((cond), __VA_ARGS__)
unsigned int checks_done(void);
unsigned int checks_failed(void);
/* Ends the machine: success when no check failed. guest_main() returning does the same. */
void guest_finish(void) __attribute__((noreturn));
void guest_exit(uint32_t code) __attribute__((noreturn));
/* This configuration cannot show the property: one SKIP line, then success. */
void guest_skip(const char *why) __attribute__((noreturn));

/* ---- arguments: words of the form name=value, or bare ---- */
const char *arg_find(const char *name); /* the text after "name=", NULL when absent */
uint64_t arg_number(const char *name, uint64_t fallback); /* decimal or 0x..; k and m multiply */
bool arg_is(const char *name, const char *value);
bool arg_word(const char *word);

/* ---- the host ---- */
int64_t host_call(enum guest_hostcall_nr nr, uint64_t gpa, uint64_t len, uint64_t arg,
		  uint64_t *val);
int64_t host(enum guest_hostcall_nr nr, uint64_t gpa, uint64_t len);
/* host(), and a check line "what": true when done, false when refused as not possible here (said).
 */
bool host_does(enum guest_hostcall_nr nr, uint64_t gpa, uint64_t len, const char *what);
uint64_t clock_ns(void);

static inline bool chaotic(void)
{
	return guest_boot->seed != 0;
}

/* The smallest piece of memory the host can give and take away. */
static inline uint64_t host_page(void)
{
	return guest_boot->page_kind == GUEST_PAGES_HUGETLB ? BLOCK : PAGE;
}

/* ---- memory to test on ---- */
struct range {
	uint64_t at, len;
};
/* At most @want bytes of free memory, whole multiples of @unit from an address aligned to it; len
 * 0: none. */
struct range memory_take(uint64_t want, uint64_t unit);

static inline uint64_t load(uint64_t gpa)
{
	return __atomic_load_n((const uint64_t *)gpa, __ATOMIC_RELAXED);
}

static inline void store(uint64_t gpa, uint64_t value)
{
	__atomic_store_n((uint64_t *)gpa, value, __ATOMIC_RELAXED);
}

/* Every word of a range gets a value made of its address and @generation. */
uint64_t pattern(uint64_t gpa, uint64_t generation);
void fill(struct range r, uint64_t generation);
uint64_t wrong_words(struct range r, uint64_t generation);
uint64_t nonzero_words(struct range r);
uint64_t sum(struct range r);

struct rng {
	uint64_t s;
};
struct rng rng_seed(uint64_t seed);
uint64_t rng_next(struct rng *r);
uint64_t rng_below(struct rng *r, uint64_t n);

/* ---- vCPUs ---- */
struct barrier {
	uint32_t arrived, round;
};
void barrier_wait(struct barrier *b);
void cpu_park(void) __attribute__((noreturn));
/* A guest_secondary() for guests that want company: reads over the range vCPU 0 announced. */
void company_reads(unsigned int cpu);
void company_range(struct range r); /* called by vCPU 0; {0, 0}: rest */

static inline void cpu_relax(void)
{
	__asm__ __volatile__("pause" ::: "memory");
}

static inline void port_out32(uint16_t port, uint32_t value)
{
	__asm__ __volatile__("outl %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline uint32_t port_in32(uint16_t port)
{
	uint32_t value;

	__asm__ __volatile__("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

/* The compiler may call these by itself. */
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);

#endif
