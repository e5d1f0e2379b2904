#!/usr/bin/env python3
"""What a site puts around protection: hooks and gates, xenstore, firewalls."""

import os
import re
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
import test_arbiter  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402

INSTALL = True
HOOKS = "/etc/xen/remus.d"
TOLD = "/run/told"

# One that writes down what it was told, and, behind it, one that takes its time.
SLOW = "/run/slow"
HANGS = """#!/bin/sh
began=$(date +%%s.%%N)
sleep 8
echo $began $(date +%%s.%%N) >> %s
exit 3
""" % SLOW
WRITES = '#!/bin/sh\necho "$1 $REMUS_ROLE $REMUS_DOMAIN $REMUS_PEER" >> %s\n' % TOLD


def hook(lab, host, name, text):
    lab.execute(host, "mkdir -p %s && cat > %s/%s && chmod 755 %s/%s" %
                (HOOKS, HOOKS, name, HOOKS, name), stdin=text)


def told(lab, host):
    return [line.split() for line in
            lab.execute(host, "cat %s 2>/dev/null; true" % TOLD).stdout.splitlines()]


def wait_told(lab, host, event, timeout_s=30):
    wait(lambda: any(line[0] == event for line in told(lab, host)), timeout_s,
         "a hook on %s is told '%s'" % (host, event), 0.3)


@deadline(240)
def test_hooks_are_told_and_never_waited_for(lab):
    """On the copy's host each takes longer than the whole takeover."""
    for host in "ab":
        lab.execute(host, "rm -f %s %s" % (TOLD, SLOW))
        hook(lab, host, "50-write", WRITES)
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=1000, verify=False)
    session.wait_protected()
    wait_told(lab, "a", "protected")
    wait_told(lab, "b", "protected")
    hook(lab, "b", "90-slow", HANGS)
    client = lab.client(guest, long=50, ping=100)
    client.wait_answers(10)
    lab.kill("a")
    colo.wait_active(lab, "b", guest.name)
    client.wait_answers(10, timeout_s=60)
    client.stop_without_errors()
    wait_told(lab, "b", "failed-over", 60)
    # A host that falls silent is worth a word before it counts as lost.
    equal([line for line in told(lab, "b") if line[0] != "degraded"],
          [[event, "secondary", "g1", "a"] for event in ("protected", "fencing", "failed-over")],
          "told on b")
    log = lab.execute("b", "cat /var/log/xen/remus-g1.log").stdout
    check("hook 90-slow for 'fencing' failed: status 3" in log, log[-500:])
    # The takeover came while one was running.
    stamp = re.findall(r"^(\S+ \S+) warning: .*took over \d+ ms after", log, re.M)[-1]
    took_over = float(lab.execute("b", "date -d '%s' +%%s.%%N" % stamp).stdout)
    runs = [[float(word) for word in line.split()] for line in
            lab.execute("b", "cat " + SLOW).stdout.splitlines()]
    check(any(began < took_over < ended for began, ended in runs),
          "the takeover, at %.1f, and the slow hook: %s" % (took_over, runs))
    session.process.kill()


# Asks xenstored as the guest: type of the message, path, value.
ASK = r"""
ask() {
    end=
    [ $1 = 14 ] && end='\0'
    length=$((${#2} + 1 + ${#3} + ${#end} / 2))
    head="\\$(printf %%o $1)\0\0\0\7\0\0\0\0\0\0\0\\$(printf %%o $length)\0\0\0"
    exec 3<> /dev/xen/xenbus
    printf "$head%%s\0%%s$end" "$2" "$3" >&3
    dd bs=4096 count=1 <&3 2>/dev/null | tail -c +17 | tr '\0' ' '
    exec 3>&-
}
echo "name: $(ask 2 /local/domain/%(domid)d/name)"
echo "list: $(ask 1 /local/domain/%(domid)d/remus)"
for node in role state health lag answer request nothing; do
    echo "read $node: $(ask 2 /local/domain/%(domid)d/remus/$node)"
    echo "write $node: $(ask 11 /local/domain/%(domid)d/remus/$node failover)"
done
echo "write: $(ask 11 /local/domain/%(domid)d/remus failover)"
echo "remove: $(ask 13 /local/domain/%(domid)d/remus)"
echo "permissions: $(ask 14 /local/domain/%(domid)d/remus b%(domid)d)"
"""

GATE = """#!/bin/sh
[ -e /run/forbidden-$1 ] || exit 0
[ -s /run/forbidden-$1 ] && sleep 777
echo "not today"
exit 1
"""


def asked(lab, host, domid, request):
    """The answer to a request in xenstore."""
    node = "/local/domain/%d/remus" % domid
    lab.execute(host, "xenstore-rm %s/answer; xenstore-write %s/request '%s'" %
                (node, node, request), check=False)
    return wait(lambda: lab.execute(host, "xenstore-read %s/answer" % node,
                                    check=False).stdout.strip(), 40, "an answer", 0.3)


