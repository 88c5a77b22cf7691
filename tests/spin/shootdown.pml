/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Model 2: the shootdown of vmm/shootdown.c, load by load and store by store: ring of records, tickets, kicks,
 * vCPUs that are out, the flush in the monitor, the recycle when the ring has overflowed.
 *
 * What is done under a lock with data of that lock only is one step; every access to an atomic is a step of its
 * own. Two vCPUs. Two invalidators, each with an entry of its own: one is a thread of its own, the other is the thread
 * of vCPU 0, between two runs of the guest. Atomics of the code are seq_cst or under the lock, so steps interleave
 * and nothing is reordered.
 *
 * A copy of an entry, in KVM's shadow of our tables or in a TLB: NONE, NEW (as memory says), OLD (memory has
 * changed since), DEAD (and start has returned). Using a DEAD one is what must not happen.
 */
#ifndef ROUNDS
#define ROUNDS 1	/* invalidations by the thread */
#endif
#ifndef OWN
#define OWN 1		/* invalidations by vCPU 0 */
#endif
#ifndef RING
#define RING 4
#endif
#ifndef RECYCLE_AT
#define RECYCLE_AT 4
#endif
#ifndef LIST_MAX
#define LIST_MAX 4	/* records that one command takes: MONITOR_LIST_MAX */
#endif
#ifndef STAYS
#define STAYS 255	/* runs of vCPU 0; 255: without end */
#endif
#ifndef STAYS1
#define STAYS1 STAYS	/* of vCPU 1 */
#endif
#define LIMIT(v) ((v) -> STAYS1 : STAYS)

#define NONE 0
#define NEW 1
#define OLD 2
#define DEAD 3

bool stale_use, lost_record;	/* the claims */

bool present[2];		/* the entry in memory */
byte kvm[2];			/* KVM's copy of each entry */
byte tlb[4];			/* [vCPU * 2 + entry] */

byte tail, head, touched, lost;
byte ring[RING];		/* 1 + entry, as a mask */
bool hold, ever_ran;
byte state[2];			/* 0: OUT. else IN, 1 + covers */
bool kicked[2], immediate_exit[2], running[2], signalled[2];
byte ack[2];			/* the ack word of each vCPU's command page */
byte waiters;
bool asleep[3];			/* in pthread_cond_wait: thread, vCPU 0, vCPU 1 */
bool mmu_lock, sd_lock;
bool waiting[2];		/* the invalidator is in flush_wait */
byte flushed[2], commanded[2], acked[2];
bool command_leaves[2];

#define RUNS_WITHOUT(v, ticket) (state[v] && state[v] - 1 < (ticket))
#define broadcast() asleep[0] = false; asleep[1] = false; asleep[2] = false

/* [shadow/core/map.c:spte_change] [vmm/shootdown.c:shootdown_queue] [vmm/shootdown.c:shootdown_post], MMU lock held */
inline zap_and_post(e, ticket)
{
	atomic {
		!mmu_lock -> mmu_lock = true;
#ifdef MUT_HEAD_BEFORE_RECORD
		head = tail + 1
	};
	atomic {
#endif
		present[e] = false;
		kvm[e] = (kvm[e] == NEW -> OLD : kvm[e]);
		tlb[e] = (tlb[e] == NEW -> OLD : tlb[e]);
		tlb[2 + e] = (tlb[2 + e] == NEW -> OLD : tlb[2 + e]);
		tail++;
		ticket = tail;
		if
		:: ticket - touched > RING ->
#ifndef MUT_OVERFLOW_SILENT
			lost = ticket
#else
			skip
#endif
		:: else -> ring[ticket % RING] = 1 + e
		fi
	};
	atomic { head = tail; mmu_lock = false; waiting[e] = true }
}

/* [vmm/shootdown.c:kick_laggards] [vmm/shootdown.c:kick] [vmm/vcpu.c:vcpu_kick] */
inline kick_laggards(ticket, any)
{
	do
#ifdef MUT_SKIP_VCPU
	:: k < 1 ->
#else
	:: k < 2 ->
#endif
		if
		:: atomic { RUNS_WITHOUT(k, ticket) -> any = true }
			if
			:: atomic { kicked[k] -> k++ }
			:: atomic { !kicked[k] -> kicked[k] = true }
#ifndef MUT_NO_IMMEDIATE_EXIT
				immediate_exit[k] = true;
#endif
				/* tgkill: outside KVM_RUN its handler runs, which does nothing */
				atomic { signalled[k] = running[k]; k++ }
			fi
		:: atomic { !RUNS_WITHOUT(k, ticket) -> k++ }
		fi
	:: else -> break
	od;
	k = 0
}

