/* SPDX-License-Identifier: BSD-2-Clause */
/* Rows that the kernel does by itself: the machine is brought to it, and waited for. */
#include <errno.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <vmm/oracle_machine.h>

#define PAGE UMBRA_PAGE_SIZE
#define HUGE UMBRA_HUGE_SIZE
#define AT   ORACLE_AT

#define PATIENCE 60 /* seconds, for what the kernel does in its own time */

#define KSM        "/sys/kernel/mm/ksm/"
#define THP        "/sys/kernel/mm/transparent_hugepage/"
#define KHUGEPAGED THP "khugepaged/"
#define NUMA       "/sys/kernel/debug/sched/numa_balancing/"
#define GROUPS     "/sys/fs/cgroup"

static void *at(const struct oracle *o, uint64_t offset)
{
	return (void *)(uintptr_t)(o->mem.v + offset);
}

static int failed(long rc)
{
	return rc < 0 ? -errno : 0;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Pushes, looks, waits @ms, and so on until it has happened. */
static int until(struct oracle *o, bool (*happened)(struct oracle *o),
		 int (*push)(struct oracle *o), long ms)
{
	const uint64_t end = now_ms() + PATIENCE * 1000;
	const struct timespec pause = { 0, ms * 1000000 };
	int e;

	for (;;) {
		e = push ? push(o) : 0;
		oracle_drain(o); /* before a ring is full */
		if (e || happened(o))
			return e;
		if (now_ms() >= end)
			return oracle_why(o, -ETIMEDOUT, "it did not happen within %d s", PATIENCE);
		nanosleep(&pause, NULL);
	}
}

static int sets(struct oracle *o, const char *path, const char *text)
{
	return oracle_why(o, oracle_keeper_sets(o, path, text), "%s", path);
}

/* Other memory than before, in the same place: for what is decided when memory is allocated. */
static int renew(struct oracle *o)
{
	const int e = failed(madvise(at(o, 0), ORACLE_BYTES, MADV_DONTNEED));

	if (!e)
		oracle_touch(o);
	return e;
}

/* Nobody has used it, as far as the kernel knows: it is what it takes first. */
static int grow_old(struct oracle *o)
{
	return oracle_why(o, oracle_write_text("/proc/self/clear_refs", "1"),
			  "/proc/self/clear_refs");
}

static bool some_changed(struct oracle *o)
{
	return oracle_changed_so_far(o) > 0;
}

/* ---- nodes of memory ----------------------------------------------------------------------------------- */

static int node_of(struct oracle *o, uint64_t offset)
{
	void *page = at(o, offset);
	int status = -1;

	if (syscall(SYS_move_pages, 0, 1UL, &page, NULL, &status, 0) < 0)
		return oracle_why(o, -errno, "move_pages");
	return status < 0 ? oracle_why(o, status, "the node of a page") : status;
}

int oracle_other_node(struct oracle *o)
{
	void *page = at(o, AT);
	int status = -1, node = node_of(o, AT);

	oracle_names(o, AT, PAGE);
	if (node < 0)
		return node;
	node = !node;
	if (syscall(SYS_move_pages, 0, 1UL, &page, &node, &status, MPOL_MF_MOVE) < 0)
		return oracle_why(o, -errno, "move_pages: this machine has one node of memory");
	return status == node ? 0 : oracle_why(o, status < 0 ? status : -EBUSY, "move_pages");
}

/* Runs this thread on a processor whose memory is not that of node @node. */
static int run_off_node(struct oracle *o, int node)
{
	cpu_set_t all, one;
	unsigned int here;

	if (sched_getaffinity(0, sizeof(all), &all))
		return -errno;
	for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		if (!sched_setaffinity(0, sizeof(one), &one) && !getcpu(NULL, &here) &&
		    (int)here != node)
			return 0;
	}
	return oracle_why(o, -ENODEV, "this machine has one node of memory with processors");
}

/* It comes by what a thread has computed: this one does nothing but use the memory. */
static int use_all(struct oracle *o)
{
	for (unsigned int n = 0; n < 64; n++) {
		for (uint64_t offset = 0; offset < ORACLE_BYTES; offset += PAGE)
			(void)*(volatile char *)at(o, offset);
	}
	return 0;
}

