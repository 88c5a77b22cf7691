// SPDX-License-Identifier: GPL-2.0-only
/*
 * Forwards the mmu_notifier callouts of an address space to user space: /dev/umbra, umbra(4).
 *
 * A callout takes one spinlock, counts, and writes one record through the kernel's own mapping. It
 * never waits for user space, never allocates, never touches user memory and always returns 0.
 * Nothing that user space can write is trusted: of the shared pages only @tail and the accessed
 * bits are read, and a wrong value costs the subscription its own records.
 *
 * Locks: attach_lock (a mutex of the descriptor) -> lock (of the ring and the ranges). The callouts
 * run in process context and take @lock alone.
 */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/poll.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include <abi/notifier_ring.h>
#include "compat.h"

static unsigned int max_subscriptions = 64;
module_param(max_subscriptions, uint, 0644);
MODULE_PARM_DESC(max_subscriptions, "subscriptions at a time (64)");

static unsigned int max_ranges = 1024;
module_param(max_ranges, uint, 0644);
MODULE_PARM_DESC(max_ranges, "address ranges of one subscription (1024)");

static unsigned int max_ring_order = 18;
module_param(max_ring_order, uint, 0644);
MODULE_PARM_DESC(max_ring_order, "log2 of the records in a ring, at most (18: 10 MiB)");

static unsigned long max_bitmap_kib = 16384;
module_param(max_bitmap_kib, ulong, 0644);
MODULE_PARM_DESC(max_bitmap_kib, "KiB of accessed bits of one subscription (16384)");

/* Charged to the caller's memory cgroup; too much is an error of the caller's, not of the kernel. */
#define ALLOC_GFP (GFP_KERNEL_ACCOUNT | __GFP_NOWARN)

static atomic_t subscriptions = ATOMIC_INIT(0);

/* Bit @bit of the accessed bitmap stands for the first page of the range. */
struct ntf_range {
	u64 start, end;
	u64 bit;
};

struct ntf_ranges {
	u32 nr;
	struct ntf_range v[];
};

struct subscription {
	struct mutex attach_lock;
	struct mmu_notifier mn;
	/* The address spaces watched and attaching: no users counted, only the structs kept. */
	struct mm_struct *mm, *owner;

	spinlock_t lock;
	struct ntf_ranges *ranges;
	struct umbra_ring_producer ring;
	/* Counts what the ranges leave out, too: they change only while nothing at all is open. */
	u64 open;
	u32 watermark;

	struct umbra_ntf_state *state;       /* vmalloc: state page, then the ring */
	struct umbra_ntf_consumer *consumer; /* vmalloc: tail page, then the bitmap */
	unsigned long *bitmap;
	size_t state_bytes, consumer_bytes;

	wait_queue_head_t wait;
	bool attached; /* set once everything above is ready */
};

/* ---- the ranges ------------------------------------------------------------------------------- */

