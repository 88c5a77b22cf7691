#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Tight limits of the process: either the guest runs, or vmm says with exit status 77 which limit it was, its value
# and the command that lifts it. Never a hang, never "our error".
set -u
. "$(dirname "$0")/common"

needs_kvm
what_was_said() { tail -n 5 <<<"$output"; }

# limited ULIMIT COMMAND...: with that limit, soft and hard. The timer of timeout(1) is outside of it. What we were
# given beside the three (make -j has a pipe of its own) is closed: it would take the last descriptors that there are.
limited() {
	local limit=$1
	shift
	output=$(timeout -k 1 20 bash -c "for fd in /proc/\$\$/fd/*; do
			fd=\${fd##*/}; [ \"\$fd\" -gt 2 ] && eval \"exec \$fd>&-\"
		done; ulimit $limit; exec \"\$@\"" bash "$@" 2>&1 </dev/null)
	status=$?
}

# 77 with the limit and the command, from the smallest number up to where it runs; every one in between.
told=0 ran=0 good=1
for n in $(seq 4 2 64); do
	limited "-n $n" "$VMM" run --events own -m 8M "$GUESTS/fork_cow"
	if [ $status = 77 ] && grep -qE "open files is $n\b.*ulimit -n [0-9]+" <<<"$output"; then
		told=$((told + 1))
	elif [ $status = 0 ]; then
		ran=$((ran + 1))
	else
		good=0
		break
	fi
done
[ $told -ge 5 ] && [ $ran -ge 1 ] || good=0
verdict few_descriptors_are_told_or_enough [ $good = 1 ]

# What the message says is enough, is enough.
limited "-n 20" "$VMM" run -m 8M "$GUESTS/fork_cow"
n=$(grep -oE 'ulimit -n [0-9]+' <<<"$output" | grep -oE '[0-9]+' | head -n 1)
limited "-n ${n:-4}" "$VMM" run -m 8M --chaos on -c 8 "$GUESTS/fork_cow"
verdict the_number_of_descriptors_it_asks_for_is_enough [ $status = 0 -o $status = 77 ]

told=0 good=1
for mb in 30 100 250 300 350 400; do
	limited "-v $((mb * 1024))" "$VMM" run --events own "$GUESTS/hello"
	[ $status = 0 ] && continue
	[ $status = 77 ] && grep -q "address space is ${mb}M.*ulimit -v unlimited" <<<"$output" || good=0
	told=$((told + 1))
	[ $good = 0 ] && break
done
[ $told -ge 3 ] || good=0
verdict little_address_space_is_told [ $good = 1 ]

limited "-d 10240" "$VMM" run --events own "$GUESTS/hello"
verdict little_private_memory_is_told [ $status = 77 ] # with what it says below
grep -q 'private memory is 10M.*ulimit -d unlimited' <<<"$output"
verdict little_private_memory_names_the_limit [ $? = 0 ]

limited "-f 100" "$VMM" run --events own --backing memfd "$GUESTS/hello"
grep -q "file's size is 0M.*ulimit -f unlimited" <<<"$output" && [ $status = 77 ]
verdict small_files_are_told [ $? = 0 ]

# Signals are not queued: no kick may need room in a queue.
limited "-i 0" "$VMM" run --events own -m 64M -c 2 --chaos rate=2000 "$GUESTS/smp_stale"
verdict no_pending_signals_are_needed [ $status = 0 ]
limited "-l 0" "$VMM" run --events own "$GUESTS/hello"
verdict no_locked_memory_is_needed [ $status = 0 ]
limited "-s 128" "$VMM" run --events own --chaos rate=2000 "$GUESTS/verify"
verdict threads_do_not_live_on_the_stack_limit [ $status = 0 ]
# a thread with a stack of 64G would need 64G of address space each
limited "-s $((64 << 20)) -v 2000000" "$VMM" run --events own "$GUESTS/hello"
verdict a_huge_stack_limit_costs_nothing [ $status = 0 ]

if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
	install -m 755 "$VMM" "$scratch/vmm" && install -m 644 "$GUESTS/hello" "$scratch/hello"
	chmod 755 "$scratch"
	# The limit counts all threads of the user: a user of our own, so that nobody's others do not matter.
	output=$(timeout -k 1 20 bash -c 'exec 7<>/dev/kvm; ulimit -u 2; exec "$@"' bash \
		setpriv --reuid 64998 --regid 64998 --clear-groups --inh-caps=-all --bounding-set=-all \
		"$scratch/vmm" run --kvm-fd 7 --events own "$scratch/hello" 2>&1 </dev/null)
	status=$?
	grep -q 'processes and threads is 2; run: ulimit -u' <<<"$output" && [ $status = 77 ]
	verdict few_threads_are_told [ $? = 0 ]
else
	skip "few_threads_are_told: not root, or no setpriv; root is not limited"
fi

counts
