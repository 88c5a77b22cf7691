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
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/overflow.h>
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
	u64 begun, ended, open_lo, open_hi;
	u64 young_asked, young_yes;
	u32 watermark;

	struct umbra_ntf_state *state;	     /* vmalloc_user: state page, then the ring */
	struct umbra_ntf_consumer *consumer; /* vmalloc_user: tail page, then the bitmap */
	unsigned long *bitmap;
	u64 bitmap_bits;
	u32 page_shift;
	size_t state_bytes, consumer_bytes;

	wait_queue_head_t wait;
	bool attached; /* set once everything above is ready */
};

/* ---- the ranges ------------------------------------------------------------------------------- */

/* The first range that ends after @addr, or NULL. */
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
	return lo < ranges->nr ? &ranges->v[lo] : NULL;
}

static bool ranges_meet(const struct ntf_ranges *ranges, u64 start, u64 end)
{
	const struct ntf_range *r = range_from(ranges, start);

	return r && r->start < end;
}

/* Copies, checks and numbers the ranges of the caller; @bits: how many they need. */
static int ranges_get(struct ntf_ranges **out, u64 user, u32 nr, u32 shift, u64 *bits)
{
	const struct umbra_ntf_range __user *from = u64_to_user_ptr(user);
	const u64 unit = 1ULL << shift;
	struct ntf_ranges *ranges;
	u64 last = 0;
	u32 i;

	if (!nr || nr > READ_ONCE(max_ranges))
		return nr ? -ENOSPC : -EINVAL;
	ranges = kvzalloc(struct_size(ranges, v, nr), GFP_KERNEL_ACCOUNT);
	if (!ranges)
		return -ENOMEM;
	*bits = 0;
	for (i = 0; i < nr; i++) {
		struct umbra_ntf_range r;

		if (copy_from_user(&r, &from[i], sizeof(r))) {
			kvfree(ranges);
			return -EFAULT;
		}
		if (!PAGE_ALIGNED(r.start | r.end) || r.start >= r.end || r.start < last ||
		    r.end > TASK_SIZE_MAX) {
			kvfree(ranges);
			return -EINVAL;
		}
		ranges->v[i] = (struct ntf_range){ r.start, r.end, *bits };
		*bits += (round_up(r.end, unit) - round_down(r.start, unit)) >> shift;
		last = r.end;
	}
	ranges->nr = nr;
	*out = ranges;
	return 0;
}

/* ---- the callouts ----------------------------------------------------------------------------- */

/* @lock held. Between these two the fields change together. */
static void publish_begin(struct subscription *s)
{
	WRITE_ONCE(s->state->seq, s->state->seq + 1);
	smp_wmb(); /* pairs with the acquire of seq in umbra_ntf_read() */
}

static void publish_end(struct subscription *s)
{
	WRITE_ONCE(s->state->begun, s->begun);
	WRITE_ONCE(s->state->ended, s->ended);
	WRITE_ONCE(s->state->open_lo, s->open_lo);
	WRITE_ONCE(s->state->open_hi, s->open_hi);
	smp_store_release(&s->state->seq, s->state->seq + 1);
}

static u16 who_calls(const struct subscription *s)
{
	u16 flags = 0;

	if (current->mm == s->mm)
		flags |= UMBRA_NTF_OWNER;
	if (current->flags & PF_MEMALLOC)
		flags |= UMBRA_NTF_RECLAIM;
	if (current->flags & PF_KTHREAD)
		flags |= UMBRA_NTF_KTHREAD;
	return flags;
}

/* @lock held, inside publish. Returns whether the watermark is reached. */
static bool record(struct subscription *s, u64 start, u64 end, u8 kind, u8 event, u16 flags)
{
	const struct umbra_ntf_record rec = {
		.start = start,
		.end = end,
		.time_ns = ktime_get_ns(),
		.begun = s->begun,
		.who = flags & UMBRA_NTF_OWNER ? task_pid_nr(current) : 0,
		.kind = kind,
		.event = event,
		.flags = flags,
	};
	u64 lost = s->ring.lost;

	return umbra_ring_push(&s->ring, &rec) >= s->watermark || s->ring.lost != lost;
}

