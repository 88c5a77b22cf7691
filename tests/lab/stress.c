/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Watches a load nobody here wrote through the kernel module: stress SECONDS MIB PROGRAM [ARGS...]. PROGRAM runs in a
 * memory cgroup of MIB, and its processes are subscribed by number, whoever they are. Every so often all are frozen:
 * then the counters must balance, records and counters must agree, and of the pages that the kernel had mapped when it
 * was last asked, those that no record names must be mapped as they were, unless records were lost and it said so.
 *
 * Exit: 0 all held; 1 not, or too little was seen; 77 cannot run here; 2 usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <abi/notifier_ring.h>

#define PAGE        4096UL
#define SPACE_END   0x7ffffffff000UL
#define SUBS        24
#define MIRROR      8192 /* pages remembered of one process */
#define OPEN        256  /* invalidations open at a time in one process */
#define RING_ORDER  14
#define SMALL_ORDER 4 /* every fourth: it does lose records */
#define CGROUP      "/sys/fs/cgroup/umbra-stress"

/* What pagemap says of a page that must not change unannounced: there, and which frame. */
#define FRAME_BITS (1ULL << 63 | 1ULL << 62 | ((1ULL << 55) - 1))
#define PRESENT    (1ULL << 63)

struct page {
	uint64_t va, frame;
	bool announced;
};

struct sub {
	pid_t pid;
	int fd, pagemap;
	struct umbra_ntf_state *state;
	struct umbra_ntf_consumer *consumer;
	size_t state_bytes, consumer_bytes;
	struct umbra_ring_consumer ring;
	uint64_t popped, starts, lost;
	bool orderly; /* nothing was lost since it was last quiet: records can be held against each other */
	struct {
		uint64_t start, end;
		bool owner;
	} open[OPEN];
	unsigned int nr_open, nr_pages;
	struct page pages[MIRROR];
};

static struct sub subs[SUBS];
static unsigned int attached, failures;

/* What was seen, so that a run in which nothing happened does not pass. */
static struct {
	uint64_t records, lost, rounds, unfrozen, dead, cut_off, kept, changed, changed_lost;
	uint64_t kthread, reclaim, by_owner, young;
	uint64_t counted, unannounced;
} all;

__attribute__((format(printf, 1, 2))) static void wrong(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("not ok - ");
	vprintf(format, args);
	printf("\n");
	va_end(args);
	failures++;
}

static _Noreturn void cannot(const char *what)
{
	printf("SKIP: %s: %s\n", what, strerror(errno));
	exit(77);
}

static bool put(const char *file, const char *text)
{
	const int fd = open(file, O_WRONLY | O_CLOEXEC);
	const bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	close(fd);
	return done;
}

/* ---- the records ------------------------------------------------------------------------------ */

static void announce(struct sub *s, uint64_t start, uint64_t end)
{
	unsigned int lo = 0, hi = s->nr_pages;

	while (lo < hi) {
		const unsigned int mid = lo + (hi - lo) / 2;

		if (s->pages[mid].va + PAGE <= start)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < s->nr_pages && s->pages[lo].va < end; lo++)
		s->pages[lo].announced = true;
}

static void take_start(struct sub *s, const struct umbra_ntf_record *rec)
{
	announce(s, rec->start, rec->end);
	if (!s->orderly)
		return;
	if (rec->begun != ++s->starts)
		wrong("pid %d: start number %" PRIu64 " says that it is number %" PRIu64, s->pid,
		      s->starts, (uint64_t)rec->begun);
	if (s->nr_open == OPEN)
		return wrong("pid %d: %u invalidations open", s->pid, OPEN);
	s->open[s->nr_open].start = rec->start;
	s->open[s->nr_open].end = rec->end;
	s->open[s->nr_open++].owner = rec->flags & UMBRA_NTF_OWNER;
}

