/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Model 1: faults, invalidations, split and release over one MMU, two vCPUs that fault, two invalidators.
 *
 * Memory: host pages 0 and 1. Guest pages 0 and 1 map them and may be one 2M leaf; guest page 2 maps host page 0
 * again (an alias), by 4K only. Sets of host pages and sets of leaves are bit masks.
 *
 * A section under the MMU lock is one atomic step: what it works on is read by others under the same lock only. A
 * CPU that walks in the middle of one sees single entries change, and the post comes before the section ends.
 *
 * Shootdown is what shootdown.pml proves of it: who waits, waits for the vCPUs that are in at the post, until each
 * has left; going in forgets everything posted. So a ticket is the set of the vCPUs that still owe it.
 *
 * Staleness needs no version numbers: when the host changes a page, what was resolved before is marked.
 *
 * Names in square brackets are functions that a step stands for; run.sh looks each one up in the sources.
 *
 * CPU=0 leaves the CPUs' memory out: then start waits for nobody, and only the tables are claimed to be right.
 */
#ifndef CPU
#define CPU 1
#endif
#ifndef ROUNDS
#define ROUNDS 1	/* invalidations of the first invalidator */
#endif
#ifndef ROUNDS1
#define ROUNDS1 ROUNDS	/* of the second */
#endif
#ifndef FAULTS
#define FAULTS 1	/* faults of each vCPU */
#endif
#ifndef HISTORY
#define HISTORY 1	/* UMBRA_HISTORY */
#endif
#define ALIAS 4		/* the leaf of guest page 2; 1 and 2 are those of pages 0 and 1 */
#define HUGE 8		/* the 2M leaf over guest pages 0 and 1 */
#define BLOCK 3		/* host pages under it */

/* the host pages that a leaf shows */
#define FOOT(leaf) ((leaf) == HUGE -> BLOCK : ((leaf) == ALIAS -> 1 : (leaf)))
/* the leaves that show a host page of @r, which is not empty */
#define MEETING(r) (HUGE | (r) | (((r) & 1) -> ALIAS : 0))
/* a leaf that answers a fault on @page */
#define ANSWERS(page) (leaves & ((page) | ((page) == ALIAS -> 0 : HUGE)))

/* the claims; each names what went wrong */
bool stale_use, leaf_in_open_range, install_in_open_range, stale_install, count_negative, install_after_release,
	use_after_release, left_open, fault_unserved;

byte leaves;			/* what the tables hold */
byte opens, open_mask;		/* invalidations begun and not ended, and the union of their ranges */
byte seq, starts_nr;
byte history[HISTORY];
bool released;
byte foot[2];			/* host pages of what a fault has resolved, 0: nothing */
bool stale[2];			/* the host has changed one of them since */
bool served[2];
byte done_invalidating;
#if CPU
byte tlb[2];			/* what each CPU remembers */
byte in;			/* vCPUs that are in */
byte low;			/* of those: do not know the newest drop yet */
byte owes[4];			/* vCPUs that each waiter waits for */
#endif
#ifdef MUT_SPLIT_KEEPS_LEAF
byte kept;
#define KEPT kept
#else
#define KEPT 0
#endif

#ifdef MUT_SEQ_CUT
#define CUT(n) ((n) & 1)
#else
#define CUT(n) (n)
#endif

#define OPEN(pages) (opens && (open_mask & (pages)))

