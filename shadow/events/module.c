/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The kernel module as a source: its ring, drained to the chain, and what becomes of lost records.
 *
 * Lock: @lock is taken for a drain and held over the chain's callbacks, so that records are
 * announced in the order the kernel wrote them. A vCPU may wait for it: it is outside the guest then.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "shadow/events/direct.h"
#include "shadow/events/module.h"

/* The kernel changes ranges only while nothing is open in the address space: how long that is waited for. */
#define RANGES_PATIENCE_MS 1000
#define RANGES_YIELDS      16 /* tries that only let others run, before the first that sleeps */
#define RANGES_PAUSE_NS    50000L
#define RANGES_PAUSE_MAX   1000000L

struct umbra_module {
	struct umbra_chain *chain;
	int fd, wake;
	bool owned;
	_Atomic bool stop;
	void *state_map, *consumer_map;
	size_t state_bytes, consumer_bytes;
	uint64_t *bitmap;

	pthread_mutex_t lock;
	struct umbra_ring_consumer ring;
	uint64_t applied; /* the gate reads it without the lock */
	struct umbra_gate gate;
	uint64_t open;       /* starts on the chain without their ends */
	int32_t nesting_who; /* the thread whose start was the last, while it is open */
	uint32_t nesting;
	uint64_t lost_seen; /* of the state's @lost, answered */
	/* After a loss: one bracket over everything, until what was open in the kernel has ended. */
	bool recovering;
	uint64_t recovering_open;
	bool dead;
	struct umbra_module_stats stats;
	struct direct direct;
	struct hva_range watched; /* from the first range's start to the last one's end */

	pthread_rwlock_t ranges_lock;
	struct module_range *ranges;
	uint32_t nr, page_shift;
	uint64_t bitmap_bits;

	uint32_t age_ms;
	void (*age)(void *ctx);
	void *ctx;
};

static const struct umbra_range everything = {
	.hull = { { 0 }, { ~0ULL } },
	.flags = UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_FORCED | UMBRA_RANGE_RELOCATES,
	.cause = UMBRA_CAUSE_LOST,
	.source = UMBRA_SOURCE_MODULE,
};

/* Lock held. From here on lookups that ask the gate rely on what was announced. */
static void set_applied(struct umbra_module *m, uint64_t begun)
{
	__atomic_store_n(&m->applied, begun, __ATOMIC_RELEASE);
}

static void end_recovery(struct umbra_module *m)
{
	if (!m->recovering || m->recovering_open)
		return;
	m->recovering = false;
	umbra_invalidate_end(m->chain, &everything);
}

/* The ends of all starts on the chain, whatever their ranges: ends are counted. */
static void end_open(struct umbra_module *m)
{
	for (; m->open; m->open--)
		umbra_invalidate_end(m->chain, &everything);
}

/* Nothing more will come: whatever is open ends. */
static void end_all(struct umbra_module *m)
{
	end_open(m);
	m->recovering_open = 0;
	end_recovery(m);
}

/*
 * Records were lost: which starts and ends they were nobody knows. Everything is dropped, and stays
 * refused until nothing is open in the kernel: the counters say so.
 */
static void recover(struct umbra_module *m)
{
	struct umbra_ntf_snapshot now;

	if (!m->recovering) {
		umbra_invalidate_start(m->chain, &everything);
		m->recovering = true;
	}
	/* What was begun before this is covered by the bracket; what begins later has its record. */
	umbra_ntf_read(m->ring.state, &now);
	m->lost_seen = now.lost;
	m->ring.tail = now.head;
	umbra_ring_store(&m->ring.consumer->tail, now.head);
	end_open(m);
	m->recovering_open = now.begun - now.ended;
	m->nesting = 0;
	m->stats.recoveries++;
	set_applied(m, now.begun);
	end_recovery(m);
}

/* For people, too: threads that run at the same time may hide a nesting, never invent one. */
static void count_nested(struct umbra_module *m, const struct umbra_ntf_record *rec)
{
	if (rec->kind == UMBRA_NTF_END) {
		m->nesting -= rec->who == m->nesting_who && m->nesting > 0;
	} else if (rec->who && rec->who == m->nesting_who && m->nesting) {
		m->stats.nested++;
		m->nesting++;
	} else {
		m->nesting_who = rec->who;
		m->nesting = rec->who != 0;
	}
}