/* The first range that ends after @addr; behind the last is one that nothing meets. */
static const struct ntf_range *range_from(const struct ntf_ranges *ranges, u64 addr)
{
	u32 lo = 0, hi = ranges->nr;

	while (lo < hi) {
		u32 mid = lo + (hi - lo) / 2;

		if (ranges->v[mid].end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return ranges->v + lo;
}

/* Copies, checks and numbers the ranges of the caller; @bits: how many they need. */
static int ranges_get(struct ntf_ranges **out, u64 user, u32 nr, u32 shift, u64 *bits)
{
	const struct umbra_ntf_range __user *from = u64_to_user_ptr(user);
	const u64 unit = 1ULL << shift;
	struct ntf_ranges *ranges;
	u64 last = 0;
	int err;
	u32 i;

	if (!nr || nr > READ_ONCE(max_ranges))
		return nr ? -ENOSPC : -EINVAL;
	ranges = kvzalloc(struct_size(ranges, v, (size_t)nr + 1), ALLOC_GFP);
	if (!ranges)
		return -ENOMEM;
	*bits = 0;
	for (i = 0; i < nr; i++) {
		struct umbra_ntf_range r;

		err = -EFAULT;
		if (copy_from_user(&r, &from[i], sizeof(r)))
			goto fail;
		err = -EINVAL;
		if (!PAGE_ALIGNED(r.start | r.end) || r.start >= r.end || r.start < last ||
		    r.end > TASK_SIZE_MAX)
			goto fail;
		ranges->v[i] = (struct ntf_range){ r.start, r.end, *bits };
		/* No overflow: all ranges together are less than the address space. */
		*bits += (round_up(r.end, unit) - round_down(r.start, unit)) >> shift;
		last = r.end;
	}
	ranges->v[nr] = (struct ntf_range){ ~0ULL, ~0ULL };
	ranges->nr = nr;
	*out = ranges;
	return 0;
fail:
	kvfree(ranges);
	return err;
}

/* ---- the callouts ----------------------------------------------------------------------------- */

static u16 who_calls(const struct subscription *s)
{
	return (current->mm == s->mm ? UMBRA_NTF_OWNER : 0) |
	       (current->flags & PF_MEMALLOC ? UMBRA_NTF_RECLAIM : 0) |
	       (current->flags & PF_KTHREAD ? UMBRA_NTF_KTHREAD : 0);
}

/*
 * @lock held. Counts one callout and writes its record; the state's own fields are the count, for
 * nobody else can write them. Returns whether whoever sleeps in poll is to be woken.
 */
static bool publish(struct subscription *s, struct umbra_ntf_record *rec)
{
	struct umbra_ntf_state *state = s->state;
	const bool first = state->begun == state->ended;
	u64 unread;

	WRITE_ONCE(state->seq, state->seq + 1);
	smp_wmb(); /* pairs with the acquire of seq in umbra_ntf_read() */
	if (rec->kind == UMBRA_NTF_RELEASE)
		WRITE_ONCE(state->dead, 1);
	/* A release counts as begun and ended, so that whoever compares counters looks. */
	if (rec->kind != UMBRA_NTF_END) {
		WRITE_ONCE(state->open_lo, first ? rec->start : min(state->open_lo, rec->start));
		WRITE_ONCE(state->open_hi, first ? rec->end : max(state->open_hi, rec->end));
		WRITE_ONCE(state->begun, state->begun + 1);
	}
	if (rec->kind != UMBRA_NTF_START)
		WRITE_ONCE(state->ended, state->ended + 1);
	rec->time_ns = ktime_get_ns();
	rec->begun = state->begun;
	rec->flags |= who_calls(s);
	rec->who = rec->flags & UMBRA_NTF_OWNER ? task_pid_vnr(current) : 0;
	/* After the counters: whoever has read a record finds it counted. */
	unread = umbra_ring_push(&s->ring, rec);
	/* pairs with the fence in umbra_ntf_read() */
	smp_store_release(&state->seq, state->seq + 1);
	return unread >= s->watermark;
}

/* The ranges are the same for a start and its end: both are forwarded, or neither. */
static void forward(struct mmu_notifier *mn, const struct mmu_notifier_range *range, u8 kind)
{
	struct subscription *s = container_of(mn, struct subscription, mn);
	struct umbra_ntf_record rec = {
		.start = range->start,
		.end = range->end,
		.kind = kind,
		.event = umbra_event_of(range),
		.flags = mmu_notifier_range_blockable(range) ? UMBRA_NTF_BLOCKABLE : 0,
	};
	bool wake = false;

	spin_lock(&s->lock);
	s->open += kind == UMBRA_NTF_START ? 1 : -1;
	if (range_from(s->ranges, range->start)->start < range->end)
		wake = publish(s, &rec);
	spin_unlock(&s->lock);
	/* The counters are seen before anything that the caller now does to its page tables. */
	smp_mb();
	if (wake && wq_has_sleeper(&s->wait))
		wake_up_interruptible(&s->wait);
}

static int ntf_start(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	forward(mn, range, UMBRA_NTF_START);
	return 0;
}

static void ntf_end(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	forward(mn, range, UMBRA_NTF_END);
}

/* @lock held. Whether a bit of @r's part of [@start, @end) is set; clears them when @clear. */
static bool bits_young(struct subscription *s, const struct ntf_range *r, u64 start, u64 end,
		       bool clear)
{
	const u32 shift = s->state->page_shift;
	const u64 base = r->start >> shift;
	const u64 last = r->bit + ((min(end, r->end) - 1) >> shift) - base;
	u64 bit = r->bit + (max(start, r->start) >> shift) - base;
	bool yes = false;

	/* Each bit once, though user space may be setting it again. */
	for (; (bit = find_next_bit(s->bitmap, last + 1, bit)) <= last; bit++) {
		yes = true;
		if (!clear)
			break;
		clear_bit(bit, s->bitmap);
	}
	return yes;
}

/* Atomic context, under a page-table lock. */
static bool young(struct mmu_notifier *mn, u64 start, u64 end, bool clear)
{
	struct subscription *s = container_of(mn, struct subscription, mn);
	const struct ntf_range *r;
	bool asked = false, yes = false;

	spin_lock(&s->lock);
	for (r = range_from(s->ranges, start); r->start < end; r++) {
		asked = true;
		yes |= bits_young(s, r, start, end, clear);
	}
	WRITE_ONCE(s->state->young_asked, s->state->young_asked + asked);
	WRITE_ONCE(s->state->young_yes, s->state->young_yes + yes);
	spin_unlock(&s->lock);
	return yes;
}

static umbra_young_t ntf_clear_young(struct mmu_notifier *mn, struct mm_struct *mm,
				     unsigned long start, unsigned long end)
{
	return young(mn, start, end, true);
}

static umbra_young_t ntf_test_young(struct mmu_notifier *mn, struct mm_struct *mm,
				    unsigned long addr)
{
	return young(mn, addr, addr + 1, false);
}

/* The address space ends, or the descriptor is closed; may run beside the other callouts. */
static void ntf_release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	struct subscription *s = container_of(mn, struct subscription, mn);
	struct umbra_ntf_record rec = {
		.end = ~0ULL,
		.kind = UMBRA_NTF_RELEASE,
		.event = UMBRA_NTF_EVENT_RELEASE,
	};

	spin_lock(&s->lock);
	if (!s->state->dead) /* both at once make it come twice */
		publish(s, &rec);
	spin_unlock(&s->lock);
	wake_up_interruptible(&s->wait);
}

static const struct mmu_notifier_ops ntf_ops = {
	.release = ntf_release,
	.clear_flush_young = ntf_clear_young,
	.clear_young = ntf_clear_young,
	.test_young = ntf_test_young,
	.invalidate_range_start = ntf_start,
	.invalidate_range_end = ntf_end,
};

/* ---- attaching -------------------------------------------------------------------------------- */

/* The address space to watch, with a user counted. The right is checked against what was taken. */
static struct mm_struct *mm_of(const struct umbra_ntf_attach *a)
{
	struct task_struct *task;
	struct mm_struct *mm;
	struct pid *pid;

	if (!(a->flags & UMBRA_NTF_ATTACH_PID)) {
		mmget(current->mm);
		return current->mm;
	}
	pid = find_get_pid(a->pid);
	task = get_pid_task(pid, PIDTYPE_PID);
	put_pid(pid);
	if (!task)
		return ERR_PTR(-ESRCH);
	mm = get_task_mm(task); /* none: a kernel thread, or exiting */
	put_task_struct(task);
	if (!mm)
		return ERR_PTR(-ESRCH);
	if (!ns_capable(mm->user_ns, CAP_SYS_PTRACE)) {
		mmput(mm);
		return ERR_PTR(-EPERM);
	}
	return mm;
}

static void buffers_free(struct subscription *s)
{
	vfree(s->state);
	vfree(s->consumer);
	kvfree(s->ranges);
	s->state = NULL;
	s->consumer = NULL;
	s->ranges = NULL;
}

static int buffers_make(struct subscription *s, struct umbra_ntf_attach *a)
{
	const u64 records = 1ULL << a->ring_order;
	u64 bits;
	int err = ranges_get(&s->ranges, a->ranges, a->nr_ranges, a->page_shift, &bits);

	if (err)
		return err;
	bits = max(bits, a->bitmap_bits);
	if (a->ring_order > READ_ONCE(max_ring_order) ||
	    DIV_ROUND_UP(bits, 8 * 1024) > READ_ONCE(max_bitmap_kib))
		return -ENOSPC;
	bits = round_up(bits, BITS_PER_LONG);
	s->state_bytes = PAGE_ALIGN(PAGE_SIZE + records * sizeof(struct umbra_ntf_record));
	s->consumer_bytes = PAGE_ALIGN(PAGE_SIZE + bits / 8);
	a->state_bytes = s->state_bytes;
	a->consumer_bytes = s->consumer_bytes;
	s->state = __vmalloc(s->state_bytes, ALLOC_GFP | __GFP_ZERO);
	s->consumer = __vmalloc(s->consumer_bytes, ALLOC_GFP | __GFP_ZERO);
	if (!s->state || !s->consumer)
		return -ENOMEM;
	s->bitmap = (void *)s->consumer + PAGE_SIZE;
	s->watermark = max(a->watermark, 1U);
	s->ring = (struct umbra_ring_producer){
		.records = (void *)s->state + PAGE_SIZE,
		.mask = records - 1,
		.state = s->state,
		.consumer = s->consumer,
	};
	*s->state = (struct umbra_ntf_state){
		.magic = UMBRA_NTF_MAGIC,
		.abi = UMBRA_NTF_ABI,
		.size = sizeof(*s->state),
		.record_size = sizeof(struct umbra_ntf_record),
		.nr_records = records,
		.bitmap_bits = bits,
		.page_shift = a->page_shift,
	};
	return 0;
}

static bool attach_valid(const struct umbra_ntf_attach *a)
{
	return !(a->flags & ~UMBRA_NTF_ATTACH_PID) && (a->flags || !a->pid) &&
	       a->ring_order >= UMBRA_NTF_RING_ORDER_MIN &&
	       a->ring_order <= UMBRA_NTF_RING_ORDER_MAX && a->watermark <= 1U << a->ring_order &&
	       a->page_shift >= PAGE_SHIFT && a->page_shift <= UMBRA_NTF_PAGE_SHIFT_MAX &&
	       a->bitmap_bits <= UMBRA_NTF_BITMAP_BITS_MAX && !a->reserved0 && !a->reserved[0] &&
	       !a->reserved[1];
}

/* From its return on callouts come: everything is ready before it, and nothing fails after it. */
static int watch(struct subscription *s, struct mm_struct *mm)
{
	int err;

	s->mm = mm;
	err = mmu_notifier_register(&s->mn, mm);
	if (!err) {
		mmgrab(mm);
		s->owner = current->mm;
		mmgrab(s->owner);
		/* pairs with the acquire in mmap and poll, which take no mutex */
		smp_store_release(&s->attached, true);
	}
	mmput(mm);
	return err;
}

static int attach(struct subscription *s, struct umbra_ntf_attach *a, void __user *user)
{
	struct mm_struct *mm;
	int err;

	if (s->attached)
		return -EBUSY;
	if (!attach_valid(a))
		return -EINVAL;
	err = buffers_make(s, a);
	if (!err && copy_to_user(user, a, sizeof(*a)))
		err = -EFAULT;
	/* Last, so that user space cannot make us hold somebody's memory while we wait for its own. */
	if (!err) {
		mm = mm_of(a);
		err = IS_ERR(mm) ? PTR_ERR(mm) : watch(s, mm);
	}
	if (err)
		buffers_free(s);
	return err;
}

static int ranges_set(struct subscription *s, const struct umbra_ntf_ranges *a)
{
	struct ntf_ranges *other;
	u64 bits;
	int err;

	if (!s->attached)
		return -ENOTCONN;
	if (current->mm != s->owner)
		return -EIO;
	if (a->reserved[0] || a->reserved[1])
		return -EINVAL;
	err = ranges_get(&other, a->ranges, a->nr_ranges, s->state->page_shift, &bits);
	if (err)
		return err;
	spin_lock(&s->lock);
	if (bits > s->state->bitmap_bits)
		err = -ENOSPC;
	else if (s->state->dead)
		err = -ESRCH;
	else if (s->open)
		err = -EBUSY;
	else
		swap(s->ranges, other);
	spin_unlock(&s->lock);
	kvfree(other);
	return err;
}

/* ---- the device ------------------------------------------------------------------------------- */

static int umbra_open(struct inode *inode, struct file *file)
{
	struct subscription *s = kzalloc(sizeof(*s), GFP_KERNEL_ACCOUNT);

	if (!s)
		return -ENOMEM;
	if (atomic_inc_return(&subscriptions) > READ_ONCE(max_subscriptions)) {
		atomic_dec(&subscriptions);
		kfree(s);
		return -EMFILE;
	}
	mutex_init(&s->attach_lock);
	spin_lock_init(&s->lock);
	init_waitqueue_head(&s->wait);
	s->mn.ops = &ntf_ops;
	file->private_data = s;
	return 0;
}

static int umbra_release(struct inode *inode, struct file *file)
{
	struct subscription *s = file->private_data;

	if (s->attached) {
		/* After its return no callout of ours runs: it waits for them. */
		mmu_notifier_unregister(&s->mn, s->mm);
		mmdrop(s->owner);
		mmdrop(s->mm);
	}
	buffers_free(s);
	kfree(s);
	atomic_dec(&subscriptions);
	return 0;
}

/* Takes a struct of the caller's size: shorter is refused, longer must be zero past what is known. */
static int arg_get(void *arg, size_t bytes, const void __user *from)
{
	u32 size;

	if (get_user(size, (const u32 __user *)from))
		return -EFAULT;
	if (size < bytes)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;
	return copy_struct_from_user(arg, bytes, from, size);
}

static long umbra_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct subscription *s = file->private_data;
	void __user *user = (void __user *)arg;
	struct umbra_ntf_ranges ranges;
	struct umbra_ntf_attach a;
	int err;

	if (mutex_lock_interruptible(&s->attach_lock))
		return -EINTR;
	if (cmd == UMBRA_NTF_ATTACH)
		err = arg_get(&a, sizeof(a), user) ?: attach(s, &a, user);
	else if (cmd == UMBRA_NTF_RANGES)
		err = arg_get(&ranges, sizeof(ranges), user) ?: ranges_set(s, &ranges);
	else
		err = -ENOTTY;
	mutex_unlock(&s->attach_lock);
	return err;
}

