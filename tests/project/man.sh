#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Man pages format without a warning; libumbra(3) names every exported function; vmm(1) every option of vmm.
passed=0 failed=0 skipped=0
ok() { passed=$((passed + 1)); }
bad() {
	echo "$*"
	failed=$((failed + 1))
}
for page in docs/man/*.[1-9]; do
	warnings=$(groff -man -Tutf8 -ww -z "$page" 2>&1)
	if [ -z "$warnings" ]; then ok; else bad "$page: $warnings"; fi
done
missing=
for f in $(sed -n 's/^\t\(umbra_.*\);/\1/p' "$BUILD/umbra.map"); do
	grep -qE "\\b$f\\b" docs/man/*.3 || missing+=" $f"
done
if [ -z "$missing" ]; then ok; else bad "not in docs/man/*.3:$missing"; fi
if [ -x "$VMM" ]; then
	options=$("$VMM" run --help 2>&1 | grep -oE '(^|[ ,[])--[a-z][a-z-]+' | grep -oE -- '--[a-z-]+' | sort -u)
	missing=
	for o in $options; do
		sed 's/\\-/-/g' docs/man/vmm.1 | grep -qF -- "$o" || missing+=" $o"
	done
	[ -n "$options" ] || bad "vmm run --help shows no option"
	if [ -z "$missing" ]; then ok; else bad "not in docs/man/vmm.1:$missing"; fi
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
