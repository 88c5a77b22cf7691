#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# vmm oracle: every row of the catalogue that a process can do, against every source there is. Where the kernel module is
# loaded (the lab) it is held to its promises, too. In the lab, which is nobody's, with it also what the kernel does by itself
# (--disruptive). The machine's settings are afterwards as they were. And the command line.
set -u
. "$(dirname "$0")/common"

says() { grep -qE "$1" "$scratch/said"; }
q() { [ "$(jq -r "$1" "$scratch/rows")" = "${2-true}" ]; }
oracle() {
	timeout -k 5 500 "$VMM" oracle "$@" >"$scratch/said" 2>&1 </dev/null
	status=$?
}

# Whatever the oracle may set, by name and value; and its control group.
settings() {
	local f
	for f in /proc/sys/vm/swappiness /proc/sys/kernel/numa_balancing /sys/kernel/mm/ksm/{run,pages_to_scan,sleep_millisecs} \
		/sys/kernel/mm/transparent_hugepage/{enabled,khugepaged/{scan_sleep_millisecs,alloc_sleep_millisecs,pages_to_scan,defrag}} \
		/sys/kernel/debug/sched/numa_balancing/{scan_delay_ms,scan_period_min_ms} /sys/fs/cgroup/cgroup.subtree_control; do
		[ -r "$f" ] && echo "$f $(cat "$f")"
	done
	ls -d /sys/fs/cgroup/umbra-oracle-* 2>/dev/null
	cat /proc/self/cgroup
}
settings_are_back() { # soon: another process puts them back, and another test may have set some for a moment
	local _
	for _ in $(seq 600); do
		[ "$(settings)" = "$before" ] && return
		sleep 0.05
	done
	diff <(echo "$before") <(settings)
	return 1
}
others() { cat /proc/[0-9]*/comm 2>/dev/null | grep -cx vmm; } # the keeper and the hog have the name of the oracle
before=$(settings)

oracle --list
verdict list_is_told [ $status = 0 ]
verdict list_has_reasons says '^ 63 .*not run: '
verdict list_says_what_is_disruptive says '^ 54  kswapd .*needs --disruptive: it makes the machine short of memory$'
oracle 53 54 57 61
verdict disruptive_rows_are_not_run_unasked [ $status = 77 ]
verdict they_say_why says '^ 54  kswapd .*not run: needs --disruptive: it makes the machine short of memory$'
verdict none_is_run says '^0 run, 8 not run, 0 failed$'
drop=()
[ "$(id -u)" -ne 0 ] || drop=(setpriv --inh-caps -sys_admin --bounding-set -sys_admin)
"${drop[@]}" "$VMM" oracle --disruptive 52 53 >"$scratch/said" 2>&1 </dev/null
status=$?
verdict disruptive_without_privilege_is_refused [ $status = 77 ]
verdict the_refusal_says_what_is_needed says '^umbra: oracle --disruptive: it changes settings of the machine, for which it needs root$'
verdict the_refusal_says_what_to_do says 'run: sudo vmm oracle --disruptive$'
verdict nothing_was_run_then [ "$(wc -l <"$scratch/said")" -eq 2 ]
verdict nothing_was_set_then settings_are_back
# Where a setting cannot be changed (here: the files are read-only) the row says so, and there is nothing to put back.
if [ "$(id -u)" -eq 0 ] && unshare --mount mount -o remount,bind,ro /sys 2>/dev/null; then
	unshare --mount sh -c 'mount -o remount,bind,ro /sys && exec "$@"' sh "$VMM" oracle 52 >"$scratch/said" 2>&1 </dev/null
	verdict a_setting_that_cannot_be_changed_is_named says '^ 52 .*not run: /sys/kernel/mm/ksm/[a-z_]+: Read-only file system$'
	verdict nothing_has_to_be_put_back [ "$(grep -c 'put back' "$scratch/said")" -eq 0 ]
else
	skip "read-only settings: needs root and a mount name space"
