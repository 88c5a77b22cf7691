#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# The documents agree with the code: invariants have the checker's numbers, links lead somewhere, exit codes and options are vmm's.
set -u
passed=0 failed=0
# same WHAT A B: two lists, one word a line
same() {
	if diff <(echo "$2" | sort -u) <(echo "$3" | sort -u) >/dev/null && [ -n "$2" ]; then
		passed=$((passed + 1))
	else
		echo "$1 differ:"
		diff <(echo "$2" | sort -u) <(echo "$3" | sort -u)
		failed=$((failed + 1))
	fi
}
same 'invariants of the checker (<) and of docs/invariants.md (>)' \
	"$(grep -ohE '"I[0-9]+:' shadow/core/*.c | tr -d '":')" \
	"$(grep -oE '^\| I[0-9]+ ' docs/invariants.md | tr -d '| ')"
same 'invariants that umbra_check verifies (<) and those of the document (>)' \
	"$(grep -ohE '"I[0-9]+:' shadow/core/check.c | tr -d '":')" \
	"$(grep -oE '^\| I[0-9]+ ' docs/invariants.md | tr -d '| ')"
codes=$(sed -n 's/^\tVMM_EXIT_[A-Z_]* = \([0-9]*\).*/\1/p' include/abi/guest.h)
same 'exit codes of guest.h (<) and README.md (>)' "$codes" \
	"$(sed -n '/^| exit |/,/^$/s/^| \([0-9]*\) |.*/\1/p' README.md)"
same 'exit codes of guest.h (<) and vmm(1) (>)' "$codes" \
	"$(sed -n '/^\.SH EXIT STATUS/,/^\.SH FILES/{/^\.TP/{n;p}}' docs/man/vmm.1)"

broken=
while IFS=: read -r file target; do
	target=${target%%#*}
	[ -z "$target" ] || [ -e "$(dirname "$file")/$target" ] || broken+=" $file:$target"
done < <(grep -oHE '\]\([^)h][^)]*\)' README.md docs/*.md | sed 's/:\](\(.*\))$/:\1/')
if [ -z "$broken" ]; then passed=$((passed + 1)); else
	echo "links that lead nowhere:$broken"
	failed=$((failed + 1))
fi

missing=
for t in $(awk -F ':.*##@ ' '/^[a-z-]+:.*##@ /{ print $1 }' Makefile); do
	"$MAKE" --no-print-directory BUILD="$BUILD" help | grep -qE "^  $t " || missing+=" $t"
done
for t in all run check format check-layers install clean help; do
	"$MAKE" --no-print-directory BUILD="$BUILD" help | grep -qE "^  $t " || missing+=" $t"
done
if [ -z "$missing" ]; then passed=$((passed + 1)); else
	echo "make help does not list:$missing"
	failed=$((failed + 1))
fi
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
