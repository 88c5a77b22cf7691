/* SPDX-License-Identifier: BSD-2-Clause */
/* The hidden window: its place, its pages, and the KVM slots that appear under it as it fills. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <vmm/kvm.h>
#include <vmm/limits.h>
#include <vmm/vm_private.h>
#include <vmm/window.h>

#define CHUNK_SHIFT       21
#define CHUNK_BYTES       (1ULL << CHUNK_SHIFT)
#define CHUNK_PAGES       (CHUNK_BYTES / UMBRA_PAGE_SIZE)
#define RAM_CHUNK_SHIFT   24
#define RAM_CHUNK_BYTES   (1ULL << RAM_CHUNK_SHIFT)
#define WINDOW_PHYS       (1ULL << 38)
#define WINDOW_PHYS_SHIFT 30 /* where it cannot be there: as high as it can, aligned to this */
#define WINDOW_SLACK      (32ULL << 20)
#define WINDOW_MAX        (1ULL << 30) /* what the monitor maps with one table of 2M leaves */

/*
 * struct window
 * @pages: of the reservation, the last one of which is the spare page. @chunks: known to KVM.
 * @next: first page never handed out. @free, @nfree: pages that were given back; kept outside of
 * the pages, because a page of the window must read as zero until the MMU writes to it. All of
 * these change only under the mmu lock (or before there is an MMU).
 * @ram_lock: orders threads that add a chunk of guest memory; @ram_known is read without it.
 */
struct window {
	uint8_t *base;
	uint64_t phys, pages, chunks, next;
	uint32_t *free;
	uint64_t nfree;
	pthread_mutex_t ram_lock;
	_Atomic uint8_t *ram_known;
};

static void *reserve(uint64_t bytes)
{
	/*
	 * Not in the children that GUEST_CALL_FORK makes: a page shared with one would be copied on our next store,
	 * and KVM would be told of a change of its tables each time. Private: the kernel takes 10 us to unmap it, and
	 * some hundreds for shared memory, by the size of the hole in it.
	 */
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	if (madvise(p, bytes, MADV_DONTFORK)) {
		munmap(p, bytes);
		return NULL;
	}
	madvise(p, bytes, MADV_DONTDUMP);
	madvise(p, bytes, MADV_NOHUGEPAGE); /* few of its pages are used; EINVAL without THP */
	return p;
}

static int add_chunk(struct vm *vm)
{
	struct window *w = vm->window;
	uint64_t at = w->chunks << CHUNK_SHIFT;
	int ret = kvm_slot_set(vm->vm_fd, (uint32_t)(KVM_SLOT_WINDOW + w->chunks), w->phys + at,
			       CHUNK_BYTES, w->base + at);

	if (!ret)
		w->chunks++;
	return ret;
}

static uint8_t *spare_page(struct window *w)
{
	return w->base + (w->pages << UMBRA_PAGE_SHIFT);
}

static int add_spare(struct vm *vm)
{
	struct window *w = vm->window;

	return kvm_slot_set(vm->vm_fd, KVM_SLOT_SPARE, w->phys + (w->pages << UMBRA_PAGE_SHIFT),
			    UMBRA_PAGE_SIZE, spare_page(w));
}

/* Where in guest-physical memory, 0 if nowhere. */
static uint64_t choose_phys(int bits, uint64_t bytes, uint64_t memory)
{
	uint64_t end = bits >= 52 ? 1ULL << 52 : 1ULL << bits;
	uint64_t phys = WINDOW_PHYS;

	if (phys + bytes > end)
		phys = (end - bytes) >> WINDOW_PHYS_SHIFT << WINDOW_PHYS_SHIFT;
	return phys >= memory && phys + bytes <= end ? phys : 0;
}

