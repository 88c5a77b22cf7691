/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The grace period that ends a REMOVE. The event is read before the caller zaps, and says neither
 * who the caller is nor when it is done. But whoever it is, it is in one system call from before
 * the read until after the zap. So once each thread that has the address space has been seen, after
 * the read, anywhere else, the zap is done. A thread is seen elsewhere
 *  - blocked in another system call, or in none (/proc/self/task/TID/syscall);
 *  - gone;
 *  - in an own call: that has its own bracket;
 *  - by itself: a signal sent to it after the read runs its handler only on the way back to user
 *    mode. Not sent to other processes with the address space (made by CLONE_VM without CLONE_THREAD,
 *    vfork, posix_spawn): they may have another handler, or none. Those are waited for.
 * Threads that are made later do not matter: what they call was begun later too.
 * Nothing here allocates: the reader may be what an allocation waits for.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "shadow/events/uffd.h"

#define PF_IO_WORKER_FLAG 0x10 /* in the flags of /proc/TID/stat */
#define EPOCH_BITS        44   /* below 16 of the thread and 4 of the instance */
#define EPOCH_MASK        ((1ULL << EPOCH_BITS) - 1)
#define READINGS          16 /* of a list of threads, at most, until two agree */
#define SHARERS           16 /* other processes with our address space */

/*
 * Acknowledgements are for ever, as is the handler: a signal may be delivered long after
 * the userfaultfd it was sent for was closed, and then it must find memory, and not the default
 * action.
 */
static _Atomic uint64_t *acked[SETTLE_INSTANCES]; /* SETTLE_THREADS each; as instance_wake */
static int
	instance_wake[SETTLE_INSTANCES]; /* eventfd + 1; under instances_lock, constant once set */
static bool instance_used[SETTLE_INSTANCES];
static pthread_mutex_t instances_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t
	last_epoch; /* of all instances: a late acknowledgement never counts for a newer one */

static void on_signal(int signal, siginfo_t *info, void *context)
{
	const uint64_t value = (uint64_t)(uintptr_t)info->si_value.sival_ptr;
	const uint64_t instance = value >> 60, thread = value >> EPOCH_BITS & (SETTLE_THREADS - 1);
	const uint64_t epoch = value & EPOCH_MASK, one = 1;
	const int saved = errno;
	_Atomic uint64_t *ack;
	uint64_t old;

	(void)signal;
	(void)context;
	if (info->si_code != SI_QUEUE || info->si_pid != getpid())
		return;
	ack = &acked[instance][thread];
	old = atomic_load(ack);
	while (old < epoch && !atomic_compare_exchange_weak(ack, &old, epoch))
		;
	if (write(__atomic_load_n(&instance_wake[instance], __ATOMIC_ACQUIRE) - 1, &one,
		  sizeof(one)) < 0)
		errno = saved; /* full: awake already */
	errno = saved;
}

static int take_signal(int signal)
{
	struct sigaction old, action = { .sa_flags = SA_SIGINFO | SA_RESTART };

	if (sigaction(signal, NULL, &old))
		return -errno;
	if ((old.sa_flags & SA_SIGINFO) && old.sa_sigaction == on_signal)
		return 0;
	if ((old.sa_flags & SA_SIGINFO) || (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN))
		return -EBUSY;
	action.sa_sigaction = on_signal;
	sigfillset(&action.sa_mask);
	return sigaction(signal, &action, NULL) ? -errno : 0;
}

/* Lock held. Pages of the table come as they are used. */
static int make_instance(int i)
{
	const size_t bytes = SETTLE_THREADS * sizeof(*acked[i]);
	void *table;
	int fd;

	if (instance_wake[i])
		return 0;
	table = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (table == MAP_FAILED)
		return -errno;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0) {
		const int err = -errno;

		munmap(table, bytes);
		return err;
	}
	acked[i] = table;
	__atomic_store_n(&instance_wake[i], fd + 1, __ATOMIC_RELEASE);
	return 0;
}

static int take_instance(struct settle *s)
{
	int err = -ENOSPC;

	pthread_mutex_lock(&instances_lock);
	for (int i = 0; i < SETTLE_INSTANCES && err == -ENOSPC; i++) {
		if (instance_used[i])
			continue;
		err = make_instance(i);
		if (err)
			break;
		instance_used[i] = true;
		s->instance = i;
		s->wake = instance_wake[i] - 1;
	}
	pthread_mutex_unlock(&instances_lock);
	return err;
}

