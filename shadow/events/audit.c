/* SPDX-License-Identifier: BSD-2-Clause */
/* umbra_audit: every leaf of ours against what the kernel says is there. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>
#include "shadow/events/hostmap.h"

#define BATCH             UMBRA_HUGE_PAGES
#define MIGRATION_TRIES   20
#define MIGRATION_WAIT_US 500
/* In one audit, for pages that look swapped out: a host that is busy or emulated takes long over a migration. */
#define MIGRATION_PATIENCE 4000
/*
 * Likewise for pages in another frame, for which the kernel's counters are waited: they count after the fact, for all pages
 * alike, so what twenty pages have waited for in vain the next ones do not. The walk holds the MMU's lock meanwhile.
 */
#define COUNTER_PATIENCE (20 * MIGRATION_TRIES)

/*
 * The host is asked for the rest of the leaf's aligned 2M at once, and the leaves that follow find
 * their answer there. All of it happens in the walk, whose lock keeps leaves from going and
 * invalidations from opening: so the two sides are of one moment.
 */
struct audit {
	struct umbra_mmu *mmu;
	struct umbra_hostmap *map;
	struct umbra_audit_report *report;
	FILE *out;
	struct host_vma vma; /* the one looked up last: audits see a quiet moment or skip */
	bool vma_valid;
	int patience;           /* waits that are left, for a migration to end       */
	int counter_patience;   /* ... for the kernel to count what it has moved     */
	struct hva_range known; /* what @pages is about */
	struct umbra_page pages[BATCH];
};

static void mismatch(struct audit *a, const struct umbra_leaf *leaf, uint64_t page,
		     const char *what, const struct umbra_page *truth)
{
	if (!a->out)
		return;
	fprintf(a->out,
		"gfn 0x%" PRIx64 " (%s leaf at 0x%" PRIx64 ") hva 0x%" PRIx64
		": %s; recorded frame 0x%" PRIx64 ", host flags 0x%x frame 0x%" PRIx64 "\n",
		leaf->gfn.v + page, leaf->level == UMBRA_LEVEL_2M ? "2M" : "4K", leaf->gfn.v,
		leaf->hva.v + (page << UMBRA_PAGE_SHIFT), what,
		leaf->host_pfn == UMBRA_HOST_PFN_UNKNOWN ? UINT64_C(0) : leaf->host_pfn + page,
		truth->flags, truth->host_pfn);
}

/* The mapping at @hva, or NULL where there is none. */
static const struct host_vma *vma_at(struct audit *a, hva_t hva)
{
	if (!a->vma_valid || hva.v < a->vma.hva.start.v || hva.v >= a->vma.hva.end.v)
		a->vma_valid = !hostmap_vma(a->map, hva, &a->vma);
	return a->vma_valid ? &a->vma : NULL;
}

/* Would a write by the guest, which the leaf allows, fault in the host or move the page? */
static bool write_is_wrong(const struct host_vma *vma, const struct umbra_page *page)
{
	if (!(vma->flags & UMBRA_VMA_WRITE) || (page->flags & UMBRA_PAGE_UFFD_WP))
		return true;
	return !(vma->flags & UMBRA_VMA_SHARED) && page_write_moves_private(page->flags);
}

static bool counters_say_moved(const struct audit *a, const struct umbra_leaf *leaf,
			       const struct umbra_page *page)
{
	/* In its place of a 2M frame, mapped by 2M or, once part of it was changed, by 4K again. */
	const bool in_place =
		!(((leaf->hva.v >> UMBRA_PAGE_SHIFT) ^ page->host_pfn) & (UMBRA_HUGE_PAGES - 1));

	if (leaf->level == UMBRA_LEVEL_4K && ((page->flags & UMBRA_PAGE_HUGE) || in_place) &&
	    hostmap_has_collapsed(a->map))
		return true;
	return hostmap_has_migrated(a->map);
}

/*
 * The page is there in another frame: may the kernel have moved it by itself, which no source here sees? It counts
 * after the fact.
 */
static bool kernel_moved(struct audit *a, const struct umbra_leaf *leaf,
			 const struct umbra_page *page)
{
	for (int i = 0; i < MIGRATION_TRIES && a->counter_patience > 0; i++) {
		if (counters_say_moved(a, leaf, page))
			return true;
		usleep(MIGRATION_WAIT_US);
		a->counter_patience--;
	}
	return counters_say_moved(a, leaf, page);
}

/* A page that is just being migrated looks as if swapped out; that passes. */
static void wait_for_migration(struct audit *a, hva_t hva, struct umbra_page *page)
{
	for (; a->patience > 0 && (page->flags & UMBRA_PAGE_SWAPPED); a->patience--) {
		usleep(MIGRATION_WAIT_US);
		if (umbra_hostmap_query(a->map, hva, page))
			return;
	}
}

