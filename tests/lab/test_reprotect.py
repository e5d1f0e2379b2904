#!/usr/bin/env python3
"""After a takeover the guest is like any other, and protected again from where it is."""

import os
import re
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
import test_arbiter  # noqa: E402
import test_ops  # noqa: E402
from test_disk import DiskGuest  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402

INSTALL = True
SETTLES_S = 90


def wait_settled(lab, host, name="g1"):
    wait(lambda: "served by this host's kernel" in
         lab.execute(host, "cat /var/log/xen/remus-%s.log" % name).stdout, SETTLES_S,
         "%s settles on %s" % (name, host), 1)


def forget_logs(lab):
    for host in "ab":
        lab.execute(host, "rm -f /var/log/xen/remus-*.log")


@deadline(400)
def test_a_guest_is_protected_again_from_where_it_is(lab):
    forget_logs(lab)
    work = DiskGuest(lab, workers=2)
    guest = work.guest
    lab.execute("a", "sync")
    witness = lab.witness()
    session = colo.Session(lab, guest, interval_ms=2000, arbiter=witness.spec)
    session.wait_protected()
    client = lab.client(guest, long=100, short=500, ping=300)
    client.wait_answers(10)
    lab.kill("a")
    colo.wait_active(lab, "b", guest.name)
    client.wait_answers(5, timeout_s=60)
    session.process.kill()
    lab.start("a")
    wait_settled(lab, "b")
    equal(lab.execute("b", "ls /run/xen/remus/*.json", check=False).stdout, "", "records on b")
    check("vif" in lab.execute("b", "ls /sys/class/net/xenbr0/brif").stdout, "no vif on the bridge")
    client.wait_answers(10, timeout_s=60)
    session = colo.Session(lab, guest, host="b", peer="a", interval_ms=2000, arbiter=witness.spec)
    session.wait_protected()
    client.wait_answers(10, timeout_s=60)
    lab.freeze("b")
    colo.wait_active(lab, "a", guest.name)
    client.wait_answers(10, timeout_s=60)
    client.stop_without_errors()
    work.no_harm("a")
    session.process.kill()


def numbers_changed(lab, host):
    """Of how many connections the kernel changes the numbers, after a takeover."""
    text = lab.execute(host, "cat /var/log/xen/remus-g1.log").stdout
    found = re.findall(r"changes the numbers of (\d+) connections", text)
    return int(found[-1]) if found else 0


def new_connection(lab, session, guest, **classes):
    """A client whose connections are younger than the newest checkpoint, as long as nothing else
    asks for one."""
    for _ in range(5):
        before = session.status()["checkpoints"]
        client = lab.client(guest, **classes)
        client.wait_answers(10, timeout_s=60)
        if session.status()["checkpoints"] == before:
            return client
        client.stop_without_errors()
    raise labtest.Failure("each time a checkpoint came between")


@deadline(500)
def test_connections_that_are_new_at_the_takeover_go_with_the_guest(lab):
    """Those of the last epoch have other numbers in the copy. They hinder no protection, and live
    on through the next takeover."""
    forget_logs(lab)
    guest = lab.guest("a", nets=("ipv6",))
    witness = lab.witness()
    session = colo.Session(lab, guest, interval_ms=60000, arbiter=witness.spec, verify=False)
    session.wait_protected()
    client = new_connection(lab, session, guest, long=100)
    lab.kill("a")
    colo.wait_active(lab, "b", guest.name)
    session.process.kill()
    lab.start("a")
    others = [lab.client(guest, bulk_down=100000, bulk_up=100000),
              lab.client(guest, ip=guest.ip6, long=200)]
    wait_settled(lab, "b")
    check(numbers_changed(lab, "b") >= 1, "the kernel changes no numbers on b")
    session = colo.Session(lab, guest, host="b", peer="a", interval_ms=2000, arbiter=witness.spec)
    session.wait_protected()
    before = sum(session.status()["requested"].values())
    client.wait_answers(50, timeout_s=90)
    asked = sum(session.status()["requested"].values()) - before
    check(asked < 20, "%d checkpoints asked for: do both guests say the same?" % asked)
    lab.kill("b")
    colo.wait_active(lab, "a", guest.name)
    session.process.kill()
    client.wait_answers(10, timeout_s=60)
    wait_settled(lab, "a")
    check(numbers_changed(lab, "a") >= 1, "the kernel changes no numbers on a")
    for each in [client] + others:
        each.wait_answers(10, timeout_s=60)
        each.stop_without_errors()