/* What is needed to look for other processes with our address space; -1 where it cannot be had. */
static void open_sharers(struct settle *s)
{
	char self[16] = "";

	s->proc_dir = s->loadavg = -1;
	/* A /proc of another PID namespace has other numbers. */
	if (readlink("/proc/self", self, sizeof(self) - 1) <= 0 || atoi(self) != getpid() ||
	    syscall(SYS_kcmp, getpid(), getpid(), KCMP_VM, 0, 0))
		return;
	s->proc_dir = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	s->loadavg = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
}

int settle_init(struct settle *s, int signal, struct umbra_own *own)
{
	int err;

	s->own = own;
	s->signal = signal ? signal : SIGRTMAX - 1;
	s->task_dir = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->task_dir < 0)
		return -errno;
	err = take_signal(s->signal);
	if (!err)
		err = take_instance(s);
	if (err) {
		close(s->task_dir);
		return err;
	}
	open_sharers(s);
	return 0;
}

void settle_fini(struct settle *s)
{
	for (uint32_t i = 0; i < s->nthreads; i++)
		if (s->threads[i].tid && s->threads[i].fd >= 0)
			close(s->threads[i].fd);
	close(s->task_dir);
	if (s->proc_dir >= 0)
		close(s->proc_dir);
	if (s->loadavg >= 0)
		close(s->loadavg);
	pthread_mutex_lock(&instances_lock);
	instance_used[s->instance] = false;
	pthread_mutex_unlock(&instances_lock);
}

uint64_t settle_epoch(void)
{
	return atomic_fetch_add(&last_epoch, 1) + 1;
}

/* ---- the list of threads -------------------------------------------------------------------- */

struct dirent64 {
	uint64_t d_ino;
	int64_t d_off;
	uint16_t d_reclen;
	uint8_t d_type;
	char d_name[];
};

static int open_below(int dir, int tid, const char *file)
{
	char path[32], digits[12];
	unsigned int n = 0, at = 0;

	for (int t = tid; t; t /= 10)
		digits[n++] = (char)('0' + t % 10);
	while (n)
		path[at++] = digits[--n];
	path[at++] = '/';
	strcpy(path + at, file);
	return openat(dir, path, O_RDONLY | O_CLOEXEC);
}

/* /proc has every thread under its number, though it lists none of them. */
static int open_task(const struct settle *s, const struct settle_thread *t, const char *file)
{
	return open_below(t->foreign ? s->proc_dir : s->task_dir, t->tid, file);
}

/* Skips "pid (comm) " and gives what follows; comm may hold anything. */
static const char *stat_fields(const char *buf)
{
	const char *p = strrchr(buf, ')');

	return p && p[1] == ' ' ? p + 2 : NULL;
}

static bool is_io_worker(int fd)
{
	char buf[512];
	const ssize_t got = pread(fd, buf, sizeof(buf) - 1, 0);
	const char *p;

	if (got <= 0)
		return false;
	buf[got] = 0;
	p = stat_fields(buf);
	/* state ppid pgrp session tty_nr tpgid flags */
	for (int i = 0; p && i < 6; i++) {
		p = strchr(p, ' ');
		p = p ? p + 1 : NULL;
	}
	return p && (strtoul(p, NULL, 10) & PF_IO_WORKER_FLAG);
}

/*
 * An io_uring worker does the madvise of a ring. What its "system call" says is its creator's, and it takes no signals. And in a
 * process that gave up its rights nobody may look at system calls. There the state must do: madvise waits for its event, for locks
 * and for pages uninterruptibly, so a thread in an interruptible sleep is not in it.
 */
static void watch_task(struct settle *s, struct settle_thread *t)
{
	const int stat_fd = open_task(s, t, "stat");

	t->io_worker = stat_fd >= 0 && is_io_worker(stat_fd);
	t->fd = t->io_worker ? -1 : open_task(s, t, "syscall");
	t->by_state = t->fd < 0;
	if (t->by_state)
		t->fd = stat_fd;
	else if (stat_fd >= 0)
		close(stat_fd);
	if (t->fd < 0)
		return;
	if (s->nfds < SETTLE_FDS) {
		s->nfds++;
		return;
	}
	close(t->fd);
	t->fd = -1;
}

static uint32_t *bucket_of(struct settle *s, int tid)
{
	return &s->buckets[(uint32_t)tid % SETTLE_BUCKETS];
}