/* Maps the @pgoff-th page of @base on; all at once, so that nothing faults later. */
static int map_shared(struct vm_area_struct *vma, void *base, size_t bytes, unsigned long pgoff)
{
	const unsigned long pages = bytes >> PAGE_SHIFT, wanted = vma_pages(vma);
	unsigned long i;
	int err = 0;

	if (pgoff >= pages || wanted > pages - pgoff)
		return -EINVAL;
	/* Not in a child, which would be a second consumer of the same ring. */
	vm_flags_set(vma, VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	for (i = 0; i < wanted && !err; i++)
		err = vm_insert_page(vma, vma->vm_start + (i << PAGE_SHIFT),
				     vmalloc_to_page(base + ((pgoff + i) << PAGE_SHIFT)));
	return err;
}

static int umbra_mmap(struct file *file, struct vm_area_struct *vma)
{
	const unsigned long consumer = UMBRA_NTF_OFFSET_CONSUMER >> PAGE_SHIFT;
	struct subscription *s = file->private_data;

	if (!smp_load_acquire(&s->attached)) /* pairs with the release in attach() */
		return -ENOTCONN;
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_pgoff >= consumer)
		return map_shared(vma, s->consumer, s->consumer_bytes, vma->vm_pgoff - consumer);
	if (vma->vm_flags & VM_WRITE)
		return -EACCES;
	vm_flags_clear(vma, VM_MAYWRITE);
	return map_shared(vma, s->state, s->state_bytes, vma->vm_pgoff);
}

static __poll_t umbra_poll(struct file *file, poll_table *table)
{
	struct subscription *s = file->private_data;
	__poll_t mask = 0;

	poll_wait(file, &s->wait, table);
	if (!smp_load_acquire(&s->attached)) /* pairs with the release in attach() */
		return EPOLLERR;
	spin_lock(&s->lock);
	if (umbra_ring_unread(&s->ring) >= s->watermark)
		mask |= EPOLLIN | EPOLLRDNORM;
	if (s->state->dead)
		mask |= EPOLLHUP | EPOLLIN | EPOLLRDNORM;
	spin_unlock(&s->lock);
	return mask;
}

static const struct file_operations umbra_fops = {
	.owner = THIS_MODULE,
	.open = umbra_open,
	.release = umbra_release,
	.unlocked_ioctl = umbra_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = umbra_mmap,
	.poll = umbra_poll,
};

static struct miscdevice umbra_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "umbra",
	.fops = &umbra_fops,
	.mode = 0600,
};
module_misc_device(umbra_device);

MODULE_DESCRIPTION("Forwards mmu_notifier callouts to user space");
MODULE_LICENSE("GPL");