/* [shadow/core/invalidate.c:inv_retry]: may a leaf over @pages be installed? */
inline inv_retry(pages)
{
	ok = true;
	if
#ifndef MUT_EQUALITY_ONLY
	:: OPEN(pages) -> ok = false
	:: else ->
#else
	:: true ->
#endif
		if
#ifdef MUT_BLIND_TO_PASSED
		:: true
#else
		:: seq == s_seq && starts_nr == s_starts
		:: else ->
			if
#ifndef MUT_FORGET_SNAPSHOT
			:: s_open -> ok = false
#endif
#ifndef MUT_HISTORY_FORGETS
			:: !s_open && starts_nr - s_starts > HISTORY -> ok = false
#endif
			:: else ->
				nr = s_starts;
				do
				:: nr != starts_nr ->
					if
					:: history[nr % HISTORY] & (pages) -> ok = false
					:: else
					fi;
#ifdef MUT_FIRST_OF_HISTORY
					break
#else
					nr = CUT(nr + 1)
#endif
				:: else -> break
				od;
				nr = 0
			fi
#endif
		fi
	fi
}

/* [shadow/core/map.c:map_zap] and [shadow/core/map.c:zap_page] over [shadow/core/private.h:rmap_next] */
inline zap(r)
{
	gone = leaves & MEETING(r);
#ifdef MUT_ZAP_HALF
	gone = gone & ((r & 1) -> 15 : 7);
#endif
#ifdef MUT_KEEP_2M
	gone = gone & ~HUGE;
#endif
#ifdef MUT_IGNORE_ALIAS
	gone = gone & ~ALIAS;
#endif
	leaves = leaves & ~gone
}

/* [shadow/core/tables.c:flush_post]: what others dropped may still be on its way out, and is waited for too */
#if CPU
#define POST_DROP(i) low = in; owes[i] = in
#else
#define POST_DROP(i) skip
#endif
inline post(i, dropped)
{
#if CPU
	if
	:: dropped -> POST_DROP(i)
#ifndef MUT_OWN_FLUSH_ONLY
	:: else -> owes[i] = low
#else
	:: else
#endif
	fi
#ifdef MUT_SKIP_VCPU
	; owes[i] = owes[i] & 1
#endif
#else
	skip
#endif
}

/* [shadow/core/tables.c:flush_wait] [vmm/shootdown.c:shootdown_wait] */
#if CPU && !defined(MUT_NO_WAIT)
#define WAITED(i) (owes[i] == 0)
#else
#define WAITED(i) true
#endif

/* [shadow/core/invalidate.c:inv_begin] */
inline inv_begin(r)
{
#ifdef MUT_UNION_STAYS
	open_mask = (opens -> open_mask : r);
#else
	open_mask = open_mask | r;
#endif
	opens++;
	history[starts_nr % HISTORY] = r;
	starts_nr = CUT(starts_nr + 1)
}

/* [shadow/core/invalidate.c:inv_finish] */
inline inv_finish()
{
	count_negative = (opens == 0);
	assert(!count_negative);
	opens--;
	open_mask = (opens -> open_mask : 0);
	seq = CUT(seq + 1)
}

/* No CPU can use, and no table shows, a page of @r. */
inline nobody_sees(r)
{
	leaf_in_open_range = (leaves & MEETING(r)) != 0;
	assert(!leaf_in_open_range);
#if CPU
	stale_use = ((in & 1) && (tlb[0] & MEETING(r))) || ((in & 2) && (tlb[1] & MEETING(r)));
	assert(!stale_use)
#endif
}

#ifdef LATE
/*
 * Told of @r when it is over. What was resolved before this call is old, and may have been installed till now; nothing of it
 * may be seen, or come, afterwards. [shadow/core/chain.c:umbra_invalidate_range] [shadow/core/invalidate.c:over]
 */
inline over(i, r)
{
	atomic {
		zap(r);
		inv_begin(r);
		post(i, gone);
		gone = 0;
		stale[0] = stale[0] || (foot[0] & r);
		stale[1] = stale[1] || (foot[1] & r);
		/* [shadow/core/tables.c:flush_over] */
		if
#ifndef MUT_OVER_EARLY
		:: !WAITED(i) -> waits = true
#endif
		:: else -> inv_finish(); nobody_sees(r)
		fi
	}
	if
	:: waits ->
		WAITED(i);
#ifdef MUT_OVER_STAYS_OPEN
		atomic { nobody_sees(r); waits = false }
#else
		atomic { nobody_sees(r); inv_finish(); waits = false }
#endif
	:: else
	fi
}
#endif

