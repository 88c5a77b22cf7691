/* SPDX-License-Identifier: BSD-2-Clause */
/* Subscribing, reading what was recorded, and memory to do things to. */
#include <fcntl.h>
#include <sys/wait.h>

#include "kmod_test.h"

int device_open(void)
{
	const int fd = open(UMBRA_NTF_DEVICE, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		FAIL("%s: %s", UMBRA_NTF_DEVICE, strerror(errno));
	return fd;
}

struct umbra_ntf_attach attach_to(const struct umbra_ntf_range *range)
{
	return (struct umbra_ntf_attach){
		.size = sizeof(struct umbra_ntf_attach),
		.nr_ranges = 1,
		.ranges = (uintptr_t)range,
		.ring_order = 10,
		.page_shift = 12,
	};
}

void sub_map(struct sub *s, int fd)
{
	s->fd = fd;
	s->state = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, UMBRA_NTF_OFFSET_STATE);
	if (s->state == MAP_FAILED)
		FAIL("the state page cannot be mapped: %s", strerror(errno));
	EQUAL(s->state->magic, UMBRA_NTF_MAGIC);
	EQUAL(s->state->abi, UMBRA_NTF_ABI);
	EQUAL(s->state->size, sizeof(struct umbra_ntf_state));
	EQUAL(s->state->record_size, sizeof(struct umbra_ntf_record));
	s->a.state_bytes = (PAGE + s->state->nr_records * s->state->record_size + PAGE - 1) & -PAGE;
	s->a.consumer_bytes = (PAGE + s->state->bitmap_bits / 8 + PAGE - 1) & -PAGE;
	munmap(s->state, PAGE);
	s->state = mmap(NULL, s->a.state_bytes, PROT_READ, MAP_SHARED, fd, UMBRA_NTF_OFFSET_STATE);
	s->consumer = mmap(NULL, s->a.consumer_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			   (off_t)UMBRA_NTF_OFFSET_CONSUMER);
	if (s->state == MAP_FAILED || s->consumer == MAP_FAILED)
		FAIL("the shared pages cannot be mapped: %s", strerror(errno));
	s->bitmap = (uint64_t *)((char *)s->consumer + PAGE);
	s->ring = (struct umbra_ring_consumer){
		.records = (struct umbra_ntf_record *)((char *)s->state + PAGE),
		.mask = s->state->nr_records - 1,
		.tail = s->consumer->tail,
		.state = s->state,
		.consumer = s->consumer,
	};
}

void subscribe(struct sub *s, const void *p, size_t bytes, uint32_t order)
{
	const struct umbra_ntf_range range = { (uintptr_t)p, (uintptr_t)p + bytes };
	struct umbra_ntf_attach a = attach_to(&range);
	const int fd = device_open();

	a.ring_order = order;
	if (ioctl(fd, UMBRA_NTF_ATTACH, &a))
		FAIL("ATTACH: %s", strerror(errno));
	sub_map(s, fd);
	EQUAL(a.state_bytes, s->a.state_bytes);
	EQUAL(a.consumer_bytes, s->a.consumer_bytes);
	s->a = a;
}

int set_ranges(const struct sub *s, const struct umbra_ntf_range *ranges, uint32_t nr)
{
	const struct umbra_ntf_ranges r = { .size = sizeof(r),
					    .nr_ranges = nr,
					    .ranges = (uintptr_t)ranges };

	return ioctl(s->fd, UMBRA_NTF_RANGES, &r);
}

struct umbra_ntf_snapshot now(const struct sub *s)
{
	struct umbra_ntf_snapshot n;

	umbra_ntf_read(s->state, &n);
	return n;
}

void drain(struct sub *s, struct seen *seen)
{
	uint64_t open = 0;

	seen->nr = 0;
	EQUAL(now(s).begun, now(s).ended);
	EQUAL(now(s).lost, 0);
	while (seen->nr < SEEN_MAX && umbra_ring_pop(&s->ring, &seen->v[seen->nr])) {
		const struct umbra_ntf_record *rec = &seen->v[seen->nr++];

		CHECK(rec->start < rec->end);
		if (rec->kind == UMBRA_NTF_START)
			open++;
		else if (rec->kind == UMBRA_NTF_END && open-- == 0)
			FAIL("an end without a start");
	}
	EQUAL(open, 0);
	EQUAL(now(s).head, s->ring.tail);
}