/* [vmm/shootdown.c:wait_for_laggards], lock held */
inline wait_for_laggards(who, ticket)
{
#ifndef MUT_NO_WAITERS
	waiters++;
#endif
	do
	:: true ->
		kick_laggards(ticket, any);
		if
		:: atomic { any -> any = false; asleep[who] = true; sd_lock = false }
			atomic { !asleep[who] && !sd_lock -> sd_lock = true }
		:: !any -> break
		fi
	od;
#ifndef MUT_NO_WAITERS
	waiters--;
#endif
	skip
}

/* [vmm/shootdown.c:shootdown_wait] */
inline shootdown_wait(who, ticket)
{
	if
#ifdef MUT_SKIP_VCPU
	:: RUNS_WITHOUT(0, ticket) ->
#else
	:: RUNS_WITHOUT(0, ticket) || RUNS_WITHOUT(1, ticket) ->
#endif
		atomic { !sd_lock -> sd_lock = true };
		wait_for_laggards(who, ticket);
		sd_lock = false
	:: else
	fi
}

/* One invalidation of entry @e by thread @who. */
inline invalidate(who, e)
{
	zap_and_post(e, ticket);
	shootdown_wait(who, ticket);
	/* start has returned */
	atomic {
		waiting[e] = false;
		ticket = 0;
		kvm[e] = (kvm[e] == OLD -> DEAD : kvm[e]);
		tlb[e] = (tlb[e] == OLD -> DEAD : tlb[e]);
		tlb[2 + e] = (tlb[2 + e] == OLD -> DEAD : tlb[2 + e])
	};
	/* end, and a fault installs again: a plain store, [shadow/core/fault.c:install] */
	atomic { !mmu_lock -> present[e] = true }
}

active proctype source()
{
	byte n, ticket, k;
	bool any;

	do
	:: n < ROUNDS -> invalidate(0, 0); n++
	:: else -> break
	od
}

/* [vmm/shootdown.c:touch_up_to_locked] */
#define TOUCH_UP_TO(t) touched = ((t) > touched -> (t) : touched)

/* [vmm/shootdown.c:leave] */
inline leave(v)
{
	if
	:: state[v] == 0
	:: else ->
		state[v] = 0;
		if
		:: waiters == 0
		:: else -> atomic { !sd_lock -> broadcast() }
		fi
	fi
}

/* [vmm/shootdown.c:recycle] [vmm/window.c:window_forget_shadows] */
inline recycle(v)
{
	if
	:: atomic { !sd_lock && hold -> skip }
		atomic { !sd_lock && !hold -> skip }	/* somebody else does it: wait for the end of that */
	:: atomic { !sd_lock && !hold -> sd_lock = true };
		hold = true;
		wait_for_laggards(1 + v, 254);
		h = head;
		atomic { kvm[0] = NONE; kvm[1] = NONE; TOUCH_UP_TO(h); h = 0 };
		atomic { hold = false; broadcast(); sd_lock = false }
	fi
}

/* A vCPU uses entry @e, if it can find it: TLB, else KVM's copy, else memory. */
inline use(v, e)
{
	if
	:: tlb[v * 2 + e] == NONE ->
		if
		:: kvm[e] == NONE && present[e] -> kvm[e] = NEW
		:: else
		fi;
		tlb[v * 2 + e] = kvm[e]
	:: else
	fi;
	stale_use = (tlb[v * 2 + e] == DEAD);
	assert(!stale_use)
}

