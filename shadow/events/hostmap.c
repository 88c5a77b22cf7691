/* SPDX-License-Identifier: BSD-2-Clause */
/* The kernel's page tables as it shows them: pagemap, PAGEMAP_SCAN, PROCMAP_QUERY or the text of
 * maps. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "shadow/events/hostmap.h"

#define SCAN_RETURN                                                                           \
	(UMBRA_PM_IS_WRITTEN | UMBRA_PM_IS_FILE | UMBRA_PM_IS_PRESENT | UMBRA_PM_IS_SWAPPED | \
	 UMBRA_PM_IS_PFNZERO | UMBRA_PM_IS_HUGE)
#define SCAN_REGIONS 64
#define CHUNK        UMBRA_HUGE_PAGES /* pages asked for at once */

static int open_proc(pid_t pid, const char *file)
{
	char path[64];
	int fd;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
	else
		snprintf(path, sizeof(path), "/proc/self/%s", file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Scans [start, end) for every page; regions of equal pages, unbroken, ascending. Returns: regions,
 * -errno. */
static int scan(int fd, uint64_t start, uint64_t end, struct umbra_pm_region *v, uint64_t n,
		uint64_t *walked)
{
	struct umbra_pm_scan arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uintptr_t)v,
		.vec_len = n,
		.category_anyof_mask = UMBRA_PM_IS_PRESENT | UMBRA_PM_IS_SWAPPED,
		.return_mask = SCAN_RETURN,
	};
	int regions = ioctl(fd, UMBRA_PAGEMAP_SCAN, &arg);

	if (regions < 0)
		return -errno;
	*walked = arg.walk_end;
	return regions;
}

static bool probe_scan(int fd, const void *page)
{
	const uint64_t start = (uintptr_t)page & ~(UMBRA_PAGE_SIZE - 1);
	struct umbra_pm_region region;
	uint64_t walked;

	return scan(fd, start, start + UMBRA_PAGE_SIZE, &region, 1, &walked) >= 0;
}

static bool probe_procmap(int fd)
{
	/* A wild address: ENOENT says that the kernel understood the question. */
	struct umbra_procmap_query q = { .size = sizeof(q), .query_addr = 0 };

	return !ioctl(fd, UMBRA_PROCMAP_QUERY, &q) || errno == ENOENT;
}

/* Without CAP_SYS_ADMIN the frame reads as 0. */
static bool probe_pfns(int fd)
{
	const volatile char here = 1;
	uint64_t entry = 0;
	const off_t at = (off_t)(((uintptr_t)&here >> UMBRA_PAGE_SHIFT) * sizeof(entry));

	return pread(fd, &entry, sizeof(entry), at) == sizeof(entry) && (entry & PM_PFN_MASK);
}