int window_create(struct vm *vm, struct vm_error *err)
{
	uint64_t leaves = vm->config.memory / UMBRA_PAGE_SIZE * 8;
	uint64_t bytes =
		2 * leaves + 2 * WINDOW_SLACK; /* twice: unlinked tables wait to be freed */
	uint64_t chunks = (vm->config.memory + RAM_CHUNK_BYTES - 1) >> RAM_CHUNK_SHIFT;
	int bits = kvm_phys_bits(vm);
	struct window *w;
	int ret;

	if (bits < 0)
		return vm_fail(err, VMM_EXIT_CANNOT_RUN, "KVM_GET_SUPPORTED_CPUID: %s",
			       strerror(-bits));
	bytes = (bytes + CHUNK_BYTES - 1) & ~(CHUNK_BYTES - 1);
	if (bytes > WINDOW_MAX)
		bytes = WINDOW_MAX;
	w = calloc(1, sizeof(*w));
	if (!w)
		return vm_fail_host(err, ENOMEM, "the table window");
	pthread_mutex_init(&w->ram_lock, NULL);
	vm->window = w;
	w->pages = bytes >> UMBRA_PAGE_SHIFT;
	w->phys = choose_phys(bits, bytes + UMBRA_PAGE_SIZE, vm->config.memory);
	if (!w->phys) {
		window_destroy(vm);
		return vm_fail(err, VMM_EXIT_CANNOT_RUN,
			       "%llu MiB of guest memory leave no room for the tables below the %d "
			       "address bits this KVM gives its guests: ask for less memory (-m)",
			       (unsigned long long)(vm->config.memory >> 20), bits);
	}
	w->base = reserve(bytes + UMBRA_PAGE_SIZE);
	w->free = reserve(w->pages * sizeof(*w->free));
	w->ram_known = calloc(chunks, 1);
	if (!w->base || !w->free || !w->ram_known) {
		const int error = errno;

		window_destroy(vm);
		return vm_fail_host(err, error, "%lluM of address space for the tables",
				    (unsigned long long)(bytes >> 20));
	}
	ret = add_chunk(vm);
	if (!ret)
		ret = add_spare(vm);
	if (ret) {
		window_destroy(vm);
		return vm_fail_host(err, -ret, "KVM_SET_USER_MEMORY_REGION");
	}
	w->next = WINDOW_MONITOR_PAGES;
	return 0;
}

void window_destroy(struct vm *vm)
{
	struct window *w = vm->window;

	if (!w)
		return;
	if (w->base) /* its slots go with the VM */
		munmap(w->base, (w->pages + 1) << UMBRA_PAGE_SHIFT);
	if (w->free)
		munmap(w->free, w->pages * sizeof(*w->free));
	free((void *)w->ram_known);
	pthread_mutex_destroy(&w->ram_lock);
	free(w);
	vm->window = NULL;
}

void window_configure(const struct vm *vm, struct umbra_mmu_config *config)
{
	config->window = vm->window->base;
	config->window_phys = vm->window->phys;
	config->window_pages = vm->window->pages;
}

void *window_page(const struct vm *vm, uint64_t index)
{
	return vm->window->base + (index << UMBRA_PAGE_SHIFT);
}

uint64_t window_phys(const struct vm *vm, uint64_t index)
{
	return vm->window->phys + (index << UMBRA_PAGE_SHIFT);
}

int window_table_alloc(struct vm *vm, uint64_t *index)
{
	struct window *w = vm->window;

	if (w->nfree) {
		*index = w->free[--w->nfree];
		return 0;
	}
	if (w->next == w->pages)
		return -ENOSPC;
	if (w->next == w->chunks * CHUNK_PAGES && add_chunk(vm))
		return -ENOSPC;
	*index = w->next++;
	return 0;
}

void window_table_free(struct vm *vm, uint64_t index)
{
	struct window *w = vm->window;

	w->free[w->nfree++] = (uint32_t)index;
}

int window_expose_ram(struct vm *vm, gpa_t gpa)
{
	uint64_t chunk = gpa.v >> RAM_CHUNK_SHIFT;
	uint64_t start = chunk << RAM_CHUNK_SHIFT;
	struct window *w = vm->window;
	uint64_t bytes = RAM_CHUNK_BYTES;
	int ret = 0;

	if (gpa.v >= vm->config.memory)
		return -EINVAL;
	/* Pairs with the release below: who sees the mark may run a guest on the slot. */
	if (atomic_load_explicit(&w->ram_known[chunk], memory_order_acquire))
		return 0;
	pthread_mutex_lock(&w->ram_lock);
	if (!atomic_load_explicit(&w->ram_known[chunk], memory_order_relaxed)) {
		if (bytes > vm->config.memory - start)
			bytes = vm->config.memory - start;
		ret = kvm_slot_set(vm->vm_fd, (uint32_t)(KVM_SLOT_RAM + chunk), start, bytes,
				   (void *)(uintptr_t)(vm->ram.v + start));
		if (!ret)
			atomic_store_explicit(&w->ram_known[chunk], 1, memory_order_release);
	}
	pthread_mutex_unlock(&w->ram_lock);
	return ret;
}

int window_forget_shadows(struct vm *vm)
{
	int ret = kvm_slot_set(vm->vm_fd, KVM_SLOT_SPARE, 0, 0, NULL);

	return ret ? ret : add_spare(vm);
}