static void count_start(struct umbra_module *m, const struct umbra_ntf_record *rec)
{
	m->stats.starts++;
	if (rec->flags & UMBRA_NTF_RECLAIM)
		m->stats.by_reclaim++;
	else if (rec->flags & UMBRA_NTF_KTHREAD)
		m->stats.by_kthread++;
	else if (rec->flags & UMBRA_NTF_OWNER)
		m->stats.by_owner++;
	else
		m->stats.by_others++;
	m->stats.not_blockable += !(rec->flags & UMBRA_NTF_BLOCKABLE);
	count_nested(m, rec);
}

/* The end is the record behind it, as nearly always: what was announced is over. Takes the end out of the ring. */
static bool over_already(struct umbra_module *m, const struct umbra_ntf_record *rec)
{
	const struct umbra_ntf_record *end = umbra_ring_next(&m->ring);

	if (!end || end->kind != UMBRA_NTF_END || end->start != rec->start ||
	    end->end != rec->end || end->who != rec->who)
		return false;
	m->stats.ends++;
	count_nested(m, end);
	umbra_ring_skip(&m->ring);
	return true;
}

static void apply(struct umbra_module *m, const struct umbra_ntf_record *rec)
{
	struct umbra_range r = record_range(rec);

	switch (rec->kind) {
	case UMBRA_NTF_START:
		count_start(m, rec);
		if (direct_told(&m->direct, rec, m->watched, &m->stats.direct)) {
			m->stats.direct++;
			r.flags |= UMBRA_RANGE_DIRECT;
		}
		if (m->recovering) { /* all is refused already */
			m->recovering_open++;
		} else if (over_already(m, rec)) {
			umbra_invalidate_range(m->chain, &r);
		} else {
			umbra_invalidate_start(m->chain, &r);
			m->open++;
		}
		set_applied(m, rec->begun);
		break;
	case UMBRA_NTF_END:
		m->stats.ends++;
		count_nested(m, rec);
		if (m->recovering) {
			m->recovering_open -= m->recovering_open > 0;
			end_recovery(m);
		} else if (m->open) {
			m->open--;
			umbra_invalidate_end(m->chain, &r);
		}
		break;
	case UMBRA_NTF_RELEASE:
		m->dead = true;
		umbra_release(m->chain);
		set_applied(m, rec->begun);
		break;
	default: break;
	}
}

void umbra_module_drain(struct umbra_module *m)
{
	struct umbra_ntf_record rec;

	pthread_mutex_lock(&m->lock);
	for (;;) {
		if (umbra_ring_load(&m->ring.state->lost) != m->lost_seen)
			recover(m);
		else if (umbra_ring_pop(&m->ring, &rec))
			apply(m, &rec);
		else if (umbra_ring_load(&m->ring.state->lost) == m->lost_seen)
			break; /* empty, and nothing was dropped before it was */
	}
	/* the record of the end may be among the lost */
	if (umbra_ring_load(&m->ring.state->dead))
		m->dead = true;
	if (m->dead) {
		umbra_release(m->chain);
		end_all(m);
	}
	pthread_mutex_unlock(&m->lock);
}

/* ---- the reader ------------------------------------------------------------------------------- */

