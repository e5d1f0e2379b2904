#!/usr/bin/env python3
"""A host that was away has its copy's disks brought up to date by what was written meanwhile, as
far as it is certain that nobody else has touched them; otherwise as a whole."""

import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402
from test_disk import DiskGuest, MIB  # noqa: E402

INSTALL = True

AGAIN = "trying again"
WHOLE = "is compared as a whole"
SLACK = 8 * MIB     # two workers write to 16 MiB, and a part has 64 KiB


class Away:
    """A guest whose two workers write to a quarter of its disk, under xl remus --keep-trying, or
    what the test wants instead."""

    def __init__(self, lab, options="--keep-trying"):
        self.lab = lab
        self.work = DiskGuest(lab, workers=2)
        lab.execute("b", "sync")
        self.session = colo.Session(lab, self.work.guest, interval_ms=2000, verify=False,
                                    options=options)
        first = self.session.wait_protected()["disks"][0]
        equal(first["sync_bytes"], self.work.size, "bytes to be compared at first")

    def wait_alone(self):
        before = self.session.log().count(AGAIN)
        wait(lambda: self.session.log().count(AGAIN) > before, 60, "the session ends", 0.2)
        self.domid = self.work.guest.domid("a")

    def write(self, mib, at):
        """The guest writes where no worker does."""
        self.work.guest.run("dd if=/dev/urandom of=/dev/xvda bs=1M count=%d seek=%d oflag=direct" %
                            (mib, at))

    def wait_again(self, timeout_s=150):
        """The disk's figures, once the guest is protected again."""
        since = self.session.log().rfind(AGAIN)
        wait(lambda: ": protected  epoch" in self.session.log()[since:], timeout_s,
             "protection again", 0.2)
        return self.session.status()["disks"][0]

    def end(self, release=False):
        """The guest's work was done, and both disks are the same in the end."""
        self.work.no_harm("a")
        status = self.session.status()
        self.session.wait_checkpoints(status["checkpoints"] + 2, 60)
        equal(self.session.stop(), 0, "exit status of xl remus")
        if release:
            self.lab.execute("a", "xl remus --release g1")
        equal(self.work.checksum("a"), self.work.checksum("b"), "contents of the disks")
        left = self.lab.execute("a", "ls /run/xen/remus | grep -e dirty -e minder;"
                                " pgrep -l colo-blkd; true").stdout
        equal(left, "", "what is left on a")
        self.work.work(self.work.workers)
        self.work.wait_work(20)
        self.work.no_harm("a")