static void *use_from_afar(void *arg)
{
	struct oracle *o = arg;
	int e = node_of(o, AT);

	e = e < 0 ? e : run_off_node(o, e);
	return (void *)(intptr_t)(e ? e : until(o, some_changed, use_all, 0));
}

/* Its entries are taken away to see who uses them, and pages that are used from another node move there. */
int oracle_numa_scan(struct oracle *o)
{
	pthread_t id;
	void *rc;
	int e;

	oracle_names(o, 0, ORACLE_BYTES);
	e = sets(o, "/proc/sys/kernel/numa_balancing", "1");
	if (e)
		return e;
	/* faster, where it can be had */
	oracle_keeper_sets(o, NUMA "scan_delay_ms", "10");
	oracle_keeper_sets(o, NUMA "scan_period_min_ms", "10");
	/* a new thread: it begins with these */
	if (pthread_create(&id, NULL, use_from_afar, o))
		return -EAGAIN;
	pthread_join(id, &rc);
	return (int)(intptr_t)rc;
}

/* ---- KSM ------------------------------------------------------------------------------------------------- */

/* Two pages with the same contents, which nothing else has. */
int oracle_same_twice(struct oracle *o)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	memset(at(o, AT), 0x5a, PAGE);
	memcpy(at(o, AT), &now, sizeof(now));
	memcpy(at(o, AT + 8 * PAGE), at(o, AT), PAGE);
	return oracle_why(o, failed(madvise(at(o, HUGE), HUGE, MADV_MERGEABLE)),
			  "MADV_MERGEABLE: the kernel has no KSM");
}

static bool merged(struct oracle *o)
{
	struct umbra_page a, b;

	return !umbra_hostmap_query(o->map, (hva_t){ o->mem.v + AT }, &a) &&
	       !umbra_hostmap_query(o->map, (hva_t){ o->mem.v + AT + 8 * PAGE }, &b) &&
	       a.flags & b.flags & UMBRA_PAGE_PRESENT && a.host_pfn == b.host_pfn;
}

int oracle_merge(struct oracle *o)
{
	int e;

	oracle_names(o, HUGE, HUGE);
	if (!umbra_hostmap_has_pfns(o->map))
		return oracle_why(o, -EACCES, "the frames of pages (CAP_SYS_ADMIN)");
	e = sets(o, KSM "pages_to_scan", "2000");
	e = e ? e : sets(o, KSM "sleep_millisecs", "10");
	e = e ? e : sets(o, KSM "run", "1");
	return e ? e : until(o, merged, NULL, 20);
}

/* ---- khugepaged ------------------------------------------------------------------------------------------ */

static bool collapsed(struct oracle *o)
{
	struct umbra_page pages[UMBRA_HUGE_PAGES];

	if (umbra_hostmap_query_range(o->map, (hva_t){ o->mem.v + HUGE }, pages, UMBRA_HUGE_PAGES))
		return false;
	for (uint64_t i = 0; i < UMBRA_HUGE_PAGES; i++) {
		if (!(pages[i].flags & UMBRA_PAGE_PRESENT) ||
		    pages[i].host_pfn != pages[0].host_pfn + i)
			return false;
	}
	return pages[0].host_pfn % UMBRA_HUGE_PAGES == 0;
}

int oracle_khugepaged(struct oracle *o)
{
	char text[32] = "";
	int e = 0;

	oracle_names(o, HUGE, HUGE);
	if (oracle_read_text(THP "enabled", text, sizeof(text)))
		return oracle_why(o, -ENOTSUP, "this kernel has no transparent hugepages");
	if (!strcmp(text, "never"))
		e = sets(o, THP "enabled", "madvise");
	e = e ? e : sets(o, KHUGEPAGED "scan_sleep_millisecs", "10");
	e = e ? e : sets(o, KHUGEPAGED "alloc_sleep_millisecs", "10");
	e = e ? e : sets(o, KHUGEPAGED "pages_to_scan", "4096");
	e = e ? e : sets(o, KHUGEPAGED "defrag", "1");
	e = e ? e
	      : oracle_why(o, failed(madvise(at(o, HUGE), HUGE, MADV_HUGEPAGE)), "MADV_HUGEPAGE");
	return e ? e : until(o, collapsed, NULL, 20);
}

/* ---- reclaim --------------------------------------------------------------------------------------------- */

