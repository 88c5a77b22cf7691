/* SPDX-License-Identifier: BSD-2-Clause */
/* Where invalidations come from that vmm did not make itself: userfaultfd and the kernel module, as --source chose. */
#ifndef VMM_SOURCES_H
#define VMM_SOURCES_H

#include <umbra/module.h>
#include <vmm/vm.h>

/* sources_create - opens the userfaultfd. Returns: 0, or the exit code with @err filled. Pairs with: sources_destroy(). */
int sources_create(struct vm *vm, struct vm_error *err);
void sources_destroy(struct vm *vm);

/* sources_watch - from now on the module sees the guest's memory. After memory_publish(), before any vCPU. */
int sources_watch(struct vm *vm, struct vm_error *err);

/* The bodies of the two reading threads; both return when sources_stop() was called. */
void sources_read_uffd(struct vm *vm);
void sources_read_module(struct vm *vm);
void sources_stop(struct vm *vm);

/*
 * sources_drain - what the kernel has announced so far has reached the tables. What userfaultfd announced is not
 * waited for: its reader does that. Context: any thread, mmu unlocked.
 */
void sources_drain(struct vm *vm);

/*
 * sources_who - of an invalidation with these @flags by @source and @who: who did it, whether that could have waited, and
 * whether anybody but the kernel told of it. In @buf, which is returned.
 */
#define SOURCES_WHO_MAX 120
const char *sources_who(enum umbra_source source, int32_t who, uint32_t flags,
			char buf[SOURCES_WHO_MAX]);
/* Who does what the module tells of, as counted: "thread", "direct reclaim" and so on. */
enum sources_doer {
	SOURCES_THREAD,  /* of this process */
	SOURCES_PROCESS, /* another one */
	SOURCES_RECLAIM, /* for somebody who wanted memory */
	SOURCES_KTHREAD,
	SOURCES_KTHREAD_RECLAIM, /* kswapd */
	SOURCES_DOER_NR
};
enum sources_doer sources_doer(int32_t who, uint32_t flags);
extern const char *const sources_doers[SOURCES_DOER_NR];

/*
 * sources_audit - as umbra_audit(). With the module no page moves unseen: what is wrong while nothing was begun is wrong,
 * and what was begun meanwhile is drained first. Where the kernel never held still long enough to say, @inconclusive is set,
 * 0 returned, and @report is empty: nothing was found, and nothing was shown either.
 */
int64_t sources_audit(struct vm *vm, struct umbra_audit_report *report, bool *inconclusive,
		      FILE *out);

#endif
