#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# clang-format would change nothing. Other versions than Debian 12's format differently.
version=$("${CLANG_FORMAT:-clang-format}" --version 2>/dev/null | grep -oE '[0-9]+' | head -n 1)
if [ "$version" != 14 ]; then
	echo "SKIP: the layout is that of clang-format 14, here is ${version:-none}"
	exit 77
fi
exec "$MAKE" --no-print-directory BUILD="$BUILD" check-format