static void take_end(struct sub *s, const struct umbra_ntf_record *rec)
{
	if (!s->orderly)
		return;
	for (unsigned int i = s->nr_open; i-- > 0;) {
		if (s->open[i].start != rec->start || s->open[i].end != rec->end)
			continue;
		s->open[i] = s->open[--s->nr_open];
		return;
	}
	wrong("pid %d: an end of [%#" PRIx64 ", %#" PRIx64 ") without its start", s->pid,
	      (uint64_t)rec->start, (uint64_t)rec->end);
}

static void take(struct sub *s, const struct umbra_ntf_record *rec)
{
	s->popped++;
	all.records++;
	all.kthread += !!(rec->flags & UMBRA_NTF_KTHREAD);
	all.reclaim += !!(rec->flags & UMBRA_NTF_RECLAIM);
	all.by_owner += !!(rec->flags & UMBRA_NTF_OWNER);
	switch (rec->kind) {
	case UMBRA_NTF_START: take_start(s, rec); break;
	case UMBRA_NTF_END: take_end(s, rec); break;
	case UMBRA_NTF_RELEASE:
		s->nr_pages = 0;
		s->starts++;
		break;
	default: wrong("pid %d: a record of kind %u", s->pid, rec->kind);
	}
}

/* Records that follow a lost one are in the ring later than the loss is raised: it is looked at before each. */
static void drain(struct sub *s)
{
	struct umbra_ntf_record rec = { 0 };
	uint64_t lost;
	bool more;

	do {
		more = umbra_ring_pop(&s->ring, &rec) != 0;
		lost = __atomic_load_n(&s->state->lost, __ATOMIC_ACQUIRE);
		if (lost != s->lost) {
			all.lost += lost - s->lost;
			s->lost = lost;
			s->orderly = false;
		}
		if (more)
			take(s, &rec);
	} while (more);
}

/* ---- what the kernel has mapped --------------------------------------------------------------- */

static uint64_t frame_of(const struct sub *s, uint64_t va)
{
	uint64_t entry = 0;

	if (pread(s->pagemap, &entry, sizeof(entry), (off_t)(va / PAGE * sizeof(entry))) !=
	    sizeof(entry))
		return 0;
	return entry & FRAME_BITS;
}

static void remember_range(struct sub *s, uint64_t from, uint64_t to, unsigned int most)
{
	uint64_t entries[512];

	while (from < to && most > 0 && s->nr_pages < MIRROR) {
		const uint64_t left = (to - from) / PAGE, n = left < 512 ? left : 512;
		const ssize_t got = pread(s->pagemap, entries, n * sizeof(entries[0]),
					  (off_t)(from / PAGE * sizeof(entries[0])));

		if (got <= 0)
			return;
		for (uint64_t i = 0; i < (uint64_t)got / 8 && most > 0 && s->nr_pages < MIRROR; i++)
			if (entries[i] & PRESENT) {
				s->pages[s->nr_pages++] =
					(struct page){ .va = from + i * PAGE,
						       .frame = entries[i] & FRAME_BITS };
				most--;
			}
		from += n * PAGE;
	}
}

/* While nothing is open and nothing begins: else nothing is remembered this time. */
static void remember(struct sub *s)
{
	struct umbra_ntf_snapshot before, after;
	unsigned long from, to;
	char file[64], line[512];
	FILE *f;

	s->nr_pages = 0;
	snprintf(file, sizeof(file), "/proc/%d/maps", s->pid);
	f = fopen(file, "r");
	if (!f)
		return;
	umbra_ntf_read(s->state, &before);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2 && to <= SPACE_END)
			remember_range(s, from, to, MIRROR / 4);
	fclose(f);
	umbra_ntf_read(s->state, &after);
	if (before.begun != before.ended || after.begun != before.begun || after.dead)
		s->nr_pages = 0;
}