static bool is(const struct umbra_ntf_record *rec, enum umbra_ntf_kind kind, const void *start,
	       size_t bytes)
{
	return rec->kind == kind && rec->start == (uintptr_t)start &&
	       rec->end == (uintptr_t)start + bytes;
}

int find_pair(const struct seen *seen, unsigned int from, const void *start, size_t bytes)
{
	for (unsigned int i = from; i < seen->nr; i++) {
		if (!is(&seen->v[i], UMBRA_NTF_START, start, bytes))
			continue;
		for (unsigned int j = i + 1; j < seen->nr; j++)
			if (is(&seen->v[j], UMBRA_NTF_END, start, bytes))
				return (int)i;
		FAIL("a start without its end");
	}
	return -1;
}

int find_cover(const struct seen *seen, const void *start, size_t bytes)
{
	for (unsigned int i = 0; i < seen->nr; i++)
		if (seen->v[i].kind == UMBRA_NTF_START && seen->v[i].start <= (uintptr_t)start &&
		    seen->v[i].end >= (uintptr_t)start + bytes)
			return (int)i;
	return -1;
}

static void show(const struct seen *seen)
{
	for (unsigned int i = 0; i < seen->nr && i < 12; i++)
		printf("#   kind %u event %u flags %#x [%#llx, %#llx)\n", seen->v[i].kind,
		       seen->v[i].event, seen->v[i].flags, seen->v[i].start, seen->v[i].end);
}

const struct umbra_ntf_record *want_pair(const struct seen *seen, const void *start, size_t bytes,
					 enum umbra_ntf_event event)
{
	const int i = find_pair(seen, 0, start, bytes);

	if (i < 0) {
		show(seen);
		FAIL("no start and end of [%p, +%#zx) among %u records", start, bytes, seen->nr);
	}
	EQUAL(seen->v[i].event, event);
	return &seen->v[i];
}

void want_only(const struct seen *seen, const void *start, size_t bytes)
{
	if (seen->nr != 2 || find_pair(seen, 0, start, bytes) != 0) {
		show(seen);
		FAIL("%u records, not one pair of [%p, +%#zx)", seen->nr, start, bytes);
	}
}

/* ---- memory and the machine ------------------------------------------------------------------- */

static char *reserve(size_t bytes)
{
	char *p = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);

	if (p == MAP_FAILED)
		FAIL("mmap: %s", strerror(errno));
	return (char *)(((uintptr_t)p + HUGE - 1) & -HUGE);
}

char *memory(size_t bytes)
{
	char *p = reserve(bytes);

	madvise(p, bytes, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < bytes; i += PAGE)
		p[i] = (char)(i / PAGE + 1);
	return p;
}

bool is_huge(const void *p)
{
	char line[256];
	unsigned long start, end, kb;
	bool in = false, huge = false;
	FILE *f = fopen("/proc/self/smaps", "r");

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			in = start <= (uintptr_t)p && (uintptr_t)p < end;
		else if (in && sscanf(line, "AnonHugePages: %lu kB", &kb) == 1)
			huge = kb > 0;
	}
	if (f)
		fclose(f);
	return huge;
}

char *huge_memory(size_t bytes)
{
	char *p = reserve(bytes);

	madvise(p, bytes, MADV_HUGEPAGE);
	memset(p, 1, bytes);
	if (!is_huge(p))
		skip("the kernel gives no transparent hugepage");
	return p;
}

bool put(const char *path, const char *text)
{
	const int fd = open(path, O_WRONLY);
	const bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return done;
}

long get(const char *path)
{
	FILE *f = fopen(path, "r");
	long n = -1;

	if (f && fscanf(f, "%ld", &n) != 1)
		n = -1;
	if (f)
		fclose(f);
	return n;
}

pid_t child_of(int (*run)(void *arg), void *arg)
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid < 0)
		FAIL("fork: %s", strerror(errno));
	if (pid == 0)
		_exit(run(arg));
	return pid;
}

int wait_for(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return 1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void by_another(int (*run)(void *arg), void *arg)
{
	EQUAL(wait_for(child_of(run, arg)), 0);
}

char *file_memory(int *fd)
{
	char *p;

	*fd = memfd_create("guest", MFD_CLOEXEC);
	CHECK(*fd >= 0 && ftruncate(*fd, HUGE) == 0);
	p = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	CHECK(p != MAP_FAILED);
	memset(p, 1, HUGE);
	return p;
}
