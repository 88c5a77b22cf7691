/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * tour: the demonstration. A walk through what the host can do to memory while a guest uses it,
 * told by the guest and checked by it. n=CALLS while all vCPUs write, for a slow host
 */
#include "guest.h"

static void section(const char *title)
{
	static unsigned int n;

	say("\n%u. %s\n", ++n, title);
}

/* @done: what the host then has done, as a sentence. */
static bool possible(int64_t ret, const char *done)
{
	if (ret == -E_NOTSUP || ret == -E_INVAL) {
		say("   not possible with this memory, left out: %s\n", done);
		return false;
	}
	if (ret < 0)
		return check(false, "%s: error %ld", done, -ret);
	return check(true, "%s", done);
}

static uint64_t leaves(struct range r, uint64_t *big)
{
	uint64_t val = 0;

	host_call(GUEST_CALL_LEAVES, r.at, r.len, 0, &val);
	*big = val >> 32;
	return val & 0xffffffff;
}

/* What the tables hold for @r: small and large translations. */
static uint64_t tell_leaves(struct range r, uint64_t *big)
{
	uint64_t small = leaves(r, big);

	say("   Umbra's tables now hold %lu translations of 4K and %lu of 2M for it%s\n", small,
	    *big, chaotic() ? " (chaos takes some away again)" : "");
	return small;
}

static void first_touch(struct range r)
{
	uint64_t pages = r.len / PAGE, zero = 0, begin, ns, small, big;

	section("First touch: every translation is installed when it is first needed");
	begin = clock_ns();
	for (uint64_t a = r.at; a < r.at + r.len; a += PAGE) {
		zero += load(a) == 0;
		store(a, 1);
	}
	ns = clock_ns() - begin;
	say("   %lu pages of 4K touched in %lu us\n", pages, ns / 1000);
	small = tell_leaves(r, &big);
	check(zero == pages, "fresh memory reads zero");
	if (!chaotic())
		check(small + 512 * big == pages, "one translation for each page, none besides");
	fill(r, 1);
	check(wrong_words(r, 1) == 0, "%lu KiB written and read back", r.len >> 10);
}

static void discard(struct range r)
{
	struct range gone = { r.at + r.len / 2, host_page() };
	struct range before = { r.at, r.len / 2 };

	section("Discard: the host drops pages while the guest holds translations of them");
	if (!possible(host(GUEST_CALL_DISCARD, gone.at, gone.len),
		      "the host dropped a page in the middle"))
		return;
	check(nonzero_words(gone) == 0, "what was discarded reads zero, not its old contents");
	check(wrong_words(before, 1) == 0, "what lies before it is unchanged");
	fill(gone, 1);
	check(wrong_words(gone, 1) == 0, "written again, it stays");
}

static void protect(struct range r)
{
	uint64_t pages = r.len / host_page(), before, caught;

	section("Protect: the host takes write permission away");
	before = (uint64_t)host(GUEST_CALL_PROTECT_HITS, 0, 0);
	if (!possible(host(GUEST_CALL_PROTECT, r.at, r.len), "the host made all of it read-only"))
		return;
	check(wrong_words(r, 1) == 0, "the guest can still read");
	fill(r, 2);
	caught = (uint64_t)host(GUEST_CALL_PROTECT_HITS, 0, 0) - before;
	check(chaotic() ? caught >= pages : caught == pages,
	      "the first write to each of %lu pages was caught, once", pages);
	check(wrong_words(r, 2) == 0, "and was carried out");
}

static void remap(struct range r)
{
	section("Remap: the host moves the memory away and back");
	if (!possible(host(GUEST_CALL_REMAP, r.at, r.len),
		      "the host moved it to another address and back"))
		return;
	check(wrong_words(r, 2) == 0, "contents moved along");
}

static void split_collapse(struct range r)
{
	uint64_t small, big;

	section("Collapse and split: 4K pages become one of 2M and come apart again");
	fill(r, 3);
	if (possible(host(GUEST_CALL_COLLAPSE, r.at, r.len), "the host made one 2M page of it")) {
		check(wrong_words(r, 3) == 0, "contents unchanged by the collapse");
		fill(r, 4);
		small = tell_leaves(r, &big);
		if (!guest_boot->sees_2m)
			check(big == 0,
			      "this host does not tell 2M pages apart: none is mapped by 2M");
		else if (!chaotic())
			check(big == r.len / BLOCK, "each 2M is one translation");
	} else {
		fill(r, 4);
	}
	if (possible(host(GUEST_CALL_SPLIT, r.at, r.len), "the host maps it by 4K again")) {
		check(wrong_words(r, 4) == 0, "contents unchanged by the split");
		fill(r, 5);
		small = tell_leaves(r, &big);
		if (!chaotic())
			check(small == r.len / PAGE && big == 0, "each page has its own again");
	} else {
		fill(r, 5);
	}
	check(wrong_words(r, 5) == 0, "contents right at the end");
}