@deadline(400)
def test_xenstore_is_dom0s_and_gates_are_asked(lab):
    for host in "ab":
        hook(lab, host, "gate-test", GATE)
        lab.execute(host, "rm -f /run/forbidden-*")
    guest = lab.guest("a")

    # Protection may be forbidden on either host.
    for host in "ab":
        lab.execute(host, "touch /run/forbidden-begin")
        got = lab.execute("a", "xl remus --colo -F g1 b 2>&1", check=False, timeout_s=60)
        equal(got.returncode, 2, "status when %s forbids it" % host)
        check("gate-test forbids it: not today" in got.stdout, got.stdout)
        equal("b: gate" in got.stdout, host == "b", "where it was forbidden: " + got.stdout)
        lab.execute(host, "rm /run/forbidden-begin")

    session = colo.Session(lab, guest, interval_ms=1000, verify=False)
    session.wait_protected()
    domid = guest.domid("a")
    node = "/local/domain/%d/remus" % domid
    wait(lambda: lab.execute("a", "xenstore-read %s/health" % node).stdout.strip() == "ok", 20,
         "health is ok")

    # What is there, and for whom.
    lines = lab.execute("a", "xenstore-ls -fp %s" % node).stdout.splitlines()
    values = {}
    for line in lines:
        path, _, rest = line.partition(" = ")
        value, _, permissions = rest.rpartition(" ")
        equal(permissions.strip(), "(n0)", "permissions of " + line)
        values[path.rpartition("/")[2]] = value.strip().strip('"')
    equal(values["role"] + values["mode"] + values["peer"] + values["protected"],
          "primarycolob1", "values: %s" % values)
    check(int(values["lag"]) < 60000 and int(values["epoch"]) >= 1, values)

    # As the guest sees it.
    answers = dict(line.split(": ", 1) for line in
                   guest.run(ASK % {"domid": domid}).splitlines())
    equal(answers.pop("name").strip(), "g1", "the guest's name as it reads it")
    for question, answer in answers.items():
        equal(answer.strip(), "EACCES", question)

    # Figures for Prometheus.
    labels = '{domain="g1",peer="b",role="primary"} '
    text = lab.execute("a", "xl remus-status --prometheus").stdout
    for line in ("xen_remus_protected" + labels + "1", "xen_remus_health" + labels + "2",
                 "# TYPE xen_remus_checkpoints_total counter"):
        check(line + "\n" in text, "no '%s' in: %s" % (line, text))
    shown = lab.execute("a", "timeout 10 xl remus-status --watch g1; true").stdout
    check(shown.count("primary") > 1, "shown once a second: '%s'" % shown)

    # Watching.
    lab.execute("a", "timeout 20 xenstore-watch -n 4 %s/lag" % node)

    # Requests.
    check("refused: a mode is" in asked(lab, "a", domid, "mode nonsense"), "an unknown mode")
    check("a request is" in asked(lab, "a", domid, "x" * 3000), "nonsense")
    lab.execute("a", "touch /run/forbidden-switch /run/forbidden-stop")
    equal(asked(lab, "a", domid, "failover"), "refused: gate-test forbids it: not today", "answer")
    got = lab.execute("a", "xl remus-stop g1 2>&1", check=False)
    equal((got.returncode, "not today" in got.stdout), (2, True), got.stdout)
    # One that hangs is no answer: no for a switch, yes for a stop.
    lab.execute("a", "echo x > /run/forbidden-switch; echo x > /run/forbidden-stop")
    before = session.status()["epoch"]
    check("gives no answer" in asked(lab, "a", domid, "failover"), "answer of one that hangs")
    check(session.status()["epoch"] > before, "no checkpoint while a gate is asked")
    lab.execute("a", "xl remus-stop g1", timeout_s=120)
    equal(session.wait_end(), 0, "exit status of xl remus")
    colo.check_nothing_left(lab, "a", guest)


def answers(client):
    return sum(c["answers"] for c in client.status().values())


@deadline(240)
def test_a_firewall_reload_lets_nothing_out(lab):
    """`nft flush ruleset` on the host of the guest, with nobody there to notice it, and again."""
    guest = lab.guest("a")
    # It stops itself between two checkpoints: in one, the copy's output is of an epoch before.
    session = colo.Session(lab, guest, interval_ms=2000, verify=False, timeout_ms=20000,
                           env="REMUS_TEST_STOP_AT='run 6+'")
    session.wait_protected()
    client = lab.client(guest, long=50, ping=50)
    colo.wait_stopped_worker(lab, "a")
    worker = colo.worker_pid(lab, "a")
    try:
        before = answers(client)
        wait(lambda: answers(client) > before + 10, 20, "output is compared without coordinator")
        captures = test_arbiter.Captures(lab, guest)
        lab.execute("a", "nft flush ruleset")
        flushed = time.time()
        time.sleep(2)
        late = [what for time_s, what, _ in captures.frames("a") if time_s > flushed]
        check(not late, "%d frames after the flush, the first: %s" % (len(late), late[:1]))
    finally:
        lab.execute("a", "kill -CONT %d" % worker)
    wait(lambda: "they are back" in session.log(), 20, "the rules are back", 0.2)
    client.wait_answers(10, timeout_s=60)
    epoch = session.status()["epoch"]
    # With everybody there; and less than the table, which has to be made again as a whole.
    for count, command in ((2, "nft flush ruleset"), (3, "nft flush chain bridge remus output"),
                           (4, "nft delete table bridge remus")):
        lab.execute("a", command)
        wait(lambda n=count: session.log().count("they are back") == n, 20,
             "the rules are back after " + command, 0.2)
        client.wait_answers(10, timeout_s=60)
    wait(lambda: session.status()["epoch"] > epoch, 30, "checkpoints go on", 0.5)
    client.stop_without_errors()
    equal(session.stop(), 0, "exit status of xl remus")
    colo.check_nothing_left(lab, "a", guest)


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
