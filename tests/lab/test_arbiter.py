#!/usr/bin/env python3
"""Who goes on when the hosts lose each other: never both, and somebody always."""

import os
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402

INSTALL = True
SLEEP_S = 4     # less than the timeout


def parse_frames(text):
    """Of tcpdump -tt -n -x: when, what it is, and its bytes."""
    frames = []
    for line in text.splitlines():
        if line.startswith("\t"):
            frames[-1][2] += line.split(":", 1)[1]
        elif line:
            frames.append(line.split(" ", 1) + [""])
    return [(float(time_s), what, data) for time_s, what, data in frames]


class Captures:
    """What each host sends of the guest's to the client network, and when."""

    def __init__(self, lab, guest):
        self.lab, self.mac = lab, lab.guest_addresses(guest.name)[1]
        self.files = {host: lab.capture_start(host + "-client") for host in "ab"}

    def frames(self, host):
        self.lab.capture_stop(host + "-client")
        return parse_frames(subprocess.run(
            ["tcpdump", "-tt", "-n", "-x", "-r", self.files[host], "ether", "src", self.mac],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True).stdout)

    def check_one_speaks(self, winner, under_way=()):
        """The loser sends nothing after the winner's first; a winner that spoke from the
        beginning is never joined. under_way: what the loser's network card had by then."""
        frames = {host: self.frames(host) for host in "ab"}
        loser = "b" if winner == "a" else "a"
        check(frames[winner], "no frame of the guest's from " + winner)
        first = frames[winner][0][0]
        late = [what for time_s, what, data in frames[loser]
                if time_s >= first and data not in under_way]
        check(not late, "%s spoke after %s: %d frames, the first: %s" %
              (loser, winner, len(late), late[:1]))


def winner_of(lab, session, guest, timeout_s=90):
    """The side that goes on: `xl remus` has ended, and there is one guest."""
    status = session.wait_end(timeout_s)
    check(status in (3, 5), "exit status of xl remus: %d: %s" % (status, session.log()[-400:]))
    winner = "a" if status == 3 else "b"
    wait(lambda: guest.domid(winner) is not None, 30, "the guest on " + winner)
    loser = "b" if winner == "a" else "a"
    wait(lambda: "g1" not in lab.execute(loser, "xl list", timeout_s=30).stdout, 60,
         "no guest on " + loser)
    return winner


@deadline(240)
def test_a_cut_link_leaves_exactly_one_side(lab):
    witness = lab.witness()
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=1000, arbiter=witness.spec, verify=False)
    session.wait_protected()
    captures = Captures(lab, guest)
    client = lab.client(guest, long=100, short=300, ping=200)
    client.wait_answers(8)
    lab.cut("repl")
    winner = winner_of(lab, session, guest)
    client.wait_answers(10, timeout_s=60)
    client.stop_without_errors()
    captures.check_one_speaks(winner)
    if winner == "a":
        colo.check_nothing_left(lab, "a", guest)


@deadline(300)
def test_without_a_witness_nobody_speaks_until_there_is_one(lab):
    witness = lab.witness()
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=1000, arbiter=witness.spec, verify=False)
    session.wait_protected()
    captures = Captures(lab, guest)
    client = lab.client(guest, long=100, ping=200)
    client.wait_answers(8)
    witness.kill()
    lab.cut("repl")
    wait(lambda: "no answer" in session.log(), 60, "a asks in vain")
    wait(lambda: "no answer" in lab.execute("b", "cat /var/log/xen/remus-g1.log").stdout, 60,
         "b asks in vain")
    before = {name: c["answers"] for name, c in client.status().items()}
    time.sleep(3)
    equal({name: c["answers"] for name, c in client.status().items()}, before, "answers")
    witness.start()
    winner = winner_of(lab, session, guest)
    client.wait_answers(10, timeout_s=60)
    client.stop_without_errors()
    captures.check_one_speaks(winner)


