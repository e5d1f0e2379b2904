#!/usr/bin/env python3
"""Processes that die, or hear nothing, while a guest changes its host: never two of it."""

import os
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
import test_arbiter  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402
from test_disk import DiskGuest  # noqa: E402

INSTALL = True


def under_a_client(lab, guest, **options):
    session = colo.Session(lab, guest, interval_ms=2000, verify=False, **options)
    session.wait_protected()
    captures = test_arbiter.Captures(lab, guest)
    client = lab.client(guest, long=30, short=200, ping=100)
    client.wait_answers(20)
    return session, captures, client


def cut_off_here(lab):
    """The guest on host a is paused, and no frame passes its interface."""
    info = lab.execute("a", "xl list g1 | awk 'END { print $5 }'").stdout.strip()
    check("p" in info, "state of the guest on a: " + info)
    rules = lab.execute("a", "nft list table bridge remus").stdout
    check("drop" in rules, "no fence: " + rules)


@deadline(300)
def test_a_switch_that_is_not_heard_of_leaves_the_guest_paused_and_cut_off(lab):
    guest = lab.guest("a")
    session, captures, client = under_a_client(lab, guest)
    lab.execute("a", "pkill -x ssh; true")
    lab.execute("a", "xl remus-switch g1; true", timeout_s=100)
    equal(session.wait_end(60), 7, "exit status of xl remus")
    check("paused and cut off" in session.log(), session.log()[-400:])
    colo.wait_active(lab, "b", guest.name)
    client.wait_answers(10, timeout_s=60)
    client.stop_without_errors()
    cut_off_here(lab)
    captures.check_one_speaks("b")
    said = lab.execute("a", "xl destroy g1; xl remus-cleanup").stdout
    check("woke the process that minded g1" in said, "xl remus-cleanup: " + said)
    wait(lambda: not lab.execute("a", "ps -C xl -o args=", check=False).stdout.strip(), 20,
         "no xl is left")
    colo.check_nothing_left(lab, "a")


@deadline(300)
def test_ctrl_c_while_nobody_says_who_goes_on_does_not_let_the_guest_speak(lab):
    guest = lab.guest("a")
    witness = lab.witness()
    session, captures, client = under_a_client(lab, guest, arbiter=witness.spec)
    lab.execute("a", "pkill -x ssh; ip route add blackhole 10.77.0.100/32; kill -KILL %d" %
                colo.worker_pid(lab, "a"))
    colo.wait_active(lab, "b", guest.name)
    wait(lambda: "asking the arbiter" in session.log(), 90, "the question to the arbiter", 0.5)
    lab.execute("a", "pkill -INT -o -f '^xl remus --'")
    equal(session.wait_end(90), 7, "exit status of xl remus")
    check("runs, but cut off" in session.log(), session.log()[-400:])
    lab.execute("a", "ip route del blackhole 10.77.0.100/32")
    client.wait_answers(10, timeout_s=60)
    check("drop" in lab.execute("a", "nft list table bridge remus").stdout, "no fence")
    captures.check_one_speaks("b")


@deadline(300)
def test_a_copy_whose_coordinator_dies_as_it_takes_over_is_the_only_guest(lab):
    guest = lab.guest("a")
    session, captures, _ = under_a_client(lab, guest, peer_env="REMUS_TEST_STOP_AT=active")
    lab.spawn("a", "xl remus-switch g1", name="switch")
    colo.wait_stopped_worker(lab, "b")
    lab.execute("b", "kill -KILL %d" % colo.worker_pid(lab, "b"))
    equal(session.wait_end(60), 5, "exit status of xl remus")
    time.sleep(3)
    check(guest.domid("a") is None, "the guest is still on a")
    captures.check_one_speaks("b")
    lab.execute("b", "pkill -KILL -x colo-shadowd; true")


@deadline(300)
def test_a_handover_that_fails_leaves_the_guest_with_its_disk(lab):
    work = DiskGuest(lab, workers=2)
    session = colo.Session(lab, work.guest, interval_ms=10000, verify=False,
                           peer_env='REMUS_TEST_STOP_AT="taking over"')
    session.wait_protected()
    work.wait_work(50)
    lab.spawn("a", "xl remus-switch g1", name="switch")
    colo.wait_stopped_worker(lab, "b")
    lab.execute("b", "kill -KILL %d" % colo.worker_pid(lab, "b"))
    equal(session.wait_end(120), 3, "exit status of xl remus")
    work.wait_work(50)
    work.no_harm("a")
    wait(lambda: "g1" not in lab.execute("b", "xl list").stdout, 30, "no copy on b")
    colo.check_nothing_left(lab, "a", work.guest)


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