static void forget_task(struct settle *s, uint32_t slot)
{
	struct settle_thread *t = &s->threads[slot];
	uint32_t *link = bucket_of(s, t->tid);

	if (t->fd >= 0) {
		close(t->fd);
		s->nfds--;
	}
	while (*link != slot + 1)
		link = &s->threads[*link - 1].next;
	*link = t->next;
	t->tid = 0;
	t->next = s->free;
	s->free = slot + 1;
}

/* NULL: no room, then nothing can be said about that thread. */
static struct settle_thread *list_task(struct settle *s, int tid, bool foreign)
{
	uint32_t *bucket = bucket_of(s, tid), slot;

	for (uint32_t i = *bucket; i; i = s->threads[i - 1].next)
		if (s->threads[i - 1].tid == tid)
			return &s->threads[i - 1];
	if (s->free) {
		slot = s->free - 1;
		s->free = s->threads[slot].next;
	} else if (s->nthreads < SETTLE_THREADS) {
		slot = s->nthreads++;
	} else {
		return NULL;
	}
	s->threads[slot] =
		(struct settle_thread){ .tid = tid, .foreign = foreign, .next = *bucket };
	*bucket = slot + 1;
	atomic_store(&acked[s->instance][slot], 0); /* of the thread that was here before */
	watch_task(s, &s->threads[slot]);
	return &s->threads[slot];
}

/* Calls @fn for each number in @dir until it says false. Returns: whether all were read. */
static bool for_each_number(struct settle *s, int dir,
			    bool (*fn)(struct settle *s, int nr, void *arg), void *arg)
{
	long got;

	if (lseek(dir, 0, SEEK_SET) < 0)
		return false;
	while ((got = syscall(SYS_getdents64, dir, s->dirents, sizeof(s->dirents))) > 0) {
		for (long at = 0; at < got;) {
			const struct dirent64 *d = (const void *)(s->dirents + at);

			if (d->d_name[0] >= '1' && d->d_name[0] <= '9' &&
			    !fn(s, atoi(d->d_name), arg))
				return false;
			at += d->d_reclen;
		}
	}
	return !got;
}

/* One reading of the threads of a process: how many, and how many of them the one before had too. */
struct reading {
	bool foreign;
	uint64_t seen, again;
};

static bool read_task(struct settle *s, int tid, void *arg)
{
	struct settle_thread *t = list_task(s, tid, ((struct reading *)arg)->foreign);
	struct reading *r = arg;

	if (!t)
		return false;
	if (t->mark != s->mark) {
		r->seen++;
		r->again += t->mark == s->mark - 1;
		t->mark = s->mark;
	}
	return true;
}

/*
 * Every thread that was there before and is still is in the table after it; false if that cannot be had.
 * The kernel goes on from thread to thread, or by their number when the one it stood at is gone: so a
 * reading leaves one out, or ends early, only if a thread that it has listed exits meanwhile. The next
 * reading then lacks that one. So two readings of the same threads have missed none.
 */
static bool list_tasks(struct settle *s, int dir, bool foreign)
{
	uint64_t before = 0;

	for (int i = 0; i < READINGS; i++) {
		struct reading r = { .foreign = foreign };

		s->mark++;
		if (!for_each_number(s, dir, read_task, &r))
			return false;
		if (i && r.seen == before && r.again == before)
			return true;
		before = r.seen;
	}
	return false;
}

/* ---- other processes with our address space ----------------------------------------------------- */

/* Who may not be asked about has other rights than we: it is none of ours. */
static bool shares(int tid)
{
	return !syscall(SYS_kcmp, getpid(), tid, KCMP_VM, 0, 0);
}

struct sharers {
	int self, pid[SHARERS];
	unsigned int n;
};

static bool find_sharer(struct settle *s, int pid, void *arg)
{
	struct sharers *f = arg;

	(void)s;
	if (pid == f->self || !shares(pid))
		return true;
	if (f->n == SHARERS)
		return false;
	f->pid[f->n++] = pid;
	return true;
}

/* The number given out last, of a process or a thread: as long as it stays there is no new one. -1: not known. */
static long last_pid(const struct settle *s)
{
	char buf[128];
	const ssize_t got = s->loadavg < 0 ? -1 : pread(s->loadavg, buf, sizeof(buf) - 1, 0);
	const char *p;

	if (got <= 0)
		return -1;
	buf[got] = 0;
	p = strrchr(buf, ' ');
	return p ? strtol(p, NULL, 10) : -1;
}

