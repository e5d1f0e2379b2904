#!/usr/bin/env bash
# ocf.sh BUILD: the resource agent for Pacemaker: ocf-tester, then what it does in each situation,
# on a host of files (tests/ocf/xl).
set -u
cd "$(dirname "$0")/.." || exit 1
build=$1
passed=0 failed=0

if ! command -v ocf-tester >/dev/null; then
    echo "ocf-tester (resource-agents) is not on this machine: the agent was not checked"
    echo "0 passed, 0 failed"
    exit 0
fi
WORLD=$(mktemp -d) || exit 1
export WORLD
trap 'rm -rf "$WORLD"' EXIT
make --no-print-directory -s O="$build" "$build/ocf/remus" || exit 1
# The tester looks at it as somebody who is not root.
chmod 755 "$WORLD"
cp "$build/ocf/remus" "$WORLD/remus-agent"
agent=$WORLD/remus-agent
bin=$WORLD/bin
node=$(uname -n)

mkdir -p "$bin" "$WORLD/run"
cp tests/ocf/xl tests/ocf/crm_attribute tests/ocf/attrd_updater "$bin"
export OCF_ROOT=/usr/lib/ocf HA_SBIN_DIR=$bin HA_LOGFACILITY=none HA_LOGFILE=$WORLD/log
export HA_logfile=$WORLD/log OCF_RESOURCE_INSTANCE=web1 OCF_RESKEY_crm_feature_set=3.16.2
export OCF_RESKEY_domain=web1 OCF_RESKEY_config=$WORLD/web1.cfg OCF_RESKEY_xl=$bin/xl
export OCF_RESKEY_rundir=$WORLD/run OCF_RESKEY_logdir=$WORLD/run
export OCF_RESKEY_hosts="$node=10.0.0.1 other=10.0.0.2"
export OCF_RESKEY_CRM_meta_timeout=12000
PATH=$bin:$PATH

result() { # NAME STATUS
    if [ "$2" = 0 ]; then
        echo "ok $1"
        passed=$((passed + 1))
    else
        echo "not ok $1"
        tail -n 5 "$WORLD/log" "$WORLD/calls" 2>/dev/null
        failed=$((failed + 1))
    fi
}

