#!/usr/bin/env python3
"""Remus, Kemari, Curling and the mode that chooses: the same engine, other rules."""

import json
import os
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
from labtest import alone, check, deadline, equal, wait  # noqa: E402
from test_disk import DiskGuest  # noqa: E402

INSTALL = True


def switch(lab, guest, mode, host="a"):
    return lab.execute(host, "xl remus-mode %s %s" % (guest.name, mode), timeout_s=60).stdout


# ---- checkpoints ----

def hundred_epochs(lab, mode, interval_ms=None):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, mode=mode, interval_ms=interval_ms)
    session.wait_protected()
    client = lab.client(guest, long=100, short=700, udp=300, ping=400)
    guest.dirty(200)
    status = session.wait_checkpoints(100, 400)
    guest.dirty(0)
    client.stop_without_errors()
    equal(status["running_mode"], mode, "mode")
    check(status["verify_epochs"] >= 99, "only %d epochs verified" % status["verify_epochs"])
    equal(status["verify_bad"], 0, "pages that differ")
    equal(session.stop(), 0, "exit status of xl remus")
    colo.check_nothing_left(lab, "a", guest)
    colo.check_nothing_left(lab, "b")
    return status


@alone
@deadline(600)
def test_100_epochs_of_remus_leave_no_page_different(lab):
    hundred_epochs(lab, "remus")


@alone
@deadline(600)
def test_100_epochs_of_kemari_leave_no_page_different(lab):
    status = hundred_epochs(lab, "kemari")
    check(status["requested"]["output"] > 50, "checkpoints that output asked for: %s" % status)


@alone
@deadline(600)
def test_100_epochs_of_curling_leave_no_page_different(lab):
    hundred_epochs(lab, "curling")


@deadline(240)
def test_what_remus_costs_is_seen_without_another_host(lab):
    """-b: checkpoints go nowhere, and everything says that nothing protects the guest."""
    guest = lab.guest("a")
    for ending, code in (("INT", 0), ("KILL", 3)):
        session = lab.spawn("a", "xl remus -F -b -i 300 --verbose g1", name="hole")
        log = lambda: open(session.log_path, encoding="utf-8", errors="replace").read()
        wait(lambda: "NOT protected, only measured  epoch 4" in log(), 90, "checkpoints", 0.2)
        client = lab.client(guest, long=100, ping=200)
        client.wait_answers(10, timeout_s=60)
        status = json.loads(lab.execute("a", "xl remus-status --json g1").stdout.splitlines()[0])
        check(not status["protected"] and status["health"] == "unprotected", status)
        answer = lab.execute("a", "xl remus-switch g1", check=False)
        check(answer.returncode and "not protected" in answer.stdout + answer.stderr, answer)
        if ending == "INT":
            lab.execute("a", "pkill -INT -o -f '^xl remus -F -b'")
        else:       # of who acknowledges: the youngest process of that name
            lab.execute("a", "kill -9 $(pgrep -P $(pgrep -o -f '^xl remus -F -b') | head -1)")
        equal(session.wait(60), code, "exit status of xl remus: " + log()[-300:])
        client.wait_answers(10, timeout_s=60)
        client.stop_without_errors()
        colo.check_nothing_left(lab, "a", guest)


# ---- failover ----

def lose(lab, guest, session, client, how=None):
    (how or lab.freeze)("a")
    colo.wait_active(lab, "b", guest.name)
    client.wait_answers(15, timeout_s=90)
    session.process.kill()


def failover(lab, mode, where=None):
    """Idle if no state is named, else in that state of the protocol, with a client."""
    guest = lab.guest("a")
    session = colo.Session(lab, guest, mode=mode, interval_ms=1500 if mode != "curling" else None,
                           env="REMUS_TEST_STOP_AT='%s'" % where if where else "")
    session.wait_protected()
    # Kemari is between two checkpoints only when nothing wants out.
    rare = mode == "kemari" and where and where.startswith("run")
    client = lab.client(guest, long=2000 if rare else 100, ping=3000 if rare else 200)
    if where:
        colo.wait_stopped_worker(lab, "a")
    else:
        client.wait_answers(10)
    lose(lab, guest, session, client)
    client.stop_without_errors()


@deadline(240)
def test_remus_fails_over_under_a_client(lab):
    failover(lab, "remus")


@deadline(240)
def test_kemari_fails_over_under_a_client(lab):
    failover(lab, "kemari")


def _failover_test(mode, where):
    @deadline(240)
    def test(lab):
        failover(lab, mode, where)
    test.__name__ = "test_%s_fails_over_in_state_%s" % (mode, where.split()[0])
    return test


for _mode in ("remus", "kemari"):
    for _where in ("suspend 3", "quiesce 3", "stage 3", "send 4", "apply 4", "run 4+"):
        _test = _failover_test(_mode, _where)
        globals()[_test.__name__] = _test


