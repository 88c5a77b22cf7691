#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# What a process inherits from whoever starts it must change nothing: signals blocked or ignored, no descriptors, few
# rights; and what somebody does to the processes it makes. Never a hang, never "our error".
set -u
. "$(dirname "$0")/common"

needs_kvm
run=("$VMM" run --events own -m 32M)
what_was_said() { tail -n 5 <<<"$output"; }

attempt() { # attempt COMMAND...: sets $status and $output
	output=$(timeout -s KILL 30 "$@" 2>&1 </dev/null)
	status=$?
}

# In the background, until it has said so: sets $pid.
spinning() { # spinning [OPTIONS...]
	"$@" >"$scratch/spin" 2>&1 </dev/null &
	pid=$!
	for _ in $(seq 200); do
		grep -q spinning "$scratch/spin" && return
		sleep 0.05
	done
}

ended() { # after a signal to $pid: sets $status and $output; what does not end is ended, and fails
	for _ in $(seq 300); do
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.05
	done
	kill -KILL "$pid" 2>/dev/null
	wait "$pid" 2>/dev/null
	status=$?
	output=$(cat "$scratch/spin")
}

field() { # field NAME: of /proc/$pid/status, a mask of signals
	awk -v name="$1:" '$1 == name { print "0x" $2 }' "/proc/$pid/status"
}

# ---- signals ----
# A kick that is blocked interrupts no vCPU: whoever waits for one would wait for ever.
attempt env --block-signal "${run[@]}" -c 2 "$GUESTS/smp_stale" -- ms=50
verdict blocked_signals_are_no_hang [ $status = 0 ]
attempt env --ignore-signal "${run[@]}" -c 2 --chaos rate=500 "$GUESTS/fork_cow"
verdict ignored_signals_harm_nothing [ $status = 0 ]

# With SIGCHLD ignored the kernel forgets a child when it ends, and its number may be somebody else's by the time that
# vmm ends the child.
spinning env --ignore-signal=CHLD "${run[@]}" "$GUESTS/spin"
ignored=$(field SigIgn)
kill -TERM "$pid"
ended
verdict no_child_is_forgotten_before_it_is_waited_for [ $((status == 130 && (${ignored:-0x10000} & 0x10000) == 0)) = 1 ]

# Stopped and continued, as by a shell, a debugger or a freezer.
spinning "${run[@]}" -c 2 --chaos rate=500 "$GUESTS/spin"
for _ in $(seq 10); do
	kill -STOP "$pid"
	kill -CONT "$pid"
	sleep 0.01
done
kill -TERM "$pid"
ended
verdict stopping_and_continuing_harms_nothing [ $status = 130 ]

# Before, while and after the machine is built.
good=1
for delay in 0.001 0.002 0.003 0.004 0.006 0.01; do
	"${run[@]}" -c 8 --chaos rate=1000 "$GUESTS/spin" >"$scratch/spin" 2>&1 </dev/null &
	pid=$!
	sleep $delay
	kill -TERM "$pid"
	ended
	# 143: before vmm was vmm
	[ $status = 130 ] || [ $status = 143 ] || good=0
	[ $good = 1 ] || break
done
verdict a_signal_while_it_starts_ends_it [ $good = 1 ]

# ---- the processes that vmm makes ----
children() {
	cat "/proc/$pid/task"/*/children 2>/dev/null
}
for signal in KILL STOP; do
	"${run[@]}" -c 4 "$GUESTS/storm" -- n=1000000 >"$scratch/spin" 2>&1 </dev/null &
	pid=$! n=0
	for _ in $(seq 200); do
		for child in $(children); do
			kill -$signal "$child" 2>/dev/null && n=$((n + 1))
		done
		[ $n -ge 20 ] && break
		sleep 0.01
	done
	kill -TERM "$pid"
	ended
	left=
	[ $signal = KILL ] || left=$(children)
	verdict "children_that_get_a_SIG${signal}_are_no_hang" [ $((status == 130 && n >= 20 && ${#left} == 0)) = 1 ]
done

counts