/* Frozen, quiet and drained when @n was read. */
static void compare(struct sub *s, const struct umbra_ntf_snapshot *n)
{
	unsigned int kept = 0, changed = 0, unannounced = 0;
	struct umbra_ntf_snapshot after;
	uint64_t va = 0;

	for (unsigned int i = 0; i < s->nr_pages; i++) {
		const bool same = frame_of(s, s->pages[i].va) == s->pages[i].frame;

		if (s->pages[i].announced)
			changed += !same;
		else if (same)
			kept++;
		else if (unannounced++ == 0)
			va = s->pages[i].va;
	}
	umbra_ntf_read(s->state, &after);
	/* The kernel went on by itself meanwhile, and nobody has read of what. */
	if (after.begun != n->begun || after.dead)
		return;
	all.kept += kept;
	all.changed += changed;
	*(s->orderly ? &all.unannounced : &all.changed_lost) += unannounced;
	if (s->orderly && unannounced)
		wrong("pid %d: %u pages changed unannounced, the first at %#" PRIx64, s->pid,
		      unannounced, va);
}

/* ---- subscriptions ---------------------------------------------------------------------------- */

static void unmap(struct sub *s)
{
	munmap(s->state, s->state_bytes);
	munmap(s->consumer, s->consumer_bytes);
	close(s->pagemap);
	close(s->fd);
	s->pid = 0;
}

static bool map(struct sub *s, const struct umbra_ntf_attach *a)
{
	void *state = mmap(NULL, a->state_bytes, PROT_READ, MAP_SHARED, s->fd,
			   (off_t)UMBRA_NTF_OFFSET_STATE);
	void *consumer = mmap(NULL, a->consumer_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd,
			      (off_t)UMBRA_NTF_OFFSET_CONSUMER);
	char file[64];

	s->state_bytes = a->state_bytes;
	s->consumer_bytes = a->consumer_bytes;
	s->state = state;
	s->consumer = consumer;
	if (state == MAP_FAILED || consumer == MAP_FAILED)
		return false;
	s->ring = (struct umbra_ring_consumer){
		.records = (const struct umbra_ntf_record *)((char *)state + PAGE),
		.mask = s->state->nr_records - 1,
		.state = s->state,
		.consumer = s->consumer,
	};
	snprintf(file, sizeof(file), "/proc/%d/pagemap", s->pid);
	s->pagemap = open(file, O_RDONLY | O_CLOEXEC);
	return true;
}

/* A process that ends meanwhile is no failure. */
static void subscribe(struct sub *s, pid_t pid)
{
	const struct umbra_ntf_range space = { PAGE, SPACE_END };
	struct umbra_ntf_attach a = {
		.size = sizeof(a),
		.flags = UMBRA_NTF_ATTACH_PID,
		.pid = pid,
		.nr_ranges = 1,
		.ranges = (uintptr_t)&space,
		.ring_order = attached % 4 == 3 ? SMALL_ORDER : RING_ORDER,
		.page_shift = 30,
	};

	memset(s, 0, offsetof(struct sub, pages));
	s->pagemap = -1;
	s->orderly = true;
	s->fd = open(UMBRA_NTF_DEVICE, O_RDWR | O_CLOEXEC);
	if (s->fd < 0)
		cannot(UMBRA_NTF_DEVICE);
	while (ioctl(s->fd, UMBRA_NTF_ATTACH, &a)) {
		if (errno == EINTR)
			continue;
		if (errno != ESRCH)
			wrong("pid %d cannot be subscribed: %s", pid, strerror(errno));
		close(s->fd);
		return;
	}
	s->pid = pid;
	if (map(s, &a)) {
		attached++;
		return;
	}
	wrong("pid %d: the shared pages cannot be mapped: %s", pid, strerror(errno));
	unmap(s);
}

static void subscribe_new(void)
{
	FILE *f = fopen(CGROUP "/cgroup.procs", "r");
	int pid;

	while (f && fscanf(f, "%d", &pid) == 1) {
		struct sub *free_one = NULL;
		bool known = false;

		for (struct sub *s = subs; s < subs + SUBS; s++) {
			if (!s->pid)
				free_one = free_one ? free_one : s;
			known |= s->pid == pid;
		}
		if (!known && free_one)
			subscribe(free_one, pid);
	}
	if (f)
		fclose(f);
}

/* ---- the looks -------------------------------------------------------------------------------- */

