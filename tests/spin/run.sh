#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Verifies the protocol models exhaustively, and shows that each mutation of the protocol makes one of them fail.
# tests/spin/run.sh [--long]. Exit: 0, 1, 77 without spin. The last line counts.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
command -v spin >/dev/null && command -v gcc >/dev/null || {
	echo "SKIP: spin or gcc is not installed"
	exit 77
}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
pass() { passed=$((passed + 1)); }
fail() {
	echo "FAILED: $*"
	failed=$((failed + 1))
}

# A name in the models of directory $1, [file:function], is still one of the sources (.c, .h, .S): a model cannot drift
# away unseen. Says those that are not.
names() {
	local f fn missing= models=$1
	while IFS=: read -r f fn; do
		case $f in
		*.S) grep -qE "^$fn:" "$root/$f" ;;
		*) grep -qE "^[a-z].*\b$fn\(" "$root/$f" ;;
		esac 2>/dev/null || missing+=" $f:$fn"
	done < <(grep -ohE '\[[a-z_/]+\.[chS]:[a-z_0-9]+\]' "$models"/*.pml | tr -d '[]' | sort -u)
	echo "$missing"
}

# The check itself: names of each kind that no source has are all found missing.
names_checked() {
	local missing wrong=' include/abi/notifier_ring.h:no_such kmod/umbra.c:no_such shadow/core/no_such.c:start vmm/monitor_code.S:no_such'
	missing=$(names "$here")
	if [ -z "$missing" ]; then pass; else fail "steps stand for functions that are gone:$missing"; fi
	mkdir "$tmp/names"
	printf '[%s]\n' $wrong 'kmod/umbra.c:publish' 'include/abi/notifier_ring.h:umbra_ring_push' >"$tmp/names/wrong.pml"
	missing=$(names "$tmp/names")
	if [ "$missing" = "$wrong" ]; then pass; else fail "of wrong names are noticed:${missing:- none}"; fi
}

# search MODEL MODE FLAGS...: result in $out, what was violated in $what ("" when nothing was). MODE: safety or progress.
search() {
	local model=$1 mode=$2 compile=(-DSAFETY) run=()
	shift 2
	[ "$mode" = progress ] && set -- -DPROGRESS "$@" && compile=(-DNFAIR=3) && run=(-a -f)
	rm -rf "$tmp/run" && mkdir "$tmp/run" && cd "$tmp/run" || exit 1
	what=
	if ! spin "$@" -a "$here/$model.pml" >spin.log 2>&1 ||
		! gcc "$opt" "${compile[@]}" -DCOLLAPSE -DVECTORSZ=1024 -DMEMLIM=$mem -w -o pan pan.c 2>>spin.log; then
		what='does not compile'
		cat spin.log
		return
	fi
	./pan -m1000000 -w22 "${run[@]}" >out 2>&1
	what=$(sed -nE 's/^pan:1: assertion violated  *!\(?\(?([a-z_0-9]+).*/\1/p; s/^pan:1: (invalid end state|acceptance cycle).*/\1/p' out | head -n 1)
	[ "$what" = 'acceptance cycle' ] && what=$(sed -nE 's/^ltl ([a-z_]+) .*/\1/p' "$here/$model.pml" | head -n 1)
	if [ -z "$what" ]; then
		grep -q 'errors: 0$' out && ! grep -qE 'not completed|max search depth too small|out of memory|reached -DMEMLIM' out ||
			what="not exhausted: $(grep -E '^(error|Warning|pan:|reached)' out | head -n 1)"
	fi
	states=$(sed -nE 's/^ *([0-9.e+]+) states, stored.*/\1/p' out)
	depth=$(sed -nE 's/.*depth reached ([0-9]+).*/\1/p' out)
}

# The way there, as steps of the model: who, which line, what it did, and what changed.
trail() {
	local model=$1 mode=$2
	shift 2
	[ "$mode" = progress ] && set -- -DPROGRESS "$@"
	[ -e "$tmp/run/$model.pml.trail" ] || return
	echo "    the steps that lead there (last 150):"
	(cd "$tmp/run" && spin "$@" -t -p -g "$here/$model.pml" 2>&1) |
		sed -E "s,$here/,,; s,^ +([0-9]+):[[:space:]]+proc +[0-9]+ ,  \1 ,; s/\(state [0-9]+\)//; /^ *$/d" | tail -n 150 | sed 's/^/    /'
}

