/* SPDX-License-Identifier: BSD-2-Clause */
/* umbra_check: every invariant of the tables, by its number in docs/invariants.md. */
#include "private.h"

struct checker {
	struct umbra_mmu *mmu;
	struct umbra_root *root;
	void (*report)(void *arg, const char *line);
	void *arg;
	unsigned int violations;
	uint64_t leaves_4k, leaves_2m, tables;
};

/* A line without stdio: text and up to one hexadecimal number. */
static void violated(struct checker *c, const char *text, uint64_t value)
{
	static const char hex[] = "0123456789abcdef";
	char line[160];
	unsigned int n = 0;

	for (; text[n] && n < 120; n++)
		line[n] = text[n];
	line[n++] = ' ';
	line[n++] = '0';
	line[n++] = 'x';
	for (int shift = 60; shift >= 0; shift -= 4)
		line[n++] = hex[value >> shift & 15];
	line[n] = '\0';
	c->violations++;
	if (c->report)
		c->report(c->arg, line);
}

static void expect(struct checker *c, bool holds, const char *text, uint64_t value)
{
	if (!holds)
		violated(c, text, value);
}

/* Is [hva) inside an invalidation that is open, exact, and rightly known as open? */
static bool in_exact_open(const struct umbra_mmu *mmu, struct hva_range r)
{
	const uint64_t n = mmu->starts_nr < UMBRA_HISTORY ? mmu->starts_nr : UMBRA_HISTORY;

	for (unsigned int s = 0; s < UMBRA_SOURCE_NR; s++) {
		uint64_t open = 0;
		bool meets = false;

		for (uint64_t i = 1; i <= n; i++) {
			const struct history_entry *h =
				&mmu->history[(mmu->starts_nr - i) % UMBRA_HISTORY];

			if (!h->open || h->source != s)
				continue;
			open++;
			/* an empty one takes nothing, wherever it stands */
			meets |= h->exact && !hva_range_empty(h->hva) && hva_ranges_meet(h->hva, r);
		}
		if (meets && open == mmu->sources[s].begun - mmu->sources[s].ended)
			return true;
	}
	return false;
}

static void check_leaf(struct checker *c, uint64_t e, unsigned int level, uint64_t gfn)
{
	const struct slot *s = slot_of_gfn(c->mmu, gfn);
	const uint64_t span = spte_span(level);
	struct hva_range hva;

	if (level == UMBRA_LEVEL_4K)
		c->leaves_4k++;
	else
		c->leaves_2m++;
	expect(c, !c->mmu->released, "I11: a leaf after release, gfn", gfn);
	if (!s || gfn + span > s->pub.gfn.v + s->pub.npages) {
		violated(c, "I4: a leaf outside every slot, gfn", gfn);
		return;
	}
	expect(c, spte_pfn(e) == s->pub.out.v + (gfn - s->pub.gfn.v),
	       "I4: a leaf maps another frame than its slot says, gfn", gfn);
	expect(c, !spte_writable(e) || !(s->pub.flags & UMBRA_SLOT_READONLY),
	       "I5: a writable leaf in a read-only slot, gfn", gfn);
	expect(c, level == UMBRA_LEVEL_4K || slot_max_level(s, gfn) == UMBRA_LEVEL_2M,
	       "I6: a 2M leaf that slot or congruence forbid, gfn", gfn);
	hva.start.v = slot_hva(s, gfn);
	hva.end.v = hva.start.v + (span << UMBRA_PAGE_SHIFT);
	expect(c, !in_exact_open(c->mmu, hva), "I7: a leaf inside an open invalidation, gfn", gfn);
}

static void check_table(struct checker *c, uint32_t index, unsigned int level, uint64_t base)
{
	const struct umbra_mmu *mmu = c->mmu;
	const struct table *t = &mmu->tables[index];
	const bool is_root = level == UMBRA_LEVEL_512G;
	unsigned int count = 0;

	c->tables++;
	expect(c, t->state == TABLE_LIVE, "I13: a linked table that is not live, gfn", base);
	expect(c, t->level == level && t->gfn == base && t->root == c->root,
	       "I1: a table that is not what it is linked as, gfn", base);
	expect(c,
	       !(mmu->config.flags & UMBRA_MMU_RECORD_PFN) || level > UMBRA_LEVEL_2M ||
		       t->host_pfns,
	       "I14: a table without its record of host frames, gfn", base);
	for (unsigned int i = 0; i < SPTE_ENTRIES; i++) {
		const uint64_t e = spte_read(table_entries(mmu, index) + i);
		const uint64_t gfn = base + i * spte_span(level);
		uint64_t child;

		if (is_root && c->root->reserved[i / 64] >> (i % 64) & 1)
			continue;
		if (!spte_present(e)) {
			expect(c, e == 0, "I3: an absent entry that is not zero, gfn", gfn);
			continue;
		}
		count++;
		if (is_root && i >= SPTE_ENTRIES / 2) {
			violated(c, "I3: an entry of ours in the upper half, gfn", gfn);
			continue;
		}
		expect(c, !(e & ~SPTE_LEGAL) && (e & SPTE_USER),
		       "I3: an entry with illegal bits, gfn", gfn);
		if (spte_is_leaf(e, level)) {
			check_leaf(c, e, level, gfn);
			continue;
		}
		if (e & SPTE_PS) {
			violated(c, "I3: a leaf above 2M, gfn", gfn);
			continue;
		}
		child = ((e & SPTE_ADDR) - mmu->config.window_phys) >> UMBRA_PAGE_SHIFT;
		if (child >= mmu->config.window_pages) {
			violated(c, "I1: a table entry points outside the window, gfn", gfn);
			continue;
		}
		expect(c, mmu->tables[child].parent == index && mmu->tables[child].slot == i,
		       "I1: a table whose parent is another, gfn", gfn);
		check_table(c, (uint32_t)child, level - 1, gfn);
	}
	expect(c, count == t->count, "I2: a table's count is not its number of entries, gfn", base);
	expect(c, is_root || count > 0, "I8: an empty table is linked, gfn", base);
}

