#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# vmm from outside: exit status and text of what is refused before a guest runs, and of help. Needs no /dev/kvm for
# most; those that do say so.
set -u
. "$(dirname "$0")/common"

# expect NAME STATUS PATTERN COMMAND...: PATTERN is searched in both outputs together.
expect() {
	local name=$1 status=$2 pattern=$3 got
	shift 3
	timeout 20 "$@" >"$scratch/out" 2>&1 </dev/null
	got=$?
	if [ "$got" -eq "$status" ] && grep -qE -- "$pattern" "$scratch/out"; then
		passed=$((passed + 1))
		return
	fi
	failed=$((failed + 1))
	echo "FAIL: $name: status $got, wanted $status and \"$pattern\": $*"
	sed 's/^/    /' "$scratch/out" | head -n 20
}

expect no_command_says_what_to_write 2 'vmm run .*IMAGE' "$VMM"
expect help_is_on_standard_output 0 'Exit status' sh -c '"$1" --help 2>/dev/null' sh "$VMM"
expect run_help_has_examples 0 '^Examples' "$VMM" run --help
expect version_is_printed 0 '^vmm \(Umbra\) [0-9]' "$VMM" --version
expect help_into_a_full_disk_is_no_success 4 'No space' sh -c '"$1" --help >/dev/full' sh "$VMM"
expect unknown_option_is_named 2 '--frob: unknown option' "$VMM" run --frob x
expect memory_too_small 2 'at least 2M' "$VMM" run -m 1M x
expect memory_odd 2 'multiple of 2M; the next one is 4M' "$VMM" run -m 3M x
expect memory_too_large 2 'at most 64G' "$VMM" run -m 1T x
expect cpus_out_of_range 2 '1 to 8' "$VMM" run -c 9 x
expect tdp_is_not_there_yet 2 'not in this version' "$VMM" run --mmu tdp x
expect chaos_points_at_the_word 2 '"explode"' "$VMM" run --chaos mix=explode x
expect option_given_twice_names_both 2 '--memory 16M and --memory 32M: given twice' "$VMM" run -m 16M --mem 32M x
expect ambiguous_option_names_the_candidates 2 '--s: .*--stats.*--sandbox' "$VMM" run --s on x
expect empty_command_is_shown 2 '^umbra: "": unknown command' "$VMM" ''
expect empty_size_is_shown 2 '--memory "": not a size' "$VMM" run -m '' x
expect kvm_fd_that_is_null 77 'kvm-fd 5: that is /dev/null \(character device 1:3\), not KVM' sh -c '"$@" 5<>/dev/null' sh "$VMM" run --kvm-fd 5 x
expect kvm_fd_that_is_a_file 77 'kvm-fd 5: .*a plain file.*, not KVM' sh -c '"$@" 5<"$0"' "$0" "$VMM" run --kvm-fd 5 x
if unshare -m true 2>/dev/null && [ -e /dev/kvm ]; then
	expect kvm_that_is_null 77 '/dev/kvm is character device 1:3, not KVM.s device' unshare -m sh -c 'mount --bind /dev/null /dev/kvm && "$@"' sh "$VMM" run x
	: >"$scratch/plain"
	expect kvm_that_is_a_plain_file 77 '/dev/kvm is a plain file' unshare -m sh -c 'f=$1; shift; mount --bind "$f" /dev/kvm && "$@"' sh "$scratch/plain" "$VMM" run x
else
	skip "kvm_that_is_null: no mount namespace of our own here"
fi
expect closed_kvm_fd 2 'not open' "$VMM" run --kvm-fd 99 x

# What help says of the widths: no line is cut by a terminal of 100.
"$VMM" run --help | awk 'length > 100 { print; bad = 1 } END { exit bad }' && passed=$((passed + 1)) ||
	{ failed=$((failed + 1)); echo "FAIL: help has lines beyond 100 columns"; }

