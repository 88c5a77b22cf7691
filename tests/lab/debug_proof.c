// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does wrong on purpose, in a kernel that watches itself, to prove that it still does: write what is wanted to
 * /sys/module/debug_proof/parameters/wrong. Each must be reported; a kernel that says nothing was not watching.
 */
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/vmalloc.h>

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DEFINE_SPINLOCK(atomic);
static unsigned long counter;
/* Where the compiler cannot see what becomes of it. */
static void *volatile kept;
static volatile char sink;

static void in_the_wrong_order(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);
	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static void used_after_free(void)
{
	kept = kmalloc(64, GFP_KERNEL);
	if (!kept)
		return;
	kfree(kept);
	sink = *(char *)kept;
	kept = NULL;
}

static void past_the_end_of_vmalloc(void)
{
	kept = vmalloc(100);
	if (!kept)
		return;
	sink = ((char *)kept)[100];
	vfree(kept);
	kept = NULL;
}

static void lost(void)
{
	unsigned int i;

	/* Several: an old pointer on a stack may keep one. */
	for (i = 0; i < 16; i++)
		kept = kmalloc(200, GFP_KERNEL);
	kept = NULL;
}

static void asleep_in_a_spinlock(void)
{
	spin_lock(&atomic);
	might_sleep();
	spin_unlock(&atomic);
}

static int race(void *unused)
{
	unsigned int i;

	for (i = 0; i < 2000000 && !kthread_should_stop(); i++) {
		counter++;
		if (i % 1024 == 0)
			cond_resched();
	}
	while (!kthread_should_stop())
		msleep(1);
	return 0;
}

static void raced(void)
{
	struct task_struct *one = kthread_run(race, NULL, "debug_proof/1");
	struct task_struct *two = kthread_run(race, NULL, "debug_proof/2");

	msleep(3000);
	if (!IS_ERR(one))
		kthread_stop(one);
	if (!IS_ERR(two))
		kthread_stop(two);
}

static const struct {
	const char *name;
	void (*run)(void);
} wrongs[] = {
	{ "order", in_the_wrong_order },        { "free", used_after_free },
	{ "vmalloc", past_the_end_of_vmalloc }, { "leak", lost },
	{ "sleep", asleep_in_a_spinlock },      { "race", raced },
};

static int set_wrong(const char *text, const struct kernel_param *param)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(wrongs); i++) {
		if (!sysfs_streq(text, wrongs[i].name))
			continue;
		wrongs[i].run();
		return 0;
	}
	return -EINVAL;
}

static const struct kernel_param_ops wrong_ops = {
	.set = set_wrong,
};
module_param_cb(wrong, &wrong_ops, NULL, 0200);

MODULE_DESCRIPTION("Proves that a kernel which watches itself still does");
MODULE_LICENSE("GPL");
