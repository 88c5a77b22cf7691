/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The gate on the module of a running kernel: no lookup that starts after a callout returned finds what it took away.
 * A program beside kmod_test, for it stands on the library: kmod_gate [NAME...], as root, with /dev/umbra there.
 *
 * Mutators change memory by system calls that nobody announces. Readers fault and look up; of a page only one reader
 * installs leaves, so it knows of each leaf when it was installed and with which frame. Before the gate it reads what is
 * true of the page. A leaf that it finds behind the gate was installed before that: if it says otherwise, it should have gone.
 *
 * With UMBRA_NO_GATE in the environment the gate is not asked where it must hold: that test fails then.
 */
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <umbra/module.h>

#include "tests/integration/events_host.h"

#define AREAS     3
#define PAGES     8U /* of each area */
#define BYTES     ((size_t)PAGES * UMBRA_PAGE_SIZE)
#define READERS   2U
#define CHANGES   60U /* of each area */
#define LOOKS     48U /* at most, between two changes of an area */
#define MPOL_MOVE (1 << 1)

/* What is done to pages. Those up to LAST_SURE always take every leaf away; what the others did the frames tell. */
enum kind {
	DISCARD,
	PUNCH,
	MAP_OVER,
	PROTECT,
	AWAY,
	LAST_SURE = AWAY,
	PAGEOUT,
	MIGRATE,
	COLLAPSE,
	KINDS
};

static const char *const kind_name[KINDS] = {
	"discarded",  "punched",   "mapped over", "protected",
	"moved away", "paged out", "migrated",    "collapsed"
};

struct page {
	char *p;
	/* The changes of the sure kinds: numbers of the newest begun and of the newest that has returned. */
	_Atomic uint64_t begun, returned;
	_Atomic bool forbidden; /* nothing may be mapped here: protected, or moved away */
	/* of the reader that installs */
	uint64_t frame, begun_when_installed;
};

struct area {
	struct page page[PAGES];
	size_t bytes;
	char *p, *aside;
	int other; /* another descriptor of the file */
	unsigned int kinds[5], nr_kinds;
};

static struct host host;
static struct umbra_module *module;
static struct area areas[AREAS];
static const struct umbra_gate *gate;
static _Thread_local uint64_t resolved;

static bool ask_gate;
static unsigned int told, early;
static _Atomic bool over;
static _Atomic unsigned int ready, mutating;
static _Atomic uint64_t looks, closed, hits, fills, refused, stale, done[KINDS];

static int resolve(void *ctx, const struct umbra_resolve_req *req, struct umbra_resolved *res)
{
	struct host *h = ctx;
	int err;

	umbra_module_drain(module);
	err = umbra_hostmap_resolve(h->map, h->chain, req, res);
	if (!err && res->level != UMBRA_LEVEL_4K) { /* a leaf for each page */
		res->host_pfn += (req->hva.v & (UMBRA_HUGE_SIZE - 1)) >> UMBRA_PAGE_SHIFT;
		res->level = UMBRA_LEVEL_4K;
	}
	resolved = err ? UMBRA_HOST_PFN_UNKNOWN : res->host_pfn;
	umbra_module_drain(module);
	return err;
}

/* ---- a reader's page -------------------------------------------------------------------------- */

static bool fill(struct page *page)
{
	if (host_fault_once(&host, page->p, UMBRA_ACCESS_WRITE) != UMBRA_FAULT_INSTALLED) {
		refused++;
		return false;
	}
	page->frame = resolved;
	page->begun_when_installed = page->begun;
	fills++;
	return true;
}

enum look { MISS, GOOD, STALE, CLOSED };

/* A lookup, and whether what it found was true before it started. */
static enum look look(struct page *page, bool ask)
{
	const uint64_t returned = page->returned;
	const bool forbidden = page->forbidden;
	const uint64_t frame = host_pfn(&host, page->p);
	struct umbra_translation t;

	if (ask && !umbra_gate_current(gate))
		return CLOSED;
	if (umbra_lookup(host.root, (gpa_t){ (uintptr_t)page->p }, &t))
		return MISS;
	/* Nobody but this thread could have installed it since the truth was read. */
	return forbidden || returned > page->begun_when_installed || frame != page->frame ? STALE
											  : GOOD;
}

