/* SPDX-License-Identifier: BSD-2-Clause */
/* --chaos: the specification, the plan made of it, and the thread that carries it out. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>
#include <vmm/chaos.h>
#include <vmm/hostcall.h>
#include <vmm/limits.h>
#include <vmm/memory.h>
#include <vmm/vm_private.h>

#define CHAOS_RATE_DEFAULT 1000
#define CHAOS_RATE_MAX     100000
#define CHAOS_MIX_ALL      ((1U << CHAOS_ACTION_NR) - 1)
#define CHAOS_PAGES_MAX \
	1024 /* of one action: more than a 2M block, so that edges meet inside blocks */

static const char *const names[CHAOS_ACTION_NR] = {
	[CHAOS_DISCARD] = "discard", [CHAOS_FREE] = "free",         [CHAOS_PROTECT] = "protect",
	[CHAOS_SPLIT] = "split",     [CHAOS_COLLAPSE] = "collapse", [CHAOS_SWAP] = "swap",
	[CHAOS_REMAP] = "remap",     [CHAOS_FORK] = "fork",
};

struct chaos {
	int wake; /* eventfd: ends the sleep between actions */
	_Atomic bool stop;
	pthread_mutex_t lock; /* stats */
	struct chaos_stats stats;
};

const char *chaos_action_name(enum chaos_action action)
{
	return action < CHAOS_ACTION_NR ? names[action] : "unknown";
}

const char *chaos_why(enum chaos_action action, int error)
{
	switch (error) {
	case EBUSY:
	case EAGAIN: return "not possible at that moment, such as a page in use";
	case ENOMEM: return "the host had no memory for it";
	case EINVAL:
		return action == CHAOS_COLLAPSE ? "nothing was there, or part of it is protected"
						: "not possible with this range";
	case ENOTSUP:
		return action == CHAOS_SWAP ? "this host has no swap"
					    : "not possible with this memory";
	case EINTR: return "the machine was stopping";
	default: return strerror(error);
	}
}

bool chaos_action_destroys(enum chaos_action action)
{
	return action == CHAOS_DISCARD || action == CHAOS_FREE;
}

/* ---- the specification -------------------------------------------------------------------------
 */

/* A piece of the option's text; it is not NUL terminated. */
struct word {
	const char *p;
	int len;
};

static bool word_is(struct word w, const char *s)
{
	return (size_t)w.len == strlen(s) && memcmp(w.p, s, (size_t)w.len) == 0;
}

static int bad_word(struct vm_error *err, struct word w, const char *what)
{
	return vm_fail(err, VMM_EXIT_USAGE, "--chaos: \"%.*s\": %s", w.len > 60 ? 60 : w.len, w.p,
		       what);
}

static bool word_number(struct word w, uint64_t max, uint64_t *value)
{
	uint64_t n = 0;

	if (!w.len)
		return false;
	for (int i = 0; i < w.len; i++) {
		unsigned int digit = (unsigned int)(unsigned char)w.p[i] - '0';

		if (digit > 9 || n > (max - digit) / 10)
			return false;
		n = n * 10 + digit;
	}
	*value = n;
	return true;
}

static int parse_mix(struct word w, uint32_t *mix, struct vm_error *err)
{
	const char *end = w.p + w.len;

	*mix = 0;
	for (const char *p = w.p; p <= end;) {
		const char *plus = memchr(p, '+', (size_t)(end - p));
		struct word name = { p, (int)((plus ? plus : end) - p) };
		unsigned int a;

		for (a = 0; a < CHAOS_ACTION_NR && !word_is(name, names[a]); a++)
			;
		if (a == CHAOS_ACTION_NR)
			return bad_word(err, name,
					"unknown action; there is: discard, free, protect, split, "
					"collapse, swap, remap, fork");
		if (*mix & 1U << a)
			return bad_word(err, name, "named twice in mix=");
		*mix |= 1U << a;
		p += name.len + 1;
	}
	return 0;
}

static int parse_pair(struct word key, struct word value, struct chaos_spec *spec, uint32_t *seen,
		      struct vm_error *err)
{
	static const char *const keys[] = { "rate", "seed", "mix", "count" };
	struct word all = { key.p, (int)(value.p + value.len - key.p) };
	uint64_t n = 0;
	unsigned int k;

