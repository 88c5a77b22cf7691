/* SPDX-License-Identifier: BSD-2-Clause */
/* Memslots: which host memory stands at which guest frames, and the log of dropped accessed and
 * dirty bits. */
#include <errno.h>
#include <string.h>

#include "private.h"

/* Index of the first slot that ends after @gfn. */
static uint32_t slot_index(const struct umbra_mmu *mmu, uint64_t gfn)
{
	uint32_t lo = 0, hi = mmu->nslots;

	while (lo < hi) {
		const uint32_t mid = lo + (hi - lo) / 2;
		const struct umbra_memslot *s = &mmu->slots[mid].pub;

		if (s->gfn.v + s->npages > gfn)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

struct slot *slot_of_gfn(struct umbra_mmu *mmu, uint64_t gfn)
{
	const uint32_t i = slot_index(mmu, gfn);

	return i < mmu->nslots && mmu->slots[i].pub.gfn.v <= gfn ? &mmu->slots[i] : NULL;
}

static struct slot *slot_of_id(struct umbra_mmu *mmu, uint32_t id)
{
	for (uint32_t i = 0; i < mmu->nslots; i++)
		if (mmu->slots[i].pub.id == id)
			return &mmu->slots[i];
	return NULL;
}

enum umbra_level slot_max_level(const struct slot *slot, uint64_t gfn)
{
	const uint64_t mask = UMBRA_HUGE_PAGES - 1;
	const uint64_t block = gfn & ~mask;
	const struct umbra_memslot *s = &slot->pub;

	if ((s->flags & UMBRA_SLOT_4K_ONLY) || block < s->gfn.v ||
	    block + UMBRA_HUGE_PAGES > s->gfn.v + s->npages)
		return UMBRA_LEVEL_4K;
	/* gpa, hva and output frame must agree modulo 2M */
	if (((s->gfn.v ^ (s->hva.v >> UMBRA_PAGE_SHIFT)) & mask) || ((s->gfn.v ^ s->out.v) & mask))
		return UMBRA_LEVEL_4K;
	return UMBRA_LEVEL_2M;
}

static uint64_t log_words(uint64_t npages)
{
	return (npages + 63) / 64;
}

static void bits_set(uint64_t *bits, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++)
		bits[i / 64] |= 1ULL << (i % 64);
}

void slot_log(struct umbra_mmu *mmu, uint64_t gfn, unsigned int level, uint64_t entry)
{
	struct slot *s;
	uint64_t first;

	if (!(entry & (SPTE_ACCESSED | SPTE_DIRTY)) || !mmu->nlogs)
		return;
	s = slot_of_gfn(mmu, gfn);
	if (!s || !s->log_accessed)
		return;
	first = gfn - s->pub.gfn.v;
	if (spte_accessed(entry))
		bits_set(s->log_accessed, first, spte_span(level));
	if (spte_dirty(entry))
		bits_set(s->log_dirty, first, spte_span(level));
}

static int slot_validate(struct umbra_mmu *mmu, const struct umbra_memslot *s, uint32_t but_index)
{
	const uint64_t hva_mask = UMBRA_PAGE_SIZE - 1;

	if (s->npages == 0 || s->npages > GFN_LIMIT || s->gfn.v > GFN_LIMIT - s->npages)
		return -EINVAL;
	if ((s->hva.v & hva_mask) || s->hva.v > UINT64_MAX - (s->npages << UMBRA_PAGE_SHIFT))
		return -EINVAL;
	if (s->out.v > (SPTE_ADDR >> UMBRA_PAGE_SHIFT) - (s->npages - 1))
		return -EINVAL;
	for (uint32_t i = 0; i < mmu->nslots; i++) {
		const struct umbra_memslot *o = &mmu->slots[i].pub;

		if (i == but_index)
			continue;
		if (o->id == s->id ||
		    (s->gfn.v < o->gfn.v + o->npages && o->gfn.v < s->gfn.v + s->npages))
			return -EEXIST;
	}
	return 0;
}

/* Both indices of slots, as one thing to allocate and free. */
struct slot_arrays {
	struct slot *slots;
	struct slot_by_hva *by_hva;
	uint32_t cap;
};

static void arrays_free(const struct umbra_os *os, const struct slot_arrays *a)
{
	if (a->slots)
		os->free(a->slots, a->cap * sizeof(*a->slots));
	if (a->by_hva)
		os->free(a->by_hva, a->cap * sizeof(*a->by_hva));
}

/*
 * Room for one more slot. Lock held; may be dropped between, so what was known before must be looked at again.
 */
static int slots_reserve(struct umbra_mmu *mmu)
{
	while (mmu->nslots == mmu->slots_cap) {
		struct slot_arrays now = { .cap = mmu->slots_cap ? mmu->slots_cap * 2 : 8 }, old;

		mmu_unlock(mmu);
		now.slots = mmu->os->alloc(now.cap * sizeof(*now.slots));
		now.by_hva = mmu->os->alloc(now.cap * sizeof(*now.by_hva));
		if (!now.slots || !now.by_hva) {
			arrays_free(mmu->os, &now);
			mmu_lock(mmu);
			return -ENOMEM;
		}
		mmu_lock(mmu);
		old = now;
		if (mmu->slots_cap < now.cap) { /* else another thread was faster */
			old = (struct slot_arrays){ mmu->slots, mmu->by_hva, mmu->slots_cap };
			if (mmu->nslots) {
				memcpy(now.slots, mmu->slots, mmu->nslots * sizeof(*now.slots));
				memcpy(now.by_hva, mmu->by_hva, mmu->nslots * sizeof(*now.by_hva));
			}
			mmu->slots = now.slots;
			mmu->by_hva = now.by_hva;
			mmu->slots_cap = now.cap;
		}
		mmu_unlock(mmu);
		arrays_free(mmu->os, &old);
		mmu_lock(mmu);
	}
	return 0;
}

static void slots_changed(struct umbra_mmu *mmu)
{
	mmu->slots_gen++; /* faults that resolved against the old slots retry */
	mmu->stats.slots = mmu->nslots;
	mmu->nlogs = 0;
	for (uint32_t i = 0; i < mmu->nslots; i++)
		mmu->nlogs += mmu->slots[i].log_accessed != NULL;
	rmap_rebuild(mmu);
}

static void slots_insert(struct umbra_mmu *mmu, const struct slot *s)
{
	const uint32_t i = slot_index(mmu, s->pub.gfn.v);

	memmove(&mmu->slots[i + 1], &mmu->slots[i], (mmu->nslots - i) * sizeof(*s));
	mmu->slots[i] = *s;
	mmu->nslots++;
}

static void slots_delete(struct umbra_mmu *mmu, const struct slot *s)
{
	const uint32_t i = (uint32_t)(s - mmu->slots);

	memmove(&mmu->slots[i], &mmu->slots[i + 1], (mmu->nslots - i - 1) * sizeof(*s));
	mmu->nslots--;
}

static void log_free(struct umbra_mmu *mmu, struct slot *s)
{
	const uint64_t bytes = log_words(s->pub.npages) * sizeof(uint64_t);

	if (s->log_accessed)
		mmu->os->free(s->log_accessed, bytes);
	if (s->log_dirty)
		mmu->os->free(s->log_dirty, bytes);
	s->log_accessed = NULL;
	s->log_dirty = NULL;
}

static int slot_may_be_added(struct umbra_mmu *mmu, const struct umbra_memslot *slot)
{
	return mmu->released ? -ESHUTDOWN : slot_validate(mmu, slot, UINT32_MAX);
}

int umbra_memslot_add(struct umbra_mmu *mmu, const struct umbra_memslot *slot)
{
	const uint32_t known = UMBRA_SLOT_READONLY | UMBRA_SLOT_4K_ONLY | UMBRA_SLOT_LOG;
	struct slot s = { .pub = *slot };
	int rc;

	if (slot->flags & ~known)
		return -EINVAL;
	mmu_lock(mmu);
	rc = slot_may_be_added(mmu,
			       slot); /* before memory is asked for, however large it says it is */
	mmu_unlock(mmu);
	if (!rc && (slot->flags & UMBRA_SLOT_LOG)) {
		const uint64_t bytes = log_words(slot->npages) * sizeof(uint64_t);

		s.log_accessed = mmu->os->alloc(bytes);
		s.log_dirty = mmu->os->alloc(bytes);
		if (!s.log_accessed || !s.log_dirty)
			rc = -ENOMEM;
	}
	if (!rc) {
		mmu_lock(mmu);
		rc = slots_reserve(mmu);
		if (!rc)
			rc = slot_may_be_added(mmu, slot);
		if (!rc) {
			s.serial = ++mmu->slot_serial;
			slots_insert(mmu, &s);
			slots_changed(mmu);
		}
		mmu_unlock(mmu);
	}
	if (rc)
		log_free(mmu, &s);
	return rc;
}

static struct umbra_range slot_range(const struct slot *s)
{
	return (struct umbra_range){
		.hull = { s->pub.hva, { s->pub.hva.v + (s->pub.npages << UMBRA_PAGE_SHIFT) } },
		.flags = UMBRA_RANGE_BLOCKABLE,
		.cause = UMBRA_CAUSE_MEMSLOT,
		.source = UMBRA_SOURCE_CORE,
	};
}

/*
 * Opens a bracket over slot @id, drops its leaves in all roots and waits until none is in use. Lock
 * held before and after, dropped between. On success the bracket @r is still open and the slot is
 * the one it was when the bracket was opened.
 */
static int slot_quiesce(struct umbra_mmu *mmu, uint32_t id, struct umbra_range *r)
{
	for (;;) {
		struct slot *s = slot_of_id(mmu, id);
		struct zapped zapped = { 0, 0 };
		uint64_t ticket, serial;
		struct gfn_range g;

		if (!s)
			return -ENOENT;
		serial = s->serial;
		g = (struct gfn_range){ s->pub.gfn, { s->pub.gfn.v + s->pub.npages } };
		if (pin_in_gfns(mmu, g))
			return -EBUSY;
		*r = slot_range(s);
		for (struct umbra_root *root = mmu->roots; root; root = root->next)
			map_zap(root, g, &zapped);
		inv_begin(mmu, r, &zapped);
		ticket = flush_post(mmu);
		mmu_unlock(mmu);
		flush_wait(mmu, ticket, true);
		mmu_lock(mmu);
		/* the last bits go to the log while the slot is where they belong */
		tables_drain(mmu);
		s = slot_of_id(mmu, id);
		if (s && s->serial == serial && s->pub.gfn.v == g.start.v)
			return 0;
		/* another thread moved it, or removed it and perhaps added another of this id: look again */
		inv_finish(mmu, r);
	}
}

int umbra_memslot_remove(struct umbra_mmu *mmu, uint32_t id)
{
	struct slot gone = { .log_accessed = NULL };
	struct umbra_range r;
	int rc;

	mmu_lock(mmu);
	rc = slot_quiesce(mmu, id, &r);
	if (!rc) {
		struct slot *s = slot_of_id(mmu, id);

		gone = *s;
		slots_delete(mmu, s);
		slots_changed(mmu);
		inv_finish(mmu, &r);
	}
	mmu_unlock(mmu);
	log_free(mmu, &gone);
	return rc;
}

int umbra_memslot_move(struct umbra_mmu *mmu, uint32_t id, gfn_t gfn, pfn_t out)
{
	struct umbra_range r;
	struct slot *s, moved;
	int rc;

	mmu_lock(mmu);
	rc = slot_quiesce(mmu, id, &r);
	if (!rc) {
		s = slot_of_id(mmu, id);
		moved = *s;
		moved.pub.gfn = gfn;
		moved.pub.out = out;
		rc = slot_validate(mmu, &moved.pub, (uint32_t)(s - mmu->slots));
		if (!rc) {
			slots_delete(mmu, s);
			slots_insert(mmu, &moved);
			slots_changed(mmu);
		}
		inv_finish(mmu, &r);
	}
	mmu_unlock(mmu);
	return rc;
}

int umbra_memslot_find(struct umbra_mmu *mmu, gfn_t gfn, struct umbra_memslot *slot)
{
	struct slot *s;

	mmu_lock(mmu);
	s = slot_of_gfn(mmu, gfn.v);
	if (s)
		*slot = s->pub;
	mmu_unlock(mmu);
	return s ? 0 : -ENOENT;
}

int umbra_gpa_to_hva(struct umbra_mmu *mmu, gpa_t gpa, hva_t *hva)
{
	struct slot *s;

	mmu_lock(mmu);
	s = slot_of_gfn(mmu, gpa.v >> UMBRA_PAGE_SHIFT);
	if (s)
		hva->v = slot_hva(s, gpa.v >> UMBRA_PAGE_SHIFT) | (gpa.v & (UMBRA_PAGE_SIZE - 1));
	mmu_unlock(mmu);
	return s ? 0 : -ENOENT;
}

struct collect {
	struct slot *slot;
	uint64_t *accessed, *dirty;
	struct umbra_mmu *mmu;
};

static int collect_leaf(void *arg, struct spte_iter *it)
{
	struct collect *c = arg;
	uint64_t clear = 0, first = it->gfn - c->slot->pub.gfn.v;

	if (c->accessed && spte_accessed(it->old)) {
		bits_set(c->accessed, first, spte_span(it->level));
		clear |= SPTE_ACCESSED;
	}
	if (c->dirty && spte_dirty(it->old)) {
		bits_set(c->dirty, first, spte_span(it->level));
		clear |= SPTE_DIRTY;
	}
	/* what the CPU sets between the look and the change stays set: it is the next collect's */
	if (clear && !spte_change(c->mmu, it, it->old & ~clear))
		c->mmu->os->bug("I4: a leaf changed under the lock");
	return 0;
}

int umbra_log_collect(struct umbra_mmu *mmu, uint32_t id, uint64_t *accessed, uint64_t *dirty)
{
	struct collect c = { .mmu = mmu, .accessed = accessed, .dirty = dirty };
	struct gfn_range g;
	uint64_t ticket, bytes;

	mmu_lock(mmu);
	tables_drain(mmu);
	c.slot = slot_of_id(mmu, id);
	if (!c.slot) {
		mmu_unlock(mmu);
		return -ENOENT;
	}
	bytes = log_words(c.slot->pub.npages) * sizeof(uint64_t);
	if (accessed)
		memset(accessed, 0, bytes);
	if (dirty)
		memset(dirty, 0, bytes);
	if (c.slot->log_accessed && accessed) {
		memcpy(accessed, c.slot->log_accessed, bytes);
		memset(c.slot->log_accessed, 0, bytes);
	}
	if (c.slot->log_dirty && dirty) {
		memcpy(dirty, c.slot->log_dirty, bytes);
		memset(c.slot->log_dirty, 0, bytes);
	}
	g = (struct gfn_range){ c.slot->pub.gfn, { c.slot->pub.gfn.v + c.slot->pub.npages } };
	for (struct umbra_root *root = mmu->roots; root; root = root->next)
		walk_leaves(root, g, collect_leaf, &c);
	flush_post(mmu);
	/*
	 * Not only what was cleared here: ageing clears accessed and waits for nobody. A vCPU that remembers the entry
	 * would use it unseen after this, and the bit it stands for is told and forgotten now.
	 */
	ticket = mmu->last_ticket;
	mmu_unlock(mmu);
	flush_wait(mmu, ticket, true);
	return 0;
}