proctype invalidator(byte i)
{
	byte n, r, gone;
	bool refused;
#ifdef LATE
	bool waits;
#endif

	do
#ifdef LATE
	:: i == 0 && n < ROUNDS ->
		atomic {
			if
			:: r = 1
			:: r = 2
			:: r = BLOCK
			fi;
			n++
		}
		over(i, r);
		r = 0
	:: i == 1 && n < ROUNDS1 ->
#else
	:: n < (i -> ROUNDS1 : ROUNDS) ->
#endif
		/* [shadow/core/chain.c:umbra_invalidate_start] [shadow/core/invalidate.c:start] */
		atomic {
			if
			:: r = 1
#ifdef PROGRESS
			:: i == 0 -> r = 2
#else
			:: r = 2
#endif
#ifdef WIDE
			:: r = BLOCK
#endif
			fi;
			n++;
			zap(r);
			inv_begin(r);
			post(i, gone);
			gone = 0
		}
		if
		:: WAITED(i) -> skip
#if CPU
		:: i == 1 && !WAITED(i) -> atomic { refused = true; owes[i] = 0 }	/* may not wait */
#else
		:: i == 1 -> refused = true
#endif
		fi;
		if
		:: refused
		:: else ->
			/* start has returned: the host changes */
			atomic {
				nobody_sees(r);
				stale[0] = stale[0] || (foot[0] & r);
				stale[1] = stale[1] || (foot[1] & r)
			}
		fi;
		/*
		 * [shadow/core/chain.c:umbra_invalidate_end] [shadow/core/invalidate.c:end];
		 * or what start does when it is refused: nothing stays open
		 */
		atomic {
			if
			:: refused
			:: else -> nobody_sees(r)
			fi;
#ifdef MUT_END_TWICE
			inv_finish();
#endif
			if
#ifdef MUT_DROP_END
			:: i == 0 && n == ROUNDS
#elif defined(MUT_REFUSED_STAYS_OPEN)
			:: refused
#endif
			:: else -> inv_finish()
			fi;
			refused = false;
			r = 0
		}
	:: else -> break
	od;
	atomic {
		done_invalidating++;
		left_open = (done_invalidating == 2 && opens);
#ifndef PROGRESS
		assert(!left_open)
#endif
	}
}

inline forget_fault()
{
	foot[v] = 0; stale[v] = false; cand = 0; s_seq = 0; s_starts = 0; s_open = false; ok = false; pages = 0
}

