#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# What a guest of the lab's long run was skipped for comes into the table of docs/lab.md: once for each reason, with the
# guest's command, and with the kernels it was so on. Nothing is run here but what stands for vmm.
set -u
. "$(dirname "$0")/common"

: >"$scratch/lab.md"
what_was_said() { tail -n 20 "$scratch/log" "$scratch/lab.md"; }

# One skips by what it prints, one by its exit code, and one is skipped for what the emulator does.
mkdir -p "$scratch/build/guests" "$scratch/build/lab/long" "$scratch/tree/docs" "$scratch/tree/tools/lab"
cat >"$scratch/build/vmm" <<'VMM'
#!/bin/bash
case "$*" in
*guests/escape\ --\ list) printf '1 %s CRASH\n' flush_window peek && printf '%s peek CRASH\n' 4 7 10 ;;
*guests/escape*) echo "trying peek," && exit 3 ;;
*guests/swap) echo "the machine starts" && echo "SKIP: the host has no swap" && echo "the machine ends" ;;
*guests/vast) echo "no room for it here" && exit 77 ;;
*guests/verify) echo "ok - kept" && echo "FAIL - not kept" ;;
*) echo "ok - done" ;;
esac
VMM
chmod +x "$scratch/build/vmm"
long() { # long SUITES...
	BUILD=$scratch/build ONLY=$* MODULE='' tests/lab/long_inside >"$scratch/log" 2>/dev/null
}
line() { grep -qxF -- "$(printf '%b' "$1")" "$scratch/log"; }

long guests
verdict a_skip_by_words line 'skip\tguests\tswap -c 2: the host has no swap'
verdict each_run_has_its_own line 'skip\tguests\tswap -c 2 --backing memfd --pages thp --chaos rate=20,seed=1: the host has no swap'
verdict a_skip_by_exit_code line 'skip\tguests\tvast -c 2: no room for it here'
verdict a_skip_for_the_emulator line 'skip\tguests\tescape: QEMU emulates these otherwise than a processor: flush_window'
verdict people_are_told_too line 'SKIP: swap -c 2: the host has no swap'
verdict as_many_reasons_as_skips \
	[ "$(grep -c '^skip' "$scratch/log")" = "$(awk -F '\t' '$1 == "result" { print $5 }' "$scratch/log")" ]
verdict what_failed_is_no_skip [ "$(awk -F '\t' '$1 == "result" { print $4 }' "$scratch/log")" = 3 ]

# The table is made where docs/lab.md is a copy.
cp tools/lab/long "$scratch/tree/tools/lab/long"
cp docs/lab.md "$scratch/tree/docs/lab.md"
cp "$scratch/log" "$scratch/build/lab/long/6.12.npt=1"
long disturbed
verdict no_module line 'skip\tdisturbed\tall of it: the kernel module was not built'
cp "$scratch/log" "$scratch/build/lab/long/6.1.npt=0"
BUILD=$scratch/build "$scratch/tree/tools/lab/long" --table >"$scratch/log" 2>&1
cp "$scratch/tree/docs/lab.md" "$scratch/lab.md"
verdict the_table_has_the_reason grep -qxF -- '- guests: swap -c 2: the host has no swap (6.12 npt=1)' "$scratch/lab.md"
verdict the_table_has_the_other_kernel \
	grep -qxF -- '- disturbed: all of it: the kernel module was not built (6.1 npt=0)' "$scratch/lab.md"

# In the short runs nobody reads such lines.
(
	. tests/lab/inside_common
	BUILD=$scratch/build guest swap -c 1
	rm -f "$log"
) >"$scratch/log"
verdict not_without_a_table [ "$(cat "$scratch/log")" = "SKIP: swap -c 1: the host has no swap" ]

counts
