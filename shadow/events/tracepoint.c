/* SPDX-License-Identifier: BSD-2-Clause */
/* KVM's tracepoints through perf: one ring a CPU, into which its three events go. */
#include <errno.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shadow/events/tracepoint.h"

struct cpu_ring {
	int fd[UMBRA_TRACEPOINT_NR]; /* the first that is open owns the ring */
	struct perf_event_mmap_page *page;
};

struct umbra_tracepoint {
	struct tracepoint_parser parser;
	struct cpu_ring *cpus;
	struct pollfd *polls;
	unsigned int nr_cpus;
	size_t ring_bytes; /* of the data */
	char copy[1 << 16];
};

/* ---- records ----------------------------------------------------------------------------------- */

static bool take(const unsigned char **at, size_t *left, void *to, size_t bytes)
{
	if (*left < bytes)
		return false;
	memcpy(to, *at, bytes);
	*at += bytes;
	*left -= bytes;
	return true;
}

/* The order of fields is that of perf_event_open(2) for TID | TIME | CALLCHAIN | RAW. */
static bool parse_sample(struct tracepoint_parser *p, const unsigned char *at, size_t left,
			 struct umbra_tracepoint_record *rec)
{
	const struct umbra_tracepoint_format *f;
	uint64_t nr, ip;
	uint32_t ids[2], size;
	uint16_t type;
	unsigned int kind = 0;

	*rec = (struct umbra_tracepoint_record){ 0 };
	if (!take(&at, &left, ids, sizeof(ids)) || !take(&at, &left, &rec->time_ns, 8))
		return false;
	rec->pid = (int32_t)ids[0];
	rec->tid = (int32_t)ids[1];
	if (p->stacks) {
		if (!take(&at, &left, &nr, sizeof(nr)))
			return false;
		for (; nr; nr--) {
			if (!take(&at, &left, &ip, sizeof(ip)))
				return false;
			/* the others are marks between kernel and user parts */
			if (ip < PERF_CONTEXT_MAX && rec->nr_stack < UMBRA_TRACEPOINT_STACK_MAX)
				rec->stack[rec->nr_stack++] = ip;
		}
	}
	if (!take(&at, &left, &size, sizeof(size)) || left < size || size < sizeof(type))
		return false;
	memcpy(&type, at, sizeof(type)); /* common_type comes first in every event */
	while (kind < UMBRA_TRACEPOINT_NR && p->formats[kind].id != type)
		kind++;
	if (kind == UMBRA_TRACEPOINT_NR)
		return false;
	f = &p->formats[kind];
	if (size < 8 || f->start_at > size - 8 || f->end_at > size - 8)
		return false;
	rec->kind = (enum umbra_tracepoint_kind)kind;
	memcpy(&rec->hva.start.v, at + f->start_at, 8);
	memcpy(&rec->hva.end.v, at + f->end_at, 8);
	if (f->end_at == f->start_at)
		rec->hva.end.v += UMBRA_PAGE_SIZE;
	return true;
}

static bool watched(const struct tracepoint_parser *p, struct hva_range r)
{
	for (uint32_t i = 0; i < p->nr; i++) {
		if (p->ranges[i].start.v < r.end.v && r.start.v < p->ranges[i].end.v)
			return true;
	}
	return false;
}

bool tracepoint_parse(struct tracepoint_parser *p, const void *bytes, size_t size,
		      struct umbra_tracepoint_record *rec)
{
	const unsigned char *at = bytes;
	struct perf_event_header h;
	uint64_t lost[2];

	if (!take(&at, &size, &h, sizeof(h)))
		return false;
	if (h.type == PERF_RECORD_LOST && take(&at, &size, lost, sizeof(lost)))
		p->stats.lost += lost[1]; /* id, then how many */
	if (h.type != PERF_RECORD_SAMPLE || !parse_sample(p, at, size, rec))
		return false;
	if (!watched(p, rec->hva)) {
		p->stats.elsewhere++;
		return false;
	}
	p->stats.records[rec->kind]++;
	return true;
}

/* ---- rings --------------------------------------------------------------------------------------- */