static int open_counter(const char *path)
{
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* The number after @key in @fd, or at its beginning; 0 when it cannot be had. */
static uint64_t read_counter(int fd, const char *key)
{
	char buf[8192];
	ssize_t got = fd < 0 ? -1 : pread(fd, buf, sizeof(buf) - 1, 0);
	const char *p = buf;

	if (got <= 0)
		return 0;
	buf[got] = 0;
	if (key) {
		p = strstr(buf, key);
		p = p ? p + strlen(key) : "0";
	}
	return strtoull(p, NULL, 10);
}

static uint64_t collapsed_now(const struct umbra_hostmap *map)
{
	return read_counter(map->khugepaged, NULL);
}

static uint64_t migrated_now(const struct umbra_hostmap *map)
{
	return read_counter(map->vmstat, "\npgmigrate_success ");
}

static uint64_t reclaimed_now(const struct umbra_hostmap *map)
{
	return read_counter(map->vmstat, "\npgscan_anon ") +
	       read_counter(map->vmstat, "\npgscan_file ");
}

bool hostmap_has_reclaimed(const struct umbra_hostmap *map)
{
	return reclaimed_now(map) != map->reclaimed;
}

bool hostmap_has_collapsed(const struct umbra_hostmap *map)
{
	return collapsed_now(map) != map->collapsed;
}

bool hostmap_has_migrated(const struct umbra_hostmap *map)
{
	return migrated_now(map) != map->migrated;
}

int umbra_hostmap_open(struct umbra_hostmap **out, pid_t pid)
{
	struct umbra_hostmap *map = calloc(1, sizeof(*map));
	int self, err;

	if (!map)
		return -ENOMEM;
	map->maps = map->khugepaged = map->vmstat = map->kpageflags = map->kpagecount = -1;
	map->pagemap = open_proc(pid, "pagemap");
	err = map->pagemap < 0 ? map->pagemap : 0;
	if (err)
		goto fail;
	map->maps = open_proc(pid, "maps");
	err = map->maps < 0 ? map->maps : 0;
	if (err)
		goto fail;
	/* The probes look at a page of ours, so through our own pagemap. */
	self = pid ? open_proc(0, "pagemap") : map->pagemap;
	if (self >= 0) {
		map->scan = probe_scan(self, &self);
		map->pfns = probe_pfns(self);
		if (pid)
			close(self);
	}
	if (map->pfns) {
		map->kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
		map->kpagecount = open("/proc/kpagecount", O_RDONLY | O_CLOEXEC);
	}
	map->procmap = probe_procmap(map->maps);
	map->khugepaged =
		open_counter("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_collapsed");
	map->vmstat = open_counter("/proc/vmstat");
	map->collapsed = collapsed_now(map);
	map->migrated = migrated_now(map);
	map->reclaimed = reclaimed_now(map);
	pthread_mutex_init(&map->maps_lock, NULL);
	*out = map;
	return 0;
fail:
	umbra_hostmap_close(map);
	return err;
}

void umbra_hostmap_close(struct umbra_hostmap *map)
{
	if (!map)
		return;
	if (map->pagemap >= 0)
		close(map->pagemap);
	if (map->maps >= 0)
		close(map->maps);
	if (map->kpageflags >= 0)
		close(map->kpageflags);
	if (map->kpagecount >= 0)
		close(map->kpagecount);
	if (map->khugepaged >= 0)
		close(map->khugepaged);
	if (map->vmstat >= 0)
		close(map->vmstat);
	free(map);
}

int hostmap_next(const struct umbra_hostmap *map, uint64_t at, uint64_t end, bool huge,
		 struct hva_range *found)
{
	struct umbra_pm_region region;
	struct umbra_pm_scan arg = {
		.size = sizeof(arg),
		.start = at,
		.end = end,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = UMBRA_PM_IS_PRESENT | (huge ? UMBRA_PM_IS_HUGE : 0),
		.return_mask = UMBRA_PM_IS_PRESENT,
	};
	int n;

	if (!map->scan)
		return -EOPNOTSUPP;
	if (at >= end)
		return 0;
	n = ioctl(map->pagemap, UMBRA_PAGEMAP_SCAN, &arg);
	if (n > 0)
		*found = (struct hva_range){ { region.start }, { region.end } };
	return n < 0 ? -errno : n;
}

bool umbra_hostmap_has_scan(const struct umbra_hostmap *map)
{
	return map->scan;
}

bool umbra_hostmap_has_pfns(const struct umbra_hostmap *map)
{
	return map->pfns;
}

static uint32_t scan_flags(uint64_t categories)
{
	uint32_t flags = 0;

	if (categories & UMBRA_PM_IS_PRESENT) {
		flags |= UMBRA_PAGE_PRESENT;
		if (!(categories & UMBRA_PM_IS_WRITTEN))
			flags |= UMBRA_PAGE_UFFD_WP;
	}
	if (categories & UMBRA_PM_IS_SWAPPED)
		flags |= UMBRA_PAGE_SWAPPED;
	if (categories & UMBRA_PM_IS_FILE)
		flags |= UMBRA_PAGE_FILE;
	if (categories & UMBRA_PM_IS_PFNZERO)
		flags |= UMBRA_PAGE_ZERO;
	if (categories & UMBRA_PM_IS_HUGE)
		flags |= UMBRA_PAGE_HUGE;
	return flags;
}

static void entry_to_page(const struct umbra_hostmap *map, uint64_t entry, struct umbra_page *page)
{
	page->flags = 0;
	page->host_pfn = UMBRA_HOST_PFN_UNKNOWN;
	if (entry & PM_PRESENT) {
		page->flags |= UMBRA_PAGE_PRESENT;
		if (map->pfns)
			page->host_pfn = entry & PM_PFN_MASK;
	}
	if (entry & PM_SWAP)
		page->flags |= UMBRA_PAGE_SWAPPED;
	if (entry & PM_FILE)
		page->flags |= UMBRA_PAGE_FILE;
	if (entry & PM_MMAP_EXCLUSIVE)
		page->flags |= UMBRA_PAGE_EXCLUSIVE;
	if (entry & PM_UFFD_WP)
		page->flags |= UMBRA_PAGE_UFFD_WP;
}

int hostmap_peek(struct umbra_hostmap *map, hva_t hva, uint32_t *flags)
{
	const uint64_t start = hva.v & ~(UMBRA_PAGE_SIZE - 1);
	struct umbra_pm_region region = { 0 };
	struct umbra_page page;
	uint64_t walked;
	int n, err;

	if (!map->scan) {
		err = umbra_hostmap_query(map, hva, &page);
		*flags = page.flags;
		return err;
	}
	n = scan(map->pagemap, start, start + UMBRA_PAGE_SIZE, &region, 1, &walked);
	if (n < 0)
		return n;
	*flags = n ? scan_flags(region.categories) : 0;
	return 0;
}

int hostmap_entries(const struct umbra_hostmap *map, uint64_t first_page, uint64_t *entries,
		    size_t n)
{
	const off_t at = (off_t)(first_page * sizeof(*entries));
	const ssize_t got = pread(map->pagemap, entries, n * sizeof(*entries), at);

	if (got < 0)
		return -errno;
	memset((char *)entries + got, 0, n * sizeof(*entries) - (size_t)got);
	return 0;
}

/* HUGE and ZERO, which only PAGEMAP_SCAN knows, added to what pagemap said. */
static int add_scan(struct umbra_hostmap *map, uint64_t start, struct umbra_page *pages, size_t n)
{
	const uint32_t only_scan = UMBRA_PAGE_HUGE | UMBRA_PAGE_ZERO;
	const uint64_t end = start + n * UMBRA_PAGE_SIZE;
	struct umbra_pm_region v[SCAN_REGIONS];
	uint64_t at = start, walked = end;

	for (; at < end; at = walked) {
		const int regions = scan(map->pagemap, at, end, v, SCAN_REGIONS, &walked);

		if (regions < 0)
			return regions;
		for (int i = 0; i < regions; i++) {
			const uint32_t extra = scan_flags(v[i].categories) & only_scan;
			const uint64_t last = v[i].end < end ? v[i].end : end;

			for (uint64_t a = v[i].start; extra && a < last; a += UMBRA_PAGE_SIZE)
				pages[(a - start) >> UMBRA_PAGE_SHIFT].flags |= extra;
		}
		if (walked <= at)
			break;
	}
	return 0;
}

int umbra_hostmap_query_range(struct umbra_hostmap *map, hva_t hva, struct umbra_page *pages,
			      size_t n)
{
	uint64_t start = hva.v & ~(UMBRA_PAGE_SIZE - 1);
	uint64_t entries[CHUNK];

	while (n) {
		const size_t now = n < CHUNK ? n : CHUNK;
		int err = hostmap_entries(map, start >> UMBRA_PAGE_SHIFT, entries, now);

		if (err)
			return err;
		for (size_t i = 0; i < now; i++)
			entry_to_page(map, entries[i], &pages[i]);
		err = map->scan ? add_scan(map, start, pages, now) : 0;
		if (err)
			return err;
		pages += now;
		n -= now;
		start += now * UMBRA_PAGE_SIZE;
	}
	return 0;
}

int hostmap_entry(struct umbra_hostmap *map, hva_t hva, struct umbra_page *page)
{
	uint64_t entry;
	int err = hostmap_entries(map, hva.v >> UMBRA_PAGE_SHIFT, &entry, 1);

	if (!err)
		entry_to_page(map, entry, page);
	return err;
}

int umbra_hostmap_query(struct umbra_hostmap *map, hva_t hva, struct umbra_page *page)
{
	int err = hostmap_entry(map, hva, page);

	if (err)
		return err;
	return map->scan ? add_scan(map, hva.v & ~(UMBRA_PAGE_SIZE - 1), page, 1) : 0;
}

/* "start-end perms offset dev inode ..." */
static bool parse_vma(const char *line, struct host_vma *vma)
{
	char perms[5];
	uint64_t start, end, inode;

	if (sscanf(line, "%lx-%lx %4s %*x %*x:%*x %lu", &start, &end, perms, &inode) != 4)
		return false;
	vma->hva = (struct hva_range){ { start }, { end } };
	vma->flags =
		(perms[0] == 'r' ? UMBRA_VMA_READ : 0U) | (perms[1] == 'w' ? UMBRA_VMA_WRITE : 0U) |
		(perms[2] == 'x' ? UMBRA_VMA_EXEC : 0U) | (perms[3] == 's' ? UMBRA_VMA_SHARED : 0U);
	vma->page = 0;
	vma->file = inode != 0;
	return true;
}

/* Before 6.11: the text, line by line. O(mappings), some tens of microseconds; there is nothing
 * better there. */
static int vma_from_text(struct umbra_hostmap *map, hva_t hva, struct host_vma *vma)
{
	char buf[8192];
	size_t have = 0;
	int found = -ENOENT;

	pthread_mutex_lock(&map->maps_lock);
	if (lseek(map->maps, 0, SEEK_SET) < 0)
		found = -errno;
	while (found == -ENOENT) {
		const ssize_t got = read(map->maps, buf + have, sizeof(buf) - 1 - have);
		char *line = buf, *newline;

		if (got <= 0)
			break;
		have += (size_t)got;
		buf[have] = 0;
		for (; (newline = strchr(line, '\n')); line = newline + 1) {
			*newline = 0;
			if (parse_vma(line, vma) && hva.v >= vma->hva.start.v &&
			    hva.v < vma->hva.end.v) {
				found = 0;
				break;
			}
		}
		have -= (size_t)(line - buf);
		memmove(buf, line, have);
	}
	pthread_mutex_unlock(&map->maps_lock);
	return found;
}

int hostmap_vma(struct umbra_hostmap *map, hva_t hva, struct host_vma *vma)
{
	struct umbra_procmap_query q = { .size = sizeof(q), .query_addr = hva.v };

	if (!map->procmap)
		return vma_from_text(map, hva, vma);
	if (ioctl(map->maps, UMBRA_PROCMAP_QUERY, &q))
		return -errno;
	vma->hva = (struct hva_range){ { q.vma_start }, { q.vma_end } };
	vma->flags = (uint32_t)q.vma_flags;
	vma->page = q.vma_page_size;
	vma->file = q.inode != 0;
	return 0;
}