@deadline(240)
def test_curling_fails_over_to_its_newest_checkpoint(lab):
    """What was said before that is known to it; what was said since may be lost."""
    guest = lab.guest("a")
    session = colo.Session(lab, guest, mode="curling")
    session.wait_protected()
    session.wait_checkpoints(5, 60)
    before = int(guest.ask(7000, "inc").split()[1])
    status = session.status()
    session.wait_checkpoints(status["checkpoints"] + 15, 60)  # the status is a second old
    check("not held" in session.log(), "the start says what the mode gives up: " + session.log())
    lab.freeze("a")
    colo.wait_active(lab, "b", guest.name)
    equal(int(guest.ask(7000, "inc").split()[1]), before + 1, "counter of a checkpoint ago")
    session.process.kill()


@deadline(240)
def test_remus_holds_output_until_its_epoch_is_acknowledged(lab):
    """With a checkpoint every two seconds an answer takes about one second."""
    guest = lab.guest("a")
    session = colo.Session(lab, guest, mode="remus", interval_ms=2000, verify=False)
    session.wait_protected()
    session.wait_checkpoints(3, 60)
    held = []
    for _ in range(5):
        began = time.monotonic()
        guest.ask(7000, "inc")
        held.append(time.monotonic() - began)
    check(max(held) > 0.7, "answers were not held: %s" % held)
    switch(lab, guest, "curling")
    free = []
    for _ in range(10):
        began = time.monotonic()
        guest.ask(7000, "inc")
        free.append(time.monotonic() - began)
    check(sorted(free)[5] < sorted(held)[2] / 2, "answers are held: %s, were: %s" % (free, held))
    equal(session.stop(), 0, "exit status of xl remus")


# ---- switching ----

@deadline(300)
def test_modes_are_switched_under_a_client_and_the_copy_takes_over_after_it(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, mode="remus")
    session.wait_protected()
    client = lab.client(guest, long=100, short=500, udp=300, ping=400)
    for mode in ("colo", "kemari", "curling", "colo", "remus", "colo"):
        check(mode in switch(lab, guest, mode), "the command tells the mode")
        count = session.status()["checkpoints"]
        client.wait_answers(8, timeout_s=60)
        if mode != "colo":
            session.wait_checkpoints(count + 2, 60)
    status = session.status()
    equal((status["mode"], status["running_mode"]), ("colo", "colo"), "mode")
    equal(status["verify_bad"], 0, "pages that differ")
    lose(lab, guest, session, client)
    client.stop_without_errors()


@deadline(400)
def test_a_guest_with_a_disk_is_protected_in_every_mode_and_fails_over(lab):
    """A copy that waits never touches its disk; one that runs writes to what lies over it."""
    work = DiskGuest(lab, workers=2)
    session = colo.Session(lab, work.guest, mode="remus")
    session.wait_protected()
    work.wait_work(100)
    for mode in ("colo", "kemari", "remus"):
        switch(lab, work.guest, mode)
        count = session.status()["checkpoints"]
        work.wait_work(100)
        session.wait_checkpoints(count + 2, 60)
    status = session.status()
    equal(status["verify_bad"], 0, "pages that differ")
    check(status["requested"]["output"] > 0, "no write has asked for a checkpoint: %s" % status)
    lab.freeze("a")
    colo.wait_active(lab, "b", work.name)
    work.wait_work(50)
    work.no_harm("b")
    session.process.kill()


@deadline(300)
def test_auto_goes_to_remus_when_output_differs_all_the_time_and_comes_back(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, mode="auto", verify=False)
    session.wait_protected()
    equal(session.status()["running_mode"], "colo", "mode at first")
    client = lab.client(guest, diverge=50, long=200)
    wait(lambda: session.status()["running_mode"] == "remus", 60, "remus", 0.5)
    client.wait_answers(20, timeout_s=60)
    client.stop_without_errors()
    wait(lambda: session.status()["running_mode"] == "colo", 90, "colo again", 1)
    equal(session.status()["mode"], "auto", "mode as asked for")
    guest.ask(7000, "inc")
    equal(session.stop(), 0, "exit status of xl remus")
    colo.check_nothing_left(lab, "a", guest)
    colo.check_nothing_left(lab, "b")


@deadline(180)
def test_a_mode_that_does_not_exist_is_refused_and_protection_goes_on(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, mode="remus", verify=False)
    session.wait_protected()
    result = lab.execute("a", "xl remus-mode g1 turbo", check=False)
    equal(result.returncode, 1, "status for a mode that does not exist")
    check("turbo" in result.stderr, result.stderr)
    domid = guest.domid("a")
    lab.execute("a", "xenstore-write /local/domain/%d/remus/request 'mode ../x'" % domid)
    wait(lambda: "refused" in lab.execute("a", "xenstore-read /local/domain/%d/remus/answer; true" %
                                          domid).stdout, 20, "an answer", 0.5)
    equal(lab.execute("a", "xl remus-mode g1").stdout.strip(), "g1: remus", "mode told")
    equal(lab.execute("b", "xl remus-mode g1 colo", check=False).returncode, 2,
          "status on the host of the copy")
    equal(session.stop(), 0, "exit status of xl remus")
    equal(lab.execute("a", "xl remus-mode g1 colo", check=False).returncode, 2,
          "status without protection")


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