/*
 * As list_tasks(), for the threads of other processes. /proc lists processes in the order of their numbers, and
 * goes on after the number it stood at: so whoever is there all the time is listed.
 */
static bool list_sharers(struct settle *s)
{
	struct sharers found = { .self = getpid() };
	const long last = last_pid(s);

	if (s->proc_dir < 0 || (!s->sharers && last >= 0 && last == s->last_pid))
		return true;
	if (!for_each_number(s, s->proc_dir, find_sharer, &found))
		return false;
	for (unsigned int i = 0; i < found.n; i++) {
		const int dir = open_below(s->proc_dir, found.pid[i], "task");
		bool all = dir >= 0 ? list_tasks(s, dir, true) : errno == ENOENT;

		if (dir >= 0)
			close(dir);
		if (!all && shares(found.pid[i]))
			return false;
	}
	s->sharers = found.n;
	s->last_pid = last;
	return true;
}

/* ---- one thread --------------------------------------------------------------------------- */

enum sight { SIGHT_ELSEWHERE, SIGHT_GONE, SIGHT_UNKNOWN };

static enum sight look(const struct settle *s, const struct settle_thread *t)
{
	char buf[512];
	ssize_t got;
	const char *p;
	int fd = t->fd, err;

	if (fd < 0)
		fd = open_task(s, t, t->by_state ? "stat" : "syscall");
	if (fd < 0)
		return errno == ENOENT ? SIGHT_GONE : SIGHT_UNKNOWN;
	got = pread(fd, buf, sizeof(buf) - 1, 0);
	err = errno;
	if (t->fd < 0)
		close(fd);
	if (got <= 0)
		return got < 0 && err == ESRCH ? SIGHT_GONE : SIGHT_UNKNOWN;
	buf[got] = 0;
	if (t->by_state) {
		p = stat_fields(buf);
		return p && *p == 'S' ? SIGHT_ELSEWHERE : SIGHT_UNKNOWN;
	}
	if (buf[0] == 'r') /* running: in user mode, or just in the zap */
		return SIGHT_UNKNOWN;
	switch (strtol(buf, NULL, 10)) {
	case SYS_madvise:
	case SYS_process_madvise: return SIGHT_UNKNOWN;
	default: return SIGHT_ELSEWHERE;
	}
}

static void send_signal(const struct settle *s, uint32_t slot, struct settle_thread *t,
			uint64_t epoch)
{
	const uint64_t value =
		(uint64_t)s->instance << 60 | (uint64_t)slot << EPOCH_BITS | (epoch & EPOCH_MASK);
	siginfo_t info = { .si_signo = s->signal, .si_code = SI_QUEUE };

	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_ptr = (void *)(uintptr_t)value;
	/* EAGAIN, the queue is full: the next scan tries again. */
	if (!syscall(SYS_rt_tgsigqueueinfo, getpid(), t->tid, s->signal, &info))
		t->signal = epoch;
}

static void scan_thread(struct settle *s, uint32_t slot, struct settle_thread *t, uint64_t epoch)
{
	const uint64_t ack = atomic_load(&acked[s->instance][slot]);

	if (ack > t->quiet && ack <= t->signal)
		t->quiet = ack;
	if (t->quiet >= epoch)
		return;
	if (t->tid == s->reader_tid || (s->own && own_call_of(s->own, t->tid))) {
		t->quiet = epoch;
		return;
	}
	if (t->foreign && !shares(t->tid)) { /* gone, or has made itself an address space by exec */
		forget_task(s, slot);
		return;
	}
	switch (look(s, t)) {
	case SIGHT_ELSEWHERE: t->quiet = epoch; break;
	case SIGHT_GONE: forget_task(s, slot); break;
	case SIGHT_UNKNOWN:
		if (t->signal < epoch && !t->io_worker && !t->foreign)
			send_signal(s, slot, t, epoch);
		break;
	}
}

uint64_t settle_scan(struct settle *s, uint64_t epoch)
{
	const bool complete = list_tasks(s, s->task_dir, false) && list_sharers(s);
	uint64_t over = epoch;

	for (uint32_t i = 0; i < s->nthreads; i++) {
		struct settle_thread *t = &s->threads[i];

		if (t->tid)
			scan_thread(s, i, t, epoch);
		if (t->tid && t->quiet < over)
			over = t->quiet;
	}
	return complete ? over : 0;
}