end_keepers() {
    local file pid
    for file in "$WORLD"/run/*.pid; do
        pid=$(cat "$file" 2>/dev/null) && kill "$pid" 2>/dev/null
    done
    rm -f "$WORLD/session"
    sleep 0.3
}

fresh() {
    end_keepers
    rm -rf "$WORLD"/{run,here,attributes,session,remus,calls,score,log,there}
    mkdir -p "$WORLD/run" "$WORLD/here" "$WORLD/attributes"
    echo 2.1.5 >"$WORLD/attributes/dc-version"
    echo 'name = "web1"' >"$WORLD/web1.cfg"
    : >"$WORLD/calls"
}

# does STATUS ACTION [NAME=VALUE...]: the agent's action ends with this status.
does() {
    local want=$1 action=$2 got
    shift 2
    env "$@" "$agent" "$action" >>"$WORLD/log" 2>&1
    got=$?
    [ "$got" = "$want" ] || echo "$action: status $got, not $want" >>"$WORLD/log"
    [ "$got" = "$want" ]
}

called() { grep -q "^$1\$" "$WORLD/calls"; }
score() { [ "$(cat "$WORLD/score" 2>/dev/null)" = "$1" ]; }
newest() { [ "$(cat "$WORLD/attributes/remus-newest-web1" 2>/dev/null)" = "$1" ]; }
within() { # SECONDS COMMAND...
    local i
    for ((i = 0; i < $1 * 10; i++)); do
        "${@:2}" && return 0
        sleep 0.1
    done
    return 1
}
has_session() { [ -e "$WORLD/session" ]; }

# ---- The tester of the resource agents' own project ----

rm -rf "$WORLD/attributes"
mkdir -p "$WORLD/here"
echo 'name = "web1"' >"$WORLD/web1.cfg"
ocf-tester -n web1 -o domain=web1 -o config="$WORLD/web1.cfg" -o xl="$bin/xl" \
    -o rundir="$WORLD/run" -o logdir="$WORLD/run" -o hosts="$OCF_RESKEY_hosts" "$agent" \
    >"$WORLD/tester" 2>&1
status=$?
grep -q 'passed all tests' "$WORLD/tester" || status=1
[ "$status" = 0 ] || cat "$WORLD/tester"
result "ocf-tester" "$status"

# ---- Situations ----

fresh
does 7 monitor && does 0 start && does 0 monitor && score 10 && ! called 'create.*'
result "a node that was started is ready, and has no guest" $?

fresh
does 0 start && does 0 promote && called "create -q $WORLD/web1.cfg" && newest "$node" &&
    score 1000 && within 5 has_session && called 'remus --colo --keep-trying web1 10.0.0.2' &&
    does 8 monitor OCF_RESKEY_CRM_meta_role=Promoted
result "promoting creates the guest once, and protects it" $?

does 0 demote OCF_RESKEY_CRM_meta_notify_promote_uname=' ' && called 'shutdown web1' &&
    ! called 'remus-switch web1' && does 0 monitor &&
    score 10 && within 5 eval '! has_session' && does 0 stop && does 7 monitor
result "demoting without a move shuts the guest down" $?

fresh
does 0 start && does 0 promote && within 5 has_session &&
    does 0 demote OCF_RESKEY_CRM_meta_notify_promote_uname=other && called 'remus-switch web1' &&
    ! called 'shutdown web1' && does 0 monitor
result "a move hands the guest over" $?

fresh
echo other >"$WORLD/attributes/remus-newest-web1"
does 0 start && ! score 10 && does 1 promote && ! called 'create.*' &&
    does 0 promote OCF_RESKEY_shared_disks=true && called 'create.*' && newest "$node"
result "a guest is not created from old disks" $?

fresh
does 0 start
echo 500 >"$WORLD/there"
does 1 promote OCF_RESKEY_shared_disks=true OCF_RESKEY_CRM_meta_timeout=3000 &&
    echo 1000 >"$WORLD/there" &&
    does 1 promote OCF_RESKEY_shared_disks=true OCF_RESKEY_CRM_meta_timeout=3000 &&
    ! called 'create.*' && echo 10 >"$WORLD/there" &&
    does 0 promote OCF_RESKEY_shared_disks=true && called 'create.*'
result "a guest is not created beside one that took over on the other node" $?

fresh
does 0 start && does 0 notify && ! newest "$node"
echo run >"$WORLD/here/web1"
echo "primary protected" >"$WORLD/session"
does 0 notify && ! newest "$node" && echo unprotected >"$WORLD/session" && does 0 notify &&
    newest "$node" && score 1000
result "a takeover is made known before the cluster's next step" $?

fresh
does 0 start
echo 5 >"$WORLD/remus"
does 0 promote && within 5 test -s "$WORLD/run/ocf-web1.ended" && newest other
result "a guest that was lost to its copy leaves the newest disks there" $?

fresh
does 0 start
echo run >"$WORLD/here/web1--incoming"
echo "secondary protected" >"$WORLD/session"
does 0 monitor OCF_RESKEY_CRM_meta_role=Unpromoted && score 500
result "a node with a whole copy is a good place" $?

(
    sleep 1.5
    rm -f "$WORLD/session"
    mv "$WORLD/here/web1--incoming" "$WORLD/here/web1"
) &
does 0 promote OCF_RESKEY_CRM_meta_timeout=30000 && ! called 'create.*' && newest "$node" &&
    score 1000
result "promoting waits for the copy to take over" $?
wait

fresh
does 0 start
echo other >"$WORLD/attributes/remus-newest-web1"
echo run >"$WORLD/here/web1--incoming"
(
    sleep 0.5
    rm "$WORLD/here/web1--incoming"
) &
does 1 promote && ! called 'create.*'
result "a copy that was denied is not replaced by an old guest" $?
wait

fresh
does 0 start
echo run >"$WORLD/here/web1"
does 0 monitor OCF_RESKEY_CRM_meta_role=Unpromoted OCF_RESKEY_CRM_meta_interval=11000 &&
    score 1000 && newest "$node" && within 5 has_session
result "a takeover is made known, and the guest protected again" $?

fresh
echo run >"$WORLD/here/web1"
does 8 monitor OCF_RESKEY_CRM_meta_interval=0 && ! called 'remus .*'
result "a probe finds a guest that runs, and changes nothing" $?

fresh
does 0 start
echo 5 >"$WORLD/remus"
does 0 promote && within 5 test -s "$WORLD/run/ocf-web1.ended" &&
    does 9 monitor OCF_RESKEY_CRM_meta_role=Promoted && does 0 demote && called 'destroy web1' &&
    ! called 'shutdown web1' && does 0 monitor
result "a guest that was lost to its copy is destroyed" $?

fresh
does 0 start && does 0 promote OCF_RESKEY_heartbeat_hosts="other=10.1.0.2:7 $node=10.1.0.1" &&
    within 5 has_session &&
    called 'remus --colo --keep-trying --heartbeat-address 10.1.0.2:7 web1 10.0.0.2'
result "a second network is told of" $?

fresh
does 0 start && does 0 promote
echo crashed >"$WORLD/here/web1"
does 9 monitor OCF_RESKEY_CRM_meta_role=Promoted
result "a crashed guest is a failure" $?

fresh
does 0 start && does 0 promote
(
    sleep 0.5
    echo run >"$WORLD/here/web1"
) &
rm "$WORLD/here/web1"
does 8 monitor OCF_RESKEY_CRM_meta_role=Promoted
result "a guest that reboots is none" $?
wait

fresh
does 0 start && does 0 promote
echo hangs >"$WORLD/here/web1"
does 0 stop OCF_RESKEY_CRM_meta_timeout=3000 && called 'shutdown web1' && called 'destroy web1' &&
    does 7 monitor
result "a guest that does not shut down is destroyed in time" $?

fresh
does 0 start
echo run >"$WORLD/here/web1--incoming"
echo secondary >"$WORLD/session"
does 0 stop && called 'remus-stop web1' && [ ! -e "$WORLD/here/web1--incoming" ]
result "stopping a node gives its copy up" $?

fresh
does 6 validate-all OCF_RESKEY_hosts="$node=10.0.0.1" &&
    does 6 validate-all OCF_RESKEY_hosts="a=1 b=2" &&
    does 6 validate-all OCF_RESKEY_hosts="$node=1 $node=2" &&
    does 6 validate-all OCF_RESKEY_heartbeat_hosts="$node=1 c=" &&
    does 6 validate-all OCF_RESKEY_domain='a b' && does 6 validate-all OCF_RESKEY_domain= &&
    does 5 validate-all OCF_RESKEY_config=/nowhere && does 5 validate-all OCF_RESKEY_xl=/nowhere &&
    does 0 validate-all && does 3 nonsense && does 7 monitor OCF_RESKEY_hosts=x \
    OCF_RESKEY_CRM_meta_interval=0
result "wrong parameters are refused" $?

if command -v xmllint >/dev/null; then
    "$agent" meta-data | xmllint --noout - 2>>"$WORLD/log"
    result "meta-data is well-formed" $?
fi
end_keepers
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
