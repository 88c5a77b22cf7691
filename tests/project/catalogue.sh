#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# docs/catalogue.md: every row has a test or a reason with every source, and the page has the tests that there are.
set -u
passed=0 failed=0
# try NAME COMMAND...: the command must succeed.
try() {
	if "${@:2}"; then passed=$((passed + 1)); else
		echo "failed: $1"
		failed=$((failed + 1))
	fi
}
try 'no blank without a reason' tools/catalogue --names

# A row without a test or a reason, and a reason that is out of date, are both refused.
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
refuses() { # SED-SCRIPT WORDS [SED-SCRIPT OF THE ORACLE'S RESULTS [SED-SCRIPT OF THE PAGE]]
	local out
	mkdir -p "$tmp/tools" "$tmp/tests" "$tmp/vmm" "$tmp/docs" && cp tools/catalogue "$tmp/tools/" && cp vmm/oracle_rows.c "$tmp/vmm/" &&
		cp -r tests/unit tests/integration tests/model tests/race tests/kmod tests/oracle.tsv "$tmp/tests/"
	sed "$1" tests/catalogue.tsv >"$tmp/tests/catalogue.tsv"
	sed "${3-}" tests/oracle.tsv >"$tmp/tests/oracle.tsv"
	sed "${4-}" docs/catalogue.md >"$tmp/docs/catalogue.md"
	out=$("$tmp/tools/catalogue" --names 2>&1) && return 1
	grep -qF -- "$2" <<<"$out"
}
try 'a blank is refused' refuses 's/^83.*//;s/^57\t\(.*\)\tH\t/57\t\1\t-\t/' 'row 57, kernel and others: neither a test nor a reason'
try 'a reason where there is a test is refused' refuses 's/^17\t\([^\t]*\)\t-/17\t\1\tN/' 'row 17, own calls: reason N, but there is a test'
try 'a test that is gone is noticed' refuses 's/uffd::free_and_remove_raise_remove/uffd::gone/' 'there is no test uffd::gone'
try 'a row without a result of the oracle on some kernel is noticed' refuses '' 'row 17: the oracle said nothing on 6.12 npt=0' \
	'/^row\t17\t/s/6\.12 npt=0,//'
try 'a skip without its reason in docs/catalogue.md is noticed' refuses '' 'row 46, module: skipped, and not why' '' '/^- 46, module: /s/`: .*/`: /'
try 'a test that passed on one kernel alone has its reason in docs/catalogue.md' refuses '' 'row 40, module: skipped, and not why' '' '/^- 40, module: /d'

# What the tests of a run said: all passed, but for a test that the one who calls adds.
written() { # WORDS in the page or in the refusal
	tools/catalogue "$tmp/build" >"$tmp/page" 2>&1
	grep -qF -- "$1" "$tmp/page"
}
results_of_a_run() {
	rm -rf "$tmp/build" && mkdir -p "$tmp/build/check" "$tmp/build/kmod/6.1" "$tmp/build/kmod/6.12"
	sed -nE 's/^Test\(([a-z0-9_]+), *([a-z0-9_]+).*/ok - \1::\2/p' tests/unit/*.c tests/integration/*.c tests/model/*.c >"$tmp/build/check/all.tap"
	for f in tests/race/*.c; do printf 'race/%s\t1\t0\t0\t1\n' "${f##*/}"; done >"$tmp/build/check/results"
	: >"$tmp/build/check/skips"
	sed -nE 's/^\t\{ "(d[0-9]+_[a-z0-9_]+)",.*/ok - \1/p' tests/kmod/*.c | tee "$tmp/build/kmod/6.1/results" >"$tmp/build/kmod/6.12/results"
}
kmod_skips() { # KERNEL [REASON]: d46_guarded did, there
	sed -i "/^# skipped/d;s/^ok - d46_guarded.*/${2:+# skipped: $2\n}ok - d46_guarded # SKIP see above/" "$tmp/build/kmod/$1/results"
}
results_of_a_run
try 'where all passed, nothing was skipped' written 'Nothing.'
kmod_skips 6.1 'not there'
try 'what one kernel cannot do has its reason' written '- 46, module: `kmod::d46_guarded` passed on 6.12; on 6.1: not there'
kmod_skips 6.12 'too new'
try 'what no kernel can do has a reason for each' written '- 46, module: `kmod::d46_guarded`: on 6.1: not there; on 6.12: too new'
kmod_skips 6.12
try 'a test of the module that does not say why it was skipped is noticed' written 'row 46, module: kmod::d46_guarded was skipped, or not run, and does not say why'
results_of_a_run
sed -i '/d46_guarded/d' "$tmp/build/kmod/6.12/results"
try 'a test of the module that did not run is noticed' written 'row 46, module: kmod::d46_guarded was skipped, or not run, and does not say why'
rm "$tmp/build/kmod/6.12/results"
echo 'lab/kmod-6.12.sh: SKIP: no emulator' >"$tmp/build/check/skips"
try 'where a kernel of the lab was skipped as a whole, its reason is that of every row' written '- 1, module: `kmod::d1_split_of_a_thp` passed on 6.1; on 6.12: no emulator'
results_of_a_run
sed -i 's/^\(ok - kernel::d61_.*\)/\1  # SKIP no right to it/' "$tmp/build/check/all.tap"
try 'a skip on this host has its reason' written '- 61, kernel and others: `kernel::d61_soft_offline_moves_the_page`: no right to it'
sed -i 's/ # SKIP .*/ # SKIP/' "$tmp/build/check/all.tap"
try 'a skip on this host without a reason is noticed' written 'row 61, kernel and others: kernel::d61_soft_offline_moves_the_page was skipped, or not run, and does not say why'
try 'no result of the oracle is of a run that failed' [ -z "$(grep -vP '^row\t\d+\t[^\t]+\t(exact|wider|part|missed|quiet|needless|not run)\t' tests/oracle.tsv |
	grep -vP '^(#|kernel\t)')" ]

rows=$(sed '/^<!-- oracle begins/,$d' docs/catalogue.md | grep -cE '^\| [0-9]+ \|')
said=$(mktemp)
tools/catalogue --print >"$said" || echo failed >"$said"
try 'what the oracle said is in docs/catalogue.md (make lab-catalogue)' cmp -s "$said" <(sed -n '/^<!-- oracle begins/,/^<!-- oracle ends/p' docs/catalogue.md)
rm -f "$said"
try "82 rows in docs/catalogue.md ($rows)" [ "$rows" -eq 82 ]
unknown=$(grep -oE '`[a-z0-9_]+::[a-z0-9_]+`' docs/catalogue.md | tr -d '`' | sort -u | while IFS= read -r t; do
	case $t in
	race::*) [ -e "tests/race/${t#race::}.c" ] || echo "$t" ;;
	kmod::*) grep -qE "\b${t#kmod::}\b" tests/kmod/*.c || echo "$t" ;;
	*) grep -qE "^Test\(${t%%::*}, *${t##*::}\b" tests/unit/*.c tests/integration/*.c tests/model/*.c || echo "$t" ;;
	esac
done)
try "docs/catalogue.md names tests that are gone (make check catalogue): $unknown" [ -z "$unknown" ]
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
