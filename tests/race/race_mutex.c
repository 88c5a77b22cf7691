/* SPDX-License-Identifier: BSD-2-Clause */
/* The ordinary mutex: who holds it is alone, sees what was written before, and is woken. Exit 0, 1. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <umbra/notifier.h>

#define THREADS 6
#define TURNS   20000

static void *mutex;
static uint64_t counter,
	inside; /* plain: a race is ThreadSanitizer's to see, and a lost count ours */

static void work(unsigned int i)
{
	const struct timespec nap = { .tv_nsec = 20000 };

	if (inside++)
		counter += 1ULL << 40;
	counter++;
	if (i % 1024 == 0)
		nanosleep(&nap, NULL); /* held over a sleep: the others have to wait for it */
	inside--;
}

static void *turns(void *arg)
{
	const struct umbra_os *os = &umbra_os_posix;
	const bool tries = arg;

	for (unsigned int i = 0; i < TURNS; i++) {
		errno = 4711;
		if (!tries)
			os->mutex_lock(mutex);
		else
			while (!os->mutex_trylock(mutex))
				os->relax();
		work(i);
		os->mutex_unlock(mutex);
		if (!tries && errno != 4711)
			return (void *)1; /* a lock is taken between a system call and the look at its error */
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];
	void *bad, *any = NULL;

	mutex = umbra_os_posix.mutex_create();
	if (!mutex)
		return 1;
	for (unsigned int i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, turns, i == 0 ? (void *)1 : NULL))
			return 1;
	for (unsigned int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], &bad);
		any = bad ? bad : any;
	}
	umbra_os_posix.mutex_destroy(mutex);
	if (any || counter != (uint64_t)THREADS * TURNS) {
		printf("race_mutex: %llu of %llu turns%s\n", (unsigned long long)counter,
		       (unsigned long long)THREADS * TURNS, any ? ", errno was changed" : "");
		return 1;
	}
	return 0;
}