if [ -r /dev/kvm ] && [ -w /dev/kvm ] && [ -x "$GUESTS/hello" ]; then
	run="$VMM run --events own"
	image=$GUESTS/hello
	expect image_missing 2 "nothing.elf: No such file" $run "$scratch/nothing.elf"
	expect image_is_a_directory 2 'not a regular file' $run "$scratch"
	mkfifo "$scratch/fifo"
	expect image_is_a_fifo_and_does_not_hang 2 'not a regular file' $run "$scratch/fifo"
	: >"$scratch/empty"
	expect image_empty 2 'not an ELF file' $run "$scratch/empty"
	echo '#!/bin/sh' >"$scratch/script"
	expect image_is_a_script 2 'not an ELF file' $run "$scratch/script"
	expect image_of_this_host 2 'position-independent|dynamically linked' $run "$(command -v bash)"
	size=$(stat -c %s "$image")
	head -c 32 "$image" >"$scratch/cut"
	expect image_cut_in_the_header 2 'truncated' $run "$scratch/cut"
	head -c 70 "$image" >"$scratch/cut"
	expect image_cut_in_the_program_headers 2 'truncated' $run "$scratch/cut"
	head -c $((size < 4200 ? size / 2 : 4200)) "$image" >"$scratch/cut"
	expect image_cut_in_a_segment 2 'truncated' $run "$scratch/cut"
	truncate -s 65M "$scratch/large"
	expect image_too_large 2 'too large' $run "$scratch/large"
	expect guest_success 0 '0 failed' $run "$image"
	expect chaos_of_seed_0_is_chaos_to_the_guest 0 ', under chaos' $run -m 16M --chaos rate=500,seed=0 "$GUESTS/tour"
	if unshare -m true 2>/dev/null; then
		expect no_kvm_names_the_module 77 '/dev/kvm: No such file.*modprobe kvm' unshare -m sh -c 'mount -t tmpfs none /dev && "$@"' sh $run "$image"
		expect no_proc_is_told 77 'needs /proc mounted' unshare -m sh -c 'mount -t tmpfs none /proc && "$@"' sh $run "$image"
		expect no_sys_harms_nothing 0 '0 failed' unshare -m sh -c 'mount -t tmpfs none /sys && "$@"' sh $run "$image"
	fi
	expect smallest_memory 0 '0 failed' $run -m 2M -c 8 "$image"
	expect largest_memory 0 '0 failed' $run -m 64G "$image"
	expect stats_as_text 0 'Check and audit: .* no violation' $run --stats "$image"
	expect stats_as_json_is_the_last_line 0 '^object 0$' sh -c \
		'"$@" | tail -n 1 | jq -r "(type) + \" \" + (.exit | tostring)"' sh $run --stats=json "$image"
	expect stats_as_json_into_a_device 0 'status 0' sh -c '"$@" >/dev/null; s=$?; echo "status $s"; exit $s' sh $run --stats=json "$image"
	expect a_passed_descriptor_that_is_no_userfaultfd 77 'uffd-fd 5: ' sh -c '"$@" 5</dev/null' sh "$VMM" run --uffd-fd 5 "$image"
	# What cannot be said is no success, and no descriptor of ours takes the place of a closed one.
	status='"$@"; s=$?; echo "status $s"; exit $s'
	expect closed_output_and_error_are_an_error 4 'status 4' sh -c 'sh -c "\"\$@\" >&- 2>&-" sh '"$status" sh $run "$image"
	expect closed_standard_output_is_an_error 4 'standard output: Bad file descriptor: .*it reported success' sh -c '"$@" >&-' sh $run "$image"
	expect guest_output_into_a_full_disk_is_an_error 4 'standard output: No space.*it reported success' sh -c '"$@" >/dev/full' sh $run "$image"
	expect a_failed_guest_is_told_before_lost_output 3 'invalid opcode' sh -c '"$@" >/dev/full' sh $run "$GUESTS/crash"
	expect report_into_a_full_disk_is_an_error 4 'status 4' sh -c '"$@" 2>/dev/full; s=$?; echo "status $s"; exit $s' sh $run --stats "$image"
	expect report_to_closed_error_is_an_error 4 'status 4' sh -c '"$@" 2>&-; s=$?; echo "status $s"; exit $s' sh $run --stats "$image"
	expect json_into_a_full_disk_is_an_error 4 'stats=json: the report cannot be written to standard output: No space' sh -c '"$@" >/dev/full' sh $run --stats=json "$image"
	expect json_into_a_full_disk_does_not_hide_a_crash 3 'cannot be written.*the run itself: vCPU 0: .*invalid opcode' sh -c '"$@" >/dev/full' sh $run --stats=json "$GUESTS/crash"
	expect closed_error_alone_harms_nothing 0 '0 failed' sh -c '"$@" 2>&-' sh $run "$image"
	expect closed_input_harms_nothing 0 '0 failed' sh -c '"$@" <&-' sh $run "$image"
	expect crash_is_told 3 'invalid opcode' $run "$GUESTS/crash"
	timeout --preserve-status -s INT 2 $run "$GUESTS/spin" >"$scratch/out" 2>&1
	got=$?
	if [ $got -eq 130 ] && grep -q interrupted "$scratch/out"; then passed=$((passed + 1)); else
		failed=$((failed + 1))
		echo "FAIL: ctrl_c_ends_cleanly: status $got, wanted 130"
	fi
	# In the middle of host calls over 64G, again and again.
	for call in split collapse swapout; do
		env --default-signal=INT timeout --foreground --preserve-status -k 5 60 \
			$run -m 64G --pages thp --backing memfd "$GUESTS/vast" -- call=$call forever >"$scratch/out" 2>&1 &
		for _ in $(seq 400); do
			grep -q asking "$scratch/out" && break
			sleep 0.05
		done
		sleep 0.3
		pkill -INT -P $!
		wait $!
		got=$?
		if [ $got -eq 130 ] && grep -q 'asking' "$scratch/out"; then passed=$((passed + 1)); else
			failed=$((failed + 1))
			echo "FAIL: ctrl_c_ends_a_long_$call: status $got, wanted 130"
		fi
	done
	# Nobody reads: the pipe is full, the report cannot be written, and Ctrl-C still ends it.
	mkfifo "$scratch/full"
	exec 9<>"$scratch/full"
	timeout 1 dd if=/dev/zero of="$scratch/full" bs=4096 status=none
	env --default-signal=INT timeout --foreground --preserve-status -k 3 -s INT 2 $run --stats "$image" >"$scratch/out" 2>&9 9>&-
	got=$?
	exec 9>&-
	if [ $got -eq 130 ] && grep -q '0 failed' "$scratch/out"; then passed=$((passed + 1)); else
		failed=$((failed + 1))
		echo "FAIL: a_report_that_nobody_reads_can_be_interrupted: status $got, wanted 130"
	fi
	# It runs to its end (a machine stopped at the first failed write would not have spun 1 s), and says so.
	expect output_to_a_closed_pipe_does_not_end_the_guest 0 '^4$' bash -c \
		'{ sleep 0.3; "$@"; } | true; echo "${PIPESTATUS[0]}"' bash $run "$image"
	expect output_to_a_closed_pipe_is_told 0 'Broken pipe: what the guest said is lost; it reported success' bash -c \
		'{ sleep 0.3; "$@"; } | true' bash $run "$image"
	free=$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages 2>/dev/null || echo 0)
	if [ "$free" -lt 32768 ]; then
		expect too_few_hugepages 77 'need 32768 hugepages of 2M, .*echo [0-9]+ > ' \
			$run -m 64G --pages hugetlb "$image"
	else
		skip "too_few_hugepages: this host has $free"
	fi