	for (k = 0; k < 4 && !word_is(key, keys[k]); k++)
		;
	if (k == 4)
		return bad_word(err, key,
				"unknown; there is: rate=, seed=, mix=, count=, on, calm");
	if (*seen & 1U << k)
		return bad_word(err, all, "given twice");
	*seen |= 1U << k;
	switch (k) {
	case 0:
		if (!word_number(value, CHAOS_RATE_MAX, &n) || !n)
			return bad_word(err, all,
					"not a number from 1 to 100000 (actions a second)");
		spec->rate = (uint32_t)n;
		return 0;
	case 1:
		return word_number(value, ~0ULL, &spec->seed)
			       ? 0
			       : bad_word(err, all, "not a whole number of 64 bits");
	case 2: return parse_mix(value, &spec->mix, err);
	default:
		return word_number(value, ~0ULL, &spec->count)
			       ? 0
			       : bad_word(err, all, "not a whole number of 64 bits");
	}
}

int chaos_parse(const char *text, struct chaos_spec *spec, struct vm_error *err)
{
	const struct chaos_spec defaults = { CHAOS_RATE_DEFAULT, 1, CHAOS_MIX_ALL, 0 };
	struct chaos_spec s = defaults;
	uint32_t seen = 0;

	if (strcmp(text, "calm") == 0) {
		*spec = (struct chaos_spec){ 0 };
		return 0;
	}
	for (const char *p = text; strcmp(text, "on") != 0;) {
		const char *end = p + strcspn(p, ",");
		const char *eq = memchr(p, '=', (size_t)(end - p));
		struct word pair = { p, (int)(end - p) };
		int e;

		if (!pair.len)
			return vm_fail(err, VMM_EXIT_USAGE,
				       "--chaos \"%s\": empty at character %d; write on, calm, or "
				       "rate=N,seed=N,mix=A+B,count=N",
				       text, (int)(p - text) + 1);
		if (!eq && (word_is(pair, "on") || word_is(pair, "calm")))
			return bad_word(err, pair, "stands alone, without anything beside it");
		if (!eq)
			return bad_word(err, pair,
					"unknown; there is: rate=, seed=, mix=, count=, on, calm");
		e = parse_pair((struct word){ p, (int)(eq - p) },
			       (struct word){ eq + 1, (int)(end - eq - 1) }, &s, &seen, err);
		if (e)
			return e;
		if (!*end)
			break;
		p = end + 1;
	}
	*spec = s;
	return 0;
}

int chaos_check(struct vm_config *config, struct vm_error *err)
{
	struct chaos_spec *s = &config->chaos;
	uint32_t possible = CHAOS_MIX_ALL;

	if (!s->rate)
		return 0;
	if (config->pages != GUEST_PAGES_THP)
		possible &= ~(1U << CHAOS_COLLAPSE | 1U << CHAOS_SPLIT);
	if (config->pages == GUEST_PAGES_HUGETLB)
		possible &= ~(1U << CHAOS_SWAP | 1U << CHAOS_REMAP | 1U << CHAOS_FREE);
	if (config->backing == GUEST_BACKING_MEMFD)
		possible &= ~(1U << CHAOS_FREE);
	if (s->mix == CHAOS_MIX_ALL)
		s->mix = possible; /* "all" means all that there is here */
	for (unsigned int a = 0; a < CHAOS_ACTION_NR; a++) {
		if (!(s->mix & 1U << a) || possible & 1U << a)
			continue;
		return vm_fail(err, VMM_EXIT_USAGE,
			       "--chaos mix=%s: cannot be done to --backing %s --pages %s; %s",
			       names[a], config->backing == GUEST_BACKING_MEMFD ? "memfd" : "anon",
			       config->pages == GUEST_PAGES_4K    ? "4k"
			       : config->pages == GUEST_PAGES_THP ? "thp"
								  : "hugetlb",
			       a == CHAOS_FREE ? "it needs --backing anon and --pages 4k or thp"
			       : a <= CHAOS_COLLAPSE ? "it needs --pages thp"
						     : "it needs --pages 4k or thp");
	}
	return 0;
}

/* ---- the plan ----------------------------------------------------------------------------------
 */

