/* SPDX-License-Identifier: BSD-2-Clause */
/* Guest memory: mapping it, making it known, and copying from and to it without ever faulting. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include <vmm/hostcall.h>
#include <vmm/limits.h>
#include <vmm/memory.h>
#include <vmm/resolve.h>
#include <vmm/vm_private.h>

#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

#define WRITE_TRIES 1000 /* an invalidation or a protection came between: again */

struct memory {
	void *reservation;
	size_t reserved;
	int self; /* /proc/self/mem */
	bool uffd_registered;
	const char *effective;
	/*
	 * Readers: guest_read, guest_write. Writers: fork and mremap, during which a store of ours
	 * would break copy-on-write unannounced, or land in a page that is thrown away.
	 */
	pthread_rwlock_t access;
};

/* ---- mapping -----------------------------------------------------------------------------------
 */

#define HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static int no_hugepages(const struct vm *vm, int error, struct vm_error *err)
{
	uint64_t need = vm->config.memory >> UMBRA_HUGE_SHIFT;
	uint64_t total = limits_number(HUGEPAGES "nr_hugepages");
	uint64_t free_now = limits_number(HUGEPAGES "free_hugepages");
	uint64_t reserved = limits_number(HUGEPAGES "resv_hugepages");

	if (error != ENOMEM && error != ENOSPC)
		return vm_fail_host(err, error, "--pages hugetlb: 2M hugepages");
	free_now = free_now > reserved ? free_now - reserved : 0;
	return vm_fail(err, VMM_EXIT_CANNOT_RUN,
		       "--pages hugetlb: %" PRIu64 "M of memory need %" PRIu64
		       " hugepages of 2M, %" PRIu64 " are free; as root: echo %" PRIu64
		       " > " HUGEPAGES "nr_hugepages",
		       vm->config.memory >> 20, need, free_now, total + need - free_now);
}

/* shmem may be given huge pages at fault time? The word in brackets decides. */
static bool shmem_thp_at_fault(void)
{
	char line[128] = "";
	FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");

	if (!f)
		return false;
	if (!fgets(line, sizeof(line), f))
		line[0] = '\0';
	fclose(f);
	return strstr(line, "[always]") || strstr(line, "[advise]") ||
	       strstr(line, "[within_size]") || strstr(line, "[force]");
}

static int create_fd(struct vm *vm, struct vm_error *err)
{
	unsigned int flags = MFD_CLOEXEC;

	if (vm->config.pages == GUEST_PAGES_HUGETLB)
		flags |= MFD_HUGETLB | MFD_HUGE_2MB;
	vm->ram_fd = memfd_create("umbra-ram", flags);
	if (vm->ram_fd < 0)
		return flags & MFD_HUGETLB ? no_hugepages(vm, errno, err)
					   : vm_fail_host(err, errno, "memfd_create");
	if (ftruncate(vm->ram_fd, (off_t)vm->config.memory) < 0)
		return vm_fail_host(err, errno, "a memory file of %" PRIu64 "M",
				    vm->config.memory >> 20);
	return 0;
}

static int map_ram(struct vm *vm, struct vm_error *err)
{
	struct memory *m = vm->memory;
	bool hugetlb = vm->config.pages == GUEST_PAGES_HUGETLB;
	int flags = MAP_FIXED;
	uintptr_t at;

	/* 2M more than needed, so that guest and host addresses agree modulo 2M; the rest stays a
	 * fence. */
	m->reserved = vm->config.memory + 2 * UMBRA_HUGE_SIZE;
	m->reservation = mmap(NULL, m->reserved, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m->reservation == MAP_FAILED) {
		m->reservation = NULL;
		return vm_fail_host(err, errno, "%" PRIu64 "M of address space",
				    vm->config.memory >> 20);
	}
	at = ((uintptr_t)m->reservation + 2 * UMBRA_HUGE_SIZE - 1) & ~(UMBRA_HUGE_SIZE - 1);
	if (vm->ram_fd >= 0)
		flags |= MAP_SHARED;
	else
		flags |= MAP_PRIVATE | MAP_ANONYMOUS |
			 (hugetlb ? MAP_HUGETLB | 21 << MAP_HUGE_SHIFT : 0);
	if (!hugetlb) /* hugetlb: the pages are reserved now, so that none is missing later */
		flags |= MAP_NORESERVE;
	if (mmap((void *)at, vm->config.memory, PROT_READ | PROT_WRITE, flags, vm->ram_fd, 0) ==
	    MAP_FAILED)
		return hugetlb ? no_hugepages(vm, errno, err)
			       : vm_fail_host(err, errno, "%" PRIu64 "M of guest memory",
					      vm->config.memory >> 20);
	vm->ram = (hva_t){ at };
	return 0;
}