@deadline(300)
def test_a_host_that_wakes_up_late_says_nothing(lab):
    """Frozen for longer than the timeout, with output and verdicts under way."""
    witness = lab.witness()
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=1000, arbiter=witness.spec, verify=False,
                           options="--bypass icmp")
    session.wait_protected()
    captures = Captures(lab, guest)
    client = lab.client(guest, long=30, short=100, udp=50)
    client.wait_answers(20)
    # Nobody's verdict lets these out: only the kernel can stop them.
    guest.run("(while :; do ping -c 1 -w 1 10.77.0.100; done) > /dev/null 2>&1 &")
    # A card goes on sending what it has when its host stops: here it stops with it, and sends that
    # when the host wakes. So what counts is when the kernel gave the card a frame.
    lab.spawn("a", "rm -f /run/given.pcap; exec tcpdump -i client -Q out --immediate-mode -U "
              "-w /run/given.pcap ether src " + captures.mac, name="tcpdump")
    wait(lambda: lab.execute("a", "test -s /run/given.pcap", check=False).returncode == 0, 30,
         "tcpdump on a")
    client.wait_answers(10)
    lab.freeze("a")
    colo.wait_active(lab, "b", guest.name)
    client.wait_answers(10, timeout_s=60)
    lab.thaw("a")
    equal(session.wait_end(90), 5, "exit status of xl remus on the host that slept")
    check(guest.domid("a") is None, "the guest that slept is still there")
    client.wait_answers(10, timeout_s=60)
    client.stop_without_errors()
    lab.execute("a", "pkill -x tcpdump; while pgrep -x tcpdump; do sleep 0.1; done")
    given = parse_frames(lab.execute("a", "tcpdump -tt -n -x -r /run/given.pcap").stdout)
    # It sent some every second; its clock went on while it slept.
    after = [what for i, (time_s, what, _) in enumerate(given)
             if i and time_s > given[i - 1][0] + SLEEP_S]
    check(len(given) > 10 and not after, "a's kernel let out a frame after its sleep: %s" % after)
    captures.check_one_speaks("b", {data for _, _, data in given})


@deadline(300)
def test_an_operator_decides(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=1000, arbiter="manual", verify=False)
    session.wait_protected()
    captures = Captures(lab, guest)
    client = lab.client(guest, long=100, ping=200)
    client.wait_answers(8)
    lab.cut("repl")
    nodes = "xenstore-ls -f /tool/remus"
    for host in "ab":
        wait(lambda: "domain" in lab.execute(host, nodes, check=False).stdout, 60,
             "a node on " + host)
    lab.execute("a", "xl remus-decide g1 stop")
    equal(session.wait_end(60), 5, "exit status of xl remus")
    check(guest.domid("a") is None, "the guest that was stopped is still there")
    lab.execute("b", "xl remus-decide g1 go-on")
    colo.wait_active(lab, "b", guest.name)
    client.wait_answers(10, timeout_s=60)
    client.stop_without_errors()
    captures.check_one_speaks("b")
    left = lab.execute("a", nodes, check=False).stdout
    check("domain" not in left, "left in xenstore: " + left)


FENCE = r"""#!/bin/sh
case $1 in
check) ssh -o ConnectTimeout=5 "$REMUS_PEER-client" true ;;
fence)
    timeout 5 ssh -o ConnectTimeout=3 "$REMUS_PEER-client" 'echo b > /proc/sysrq-trigger'
    ! ping -c 2 -W 1 "$REMUS_PEER-client" > /dev/null
    ;;
esac
"""


@deadline(300)
def test_a_side_goes_on_when_it_has_turned_the_other_off(lab):
    for host in "ab":
        lab.execute(host, "cat > /etc/xen/remus-fence; chmod 755 /etc/xen/remus-fence",
                    stdin=FENCE)
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=1000, arbiter="fence", verify=False)
    session.wait_protected()
    captures = Captures(lab, guest)
    client = lab.client(guest, long=100, ping=200)
    client.wait_answers(8)
    lab.cut("repl")
    colo.wait_active(lab, "b", guest.name)
    client.wait_answers(10, timeout_s=60)
    client.stop_without_errors()
    captures.check_one_speaks("b")
    wait(lambda: not lab.is_running("a"), 30, "host a is off")
    session.process.kill()


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
