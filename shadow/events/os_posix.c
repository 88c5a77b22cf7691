/* SPDX-License-Identifier: BSD-2-Clause */
/* The ordinary struct umbra_os: malloc, pthread mutexes, sched_yield, a message and abort(). */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
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

static void *posix_mutex_create(void)
{
	pthread_mutex_t *mutex = malloc(sizeof(*mutex));

	if (mutex && pthread_mutex_init(mutex, NULL)) {
		free(mutex);
		return NULL;
	}
	return mutex;
}

static void posix_mutex_destroy(void *mutex)
{
	pthread_mutex_destroy(mutex);
	free(mutex);
}

static void posix_mutex_lock(void *mutex)
{
	pthread_mutex_lock(mutex);
}

static bool posix_mutex_trylock(void *mutex)
{
	return !pthread_mutex_trylock(mutex);
}

static void posix_mutex_unlock(void *mutex)
{
	pthread_mutex_unlock(mutex);
}

static void posix_relax(void)
{
	sched_yield();
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
	.bug = posix_bug,
};