/* The kernel's numbers are those of the ABI; a kernel where they are not does not build. */
static u8 event_of(const struct mmu_notifier_range *range)
{
	static_assert((int)MMU_NOTIFY_UNMAP == (int)UMBRA_NTF_UNMAP &&
		      (int)MMU_NOTIFY_CLEAR == (int)UMBRA_NTF_CLEAR &&
		      (int)MMU_NOTIFY_PROTECTION_VMA == (int)UMBRA_NTF_PROTECTION_VMA &&
		      (int)MMU_NOTIFY_PROTECTION_PAGE == (int)UMBRA_NTF_PROTECTION_PAGE &&
		      (int)MMU_NOTIFY_SOFT_DIRTY == (int)UMBRA_NTF_SOFT_DIRTY &&
		      (int)MMU_NOTIFY_RELEASE == (int)UMBRA_NTF_EVENT_RELEASE &&
		      (int)MMU_NOTIFY_MIGRATE == (int)UMBRA_NTF_MIGRATE &&
		      (int)MMU_NOTIFY_EXCLUSIVE == (int)UMBRA_NTF_EXCLUSIVE);
	return range->event <= MMU_NOTIFY_EXCLUSIVE ? range->event : UMBRA_NTF_OTHER;
}

/* The filter is the same for a start and its end: ranges change only while nothing is open. */
static void forward(struct subscription *s, const struct mmu_notifier_range *range, u8 kind)
{
	u16 flags = who_calls(s) | (mmu_notifier_range_blockable(range) ? UMBRA_NTF_BLOCKABLE : 0);
	bool wake;

	spin_lock(&s->lock);
	if (!ranges_meet(s->ranges, range->start, range->end)) {
		spin_unlock(&s->lock);
		return;
	}
	publish_begin(s);
	if (kind == UMBRA_NTF_START) {
		if (s->begun++ == s->ended) {
			s->open_lo = range->start;
			s->open_hi = range->end;
		} else {
			s->open_lo = min_t(u64, s->open_lo, range->start);
			s->open_hi = max_t(u64, s->open_hi, range->end);
		}
	} else {
		s->ended++;
		WARN_ON_ONCE(s->ended > s->begun);
	}
	wake = record(s, range->start, range->end, kind, event_of(range), flags);
	publish_end(s);
	spin_unlock(&s->lock);
	/* The counters are seen before anything that the caller now does to its page tables. */
	smp_mb();
	if (wake && wq_has_sleeper(&s->wait))
		wake_up_interruptible(&s->wait);
}

static int ntf_start(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	forward(container_of(mn, struct subscription, mn), range, UMBRA_NTF_START);
	return 0;
}

static void ntf_end(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	forward(container_of(mn, struct subscription, mn), range, UMBRA_NTF_END);
}

/* @lock held. Whether a bit of [@start, @end) is set; clears them all when @clear. */
static bool bits_young(struct subscription *s, u64 start, u64 end, bool clear)
{
	const struct ntf_range *r = range_from(s->ranges, start);
	bool young = false;

	for (; r && r < s->ranges->v + s->ranges->nr && r->start < end; r++) {
		u64 base = r->start >> s->page_shift;
		u64 bit = r->bit + (max(start, r->start) >> s->page_shift) - base;
		u64 last = r->bit + ((min(end, r->end) - 1) >> s->page_shift) - base;

		while ((bit = find_next_bit(s->bitmap, last + 1, bit)) <= last) {
			young = true;
			if (!clear)
				return true;
			clear_bit(bit, s->bitmap);
		}
	}
	return young;
}

/* Atomic context, under a page-table lock. */
static bool young(struct mmu_notifier *mn, u64 start, u64 end, bool clear)
{
	struct subscription *s = container_of(mn, struct subscription, mn);
	bool yes = false;

	spin_lock(&s->lock);
	if (ranges_meet(s->ranges, start, end)) {
		yes = bits_young(s, start, end, clear);
		WRITE_ONCE(s->state->young_asked, ++s->young_asked);
		s->young_yes += yes;
		WRITE_ONCE(s->state->young_yes, s->young_yes);
	}
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

	spin_lock(&s->lock);
	publish_begin(s);
	WRITE_ONCE(s->state->dead, 1);
	/* counted as begun and over, so that whoever compares counters looks here */
	s->begun++;
	s->ended++;
	record(s, 0, ~0ULL, UMBRA_NTF_RELEASE, UMBRA_NTF_EVENT_RELEASE, who_calls(s));
	publish_end(s);
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
		mm = current->mm;
		if (!mm || !mmget_not_zero(mm))
			return ERR_PTR(-ESRCH);
		return mm;
	}
	pid = find_get_pid(a->pid);
	task = get_pid_task(pid, PIDTYPE_PID);
	put_pid(pid);
	if (!task)
		return ERR_PTR(-ESRCH);
	mm = get_task_mm(task);
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
	int err;

	err = ranges_get(&s->ranges, a->ranges, a->nr_ranges, a->page_shift, &bits);
	if (err)
		return err;
	bits = max(bits, a->bitmap_bits);
	if (DIV_ROUND_UP(bits, 8 * 1024) > READ_ONCE(max_bitmap_kib))
		return -ENOSPC;
	bits = round_up(bits, BITS_PER_LONG);
	s->state_bytes = PAGE_ALIGN(PAGE_SIZE + records * sizeof(struct umbra_ntf_record));
	s->consumer_bytes = PAGE_ALIGN(PAGE_SIZE + bits / 8);
	s->state = vmalloc_user(s->state_bytes);
	s->consumer = vmalloc_user(s->consumer_bytes);
	if (!s->state || !s->consumer)
		return -ENOMEM;
	s->bitmap = (void *)s->consumer + PAGE_SIZE;
	s->bitmap_bits = bits;
	s->page_shift = a->page_shift;
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
		.page_shift = s->page_shift,
	};
	return 0;
}

