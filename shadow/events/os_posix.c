/* SPDX-License-Identifier: BSD-2-Clause */
/* The ordinary struct umbra_os: malloc, a mutex of one word, sched_yield, a message and abort(). */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <umbra/notifier.h>

static void *posix_alloc(size_t bytes)
{
	return calloc(1, bytes);
}

static void posix_free(void *p, size_t bytes)
{
	(void)bytes;
	free(p);
}

/*
 * A mutex of one word: 0 free, 1 held, 2 held and perhaps waited for. Every bracket takes four of them, with the kernel
 * at work in between: what matters is how little code that is when nobody waits (bench/inval_own.c).
 */
struct posix_mutex {
	uint32_t state;
};

static void *posix_mutex_create(void)
{
	return calloc(1, 64); /* a cache line: not shared with what others write */
}

static void posix_mutex_destroy(void *mutex)
{
	free(mutex);
}

/* Not woken, woken for nothing, interrupted: the caller looks again in any case. errno is whose it was. */
static void futex(uint32_t *word, int op, uint32_t value)
{
	const int saved = errno;

	syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
	errno = saved;
}

static void __attribute__((noinline, cold)) posix_mutex_wait(struct posix_mutex *m)
{
	/* Partner: the exchange in unlock. Whoever waited cannot tell that he was the last: he leaves 2. */
	while (__atomic_exchange_n(&m->state, 2, __ATOMIC_ACQUIRE))
		futex(&m->state, FUTEX_WAIT, 2);
}

static void __attribute__((noinline, cold)) posix_mutex_wake(struct posix_mutex *m)
{
	futex(&m->state, FUTEX_WAKE, 1);
}

static bool posix_mutex_trylock(void *mutex)
{
	struct posix_mutex *m = mutex;
	uint32_t none = 0;

	return __atomic_compare_exchange_n(&m->state, &none, 1, false, __ATOMIC_ACQUIRE,
					   __ATOMIC_RELAXED);
}

static void posix_mutex_lock(void *mutex)
{
	if (!posix_mutex_trylock(mutex))
		posix_mutex_wait(mutex);
}

static void posix_mutex_unlock(void *mutex)
{
	struct posix_mutex *m = mutex;

	if (__atomic_exchange_n(&m->state, 0, __ATOMIC_RELEASE) == 2)
		posix_mutex_wake(m);
}

static void posix_relax(void)
{
	sched_yield();
}

static void posix_wait(uint32_t *word, uint32_t value)
{
	futex(word, FUTEX_WAIT, value);
}

static void posix_wake(uint32_t *word)
{
	futex(word, FUTEX_WAKE, INT_MAX);
}

/* write(2), not stdio: the caller may hold stdio's locks, or have broken the heap. */
static void __attribute__((noreturn)) posix_bug(const char *what)
{
	static const char head[] = "umbra: broken invariant: ";
	ssize_t n;

	n = write(STDERR_FILENO, head, sizeof(head) - 1);
	n += write(STDERR_FILENO, what, strlen(what));
	n += write(STDERR_FILENO, "\n", 1);
	(void)n;
	abort();
}

const struct umbra_os umbra_os_posix = {
	.alloc = posix_alloc,
	.free = posix_free,
	.mutex_create = posix_mutex_create,
	.mutex_destroy = posix_mutex_destroy,
	.mutex_lock = posix_mutex_lock,
	.mutex_trylock = posix_mutex_trylock,
	.mutex_unlock = posix_mutex_unlock,
	.relax = posix_relax,
	.wait = posix_wait,
	.wake = posix_wake,
	.bug = posix_bug,
};
