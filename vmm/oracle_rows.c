/* SPDX-License-Identifier: BSD-2-Clause */
/* The rows of the catalogue that a process can bring about by itself. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <shadow/events/uapi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <vmm/oracle_machine.h>

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define AT   ORACLE_AT
#define LAST ORACLE_LAST

#ifndef UFFDIO_MOVE
struct uffdio_move {
	__u64 dst, src, len, mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif

static void *at(const struct oracle *o, uint64_t offset)
{
	return (void *)(uintptr_t)(o->mem.v + offset);
}

static int failed(long rc)
{
	return rc < 0 ? -errno : 0;
}

static void store(const struct oracle *o, uint64_t offset, char c)
{
	*(volatile char *)at(o, offset) = c; /* the store itself is the action */
}

/* ---- calls, each by whoever acts ------------------------------------------------------------------- */

static int advise(struct oracle *o, uint64_t offset, uint64_t bytes, int advice)
{
	oracle_names(o, offset, bytes);
	return o->actor == ORACLE_OWN
		       ? umbra_madvise(o->own, oracle_range(o, offset, bytes), advice)
		       : failed(madvise(at(o, offset), bytes, advice));
}

static int protect(struct oracle *o, uint64_t offset, uint64_t bytes, int prot)
{
	oracle_names(o, offset, bytes);
	return o->actor == ORACLE_OWN ? umbra_mprotect(o->own, oracle_range(o, offset, bytes), prot)
				      : failed(mprotect(at(o, offset), bytes, prot));
}

static int punch(struct oracle *o, uint64_t offset, uint64_t bytes)
{
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	oracle_names(o, offset, bytes);
	return o->actor == ORACLE_OWN ? umbra_fallocate(o->own, o->fd, mode, offset, bytes)
				      : failed(fallocate(o->fd, mode, (off_t)offset, (off_t)bytes));
}

static int truncate_to(struct oracle *o, uint64_t bytes)
{
	if (bytes < ORACLE_BYTES)
		oracle_names(o, bytes, ORACLE_BYTES - bytes);
	return o->actor == ORACLE_OWN ? umbra_ftruncate(o->own, o->fd, bytes)
				      : failed(ftruncate(o->fd, (off_t)bytes));
}

static int move(struct oracle *o, uint64_t from, uint64_t bytes, int flags, uint64_t to)
{
	const hva_t dest = { o->mem.v + to };
	hva_t now;

	oracle_names(o, from, bytes);
	oracle_names(o, to, bytes);
	flags |= MREMAP_MAYMOVE | MREMAP_FIXED;
	if (o->actor == ORACLE_OWN)
		return umbra_mremap(o->own, oracle_range(o, from, bytes), bytes, flags, dest, &now);
	return mremap(at(o, from), bytes, bytes, flags, at(o, to)) == MAP_FAILED ? -errno : 0;
}

/* ---- advice ------------------------------------------------------------------------------------------ */

static int discard_page(struct oracle *o)
{
	return advise(o, AT, PAGE, MADV_DONTNEED);
}

static int discard_block(struct oracle *o)
{
	return advise(o, HUGE, HUGE, MADV_DONTNEED);
}

static int discard_four(struct oracle *o)
{
	return advise(o, AT, 4 * PAGE, MADV_DONTNEED);
}

/* A mapping of its own for two pages in the middle. */
static int cut_mappings(struct oracle *o)
{
	return failed(madvise(at(o, AT + PAGE), 2 * PAGE, MADV_DONTDUMP));
}

static int free_page(struct oracle *o)
{
	return advise(o, AT, PAGE, MADV_FREE);
}

static int cool_page(struct oracle *o)
{
	return advise(o, AT, PAGE, MADV_COLD);
}

static int page_out(struct oracle *o)
{
	return advise(o, AT, PAGE, MADV_PAGEOUT);
}

static int page_out_block(struct oracle *o)
{
	return advise(o, HUGE, HUGE, MADV_PAGEOUT);
}

static int remove_page(struct oracle *o)
{
	return advise(o, AT, PAGE, MADV_REMOVE);
}

static int populate(struct oracle *o)
{
	return advise(o, LAST, HUGE, MADV_POPULATE_WRITE);
}

static int guard(struct oracle *o)
{
	return oracle_why(o, advise(o, AT, PAGE, MADV_GUARD_INSTALL),
			  "MADV_GUARD_INSTALL (Linux 6.13)");
}

