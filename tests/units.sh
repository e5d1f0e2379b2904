#!/usr/bin/env bash
# units.sh BUILD: the units of systemd, as systemd reads them, with the programs of this build.
set -u
cd "$(dirname "$0")/.." || exit 1
build=$1
passed=0 failed=0

if ! command -v systemd-analyze > /dev/null; then
    echo "systemd-analyze is not on this machine: the units were not checked"
    echo "0 passed, 0 failed"
    exit 0
fi
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
make --no-print-directory -s O="$dir" SBINDIR="$(realpath "$build/bin")" \
    $(for f in tools/remus/systemd/*.in; do echo "$dir/units/$(basename "$f" .in)"; done) || exit 1
for unit in "$dir"/units/*; do
    # A template is checked as one of its instances.
    name=$(basename "$unit")
    instance=${name/@./@web1.}
    [ "$instance" = "$name" ] || mv "$unit" "$dir/units/$instance"
    text=$(systemd-analyze verify --man=no --recursive-errors=no "$dir/units/$instance" 2>&1)
    if [ -n "$text" ]; then
        echo "$name: $text"
        failed=$((failed + 1))
    else
        echo "ok $name"
        passed=$((passed + 1))
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
