/* SPDX-License-Identifier: BSD-2-Clause */
/* The MMU's ops as the machine implements them: table pages, host pages, flushes. */
#include <vmm/resolve.h>
#include <vmm/shootdown.h>
#include <vmm/sources.h>
#include <vmm/vm_private.h>
#include <vmm/window.h>

static int op_table_alloc(void *ctx, uint64_t *index)
{
	return window_table_alloc(ctx, index);
}

static void op_table_free(void *ctx, uint64_t index)
{
	window_table_free(ctx, index);
}

static int op_resolve(void *ctx, const struct umbra_resolve_req *req, struct umbra_resolved *res)
{
	struct vm *vm = ctx;
	/* Before the leaf: a present leaf to memory that KVM does not know would be an MMIO exit.
	 */
	int ret = window_expose_ram(vm, gfn_to_gpa(req->gfn));

	if (ret)
		return ret;
	/*
	 * Before: what is announced needs no second try. After: what changed while the host was asked has ended an
	 * invalidation since the fault's snapshot, or has one open, so the answer is not installed.
	 */
	sources_drain(vm);
	ret = umbra_hostmap_resolve(vm->hostmap, vm->chain, req, res);
	sources_drain(vm);
	return ret;
}

static void op_flush_queue(void *ctx, const struct umbra_flush_entry *e)
{
	shootdown_queue(ctx, e);
}

static void op_flush_queue_run(void *ctx, const struct umbra_flush_entry *first, uint32_t n)
{
	shootdown_queue_run(ctx, first, n);
}

static uint64_t op_flush_post(void *ctx)
{
	return shootdown_post(ctx);
}

static int op_flush_wait(void *ctx, uint64_t ticket, bool may_wait)
{
	return shootdown_wait(ctx, ticket, may_wait);
}

static bool op_flush_done(void *ctx, uint64_t ticket)
{
	return shootdown_done(ctx, ticket);
}

static void op_pin_lost(void *ctx, gfn_t gfn, const struct umbra_range *r)
{
	vm_log(ctx, VM_LOG_WARN, "the host took the pinned page at gpa %#llx (%s, by %s)",
	       (unsigned long long)gfn_to_gpa(gfn).v, umbra_cause_name(r->cause),
	       umbra_source_name(r->source));
}

const struct umbra_mmu_ops vm_mmu_ops = {
	.table_alloc = op_table_alloc,
	.table_free = op_table_free,
	.resolve = op_resolve,
	.flush_queue = op_flush_queue,
	.flush_queue_run = op_flush_queue_run,
	.flush_post = op_flush_post,
	.flush_wait = op_flush_wait,
	.flush_done = op_flush_done,
	.pin_lost = op_pin_lost,
};