/* Records and counters tell the same: each callout that was counted is a record that came or is counted as lost. */
static void add_up(struct sub *s, const struct umbra_ntf_snapshot *n)
{
	const uint64_t callouts = n->begun + n->ended - n->dead;

	all.counted++;
	if (s->popped + n->lost != callouts)
		wrong("pid %d: %" PRIu64 " records and %" PRIu64 " lost are not %" PRIu64
		      " callouts",
		      s->pid, s->popped, (uint64_t)n->lost, callouts);
	if (s->popped != n->head)
		wrong("pid %d: head is %" PRIu64 ", %" PRIu64 " records came", s->pid,
		      (uint64_t)n->head, s->popped);
}

/*
 * The address space is gone. Whoever from outside was between start and end when it went has no more to tell, but the
 * process itself was not.
 */
static void look_at_the_dead(struct sub *s)
{
	struct umbra_ntf_snapshot n;

	drain(s);
	umbra_ntf_read(s->state, &n);
	add_up(s, &n);
	if (n.ended > n.begun)
		wrong("pid %d: more ended than began", s->pid);
	for (unsigned int i = 0; s->orderly && i < s->nr_open; i++)
		if (s->open[i].owner)
			wrong("pid %d: died between its own start and end", s->pid);
	all.cut_off += n.begun - n.ended;
	all.young += s->state->young_asked;
	all.dead++;
	unmap(s);
}

/* The processes stand still: what is open is the kernel's own, and comes to its end. */
static void look_at_the_frozen(struct sub *s)
{
	struct umbra_ntf_snapshot n;

	for (unsigned int i = 0;; i++) {
		drain(s);
		umbra_ntf_read(s->state, &n);
		if (n.dead)
			return;
		if (n.begun == n.ended && n.head == s->popped && n.lost == s->lost)
			break;
		if (i == 20000) {
			wrong("pid %d stands still, and %" PRIu64 " invalidations are open", s->pid,
			      (uint64_t)(n.begun - n.ended));
			return;
		}
		usleep(1000);
	}
	add_up(s, &n);
	if (s->orderly && s->nr_open)
		wrong("pid %d: %u starts have no end", s->pid, s->nr_open);
	compare(s, &n);
	/* From here on exact again, whatever was lost. */
	s->orderly = true;
	s->nr_open = 0;
	s->starts = n.begun;
	remember(s);
	memset((char *)s->consumer + PAGE, 0xff, s->state->bitmap_bits / 8);
}

static bool freeze(void)
{
	char text[256] = "";

	if (!put(CGROUP "/cgroup.freeze", "1"))
		cannot(CGROUP "/cgroup.freeze");
	for (unsigned int i = 0; i < 2000; i++) {
		const int fd = open(CGROUP "/cgroup.events", O_RDONLY | O_CLOEXEC);
		const ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

		close(fd);
		text[got < 0 ? 0 : got] = '\0';
		if (strstr(text, "frozen 1"))
			return true;
		for (struct sub *s = subs; s < subs + SUBS; s++)
			if (s->pid)
				drain(s);
		usleep(1000);
	}
	return false;
}

static void look(void)
{
	if (!freeze()) {
		all.unfrozen++;
	} else {
		all.rounds++;
		for (struct sub *s = subs; s < subs + SUBS; s++)
			if (s->pid)
				look_at_the_frozen(s);
	}
	put(CGROUP "/cgroup.freeze", "0");
}

/* Half of the time between two looks for each: with what is there, and with what has come. */
static void go_on(long ms)
{
	struct pollfd fds[SUBS];

	for (long waited = 0; waited < ms; waited += 5) {
		if (waited == ms / 10 * 5)
			subscribe_new();
		for (unsigned int i = 0; i < SUBS; i++)
			fds[i] = (struct pollfd){ .fd = subs[i].pid ? subs[i].fd : -1,
						  .events = POLLIN };
		if (poll(fds, SUBS, 5) < 0 && errno != EINTR)
			wrong("poll: %s", strerror(errno));
		for (unsigned int i = 0; i < SUBS; i++) {
			if (!subs[i].pid || !fds[i].revents)
				continue;
			if (fds[i].revents & POLLHUP)
				look_at_the_dead(&subs[i]);
			else
				drain(&subs[i]);
		}
	}
}

