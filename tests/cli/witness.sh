#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# vmm run --source tracepoints: KVM's tracepoints find nothing that own calls did not announce, and name who did what was
# not announced. And what vmm says where a source is not to be had.
set -u
. "$(dirname "$0")/common"
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null; rm -rf "$scratch"' EXIT

needs_kvm
q() { [ "$(tail -n 1 "$scratch/said" | jq -r "$1")" = "${2-true}" ]; }
says() { grep -qE "$1" "$scratch/said"; }
vmm() {
	timeout -k 5 120 "$VMM" run "$@" >"$scratch/said" 2>&1 </dev/null
	status=$?
}

# ---- not to be had ----
if [ ! -e /dev/umbra ]; then
	vmm --source module "$GUESTS/hello"
	verdict no_module_is_77 [ $status = 77 ]
	verdict no_module_names_the_fix says '/dev/umbra: .*modprobe umbra'
fi
vmm --source module --module-fd 5 "$GUESTS/hello" 5</dev/null
verdict a_passed_descriptor_that_is_none_is_77 [ $status = 77 ]
verdict a_passed_descriptor_that_is_none_is_named says 'module-fd 5: '
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then
	# Without any capability; tracefs shows itself to root only, and perf asks for CAP_PERFMON.
	vmm_bare() { timeout 60 setpriv --bounding-set -all --inh-caps -all "$VMM" run "$@" >"$scratch/said" 2>&1; status=$?; }
	vmm_bare --source own,tracepoints "$GUESTS/hello"
	verdict no_right_to_trace_is_77 [ $status = 77 ]
	verdict no_right_to_trace_names_the_fix says 'source tracepoints: .*(root|perf_event_paranoid|mount)'
fi

# ---- the witness ----
vmm --source own,tracepoints --stats=json -m 16M "$GUESTS/hello"
if [ $status = 77 ]; then
	skip "$(cat "$scratch/said")"
	counts
	exit
fi
verdict a_quiet_guest_runs [ $status = 0 ]
verdict a_quiet_guest_hears_nothing_unannounced q .witness.unannounced 0

vmm --source own,tracepoints --stacks --stats=json -m 16M -c 2 --chaos rate=300,seed=3 "$GUESTS/tour"
verdict under_chaos_the_guest_is_right [ $status = 0 ]
verdict under_chaos_kvm_is_told_much q ".witness.unmaps > 500"
# What the kernel did by itself meanwhile (it may balance, reclaim or compact) nobody announced, and nobody had to.
verdict under_chaos_all_calls_were_announced q '[.witness.by[] | select(.in_part | not) | select(.by |
	test("^(madvise|munmap|mremap|mprotect|mmap over|fork|fallocate|truncate), this process"))] | length' 0
verdict under_chaos_all_was_compared q '.witness | .lost == 0 and .not_compared == 0 and .compared == .unmaps'

# Another process splits and collapses 2M pages of the guest: an mmu_notifier is told, and our sources are not. At the end
# the audit may find it as well (status 4): that is what it is for.
stranger() { # stranger PID ADDRESS BYTES: one page of each block is made cold, then the block is collapsed
	perl -e '
		my ($pid, $at, $bytes) = ($ARGV[0] + 0, hex($ARGV[1]), $ARGV[2] + 0);
		my $fd = syscall(434, $pid, 0);
		exit 1 if $fd < 0;
		for (my $b = 0; $b < $bytes; $b += 2 << 20) {
			my ($page, $block) = (pack("QQ", $at + $b + 4096, 4096), pack("QQ", $at + $b, 2 << 20));
			syscall(440, $fd, $page, 1, 20, 0);
			syscall(440, $fd, $block, 1, 25, 0);
		}' "$@"
}
timeout -k 5 120 "$VMM" run --source own,tracepoints --stacks --stats=json --log info -m 16M --pages thp "$GUESTS/smp_stale" -- ms=2500 \
	>"$scratch/said" 2>&1 </dev/null &
pid=$!
for _ in $(seq 100); do
	vmm_pid=$(pgrep -P "$pid" -x vmm) && at=$(grep -oE 'memory: 16M at 0x[0-9a-f]+' "$scratch/said") && break
	sleep 0.05
done
at=${at##* }
if [ -n "$vmm_pid" ] && [ -n "$at" ]; then
	# in few blocks: the audit takes its time with each page that is wrong
	while kill -0 "$pid" 2>/dev/null && stranger "$vmm_pid" "$at" $((4 << 20)); do
		sleep 0.2
	done
fi
wait "$pid"
status=$?
pid=
verdict a_stranger_does_the_guest_no_harm [ $status = 0 -o $status = 4 ]
verdict a_stranger_is_heard q '[.witness.by[] | select(.by | test("another process")) | .unmaps] | add > 0'
verdict a_stranger_has_a_path q '[.witness.by[] | select(.by | test("another process")) | .stack[] | select(test("madvise"))] | length > 0'
counts