/* A number of /proc/vmstat. */
static unsigned long vmstat(const char *what)
{
	FILE *f = fopen("/proc/vmstat", "re");
	unsigned long n = 0, found = 0;
	char name[64];

	while (f && fscanf(f, "%63s %lu", name, &n) == 2) {
		if (!strcmp(name, what))
			found = n;
	}
	if (f)
		fclose(f);
	return found;
}

static unsigned int absent(struct oracle *o)
{
	static struct umbra_page now[ORACLE_PAGES];
	unsigned int n = 0;

	if (umbra_hostmap_query_range(o->map, o->mem, now, ORACLE_PAGES))
		return 0;
	for (uint64_t i = 0; i < ORACLE_PAGES; i++)
		n += (now[i].flags & UMBRA_PAGE_SWAPPED) != 0;
	return n;
}

/* Not on its way to another frame, either: that is absent for a moment. */
static bool swapped(struct oracle *o)
{
	const struct timespec moment = { 0, 50 * 1000 * 1000 };

	return absent(o) && !nanosleep(&moment, NULL) && absent(o) &&
	       vmstat("pswpout") > o->vmstat_before[0];
}

static bool swapped_by_kswapd(struct oracle *o)
{
	return swapped(o) && vmstat("pgsteal_kswapd") > o->vmstat_before[1];
}

bool oracle_host_swaps(void)
{
	char line[128];
	int lines = 0;
	FILE *f = fopen("/proc/swaps", "re");

	while (f && fgets(line, sizeof(line), f))
		lines++;
	if (f)
		fclose(f);
	return lines > 1;
}

/* A process beside takes the memory of the node where ours is. */
int oracle_kswapd(struct oracle *o)
{
	int e, node;

	oracle_names(o, 0, ORACLE_BYTES);
	node = node_of(o, AT);
	o->vmstat_before[0] = vmstat("pswpout");
	o->vmstat_before[1] = vmstat("pgsteal_kswapd");
	e = node < 0 ? node : grow_old(o);
	e = e ? e : sets(o, "/proc/sys/vm/swappiness", "200"); /* not the page cache */
	e = e ? e : oracle_why(o, oracle_keeper_hogs(o, node), "a process that makes memory short");
	return e ? e : until(o, swapped_by_kswapd, NULL, 20);
}

/* The file that moves a process back into the control group of this one; version 2 is the line that begins with "0::". */
static int own_group(char *path, size_t size)
{
	char line[256];
	FILE *f = fopen("/proc/self/cgroup", "re");
	int e = -ENOENT;

	while (f && e == -ENOENT && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		if (strncmp(line, "0::/", 4))
			continue;
		e = snprintf(path, size, GROUPS "%s%scgroup.procs", line + 3, line[4] ? "/" : "") <
				    (int)size
			    ? 0
			    : -ENAMETOOLONG;
	}
	if (f)
		fclose(f);
	return e;
}

static void group_file(char *path, size_t size, const char *name)
{
	snprintf(path, size, GROUPS "/umbra-oracle-%d%s%s", (int)getpid(), name[0] ? "/" : "",
		 name);
}

/* A control group of its own, for what is allocated from now on. */
int oracle_join_group(struct oracle *o)
{
	char path[96], before[ORACLE_PATH], pid[16], there[160] = "";
	int e = own_group(before, sizeof(before));

	if (e == -ENAMETOOLONG)
		return oracle_why(o, e, "the path of the control group that vmm is in");
	if (e || oracle_read_text(GROUPS "/cgroup.controllers", there, sizeof(there)) ||
	    !strstr(there, "memory"))
		return oracle_why(o, -ENOTSUP,
				  "no memory controller in " GROUPS " (cgroup version 2)");
	oracle_read_text(GROUPS "/cgroup.subtree_control", there, sizeof(there));
	if (!strstr(there, "memory"))
		e = oracle_keeper_writes(o, GROUPS "/cgroup.subtree_control", "+memory",
					 GROUPS "/cgroup.subtree_control", "-memory");
	group_file(path, sizeof(path), "");
	e = e ? e : oracle_keeper_makes(o, path);
	group_file(path, sizeof(path), "cgroup.procs");
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	e = e ? e : oracle_keeper_writes(o, path, pid, before, pid);
	e = oracle_why(o, e, "a memory control group of its own");
	return e ? e : renew(o);
}