void module_age_by(struct umbra_module *m, uint32_t age_ms, void (*age)(void *ctx), void *ctx)
{
	m->age_ms = age_ms ? age_ms : 1000;
	m->age = age;
	m->ctx = ctx;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

int umbra_module_run(struct umbra_module *m)
{
	struct pollfd fds[2] = { { .fd = m->fd, .events = POLLIN },
				 { .fd = m->wake, .events = POLLIN } };
	uint64_t count, now, next = m->age ? now_ms() + m->age_ms : 0;
	int wait = -1;

	while (!m->stop) {
		umbra_module_drain(m);
		if (m->dead)
			return -ESHUTDOWN;
		if (m->age) {
			now = now_ms();
			if (now >= next) {
				m->age(m->ctx);
				next = now + m->age_ms;
			}
			wait = (int)(next - now);
		}
		if (poll(fds, 2, wait) < 0 && errno != EINTR)
			return -errno;
		if ((fds[1].revents & POLLIN) && read(m->wake, &count, sizeof(count)) < 0)
			return -errno;
	}
	umbra_module_drain(m);
	m->stop = false;
	return 0;
}

void umbra_module_stop(struct umbra_module *m)
{
	const uint64_t one = 1;

	m->stop = true;
	if (write(m->wake, &one, sizeof(one)) < 0)
		return; /* full: it is awake */
}

const struct umbra_gate *umbra_module_gate(const struct umbra_module *m)
{
	return &m->gate;
}

void umbra_module_stats(struct umbra_module *m, struct umbra_module_stats *stats)
{
	pthread_mutex_lock(&m->lock);
	direct_catch_up(&m->direct, &m->stats.direct);
	*stats = m->stats;
	stats->lost = umbra_ring_load(&m->ring.state->lost);
	stats->young_asked = umbra_ring_load(&m->ring.state->young_asked);
	stats->young_yes = umbra_ring_load(&m->ring.state->young_yes);
	stats->dead = m->dead;
	pthread_mutex_unlock(&m->lock);
}

/* ---- young ------------------------------------------------------------------------------------ */

/* Bits are numbered as the kernel numbers them: range by range. */
static struct module_range *number(const struct hva_range *ranges, uint32_t nr, uint32_t shift,
				   uint64_t *bits)
{
	struct module_range *v = calloc(nr, sizeof(*v));

	*bits = 0;
	for (uint32_t i = 0; v && i < nr; i++) {
		v[i] = (struct module_range){ ranges[i], *bits };
		*bits += ((ranges[i].end.v - 1) >> shift) - (ranges[i].start.v >> shift) + 1;
	}
	return v;
}

void umbra_module_young(struct umbra_module *m, struct hva_range r)
{
	if (!m->bitmap)
		return;
	pthread_rwlock_rdlock(&m->ranges_lock);
	for (uint32_t i = 0; i < m->nr && m->ranges[i].hva.start.v < r.end.v; i++) {
		const struct hva_range w = m->ranges[i].hva;
		const uint64_t start = r.start.v > w.start.v ? r.start.v : w.start.v;
		const uint64_t end = r.end.v < w.end.v ? r.end.v : w.end.v;
		const uint64_t base = w.start.v >> m->page_shift;

		for (uint64_t n = start >> m->page_shift;
		     start < end && n <= (end - 1) >> m->page_shift; n++) {
			const uint64_t bit = m->ranges[i].bit + n - base;

			if (bit < m->bitmap_bits)
				__atomic_fetch_or(&m->bitmap[bit / 64], 1ULL << bit % 64,
						  __ATOMIC_RELAXED);
		}
	}
	pthread_rwlock_unlock(&m->ranges_lock);
}

/* ---- opening ---------------------------------------------------------------------------------- */

int module_over(struct umbra_module **out, struct umbra_chain *chain,
		const struct umbra_ring_consumer *ring, uint64_t *bitmap,
		const struct hva_range *ranges, uint32_t nr, uint32_t page_shift)
{
	struct umbra_module *m = calloc(1, sizeof(*m));
	struct umbra_ntf_snapshot now;
	uint64_t bits;
	int err;

	if (!m)
		return -ENOMEM;
	m->chain = chain;
	m->fd = -1;
	m->ring = *ring;
	m->bitmap = bitmap;
	m->page_shift = page_shift;
	m->nr = nr;
	m->watched = (struct hva_range){ ranges[0].start, ranges[nr - 1].end };
	m->ranges = number(ranges, nr, page_shift, &bits);
	m->bitmap_bits = ring->state->bitmap_bits;
	m->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	err = !m->ranges ? -ENOMEM : m->wake < 0 ? -errno : direct_init(&m->direct, chain);
	if (err) {
		free(m->ranges);
		if (m->wake >= 0)
			close(m->wake);
		free(m);
		return err;
	}
	pthread_mutex_init(&m->lock, NULL);
	pthread_rwlock_init(&m->ranges_lock, NULL);
	m->gate = (struct umbra_gate){ (const uint64_t *)&m->ring.state->begun, &m->applied };
	/* What was recorded before this is over or open: as after a loss, everything is dropped once. */
	umbra_ntf_read(m->ring.state, &now);
	if (now.begun) {
		recover(m);
		m->stats.recoveries = 0;
	}
	*out = m;
	return 0;
}

/* Shared pages of an attached descriptor. */
static int map_pages(struct umbra_module *m, size_t state_bytes, size_t consumer_bytes)
{
	void *state = mmap(NULL, state_bytes, PROT_READ, MAP_SHARED, m->fd,
			   (off_t)UMBRA_NTF_OFFSET_STATE);
	void *consumer;

	if (state == MAP_FAILED)
		return -errno;
	consumer = mmap(NULL, consumer_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd,
			(off_t)UMBRA_NTF_OFFSET_CONSUMER);
	if (consumer == MAP_FAILED) {
		const int err = -errno;

		munmap(state, state_bytes);
		return err;
	}
	m->state_map = state;
	m->consumer_map = consumer;
	m->state_bytes = state_bytes;
	m->consumer_bytes = consumer_bytes;
	return 0;
}

static struct umbra_ntf_range *abi_ranges(const struct hva_range *ranges, uint32_t nr)
{
	struct umbra_ntf_range *v = calloc(nr, sizeof(*v));

	for (uint32_t i = 0; v && i < nr; i++)
		v[i] = (struct umbra_ntf_range){ ranges[i].start.v, ranges[i].end.v };
	return v;
}

static int attach(int fd, const struct umbra_module_config *c, struct umbra_ntf_attach *a)
{
	struct umbra_ntf_range *ranges = abi_ranges(c->ranges, c->nr);
	int rc;

	if (!ranges)
		return -ENOMEM;
	*a = (struct umbra_ntf_attach){
		.size = sizeof(*a),
		.nr_ranges = c->nr,
		.ranges = (uintptr_t)ranges,
		.ring_order = c->ring_order ? c->ring_order : 14,
		.page_shift = c->page_shift ? c->page_shift : UMBRA_PAGE_SHIFT,
	};
	do
		rc = ioctl(fd, UMBRA_NTF_ATTACH, a) ? -errno : 0;
	while (rc == -EINTR);
	free(ranges);
	return rc;
}

/* What another process attached: its sizes are in the state page. */
static int sizes_of(int fd, struct umbra_ntf_attach *a)
{
	const struct umbra_ntf_state *s = mmap(NULL, UMBRA_NTF_PAGE, PROT_READ, MAP_SHARED, fd,
					       (off_t)UMBRA_NTF_OFFSET_STATE);
	int rc = 0;

	if (s == MAP_FAILED)
		return -errno;
	if (s->magic != UMBRA_NTF_MAGIC || s->abi != UMBRA_NTF_ABI) {
		rc = -EPROTO;
	} else {
		*a = (struct umbra_ntf_attach){
			.page_shift = s->page_shift,
			.state_bytes = UMBRA_NTF_PAGE + s->nr_records * s->record_size,
			.consumer_bytes = UMBRA_NTF_PAGE + s->bitmap_bits / 8,
		};
	}
	munmap((void *)(uintptr_t)s, UMBRA_NTF_PAGE);
	return rc;
}

int umbra_module_open(struct umbra_module **out, struct umbra_chain *chain,
		      const struct umbra_module_config *config)
{
	struct umbra_module mapped = { .fd = config->fd, .owned = config->fd < 0 }, *m;
	struct umbra_ntf_attach a;
	struct umbra_ring_consumer ring;
	int rc = 0;

	if (!config->nr)
		return -EINVAL;
	if (mapped.owned)
		mapped.fd = open(UMBRA_NTF_DEVICE, O_RDWR | O_CLOEXEC);
	if (mapped.fd < 0)
		return -errno;
	rc = sizes_of(mapped.fd, &a);
	if (rc == -ENOTCONN)
		rc = attach(mapped.fd, config, &a);
	rc = rc ? rc : map_pages(&mapped, a.state_bytes, a.consumer_bytes);
	if (rc)
		goto fail;
	ring = (struct umbra_ring_consumer){
		.records = (void *)((char *)mapped.state_map + UMBRA_NTF_PAGE),
		.state = mapped.state_map,
		.consumer = mapped.consumer_map,
	};
	if (ring.state->magic != UMBRA_NTF_MAGIC || ring.state->abi != UMBRA_NTF_ABI ||
	    ring.state->record_size != sizeof(struct umbra_ntf_record)) {
		rc = -EPROTO;
		goto fail_map;
	}
	ring.mask = ring.state->nr_records - 1;
	rc = module_over(&m, chain, &ring, (void *)((char *)mapped.consumer_map + UMBRA_NTF_PAGE),
			 config->ranges, config->nr, a.page_shift);
	if (rc)
		goto fail_map;
	module_age_by(m, config->age_ms, config->age, config->ctx);
	m->fd = mapped.fd;
	m->owned = mapped.owned;
	m->state_map = mapped.state_map;
	m->consumer_map = mapped.consumer_map;
	m->state_bytes = mapped.state_bytes;
	m->consumer_bytes = mapped.consumer_bytes;
	*out = m;
	return 0;
fail_map:
	munmap(mapped.state_map, mapped.state_bytes);
	munmap(mapped.consumer_map, mapped.consumer_bytes);
fail:
	if (mapped.owned)
		close(mapped.fd);
	return rc;
}

/* One try. The lock is not kept between tries: whoever marks pages young is not held up by an invalidation. */
static int try_ranges(struct umbra_module *m, const struct umbra_ntf_ranges *a,
		      struct module_range **ranges)
{
	int rc;

	pthread_rwlock_wrlock(&m->ranges_lock);
	/* bits mean the new ranges from the call on; until then a cleared one only says "not young" */
	memset(m->bitmap, 0, m->bitmap_bits / 8);
	rc = ioctl(m->fd, UMBRA_NTF_RANGES, a) ? -errno : 0;
	if (!rc) {
		struct module_range *old = m->ranges;

		m->ranges = *ranges;
		m->nr = a->nr_ranges;
		*ranges = old;
	}
	pthread_rwlock_unlock(&m->ranges_lock);
	return rc;
}

/* What is open ends when its thread runs: first it is given the CPU, then time. */
static void let_it_end(unsigned int tries)
{
	const unsigned int doublings = tries < RANGES_YIELDS ? 0 : tries - RANGES_YIELDS;
	const long ns = doublings > 8 ? RANGES_PAUSE_MAX : RANGES_PAUSE_NS << doublings;
	const struct timespec pause = { 0, ns < RANGES_PAUSE_MAX ? ns : RANGES_PAUSE_MAX };

	if (tries < RANGES_YIELDS)
		sched_yield();
	else
		nanosleep(&pause, NULL);
}

int umbra_module_ranges(struct umbra_module *m, const struct hva_range *ranges, uint32_t nr)
{
	struct umbra_ntf_range *v = abi_ranges(ranges, nr);
	struct umbra_ntf_ranges a = { .size = sizeof(a), .nr_ranges = nr, .ranges = (uintptr_t)v };
	uint64_t bits;
	struct module_range *spare = number(ranges, nr, m->page_shift, &bits);
	const uint64_t until = now_ms() + RANGES_PATIENCE_MS;
	int rc = v && spare ? -EBUSY : -ENOMEM;

	for (unsigned int tries = 0; rc == -EBUSY; tries++) {
		rc = try_ranges(m, &a, &spare);
		if (rc == -EINTR)
			rc = -EBUSY;
		if (now_ms() >= until)
			break;
		if (rc == -EBUSY)
			let_it_end(tries);
	}
	if (!rc) {
		pthread_mutex_lock(&m->lock);
		m->watched = (struct hva_range){ ranges[0].start, ranges[nr - 1].end };
		pthread_mutex_unlock(&m->lock);
	}
	free(spare);
	free(v);
	return rc;
}

void umbra_module_close(struct umbra_module *m)
{
	if (!m)
		return;
	umbra_module_drain(m);
	/* What is open in the kernel ends unseen: it is dropped, which is all that its start asked for. */
	end_all(m);
	direct_fini(&m->direct);
	if (m->state_map) {
		munmap(m->state_map, m->state_bytes);
		munmap(m->consumer_map, m->consumer_bytes);
	}
	if (m->owned)
		close(m->fd);
	close(m->wake);
	pthread_rwlock_destroy(&m->ranges_lock);
	pthread_mutex_destroy(&m->lock);
	free(m->ranges);
	free(m);
}
