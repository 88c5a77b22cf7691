/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Built in front of the module's source for one test: its allocation number fail_nth fails, once. Stock kernels have no
 * fault injection of their own.
 */
#ifndef TESTS_KMOD_FAIL_NTH_H
#define TESTS_KMOD_FAIL_NTH_H

#include <linux/atomic.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

static atomic_t fail_nth = ATOMIC_INIT(0);
module_param_named(fail_nth, fail_nth.counter, int, 0644);

static inline bool fails(void)
{
	return atomic_dec_if_positive(&fail_nth) == 0;
}

static inline void *kzalloc_or_fail(size_t size, gfp_t gfp)
{
	return fails() ? NULL : kzalloc(size, gfp);
}

static inline void *kvzalloc_or_fail(size_t size, gfp_t gfp)
{
	return fails() ? NULL : kvzalloc(size, gfp);
}

static inline void *vmalloc_or_fail(unsigned long size, gfp_t gfp)
{
	return fails() ? NULL : __vmalloc(size, gfp);
}

#undef kzalloc
#undef kvzalloc
#undef __vmalloc
#define kzalloc(size, gfp)   kzalloc_or_fail(size, gfp)
#define kvzalloc(size, gfp)  kvzalloc_or_fail(size, gfp)
#define __vmalloc(size, gfp) vmalloc_or_fail(size, gfp)

#endif