static void drain_ring(struct umbra_tracepoint *w, struct perf_event_mmap_page *page,
		       void (*fn)(void *ctx, const struct umbra_tracepoint_record *), void *ctx)
{
	const char *data = (const char *)page + page->data_offset;
	/* pairs with the kernel's barrier before it moves the head */
	const uint64_t head = __atomic_load_n(&page->data_head, __ATOMIC_ACQUIRE);
	uint64_t tail = page->data_tail;
	struct umbra_tracepoint_record rec;

	while (tail < head) {
		const uint64_t at = tail & (w->ring_bytes - 1);
		const struct perf_event_header *h = (const void *)(data + at);
		const size_t size = h->size; /* 8-byte steps: a header is never cut */
		const size_t first = w->ring_bytes - at < size ? w->ring_bytes - at : size;

		if (size < sizeof(*h) || size > sizeof(w->copy))
			break;
		memcpy(w->copy, data + at, first);
		memcpy(w->copy + first, data, size - first);
		if (tracepoint_parse(&w->parser, w->copy, size, &rec) && fn)
			fn(ctx, &rec);
		tail += size;
	}
	/* pairs with the kernel's barrier after it has looked at the tail */
	__atomic_store_n(&page->data_tail, tail, __ATOMIC_RELEASE);
}

void umbra_tracepoint_drain(struct umbra_tracepoint *w,
			    void (*fn)(void *ctx, const struct umbra_tracepoint_record *record),
			    void *ctx)
{
	for (unsigned int cpu = 0; cpu < w->nr_cpus; cpu++) {
		if (w->cpus[cpu].page)
			drain_ring(w, w->cpus[cpu].page, fn, ctx);
	}
}

int umbra_tracepoint_wait(struct umbra_tracepoint *w, int timeout_ms)
{
	return poll(w->polls, w->nr_cpus, timeout_ms) < 0 && errno != EINTR ? -errno : 0;
}

void umbra_tracepoint_stats(const struct umbra_tracepoint *w, struct umbra_tracepoint_stats *stats)
{
	*stats = w->parser.stats;
}

/* ---- opening --------------------------------------------------------------------------------------- */

static int open_event(const struct umbra_tracepoint *w, unsigned int kind, unsigned int cpu)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT,
		.size = sizeof(attr),
		.config = w->parser.formats[kind].id,
		.sample_period = 1,
		.sample_type = PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_RAW |
			       (w->parser.stacks ? (uint64_t)PERF_SAMPLE_CALLCHAIN : 0),
		.exclude_callchain_user = 1,
		.use_clockid = 1,
		.clockid = CLOCK_MONOTONIC,
		.watermark = 1,
		.wakeup_watermark = (uint32_t)(w->ring_bytes / 2),
		.disabled = 1,
	};

	return (int)syscall(SYS_perf_event_open, &attr, -1, (int)cpu, -1, PERF_FLAG_FD_CLOEXEC);
}

/* What is far away does not even reach the ring. */
static int set_filter(const struct umbra_tracepoint *w, unsigned int kind, int fd)
{
	const struct umbra_tracepoint_format *f = &w->parser.formats[kind];
	const uint64_t low = w->parser.ranges[0].start.v;
	const uint64_t high = w->parser.ranges[w->parser.nr - 1].end.v;
	char filter[256];

	if (f->start_at == f->end_at)
		snprintf(filter, sizeof(filter), "%s >= %llu && %s < %llu", f->start_name,
			 (unsigned long long)low, f->start_name, (unsigned long long)high);
	else
		snprintf(filter, sizeof(filter), "%s < %llu && %s > %llu", f->start_name,
			 (unsigned long long)high, f->end_name, (unsigned long long)low);
	return ioctl(fd, PERF_EVENT_IOC_SET_FILTER, filter) ? -errno : 0;
}

