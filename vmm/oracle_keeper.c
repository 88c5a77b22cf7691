/* SPDX-License-Identifier: BSD-2-Clause */
/* The process beside a row that changes the machine for it, and puts everything back, whatever becomes of the oracle. */
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <vmm/oracle.h>

#define STEP      UMBRA_HUGE_SIZE /* of the hog */
#define UNDO_MAX  16
#define RMDIR_MAX 500

enum what {
	SET,   /* @path to @text; what was there is put back                  */
	WRITE, /* @text to @path; then @undo_text to @undo_path, if there is one */
	MAKE,  /* the directory @path; it is removed                           */
	HOG,   /* a process that takes the memory of node @node; it is ended   */
};

struct request {
	enum what what;
	int node;
	char path[ORACLE_PATH], text[64], undo_path[ORACLE_PATH], undo_text[64];
};

/* What is to be done at the end: the last first. */
struct undo {
	enum what what;
	pid_t pid;
	char path[ORACLE_PATH], text[64];
};

static void nap(long ms)
{
	nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

/* ---- files of /proc and /sys ------------------------------------------------------------------------ */

int oracle_write_text(const char *path, const char *text)
{
	const int fd = open(path, O_WRONLY | O_CLOEXEC);
	const ssize_t n = fd < 0 ? -1 : write(fd, text, strlen(text));
	const int e = n < 0 ? -errno : 0;

	if (fd >= 0)
		close(fd);
	return e;
}

int oracle_read_text(const char *path, char *text, size_t size)
{
	FILE *f = fopen(path, "re");
	char line[256] = "", *from, *to;
	int e = 0;

	if (!f)
		return -errno;
	if (!fgets(line, sizeof(line), f))
		e = -EIO;
	fclose(f);
	line[strcspn(line, "\n")] = '\0';
	from = strchr(line, '[');
	to = from ? strchr(from, ']') : NULL;
	if (to) {
		from++;
		*to = '\0';
	} else {
		from = line;
	}
	if (strlen(from) >= size)
		return -E2BIG;
	strcpy(text, from);
	return e;
}

/* ---- the hog ------------------------------------------------------------------------------------------ */

/* In KiB; 0 when it is not to be had. */
static unsigned long of_node(int node, const char *what)
{
	char path[64], line[128], name[32];
	unsigned long kib = 0, found = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/meminfo", node);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "Node %*d %31[A-Za-z]: %lu", name, &kib) == 2 &&
		    !strcmp(name, what))
			found = kib;
	}
	if (f)
		fclose(f);
	return found;
}

