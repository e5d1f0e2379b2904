#!/usr/bin/env bash
# style.sh: what a compiler does not say about the tree. Prints each finding as file:line; the last
# line counts the rules.
set -u
shopt -s lastpipe
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0

# Sources of this project, whether committed yet or not.
mapfile -t sources < <(find xen tools tests -type f \
                       \( -name '*.[ch]' -o -name '*.sh' -o -name '*.py' \) | sort)
mapfile -t code < <(printf '%s\n' "${sources[@]}" | grep '\.[ch]$')
mapfile -t texts < <(find docs README.md Config.mk .ci -type f 2>/dev/null | sort)

# rule NAME: findings on standard input.
rule() {
    local found
    found=$(head -n 20)
    if [ -n "$found" ]; then
        printf '%s:\n%s\n' "$1" "$found"
        failed=$((failed + 1))
    else
        passed=$((passed + 1))
    fi
}

grep -nP '\t' "${sources[@]}" | rule "tab instead of spaces"
grep -nP '[ \t]+$' "${sources[@]}" "${texts[@]}" | rule "blank at the end of a line"
grep -nP '\r$' "${sources[@]}" "${texts[@]}" | rule "carriage return"
awk 'length($0) > 100 && !/^\/\* LINK:/ { print FILENAME ":" FNR ": " length($0) " columns" }' \
    "${sources[@]}" | rule "line of more than 100 columns"
for f in "${sources[@]}" "${texts[@]}"; do
    [ -s "$f" ] && [ -n "$(tail -c 1 "$f")" ] && echo "$f"
done | rule "no newline at the end of the file"
# The words stand apart here, so that this line is not a finding.
words='\b(TO''DO|FIX''ME|XX''X|HA''CK|not impl''emented|unimpl''emented)\b'
grep -nP "$words" "${sources[@]}" Makefile Config.mk | rule "unfinished business"
grep -nP '\b(strcat|sprintf|vsprintf|gets|strtok|alloca|mktemp|tmpnam|atoll)\s*\(' "${code[@]}" \
    | rule "function with a safer sibling"
grep -nP '\bsystem\s*\(|\bpopen\s*\(' $(printf '%s\n' "${code[@]}" | grep '^tools/') /dev/null \
    | rule "shell in a tool"
grep -nP '^#define _GNU_SOURCE\s*$' $(printf '%s\n' "${code[@]}" | grep '^tools/') /dev/null \
    | rule "_GNU_SOURCE is set by Config.mk"
for f in $(printf '%s\n' "${code[@]}" | grep '^\(tools\|xen\)/.*\.h$'); do
    grep -q '^#ifndef [A-Z0-9_]*_H$' "$f" || echo "$f"
done | rule "header without guard"
# The decision cores read no clock and make no system call.
cores=()
for f in tools/libxl/remus_core.c tools/remus/compare*.c; do [ -f "$f" ] && cores+=("$f"); done
if [ ${#cores[@]} -gt 0 ]; then
    calls='clock_gettime|gettimeofday|time|rand|random|getrandom'
    calls="$calls|open|read|write|send|recv|poll|fork"
    grep -nP "\b($calls|printf)\s*\(" "${cores[@]}" |
        rule "system call, clock or chance in a decision core"
fi
# Style of braces: a function's opening brace stands alone.
grep -nP '^[a-z][A-Za-z0-9_ *]*\([^;]*\)\s*\{\s*$' "${code[@]}" |
    rule "function's brace on its line"

# Every option that a command's --help names has its place in the manual page.
check_options() { # SOURCE MAN
    [ -f "$1" ] && [ -f "$2" ] || return 0
    local option text
    text=$(MANWIDTH=500 man -E ASCII -l "$2" 2>/dev/null | col -bx)
    grep -oP '^ *"[ a-zA-Z-].*' "$1" | grep -P '^ *" {2,}(-|    --)' |
        grep -oP '(?<![A-Za-z-])--?[a-zA-Z][a-z-]*' | sort -u |
        while read -r option; do
            grep -qP -- "(^|[^A-Za-z-])$option([^A-Za-z-]|\$)" <<<"$text" ||
                echo "$2: $option of $1 is not described"
        done
}
{
    check_options tools/xl/options.c docs/man/xl-remus.1
    check_options tools/xl/cmd_receive.c docs/man/xl-remus-receive.1
    check_options tools/xl/cmd_status.c docs/man/xl-remus-status.1
} | rule "option without documentation"
for page in docs/man/*.[1578]; do
    [ -f "$page" ] && man --warnings -E UTF-8 -l -Tutf8 "$page" 2>&1 >/dev/null
done | rule "manual page with errors"

# Nothing of the machine it was written on: paths of a checkout, hosts of package mirrors.
here=$(pwd)
hosts=$(grep -rhoE 'https?://[^/ ]+' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null |
        sed -E 's,https?://,,' | sort -u)
{
    grep -nF -- "$here" "${sources[@]}" "${texts[@]}" Makefile
    for h in $hosts; do grep -nF -- "$h" "${sources[@]}" "${texts[@]}" Makefile; done
} | rule "path or host of this machine"

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
