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
refuses() { # SED-SCRIPT WORDS [SED-SCRIPT OF THE ORACLE'S RESULTS]
	local out
	mkdir -p "$tmp/tools" "$tmp/tests" "$tmp/vmm" && cp tools/catalogue "$tmp/tools/" && cp vmm/oracle_rows.c "$tmp/vmm/" &&
		cp -r tests/unit tests/integration tests/model tests/race tests/kmod tests/oracle.tsv "$tmp/tests/"
	sed "$1" tests/catalogue.tsv >"$tmp/tests/catalogue.tsv"
	[ $# -lt 3 ] || sed "$3" tests/oracle.tsv >"$tmp/tests/oracle.tsv"
	out=$("$tmp/tools/catalogue" --names 2>&1) && return 1
	grep -qF -- "$2" <<<"$out"
}
try 'a blank is refused' refuses 's/^83.*//;s/^57\t\(.*\)\tH\t/57\t\1\t-\t/' 'row 57, kernel and others: neither a test nor a reason'
try 'a reason where there is a test is refused' refuses 's/^17\t\([^\t]*\)\t-/17\t\1\tN/' 'row 17, own calls: reason N, but there is a test'
try 'a test that is gone is noticed' refuses 's/uffd::free_and_remove_raise_remove/uffd::gone/' 'there is no test uffd::gone'
try 'a row without a result of the oracle on some kernel is noticed' refuses '' 'row 17: the oracle said nothing on 6.12 npt=0' \
	'/^row\t17\t/s/6\.12 npt=0,//'
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