@deadline(400)
def test_a_kernel_that_cannot_change_numbers_leaves_it_to_colo_shadowd(lab):
    """The guest cannot be protected again while such a connection is open, and can after that."""
    forget_logs(lab)
    conf = "/etc/modprobe.d/no-cls-bpf.conf"
    lab.execute("b", "rmmod cls_bpf; echo 'install cls_bpf /bin/false' >" + conf)
    try:
        guest = lab.guest("a")
        session = colo.Session(lab, guest, interval_ms=60000, verify=False,
                               arbiter=lab.witness().spec)
        session.wait_protected()
        client = new_connection(lab, session, guest, long=100)
        lab.kill("a")
        colo.wait_active(lab, "b", guest.name)
        session.process.kill()
        wait(lambda: "cannot change the numbers of" in
             lab.execute("b", "cat /var/log/xen/remus-g1.log").stdout, SETTLES_S, "a refusal", 1)
        lab.execute("b", "pgrep -x colo-shadowd")
        client.wait_answers(20, timeout_s=60)
        client.stop_without_errors()
        wait_settled(lab, "b")
        equal(numbers_changed(lab, "b"), 0, "connections whose numbers the kernel changes")
        lab.run_client(guest, 2, long=50, ping=100)
    finally:
        lab.execute("b", "rm " + conf)


def switched_over(lab, mode):
    """xl remus-switch: no client error, no packet lost, also when the kernel's backend takes the
    interface, no word of the old host's, and none of its guest left."""
    forget_logs(lab)
    guest = lab.guest("a")
    witness = lab.witness()
    session = colo.Session(lab, guest, mode=mode, interval_ms=2000 if mode == "colo" else None,
                           arbiter=witness.spec, verify=False)
    session.wait_protected()
    captures = test_arbiter.Captures(lab, guest)
    client = lab.client(guest, long=30, short=200, ping=50, udp=50)
    client.wait_answers(20)
    node = "/local/domain/%d/remus" % guest.domid("a")
    lab.execute("a", "xenstore-write %s/request nonsense" % node)
    answer = "xenstore-read %s/answer" % node
    wait(lambda: "refused" in lab.execute("a", answer, check=False).stdout, 10,
         "an answer to nonsense")
    lab.execute("a", "xenstore-write %s/request checkpoint" % node)
    wait(lambda: "accepted" in lab.execute("a", answer, check=False).stdout, 10,
         "an answer to a request for a checkpoint")
    before = client.status()["long"]["gap_ms"]
    lab.execute("a", "xl remus-switch g1", timeout_s=100)
    equal(session.wait_end(60), 5, "exit status of xl remus")
    check(guest.domid("a") is None and guest.domid("b") is not None, "the guest is on b alone")
    wait_settled(lab, "b")
    client.wait_answers(20, timeout_s=60)
    figures = client.stop_without_errors()
    captures.check_one_speaks("b")
    equal({name: figures["classes"][name]["lost"] for name in ("ping", "udp")},
          {"ping": 0, "udp": 0}, "datagrams lost")
    print("# longest gap of a client: %.0f ms before, %.0f ms with the switch" %
          (before, figures["classes"]["long"]["gap_ms"]))


@deadline(300)
def test_a_guest_is_switched_over_on_purpose(lab):
    switched_over(lab, "colo")


@deadline(300)
def test_a_guest_whose_copy_is_paused_is_switched_over_on_purpose(lab):
    switched_over(lab, "remus")


@deadline(400)
def test_a_guest_is_protected_again_by_itself(lab):
    """--reprotect: the other way after a takeover, and this way after the loss of the copy."""
    forget_logs(lab)
    for host in "ab":
        test_ops.hook(lab, host, "write", test_ops.WRITES)
        lab.execute(host, "rm -f %s; sync" % test_ops.TOLD)
    guest = lab.guest("a")
    witness = lab.witness()
    session = colo.Session(lab, guest, interval_ms=2000, arbiter=witness.spec, verify=False,
                           options="--reprotect a")
    session.wait_protected()
    client = lab.client(guest, long=100, ping=300)
    client.wait_answers(10)
    # The copy's host goes, and comes back.
    lab.kill("b")
    wait(lambda: "trying again" in session.log(), 60, "xl remus goes on trying")
    before = session.log().count(": protected  epoch")
    lab.start("b")
    wait(lambda: session.log().count(": protected  epoch") > before, 120, "protection again", 0.5)
    test_ops.wait_told(lab, "a", "re-protected")
    told = [line[0] for line in test_ops.told(lab, "a")]
    check(told[0] == "protected" and "degraded" in told, "told on a: %s" % told)
    client.wait_answers(10, timeout_s=60)
    # The guest's host goes, and comes back.
    lab.kill("a")
    colo.wait_active(lab, "b", guest.name)
    client.wait_answers(5, timeout_s=60)
    session.process.kill()
    lab.start("a")
    wait(lambda: (session.status("b") or {}).get("protected") and
         session.status("b")["role"] == "primary", 150, "g1 is protected on b", 1)
    test_ops.wait_told(lab, "b", "re-protected")
    client.wait_answers(10, timeout_s=60)
    client.stop_without_errors()


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