/* [vmm/vcpu.c:vcpu_thread_run] */
proctype vcpu(byte v)
{
	byte own, ticket, k, h, t, n, covers, list, stays;
	bool any, needed, by_page, leaves, flushing, go;

	do
	:: LIMIT(v) == 255 || stays < LIMIT(v) ->
		stays = (LIMIT(v) == 255 -> 0 : stays + 1);
		/* between two runs its thread may invalidate, as in a device or an own call */
		if
		:: v == 0 && own < OWN -> invalidate(1, 1); own++
		:: true
		fi;
		go = false;
		/* [vmm/vcpu.c:enter] */
		do
		:: true ->
			immediate_exit[v] = false;
			/* [vmm/shootdown.c:shootdown_collect] */
			do
			:: true ->
				h = head;
#ifdef MUT_TOUCHED_BY_ANOTHER
				needed = (flushed[v] != h && touched != h);
#else
				needed = (flushed[v] != h);
#endif
				if
				:: !needed -> break
				:: else
				fi;
				/* lock held */
				atomic {
					!sd_lock ->
					if
					:: !ever_ran -> TOUCH_UP_TO(h)
					:: else
					fi;
					t = touched;
					h = (t > h -> t : h);
					n = h - t;
					if
					:: n == 0 || (lost <= t && n <= RECYCLE_AT) ->
						/* [vmm/shootdown.c:fill_locked] [vmm/shootdown.c:fill_pages_locked] */
						leaves = (n > LIST_MAX);
						n = (leaves -> LIST_MAX : n);
#ifdef MUT_BY_PAGE_ALWAYS
						by_page = true;
#else
						by_page = (flushed[v] == t);
#endif
						list = 0;
						do
						:: k < n ->
							k++;
							lost_record = (tail - (t + k) >= RING || ring[(t + k) % RING] == 0);
							assert(!lost_record);
							list = list | ring[(t + k) % RING]
						:: else -> break
						od;
						k = 0;
						h = t + n;
						commanded[v] = h;
						command_leaves[v] = leaves;
						flushing = true;
						t = 0; n = 0;
						break
					:: else -> t = 0; n = 0; h = 0
					fi
				};
				recycle(v)
			od;
			atomic { covers = h; h = 0; t = 0; n = 0 };
			if
			:: needed && leaves -> break	/* stays OUT: no guest code comes of it */
			:: else
			fi;
			/* [vmm/shootdown.c:shootdown_enter] */
			if
			:: !ever_ran -> ever_ran = true
			:: else
			fi;
#ifndef MUT_KICKED_STAYS
			kicked[v] = false;
#endif
			state[v] = covers + 1;
			if
#ifndef MUT_NO_SECOND_LOOK
			:: head <= covers ->
#else
			:: true ->
#endif
				if
				:: !hold -> go = true; break
				:: else
				fi
			:: else
			fi;
			leave(v);
			atomic { !sd_lock && !hold -> covers = 0 }
		od;
		atomic { covers = 0; go = false; needed = false };
		/* KVM_RUN: looks at immediate_exit, then runs until a signal or an exit of its own */
		running[v] = true;
		if
		:: immediate_exit[v]
		:: else ->
			/* the monitor, [vmm/monitor.c:monitor_aim_flush] [vmm/monitor_code.S:monitor_code_entries] */
			if
			:: flushing ->
#ifdef MUT_ACK_BEFORE_FLUSH
				ack[v] = commanded[v];
#endif
				/* touching: KVM looks at the entry again; a signal may come before and after */
				if
				:: atomic { !signalled[v] ->
					kvm[0] = (list & 1 -> NONE : kvm[0]);
					kvm[1] = (list & 2 -> NONE : kvm[1])
				   }
					if
					:: leaves && !signalled[v]
					:: atomic { !leaves && !signalled[v] ->
						tlb[v * 2] = (by_page && !(list & 1) -> tlb[v * 2] : NONE);
						tlb[v * 2 + 1] = (by_page && !(list & 2) -> tlb[v * 2 + 1] : NONE)
					   }
					:: signalled[v] -> goto left
					fi;
					atomic { ack[v] = commanded[v]; flushing = false }
				:: signalled[v] -> goto left
				fi
			:: else
			fi;
			if
#ifdef MUT_OUT_RUNS_GUEST
			:: !flushing ->
#else
			:: !flushing && !leaves ->
#endif
				/* guest code */
				do
				:: atomic { !signalled[v] -> use(v, 0); use(v, 1) }
				:: signalled[v] -> break
				:: true -> break	/* an exit of the guest's own */
				od
			:: else
			fi
		fi;
left:
		atomic { running[v] = false; signalled[v] = false; list = 0; flushing = false; leaves = false; by_page = false };
		/* [vmm/shootdown.c:shootdown_exit] [vmm/monitor.c:monitor_ack] */
		leave(v);
		if
		:: acked[v] == commanded[v] || ack[v] != commanded[v]
		:: else ->
			atomic {
				acked[v] = commanded[v];
				if
				:: !command_leaves[v] -> flushed[v] = commanded[v]
				:: else
				fi
			}
			atomic { !sd_lock -> TOUCH_UP_TO(acked[v]) }
		fi
		/* what is left of a command that was cut short is collected anew: it was not acknowledged */
	:: LIMIT(v) != 255 && stays == LIMIT(v) -> break
	od
}

init {
	atomic {
		present[0] = true; present[1] = true;
		run vcpu(0);
		run vcpu(1)
	}
}

#ifdef PROGRESS
/* a start that waits returns, though the vCPUs run on */
#if OWN
ltl shootdown_progress { [] (waiting[1] -> <> !waiting[1]) }
#else
ltl shootdown_progress { [] (waiting[0] -> <> !waiting[0]) }
#endif
#endif