static int shrink_group(struct oracle *o)
{
	char path[96];
	int e;

	group_file(path, sizeof(path), "memory.reclaim");
	e = oracle_keeper_writes(o, path, "4M", NULL, NULL);
	return e == -EAGAIN ? 0 : oracle_why(o, e, "memory.reclaim (Linux 5.19)"); /* some */
}

int oracle_group_reclaim(struct oracle *o)
{
	const int e = grow_old(o);

	oracle_names(o, 0, ORACLE_BYTES);
	o->vmstat_before[0] = vmstat("pswpout");
	return e ? e : until(o, swapped, shrink_group, 20);
}

/* ---- compaction ---------------------------------------------------------------------------------------------- */

/* A page of the ballast. */
struct brick {
	uint64_t pfn;
	char *at;
};

static int by_frame(const void *a, const void *b)
{
	const struct brick *x = a, *y = b;

	return (x->pfn > y->pfn) - (x->pfn < y->pfn);
}

/* Of bricks [@from, @to), @n: of every two runs of @run frames one, so that no large block of free memory comes of it. */
static void take_out(const struct brick *b, uint64_t from, uint64_t to, uint64_t n, uint64_t run)
{
	for (uint64_t i = from; i < to && n; i++) {
		if (b[i].pfn / run % 2)
			continue;
		madvise(b[i].at, PAGE, MADV_DONTNEED);
		n--;
	}
}

static int look_at_bricks(struct oracle *o, struct brick *bricks)
{
	const uint64_t n = ORACLE_BALLAST / PAGE;
	struct umbra_page *pages = calloc(n, sizeof(*pages));
	int e = pages ? umbra_hostmap_query_range(o->map, (hva_t){ (uintptr_t)o->ballast }, pages,
						  n)
		      : -ENOMEM;

	for (uint64_t i = 0; i < n && !e; i++)
		bricks[i] = (struct brick){ pages[i].host_pfn, o->ballast + i * PAGE };
	free(pages);
	qsort(bricks, n, sizeof(*bricks), by_frame);
	return e;
}

/*
 * Compaction moves pages up, into free ones among others in use. So: much memory of one node; a few of its lowest frames
 * are made free, which ours get, and then half of its upper half. In runs: compaction ends where it finds no place for
 * something larger than a page.
 */
static int lie_low(struct oracle *o, struct brick *bricks)
{
	const uint64_t n = ORACLE_BALLAST / PAGE;
	int e;

	o->ballast = mmap(NULL, ORACLE_BALLAST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	if (o->ballast == MAP_FAILED) {
		o->ballast = NULL;
		return -ENOMEM;
	}
	madvise(o->ballast, ORACLE_BALLAST, MADV_NOHUGEPAGE);
	for (uint64_t i = 0; i < ORACLE_BALLAST; i += PAGE)
		*(volatile char *)(o->ballast + i) = 1;
	e = look_at_bricks(o, bricks);
	e = e ? e : failed(madvise(at(o, 0), ORACLE_BYTES, MADV_DONTNEED));
	if (e)
		return e;
	take_out(bricks, 0, n / 2, 2 * ORACLE_PAGES, 1);
	oracle_touch(o);
	take_out(bricks, n / 2, n, n, 64);
	return 0;
}

int oracle_fragment(struct oracle *o)
{
	struct brick *bricks = calloc(ORACLE_BALLAST / PAGE, sizeof(*bricks));
	const int node = node_of(o, AT);
	const unsigned long mask = 1UL << (node & 63);
	int e = node < 0 ? node : bricks ? 0 : -ENOMEM;

	e = e ? e : failed(syscall(SYS_set_mempolicy, MPOL_BIND, &mask, 8 * sizeof(mask)));
	if (!e) {
		e = lie_low(o, bricks);
		syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0UL);
	}
	free(bricks);
	return oracle_why(o, e, "memory full of holes");
}

static int compact_now(struct oracle *o)
{
	return oracle_why(o,
			  oracle_keeper_writes(o, "/proc/sys/vm/compact_memory", "1", NULL, NULL),
			  "/proc/sys/vm/compact_memory");
}

int oracle_compact(struct oracle *o)
{
	oracle_names(o, 0, ORACLE_BYTES);
	return until(o, some_changed, compact_now, 20);
}