/* splitmix64's finaliser: a step needs random access by its number, so the generator has no state.
 */
static uint64_t mix64(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

struct chaos_step chaos_plan(const struct chaos_spec *spec, uint64_t i, uint64_t memory_pages)
{
	uint64_t base = mix64(spec->seed) ^ mix64(~i);
	uint64_t which = mix64(base ^ 1), size = mix64(base ^ 2), where = mix64(base ^ 3);
	struct chaos_step step = { .arena = mix64(base ^ 4), .where = mix64(base ^ 5) };
	unsigned int n = (unsigned int)__builtin_popcount(spec->mix), a = 0;

	which %= n;
	for (;; a++) {
		if (spec->mix & 1U << a && !which--)
			break;
	}
	step.action = (enum chaos_action)a;
	/* Half of them small, the rest any size, some of whole blocks: bugs live at the edges of
	 * 2M. */
	step.pages = size & 1 ? 1 + (size >> 8) % 8 : 1 + (size >> 8) % CHAOS_PAGES_MAX;
	if (step.action == CHAOS_COLLAPSE || (size & 6) == 6)
		step.pages = (1 + (size >> 8) % 2) * UMBRA_HUGE_PAGES;
	if (step.pages > memory_pages)
		step.pages = memory_pages;
	step.start = where % (memory_pages - step.pages + 1);
	if (step.pages % UMBRA_HUGE_PAGES == 0)
		step.start &= ~(UMBRA_HUGE_PAGES - 1);
	return step;
}

/* ---- the thread --------------------------------------------------------------------------------
 */

int chaos_create(struct vm *vm, struct vm_error *err)
{
	struct chaos *c;

	if (!vm->config.chaos.rate)
		return 0;
	c = calloc(1, sizeof(*c));
	if (!c)
		return vm_fail_host(err, ENOMEM, "--chaos");
	c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->wake < 0) {
		const int error = errno;

		free(c);
		return vm_fail_host(err, error, "--chaos: eventfd");
	}
	pthread_mutex_init(&c->lock, NULL);
	vm->chaos = c;
	return 0;
}

void chaos_destroy(struct vm *vm)
{
	if (!vm->chaos)
		return;
	close(vm->chaos->wake);
	pthread_mutex_destroy(&vm->chaos->lock);
	free(vm->chaos);
	vm->chaos = NULL;
}

void chaos_stop(struct vm *vm)
{
	const uint64_t one = 1;

	if (!vm->chaos)
		return;
	atomic_store(&vm->chaos->stop, true);
	if (write(vm->chaos->wake, &one, sizeof(one)) < 0)
		return; /* full: it is awake already */
}

/* The part of an arena that a destroying step acts on. */
static bool range_in_arena(struct vm *vm, const struct chaos_step *step, struct hva_range *r)
{
	uint64_t align = vm->config.pages == GUEST_PAGES_HUGETLB ? UMBRA_HUGE_PAGES : 1;
	struct hva_range arena;
	uint64_t pages, count, start;

	if (!hostcall_arena(vm, step->arena, &arena))
		return false;
	pages = (arena.end.v - arena.start.v) >> UMBRA_PAGE_SHIFT;
	count = step->pages < pages ? step->pages : pages;
	start = step->where % (pages - count + 1);
	if (align > 1) {
		uint64_t first = (arena.start.v >> UMBRA_HUGE_SHIFT) +
				 !!(arena.start.v & (UMBRA_HUGE_SIZE - 1));
		uint64_t blocks = arena.end.v >> UMBRA_HUGE_SHIFT;

		if (first >= blocks)
			return false;
		first += step->where % (blocks - first);
		*r = (struct hva_range){ { first << UMBRA_HUGE_SHIFT },
					 { (first + 1) << UMBRA_HUGE_SHIFT } };
		return true;
	}
	r->start.v = arena.start.v + (start << UMBRA_PAGE_SHIFT);
	r->end.v = r->start.v + (count << UMBRA_PAGE_SHIFT);
	return true;
}

