#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# tools/deps: silent when all is there; without root it names the one command and fails; with root it installs, and
# fetches package lists only when the first try failed. dpkg-query, id and apt-get are stand-ins here: nothing is installed.
set -u
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
check() {
	local what=$1
	shift
	if "$@"; then passed=$((passed + 1)); else
		echo "$what: no; it said: $out (exit $code)"
		failed=$((failed + 1))
	fi
}
stub() { printf '#!/bin/sh\n%s\n' "$2" >"$tmp/$1" && chmod +x "$tmp/$1"; }
run() {
	out=$(PATH=$tmp:$PATH tools/deps check 2>&1)
	code=$?
}
# as dpkg-query -W -f '${db:Status-Abbrev}${Package} '
stub dpkg-query "printf 'ii %s ' $(tools/deps list | tr '\n' ' ')"
stub apt-get "echo \"\$1\" >>$tmp/apt.log; exit 1"
stub id 'echo 1000'
run
check 'all there: silent' test -z "$out"
check 'all there: exit 0' test $code -eq 0
stub dpkg-query "printf 'ii %s ' $(tools/deps list | grep -v libseccomp-dev | tr '\n' ' '); printf 'rc libseccomp-dev '"
run
check 'missing, no root: fails' test $code -ne 0
check 'missing, no root: the command' grep -q 'sudo apt-get install -y libseccomp-dev$' <<<"$out"
check 'missing, no root: apt-get is not called' test ! -e "$tmp/apt.log"
stub id 'echo 0'
run
check 'root, apt-get fails: fails' test $code -ne 0
check 'root, first try failed: update, in this order' test "$(head -n 2 "$tmp/apt.log" | tr '\n' ' ')" = 'install update '
stub apt-get "echo \"\$1\" >>$tmp/apt.log"
rm -f "$tmp/apt.log"
run
check 'root: installed' test $code -eq 0
check 'root, first try worked: no update' test "$(cat "$tmp/apt.log")" = install
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