/* Takes the node's memory: fast, and slowly where little is left, so that it is kswapd who has to find more. */
static _Noreturn void hog(int node)
{
	const unsigned long mask = 1UL << node, all = of_node(node, "MemTotal") << 10;
	char *p = mmap(NULL, all + STEP, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	oracle_write_text("/proc/self/oom_score_adj", "1000"); /* if one has to go, it is this */
	syscall(SYS_set_mempolicy, MPOL_BIND, &mask, 8 * sizeof(mask));
	if (p == MAP_FAILED)
		_exit(1);
	p += -(uintptr_t)p & (STEP - 1);
	for (uint64_t n = 0; (n + 1) * STEP <= all; n++) {
		const bool slow = of_node(node, "MemFree") < all >> 10 >> 4;

		madvise(p + n * STEP, STEP, slow ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
		for (size_t i = 0; i < STEP; i += UMBRA_PAGE_SIZE) /* no two pages alike */
			*(volatile uint64_t *)(void *)(p + n * STEP + i) = n * STEP + i + 1;
		if (slow)
			nap(20);
	}
	for (;;)
		pause();
}

/* ---- the keeper ----------------------------------------------------------------------------------------- */

static struct undo undo[UNDO_MAX];
static unsigned int undo_nr;

static void remember(enum what what, pid_t pid, const char *path, const char *text)
{
	struct undo *u = &undo[undo_nr++];

	u->what = what;
	u->pid = pid;
	snprintf(u->path, sizeof(u->path), "%s", path);
	snprintf(u->text, sizeof(u->text), "%s", text);
}

static int start_hog(int node)
{
	pid_t pid;

	if (node < 0 || node >= (int)(8 * sizeof(unsigned long)))
		return -EINVAL;
	pid = fork();
	if (pid == 0)
		hog(node);
	if (pid < 0)
		return -errno;
	remember(HOG, pid, "", "");
	return 0;
}

static int obey(const struct request *r)
{
	char old[64];
	int e;

	if (undo_nr == UNDO_MAX)
		return -ENOSPC;
	switch (r->what) {
	case SET:
		e = oracle_read_text(r->path, old, sizeof(old));
		if (e || !strcmp(old, r->text))
			return e;
		e = oracle_write_text(r->path, r->text);
		if (!e)
			remember(SET, 0, r->path, old);
		return e;
	case WRITE:
		e = oracle_write_text(r->path, r->text);
		if (!e && r->undo_path[0])
			remember(WRITE, 0, r->undo_path, r->undo_text);
		return e;
	case MAKE:
		if (mkdir(r->path, 0700))
			return -errno;
		remember(MAKE, 0, r->path, "");
		return 0;
	case HOG: return start_hog(r->node);
	}
	return -EINVAL;
}

static void put_back(const struct undo *u)
{
	int e = 0;

	switch (u->what) {
	case HOG:
		kill(u->pid, SIGKILL);
		waitpid(u->pid, NULL, 0);
		return;
	case MAKE:
		/* a process that was killed may still be on its way out of it */
		for (int i = 0; i < RMDIR_MAX; i++) {
			e = rmdir(u->path) ? -errno : 0;
			if (e != -EBUSY)
				break;
			nap(20);
		}
		break;
	case SET:
	case WRITE: e = oracle_write_text(u->path, u->text); break;
	}
	if (e && e != -ESRCH) /* who is gone needs not be moved back */
		fprintf(stderr, "umbra: oracle: %s could not be put back%s%s: %s\n", u->path,
			u->text[0] ? " to " : "", u->text, strerror(-e));
}

static _Noreturn void keep(int fd)
{
	struct request r;
	int rc;

	/* these are for the oracle: its end is what is waited for */
	setsid();
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	oracle_write_text("/proc/self/oom_score_adj", "-1000");
	while (recv(fd, &r, sizeof(r), 0) == (ssize_t)sizeof(r)) {
		rc = obey(&r);
		if (send(fd, &rc, sizeof(rc), MSG_NOSIGNAL) != (ssize_t)sizeof(rc))
			break;
	}
	while (undo_nr)
		put_back(&undo[--undo_nr]);
	_exit(0);
}

/* ---- for a row -------------------------------------------------------------------------------------------- */

int oracle_keeper_start(struct oracle *o)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	o->keeper = fork();
	if (o->keeper == 0) {
		close(pair[0]);
		keep(pair[1]);
	}
	close(pair[1]);
	o->to_keeper = pair[0];
	return o->keeper < 0 ? -EAGAIN : 0;
}

void oracle_keeper_end(struct oracle *o)
{
	if (o->to_keeper >= 0)
		close(o->to_keeper);
	if (o->keeper > 0)
		waitpid(o->keeper, NULL, 0);
	o->to_keeper = o->keeper = -1;
}

static int ask(struct oracle *o, const struct request *r)
{
	int rc;

	if (send(o->to_keeper, r, sizeof(*r), MSG_NOSIGNAL) != (ssize_t)sizeof(*r) ||
	    recv(o->to_keeper, &rc, sizeof(rc), 0) != (ssize_t)sizeof(rc))
		return oracle_why(o, -ECHILD, "the process that changes settings ended early");
	return rc;
}

int oracle_keeper_sets(struct oracle *o, const char *path, const char *text)
{
	struct request r = { .what = SET };

	snprintf(r.path, sizeof(r.path), "%s", path);
	snprintf(r.text, sizeof(r.text), "%s", text);
	return ask(o, &r);
}

int oracle_keeper_writes(struct oracle *o, const char *path, const char *text,
			 const char *undo_path, const char *undo_text)
{
	struct request r = { .what = WRITE };

	snprintf(r.path, sizeof(r.path), "%s", path);
	snprintf(r.text, sizeof(r.text), "%s", text);
	if (undo_path) {
		snprintf(r.undo_path, sizeof(r.undo_path), "%s", undo_path);
		snprintf(r.undo_text, sizeof(r.undo_text), "%s", undo_text);
	}
	return ask(o, &r);
}

int oracle_keeper_makes(struct oracle *o, const char *path)
{
	struct request r = { .what = MAKE };

	snprintf(r.path, sizeof(r.path), "%s", path);
	return ask(o, &r);
}

int oracle_keeper_hogs(struct oracle *o, int node)
{
	const struct request r = { .what = HOG, .node = node };

	return ask(o, &r);
}