static void advise_pages(struct vm *vm)
{
	void *at = (void *)(uintptr_t)vm->ram.v;
	struct memory *m = vm->memory;

	switch (vm->config.pages) {
	case GUEST_PAGES_4K:
		m->effective = "4k";
		/* EINVAL: a kernel without THP, which is what we want. */
		madvise(at, vm->config.memory, MADV_NOHUGEPAGE);
		return;
	case GUEST_PAGES_HUGETLB: m->effective = "hugetlb"; return;
	case GUEST_PAGES_THP: break;
	}
	if (madvise(at, vm->config.memory, MADV_HUGEPAGE) < 0)
		m->effective = "4k (this kernel has no transparent hugepages)";
	else if (vm->ram_fd >= 0 && !shmem_thp_at_fault())
		m->effective = "thp, by collapse only (shmem_enabled forbids it at fault time)";
	else
		m->effective = "thp";
}

int memory_create(struct vm *vm, struct vm_error *err)
{
	pthread_rwlockattr_t attr;
	int e = 0;

	vm->ram_fd = -1;
	vm->memory = calloc(1, sizeof(*vm->memory));
	if (!vm->memory)
		return vm_fail_host(err, ENOMEM, "guest memory");
	vm->memory->self = -1;
	/* Else vCPUs that discard without a pause would keep a remap waiting for ever. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&vm->memory->access, &attr);
	pthread_rwlockattr_destroy(&attr);
	if (vm->config.backing == GUEST_BACKING_MEMFD)
		e = create_fd(vm, err);
	if (!e)
		e = map_ram(vm, err);
	if (!e) {
		vm->memory->self = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
		if (vm->memory->self < 0)
			e = vm_fail_host(err, errno, "/proc/self/mem (vmm needs /proc mounted)");
	}
	if (!e)
		advise_pages(vm);
	return e;
}

void memory_destroy(struct vm *vm)
{
	if (!vm->memory)
		return;
	if (vm->memory->reservation)
		munmap(vm->memory->reservation, vm->memory->reserved);
	if (vm->memory->self >= 0)
		close(vm->memory->self);
	if (vm->ram_fd >= 0)
		close(vm->ram_fd);
	pthread_rwlock_destroy(&vm->memory->access);
	free(vm->memory);
	vm->memory = NULL;
}

const char *memory_pages_effective(const struct vm *vm)
{
	return vm->memory->effective;
}

/* ---- making it known ---------------------------------------------------------------------------
 */

static void register_uffd(struct vm *vm, struct hva_range ram)
{
	uint64_t features = umbra_uffd_features(vm->uffd);
	const char *why = NULL;
	int e;

	if (vm->ram_fd >= 0 && vm->config.pages == GUEST_PAGES_THP)
		why = "shared memory registered for write-protection is never mapped by 2M";
	else if ((vm->ram_fd >= 0 || vm->config.pages == GUEST_PAGES_HUGETLB) &&
		 !(features & UFFD_FEATURE_WP_HUGETLBFS_SHMEM))
		why = "this kernel's userfaultfd cannot write-protect shared memory";
	if (why) {
		vm_log(vm, VM_LOG_INFO,
		       "userfaultfd not registered: %s; changes by code that is not vmm's own are not seen",
		       why);
		return;
	}
	/* Nothing is ever write-protected: this gives the events and costs no faults. */
	e = umbra_uffd_register(vm->uffd, ram, UMBRA_UFFD_WP);
	if (e)
		vm_log(vm, VM_LOG_WARN,
		       "userfaultfd registration: %s; only vmm's own calls are seen", strerror(-e));
	vm->memory->uffd_registered = !e;
}

int memory_publish(struct vm *vm, struct vm_error *err)
{
	const struct hva_range ram = { vm->ram, { vm->ram.v + vm->config.memory } };
	const bool hugetlb = vm->config.pages == GUEST_PAGES_HUGETLB;
	const struct umbra_region region = {
		.hva = ram,
		.fd = vm->ram_fd,
		.hugepage = hugetlb ? UMBRA_HUGE_SIZE : 0,
		.is_private = vm->ram_fd < 0,
	};
	const struct umbra_memslot slot = {
		.id = VM_SLOT_ID_RAM,
		.flags = UMBRA_SLOT_LOG |
			 (vm->config.pages == GUEST_PAGES_4K ? (uint32_t)UMBRA_SLOT_4K_ONLY : 0),
		.npages = vm->config.memory >> UMBRA_PAGE_SHIFT,
		.hva = vm->ram,
	};
	int e = umbra_region_add(vm->own, &region);

	if (e)
		return vm_fail(err, VMM_EXIT_INTERNAL, "umbra_region_add: %s", strerror(-e));
	e = umbra_memslot_add(vm->mmu, &slot);
	if (e)
		return vm_fail(err, VMM_EXIT_INTERNAL, "umbra_memslot_add: %s", strerror(-e));
	if (vm->uffd)
		register_uffd(vm, ram);
	vm_log(vm, VM_LOG_INFO, "memory: %" PRIu64 "M at 0x%" PRIx64 ", %s, pages %s",
	       vm->config.memory >> 20, vm->ram.v, vm->ram_fd < 0 ? "anon" : "memfd",
	       memory_pages_effective(vm));
	return 0;
}

/* ---- access ------------------------------------------------------------------------------------
 */

int memory_range(const struct vm *vm, uint64_t gpa, uint64_t len, struct hva_range *r)
{
	if (gpa > vm->config.memory || len > vm->config.memory - gpa)
		return -EFAULT;
	*r = (struct hva_range){ { vm->ram.v + gpa }, { vm->ram.v + gpa + len } };
	return 0;
}

void memory_access_close(struct vm *vm)
{
	pthread_rwlock_wrlock(&vm->memory->access);
}

void memory_access_open(struct vm *vm)
{
	pthread_rwlock_unlock(&vm->memory->access);
}

void memory_access_enter(struct vm *vm)
{
	pthread_rwlock_rdlock(&vm->memory->access);
}

void memory_access_leave(struct vm *vm)
{
	pthread_rwlock_unlock(&vm->memory->access);
}

/*
 * Through /proc/self/mem, not process_vm_readv: that pins, and pinning a page which a fork left
 * shared copies it first, even for a read. The frame would move under a present leaf with nobody
 * told.
 */
int guest_read(struct vm *vm, gpa_t gpa, void *to, size_t len)
{
	struct hva_range r;
	ssize_t n;

	if (memory_range(vm, gpa.v, len, &r))
		return -EFAULT;
	memory_access_enter(vm);
	n = pread(vm->memory->self, to, len, (off_t)r.start.v);
	memory_access_leave(vm);
	return n == (ssize_t)len ? 0 : -EFAULT;
}

/*
 * The page that holds @at becomes one that a store neither moves nor is refused by. The MMU's own
 * resolve does it: it announces the copy-on-write that it breaks, so that no vCPU goes on reading
 * the old frame.
 */
static int make_writable(struct vm *vm, uint64_t at)
{
	const struct umbra_resolve_req req = {
		.hva = { at & ~(UMBRA_PAGE_SIZE - 1) },
		.gfn = { (at - vm->ram.v) >> UMBRA_PAGE_SHIFT },
		.access = UMBRA_ACCESS_READ | UMBRA_ACCESS_WRITE,
		.slot_id = VM_SLOT_ID_RAM,
		.max_level = UMBRA_LEVEL_4K,
	};
	struct umbra_resolved res;
	int e = vm_mmu_ops.resolve(vm, &req, &res);

	return e ? e : res.writable ? 0 : -EAGAIN;
}

static int write_in_page(struct vm *vm, uint64_t at, const void *from, size_t len)
{
	struct iovec local = { (void *)(uintptr_t)from, len },
		     remote = { (void *)(uintptr_t)at, len };

	for (int i = 0; i < WRITE_TRIES; i++) {
		ssize_t n = -1;
		int e;

		memory_access_enter(vm);
		e = make_writable(vm, at);
		if (!e)
			n = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
		memory_access_leave(vm);
		if (n == (ssize_t)len)
			return 0;
		if (e == -EAGAIN)
			continue;
		if (!hostcall_lift_protection(vm, (gpa_t){ at - vm->ram.v }))
			return -EFAULT;
	}
	return -EFAULT;
}

int guest_write(struct vm *vm, gpa_t gpa, const void *from, size_t len)
{
	const char *p = from;
	struct hva_range r;

	if (memory_range(vm, gpa.v, len, &r))
		return -EFAULT;
	while (len) {
		size_t part = UMBRA_PAGE_SIZE - (r.start.v & (UMBRA_PAGE_SIZE - 1));
		int e;

		part = part < len ? part : len;
		e = write_in_page(vm, r.start.v, p, part);
		if (e)
			return e;
		r.start.v += part;
		p += part;
		len -= part;
	}
	return 0;
}