row() { printf '%-10s %-8s %-46s %10s %6s  %s\n' "$@"; }

# correct MODEL MODE FLAGS...: nothing is violated, and all of it was looked at.
correct() {
	local model=$1 mode=$2
	shift 2
	search "$model" "$mode" "$@"
	row "$model" "$mode" "${*:--}" "${states:--}" "${depth:--}" "${what:-holds}"
	if [ -z "$what" ]; then pass; else
		fail "$model $*: $what"
		trail "$model" "$mode" "$@"
	fi
	if [ "$mode" = safety ] && [ -z "$what" ]; then
		configurations=$((configurations + 1))
		# a step in an inline is there once for each use; where all configurations have the same steps, each counts
		drop=', state [0-9]+,'
		[ "$model" = shootdown ] && drop='^$'
		grep -oE '[a-z]+\.pml:[0-9]+, state [0-9]+, ".*"' "$tmp/run/out" | grep -v -- '"-end-"' |
			sed -E "s/$drop/:/" | sort -u >"$tmp/unreached.$model.$configurations"
	fi
}

# broken MODEL MODE MUTATION CLAIM FLAGS...: with the mutation CLAIM (a pattern) is violated.
broken() {
	local model=$1 mode=$2 mutation=$3 claim=$4
	shift 4
	search "$model" "$mode" "-DMUT_$mutation" "$@"
	row "$model" "$mode" "$mutation" "${states:--}" "${depth:--}" "${what:-NOT NOTICED}"
	if [[ $what =~ ^($claim)$ ]]; then pass; else
		fail "mutation $mutation of $model: expected $claim, got '${what:-nothing}'"
		[[ $what =~ ^not|^does ]] || trail "$model" "$mode" "-DMUT_$mutation" "$@"
	fi
}

# Steps that no configuration of a model has reached: a claim about them would be empty.
reached() {
	local model n left
	for model in "$@"; do
		n=$(find "$tmp" -name "unreached.$model.*" | wc -l)
		left=$(sort "$tmp"/unreached."$model".* | uniq -c | awk -v n="$n" '$1 == n { $1 = ""; print "   " $0 }')
		if [ -z "$left" ]; then pass; else
			fail "$model: steps that nothing reaches:"
			echo "$left"
		fi
	done
}

configurations=0
names_checked
row model mode 'configuration or mutation' states depth result
mem=1800
opt=-O2
if [ "${1-}" = --long ]; then
	mem=4000 # 3.1 GB are taken by the largest
	correct fault safety -DCPU=0 -DROUNDS=2 -DROUNDS1=1 -DWIDE -DHISTORY=2
	correct fault safety -DCPU=1 -DSPLIT -DRELEASE
	correct fault safety -DCPU=1 -DROUNDS=2
	correct fault safety -DCPU=0 -DFAULTS=2 -DWIDE
	correct fault progress -DCPU=1 -DROUNDS=2
	correct fault safety -DLATE -DROUNDS=2 -DROUNDS1=1
	correct shootdown safety -DSTAYS=2
	correct shootdown safety -DOWN=0 -DROUNDS=2 -DSTAYS=2
	correct shootdown safety -DSTAYS=2 -DRING=1 -DRECYCLE_AT=1 -DLIST_MAX=1
	correct shootdown progress -DOWN=0 -DSTAYS1=1
	correct tables safety -DROUNDS=3
	correct ring safety -DRING=1
	correct ring safety -DRING=2 -DRELEASE
	correct ring safety -DRING=2 -DROUNDS=2 -DROUNDS1=1
	correct ring progress -DRING=1 -DRELEASE
	echo
	echo "$passed passed, $failed failed, 0 skipped"
	exit $((failed > 0))
fi

correct fault safety -DCPU=0
correct fault safety -DCPU=1
correct fault safety -DCPU=1 -DSPLIT
correct fault safety -DCPU=1 -DRELEASE -DROUNDS1=0
correct fault progress -DCPU=0
correct fault safety -DLATE
correct fault progress -DLATE -DCPU=0
correct shootdown safety -DSTAYS=1
correct shootdown safety -DOWN=0
correct shootdown safety -DOWN=0 -DSTAYS=1 -DROUNDS=2 -DRING=1 -DRECYCLE_AT=1
correct shootdown safety -DSTAYS=1 -DLIST_MAX=1
correct shootdown progress -DROUNDS=0
correct tables safety
correct ring safety -DROUNDS1=0 -DRELEASE
correct ring safety -DRING=2
correct ring progress -DROUNDS1=0