@deadline(400)
def test_a_host_that_was_away_gets_what_has_changed_only(lab):
    """It loses its power, and the guest works on meanwhile."""
    away = Away(lab)
    lab.kill("b")
    away.wait_alone()
    away.write(2, 40)
    away.work.wait_work(50)
    lab.start("b")
    disk = away.wait_again()
    check(WHOLE not in away.session.log().split(AGAIN)[-1], away.session.log()[-800:])
    check(2 * MIB <= disk["sync_sent_bytes"] <= disk["sync_bytes"] <= 18 * MIB + SLACK and
          disk["sync_done_bytes"] == disk["sync_bytes"], "what was compared: %s" % disk)
    print("# of %d MiB, %.1f were compared and %.1f sent" %
          (away.work.size // MIB, disk["sync_bytes"] / MIB, disk["sync_sent_bytes"] / MIB))
    away.end()


@deadline(400)
def test_a_host_that_was_lost_while_it_applied_an_epoch_catches_up(lab):
    """What its disk had of that epoch, and of those before, is in nobody's order."""
    lab.execute("b", "rm -f /var/lib/lab/again")
    away = Away(lab, "--keep-trying --receive-command 'test -e /var/lib/lab/again && "
                "exec xl remus-receive; touch /var/lib/lab/again; sync; "
                "REMUS_TEST_STOP_AT=\"applying epoch 4\" exec xl remus-receive'")
    colo.wait_stopped_worker(lab, "b")
    lab.kill("b")
    away.wait_alone()
    away.work.wait_work(50)
    lab.start("b")
    disk = away.wait_again()
    check(WHOLE not in away.session.log().split(AGAIN)[-1], away.session.log()[-800:])
    check(0 < disk["sync_sent_bytes"] <= disk["sync_bytes"] <= 16 * MIB + SLACK,
          "what was compared: %s" % disk)
    away.end()


@deadline(400)
def test_a_disk_that_somebody_else_wrote_to_is_compared_as_a_whole(lab):
    away = Away(lab)
    lab.kill("b")
    away.wait_alone()
    # Nobody gets through to b before it is written to there.
    lab.cut("repl")
    lab.start("b")
    lab.execute("b", "printf nonsense | dd of=%s bs=1M seek=50 conv=notrunc status=none; sync" %
                away.work.path)
    lab.mend("repl")
    disk = away.wait_again()
    check("it was changed since" in away.session.log(), away.session.log()[-800:])
    equal(disk["sync_bytes"], away.work.size, "bytes compared")
    away.end()


@deadline(400)
def test_what_is_noted_survives_the_death_of_whoever_notes(lab):
    away = Away(lab)
    # The copy is let go in order, and no host is lost; but what was under way is.
    colo.kill_by_name(lab, "b", "colo-blkd")
    away.wait_alone()
    lab.cut("repl")
    colo.kill_by_name(lab, "a", "colo-blkd")
    away.write(1, 44)
    minder = int(lab.execute("a", "cat /run/xen/remus/%d.minder" % away.domid).stdout)
    lab.execute("a", "kill -9 %d" % minder)
    away.write(1, 52)
    away.work.wait_work(50)
    lab.mend("repl")
    disk = away.wait_again()
    check(WHOLE not in away.session.log().split(AGAIN)[-1], away.session.log()[-800:])
    check(2 * MIB <= disk["sync_sent_bytes"] <= disk["sync_bytes"] <= 18 * MIB + SLACK,
          "what was compared: %s" % disk)
    away.end()


@deadline(400)
def test_a_guests_next_life_is_compared_as_a_whole(lab):
    """It reboots while its copy's host is away: the kernel's backend serves it from there."""
    away = Away(lab)
    colo.kill_by_name(lab, "b", "colo-blkd")
    away.wait_alone()
    lab.cut("repl")
    away.work.guest.ask(7007, "reboot")
    wait(lambda: away.work.guest.domid("a") not in (None, away.domid), 90, "its next life", 1)
    lab.guest_wait("a", away.work.name)
    left = lab.execute("a", "ls /run/xen/remus; pgrep -l colo-blkd; true").stdout
    check("minder" not in left and "dirty" not in left and "colo-blkd" not in left, left)
    away.work.work(2)
    lab.mend("repl")
    equal(away.wait_again()["sync_bytes"], away.work.size, "bytes compared")
    away.end()


@deadline(400)
def test_a_first_synchronisation_that_was_cut_goes_on_where_it_was(lab):
    work = DiskGuest(lab, workers=2)
    session = colo.Session(lab, work.guest, verify=False, options="--keep-trying --sync-rate 3")
    wait(lambda: (session.status() or {}).get("disks"), 60, "the synchronisation begins")
    # What was compared counts when the other host has it safely, some seconds later.
    wait(lambda: work.disk(session)["sync_done_bytes"] > work.size * 5 // 8, 90, "most of it")
    lab.cut("repl")
    wait(lambda: AGAIN in session.log(), 90, "the session ends")
    lab.mend("repl")
    since = session.log().rfind(AGAIN)
    wait(lambda: ": protected  epoch" in session.log()[since:], 150, "protection", 0.2)
    disk = session.status()["disks"][0]
    check(0 < disk["sync_bytes"] < work.size * 3 // 4, "what was compared again: %s" % disk)
    work.no_harm("a")
    session.wait_checkpoints(session.status()["checkpoints"] + 2, 60)
    equal(session.stop(), 0, "exit status of xl remus")
    equal(work.checksum("a"), work.checksum("b"), "contents of the disks")


@deadline(400)
def test_an_operator_may_have_it_noted_between_two_sessions(lab):
    """--catch-up, an orderly end, and another session later; --release gives the disks back."""
    away = Away(lab, options="--catch-up")
    equal(away.session.stop(), 0, "exit status of xl remus")
    equal(lab.execute("a", "pgrep -c colo-blkd").stdout.strip(), "1", "colo-blkd goes on")
    away.write(2, 40)
    away.work.wait_work(50)
    away.session = colo.Session(lab, away.work.guest, interval_ms=2000, verify=False,
                                options="--catch-up")
    disk = away.session.wait_protected()["disks"][0]
    check(2 * MIB <= disk["sync_sent_bytes"] <= disk["sync_bytes"] <= 18 * MIB + SLACK,
          "what was compared: %s" % disk)
    away.end(release=True)


def wait_back(lab):
    """Host a is there again, and has the copy: the figures of the session on b."""
    def probe():
        status = colo_status(lab)
        return status and status["protected"] and status["role"] == "primary" and status
    return wait(probe, 200, "g1 is protected on b", 1)


def comes_back(lab, work):
    """The copy's disk was brought up to date from b."""
    disk = wait_back(lab)["disks"][0]
    check(disk["sync_done_bytes"] == disk["sync_bytes"] < work.size * 3 // 4,
          "what was compared: %s" % disk)
    check(WHOLE not in log_of(lab).split("protecting the guest again")[-1],
          log_of(lab)[-800:])
    print("# of %d MiB, %.1f were compared and %.1f sent" %
          (work.size // MIB, disk["sync_bytes"] / MIB, disk["sync_sent_bytes"] / MIB))
    work.no_harm("b")
    before = colo_status(lab)["checkpoints"]
    wait(lambda: colo_status(lab)["checkpoints"] >= before + 2, 90, "two checkpoints", 1)
    lab.execute("b", "xl remus-stop g1", timeout_s=120)
    equal(work.checksum("a"), work.checksum("b"), "contents of the disks")


def colo_status(lab):
    result = lab.execute("b", "cat /run/xen/remus/*.json 2>/dev/null", check=False)
    try:
        return json.loads(result.stdout.splitlines()[0])
    except (IndexError, ValueError):
        return None


def log_of(lab):
    return lab.execute("b", "cat /var/log/xen/remus-g1.log", check=False).stdout


def takes_over(lab, lose):
    """The copy goes on without a, its workers and the guest write on b, and a comes back."""
    for host in "ab":
        lab.execute(host, "rm -f /var/log/xen/remus-*.log")
    work = DiskGuest(lab, workers=2)
    for host in "ab":
        lab.execute(host, "sync")
    witness = lab.witness()
    session = colo.Session(lab, work.guest, interval_ms=2000, verify=False, arbiter=witness.spec,
                           options="--reprotect a")
    session.wait_protected()
    work.wait_work(50)
    lose(session)
    colo.wait_active(lab, "b", work.name)
    work.wait_work(50)
    work.guest.run("dd if=/dev/urandom of=/dev/xvda bs=1M count=2 seek=52 oflag=direct")
    return work, session


def empties(lab):
    """The guest goes to b on purpose."""
    def switch(session):
        lab.execute("a", "xl remus-switch g1", timeout_s=100)
        equal(session.wait_end(60), 5, "exit status of xl remus")
    return takes_over(lab, switch)[0]


@deadline(500)
def test_the_disk_of_a_host_that_died_gets_what_may_differ_only(lab):
    """--reprotect: its last writes the copy never heard of, and some its memory had."""
    work, session = takes_over(lab, lambda session: lab.kill("a"))
    session.process.kill()
    lab.start("a")
    comes_back(lab, work)


@deadline(500)
def test_the_disk_of_a_host_that_was_emptied_gets_what_may_differ_only(lab):
    """xl remus-switch, and back."""
    comes_back(lab, empties(lab))


@deadline(500)
def test_a_guest_that_took_over_reboots_under_its_next_protection(lab):
    """Who minded it since the takeover must not start it beside a copy that was not told."""
    work = empties(lab)
    wait_back(lab)
    states = lab.execute("b", "ps -C xl -o stat=,args= | grep remus-receive").stdout
    check(states and all(line.startswith("T") for line in states.splitlines()),
          "not stopped beside the session: %r" % states)
    before = work.guest.domid("b")
    work.guest.ask(7007, "reboot")
    after = wait(lambda: lab.execute("b", "xl domid g1", check=False).stdout.strip() not in
                 ("", str(before)) and work.guest.domid("b"), 120, "the guest's next life", 1)
    lab.guest_wait("b", work.name)
    ended = log_of(lab).split("protecting the guest again")[-1]
    check("the guest ended" in ended or "guest-ended" in ended, ended[-800:])
    equal(work.guest.ask(7000, "inc").split()[0], "1", "counter")
    equal(work.guest.domid("b"), after, "domain id a moment later")


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
