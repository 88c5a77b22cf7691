/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Model 3: the life of a table page: LIVE, UNLINKED, CLEARED, free, and used again at another place.
 *
 * Two places in the tables (0 and 1: the entries that name a table), two pages to serve them, one 4K entry in
 * each table. Two vCPUs that remember which page a place names, two threads that map and cut off, one that walks
 * without the lock. Sections under the MMU lock are atomic, and a ticket is the set of vCPUs that owe it, as in
 * fault.pml; here the set is of who was in at the post, for each table page.
 */
#ifndef ROUNDS
#define ROUNDS 2
#endif
#define FREE 0
#define LIVE 1
#define UNLINKED 2
#define CLEARED 3
#define NOBODY 3

bool walks_recycled_table, bit_lost, lookup_wrong, not_zero, retired_twice;	/* the claims */

byte place[2];			/* 0: absent. else 1 + the page */
byte life[2];			/* of each page */
byte owner[2];			/* the place that a page serves */
bool entry[2];			/* the one entry in it */
byte owes[2];			/* vCPUs that owe the flush that the page waits for */
bool fresh[2];			/* queued, not posted */
byte psc[4];			/* [vCPU * 2 + place]: the page that the CPU remembers, 0: none */
byte in;
byte free_gen;

/* [shadow/core/tables.c:flush_post], in the section that queued */
inline post()
{
	owes[0] = (fresh[0] -> in : owes[0]); fresh[0] = false;
	owes[1] = (fresh[1] -> in : owes[1]); fresh[1] = false
}

/* [shadow/core/tables.c:table_retire] */
inline retire(p, state)
{
	retired_twice = (life[p] != LIVE);
	assert(!retired_twice);
	life[p] = state;
	fresh[p] = true
}

/* [shadow/core/tables.c:table_harvest]: nobody walks it, so nobody sets a bit in it after it was read */
inline harvest(p)
{
	bit_lost = ((in & 1) && (psc[0] == p + 1 || psc[1] == p + 1)) ||
		((in & 2) && (psc[2] == p + 1 || psc[3] == p + 1));
	assert(!bit_lost);
	entry[p] = false;
	life[p] = CLEARED;
	fresh[p] = true		/* [shadow/core/tables.c:table_queue_clear] */
}

/* [shadow/core/tables.c:table_give_back] */
inline give_back(p)
{
#ifndef MUT_NO_FREE_GEN
	free_gen++;
#endif
	life[p] = FREE
}

/* [shadow/core/tables.c:flush_over] */
#ifdef MUT_RECYCLE_EARLY
#define OVER(p) true
#else
#define OVER(p) (!fresh[p] && owes[p] == 0)
#endif
#ifdef MUT_CLEARED_IS_FREE
#define OVER_CLEARED(p) true
#else
#define OVER_CLEARED(p) OVER(p)
#endif

/* [shadow/core/tables.c:tables_settle]: what is unlinked first, one post, then what is cleared */
inline settle()
{
	if
	:: life[0] == UNLINKED && OVER(0) -> harvest(0)
	:: else
	fi;
	if
	:: life[1] == UNLINKED && OVER(1) -> harvest(1)
	:: else
	fi;
	post();
	if
	:: life[0] == CLEARED && OVER_CLEARED(0) -> give_back(0)
	:: else
	fi;
	if
	:: life[1] == CLEARED && OVER_CLEARED(1) -> give_back(1)
	:: else
	fi
}

/* [shadow/core/tables.c:table_new] [shadow/core/map.c:map_tables] [shadow/core/fault.c:install] */
inline take(p, at)
{
	walks_recycled_table = ((in & 1) && (psc[0] == p + 1 || psc[1] == p + 1)) ||
		((in & 2) && (psc[2] == p + 1 || psc[3] == p + 1));
	assert(!walks_recycled_table);
	not_zero = entry[p];
	assert(!not_zero);
	life[p] = LIVE;
	owner[p] = at;
	entry[p] = true;
	place[at] = p + 1
}

proctype changer(byte at)
{
	byte n, p;

	do
	:: n < ROUNDS ->
		atomic {
			if
			:: place[at] == 0 && life[0] == FREE -> take(0, at)
			:: place[at] == 0 && life[1] == FREE -> take(1, at)
			:: place[at] == 0 && life[0] != FREE && life[1] != FREE	/* no page: settle, below */
			:: place[at] ->
				p = place[at] - 1;
				place[at] = 0;
				if
				/* [shadow/core/map.c:unlink_leaves]: entries still in it */
				:: retire(p, UNLINKED)
				/* the last leaf went before: [shadow/core/map.c:unlink_empty] */
				:: entry[p] = false; retire(p, CLEARED)
				fi;
				p = 0
			fi;
			n++;
			post()
		}
		/* the same thread or another, then or later: [shadow/core/tables.c:umbra_reclaim] */
		atomic { settle() }
	:: else -> break
	od
}

/* [vmm/vcpu.c:vcpu_thread_run] */
proctype vcpu(byte v)
{
	do
	:: atomic {
		/* [vmm/shootdown.c:shootdown_enter]: what was posted is forgotten */
		in = in | (1 << v);
#ifndef MUT_ENTER_NO_FLUSH
		psc[v * 2] = 0; psc[v * 2 + 1] = 0
#endif
	   }
		do
		/* the CPU walks and remembers */
		:: psc[v * 2] = (psc[v * 2] -> psc[v * 2] : place[0])
		:: psc[v * 2 + 1] = (psc[v * 2 + 1] -> psc[v * 2 + 1] : place[1])
		:: break
		od;
		/* [vmm/shootdown.c:shootdown_exit] */
		atomic {
			in = in & ~(1 << v);
			owes[0] = owes[0] & in; owes[1] = owes[1] & in
#ifndef MUT_ENTER_NO_FLUSH
			; psc[v * 2] = 0; psc[v * 2 + 1] = 0
#endif
		}
	:: break
	od
}

/* [shadow/core/walk.c:umbra_lookup] of place 0: its answer is what some moment of the walk showed, of that place */
active proctype lookup()
{
	byte gen, p, seen = NOBODY;

again:
	gen = free_gen;
	p = place[0];
	if
	:: p ->
		atomic { seen = (entry[p - 1] -> owner[p - 1] : NOBODY) }
	:: else
	fi;
	if
	:: free_gen != gen -> atomic { p = 0; seen = NOBODY }; goto again
	:: else
	fi;
	lookup_wrong = (seen == 1);
	assert(!lookup_wrong)
}

init {
	atomic {
		run changer(0);
		run changer(1);
		run vcpu(0);
		run vcpu(1)
	}
}
