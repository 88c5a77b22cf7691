/* SPDX-License-Identifier: BSD-2-Clause */
/* The guest's side of the boundary: entry, verdict, host calls, arguments, vCPUs, test patterns. */
#include "guest.h"

void guest_entry(const struct guest_boot_info *boot, uint64_t cpu) __attribute__((noreturn));

const struct guest_boot_info *guest_boot;

static uint32_t booted;
static uint32_t done, failed;
static uint64_t taken; /* memory_take() has given out all up to here */
static struct range company;
static uint32_t company_round;

void *memcpy(void *to, const void *from, size_t n)
{
	void *d = to;

	__asm__ __volatile__("rep movsb" : "+D"(d), "+S"(from), "+c"(n)::"memory");
	return to;
}

void *memset(void *to, int byte, size_t n)
{
	void *d = to;

	__asm__ __volatile__("rep stosb" : "+D"(d), "+c"(n) : "a"(byte) : "memory");
	return to;
}

/* ---- entry and end ---- */

__attribute__((weak)) void guest_secondary(unsigned int cpu)
{
	(void)cpu;
	cpu_park();
}

void guest_entry(const struct guest_boot_info *boot, uint64_t cpu)
{
	if (cpu == 0) {
		if (boot->magic != GUEST_BOOT_MAGIC || boot->size < sizeof(*boot))
			guest_exit(2);
		guest_boot = boot;
		__atomic_store_n(&booted, 1, __ATOMIC_RELEASE);
		guest_main();
		guest_finish();
	}
	while (!__atomic_load_n(&booted, __ATOMIC_ACQUIRE))
		cpu_relax();
	guest_secondary((unsigned int)cpu);
	cpu_park();
}

void cpu_park(void)
{
	for (;;)
		__asm__ __volatile__("hlt" ::: "memory");
}

void guest_exit(uint32_t code)
{
	port_out32(GUEST_PORT_EXIT, code);
	cpu_park();
}

unsigned int checks_done(void)
{
	return __atomic_load_n(&done, __ATOMIC_RELAXED);
}

unsigned int checks_failed(void)
{
	return __atomic_load_n(&failed, __ATOMIC_RELAXED);
}

void guest_finish(void)
{
	say("%u checks, %u failed\n", checks_done(), checks_failed());
	guest_exit(checks_failed() || !checks_done() ? 1 : 0);
}

void guest_skip(const char *why)
{
	say("SKIP: %s\n", why);
	guest_exit(checks_failed() ? 1 : 0);
}

void checks_count(bool ok);
void checks_count(bool ok)
{
	__atomic_fetch_add(&done, 1, __ATOMIC_RELAXED);
	if (!ok)
		__atomic_fetch_add(&failed, 1, __ATOMIC_RELAXED);
}

/* ---- arguments ---- */

/* Length of the match of @name at @text, 0 when it differs. */
static size_t begins(const char *text, const char *name)
{
	size_t n = 0;

	while (name[n]) {
		if (text[n] != name[n])
			return 0;
		n++;
	}
	return n;
}

static bool word_ends(char c)
{
	return c == 0 || c == ' ';
}

const char *arg_find(const char *name)
{
	const char *p = guest_boot->args;

	for (;; p++) {
		size_t n = begins(p, name);

		if (n && p[n] == '=')
			return p + n + 1;
		while (!word_ends(*p))
			p++;
		if (!*p)
			return NULL;
	}
}

bool arg_word(const char *word)
{
	const char *p = guest_boot->args;

	for (;; p++) {
		size_t n = begins(p, word);

		if (n && word_ends(p[n]))
			return true;
		while (!word_ends(*p))
			p++;
		if (!*p)
			return false;
	}
}

bool arg_is(const char *name, const char *value)
{
	const char *p = arg_find(name);
	size_t n = p ? begins(p, value) : 0;

	return n && word_ends(p[n]);
}

uint64_t arg_number(const char *name, uint64_t fallback)
{
	const char *p = arg_find(name);
	uint64_t v = 0, base = 10;

	if (!p)
		return fallback;
	if (p[0] == '0' && p[1] == 'x') {
		base = 16;
		p += 2;
	}
	for (; !word_ends(*p); p++) {
		char c = *p;

		if (c >= '0' && c <= '9')
			v = v * base + (uint64_t)(c - '0');
		else if (base == 16 && c >= 'a' && c <= 'f')
			v = v * base + (uint64_t)(c - 'a' + 10);
		else if (c == 'k')
			v <<= 10;
		else if (c == 'm')
			v <<= 20;
		else
			return fallback;
	}
	return v;
}

/* ---- the host ---- */

