/* SPDX-License-Identifier: BSD-2-Clause */
/* Which folios pages are parts of, by /proc/kpageflags, and where the rest of them is mapped. */
#include <errno.h>
#include <unistd.h>
#include "shadow/events/hostmap.h"

#define FAR      (UMBRA_HUGE_SIZE - UMBRA_PAGE_SIZE)
#define MOST     UMBRA_HUGE_PAGES /* pages of a folio that advice may split */
#define SEARCHES 8                /* looks through the address space for one question */
#define TOP      ((1ULL << 47) - UMBRA_PAGE_SIZE)

#define KPF_ANON (1ULL << 12)
#define KPF_HEAD (1ULL << 15)
#define KPF_TAIL (1ULL << 16)

/*
 * @n frames from @pfn on, the first of which is mapped at @at if all are mapped together. @torn: one that
 * is not mapped there is mapped elsewhere. @n 0: what it is cannot be known.
 */
struct folio {
	uint64_t pfn, at, n;
	bool torn;
};

static uint64_t read_word(int fd, uint64_t pfn)
{
	uint64_t word;
	const off_t at = (off_t)(pfn * sizeof(word));

	return pread(fd, &word, sizeof(word), at) == sizeof(word) ? word : ~0ULL;
}

static bool is_frame(uint64_t entry, uint64_t pfn)
{
	return (entry & PM_PRESENT) && (entry & PM_PFN_MASK) == pfn;
}

/* Other processes that share a page count too: then the search finds nothing, which is right. */
static bool is_torn(const struct umbra_hostmap *map, const struct folio *f)
{
	uint64_t entries[MOST];

	if (f->n > MOST || hostmap_entries(map, f->at >> UMBRA_PAGE_SHIFT, entries, f->n))
		return true;
	for (uint64_t i = 0; i < f->n; i++)
		if (!is_frame(entries[i], f->pfn + i) &&
		    (map->kpagecount < 0 || read_word(map->kpagecount, f->pfn + i)))
			return true;
	return false;
}

/* The folio of frame @pfn, mapped at @at. False: of one page. */
static bool folio_of(const struct umbra_hostmap *map, uint64_t at, uint64_t pfn, struct folio *f)
{
	const uint64_t before = pfn < MOST ? pfn : MOST - 1;
	uint64_t flags[2 * MOST], first = before, last = before, have;
	ssize_t got;

	*f = (struct folio){ .torn = true };
	if (!(read_word(map->kpageflags, pfn) & (KPF_HEAD | KPF_TAIL)))
		return false;
	got = pread(map->kpageflags, flags, sizeof(flags),
		    (off_t)((pfn - before) * sizeof(*flags)));
	have = got < 0 ? 0 : (uint64_t)got / sizeof(*flags);
	if (have <= before)
		return true;
	while (first && (flags[first] & KPF_TAIL))
		first--;
	while (++last < have && (flags[last] & KPF_TAIL))
		;
	if (at < (before - first) * UMBRA_PAGE_SIZE)
		return true;
	f->n = last - first;
	f->pfn = pfn - (before - first);
	f->at = at - (before - first) * UMBRA_PAGE_SIZE;
	/* Of a file's folio the regions say where else it is mapped. */
	f->torn = (flags[first] & KPF_ANON) && is_torn(map, f);
	return true;
}

static bool part_of(const struct folio *f, uint64_t at, uint64_t pfn)
{
	return pfn - f->pfn < f->n && at - f->at == (pfn - f->pfn) << UMBRA_PAGE_SHIFT;
}

static void widen(struct hva_range *reach, uint64_t start, uint64_t end)
{
	if (start < reach->start.v)
		reach->start.v = start;
	if (end > reach->end.v)
		reach->end.v = end;
}

static struct hva_range far_around(struct hva_range r)
{
	r.start.v = r.start.v > FAR ? r.start.v - FAR : 0;
	r.end.v = r.end.v < ~FAR ? r.end.v + FAR : r.end.v;
	return r;
}

