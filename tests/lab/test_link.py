#!/usr/bin/env python3
"""A second network for signs of life (--heartbeat-address): a link that breaks is no host that is
lost."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
import test_arbiter  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402

INSTALL = True
SECOND = "--heartbeat-address %s"
ADDRESS = {"a": "10.77.0.1", "b": "10.77.0.2"}


def begin(lab, **more):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, options=SECOND % ADDRESS["b"], verify=False,
                           interval_ms=1000, **more)
    session.wait_protected()
    client = lab.client(guest, long=100, short=300, ping=200)
    client.wait_answers(10)
    return guest, session, client


def health(session):
    status = session.status()
    return status and (status["second_network"], status["health"])


@deadline(180)
def test_a_link_that_breaks_between_living_hosts_ends_protection_in_order(lab):
    """Without an arbiter: there is nothing to decide. The guest stays where it is, its copy goes,
    and nobody ever speaks twice."""
    guest, session, client = begin(lab)
    captures = test_arbiter.Captures(lab, guest)
    lab.cut("repl")
    equal(session.wait_end(), 3, "exit status of xl remus")
    log = session.log()
    check("still heard on the second network" in log, log[-400:])
    check("arbit" not in log, "the arbiter was asked: " + log[-400:])
    client.wait_answers(10)
    client.stop_without_errors()
    captures.check_one_speaks("a")
    colo.check_nothing_left(lab, "a", guest)
    colo.check_nothing_left(lab, "b")
    lab.mend("repl")


@deadline(240)
def test_a_lost_host_is_lost_on_both_networks(lab):
    """The copy takes over as soon as without a second network; who slept lets go."""
    guest, session, client = begin(lab, arbiter=lab.witness().spec)
    lab.freeze("a")
    colo.wait_active(lab, "b", guest.name)
    client.wait_answers(10, timeout_s=90)
    client.stop_without_errors()
    lab.thaw("a")
    equal(session.wait_end(90), 5, "exit status on the host that slept")


@deadline(240)
def test_a_coordinator_that_dies_is_no_broken_link(lab):
    """Both its connections end at once: the copy does not wait for a word from it."""
    guest, session, client = begin(lab, arbiter=lab.witness().spec)
    lab.execute("a", "kill -9 %d" % colo.worker_pid(lab, "a"))
    winner = test_arbiter.winner_of(lab, session, guest)
    client.wait_answers(10, timeout_s=90)
    client.stop_without_errors()
    check(winner in "ab", winner)


@deadline(240)
def test_the_second_network_may_come_and_go(lab):
    """While it is silent health says so; with it, and then the link, cut, the arbiter is asked."""
    guest, session, client = begin(lab, arbiter=lab.witness().spec)
    wait(lambda: health(session) == ("ok", "ok"), 30, "the second network in the status", 1)
    lab.cut("client-b")
    wait(lambda: health(session) == ("silent", "degraded"), 30, "health that says so", 1)
    lab.mend("client-b")
    wait(lambda: health(session) == ("ok", "ok"), 90, "health that is well again", 1)
    lab.cut("client-b")
    wait(lambda: health(session) == ("silent", "degraded"), 30, "health that says so", 1)
    lab.cut("repl")
    check(session.wait_end(90) in (3, 5), session.log()[-400:])
    lab.mend("client-b")
    lab.mend("repl")
    client.wait_answers(10, timeout_s=90)
    client.stop_without_errors()


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