fi
oracle 17x
verdict no_number_is_refused [ $status = 2 ]
verdict no_number_is_named says '17x: no such row'
oracle 99
verdict no_row_is_refused [ $status = 2 ]
oracle --jsno
verdict unknown_option_is_refused [ $status = 2 ]
oracle 2
verdict nothing_run_is_77 [ $status = 77 ]
oracle 17 22
verdict chosen_rows_run [ $status = 0 ]
verdict a_table_is_shown says '^ 17  MADV_DONTNEED of a page +own call +exact 1/1 '
verdict others_are_not_run says '^4 run, 0 not run, 0 failed$'

disruptive=()
[ -z "${UMBRA_LAB-}" ] || [ ! -e /dev/umbra ] || disruptive=(--disruptive)
oracle --json "${disruptive[@]}"
cp "$scratch/said" "$scratch/rows"
verdict every_promise_is_kept [ $status = 0 ]
verdict settings_are_as_before settings_are_back
verdict it_is_json q type object
verdict nothing_failed q .failed 0
q .failed 0 || jq -c '.rows[] | select(.run and (.obeyed | not))' "$scratch/rows" # which, in full
verdict every_row_is_run_or_has_its_reason q 'all(.rows[]; .run or (.why | length > 0))'
verdict many_are_run q '[.rows[] | select(.run)] | length > 40'
verdict own_calls_are_exact q '[.rows[] | select(.run and .by == "own call" and .changed > 0 and
	(.sources.own.saw | IN("exact", "wider") | not))] | length' 0
verdict own_starts_come_before_the_change q '[.rows[] | select(.run) | .sources.own.late] | add' 0
verdict tables_obey_own_calls q '[.rows[] | select(.run and .by == "own call" and .stale > 0)] | length' 0
verdict no_invariant_broke q '[.rows[] | select(.run) | .check] | add' 0
verdict brackets_are_closed q '[.rows[] | select(.run) | .sources | (.own, .module) | select(.starts != .ends)] | length' 0
if q '.not_there.tracepoint == null'; then
	# An independent witness: it hears of every change.
	verdict the_witness_missed_nothing q '[.rows[] | select(.run and .changed > 0 and
		(.sources.tracepoint.saw | IN("exact", "wider") | not))] | length' 0
else
	skip "the witness: $(jq -r .not_there.tracepoint "$scratch/rows")"
fi
if q '.not_there.module == null'; then
	verdict the_module_missed_nothing q '[.rows[] | select(.run and .changed > 0 and
		(.sources.module.saw | IN("exact", "wider") | not))] | length' 0
	verdict with_the_module_nothing_is_stale q '[.rows[] | select(.run and .stale > 0)] | length' 0
else
	skip "the module: $(jq -r .not_there.module "$scratch/rows")"
fi
if [ ${#disruptive[@]} -gt 0 ]; then
	kernel_rows='["khugepaged", "kswapd", "cgroup", "compaction", "NUMA"]'
	[ "${UMBRA_LAB%% *}" = 6.1 ] || kernel_rows+=' + ["offline", "poison", "own call, offline", "own call, poison"]'
	verdict the_kernel_did_it_all q "[.rows[] | select(.run and .changed > 0) | .by] as \$done | ($kernel_rows) - \$done" '[]'
	# Killed in the middle, without a chance to tidy up: another process does.
	"$VMM" oracle --disruptive 54 >"$scratch/said" 2>&1 </dev/null &
	victim=$!
	for _ in $(seq 600); do
		read -r now </proc/sys/vm/swappiness
		[ "$now" -eq 200 ] && break
		sleep 0.05
	done
	verdict a_setting_was_changed [ "$now" -eq 200 ]
	kill -KILL $victim
	wait $victim 2>/dev/null
	verdict a_killed_oracle_leaves_no_setting settings_are_back
	for _ in $(seq 600); do
		[ "$(others)" -eq 0 ] && break
		sleep 0.05
	done
	verdict a_killed_oracle_leaves_no_process [ "$(others)" -eq 0 ]
fi
counts
