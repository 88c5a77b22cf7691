/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Model 4: a source in another context that never waits: counters and a ring of records in a shared page, as a
 * kernel module has them. Two callers announce start and end of a change of one page; a thread drains the ring; a
 * fault drains and installs; a lookup takes what is installed without a lock.
 *
 * What is promised: no lookup that begins after a start has returned uses what was there before (T1), and once all
 * is drained nothing stale is left (T0), overflow or not.
 *
 * Names in square brackets are functions that a step stands for; run.sh looks each one up in the sources.
 *
 * Otherwise than in the code, or left out:
 * - One lock stands for the drain's and the MMU's. A fault drains before it takes the MMU lock; what another drain
 *   applies in between makes its check refuse more.
 * - A start with its end behind it is told as one call [shadow/events/module.c:over_already]
 *   [shadow/core/chain.c:umbra_invalidate_range]. Here it is two records, applied one by one under one lock, so nothing
 *   comes between them either; the call itself, with the vCPUs that are waited for, is fault.pml with LATE.
 * - What is open after a loss is the counters' difference. The code holds one bracket over everything for as long as that
 *   is not 0 [shadow/events/module.c:end_recovery].
 * - Death is a flag, which a lookup reads; so is a loss. The code counts a release as begun, and the lost starts are
 *   counted, too, so its gate compares one pair of counters (umbra_gate_current()): unit/module_gate.
 * - Several pages, what is in a record, who is woken, ranges that change, the accessed bits.
 */
#ifndef RING
#define RING 1
#endif
#ifndef ROUNDS
#define ROUNDS 1	/* changes by the first caller */
#endif
#ifndef ROUNDS1
#define ROUNDS1 ROUNDS	/* by the second */
#endif

bool stale_lookup, stale_after_drain, counted_backwards, install_after_death, lost_unseen;	/* the claims */

/* the shared page: written by the source only, under its spinlock; @version is odd while it writes */
byte version, begun, ended, head, lost;
bool dead;
byte ring[RING];		/* 1: start, 2: end */
bool spin;

/* the consumer, under the MMU lock */
bool mmu_lock;
byte tail, lost_seen, applied_begun, applied_ended;
byte seq;
bool released;

/* the page: a leaf of it, and whether a start has returned since what it shows was resolved */
bool leaf, leaf_old;
bool candidate, candidate_old;
byte producers_done;
bool served;

/* [include/abi/notifier_ring.h:umbra_ring_unread] */
#define ROOM (head - tail < RING)

/*
 * The source writes down a start or an end, and returns to the kernel. [kmod/umbra.c:forward] takes the lock;
 * [kmod/umbra.c:publish] counts, between two steps of the version; [include/abi/notifier_ring.h:umbra_ring_push]
 */
inline callout(kind)
{
	atomic { !spin -> spin = true; version++ };
#ifdef MUT_HEAD_BEFORE_COUNTER
	if
	:: ROOM -> atomic { ring[head % RING] = kind; head++ }
	:: else -> lost++
	fi;
	atomic { begun = begun + (kind == 1); ended = ended + (kind == 2) };
#else
#ifdef MUT_COUNT_ONLY_RECORDED
	if
	:: !ROOM
	:: ROOM && kind == 1 -> begun++
	:: ROOM && kind == 2 -> ended++
	fi;
#else
	atomic { begun = begun + (kind == 1); ended = ended + (kind == 2) };
#endif
	if
	:: atomic { ROOM -> ring[head % RING] = kind; head++ }
#ifdef MUT_OVERFLOW_NOT_SAID
	:: !ROOM
#else
	:: atomic { !ROOM -> lost++ }
#endif
	fi;
#endif
	atomic { version++; spin = false }
}

proctype caller(byte i)
{
	byte n;

	do
	:: n < (i -> ROUNDS1 : ROUNDS) ->
		/* [kmod/umbra.c:ntf_start] */
		callout(1);
		/* start has returned */
		atomic { leaf_old = leaf; candidate_old = candidate };
		/* the host changes; what was resolved meanwhile is old too */
		atomic { leaf_old = leaf; candidate_old = candidate };
		/* [kmod/umbra.c:ntf_end] */
		callout(2);
		n++
	:: else -> break
	od;
	producers_done++
}

#ifdef RELEASE
/* [kmod/umbra.c:ntf_release] */
active proctype release()
{
	atomic { !spin -> dead = true };
	atomic { leaf_old = leaf; candidate_old = candidate }
}
#endif

