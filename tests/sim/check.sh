#!/bin/sh
# check.sh [SIM [SEEDS [MANY]]]: in MANY seeds the simulator finds nothing in the protocol as it is;
# in SEEDS it finds every deliberate bug that it knows how to make.
set -eu

sim=${1:-${BUILD:-build}/tests/sim/sim}
seeds=${2:-5000}
many=${3:-30000}
status=0

"$sim" --seeds "1-$many" || exit 1

for bug in release-before-ack no-hold partial-apply first-epoch-free no-resume no-echo \
           late-suspend clock-stops promise stop-ignored bitmap-lost no-compare ack-early \
           disk-early disk-commit-all disk-overlay; do
    if found=$("$sim" --seeds "1-$seeds" --break "$bug"); then
        echo "NOT CAUGHT: $bug"
        status=1
    else
        echo "caught $bug: $found"
    fi
done
exit $status