static int may_collapse(struct oracle *o)
{
	return oracle_why(o, failed(madvise(at(o, 0), ORACLE_BYTES, MADV_HUGEPAGE)),
			  "MADV_HUGEPAGE");
}

static int collapse(struct oracle *o)
{
	return oracle_why(o, advise(o, HUGE, HUGE, MADV_COLLAPSE), "MADV_COLLAPSE");
}

/* ---- mappings ---------------------------------------------------------------------------------------- */

static int protect_and_back(struct oracle *o)
{
	int e = protect(o, AT, PAGE, PROT_READ);

	return e ? e : protect(o, AT, PAGE, PROT_READ | PROT_WRITE);
}

static int protect_three(struct oracle *o)
{
	int e = protect(o, AT, PAGE, PROT_READ);

	e = e ? e : protect(o, AT + PAGE, PAGE, PROT_NONE);
	oracle_refuses(o, AT, 2 * PAGE);
	return e ? e : protect(o, AT + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE);
}

static int lock_page(struct oracle *o)
{
	int e = failed(mlock(at(o, AT), PAGE));

	oracle_names(o, AT, PAGE);
	if (!e)
		e = failed(munlock(at(o, AT), PAGE));
	return oracle_why(o, e, "mlock");
}

static int unmap_four(struct oracle *o)
{
	oracle_names(o, AT, 4 * PAGE);
	return o->actor == ORACLE_OWN ? umbra_munmap(o->own, oracle_range(o, AT, 4 * PAGE))
				      : failed(munmap(at(o, AT), 4 * PAGE));
}

static int map_over(struct oracle *o)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS, prot = PROT_READ | PROT_WRITE;

	oracle_names(o, AT, 4 * PAGE);
	if (o->actor == ORACLE_OWN)
		return umbra_mmap_over(o->own, oracle_range(o, AT, 4 * PAGE), prot, flags, -1, 0);
	return mmap(at(o, AT), 4 * PAGE, prot, flags | MAP_FIXED, -1, 0) == MAP_FAILED ? -errno : 0;
}

static int move_four(struct oracle *o)
{
	return move(o, AT, 4 * PAGE, 0, LAST + 7 * PAGE);
}

static int move_block(struct oracle *o)
{
	return move(o, HUGE, HUGE, 0, LAST);
}

static int move_off_line(struct oracle *o)
{
	return move(o, HUGE, HUGE / 2, 0, LAST + PAGE);
}

static int move_and_keep(struct oracle *o)
{
	return move(o, AT, 4 * PAGE, MREMAP_DONTUNMAP, LAST + 7 * PAGE);
}

static int shrink(struct oracle *o)
{
	const uint64_t left = ORACLE_BYTES - 4 * PAGE;
	hva_t now;

	oracle_names(o, left, 4 * PAGE);
	if (o->actor == ORACLE_OWN)
		return umbra_mremap(o->own, oracle_range(o, 0, ORACLE_BYTES), left, 0, (hva_t){ 0 },
				    &now);
	return mremap(at(o, 0), ORACLE_BYTES, left, 0) == MAP_FAILED ? -errno : 0;
}

/* ---- userfaultfd's ioctls ---------------------------------------------------------------------------- */