uint32_t hostmap_folios(struct umbra_hostmap *map, struct hva_range r, struct hva_range *reach)
{
	struct umbra_page pages[64];
	struct folio f = { 0 };
	uint64_t known = 0;
	uint32_t found = 0;

	*reach = r;
	for (uint64_t at = r.start.v; at < r.end.v;) {
		const uint64_t left = (r.end.v - at) >> UMBRA_PAGE_SHIFT;
		const size_t n = left < 64 ? left : 64;

		if (!n || map->kpageflags < 0 ||
		    umbra_hostmap_query_range(map, (hva_t){ at }, pages, n)) {
			*reach = far_around(r);
			return FOLIO_HUGE | FOLIO_LARGE | FOLIO_NONE;
		}
		for (size_t i = 0; i < n; i++, at += UMBRA_PAGE_SIZE) {
			const uint64_t block = at & ~(UMBRA_HUGE_SIZE - 1);

			if (!(pages[i].flags & UMBRA_PAGE_PRESENT)) {
				found |= FOLIO_NONE;
				continue;
			}
			if (at < known || (pages[i].flags & UMBRA_PAGE_ZERO) ||
			    part_of(&f, at, pages[i].host_pfn))
				continue;
			if (pages[i].flags & UMBRA_PAGE_HUGE) {
				found |= FOLIO_HUGE;
				known = block + UMBRA_HUGE_SIZE;
				widen(reach, block, known);
			} else if (folio_of(map, at, pages[i].host_pfn, &f)) {
				found |= FOLIO_LARGE | (f.torn ? FOLIO_TORN : 0);
				if (f.n)
					widen(reach, f.at, f.at + (f.n << UMBRA_PAGE_SHIFT));
				else
					*reach = far_around(*reach);
			}
		}
	}
	return found;
}

/* Where frames of @f are mapped in @run. */
static int search_run(const struct umbra_hostmap *map, const struct folio *f, struct hva_range run,
		      int (*fn)(void *arg, struct hva_range place), void *arg)
{
	uint64_t entries[MOST];
	struct hva_range place = { 0 };
	int err = 0;

	for (uint64_t at = run.start.v, n; !err && at < run.end.v; at += n << UMBRA_PAGE_SHIFT) {
		n = (run.end.v - at) >> UMBRA_PAGE_SHIFT;
		n = n < MOST ? n : MOST;
		err = hostmap_entries(map, at >> UMBRA_PAGE_SHIFT, entries, n);
		for (uint64_t i = 0; !err && i < n; i++) {
			const uint64_t here = at + (i << UMBRA_PAGE_SHIFT);

			if (!(entries[i] & PM_PRESENT) ||
			    (entries[i] & PM_PFN_MASK) - f->pfn >= f->n)
				continue;
			if (place.end.v != here) {
				err = hva_range_empty(place) ? 0 : fn(arg, place);
				place.start.v = here;
			}
			place.end.v = here + UMBRA_PAGE_SIZE;
		}
	}
	return err || hva_range_empty(place) ? err : fn(arg, place);
}

static int search(const struct umbra_hostmap *map, const struct folio *f,
		  int (*fn)(void *arg, struct hva_range place), void *arg)
{
	struct hva_range run = { 0 };
	int more, err = 0;

	while (!err && (more = hostmap_next(map, run.end.v, TOP, false, &run)))
		err = more < 0 ? more : search_run(map, f, run, fn, arg);
	return err;
}

int hostmap_torn(struct umbra_hostmap *map, struct hva_range r,
		 int (*fn)(void *arg, struct hva_range place), void *arg)
{
	struct folio f = { 0 };
	unsigned int searches = 0;
	uint64_t entry, seen = ~0ULL;
	int err = 0;

	for (uint64_t at = r.start.v; !err && at < r.end.v; at += UMBRA_PAGE_SIZE) {
		err = hostmap_entries(map, at >> UMBRA_PAGE_SHIFT, &entry, 1);
		if (err || !(entry & PM_PRESENT) || part_of(&f, at, entry & PM_PFN_MASK) ||
		    !folio_of(map, at, entry & PM_PFN_MASK, &f) || !f.torn || f.pfn == seen)
			continue;
		seen = f.pfn;
		err = !f.n || ++searches > SEARCHES ? -E2BIG : search(map, &f, fn, arg);
	}
	return err;
}