/* [vmm/vcpu.c:vcpu_thread_run] [shadow/core/fault.c:umbra_fault] */
proctype vcpu(byte v)
{
	byte n, page, cand, pages, nr;
	byte s_seq, s_starts;
	bool s_open, ok;

	do
	:: n < FAULTS ->
#if CPU
		/* [vmm/vcpu.c:enter] [vmm/shootdown.c:shootdown_enter]: forgets what was posted */
		atomic {
			in = in | (1 << v);
#ifndef MUT_ENTER_NO_FLUSH
			tlb[v] = 0
#endif
		}
		/* guest code: the CPU remembers as much as it can */
		tlb[v] = tlb[v] | leaves | KEPT;
		/* [vmm/shootdown.c:shootdown_exit] */
		atomic {
			in = in & ~(1 << v);
			low = low & in;
			owes[0] = owes[0] & in; owes[1] = owes[1] & in; owes[2] = owes[2] & in; owes[3] = owes[3] & in
#ifndef MUT_ENTER_NO_FLUSH
			; tlb[v] = 0
#endif
		}
#endif
again:
		/* [shadow/core/fault.c:answered_early] [shadow/core/invalidate.c:inv_snapshot] */
		atomic {
			if
			:: page == 0 ->
				if
#ifdef PROGRESS
				:: v == 0 -> page = 1
#else
				:: page = 1
				:: v == 0 -> page = 2
#endif
				:: v == 1 -> page = ALIAS
				fi
			:: else
			fi;
			if
			:: released || ANSWERS(page) -> goto answered
			:: else ->
				s_seq = seq;
				s_starts = starts_nr;
				s_open = OPEN(FOOT((page == ALIAS -> ALIAS : HUGE)));
				if
				:: OPEN(FOOT(page)) -> goto retry
				:: else
				fi
			fi
		}
		/* ops->resolve, no lock held: [vmm/resolve.c:op_resolve] */
		atomic {
			if
			:: cand = page
			:: page != ALIAS -> cand = HUGE
			fi;
			foot[v] = FOOT(cand);
			stale[v] = false
		}
		/* the check that decides, and [shadow/core/fault.c:install] */
		atomic {
#ifdef MUT_CHECK_4K
			pages = FOOT(page);
#else
			pages = FOOT(cand);
#endif
			ok = true;
			if
#ifndef MUT_INSTALL_AFTER_RELEASE
			:: released -> goto answered
#endif
			:: else
			fi;
#ifndef MUT_SKIP_CHECK
			inv_retry(pages);
#endif
			if
			:: !ok -> goto retry
			:: else
			fi;
			if
			:: ANSWERS(page)	/* another was faster */
			:: else ->
				if
				:: cand == HUGE && (leaves & 3) -> cand = page	/* a table with leaves stays */
				:: else
				fi;
				install_after_release = released;
				assert(!install_after_release);
				install_in_open_range = OPEN(FOOT(cand));
				assert(!install_in_open_range);
				stale_install = stale[v];
				assert(!stale_install);
				leaves = leaves | cand
			fi;
			goto answered
		}
retry:
		atomic {
			forget_fault();
#ifdef PROGRESS
			goto again
#endif
			/* else as good as another fault: the guest comes back, or does not */
		}
answered:
		atomic {
			forget_fault();
			page = 0;
			n++
		}
	:: else -> break
	od;
	served[v] = true
}

#ifdef SPLIT
/* [shadow/core/resize.c:umbra_split]: the entry of 2M becomes a table that says the same */
proctype split()
{
end_nothing:
	atomic {
		leaves & HUGE -> leaves = (leaves & ~HUGE) | 3;
		POST_DROP(2);
#ifdef MUT_SPLIT_KEEPS_LEAF
		kept = HUGE;
		owes[2] = 0
#endif
	}
	WAITED(2)
}
#endif

#ifdef RELEASE
/* [shadow/core/chain.c:umbra_release] [shadow/core/invalidate.c:inv_release] [shadow/core/map.c:map_zap_root] */
proctype release()
{
	byte gone;

	atomic {
		released = true;
		gone = leaves;
#ifdef MUT_RELEASE_KEEPS_ALIAS
		leaves = leaves & ALIAS;
#else
		leaves = 0;
#endif
		post(3, gone)
	}
	WAITED(3);
	atomic {
		use_after_release = (leaves != 0);
#if CPU
		use_after_release = use_after_release || ((in & 1) && tlb[0]) || ((in & 2) && tlb[1]);
#endif
		assert(!use_after_release)
	}
}
#endif

init {
	atomic {
		if
#ifdef PROGRESS
		:: leaves = ALIAS
#else
		:: leaves = 0
		:: leaves = HUGE | ALIAS
#endif
		fi;
		run invalidator(0);
		run invalidator(1);
		run vcpu(0);
		run vcpu(1);
#ifdef SPLIT
		run split();
#endif
#ifdef RELEASE
		run release();
#endif
		skip
	}
}

#ifdef PROGRESS
/* once invalidations stop (each invalidator makes ROUNDS of them), no fault is retried for ever */
ltl fault_progress { <> (served[0] && served[1]) }
#endif
