#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Runs every guest image: 1, 2 and 4 vCPUs, anon and memfd, 4k, thp and hugetlb, calm and under chaos, each with
# the audit on; then each escape attempt against its expected outcome, and the ends by crash and by Ctrl-C.
#
# run_guests.sh [GUEST...]     Only these guests; "escape", "ends" and "pieces" are names too.
# Environment: BUILD or VMM and GUESTS; SEED of the chaos plans; RATE of chaos; VERBOSE=1 prints each run;
# REQUIRE_KVM=1 makes a run that the host cannot carry out a failure.
# One line for each property with the runs in it; a failure with its command and output. Exit: 0, 1 or 77.
set -u
cd "$(dirname "$0")/../.." || exit 1
BUILD=${BUILD:-build}
VMM=${VMM:-$BUILD/vmm}
GUESTS=${GUESTS:-$BUILD/guests}
SEED=${SEED:-$RANDOM}
RATE=${RATE:-400}
LIMIT=120 # seconds; finds a hang, not slowness: a run takes less than one on a quiet machine
JOBS=${JOBS:-2} # properties under way at a time
only=" $* "

if [ ! -x "$VMM" ] || [ ! -x "$GUESTS/hello" ]; then
	echo "no $VMM or no $GUESTS/hello: build first (make all)"
	exit 1
fi
if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
	echo "SKIP: /dev/kvm is not there or not ours"
	[ "${REQUIRE_KVM:-0}" = 1 ] && exit 1
	exit 77
fi

# What is switched on here is switched off again, however this ends.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/umbra-guests.XXXXXX") || exit 1
pool=/proc/sys/vm/nr_hugepages
pool_before=$(cat $pool 2>/dev/null || echo 0)
swap_on=
restore() {
	[ -n "$swap_on" ] && swapoff "$scratch/swap"
	[ -w $pool ] && echo "$pool_before" >$pool
	rm -rf "$scratch"
}
trap restore EXIT
trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM
: >"$scratch/counts"

# A 64M machine, and more for what its children keep (storm with 4 vCPUs used 54 in all). Two such beside one another
# would take from each other what they were promised: one at a time, by one_huge.
huge_wanted=$((pool_before + 80))
one_huge=(flock --close "$scratch/hugetlb")
[ -w $pool ] && { echo $huge_wanted >$pool; } 2>/dev/null
huge_free=$(awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo)

swap_start() {
	dd if=/dev/zero of="$scratch/swap" bs=1M count=128 status=none &&
		chmod 600 "$scratch/swap" && mkswap -q "$scratch/swap" >/dev/null 2>&1 &&
		swapon "$scratch/swap" 2>/dev/null && swap_on=1
}

wanted() {
	[ "$only" = "  " ] || [[ $only == *" $1 "* ]]
}

complain() {
	echo "# exit $status, $1: $VMM ${command[*]}"
	sed 's/^/#   /' <<<"$output" | tail -40
}

# report NAME WHAT RUNS CHECKS BAD SKIPS: a line for one property.
report() {
	local mark=ok more=

	[ "$5" -gt 0 ] && mark="not ok"
	[ "$6" -gt 0 ] && more=", $6 skipped"
	[ "$5" -gt 0 ] && more="$more, $5 FAILED"
	printf '%s - %-15s %-46s %3d runs, %5d checks%s\n' "$mark" "$1" "$2" "$3" "$4" "$more"
}

# Passed, failed, skipped: summed up at the end.
count() {
	echo "$*" >>"$scratch/counts"
}

# job COMMAND...: in the background, JOBS at a time; its output appears in one piece when it is done.
job() {
	while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do
		wait -n
	done
	{
		text=$("$@")
		[ -n "$text" ] && printf '%s\n' "$text"
	} &
}