/* ---- the load --------------------------------------------------------------------------------- */

static pid_t start(const char *mib, char **command)
{
	char bytes[32];
	pid_t pid;

	put("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir(CGROUP, 0755) && errno != EEXIST)
		cannot(CGROUP);
	snprintf(bytes, sizeof(bytes), "%sM", mib);
	if (!put(CGROUP "/memory.high", bytes))
		cannot(CGROUP "/memory.high");
	pid = fork();
	if (pid < 0)
		cannot("fork");
	if (pid == 0) {
		if (!put(CGROUP "/cgroup.procs", "0"))
			_exit(126);
		execvp(command[0], command);
		_exit(127);
	}
	return pid;
}

static void stop(pid_t pid)
{
	char command[64];

	put(CGROUP "/cgroup.kill", "1");
	waitpid(pid, NULL, 0);
	for (unsigned int i = 0; i < 12000; i++) {
		bool left = false;

		for (struct sub *s = subs; s < subs + SUBS; s++) {
			if (s->pid && __atomic_load_n(&s->state->dead, __ATOMIC_ACQUIRE))
				look_at_the_dead(s);
			else if (s->pid)
				drain(s);
			left |= s->pid != 0;
		}
		if (!left && rmdir(CGROUP) == 0)
			return;
		usleep(10000);
	}
	for (struct sub *s = subs; s < subs + SUBS; s++) {
		snprintf(command, sizeof(command), "cd /proc/%d && grep -H . status stack cgroup",
			 s->pid);
		if (s->pid && system(command) != 0)
			printf("# pid %d is gone, and its memory is not\n", s->pid);
	}
	wrong("what was killed is still there");
}

#define N "%" PRIu64

static void report(long seconds)
{
	printf("# %ld seconds of load; %u processes subscribed, " N " ended; " N " looks, " N
	       " times they would not stand still\n",
	       seconds, attached, all.dead, all.rounds, all.unfrozen);
	printf("# " N " records, " N " by the process itself, " N " by kernel threads, " N
	       " in reclaim; " N " young callouts\n",
	       all.records, all.by_owner, all.kthread, all.reclaim, all.young);
	printf("# " N " records lost; " N " invalidations cut off by an end\n", all.lost,
	       all.cut_off);
	printf("# " N " pages found as they were, " N " changed and announced, " N
	       " changed where records were lost, " N " changed unannounced\n",
	       all.kept, all.changed, all.changed_lost, all.unannounced);
	printf("# " N " times counters were held against records; %u complaints of any kind\n",
	       all.counted, failures);
}

int main(int argc, char **argv)
{
	const long seconds = argc > 3 ? atol(argv[1]) : 0;
	struct timespec t0, t;
	int status = 0;
	pid_t pid;

	if (seconds <= 0)
		return fprintf(stderr, "usage: stress SECONDS MIB PROGRAM [ARGS...]\n"), 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (access(UMBRA_NTF_DEVICE, R_OK | W_OK))
		cannot(UMBRA_NTF_DEVICE);
	pid = start(argv[2], argv + 3);
	clock_gettime(CLOCK_MONOTONIC, &t0);
	t = t0;
	do {
		go_on(200);
		look();
		if (waitpid(pid, &status, WNOHANG) == pid) {
			wrong("%s ended by itself, status %#x", argv[3], (unsigned int)status);
			break;
		}
		clock_gettime(CLOCK_MONOTONIC, &t);
	} while (t.tv_sec - t0.tv_sec < seconds);
	stop(pid);

	report(t.tv_sec - t0.tv_sec);
	if (!all.rounds || !all.kept || !all.changed || !all.lost || !all.by_owner)
		wrong("too little was seen to tell");
	return failures > 0;
}
