/* SPDX-License-Identifier: BSD-2-Clause */
/* Formats of events, read from tracefs and taken apart by libtraceevent; symbols from /proc/kallsyms. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <traceevent/event-parse.h>
#include <unistd.h>
#include <vmm/tracefs.h>

static const struct {
	const char *event, *start, *end;
} events[UMBRA_TRACEPOINT_NR] = {
	[UMBRA_TRACEPOINT_UNMAP] = { "kvm_unmap_hva_range", "start", "end" },
	[UMBRA_TRACEPOINT_AGE] = { "kvm_age_hva", "start", "end" },
	[UMBRA_TRACEPOINT_TEST_AGE] = { "kvm_test_age_hva", "hva", "hva" },
};

static bool field_at(struct tep_event *event, const char *name, uint32_t *at)
{
	const struct tep_format_field *f = tep_find_field(event, name);

	if (!f || f->size != 8 || f->offset < 0)
		return false;
	*at = (uint32_t)f->offset;
	return true;
}

/* Where it is mounted since Linux 4.1, and where the debugging file system still has it. */
static const char *const mounts[] = { "/sys/kernel/tracing", "/sys/kernel/debug/tracing" };

/* Returns: bytes; -EACCES; -ENOENT. */
static ssize_t read_format(const char *event, char *text, size_t size)
{
	ssize_t n = -1;

	for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		char path[128];
		int fd;

		snprintf(path, sizeof(path), "%s/events/kvm/%s/format", mounts[i], event);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 && errno != ENOENT)
			return -EACCES;
		if (fd < 0)
			continue;
		n = read(fd, text, size);
		close(fd);
		break;
	}
	return n < 0 ? -ENOENT : n;
}

static bool mounted(void)
{
	return !access("/sys/kernel/tracing/events", F_OK) ||
	       !access("/sys/kernel/debug/tracing/events", F_OK) || errno == EACCES;
}

static int one_format(struct tep_handle *tep, unsigned int kind, struct umbra_tracepoint_format *f)
{
	struct tep_event *event;
	int e = -ENOTSUP;
	char text[4096];
	const ssize_t size = read_format(events[kind].event, text, sizeof(text));

	if (size < 0)
		return (int)size;
	if (tep_parse_event(tep, text, (unsigned long)size, "kvm"))
		return e;
	event = tep_find_event_by_name(tep, "kvm", events[kind].event);
	if (event && event->id > 0 && field_at(event, events[kind].start, &f->start_at) &&
	    field_at(event, events[kind].end, &f->end_at)) {
		f->id = (uint32_t)event->id;
		f->start_name = events[kind].start;
		f->end_name = events[kind].end;
		e = 0;
	}
	return e;
}

int tracefs_formats(struct umbra_tracepoint_format formats[UMBRA_TRACEPOINT_NR], char *why,
		    size_t size)
{
	struct tep_handle *tep;
	int e = 0;

	memset(formats, 0, UMBRA_TRACEPOINT_NR * sizeof(formats[0]));
	if (!mounted()) {
		snprintf(
			why, size,
			"tracefs is not there; as root: mount -t tracefs tracefs /sys/kernel/tracing");
		return -ENOENT;
	}
	tep = tep_alloc();
	if (!tep)
		return -ENOMEM;
	for (unsigned int i = 0; i < UMBRA_TRACEPOINT_NR && !e; i++) {
		e = one_format(tep, i, &formats[i]);
		/* of young pages an older kernel may tell nothing; without the first there is no point */
		if (e == -ENOENT && i != UMBRA_TRACEPOINT_UNMAP)
			e = 0;
		if (e)
			snprintf(why, size, "kvm:%s: %s%s", events[i].event,
				 e == -ENOTSUP ? "its fields are not those known here"
					       : strerror(-e),
				 e == -ENOENT   ? "; load KVM first (modprobe kvm)"
				 : e == -EACCES ? "; tracing needs root"
						: "");
	}
	tep_free(tep);
	return e;
}

void tracefs_no_witness(int error, char *why, size_t size)
{
	if (error == EACCES || error == EPERM)
		snprintf(why, size,
			 "perf_event_open: %s; run as root, or with CAP_PERFMON, or: sysctl "
			 "kernel.perf_event_paranoid=-1",
			 strerror(error));
	else
		snprintf(why, size, "perf_event_open: %s%s", strerror(error),
			 error == ENOENT || error == ENOSYS || error == EOPNOTSUPP
				 ? "; this kernel cannot read tracepoints through perf"
				 : "");
}

/* ---- symbols --------------------------------------------------------------------------------------- */

struct symbol {
	uint64_t address;
	char name[56];
};

struct tracefs_symbols {
	struct symbol *v;
	size_t nr;
};

static int by_address(const void *a, const void *b)
{
	const struct symbol *x = a, *y = b;

	return (x->address > y->address) - (x->address < y->address);
}

struct tracefs_symbols *tracefs_symbols_load(void)
{
	struct tracefs_symbols *s = calloc(1, sizeof(*s));
	FILE *f = fopen("/proc/kallsyms", "re");
	size_t room = 0;
	struct symbol one;
	char line[256], type;

	while (s && f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%" SCNx64 " %c %55s", &one.address, &type, one.name) != 3 ||
		    (type | 32) != 't' || !one.address)
			continue;
		if (s->nr == room) {
			struct symbol *more =
				reallocarray(s->v, room ? room * 2 : 1 << 16, sizeof(*more));

			if (!more)
				break;
			s->v = more;
			room = room ? room * 2 : 1 << 16;
		}
		s->v[s->nr++] = one;
	}
	if (f)
		fclose(f);
	if (s && !s->nr) {
		tracefs_symbols_free(s);
		return NULL;
	}
	if (s)
		qsort(s->v, s->nr, sizeof(*s->v), by_address);
	return s;
}

const char *tracefs_symbol(const struct tracefs_symbols *s, uint64_t address)
{
	size_t low = 0, high = s ? s->nr : 0;

	while (low < high) {
		const size_t mid = low + (high - low) / 2;

		if (s->v[mid].address <= address)
			low = mid + 1;
		else
			high = mid;
	}
	return low ? s->v[low - 1].name : NULL;
}

void tracefs_symbols_free(struct tracefs_symbols *s)
{
	if (!s)
		return;
	free(s->v);
	free(s);
}