/* Lock held. Everything the source has said is applied. [shadow/events/module.c:umbra_module_drain] */
inline pump()
{
	do
	:: true ->
		if
		:: dead && !released ->
			/* [shadow/core/chain.c:umbra_release] [shadow/core/invalidate.c:inv_release] */
			released = true; leaf = false; leaf_old = false
		:: else
		fi;
#ifndef MUT_IGNORE_LOST
		l = lost;
#endif
		if
		:: l != lost_seen ->
			/*
			 * All that it covers goes, and the books are taken over as they are, in one consistent
			 * reading. [shadow/events/module.c:recover] [include/abi/notifier_ring.h:umbra_ntf_read]
			 */
			do
			:: true ->
				at = version;
				b = begun; e = ended; h = head; l = lost;
				if
#ifndef MUT_RESYNC_TORN
				:: at % 2 || at != version
				:: else -> break
#else
				:: true -> break
#endif
				fi
			od;
			atomic {
				leaf = false; leaf_old = false;
				applied_begun = b; applied_ended = e; tail = h; lost_seen = l;
#ifndef MUT_RESYNC_KEEPS_SEQ
				seq++;
#endif
				at = 0; b = 0; e = 0; h = 0; l = 0
			}
		:: atomic { l == lost_seen && tail != head && ring[tail % RING] == 2 ->
			/* [include/abi/notifier_ring.h:umbra_ring_pop] [shadow/events/module.c:apply] [shadow/core/invalidate.c:inv_finish] */
			counted_backwards = (applied_begun == applied_ended);
			assert(!counted_backwards);
#ifdef MUT_END_AFTER_LOSS_MISSED
			applied_ended = applied_ended + (lost_seen == 0);
#else
			applied_ended++;
#endif
			seq++;
			tail++;
			l = 0 }
		:: atomic { l == lost_seen && tail != head && ring[tail % RING] == 1 ->
			/* [shadow/events/module.c:count_start] [shadow/core/map.c:map_zap] [shadow/core/invalidate.c:inv_begin] */
#ifndef MUT_APPLY_BEFORE_ZAP
			leaf = false; leaf_old = false;
#endif
			l = 0 };
			/* [shadow/events/module.c:set_applied]. The counter follows the zap: a lookup that finds it equal finds the leaf gone */
			atomic {
				applied_begun++;
				counted_backwards = (applied_begun > begun);
				assert(!counted_backwards);
				tail++
			};
#ifdef MUT_APPLY_BEFORE_ZAP
			atomic { leaf = false; leaf_old = false };
#endif
		:: l == lost_seen && tail == head -> break
		fi
	od;
	l = 0
}

#ifdef RELEASE
#define RELEASED released
#else
#define RELEASED true
#endif

/* [shadow/events/module.c:umbra_module_run] */
active proctype drainer()
{
	byte l, at, b, e, h;

	do
	:: tail != head || lost != lost_seen || (dead && !released) ->
		atomic { !mmu_lock -> mmu_lock = true };
		pump();
		mmu_lock = false
	:: atomic { producers_done == 2 && tail == head && lost == lost_seen && !mmu_lock && RELEASED ->
		stale_after_drain = leaf && leaf_old;
		assert(!stale_after_drain);
		lost_unseen = (applied_begun != begun || applied_ended != ended);
		assert(!lost_unseen);
		break
	   }
	od
}

#define OPEN (applied_begun != applied_ended)

/* [shadow/core/fault.c:umbra_fault]; [vmm/resolve.c:op_resolve] pumps before the check that decides */
active proctype fault()
{
	byte l, at, b, e, h, s;

again:
	/* [shadow/core/invalidate.c:inv_snapshot] */
	atomic { !mmu_lock -> s = seq };
	atomic { candidate = true; candidate_old = false };
	atomic { !mmu_lock -> mmu_lock = true };
	pump();
	/* [shadow/core/invalidate.c:inv_retry] [shadow/core/fault.c:install] */
	if
	:: atomic { released ->
		candidate = false; candidate_old = false; s = 0;
		mmu_lock = false }
	:: atomic { !released && (OPEN || seq != s) ->
		candidate = false; candidate_old = false; s = 0;
		mmu_lock = false }
		goto again
	:: atomic {
#ifndef MUT_INSTALL_AFTER_DEATH
		!released &&
#endif
		!OPEN && seq == s ->
		install_after_death = released;
		assert(!install_after_death);
		leaf = true; leaf_old = candidate_old;
		candidate = false; candidate_old = false; s = 0;
		mmu_lock = false }
	fi;
	served = true
}

/*
 * A lookup without the lock [shadow/core/walk.c:umbra_lookup]: are the books up to date? Then what is installed may be
 * used. In this order: else the entry may be read, then dropped, then counted, and only then be found up to date.
 */
#ifndef PROGRESS
active proctype lookup()
{
	bool was_old, got, got_old, hit;

	was_old = leaf && leaf_old;
#ifdef MUT_LOOKUP_CHECKS_LAST
	atomic { got = leaf; got_old = leaf && leaf_old };
	hit = (applied_begun == begun && lost == lost_seen && !dead);
#else
	hit = (applied_begun == begun && lost == lost_seen && !dead);
	atomic { got = leaf; got_old = leaf && leaf_old };
#endif
	atomic {
		stale_lookup = hit && was_old && got && got_old;
		assert(!stale_lookup);
		was_old = false; got = false; got_old = false; hit = false
	}
}

#endif

init {
	atomic {
		run caller(0);
		run caller(1)
	}
}

#ifdef PROGRESS
/* once the callouts stop, the fault is served */
ltl ring_progress { <> served }
#endif