reached fault shootdown tables ring
opt=-O1
open='install_in_open_range|leaf_in_open_range|stale_install'
broken fault safety SKIP_CHECK "$open" -DCPU=0
broken fault safety CHECK_4K "$open" -DCPU=0
broken fault safety EQUALITY_ONLY "$open" -DCPU=0
broken fault safety BLIND_TO_PASSED stale_install -DCPU=0
broken fault safety FORGET_SNAPSHOT stale_install -DCPU=0
broken fault safety FIRST_OF_HISTORY stale_install -DCPU=0 -DHISTORY=2
broken fault safety UNION_STAYS leaf_in_open_range -DCPU=0
broken fault safety KEEP_2M leaf_in_open_range -DCPU=0
broken fault safety SEQ_CUT stale_install -DCPU=0
broken fault safety HISTORY_FORGETS stale_install -DCPU=0
broken fault safety ZAP_HALF leaf_in_open_range -DCPU=0
broken fault safety IGNORE_ALIAS leaf_in_open_range -DCPU=0
broken fault safety DROP_END left_open -DCPU=0
broken fault progress DROP_END fault_progress -DCPU=0
broken fault safety END_TWICE count_negative -DCPU=0
broken fault safety REFUSED_STAYS_OPEN left_open -DCPU=0
broken fault safety INSTALL_AFTER_RELEASE install_after_release -DCPU=0 -DRELEASE
broken fault safety RELEASE_KEEPS_ALIAS use_after_release -DCPU=0 -DRELEASE
broken fault safety NO_WAIT stale_use
broken fault safety OWN_FLUSH_ONLY stale_use
broken fault safety SKIP_VCPU stale_use
broken fault safety ENTER_NO_FLUSH stale_use -DFAULTS=2
broken fault safety SPLIT_KEEPS_LEAF stale_use -DSPLIT
broken fault safety OVER_EARLY stale_use -DLATE -DROUNDS1=0
broken fault safety OVER_STAYS_OPEN left_open -DLATE
broken shootdown safety SKIP_VCPU stale_use -DOWN=0
broken shootdown safety ACK_BEFORE_FLUSH stale_use -DSTAYS=1 -DSTAYS1=3
broken shootdown safety HEAD_BEFORE_RECORD lost_record -DOWN=0
broken shootdown safety NO_SECOND_LOOK stale_use -DOWN=0
broken shootdown safety BY_PAGE_ALWAYS stale_use -DSTAYS=2
broken shootdown safety OUT_RUNS_GUEST stale_use -DSTAYS=2 -DLIST_MAX=1
broken shootdown safety OVERFLOW_SILENT 'lost_record|stale_use' -DSTAYS=2 -DRING=1
broken shootdown progress NO_IMMEDIATE_EXIT shootdown_progress -DROUNDS=0
broken shootdown safety TOUCHED_BY_ANOTHER stale_use -DSTAYS=2
broken shootdown progress KICKED_STAYS shootdown_progress -DROUNDS=0 -DOWN=2
broken shootdown progress NO_WAITERS shootdown_progress -DROUNDS=0
broken tables safety RECYCLE_EARLY 'bit_lost|walks_recycled_table'
broken tables safety CLEARED_IS_FREE walks_recycled_table
broken tables safety ENTER_NO_FLUSH 'bit_lost|walks_recycled_table'
broken tables safety NO_FREE_GEN lookup_wrong
broken ring safety COUNT_ONLY_RECORDED 'stale_lookup|counted_backwards|lost_unseen'
broken ring safety OVERFLOW_NOT_SAID 'stale_after_drain|lost_unseen'
broken ring safety IGNORE_LOST 'stale_after_drain|lost_unseen|counted_backwards'
broken ring safety HEAD_BEFORE_COUNTER counted_backwards
broken ring safety RESYNC_TORN 'counted_backwards|lost_unseen'
broken ring safety END_AFTER_LOSS_MISSED lost_unseen
broken ring safety RESYNC_KEEPS_SEQ stale_after_drain
broken ring safety APPLY_BEFORE_ZAP stale_lookup -DRING=2
broken ring safety LOOKUP_CHECKS_LAST stale_lookup -DRING=2
broken ring safety INSTALL_AFTER_DEATH install_after_death -DROUNDS1=0 -DRELEASE
echo
echo "$passed passed, $failed failed, 0 skipped"
exit $((failed > 0))
