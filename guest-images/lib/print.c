/* SPDX-License-Identifier: BSD-2-Clause */
/* Console lines: a small printf into a buffer, sent by one `rep outsb` so that a line costs one
 * exit. */
#include "guest.h"

struct out {
	char text[240];
	unsigned int n;
};

void checks_count(bool ok);

static void put(struct out *o, char c)
{
	if (o->n < sizeof(o->text))
		o->text[o->n++] = c;
}

static void put_text(struct out *o, const char *s)
{
	while (*s)
		put(o, *s++);
}

static void put_number(struct out *o, uint64_t v, unsigned int base)
{
	char digits[24];
	unsigned int n = 0;

	do {
		digits[n++] = "0123456789abcdef"[v % base];
		v /= base;
	} while (v);
	while (n)
		put(o, digits[--n]);
}

static void put_signed(struct out *o, int64_t v)
{
	if (v < 0)
		put(o, '-');
	put_number(o, v < 0 ? 0 - (uint64_t)v : (uint64_t)v, 10);
}

/* %s %c %d %u %x, with l or ll before d, u and x. */
static void format(struct out *o, const char *fmt, va_list ap)
{
	for (; *fmt; fmt++) {
		bool wide = false;

		if (*fmt != '%') {
			put(o, *fmt);
			continue;
		}
		while (*++fmt == 'l')
			wide = true;
		switch (*fmt) {
		case 's': put_text(o, va_arg(ap, const char *)); break;
		case 'c': put(o, (char)va_arg(ap, int)); break;
		case 'd': put_signed(o, wide ? va_arg(ap, int64_t) : va_arg(ap, int)); break;
		case 'u':
			put_number(o, wide ? va_arg(ap, uint64_t) : va_arg(ap, unsigned int), 10);
			break;
		case 'x':
			put_number(o, wide ? va_arg(ap, uint64_t) : va_arg(ap, unsigned int), 16);
			break;
		case '%': put(o, '%'); break;
		default: put(o, '?'); return;
		}
	}
}

static void send(const struct out *o)
{
	const char *from = o->text;
	uint64_t n = o->n;

	__asm__ __volatile__("rep outsb" : "+S"(from), "+c"(n) : "d"(GUEST_PORT_SERIAL) : "memory");
}

void say(const char *fmt, ...)
{
	struct out o;
	va_list ap;

	o.n = 0;
	va_start(ap, fmt);
	format(&o, fmt, ap);
	va_end(ap);
	send(&o);
}

bool check_line(bool ok, const char *fmt, ...)
{
	struct out o;
	va_list ap;

	o.n = 0;
	put_text(&o, ok ? "ok - " : "FAIL - ");
	va_start(ap, fmt);
	format(&o, fmt, ap);
	va_end(ap);
	put(&o, '\n');
	send(&o);
	checks_count(ok);
	return ok;
}
