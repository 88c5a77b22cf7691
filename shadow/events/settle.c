/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The grace period that ends a REMOVE. The event is read before the caller zaps, and says neither
 * who the caller is nor when it is done. But whoever it is, it is in one system call from before
 * the read until after the zap. So once each thread of the process has been seen, after the read,
 * anywhere else, the zap is done. A thread is seen elsewhere
 *  - blocked in another system call, or in none (/proc/self/task/TID/syscall);
 *  - gone;
 *  - in an own call: that has its own bracket;
 *  - by itself: a signal sent to it after the read runs its handler only on the way back to user
 * mode. Nothing here allocates: the reader may be what an allocation waits for.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "shadow/events/uffd.h"

#define PF_IO_WORKER_FLAG 0x10 /* in the flags of /proc/TID/stat */
#define EPOCH_BITS        44   /* below 16 of the thread and 4 of the instance */
#define EPOCH_MASK        ((1ULL << EPOCH_BITS) - 1)

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
	if (err)
		close(s->task_dir);
	return err;
}

void settle_fini(struct settle *s)
{
	for (uint32_t i = 0; i < s->nthreads; i++)
		if (s->threads[i].tid && s->threads[i].fd >= 0)
			close(s->threads[i].fd);
	close(s->task_dir);
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

static int open_task(const struct settle *s, int tid, const char *file)
{
	char path[32], digits[12];
	unsigned int n = 0, at = 0;

	for (int t = tid; t; t /= 10)
		digits[n++] = (char)('0' + t % 10);
	while (n)
		path[at++] = digits[--n];
	path[at++] = '/';
	strcpy(path + at, file);
	return openat(s->task_dir, path, O_RDONLY | O_CLOEXEC);
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
	const int stat_fd = open_task(s, t->tid, "stat");

	t->io_worker = stat_fd >= 0 && is_io_worker(stat_fd);
	t->fd = t->io_worker ? -1 : open_task(s, t->tid, "syscall");
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

/* False: no room, then nothing can be said about that thread. */
static bool list_task(struct settle *s, int tid)
{
	uint32_t *bucket = bucket_of(s, tid), slot;

	for (uint32_t i = *bucket; i; i = s->threads[i - 1].next)
		if (s->threads[i - 1].tid == tid)
			return true;
	if (s->free) {
		slot = s->free - 1;
		s->free = s->threads[slot].next;
	} else if (s->nthreads < SETTLE_THREADS) {
		slot = s->nthreads++;
	} else {
		return false;
	}
	s->threads[slot] = (struct settle_thread){ .tid = tid, .next = *bucket };
	*bucket = slot + 1;
	atomic_store(&acked[s->instance][slot], 0); /* of the thread that was here before */
	watch_task(s, &s->threads[slot]);
	return true;
}

static uint64_t count_threads(const struct settle *s)
{
	struct stat st;

	return fstat(s->task_dir, &st) ? 0 : st.st_nlink - 2;
}

/*
 * Every live thread is in the table after it. False if the list may lack one: a thread that exits while the
 * directory is read makes the reading end early or skip one.
 */
static bool list_tasks(struct settle *s)
{
	const uint64_t expected = count_threads(s);
	uint64_t seen = 0;
	bool room = true;
	long got;

	if (lseek(s->task_dir, 0, SEEK_SET) < 0)
		return false;
	while ((got = syscall(SYS_getdents64, s->task_dir, s->dirents, sizeof(s->dirents))) > 0) {
		for (long at = 0; at < got;) {
			const struct dirent64 *d = (const void *)(s->dirents + at);

			if (d->d_name[0] != '.') {
				seen++;
				room = list_task(s, atoi(d->d_name)) && room;
			}
			at += d->d_reclen;
		}
	}
	return !got && room && seen == expected && expected == count_threads(s);
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
		fd = open_task(s, t->tid, t->by_state ? "stat" : "syscall");
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
	switch (look(s, t)) {
	case SIGHT_ELSEWHERE: t->quiet = epoch; break;
	case SIGHT_GONE: forget_task(s, slot); break;
	case SIGHT_UNKNOWN:
		if (t->signal < epoch && !t->io_worker)
			send_signal(s, slot, t, epoch);
		break;
	}
}

uint64_t settle_scan(struct settle *s, uint64_t epoch)
{
	const bool complete = list_tasks(s);
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
