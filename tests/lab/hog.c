/* SPDX-License-Identifier: BSD-2-Clause */
/* hog MIB: writes to so much memory, page by page, again and again, so that the kernel has to take pages from somebody. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE  4096UL
#define BATCH 64UL

int main(int argc, char **argv)
{
	const unsigned long mib = argc == 2 ? strtoul(argv[1], NULL, 10) : 0;
	const unsigned long pages = (mib << 20) / PAGE;
	const struct timespec pause = { 0, 20 * 1000 * 1000 }; /* the guest wants the CPUs, too */
	volatile uint64_t *at;

	if (!mib || mib > 1 << 20) {
		fprintf(stderr, "usage: hog MIB\n");
		return 2;
	}
	at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED) {
		perror("hog");
		return 1;
	}
	for (unsigned long n = 0;; n++) {
		/* a number of its own in each page: they are not all one page for zram */
		at[n % pages * (PAGE / sizeof(*at))] = n;
		if (n % BATCH == 0)
			nanosleep(&pause, NULL);
	}
}