static int open_cpu(struct umbra_tracepoint *w, unsigned int cpu)
{
	struct cpu_ring *ring = &w->cpus[cpu];
	int owner = -1, e = 0;
	void *page;

	for (unsigned int kind = 0; kind < UMBRA_TRACEPOINT_NR && !e; kind++) {
		int fd;

		if (!w->parser.formats[kind].id)
			continue;
		fd = open_event(w, kind, cpu);
		if (fd < 0 && errno == ENODEV)
			return 0; /* a CPU that is switched off records nothing */
		if (fd < 0)
			return -errno;
		ring->fd[kind] = fd;
		e = set_filter(w, kind, fd);
		if (!e && owner >= 0 && ioctl(fd, PERF_EVENT_IOC_SET_OUTPUT, owner))
			e = -errno;
		if (e || owner >= 0)
			continue;
		owner = fd;
		page = mmap(NULL, w->ring_bytes + UMBRA_PAGE_SIZE, PROT_READ | PROT_WRITE,
			    MAP_SHARED, fd, 0);
		if (page == MAP_FAILED)
			return -errno;
		ring->page = page;
		w->polls[cpu] = (struct pollfd){ .fd = fd, .events = POLLIN };
	}
	for (unsigned int kind = 0; kind < UMBRA_TRACEPOINT_NR && !e; kind++) {
		if (ring->fd[kind] >= 0 && ioctl(ring->fd[kind], PERF_EVENT_IOC_ENABLE, 0))
			e = -errno;
	}
	return e;
}

int tracepoint_parser_init(struct tracepoint_parser *p, const struct umbra_tracepoint_config *c)
{
	bool any = false;

	if (!c->nr)
		return -EINVAL;
	for (unsigned int i = 0; i < UMBRA_TRACEPOINT_NR; i++)
		any |= c->formats[i].id != 0;
	if (!any)
		return -ENOENT;
	memcpy(p->formats, c->formats, sizeof(p->formats));
	p->stacks = c->stacks;
	p->nr = c->nr;
	p->ranges = malloc(c->nr * sizeof(*p->ranges));
	if (!p->ranges)
		return -ENOMEM;
	memcpy(p->ranges, c->ranges, c->nr * sizeof(*p->ranges));
	return 0;
}

int umbra_tracepoint_open(struct umbra_tracepoint **out, const struct umbra_tracepoint_config *c)
{
	const long cpus = sysconf(_SC_NPROCESSORS_CONF);
	struct umbra_tracepoint *w;
	int e;

	if (c->ring_order > 16)
		return -EINVAL;
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	e = tracepoint_parser_init(&w->parser, c);
	w->nr_cpus = cpus > 0 ? (unsigned int)cpus : 1;
	w->ring_bytes = UMBRA_PAGE_SIZE << (c->ring_order ? c->ring_order : 6);
	w->cpus = calloc(w->nr_cpus, sizeof(*w->cpus));
	w->polls = calloc(w->nr_cpus, sizeof(*w->polls));
	if (!e && (!w->cpus || !w->polls))
		e = -ENOMEM;
	for (unsigned int cpu = 0; w->cpus && w->polls && cpu < w->nr_cpus; cpu++) {
		memset(w->cpus[cpu].fd, -1, sizeof(w->cpus[cpu].fd));
		w->polls[cpu].fd = -1;
	}
	for (unsigned int cpu = 0; cpu < w->nr_cpus && !e; cpu++)
		e = open_cpu(w, cpu);
	if (e) {
		umbra_tracepoint_close(w);
		return e;
	}
	*out = w;
	return 0;
}

void umbra_tracepoint_close(struct umbra_tracepoint *w)
{
	if (!w)
		return;
	for (unsigned int cpu = 0; w->cpus && w->polls && cpu < w->nr_cpus; cpu++) {
		if (w->cpus[cpu].page)
			munmap(w->cpus[cpu].page, w->ring_bytes + UMBRA_PAGE_SIZE);
		for (unsigned int kind = 0; kind < UMBRA_TRACEPOINT_NR; kind++) {
			if (w->cpus[cpu].fd[kind] >= 0)
				close(w->cpus[cpu].fd[kind]);
		}
	}
	free(w->cpus);
	free(w->polls);
	free(w->parser.ranges);
	free(w);
}