static int write_protect(struct oracle *o)
{
	struct uffdio_writeprotect wp = {
		.range = { o->mem.v + AT, PAGE },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	oracle_names(o, AT, PAGE);
	if (o->actor == ORACLE_OWN)
		return umbra_uffd_writeprotect(o->uffd, oracle_range(o, AT, PAGE), true);
	return failed(ioctl(umbra_uffd_fd(o->uffd), UFFDIO_WRITEPROTECT, &wp));
}

static int move_pages_in_place(struct oracle *o)
{
	struct uffdio_move m = { .dst = o->mem.v + LAST, .src = o->mem.v + HUGE, .len = HUGE };
	uint64_t done;
	int e;

	oracle_names(o, HUGE, HUGE);
	oracle_names(o, LAST, HUGE);
	if (o->actor == ORACLE_OWN)
		e = umbra_uffd_move(o->uffd, (hva_t){ m.dst }, (hva_t){ m.src }, HUGE, &done);
	else
		e = failed(ioctl(umbra_uffd_fd(o->uffd), UFFDIO_MOVE, &m));
	return oracle_why(o, e, "UFFDIO_MOVE (Linux 6.8)");
}

static int zero_page(struct oracle *o)
{
	uint64_t done;

	return oracle_why(o, umbra_uffd_zeropage(o->uffd, oracle_range(o, AT, PAGE), &done),
			  "UFFDIO_ZEROPAGE");
}

static int protect_first(struct oracle *o)
{
	return oracle_why(o, umbra_uffd_writeprotect(o->uffd, oracle_range(o, AT, PAGE), true),
			  "UFFDIO_WRITEPROTECT");
}

static int unregister(struct oracle *o)
{
	struct uffdio_range r = { o->mem.v, ORACLE_BYTES };

	oracle_names(o, 0, ORACLE_BYTES);
	return failed(ioctl(umbra_uffd_fd(o->uffd), UFFDIO_UNREGISTER, &r));
}

/* ---- what others and the kernel do ------------------------------------------------------------------- */

static int write_page(struct oracle *o)
{
	oracle_names(o, AT, PAGE);
	store(o, AT, 2);
	return 0;
}

static int end_child(struct oracle *o)
{
	oracle_child_ends(o);
	return 0;
}

static int fork_now(struct oracle *o)
{
	pid_t pid;

	oracle_names(o, 0, ORACLE_BYTES);
	pid = o->actor == ORACLE_OWN ? umbra_fork(o->own) : fork();
	if (pid == 0) {
		/* alive until the parent has looked: what it shares is shared still */
		pause();
		_exit(0);
	}
	if (pid > 0)
		o->child = pid;
	return pid < 0 ? (o->actor == ORACLE_OWN ? (int)pid : -errno) : 0;
}

static int punch_page(struct oracle *o)
{
	return punch(o, AT, PAGE);
}

static int punch_block(struct oracle *o)
{
	return punch(o, HUGE, HUGE);
}

static int punch_half_page(struct oracle *o)
{
	return punch(o, AT + 256, PAGE / 2);
}

static int truncate_file(struct oracle *o)
{
	return truncate_to(o, AT);
}

static int write_text(struct oracle *o, const char *path, const char *text)
{
	return oracle_why(o, oracle_write_text(path, text), "%s", path);
}

static int soft_dirty(struct oracle *o)
{
	oracle_names(o, 0, ORACLE_BYTES);
	oracle_refuses(o, 0, 0);
	return write_text(o, "/proc/self/clear_refs", "4");
}

static int only_looks(struct oracle *o)
{
	unsigned char there[4];
	struct umbra_page page;
	int e = write_text(o, "/proc/self/clear_refs", "1");

	if (!e)
		e = failed(mincore(at(o, AT), 4 * PAGE, there));
	if (!e)
		e = umbra_hostmap_query(o->map, (hva_t){ o->mem.v + AT }, &page);
	return e ? e : failed(madvise(at(o, AT), PAGE, MADV_WILLNEED));
}

static int swap_in(struct oracle *o)
{
	oracle_names(o, AT, PAGE);
	store(o, AT, 3);
	return 0;
}

static int swapped_first(struct oracle *o)
{
	return failed(madvise(at(o, AT), PAGE, MADV_PAGEOUT));
}

static void let_pass(int sig)
{
	(void)sig;
}

/* What the kernel does when the memory of a page begins to fail, or has failed. */
static int lose_page(struct oracle *o, int advice, const char *name)
{
	/* who has it done to its own memory is told by a signal, once */
	const struct sigaction once = { .sa_handler = let_pass, .sa_flags = (int)SA_RESETHAND };
	struct sigaction before;
	int e;

	sigaction(SIGBUS, &once, &before);
	e = advise(o, AT, PAGE, advice);
	sigaction(SIGBUS, &before, NULL);
	return oracle_why(o, e, "%s%s", name,
			  e == -EINVAL ? ": this kernel is without CONFIG_MEMORY_FAILURE" : "");
}

static int soft_offline(struct oracle *o)
{
	return lose_page(o, MADV_SOFT_OFFLINE, "MADV_SOFT_OFFLINE");
}

static int poison(struct oracle *o)
{
	return lose_page(o, MADV_HWPOISON, "MADV_HWPOISON");
}

static int sync_file(struct oracle *o)
{
	oracle_names(o, 0, ORACLE_BYTES);
	return failed(msync(at(o, 0), ORACLE_BYTES, MS_SYNC));
}

/* ---- the table --------------------------------------------------------------------------------------- */

#define O ORACLE_OWN
#define T ORACLE_THREAD
#define P ORACLE_PROCESS
#define K ORACLE_KERNEL
/* clang-format off */
#define ROW(nr, action, memory, actors, class, flags, prepare, act) \
	{ nr, action, ORACLE_##memory, actors, ORACLE_##class, flags, prepare, act, NULL, NULL, NULL }
#define NOT(nr, action, why) { nr, action, ORACLE_ANON, K, ORACLE_NOTIFY, 0, NULL, NULL, why, NULL, NULL }
/* Of the machine: with --disruptive. */
#define BIG(nr, action, by, memory, actors, flags, prepare, act, needs) \
	{ nr, action, ORACLE_##memory, actors, ORACLE_NOTIFY, ORACLE_SETTINGS | (flags), prepare, act, NULL, needs, by }

const struct oracle_row oracle_rows[] = {
	ROW(1, "mprotect 4K of a 2M page to read-only and back", THP, O | T, PROTECT, 0, NULL, protect_and_back),
	NOT(2, "the same, the 2M translation kept", "a choice of the consumer: see row 1"),
	ROW(3, "mlock one page: the mapping is cut", ANON, T, NOTIFY, 0, NULL, lock_page),
	NOT(4, "young callout of 4K", "ageing takes nothing away: the module's tests have it"),
	NOT(5, "young callout of 2M", "ageing takes nothing away: the module's tests have it"),
	NOT(6, "young callout where nothing is", "ageing takes nothing away: the module's tests have it"),
	ROW(7, "MADV_DONTNEED of a hugetlb page", HUGETLB, O | T, CALL, 0, NULL, discard_block),
	ROW(8, "hole punch in hugetlb", HUGETLB_FD, O | P, NOTIFY, 0, NULL, punch_block),
	NOT(9, "mprotect in hugetlb of a GiB", "it takes a GiB of hugetlb: the module's tests have it"),
	ROW(10, "file made shorter", MEMFD, O | P, NOTIFY, 0, NULL, truncate_file),
	NOT(14, "process_mrelease", "its victim is dead: the module's tests have it"),
	ROW(16, "swap-out of a dirty page", ANON, T, NOTIFY, ORACLE_SWAPS, NULL, page_out),
	ROW(17, "MADV_DONTNEED of a page", ANON, O | T, CALL, 0, NULL, discard_page),
	ROW(18, "MADV_DONTNEED of an absent page", ANON, O | T, CALL, ORACLE_HOLE, NULL, discard_page),
	ROW(19, "MADV_DONTNEED of 4K of a 2M page", THP, O | T, CALL, 0, NULL, discard_page),
	ROW(20, "MADV_DONTNEED over three mappings", ANON, O | T, CALL, 0, cut_mappings, discard_four),
	ROW(21, "MADV_FREE", ANON, O | T, CALL, 0, NULL, free_page),
	ROW(22, "MADV_COLD of a page", ANON, O | T, NOTIFY, 0, NULL, cool_page),
	ROW(23, "MADV_COLD of 4K of a 2M page", THP, O | T, NOTIFY, 0, NULL, cool_page),
	ROW(24, "MADV_PAGEOUT of a page", ANON, O | T, NOTIFY, ORACLE_SWAPS, NULL, page_out),
	ROW(25, "MADV_PAGEOUT of a 2M page", THP, O | T, NOTIFY, ORACLE_SWAPS, NULL, page_out_block),
	ROW(26, "MADV_COLLAPSE, anonymous", ANON, O | T, NOTIFY, 0, may_collapse, collapse),
	ROW(27, "MADV_COLLAPSE, memory file", MEMFD, O | T, NOTIFY, ORACLE_NO_UFFD, may_collapse, collapse),
	ROW(28, "MADV_REMOVE", MEMFD, O | T, CALL, 0, NULL, remove_page),
	ROW(29, "MADV_POPULATE_WRITE of fresh memory", ANON, O | T, NOTIFY, ORACLE_HOLE_LAST, NULL, populate),
	ROW(30, "mprotect to read-only, to nothing, to the same", ANON, O | T, PROTECT, 0, NULL, protect_three),
	ROW(31, "munmap in the middle", ANON, O | T, CALL, 0, NULL, unmap_four),
	NOT(32, "munmap and mmap before the event is read", "a race: the tests of userfaultfd have it"),
	ROW(33, "mmap over", ANON, O | T, CALL, 0, NULL, map_over),
	ROW(34, "mremap of 16K", ANON, O | T, CALL, 0, NULL, move_four),
	ROW(35, "mremap of a 2M page, aligned", THP, O | T, CALL, 0, NULL, move_block),
	ROW(36, "mremap of half a 2M page, not aligned", THP, O | T, CALL, 0, NULL, move_off_line),
	ROW(37, "mremap, the old mapping stays", ANON, O | T, CALL, 0, NULL, move_and_keep),
	ROW(38, "mremap, shrinking", ANON, O | T, CALL, 0, NULL, shrink),
	ROW(39, "UFFDIO_WRITEPROTECT of 4K of a 2M page", THP, O | T, PROTECT, ORACLE_NEEDS_UFFD, NULL, write_protect),
	ROW(40, "UFFDIO_MOVE of a 2M page", THP, O | T, NOTIFY, ORACLE_NEEDS_UFFD | ORACLE_HOLE_LAST, NULL, move_pages_in_place),
	ROW(41, "UFFDIO_ZEROPAGE, then a write", ANON, T, NOTIFY, ORACLE_NEEDS_UFFD | ORACLE_HOLE | ORACLE_READ, zero_page, write_page),
	ROW(42, "unregistering a protected range", ANON, T, NOTIFY, ORACLE_NEEDS_UFFD | ORACLE_READ, protect_first, unregister),
	NOT(43, "PAGEMAP_SCAN that protects", "Umbra does not ask for asynchronous write protection: the module's tests have it"),
	ROW(44, "soft-dirty cleared (clear_refs 4)", ANON, T, NOTIFY, 0, NULL, soft_dirty),
	ROW(45, "clear_refs 1, mincore, pagemap, WILLNEED", ANON, T, NOTIFY, 0, NULL, only_looks),
	ROW(46, "MADV_GUARD_INSTALL", ANON, O | T, NOTIFY, 0, NULL, guard),
	ROW(47, "fork, private memory", ANON, O | T, CALL, 0, NULL, fork_now),
	ROW(48, "fork, shared memory", MEMFD, O | T, CALL, 0, NULL, fork_now),
	ROW(49, "write to a page that a child shares", ANON, T, NOTIFY, ORACLE_CHILD | ORACLE_READ, NULL, write_page),
	ROW(50, "the same when the child is gone", ANON, T, NOTIFY, ORACLE_CHILD | ORACLE_READ, end_child, write_page),
	ROW(51, "first write to the zero page", ANON, T, NOTIFY, ORACLE_ZEROES | ORACLE_READ, NULL, write_page),
	ROW(52, "KSM merges two pages", ANON, K, NOTIFY, ORACLE_SETTINGS, oracle_same_twice, oracle_merge),
	BIG(53, "khugepaged collapses", "khugepaged", ANON, K, 0, NULL, oracle_khugepaged, "sets the pace of khugepaged"),
	BIG(54, "kswapd swaps out", "kswapd", ANON, K, ORACLE_SWAPS, NULL, oracle_kswapd, "makes the machine short of memory"),
	BIG(54, "reclaim in a control group, of 2M pages", "cgroup", THP, K, ORACLE_SWAPS, oracle_join_group, oracle_group_reclaim, "makes a control group"),
	ROW(55, "swap-in", ANON, T, NOTIFY, ORACLE_SWAPS, swapped_first, swap_in),
	ROW(56, "migration to another node", ANON, K, NOTIFY, 0, NULL, oracle_other_node),
	BIG(56, "compaction", "compaction", ANON, K, 0, oracle_fragment, oracle_compact, "compacts all memory of the machine"),
	BIG(57, "NUMA balancing, used from another node", "NUMA", ANON, K, 0, NULL, oracle_numa_scan, "switches NUMA balancing on"),
	ROW(58, "hole punch of whole pages", MEMFD, O | T | P, NOTIFY, 0, NULL, punch_page),
	ROW(59, "hole punch inside a page", MEMFD, O | P, NOTIFY, 0, NULL, punch_half_page),
	ROW(60, "hole punch under a private copy", PRIVATE, O | P, NOTIFY, 0, NULL, punch_page),
	BIG(61, "soft offline", "offline", ANON, O | K, 0, NULL, soft_offline, "takes a page out of use until the next boot"),
	BIG(61, "memory failure", "poison", ANON, O | K, 0, NULL, poison, "takes a page out of use until the next boot"),
	ROW(62, "msync of a shared file", FILE, T, NOTIFY, 0, NULL, sync_file),
	NOT(63, "exit, exec", "ends the program that would tell"),
};
/* clang-format on */
const unsigned int oracle_rows_nr = sizeof(oracle_rows) / sizeof(oracle_rows[0]);