static bool stands_for(const struct slot_by_hva *h, const struct slot *s)
{
	return s && h->gfn == s->pub.gfn.v && h->start == s->pub.hva.v &&
	       h->end == s->pub.hva.v + (s->pub.npages << UMBRA_PAGE_SHIFT);
}

static void check_slots(struct checker *c)
{
	const struct umbra_mmu *mmu = c->mmu;
	uint64_t max_end = 0;

	for (uint32_t i = 0; i < mmu->nslots; i++) {
		const struct umbra_memslot *s = &mmu->slots[i].pub;
		const struct slot_by_hva *h = &mmu->by_hva[i];

		expect(c,
		       i == 0 || mmu->slots[i - 1].pub.gfn.v + mmu->slots[i - 1].pub.npages <=
					 s->gfn.v,
		       "I12: slots out of order or overlapping, gfn", s->gfn.v);
		expect(c, stands_for(h, slot_of_gfn(c->mmu, h->gfn)),
		       "I12: the hva index is not of the slots, hva", h->start);
		if (h->end > max_end)
			max_end = h->end;
		expect(c, h->max_end == max_end && (i == 0 || mmu->by_hva[i - 1].start <= h->start),
		       "I12: the hva index is out of order, hva", h->start);
	}
}

static void check_retired(struct checker *c, const struct table_list *l, enum table_state state)
{
	const struct umbra_mmu *mmu = c->mmu;
	uint64_t n = 0;

	for (uint32_t i = l->head; i != NO_TABLE && n <= l->count; i = mmu->tables[i].next, n++) {
		c->tables++;
		expect(c, mmu->tables[i].state == state,
		       "I13: a retired table in the wrong state, gfn", mmu->tables[i].gfn);
		if (state != TABLE_CLEARED)
			continue;
		for (unsigned int k = 0; k < SPTE_ENTRIES; k++)
			if (spte_read(table_entries(mmu, i) + k)) {
				violated(c, "I13: a cleared table that is not zero, gfn",
					 mmu->tables[i].gfn);
				break;
			}
	}
	expect(c, n == l->count, "I13: a list of retired tables has another length, length", n);
}

/* Tables below an unlinked one are retired when it is harvested; until then they hang on it. */
static uint64_t hanging(const struct umbra_mmu *mmu, uint32_t index)
{
	const struct table *t = &mmu->tables[index];
	uint64_t n = 0;

	if (t->level == UMBRA_LEVEL_4K)
		return 0;
	for (unsigned int i = 0; i < SPTE_ENTRIES; i++) {
		const uint64_t e = spte_read(table_entries(mmu, index) + i);

		if (spte_is_table(e, t->level)) {
			const uint32_t child = spte_child(mmu, e);

			n += 1 + hanging(mmu, child);
		}
	}
	return n;
}

unsigned int umbra_check(struct umbra_mmu *mmu, void (*report)(void *arg, const char *line),
			 void *arg)
{
	struct checker c = { .mmu = mmu, .report = report, .arg = arg };

	mmu_lock(mmu);
	for (struct umbra_root *root = mmu->roots; root; root = root->next) {
		c.root = root;
		c.leaves_4k = c.leaves_2m = 0;
		check_table(&c, root->table, UMBRA_LEVEL_512G, 0);
		expect(&c, c.leaves_4k == root->leaves_4k, "I9: 4K leaves counted wrong, found",
		       c.leaves_4k);
		expect(&c, c.leaves_2m == root->leaves_2m, "I9: 2M leaves counted wrong, found",
		       c.leaves_2m);
	}
	check_slots(&c);
	check_retired(&c, &mmu->unlinked, TABLE_UNLINKED);
	check_retired(&c, &mmu->cleared, TABLE_CLEARED);
	for (uint32_t i = mmu->unlinked.head; i != NO_TABLE; i = mmu->tables[i].next)
		c.tables += hanging(mmu, i);
	expect(&c, c.tables + mmu->in_transit == mmu->stats.tables,
	       "I9: tables counted wrong, found", c.tables);
	for (unsigned int i = 0; i < UMBRA_SOURCE_NR; i++)
		expect(&c, mmu->sources[i].ended <= mmu->sources[i].begun,
		       "I10: more ends than starts, source", i);
	expect(&c, mmu->queued == 0, "I15: changed entries that no flush was posted for, number",
	       mmu->queued);
	mmu_unlock(mmu);
	return c.violations;
}