# ---- every property in every configuration ----
# property NAME VCPUS WHAT [ARGS...]; MIX: of chaos, if not all there is; SIZES: of pages, if not all
property() {
	local name=$1 vcpus=$2 what=$3 runs=0 checks=0 bad=0 skips=0 c b p mode reasons=
	local -a command chaos alone
	shift 3
	wanted "$name" || return
	for c in $vcpus; do for b in anon memfd; do for p in ${SIZES:-4k thp hugetlb}; do for mode in calm chaos; do
		# no such thing: the kernel swaps no hugetlb page, and vmm answers -ENOTSUP to moving one
		case $name,$p in swap,hugetlb | remap_keep,hugetlb) continue ;; esac
		chaos=()
		[ $mode = chaos ] && chaos=(--chaos "rate=$RATE,seed=$SEED${MIX:+,mix=$MIX}")
		if [ $p = hugetlb ] && [ "$huge_free" -lt 32 ]; then
			runs=$((runs + 1)) skips=$((skips + 1))
			reasons="$reasons"$'\n'"only $huge_free free hugetlb pages of 2M, 32 are needed"
			continue
		fi
		command=(run -m 64M -c "$c" --backing $b --pages $p "${chaos[@]}" --audit
			"$GUESTS/$name" -- "$@")
		alone=()
		[ $p = hugetlb ] && alone=("${one_huge[@]}")
		output=$("${alone[@]}" timeout -k 5 $LIMIT "$VMM" "${command[@]}" 2>&1 </dev/null)
		status=$?
		runs=$((runs + 1))
		checks=$((checks + $(grep -c '^ok - ' <<<"$output")))
		[ "${VERBOSE:-0}" = 1 ] && echo "# $status ${command[*]}"
		if [ $status = 77 ] && [ "${REQUIRE_KVM:-0}" != 1 ]; then
			skips=$((skips + 1))
			reasons="$reasons"$'\n'"$(tail -1 <<<"$output")"
		elif [ $status != 0 ] || grep -q '^FAIL' <<<"$output" ||
			! grep -q '^ok - \|^SKIP: ' <<<"$output"; then
			bad=$((bad + 1))
			[ $bad -le 3 ] && complain "expected 0 and only ok lines"
		elif grep -q '^SKIP: ' <<<"$output"; then
			skips=$((skips + 1))
			reasons="$reasons"$'\n'"$(grep -m1 '^SKIP: ' <<<"$output") ($b, $p)"
		fi
	done; done; done; done
	report "$name" "$what" $runs $checks $bad $skips
	sed 's/^SKIP: //' <<<"$reasons" | sort | uniq -c | awk 'NF > 1 { $1 = "SKIP: '"$name"', " $1 " x"; print }'
	count $((runs - bad - skips)) $bad $skips
}

# ---- escape attempts ----
escapes() {
	local number_of name expect runs=0 bad=0 good
	local -a command
	wanted escape || return
	"$VMM" run -m 8M -c 1 "$GUESTS/escape" -- list >"$scratch/list" 2>&1 </dev/null
	while read -r number_of name expect; do
		case $expect in CRASH | HARMLESS | REFUSED | EITHER | HALT) ;; *) continue ;; esac
		command=(run -m 8M -c 1 "$GUESTS/escape" -- "n=$number_of")
		output=$(timeout -k 5 $LIMIT "$VMM" "${command[@]}" 2>&1 </dev/null | tr -d '\0'
			exit "${PIPESTATUS[0]}")
		status=$?
		runs=$((runs + 1))
		good=
		if grep -q "trying $name," <<<"$output"; then
			if grep -q '^SURVIVED' <<<"$output"; then
				[ $status = 0 ] && [ "$expect" != CRASH ] && good=1
			elif [ "$expect" = HALT ]; then
				[ $status = 1 ] && grep -q 'all vCPUs halted' <<<"$output" && good=1
			else
				[ $status = 3 ] && [[ $expect = CRASH || $expect = EITHER ]] && good=1
			fi
		fi
		[ "${VERBOSE:-0}" = 1 ] && echo "# $status $expect $name"
		if [ -z "$good" ]; then
			bad=$((bad + 1))
			complain "$name, expected $expect"
		fi
	done <"$scratch/list"
	if [ $runs -lt 100 ]; then
		bad=$((bad + 1)) runs=$((runs + 1))
		command=(run "$GUESTS/escape" -- list) output=$(cat "$scratch/list") status=-
		complain "the list of attempts is short"
	fi
	report escape "a hostile guest ends itself and nothing else" $runs $runs $bad 0
	count $((runs - bad)) $bad 0
}

