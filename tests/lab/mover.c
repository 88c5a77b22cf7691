/* SPDX-License-Identifier: BSD-2-Clause */
/* mover PID: moves all pages of a process to NUMA node 1, then to 0, and so on until it is gone, as a balancing daemon would. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NODE_BITS 64UL

int main(int argc, char **argv)
{
	const struct timespec pause = { 0, 50 * 1000 * 1000 };
	const long pid = argc == 2 ? strtol(argv[1], NULL, 10) : 0;

	if (pid <= 0) {
		fprintf(stderr, "usage: mover PID\n");
		return 2;
	}
	for (unsigned int n = 0;; n++) {
		const unsigned long from = 1UL << n % 2, to = 3UL & ~from;

		/* a number above 0 is how many pages could not be moved now */
		if (syscall(SYS_migrate_pages, pid, NODE_BITS + 1, &from, &to) < 0) {
			if (errno == ESRCH || errno == EINVAL) /* gone, or its memory is */
				return 0;
			perror("mover");
			return 1;
		}
		nanosleep(&pause, NULL);
	}
}