static int64_t do_step(struct vm *vm, const struct chaos_step *step, bool *skipped)
{
	struct hva_range r = { { vm->ram.v + (step->start << UMBRA_PAGE_SHIFT) }, { 0 } };

	r.end.v = r.start.v + (step->pages << UMBRA_PAGE_SHIFT);
	if (vm->config.pages == GUEST_PAGES_HUGETLB) {
		r.start.v &= ~(UMBRA_HUGE_SIZE - 1);
		r.end.v = (r.end.v + UMBRA_HUGE_SIZE - 1) & ~(UMBRA_HUGE_SIZE - 1);
	}
	*skipped = chaos_action_destroys(step->action) && !range_in_arena(vm, step, &r);
	if (*skipped)
		return 0;
	switch (step->action) {
	case CHAOS_DISCARD: return action_discard(vm, r);
	case CHAOS_FREE: return action_free(vm, r);
	case CHAOS_PROTECT:
		return step->where & 1 ? action_unprotect(vm, r, ACTION_BY_CHAOS)
				       : action_protect(vm, r, ACTION_BY_CHAOS);
	case CHAOS_SPLIT: return action_split(vm, r);
	case CHAOS_COLLAPSE: return action_collapse(vm, r);
	case CHAOS_SWAP: return action_swapout(vm, r);
	case CHAOS_REMAP: return action_remap(vm, r);
	default: return action_fork(vm);
	}
}

static void account(struct chaos *c, enum chaos_action action, int64_t result, bool skipped)
{
	struct chaos_action_stats *s = &c->stats.action[action];

	pthread_mutex_lock(&c->lock);
	c->stats.steps++;
	if (skipped) {
		s->skipped++;
	} else if (result >= 0) {
		s->done++;
	} else {
		s->refused++;
		for (unsigned int i = 0; i < CHAOS_ERRNOS_MAX; i++) {
			if (s->why[i].n && s->why[i].error != (int)-result)
				continue;
			s->why[i].error = (int)-result;
			s->why[i].n++;
			break;
		}
	}
	pthread_mutex_unlock(&c->lock);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

/* Sleeps until @due (CLOCK_MONOTONIC, ns) or until chaos_stop(). */
static void sleep_until(struct chaos *c, uint64_t due)
{
	struct pollfd p = { .fd = c->wake, .events = POLLIN };
	struct timespec wait;
	uint64_t now = now_ns();

	if (now >= due)
		return;
	due -= now;
	wait = (struct timespec){ (time_t)(due / 1000000000ULL), (long)(due % 1000000000ULL) };
	ppoll(&p, 1, &wait, NULL);
}

void chaos_run(struct vm *vm)
{
	const struct chaos_spec *spec = &vm->config.chaos;
	struct chaos *c = vm->chaos;
	uint64_t due = now_ns(), begun, ended;

	for (uint64_t i = 0; !spec->count || i < spec->count; i++) {
		struct chaos_step step;
		bool skipped;
		int64_t result;

		sleep_until(c, due);
		begun = now_ns();
		if (atomic_load(&c->stop))
			return;
		step = chaos_plan(spec, i, vm->config.memory >> UMBRA_PAGE_SHIFT);
		result = do_step(vm, &step, &skipped);
		vm_log(vm, VM_LOG_DEBUG,
		       "chaos %" PRIu64 ": %s pages 0x%" PRIx64 "+%" PRIu64 ": %" PRId64 "%s", i,
		       names[step.action], step.start, step.pages, result,
		       skipped ? " (no arena)" : "");
		account(c, step.action, result, skipped);
		if (vm->config.audit && !skipped && action_check(vm)) {
			vm_stop(vm, VMM_EXIT_INTERNAL,
				"the tables were wrong after chaos action %" PRIu64
				" (%s, seed %" PRIu64 ")",
				i, names[step.action], spec->seed);
			return;
		}
		/*
		 * A host that cannot keep up does fewer actions, is not driven to catch up, and leaves the guest half
		 * of the time: else a slow host is busy with chaos alone and the guest never ends.
		 */
		ended = now_ns();
		due += 1000000000ULL / spec->rate;
		if (due < ended + (ended - begun))
			due = ended + (ended - begun);
	}
}

void chaos_stats(struct vm *vm, struct chaos_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	if (!vm->chaos)
		return;
	pthread_mutex_lock(&vm->chaos->lock);
	*stats = vm->chaos->stats;
	pthread_mutex_unlock(&vm->chaos->lock);
}