# ---- how a machine ends ----
ends() {
	local bad=0 runs=0 pid
	local -a command
	wanted ends || return
	end() { # end STATUS TEXT: the last run had to end so
		runs=$((runs + 1))
		[ $status = "$1" ] && grep -q "$2" <<<"$output" && return
		bad=$((bad + 1))
		complain "expected $1 and \"$2\""
	}
	command=(run -m 8M -c 1 "$GUESTS/crash")
	output=$("$VMM" "${command[@]}" 2>&1) status=$?
	end 3 c0ffee
	command=(run -m 8M -c 2 "$GUESTS/crash" -- cpu=1)
	output=$("$VMM" "${command[@]}" 2>&1) status=$?
	end 3 c0ffee
	command=(run -m 8M -c 2 "$GUESTS/spin" -- n=50)
	output=$("$VMM" "${command[@]}" 2>&1) status=$?
	end 0 "ok - spun"
	for c in 1 4; do
		command=(run -m 8M -c $c "$GUESTS/spin")
		# A shell starts background commands with SIGINT ignored: setsid and env give it back.
		env --default-signal=INT "$VMM" "${command[@]}" >"$scratch/spin" 2>&1 &
		pid=$!
		for _ in $(seq 100); do
			grep -q spinning "$scratch/spin" && break
			sleep 0.05
		done
		kill -INT $pid
		wait $pid
		status=$?
		output=$(cat "$scratch/spin")
		end 130 spinning
	done
	report ends "crash, success and Ctrl-C have their exit codes" $runs $runs $bad 0
	count $((runs - bad)) $bad 0
}

# ---- as many pieces of memory as the host allows ----
pieces() {
	local bad=0 skips=0
	local -a command=(run -m 300M -c 1 "$GUESTS/pieces")
	wanted pieces || return
	output=$(timeout -k 5 $LIMIT "$VMM" "${command[@]}" 2>&1 </dev/null)
	status=$?
	if grep -q '^SKIP: ' <<<"$output"; then
		skips=1
		grep '^SKIP: ' <<<"$output"
	elif [ $status != 0 ] || ! grep -q '^ok - .* refused$' <<<"$output"; then
		bad=1
		complain "expected 0, and remaps refused"
	fi
	report pieces "a remap that the host has no room for loses nothing" 1 "$(grep -c '^ok - ' <<<"$output")" $bad $skips
	count $((1 - bad - skips)) $bad $skips
}

echo "# seed $SEED, chaos rate $RATE, free hugetlb pages $huge_free"
if wanted swap && [ "$(swapon --show --noheadings | wc -l)" = 0 ]; then
	output=$("$VMM" run -m 8M -c 1 "$GUESTS/swap" 2>&1) status=$?
	command=(run -m 8M -c 1 "$GUESTS/swap")
	if [ $status = 0 ] && grep -q '^SKIP: the host has no swap' <<<"$output"; then
		count 1 0 0
	else
		count 0 1 0
		complain "without swap the guest says so"
	fi
fi
swap_start || echo "# no swap could be switched on here"

job property hello "1 2 4" "the machine starts and answers"
job property touch "1 2 4" "first touches in order" pattern=seq n=1024
job property touch "2" "first touches at random" pattern=random n=2048
job property touch "2" "first touches strided" pattern=stride n=2048
job property touch "2" "first touches 2M apart" step=2m
job property verify "1 2 4" "what is written stays"
job property discard_zero "1 2 4" "discarded memory reads zero"
MIX=remap RATE=2000 SIZES="4k thp" job property discard_zero "4" "what is discarded while it moves is lost" n=200
job property protect_write "1 2 4" "each first write is caught, once"
job property remap_keep "1 2 4" "moved memory keeps its contents"
job property split_collapse "1 2 4" "split and collapsed memory keeps its contents"
job property fork_cow "1 2 4" "a fork copies on write"
job property swap "1 2 4" "swapped pages come back"
job property huge "1 2 4" "2M leaves exactly where the host has 2M"
job property free_lazy "1 2" "lazily freed pages are old or zero"
job property arena "1 2 4" "chaos loses pages inside arenas only"
job property smp_hammer "1 2 4" "no addition is lost under invalidation"
job property smp_stale "1 2 4" "nobody sees the old page after the call" ms=100
job property storm "1 4" "calls of all kinds at once harm nothing beside" n=20
job property ad_truth "1 2 4" "accessed and dirty are what the guest did"
job property vast "1 2" "long host calls over holes keep what is there"
job property tour "2" "the demonstration"
job escapes
job ends
job pieces
wait
read -r passed failed skipped < <(awk '{ p += $1; f += $2; s += $3 }
	END { print p + 0, f + 0, s + 0 }' "$scratch/counts")
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ $((passed + skipped)) -gt 0 ]