static void audit_page(struct audit *a, const struct umbra_leaf *leaf, uint64_t nr,
		       struct umbra_page *page)
{
	const hva_t hva = { leaf->hva.v + nr * UMBRA_PAGE_SIZE };
	const struct host_vma *vma = vma_at(a, hva);

	a->report->pages++;
	if (vma && (page->flags & UMBRA_PAGE_SWAPPED) && !hostmap_has_reclaimed(a->map))
		wait_for_migration(a, hva, page);
	if (vma && (page->flags & UMBRA_PAGE_SWAPPED) && hostmap_has_reclaimed(a->map)) {
		a->report->moved_by_kernel++;
		return;
	}
	if (!vma || !(page->flags & UMBRA_PAGE_PRESENT)) {
		a->report->stale++;
		mismatch(a, leaf, nr, vma ? "not present" : "nothing mapped", page);
		return;
	}
	if (leaf->host_pfn != UMBRA_HOST_PFN_UNKNOWN && page->host_pfn != UMBRA_HOST_PFN_UNKNOWN) {
		a->report->pfn_checked++;
		if (leaf->host_pfn + nr != page->host_pfn) {
			/* Its announcement waits for the lock that this walk holds. A write to one page moves 512 only
			 * where they are one still. */
			if (hostmap_being_written(a->map, hva, page->flags & UMBRA_PAGE_HUGE,
						  false))
				a->report->skipped++;
			else if (kernel_moved(a, leaf, page))
				a->report->moved_by_kernel++;
			else {
				a->report->wrong_pfn++;
				mismatch(a, leaf, nr, "another frame", page);
			}
		}
	}
	if (leaf->level == UMBRA_LEVEL_2M && a->map->scan && !(page->flags & UMBRA_PAGE_HUGE)) {
		if (hostmap_being_written(a->map, hva, true, true)) {
			a->report->skipped++;
		} else {
			a->report->wrong_size++;
			mismatch(a, leaf, nr, "2M over 4K pages", page);
		}
	}
	/* What may be written may be read on this machine, whatever was asked for. */
	if (!(vma->flags & (UMBRA_VMA_READ | UMBRA_VMA_WRITE)) ||
	    (leaf->writable && write_is_wrong(vma, page))) {
		a->report->wrong_perm++;
		mismatch(a, leaf, nr, "more rights than the host", page);
	}
}

static uint64_t leaf_pages(const struct umbra_leaf *leaf)
{
	return leaf->level == UMBRA_LEVEL_2M ? UMBRA_HUGE_PAGES : 1;
}

static int audit_leaf(void *arg, const struct umbra_leaf *leaf)
{
	struct audit *a = arg;
	const struct hva_range hva = { leaf->hva,
				       { leaf->hva.v + leaf_pages(leaf) * UMBRA_PAGE_SIZE } };
	uint64_t at;
	int err;

	if (umbra_range_open_hint(a->mmu, hva)) {
		a->report->skipped++;
		return 0;
	}
	if (hva.start.v < a->known.start.v || hva.end.v > a->known.end.v) {
		a->known.start = hva.start;
		a->known.end.v = (hva.start.v & ~(UMBRA_HUGE_SIZE - 1)) + UMBRA_HUGE_SIZE;
		err = umbra_hostmap_query_range(a->map, hva.start, a->pages,
						(a->known.end.v - hva.start.v) >> UMBRA_PAGE_SHIFT);
		if (err)
			return err;
	}
	at = (hva.start.v - a->known.start.v) >> UMBRA_PAGE_SHIFT;
	a->report->leaves++;
	for (uint64_t nr = 0; nr < leaf_pages(leaf); nr++)
		audit_page(a, leaf, nr, &a->pages[at + nr]);
	return 0;
}

int64_t umbra_audit(struct umbra_root *root, struct umbra_hostmap *map,
		    struct umbra_audit_report *report, FILE *out)
{
	const struct gfn_range all = { { 0 }, { ~0ULL } };
	struct umbra_audit_report own_report;
	struct audit *a = calloc(1, sizeof(*a));
	int err;

	if (!a)
		return -ENOMEM;
	if (!report)
		report = &own_report;
	*report = (struct umbra_audit_report){ 0 };
	a->mmu = umbra_root_mmu(root);
	a->map = map;
	a->report = report;
	a->out = out;
	a->patience = MIGRATION_PATIENCE;
	a->counter_patience = COUNTER_PATIENCE;
	err = umbra_for_each_leaf(root, all, audit_leaf, a);
	free(a);
	if (err)
		return err;
	return (int64_t)(report->stale + report->wrong_pfn + report->wrong_size +
			 report->wrong_perm);
}
