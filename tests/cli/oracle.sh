#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# vmm oracle: every row of the catalogue that a process can do, against every source there is. Where the kernel module is
# loaded (the lab) it is held to its promises, too. And the command line.
set -u
. "$(dirname "$0")/common"

says() { grep -qE "$1" "$scratch/said"; }
q() { [ "$(jq -r "$1" "$scratch/rows")" = "${2-true}" ]; }
oracle() {
	timeout -k 5 280 "$VMM" oracle "$@" >"$scratch/said" 2>&1 </dev/null
	status=$?
}

oracle --list
verdict list_is_told [ $status = 0 ]
verdict list_has_reasons says '^ 63 .*not run: '
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
verdict a_table_is_shown says '^ 17  MADV_DONTNEED of a page +own call exact 1/1 '
verdict others_are_not_run says '^4 run, 0 not run, 0 failed$'

oracle --json
cp "$scratch/said" "$scratch/rows"
verdict every_promise_is_kept [ $status = 0 ]
verdict it_is_json q type object
verdict nothing_failed q .failed 0
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
counts