static void swap(struct range r)
{
	int64_t ret;

	section("Swap: pages leave memory and come back");
	if (!guest_boot->can_swap) {
		say("   this host has no swap: left out\n");
		return;
	}
	fill(r, 6);
	ret = host(GUEST_CALL_SWAPOUT, r.at, r.len);
	if (!possible(ret, "the host swapped it out"))
		return;
	say("   %ld of %lu pages left memory\n", ret, r.len / PAGE);
	check(wrong_words(r, 6) == 0, "they came back with their contents");
}

static void fork_cow(struct range r)
{
	uint64_t old, new, seen = 0;
	bool shared = guest_boot->backing == GUEST_BACKING_MEMFD;
	int64_t child;

	section("Fork: the host process has a child that shares the guest's memory");
	fill(r, 7);
	old = sum(r);
	child = host(GUEST_CALL_FORK, r.at, r.len);
	if (!possible(child, "the host process forked"))
		return;
	store(r.at, 0);
	new = sum(r);
	if (!check(host_call(GUEST_CALL_FORK_SUM, r.at, r.len, (uint64_t)child, &seen) == 0,
		   "the child told what it sees"))
		return;
	check(seen == (shared ? new : old),
	      shared ? "shared memory: the guest's write is seen by the child"
		     : "private memory: the guest's write was copied, the child kept the old page");
	check(sum(r) == new, "the guest sees its own write");
}

/* ---- all the while ---- */

/*
 * The rest of the memory is in use during the whole tour, so that whatever chaos does meets a running guest: a house,
 * which must keep every word, and an arena, in which the host may discard at any time.
 */
static struct range arena, house;
static uint64_t worked, wrong, foreign, lost;

/* One page of each: the values of the round before are there, and those of this round are written. */
static void work(void)
{
	uint64_t house_pages = house.len / PAGE, arena_pages = arena.len / PAGE;
	uint64_t h = house.at + worked % house_pages * PAGE, round = worked / house_pages + 1;
	uint64_t a = arena.at + worked % arena_pages * PAGE, turn = worked / arena_pages + 1;

	for (uint64_t i = 0; i < PAGE; i += 8) {
		uint64_t old = load(a + i);

		wrong += load(h + i) != (round > 1 ? pattern(h + i, round - 1) : 0);
		store(h + i, pattern(h + i, round));
		foreign += old && (turn == 1 || old != pattern(a + i, turn - 1));
		lost += !old && turn > 1;
		store(a + i, pattern(a + i, turn));
	}
	worked++;
}

static void all_the_while(void)
{
	section("All the while: the rest of the memory was in use");
	if (!house.len || !arena.len) {
		say("   too little memory: left out\n");
		return;
	}
	while (worked < 2 * house.len / PAGE)
		work();
	say("   %lu times a page of %lu MiB was read back and written anew\n", worked,
	    house.len >> 20);
	check(wrong == 0, "%lu words of it were wrong", wrong);
	say("   as many times a page of %lu MiB that the host may empty at any time (an arena)\n",
	    arena.len >> 20);
	say("   %lu KiB of it were found emptied by the host\n", lost * 8 >> 10);
	check(foreign == 0, "%lu words of it were neither what was written nor zero", foreign);
	if (!chaotic())
		check(lost == 0, "nobody emptied it without chaos");
}

/* ---- all vCPUs at once ---- */
static struct range field;
static uint32_t work_on, go, stop, left;
static uint64_t added[8];

static void hammer(unsigned int cpu, struct rng *rng)
{
	uint64_t page = field.at + rng_below(rng, field.len / PAGE) * PAGE;

	__atomic_fetch_add((uint64_t *)page, 1, __ATOMIC_RELAXED);
	added[cpu]++;
}

void guest_secondary(unsigned int cpu)
{
	struct rng rng = rng_seed(cpu);

	/* Running, not parked: each invalidation of the story before has to reach them. */
	while (!__atomic_load_n(&go, __ATOMIC_ACQUIRE)) {
		if (cpu == 1 && __atomic_load_n(&work_on, __ATOMIC_ACQUIRE))
			work();
		for (int i = 0; i < 1000; i++)
			cpu_relax();
	}
	while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE))
		hammer(cpu, &rng);
	__atomic_add_fetch(&left, 1, __ATOMIC_RELEASE);
	cpu_park();
}