int64_t host_call(enum guest_hostcall_nr nr, uint64_t gpa, uint64_t len, uint64_t arg,
		  uint64_t *val)
{
	struct guest_hostcall c = { .nr = nr, .gpa = gpa, .len = len, .arg = arg };

	port_out32(GUEST_PORT_HOSTCALL, (uint32_t)(uintptr_t)&c);
	/* The host wrote into c behind the compiler's back. */
	__asm__ __volatile__("" : "+m"(c)::"memory");
	if (val)
		*val = c.val;
	return c.ret;
}

int64_t host(enum guest_hostcall_nr nr, uint64_t gpa, uint64_t len)
{
	return host_call(nr, gpa, len, 0, NULL);
}

bool host_does(enum guest_hostcall_nr nr, uint64_t gpa, uint64_t len, const char *what)
{
	int64_t ret = host(nr, gpa, len);

	if (ret == -E_NOTSUP || ret == -E_INVAL) {
		say("note - %s: not possible here (%ld)\n", what, (long)ret);
		return false;
	}
	return check(ret >= 0, "%s: host answered %ld", what, (long)ret);
}

uint64_t clock_ns(void)
{
	uint64_t lo = port_in32(GUEST_PORT_CLOCK_LO);

	return lo | (uint64_t)port_in32(GUEST_PORT_CLOCK_HI) << 32;
}

/* ---- memory ---- */

struct range memory_take(uint64_t want, uint64_t unit)
{
	struct range r = { 0, 0 };
	uint64_t base = guest_boot->free_base, end = guest_boot->memory;

	if (base >= end) {
		/* The smallest machines have nothing behind the image: take what lies below it. */
		uint64_t info = (uint64_t)(uintptr_t)guest_boot;

		base = 0x10000;
		end = 0x100000;
		if (info < end && info >= base)
			base = info + sizeof(*guest_boot);
	}
	base = ((base > taken ? base : taken) + unit - 1) & ~(unit - 1);
	if (base >= end || end - base < unit || want < unit)
		return r;
	r.at = base;
	r.len = (end - base < want ? end - base : want) & ~(unit - 1);
	taken = r.at + r.len;
	return r;
}

uint64_t pattern(uint64_t gpa, uint64_t generation)
{
	uint64_t x = gpa + generation * 0x9e3779b97f4a7c15ULL;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	return (x ^ x >> 31) | 1; /* never zero: a discarded page is seen */
}

void fill(struct range r, uint64_t generation)
{
	for (uint64_t a = r.at; a < r.at + r.len; a += 8)
		store(a, pattern(a, generation));
}

uint64_t wrong_words(struct range r, uint64_t generation)
{
	uint64_t wrong = 0;

	for (uint64_t a = r.at; a < r.at + r.len; a += 8)
		wrong += load(a) != pattern(a, generation);
	return wrong;
}

uint64_t nonzero_words(struct range r)
{
	uint64_t n = 0;

	for (uint64_t a = r.at; a < r.at + r.len; a += 8)
		n += load(a) != 0;
	return n;
}

uint64_t sum(struct range r)
{
	return guest_sum((const uint64_t *)r.at, r.len / 8);
}

struct rng rng_seed(uint64_t seed)
{
	struct rng r = { (seed + 1) * 0x9e3779b97f4a7c15ULL | 1 };

	return r;
}

uint64_t rng_next(struct rng *r)
{
	r->s ^= r->s << 13;
	r->s ^= r->s >> 7;
	r->s ^= r->s << 17;
	return r->s;
}

uint64_t rng_below(struct rng *r, uint64_t n)
{
	return (rng_next(r) >> 11) % n;
}

/* ---- vCPUs ---- */

void barrier_wait(struct barrier *b)
{
	uint32_t round = __atomic_load_n(&b->round, __ATOMIC_ACQUIRE);

	if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_ACQ_REL) == guest_boot->vcpus) {
		__atomic_store_n(&b->arrived, 0, __ATOMIC_RELAXED);
		__atomic_store_n(&b->round, round + 1, __ATOMIC_RELEASE);
		return;
	}
	while (__atomic_load_n(&b->round, __ATOMIC_ACQUIRE) == round)
		cpu_relax();
}

void company_range(struct range r)
{
	company = r;
	__atomic_add_fetch(&company_round, 1, __ATOMIC_RELEASE);
}

void company_reads(unsigned int cpu)
{
	struct rng rng = rng_seed(cpu);

	for (;;) {
		if (__atomic_load_n(&company_round, __ATOMIC_ACQUIRE)) {
			struct range r = company;

			if (r.len)
				load(r.at + (rng_below(&rng, r.len) & ~7ULL));
		}
		for (int i = 0; i < 2000; i++)
			cpu_relax();
	}
}