static int attach(struct subscription *s, struct umbra_ntf_attach *a)
{
	struct mm_struct *mm;
	int err;

	if (s->attached)
		return -EBUSY;
	if (a->flags & ~UMBRA_NTF_ATTACH_PID || a->reserved0 || a->reserved[0] || a->reserved[1] ||
	    a->ring_order < UMBRA_NTF_RING_ORDER_MIN || a->ring_order > UMBRA_NTF_RING_ORDER_MAX ||
	    a->page_shift < PAGE_SHIFT || a->page_shift > 30 || a->watermark > 1U << a->ring_order ||
	    (!(a->flags & UMBRA_NTF_ATTACH_PID) && a->pid) || a->bitmap_bits > 1ULL << 40)
		return -EINVAL;
	if (a->ring_order > READ_ONCE(max_ring_order))
		return -ENOSPC;
	mm = mm_of(a);
	if (IS_ERR(mm))
		return PTR_ERR(mm);
	err = buffers_make(s, a);
	if (err)
		goto out;
	/* From its return on callouts come: everything is ready before it. */
	s->mm = mm;
	err = mmu_notifier_register(&s->mn, mm);
	if (err)
		goto out;
	mmgrab(mm);
	s->owner = current->mm;
	mmgrab(s->owner);
	a->state_bytes = s->state_bytes;
	a->consumer_bytes = s->consumer_bytes;
	/* pairs with the acquire in mmap and poll, which take no lock */
	smp_store_release(&s->attached, true);
out:
	if (err)
		buffers_free(s);
	mmput(mm);
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
	err = ranges_get(&other, a->ranges, a->nr_ranges, s->page_shift, &bits);
	if (err)
		return err;
	spin_lock(&s->lock);
	if (bits > s->bitmap_bits)
		err = -ENOSPC;
	else if (s->begun != s->ended)
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
	struct subscription *s;

	if (atomic_inc_return(&subscriptions) > READ_ONCE(max_subscriptions)) {
		atomic_dec(&subscriptions);
		return -EMFILE;
	}
	s = kzalloc(sizeof(*s), GFP_KERNEL_ACCOUNT);
	if (!s) {
		atomic_dec(&subscriptions);
		return -ENOMEM;
	}
	mutex_init(&s->attach_lock);
	spin_lock_init(&s->lock);
	init_waitqueue_head(&s->wait);
	s->mn.ops = &ntf_ops;
	file->private_data = s;
	return nonseekable_open(inode, file);
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
	mutex_destroy(&s->attach_lock);
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
	switch (cmd) {
	case UMBRA_NTF_ATTACH:
		err = arg_get(&a, sizeof(a), user);
		err = err ?: attach(s, &a);
		if (!err && copy_to_user(user, &a, sizeof(a)))
			err = -EFAULT;
		break;
	case UMBRA_NTF_RANGES:
		err = arg_get(&ranges, sizeof(ranges), user);
		err = err ?: ranges_set(s, &ranges);
		break;
	default:
		err = -ENOTTY;
	}
	mutex_unlock(&s->attach_lock);
	return err;
}

static int umbra_mmap(struct file *file, struct vm_area_struct *vma)
{
	const unsigned long consumer = UMBRA_NTF_OFFSET_CONSUMER >> PAGE_SHIFT;
	struct subscription *s = file->private_data;

	if (!smp_load_acquire(&s->attached))
		return -ENOTCONN;
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	/* A child would be a second consumer of the same ring. */
	vm_flags_set(vma, VM_DONTCOPY);
	if (vma->vm_pgoff >= consumer)
		return remap_vmalloc_range(vma, s->consumer, vma->vm_pgoff - consumer);
	if (vma->vm_flags & VM_WRITE)
		return -EPERM;
	vm_flags_clear(vma, VM_MAYWRITE);
	return remap_vmalloc_range(vma, s->state, vma->vm_pgoff);
}

static __poll_t umbra_poll(struct file *file, poll_table *table)
{
	struct subscription *s = file->private_data;
	__poll_t mask = 0;

	poll_wait(file, &s->wait, table);
	if (!smp_load_acquire(&s->attached))
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
	.llseek = noop_llseek,
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
