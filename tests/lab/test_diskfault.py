#!/usr/bin/env python3
"""A protected guest's disk that fails, fills up or is slow, on either host: the guest is told what
the kernel's backend would tell it; what only the copy meets ends protection, and no more."""

import os
import signal
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402
from test_disk import DiskGuest, MIB  # noqa: E402

INSTALL = True

SMALL = "/var/lib/lab/small"
MAPPED = "/dev/mapper/g1"
BAD_AT, BAD_SECTORS = 81920, 2048   # where no worker works


def small_file_system(lab, host, mb):
    lab.execute(host, "mkdir -p %s; truncate -s %dM %s.fs; mke2fs -q -F -t ext4 -O ^has_journal "
                "-m 0 %s.fs; mount -o loop %s.fs %s" % (SMALL, mb, SMALL, SMALL, SMALL, SMALL),
                timeout_s=60)


def fill(guest):
    """Write what two workers leave of the guest's disk; what the kernel says of it."""
    return guest.run("for at in 8 40; do dd if=/dev/urandom of=/dev/xvda bs=1M count=24 seek=$at "
                     "oflag=direct 2>&1 || echo failed; done", 120)


def ends_with(lab, work, session, text):
    """Protection ends because of the copy; the guest works on, and nothing is left."""
    equal(session.wait_end(90), 3, "exit status of xl remus")
    check(text in session.log(), "no '%s': %s" % (text, session.log()[-800:]))
    work.work(work.workers)
    work.wait_work(100)
    work.no_harm("a")
    colo.check_nothing_left(lab, "a", work.guest)
    colo.check_nothing_left(lab, "b")


def goes_on_with_errors(session):
    """The guest's errors are counted, and protection goes on."""
    status = wait(lambda: session.status()["disks"][0]["errors"] and session.status(), 20,
                  "errors in the status", 0.5)
    check(status["protected"], "status: %s" % status)
    session.wait_checkpoints(status["checkpoints"] + 2, 60)


@deadline(300)
def test_a_full_disk_of_the_copy_ends_protection(lab):
    small_file_system(lab, "b", 24)
    work = DiskGuest(lab, path=SMALL + "/g1.img", workers=2)
    session = colo.Session(lab, work.guest, verify=False)
    session.wait_protected()
    work.work(0)
    check("failed" not in fill(work.guest), "the guest met the other host's full disk")
    ends_with(lab, work, session, "No space left")


@deadline(300)
def test_a_full_store_of_the_copy_ends_protection(lab):
    small_file_system(lab, "b", 400)
    work = DiskGuest(lab)
    session = colo.Session(lab, work.guest, verify=False,
                           options="--receive-command 'xl remus-receive --store %s'" % SMALL)
    session.wait_protected()
    lab.execute("b", "dd if=/dev/zero of=%s/all bs=1M status=none 2>/dev/null; true" % SMALL,
                timeout_s=90)
    ends_with(lab, work, session, "No space left")


@deadline(300)
def test_a_guest_that_writes_more_than_may_wait_gets_checkpoints(lab):
    """The store has room for 100 MiB, and checkpoints come by age each ten minutes only."""
    small_file_system(lab, "b", 330)
    work = DiskGuest(lab, workers=2, disk_mb=256)
    work.work(0)
    session = colo.Session(lab, work.guest, verify=False, interval_ms=600000,
                           options="--receive-command 'xl remus-receive --store %s'" % SMALL)
    session.wait_protected(200)
    for _ in range(2):
        work.guest.run("dd if=/dev/zero of=/dev/xvda bs=1M count=180 seek=70 oflag=direct", 200)
    status = session.status()
    check(status["protected"] and status["requested"]["queue"] >= 2, "status: %s" % status)
    work.no_harm("a")
    # What waits is committed with the last checkpoint that there is.
    lab.execute("a", "xenstore-write /local/domain/%d/remus/request checkpoint" %
                work.guest.domid("a"))
    session.wait_checkpoints(status["checkpoints"] + 1, 60)
    equal(session.stop(), 0, "exit status of xl remus")
    equal(work.checksum("a"), work.checksum("b"), "contents of the disks")


@deadline(300)
def test_a_full_disk_of_the_primary_is_the_guests_to_handle(lab):
    small_file_system(lab, "a", 24)
    work = DiskGuest(lab, path=SMALL + "/g1.img", workers=2)
    work.work(0)
    session = colo.Session(lab, work.guest, verify=False, interval_ms=2000)
    session.wait_protected()
    said = fill(work.guest)
    check("failed" in said and "error" in said.lower(), "the guest was told: " + said)
    goes_on_with_errors(session)
    # What has its place is written as before.
    work.guest.run("dd if=/dev/zero of=/dev/xvda bs=1M count=1 seek=8 oflag=direct")
    equal(session.stop(), 0, "exit status of xl remus")
    colo.check_nothing_left(lab, "a", work.guest)
    colo.check_nothing_left(lab, "b")


