/* SPDX-License-Identifier: BSD-2-Clause */
/* Serial line, exit port, clock. Lines are put together for each vCPU apart and written whole, so
 * none is torn. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <vmm/devices.h>
#include <vmm/hostcall.h>
#include <vmm/limits.h>
#include <vmm/memory.h>
#include <vmm/vcpu.h>
#include <vmm/vm_private.h>

#define SERIAL_STATUS       (GUEST_PORT_SERIAL + 5)
#define SERIAL_STATUS_READY 0x60 /* transmitter empty; nothing to read */
#define LINE_MAX_BYTES      1024
#define LAST_WAIT_MS        1000 /* for a reader that does not read, when the machine has stopped */

/* Touched by its vCPU's thread only, and by devices_flush() once that has ended. */
struct line {
	char text[LINE_MAX_BYTES];
	size_t len;
	uint32_t clock_hi; /* latched by reading the low half */
	uint64_t bytes, lines, unknown;
};

struct devices {
	pthread_mutex_t out; /* one line at a time on standard output */
	int out_error; /* errno of the first write that failed: from then on nothing is written */
	bool exited;
	uint32_t exit_code;
	struct line line[VM_VCPUS_MAX];
};

int devices_create(struct vm *vm, struct vm_error *err)
{
	vm->devices = calloc(1, sizeof(*vm->devices));
	if (!vm->devices)
		return vm_fail_host(err, ENOMEM, "devices");
	pthread_mutex_init(&vm->devices->out, NULL);
	return 0;
}

void devices_destroy(struct vm *vm)
{
	if (!vm->devices)
		return;
	pthread_mutex_destroy(&vm->devices->out);
	free(vm->devices);
	vm->devices = NULL;
}

/*
 * The reader of our output may be slow, or gone. Slow: wait, but not for long past a stop of the machine (a
 * kick makes poll and write return EINTR). Gone: the guest goes on, its output is dropped, and that
 * is said once.
 */
static void write_out(struct vm *vm, const char *p, size_t len)
{
	struct devices *d = vm->devices;

	pthread_mutex_lock(&d->out);
	while (len && !d->out_error) {
		struct pollfd wait = { .fd = STDOUT_FILENO, .events = POLLOUT };
		ssize_t n;

		/* a line always fits a pipe that is ready: with this, the write does not block */
		if (vm_stopping(vm) && poll(&wait, 1, LAST_WAIT_MS) <= 0) {
			d->out_error = EAGAIN;
			break;
		}
		n = write(STDOUT_FILENO, p, len);

		if (n >= 0) {
			p += n;
			len -= (size_t)n;
		} else if (errno == EAGAIN) {
			if (poll(&wait, 1, 100) <= 0 && vm_stopping(vm))
				break;
		} else if (errno != EINTR) {
			d->out_error = errno;
			vm_log(vm, VM_LOG_WARN,
			       "standard output: %s; the guest's output is dropped",
			       strerror(d->out_error));
		} else if (vm_stopping(vm)) {
			break;
		}
	}
	pthread_mutex_unlock(&d->out);
}

int devices_output_error(struct vm *vm)
{
	int e;

	pthread_mutex_lock(&vm->devices->out);
	e = -vm->devices->out_error;
	pthread_mutex_unlock(&vm->devices->out);
	return e;
}

static void flush_line(struct vm *vm, struct line *line)
{
	if (!line->len)
		return;
	line->lines++;
	write_out(vm, line->text, line->len);
	line->len = 0;
}

static void serial_put(struct vm *vm, struct line *line, char c)
{
	line->text[line->len++] = c;
	line->bytes++;
	if (c == '\n' || line->len == sizeof(line->text))
		flush_line(vm, line);
}

void devices_flush(struct vm *vm)
{
	for (unsigned int i = 0; vm->devices && i < VM_VCPUS_MAX; i++)
		flush_line(vm, &vm->devices->line[i]);
}

static void exit_port(struct vm *vm, uint32_t code)
{
	struct devices *d = vm->devices;

	pthread_mutex_lock(&d->out);
	if (!d->exited) {
		d->exited = true;
		d->exit_code = code;
	}
	pthread_mutex_unlock(&d->out);
	if (code)
		vm_stop(vm, VMM_EXIT_GUEST_FAIL, "the guest reported failure %u", code);
	else
		vm_stop(vm, VMM_EXIT_OK, "the guest reported success");
}

void dev_out(struct vm *vm, struct vcpu *vcpu, uint16_t port, unsigned int bytes, uint32_t value)
{
	struct line *line = &vm->devices->line[vcpu_index(vcpu)];

	if (port == GUEST_PORT_SERIAL && bytes == 1)
		serial_put(vm, line, (char)value);
	else if (port == GUEST_PORT_EXIT && bytes == 4)
		exit_port(vm, value);
	else if (port == GUEST_PORT_HOSTCALL && bytes == 4)
		hostcall(vm, vcpu, (gpa_t){ value });
	else
		line->unknown++;
}

uint32_t dev_in(struct vm *vm, struct vcpu *vcpu, uint16_t port, unsigned int bytes)
{
	struct line *line = &vm->devices->line[vcpu_index(vcpu)];
	struct timespec now;
	uint64_t ns;

	if (port == SERIAL_STATUS && bytes == 1)
		return SERIAL_STATUS_READY;
	if (port == GUEST_PORT_CLOCK_HI && bytes == 4)
		return line->clock_hi;
	if (port == GUEST_PORT_CLOCK_LO && bytes == 4) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		ns = (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec - vm->start_ns;
		line->clock_hi = (uint32_t)(ns >> 32);
		return (uint32_t)ns;
	}
	line->unknown++;
	return bytes == 4 ? ~0U : (1U << bytes * 8) - 1;
}

uint64_t dev_outs(struct vm *vm, struct vcpu *vcpu, uint16_t port, unsigned int bytes, gpa_t from,
		  uint64_t count)
{
	uint64_t done = 0;
	char buf[1024];

	while (done < count && !vm_stopping(vm)) {
		uint64_t values = sizeof(buf) / bytes;
		size_t size;

		values = values < count - done ? values : count - done;
		size = (size_t)values * bytes;
		/* Not across the end of memory in one piece: what lies before it is still put out.
		 */
		if (from.v < vm->config.memory && size > vm->config.memory - from.v) {
			values = (vm->config.memory - from.v) / bytes;
			size = (size_t)values * bytes;
		}
		if (!values || guest_read(vm, from, buf, size))
			break;
		for (size_t at = 0; at < size && !vm_stopping(vm); at += bytes, done++) {
			uint32_t value = 0;

			memcpy(&value, buf + at, bytes);
			dev_out(vm, vcpu, port, bytes, value);
		}
		from.v += size;
	}
	return done;
}

void devices_stats(struct vm *vm, struct devices_stats *stats)
{
	struct devices *d = vm->devices;

	*stats = (struct devices_stats){ 0 };
	for (unsigned int i = 0; i < VM_VCPUS_MAX; i++) {
		stats->serial_bytes += d->line[i].bytes;
		stats->serial_lines += d->line[i].lines;
		stats->unknown_ports += d->line[i].unknown;
	}
	pthread_mutex_lock(&d->out);
	stats->exited = d->exited;
	stats->exit_code = d->exit_code;
	pthread_mutex_unlock(&d->out);
}