static void *read_pages(void *arg)
{
	const unsigned int me = (unsigned int)(uintptr_t)arg;

	for (unsigned int i = 0; i < AREAS * PAGES; i++)
		while (i % READERS == me && !fill(&areas[i / PAGES].page[i % PAGES]))
			sched_yield();
	ready++;
	for (unsigned int i = me; !over; i = (i + READERS) % (AREAS * PAGES)) {
		struct page *page = &areas[i / PAGES].page[i % PAGES];

		looks++;
		switch (look(page, ask_gate)) {
		case CLOSED:
			closed++;
			umbra_module_drain(module);
			break;
		case MISS: fill(page); break;
		case STALE: stale++; __attribute__((fallthrough));
		case GOOD: hits++; break;
		}
	}
	return NULL;
}

/* ---- changes, by system calls that nobody announces ------------------------------------------- */

static bool call(struct area *a, enum kind kind, char *p, size_t bytes)
{
	const off_t offset = p - a->p;
	void *pages[1] = { p };
	int node = 0, status = -1;

	switch (kind) {
	case DISCARD: return !madvise(p, bytes, MADV_DONTNEED);
	case PUNCH:
		return !fallocate(a->other, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
				  (off_t)bytes);
	case MAP_OVER:
		return mmap(p, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p;
	case PROTECT: return !mprotect(p, bytes, PROT_NONE);
	case AWAY:
		return mremap(p, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, a->aside) == a->aside;
	case PAGEOUT: return !madvise(p, bytes, MADV_PAGEOUT);
	case MIGRATE:
		if (syscall(SYS_move_pages, 0, 1UL, pages, NULL, &status, 0) || status < 0)
			return false;
		node = !status;
		return !syscall(SYS_move_pages, 0, 1UL, pages, &node, &status, MPOL_MOVE);
	case COLLAPSE: return !madvise(a->p, a->bytes, MADV_COLLAPSE);
	case KINDS: break;
	}
	return false;
}

static bool call_back(struct area *a, enum kind kind)
{
	return kind == PROTECT ? !mprotect(a->p, a->bytes, PROT_READ | PROT_WRITE)
	       : kind == AWAY  ? mremap(a->aside, a->bytes, a->bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
					a->p) == a->p
			       : true;
}

static bool is_whole(enum kind kind)
{
	return kind == MAP_OVER || kind == PROTECT || kind == AWAY || kind == COLLAPSE;
}

/* Pages [@first, @first + @n) of @a, or all of it; what says that nothing may be there is left so, for put_back(). */
static void change(struct area *a, enum kind kind, unsigned int first, unsigned int n)
{
	const bool whole = is_whole(kind);
	const unsigned int lo = whole ? 0 : first, hi = whole ? PAGES : first + n;
	const uint64_t frame = host_pfn(&host, a->page[lo].p);
	bool good;

	for (unsigned int i = lo; i < hi && kind <= LAST_SURE; i++)
		a->page[i].begun++;
	good = call(a, kind, a->page[lo].p, whole ? a->bytes : (size_t)(hi - lo) * UMBRA_PAGE_SIZE);
	if (kind > LAST_SURE) {
		done[kind] += good && frame != UMBRA_HOST_PFN_UNKNOWN &&
			      frame != host_pfn(&host, a->page[lo].p);
		return;
	}
	HOST_NEED(good);
	done[kind]++;
	for (unsigned int i = lo; i < hi; i++) {
		a->page[i].returned = a->page[i].begun;
		a->page[i].forbidden = kind == PROTECT || kind == AWAY;
	}
}

static void put_back(struct area *a, enum kind kind)
{
	for (unsigned int i = 0; i < PAGES; i++)
		a->page[i].forbidden = false;
	HOST_NEED(call_back(a, kind));
}

static void let_them_look(uint64_t n)
{
	const uint64_t until = looks + n;

	while (looks < until)
		usleep(100); /* whoever spins takes a CPU from those who look */
}

static void *mutate(void *arg)
{
	struct area *a = arg;
	unsigned int seed = (unsigned int)(a - areas) + 1;

	while (ready < READERS)
		sched_yield();
	for (unsigned int i = 0; i < CHANGES; i++) {
		const enum kind kind = a->kinds[i % a->nr_kinds];
		const unsigned int first = (unsigned int)rand_r(&seed) % PAGES;

		change(a, kind, first, 1 + (unsigned int)rand_r(&seed) % (PAGES - first));
		let_them_look((unsigned int)rand_r(&seed) % LOOKS);
		put_back(a, kind);
		let_them_look((unsigned int)rand_r(&seed) % LOOKS);
	}
	let_them_look(4ULL * AREAS * PAGES); /* at each page once more, after the last change */
	if (--mutating == 0)
		over = true;
	return NULL;
}

/* ---- the tests -------------------------------------------------------------------------------- */

static void area_is(struct area *a, char *p, size_t bytes, const enum kind *kinds, unsigned int n)
{
	HOST_NEED(p);
	a->p = p;
	a->bytes = bytes;
	a->aside = host_reserve(bytes);
	for (unsigned int i = 0; i < PAGES; i++)
		a->page[i].p = p + i * UMBRA_PAGE_SIZE;
	for (a->nr_kinds = 0; a->nr_kinds < n; a->nr_kinds++)
		a->kinds[a->nr_kinds] = kinds[a->nr_kinds];
}

/* What is asked of the host lies between two drains. */
static void create(struct host *h)
{
	host_create(h);
	h->resolve = resolve;
	HOST_NEED(umbra_hostmap_has_pfns(h->map));
}

static void begin(void)
{
	static const enum kind anon[] = { DISCARD, PROTECT, MIGRATE, AWAY, PAGEOUT },
			       file[] = { PUNCH, PROTECT, PUNCH, AWAY },
			       huge[] = { DISCARD, COLLAPSE, DISCARD, COLLAPSE, MAP_OVER };
	struct umbra_module_config config = { .fd = -1, .nr = AREAS };
	struct hva_range ranges[AREAS];
	char path[64];
	int fd;

	create(&host);
	area_is(&areas[0], host_anon(&host, BYTES), BYTES, anon, 5);
	area_is(&areas[1], host_memfd(&host, BYTES, &fd), BYTES, file, 4);
	area_is(&areas[2], host_anon(&host, UMBRA_HUGE_SIZE), UMBRA_HUGE_SIZE, huge, 5);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	areas[1].other = open(path, O_RDWR | O_CLOEXEC);
	HOST_NEED(areas[1].other >= 0);
	for (unsigned int i = 0; i < AREAS; i++)
		ranges[i] = hva_range_of(areas[i].p, areas[i].bytes);
	config.ranges = ranges;
	HOST_NEED(!umbra_module_open(&module, host.chain, &config));
	gate = umbra_module_gate(module);
}

/* When all is over and drained, nothing stale is left, whether the gate was asked or not. */
static void end(void)
{
	do
		umbra_module_drain(module);
	while (!umbra_gate_current(gate)); /* the kernel may be at work by itself */
	HOST_NEED(host_sound(&host));
	umbra_module_close(module);
}

/* A consumer that is still being told of a callout must not find that the gate counts it as applied. */
static int ask_inside(struct umbra_notifier *n, const struct umbra_range *r)
{
	(void)n;
	told += r->source == UMBRA_SOURCE_MODULE;
	early += r->source == UMBRA_SOURCE_MODULE && umbra_gate_current(gate);
	return 0;
}

/* The ring is not drained between a call and the look after it: the leaf is there, and only the gate says no. */
static void one_by_one(struct area *a, enum kind kind)
{
	struct page *page = &a->page[0];
	const uint64_t before = done[kind];
	enum look found;

	for (unsigned int tries = 0; look(page, true) != GOOD; tries++) {
		HOST_NEED(tries < 1000);
		umbra_module_drain(module);
		if (look(page, false) == MISS)
			fill(page);
	}
	change(a, kind, 0, PAGES);
	if (done[kind] == before)
		HOST_FAIL("nothing was %s", kind_name[kind]);
	HOST_NEED(look(page, true) == CLOSED);
	HOST_NEED(look(page, false) == STALE);
	do
		umbra_module_drain(module);
	while ((found = look(page, true)) == CLOSED);
	HOST_NEED(found == MISS);
	put_back(a, kind);
}

static void gate_is_closed_when_a_call_has_returned(void)
{
	static const struct umbra_notifier_ops ops = { .invalidate_range_start = ask_inside };
	struct umbra_notifier inside = { .ops = &ops, .name = "inside" };

	begin();
	HOST_NEED(!umbra_chain_register(host.chain, &inside));
	one_by_one(&areas[0], DISCARD);
	one_by_one(&areas[0], PROTECT);
	one_by_one(&areas[0], AWAY);
	one_by_one(&areas[0], MAP_OVER);
	one_by_one(&areas[1], PUNCH);
	one_by_one(&areas[1], PROTECT);
	one_by_one(&areas[1], AWAY);
	one_by_one(&areas[2], MAP_OVER);
	umbra_chain_unregister(host.chain, &inside);
	HOST_NEED(told && !early);
	end();
}

static void *drain(void *arg)
{
	(void)arg;
	HOST_NEED(!umbra_module_run(module));
	return NULL;
}

static void race(bool asked, bool drained)
{
	pthread_t readers[READERS], mutators[AREAS], drainer;

	ask_gate = asked;
	begin();
	mutating = AREAS;
	HOST_NEED(!drained || !pthread_create(&drainer, NULL, drain, NULL));
	for (uintptr_t i = 0; i < READERS; i++)
		HOST_NEED(!pthread_create(&readers[i], NULL, read_pages, (void *)i));
	for (unsigned int i = 0; i < AREAS; i++)
		HOST_NEED(!pthread_create(&mutators[i], NULL, mutate, &areas[i]));
	for (unsigned int i = 0; i < AREAS; i++)
		pthread_join(mutators[i], NULL);
	for (unsigned int i = 0; i < READERS; i++)
		pthread_join(readers[i], NULL);
	if (drained) {
		umbra_module_stop(module);
		pthread_join(drainer, NULL);
	}
	printf("# %lu looks, %lu at a closed gate, %lu hits, %lu stale, %lu filled, %lu refused;",
	       (unsigned long)looks, (unsigned long)closed, (unsigned long)hits,
	       (unsigned long)stale, (unsigned long)fills, (unsigned long)refused);
	for (unsigned int i = 0; i < KINDS; i++)
		printf(" %lu %s%s", (unsigned long)done[i], kind_name[i],
		       i + 1 < KINDS ? "," : "\n");
	end();
}

static void no_stale_entry_passes_the_gate(void)
{
	race(!getenv("UMBRA_NO_GATE"), true);
	HOST_NEED(!stale);
	HOST_NEED(hits && closed && fills > AREAS * PAGES && refused);
	for (unsigned int i = 0; i < KINDS; i++)
		HOST_NEED(done[i] || i == PAGEOUT || i == MIGRATE);
}

/* Without draining, too: a leaf goes by a drain only, so every one that was taken away is found. */
static void without_the_gate_stale_entries_are_found(void)
{
	race(false, false);
	HOST_NEED(stale);
}

static const struct test {
	const char *name;
	void (*run)(void);
} tests[] = {
	{ "d81_gate_is_closed_when_a_call_has_returned", gate_is_closed_when_a_call_has_returned },
	{ "d81_no_stale_entry_passes_the_gate", no_stale_entry_passes_the_gate },
	{ "d81_without_the_gate_stale_entries_are_found",
	  without_the_gate_stale_entries_are_found },
};

static bool wanted(const char *name, int nr, char **names)
{
	for (int i = 0; i < nr; i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return nr == 0;
}

/* Prints what kmod_test prints; the sum is of both. Each test is a process of its own. */
int main(int argc, char **argv)
{
	unsigned int failed = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		int status = 0;
		pid_t pid;

		if (!wanted(tests[i].name, argc - 1, argv + 1))
			continue;
		pid = fork();
		if (pid == 0) {
			alarm(300); /* of the clock inside, which may run fast */
			tests[i].run();
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status) {
			failed++;
			printf("not ok - %s (status %#x)\n", tests[i].name, (unsigned int)status);
		} else {
			printf("ok - %s\n", tests[i].name);
		}
	}
	return failed > 0;
}