static void together(void)
{
	static const enum guest_hostcall_nr calls[] = { GUEST_CALL_REMAP, GUEST_CALL_PROTECT };
	struct rng rng = rng_seed(0);
	uint64_t calls_wanted = arg_number("n", 150), done = 0, counted = 0, total = 0;

	section("All vCPUs add to the same counters while the host remaps and protects them");
	memset((void *)field.at, 0, field.len);
	__atomic_store_n(&go, 1, __ATOMIC_RELEASE);
	for (uint64_t i = 0; i < calls_wanted; i++) {
		done += host(calls[i & 1], field.at, field.len) >= 0;
		for (int k = 0; k < 1000; k++)
			hammer(0, &rng);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
	while (__atomic_load_n(&left, __ATOMIC_ACQUIRE) + 1 < guest_boot->vcpus)
		cpu_relax();
	for (uint64_t a = field.at; a < field.at + field.len; a += PAGE)
		counted += load(a);
	for (unsigned int cpu = 0; cpu < guest_boot->vcpus; cpu++)
		total += added[cpu];
	say("   %u vCPUs, the memory remapped or protected %lu times, %lu additions\n",
	    guest_boot->vcpus, done, total);
	check(done > 0 && counted == total, "no addition was lost or doubled");
}

/* ---- accessed and dirty ---- */
static void accessed_dirty(struct range r)
{
	static uint64_t told[2 * 512 / 64];
	uint64_t pages = r.len / PAGE, words = (pages + 63) / 64, accessed = 0, dirty = 0;
	uint64_t missing = 0, small, big;

	section("Accessed and dirty: the host asks which pages the guest read and wrote");
	if (pages > 512)
		pages = 512;
	fill((struct range){ r.at, pages * PAGE }, 8);
	small = leaves(r, &big);
	if (!possible(host(GUEST_CALL_LOG_RESET, r.at, pages * PAGE),
		      "the host forgot which pages were used so far"))
		return;
	for (uint64_t i = 0; i < pages; i += 3)
		load(r.at + i * PAGE);
	for (uint64_t i = 0; i < pages; i += 7)
		store(r.at + i * PAGE, i);
	words = (pages + 63) / 64;
	if (!possible(host_call(GUEST_CALL_LOG_READ, r.at, pages * PAGE, (uint64_t)told, NULL),
		      "the host told which pages were used since"))
		return;
	__asm__ __volatile__("" : "+m"(told));
	for (uint64_t i = 0; i < pages; i++) {
		bool a = told[i / 64] >> i % 64 & 1, d = told[words + i / 64] >> i % 64 & 1;

		accessed += a;
		dirty += d;
		missing += (!a && (i % 3 == 0 || i % 7 == 0)) || (!d && i % 7 == 0);
	}
	say("   of %lu pages the guest used %lu and wrote %lu of them; the host says: %lu and %lu\n",
	    pages, (pages + 2) / 3 + (pages + 6) / 7 - (pages + 20) / 21, (pages + 6) / 7, accessed,
	    dirty);
	if (dirty > (pages + 6) / 7)
		say("   (a translation of 2M has one mark for all of its 512 pages)\n");
	check(missing == 0, "the host missed none of them");
	if (big == 0 && small && !chaotic())
		check(accessed == (pages + 2) / 3 + (pages + 6) / 7 - (pages + 20) / 21 &&
			      dirty == (pages + 6) / 7,
		      "and named none too many");
}

void guest_main(void)
{
	static const char *const kinds[] = { "4K", "transparent huge", "hugetlb" };
	bool small = guest_boot->page_kind == GUEST_PAGES_4K;
	struct range r = memory_take(small ? 256 * PAGE : BLOCK, small ? PAGE : BLOCK);
	struct range block = memory_take(BLOCK, BLOCK);
	uint64_t most = guest_boot->page_kind == GUEST_PAGES_HUGETLB ? BLOCK : 4 * BLOCK;
	uint64_t begin = clock_ns();
	int64_t violations;

	say("Umbra tour: %lu MiB, %u vCPUs, %s %s pages%s\n", guest_boot->memory >> 20,
	    guest_boot->vcpus, guest_boot->backing ? "memfd" : "anonymous",
	    kinds[guest_boot->page_kind % 3], chaotic() ? ", under chaos" : "");
	/* a say() holds one or two lines */
	say("This guest runs in ring 3 on page tables that Umbra made. The processor walks them:\n");
	say("an address without an entry faults to Umbra, which asks the host for the page and\n");
	say("installs it; before the host changes a page, Umbra takes the entry from every vCPU.\n");
	if (chaotic())
		say("Chaos: meanwhile the host also acts by itself, anywhere in this memory.\n");
	arena = memory_take(most, BLOCK);
	house = memory_take(8 * most, BLOCK);
	if (house.len) {
		check(host(GUEST_CALL_ARENA, arena.at, arena.len) == 0,
		      "the host knows which memory it may empty");
		__atomic_store_n(&work_on, 1, __ATOMIC_RELEASE);
	}
	first_touch(r);
	discard(r);
	protect(r);
	remap(r);
	if (block.len)
		split_collapse(block);
	swap(r);
	fork_cow(r);
	field = (struct range){ r.at, host_page() == PAGE ? 64 * PAGE : r.len };
	together();
	all_the_while();
	accessed_dirty(r);
	section("The host holds its tables against the kernel's");
	violations = host(GUEST_CALL_CHECK, 0, 0);
	check(violations == 0, "%ld entries are wrong", violations);
	say("\nTour: %u checks, %u failed, %lu ms.\n", checks_done(), checks_failed(),
	    (clock_ns() - begin) / 1000000);
	guest_exit(checks_failed() ? 1 : 0);
}