def mapped(lab):
    for host in ("a", "b"):
        lab.execute(host, "mkdir -p /var/lib/lab; cd /var/lib/lab; rm -f g1.back; "
                    "truncate -s 64M g1.back; echo 0 %d "
                    "linear $(losetup -f --show g1.back) 0 | dmsetup create g1" % (64 * MIB // 512))


def spoil(lab, host):
    """From now on there is an error in the middle of the host's disk."""
    end = BAD_AT + BAD_SECTORS
    table = "0 %d linear $L 0\n%d %d error\n%d %d linear $L %d\n" % (
        BAD_AT, BAD_AT, BAD_SECTORS, end, 64 * MIB // 512 - end, end)
    lab.execute(host, "L=$(losetup -n -O NAME -j /var/lib/lab/g1.back)\ndmsetup load g1 <<EOF && "
                "dmsetup resume g1\n%sEOF" % table)


def touch(guest, what, sector):
    """What dd says of 64 KiB at the sector."""
    names = {"read": "if=/dev/xvda of=/dev/null iflag=direct skip=%d",
             "write": "if=/dev/zero of=/dev/xvda oflag=direct seek=%d"}
    return guest.run(("dd bs=65536 count=1 " + names[what] + " 2>&1 || echo failed") %
                     (sector // 128))


def fails(guest, what):
    """The guest is told so, and of nothing else."""
    said = touch(guest, what, BAD_AT)
    check("failed" in said and "Input/output error" in said, what + ", it was told: " + said)
    said = touch(guest, what, BAD_AT + 8192)
    check("failed" not in said, "%s elsewhere failed as well: %s" % (what, said))


@deadline(300)
def test_an_error_of_the_primarys_disk_is_the_guests_to_handle(lab):
    mapped(lab)
    work = DiskGuest(lab, path=MAPPED, workers=2)
    work.work(0)
    session = colo.Session(lab, work.guest, verify=False, interval_ms=2000)
    session.wait_protected()
    spoil(lab, "a")
    fails(work.guest, "read")
    goes_on_with_errors(session)
    # Nobody can tell what a write that failed has left there, when it cannot be read.
    fails(work.guest, "write")
    equal(session.wait_end(60), 3, "exit status of xl remus")
    check("cannot be read" in session.log(), session.log()[-400:])
    fails(work.guest, "write")
    colo.check_nothing_left(lab, "a", work.guest)
    colo.check_nothing_left(lab, "b")


@deadline(300)
def test_an_error_of_the_copys_disk_ends_protection(lab):
    mapped(lab)
    work = DiskGuest(lab, path=MAPPED)
    session = colo.Session(lab, work.guest, verify=False, interval_ms=2000)
    session.wait_protected()
    spoil(lab, "b")
    check("failed" not in touch(work.guest, "write", BAD_AT), "the guest met the copy's error")
    ends_with(lab, work, session, "Input/output error")


@deadline(300)
def test_a_copy_that_stalls_delays_writes_and_is_given_up_at_last(lab):
    work = DiskGuest(lab, workers=8)
    session = colo.Session(lab, work.guest, verify=False, interval_ms=2000)
    session.wait_protected()
    colo.kill_by_name(lab, "b", "colo-blkd", signal.SIGSTOP)
    time.sleep(2)
    colo.kill_by_name(lab, "b", "colo-blkd", signal.SIGCONT)
    status = session.status()
    session.wait_checkpoints(status["checkpoints"] + 3, 60)
    work.wait_work(100)
    colo.kill_by_name(lab, "b", "colo-blkd", signal.SIGSTOP)
    equal(session.wait_end(90), 3, "exit status of xl remus")
    work.wait_work(100)
    work.no_harm("a")
    colo.check_nothing_left(lab, "a", work.guest)
    # What was committed is still to be brought to that disk: it is waited for.
    check("colo-blkd" in lab.execute("b", "pgrep -l colo-").stdout, "it was not waited for")
    colo.kill_by_name(lab, "b", "colo-blkd", signal.SIGCONT)
    colo.check_nothing_left(lab, "b")


@deadline(300)
def test_a_copys_host_that_is_lost_while_it_applies_leaves_the_disk_alone(lab):
    work = DiskGuest(lab)
    session = colo.Session(lab, work.guest, verify=False, interval_ms=2500,
                           peer_env="REMUS_TEST_STOP_AT=\"applying epoch 3\"")
    session.wait_protected()
    colo.wait_stopped_worker(lab, "b")
    lab.freeze("b")
    equal(session.wait_end(90), 3, "exit status of xl remus")
    work.wait_work(100)
    work.no_harm("a")
    colo.check_nothing_left(lab, "a", work.guest)


@deadline(300)
def test_what_a_takeover_left_to_do_survives_the_death_of_colo_blkd(lab):
    """The disk there is slow: its colo-blkd dies, twice, while things still lie over the disk."""
    mapped(lab)
    lab.execute("b", "rm -f /var/log/xen/remus-g1.log")
    work = DiskGuest(lab, path=MAPPED)
    session = colo.Session(lab, work.guest, verify=False, interval_ms=4000)
    session.wait_protected()
    work.wait_work(100)
    lab.execute("b", "L=$(losetup -n -O NAME -j /var/lib/lab/g1.back); echo 0 %d delay $L 0 0 $L 0 "
                "60 | dmsetup load g1; dmsetup resume g1" % (64 * MIB // 512))
    work.wait_work(50)
    lab.kill("a")
    colo.wait_active(lab, "b", work.name)
    for count in range(1, 3):
        colo.kill_by_name(lab, "b", "colo-blkd")
        wait(lambda n=count: lab.execute("b", "cat /var/log/xen/remus-g1.log").stdout.count(
            "another colo-blkd serves") == n, 30, "another colo-blkd", 0.2)
    log = lab.execute("b", "cat /var/log/xen/remus-g1.log").stdout
    at, dead = log.find("everything is on the disks"), log.rfind("another colo-blkd serves")
    check(at < 0 or at > dead, "everything was on the disks before: " + log)
    work.wait_work(100)
    wait(lambda: lab.execute("b", "! pgrep -x colo-blkd", check=False).returncode == 0, 90,
         "blkback to have the disk", 1)
    work.wait_work(100)
    work.no_harm("b")
    session.process.kill()


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