else
	skip "no /dev/kvm or no guests in $GUESTS: images, stats and endings"
fi

# Somebody without rights, first without and then with descriptors passed by somebody who has them.
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null && [ -w /dev/kvm ] && [ -x "$GUESTS/hello" ]; then
	install -m 755 "$VMM" "$scratch/vmm" && install -m 644 "$GUESTS/hello" "$scratch/hello"
	chmod 755 "$scratch"
	nobody="setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all"
	# A node of our own: what is said depends on its rights. The group is told only where that is enough.
	mknod -m 660 "$scratch/node" c 10 232
	if unshare -m mount --bind "$scratch/node" /dev/kvm 2>/dev/null; then
		in_place='mount --bind "$0" /dev/kvm && "$@"'
		expect no_permission_names_the_group 77 'denied: join its group \(usermod -aG' \
			unshare -m sh -c "$in_place" "$scratch/node" $nobody "$scratch/vmm" run "$scratch/hello"
		chmod 600 "$scratch/node"
		expect no_permission_of_the_group_is_told 77 'its group may not use it: as root, chgrp kvm .* chmod 660' \
			unshare -m sh -c "$in_place" "$scratch/node" $nobody "$scratch/vmm" run "$scratch/hello"
	else
		skip "no_permission: no mount namespace of our own here"
	fi
	expect no_root_needed_with_a_passed_kvm 0 '0 failed' bash -c 'exec 7<>/dev/kvm; exec "$@"' bash \
		$nobody "$scratch/vmm" run --kvm-fd 7 --events own "$scratch/hello"
	if [ "$(cat /proc/sys/vm/unprivileged_userfaultfd)" = 0 ] && [ -e /dev/userfaultfd ] &&
		[ "$(stat -c %a /dev/userfaultfd)" = 600 ]; then
		expect no_userfaultfd_lists_what_was_tried 77 '/dev/userfaultfd: +Permission denied' bash -c \
			'exec 7<>/dev/kvm; exec "$@"' bash $nobody "$scratch/vmm" run --kvm-fd 7 "$scratch/hello"
		expect no_userfaultfd_names_the_way_without 77 '--source own' bash -c \
			'exec 7<>/dev/kvm; exec "$@"' bash $nobody "$scratch/vmm" run --kvm-fd 7 "$scratch/hello"
		# What it says, done to a node of our own; then it runs.
		cat >"$scratch/mend" <<-'SH'
			mount --bind "$0" /dev/userfaultfd || exit 1
			command=$("$@" 2>&1 </dev/null | sed -n 's/^  \(.*[^ ]\) *(Linux 6.1 or later)$/\1/p')
			echo "it says: $command"
			sh -c "$command" && "$@"
		SH
		dev=$(stat -c '%t %T' /dev/userfaultfd)
		# shellcheck disable=SC2086
		mknod -m 600 "$scratch/uffd" c $((0x${dev% *})) $((0x${dev#* }))
		expect the_command_for_userfaultfd_mends_it 0 '0 failed' bash -c 'exec 7<>/dev/kvm; exec "$@"' bash unshare -m \
			bash -c "$(cat "$scratch/mend")" "$scratch/uffd" $nobody "$scratch/vmm" run --kvm-fd 7 "$scratch/hello"
	else
		skip "no_userfaultfd: everybody may open one here"
	fi
	# USERFAULTFD_IOC_NEW by a language with ioctl, so that the descriptor comes from outside.
	if command -v perl >/dev/null && [ -e /dev/userfaultfd ]; then
		expect no_root_needed_with_both_passed 0 '0 failed' bash -c 'exec 7<>/dev/kvm; exec "$@"' bash \
			perl -e '
				use Fcntl;
				open(my $dev, "+<", "/dev/userfaultfd") or die "open: $!";
				my $fd = ioctl($dev, 0xAA00, 00004000) or die "ioctl: $!";
				open(my $uffd, "<&=", $fd + 0) or die "fdopen: $!";
				fcntl($uffd, F_SETFD, 0) or die "fcntl: $!";
				s/UFFD/$fd/ for @ARGV;
				exec(@ARGV) or die "exec: $!";
			' -- $nobody "$scratch/vmm" run --kvm-fd 7 --uffd-fd UFFD "$scratch/hello"
	else
		skip "no_root_needed_with_both_passed: no perl or no /dev/userfaultfd"
	fi
else
	skip "not root, or no setpriv: running as nobody"
fi

counts
