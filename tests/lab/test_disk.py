#!/usr/bin/env python3
"""A protected guest with a disk: made equal under load, replicated with its epochs, taken over. The
guest's own work (guest/labdisk.c) knows what it wrote to every sector and checks what it reads."""

import os
import random
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402

INSTALL = True

COUNTS = ("writes", "reads", "flushes", "errors", "wrong", "longest_ms")
MIB = 1 << 20


class DiskGuest:
    """A guest whose disk is on both hosts; the other host's holds something else at first. A path
    in /dev is there already."""

    def __init__(self, lab, disk_mb=64, workers=4, path="/var/lib/lab/g1.img", disks=(), **options):
        self.lab, self.workers, self.size, self.path = lab, workers, disk_mb * MIB, path
        if not path.startswith("/dev/"):
            for host in ("a", "b"):
                lab.execute(host, "mkdir -p $(dirname %s); rm -f %s; truncate -s %dM %s" %
                            (path, path, disk_mb, path))
            lab.execute("b", "dd if=/dev/urandom of=%s bs=1M count=3 seek=1 conv=notrunc "
                        "status=none" % path)
        disk = "format=raw,vdev=xvda,access=rw,target=%s" % path
        self.guest = lab.guest("a", disks=(disk, *disks), **options)
        self.name = self.guest.name
        self.work(workers)

    def work(self, workers):
        equal(self.guest.ask(7009, "disk %d" % workers, 90), "ok", "work on the disk")

    def counts(self):
        return dict(zip(COUNTS, map(int, self.guest.ask(7009, "stats", 90).split())))

    def wait_work(self, operations, timeout_s=90):
        """The guest does so many more writes and reads; all of them were good."""
        before = self.counts()

        def probe():
            now = self.counts()
            equal((now["errors"], now["wrong"]), (0, 0), "errors and wrong sectors")
            return now["writes"] + now["reads"] >= before["writes"] + before["reads"] + operations \
                and now
        return wait(probe, timeout_s, "%d more operations" % operations, 0.5)

    def no_harm(self, host):
        """The work stops without an error, and the kernel of the guest had nothing to say."""
        self.work(0)
        now = self.counts()
        equal((now["errors"], now["wrong"]), (0, 0), "errors and wrong sectors")
        console = self.guest.console(host)
        for words in ("I/O error", "response has wrong", "disabled for further use"):
            check(words not in console, console[-800:])

    def disk(self, session, host="a"):
        """The disk's figures in the newest status."""
        return session.status(host)["disks"][0]

    def checksum(self, host):
        return self.lab.execute(host, "sha256sum <%s" % self.path, timeout_s=60).stdout


@deadline(300)
def test_disks_are_made_equal_under_load_and_stay_so(lab):
    work = DiskGuest(lab)
    lab.execute("b", "mv %s %s.away" % (work.path, work.path))
    result = lab.execute("a", "xl remus --colo -F g1 b", check=False, timeout_s=60)
    check(result.returncode == 2 and "b: " + work.path in result.stderr + result.stdout,
          "without the disk over there: %d %s" % (result.returncode, result.stderr))
    lab.execute("b", "mv %s.away %s" % (work.path, work.path))
    session = colo.Session(lab, work.guest, interval_ms=2000)
    session.wait_protected()
    synced = work.disk(session)
    equal(synced["sync_done_bytes"], work.size, "bytes compared")
    # What differs: the garbage over there, and what the workers have written, half of the disk.
    check(3 * MIB <= synced["sync_sent_bytes"] <= work.size * 3 / 4, "sent: %s" % synced)
    session.wait_checkpoints(8, 90)
    work.wait_work(50)
    # Nothing is written any more: the next checkpoint has everything.
    work.no_harm("a")
    session.wait_checkpoints(session.status()["checkpoints"] + 2, 60)
    equal(session.status()["verify_bad"], 0, "pages that differ")
    equal(session.stop(), 0, "exit status of xl remus")
    equal(work.checksum("a"), work.checksum("b"), "contents of the disks")
    work.work(work.workers)
    work.wait_work(50)
    work.no_harm("a")
    colo.check_nothing_left(lab, "a", work.guest)
    colo.check_nothing_left(lab, "b")


@deadline(300)
def test_the_copy_goes_on_with_the_disk_that_it_knows(lab):
    """Also one that has a ring for each vCPU."""
    for host in ("a", "b"):
        lab.execute(host, "echo 2 >/sys/module/xen_blkback/parameters/max_queues")
    work = DiskGuest(lab, vcpus=2)
    nodes = lab.execute("a", "xenstore-ls /local/domain/%d/device/vbd/51712" %
                        work.guest.domid("a")).stdout
    check('multi-queue-num-queues = "2"' in nodes, nodes)
    session = colo.Session(lab, work.guest, interval_ms=3000, verify=False)
    session.wait_protected()
    session.wait_checkpoints(4, 60)
    before = work.wait_work(100)
    lab.kill("a")
    colo.wait_active(lab, "b", work.name)
    work.wait_work(200)
    after = work.counts()
    check(after["writes"] > before["writes"], "the guest went back: %s, %s" % (before, after))
    # Everything is on the disk soon, and the kernel's backend serves it then.
    wait(lambda: lab.execute("b", "ls /sys/bus/xen-backend/drivers/vbd | grep -x vbd-%d-51712; "
                             "! pgrep -x colo-blkd" % work.guest.domid("b"),
                             check=False).returncode == 0, 90, "blkback to have the disk", 1)
    work.wait_work(200)
    work.no_harm("b")
    session.process.kill()


class Database(threading.Thread):
    """A database on a protected guest's disk, and a client that counts what was acknowledged."""

    def __init__(self, lab):
        super().__init__(daemon=True)
        self.path = "/var/lib/lab/g1.img"
        for host in ("a", "b"):
            lab.execute(host, "mkdir -p /var/lib/lab; rm -f %s; truncate -s 64M %s" %
                        (self.path, self.path))
        lab.execute("a", "mke2fs -q -t ext4 " + self.path, timeout_s=60)
        self.lab, self.guest = lab, lab.guest("a", disk_mb=64)
        self.stream = self.guest.connect(7010, 120).makefile("rwb")
        self.acknowledged, self.number, self.ending, self.error = 0, 0, False, None
        equal(self.ask("open"), "ok", "opening the database")

    def ask(self, line):
        self.stream.write(line.encode() + b"\n")
        self.stream.flush()
        return self.stream.readline().decode().rstrip("\n")

    def run(self):
        try:
            while not self.ending:
                self.number += 1
                equal(self.ask("put %d" % self.number), "ok %d" % self.number, "a commit's answer")
                self.acknowledged = self.number
        except (OSError, AssertionError) as e:
            self.error = e

    def wait_commits(self, count, timeout_s=90):
        wanted = self.acknowledged + count
        wait(lambda: self.acknowledged >= wanted or self.error, timeout_s, "%d commits" % count)
        check(not self.error, "the client: %s" % self.error)

    def end(self, host):
        """Everything acknowledged is there; database and file system are whole."""
        self.ending = True
        self.join(90)
        check(not self.error and not self.is_alive(), "the client: %s" % self.error)
        equal(self.ask("check %d" % self.acknowledged), "0 %d ok" % self.acknowledged,
              "missing rows, rows, what the database says")
        equal(self.ask("close"), "ok", "closing the database")
        result = self.lab.execute(host, "e2fsck -fn " + self.path, check=False, timeout_s=60)
        equal(result.returncode, 0, "e2fsck: " + result.stdout)


def power_failure(lab, rng):
    database = Database(lab)
    session = colo.Session(lab, database.guest, interval_ms=2000, verify=False)
    session.wait_protected()
    database.start()
    database.wait_commits(20)
    time.sleep(rng.uniform(0, 4))
    before = database.acknowledged
    lab.kill("a")
    colo.wait_active(lab, "b", "g1")
    database.wait_commits(20)
    database.end("b")
    session.process.kill()
    print("# %d commits acknowledged before the power failed, %d in all" %
          (before, database.acknowledged))


@deadline(300)
def test_no_acknowledged_commit_is_lost_when_the_power_fails(lab):
    power_failure(lab, random.Random(os.urandom(8)))


def lost_daemon(lab, host, text):
    """colo-blkd of one host is killed under I/O: protection ends, the guest works on."""
    work = DiskGuest(lab)
    session = colo.Session(lab, work.guest, interval_ms=3000, verify=False)
    session.wait_protected()
    work.wait_work(100)
    colo.kill_by_name(lab, host, "colo-blkd")
    equal(session.wait_end(90), 3, "exit status of xl remus")
    check(text in session.log(), session.log()[-600:])
    work.wait_work(200)
    work.no_harm("a")
    colo.check_nothing_left(lab, "a", work.guest)
    colo.check_nothing_left(lab, "b")


@deadline(300)
def test_the_death_of_the_primarys_colo_blkd_costs_a_delay(lab):
    lost_daemon(lab, "a", "colo-blkd ")


@deadline(300)
def test_the_death_of_the_copys_colo_blkd_ends_protection(lab):
    lost_daemon(lab, "b", "colo-blkd ")


@deadline(300)
def test_a_killed_coordinator_leaves_the_guest_its_disk(lab):
    """The copy takes over, or the guest goes on here; its disk is served in either case."""
    work = DiskGuest(lab)
    session = colo.Session(lab, work.guest, interval_ms=3000, verify=False)
    session.wait_protected()
    work.wait_work(50)
    lab.execute("a", "kill -9 %d" % colo.worker_pid(lab, "a"))
    code = session.wait_end(90)
    host = "b" if work.guest.domid("a") is None else "a"
    work.wait_work(200)
    work.no_harm(host)
    print("# exit status %d, the guest is on %s" % (code, host))


@deadline(300)
def test_a_second_synchronisation_sends_what_has_changed(lab):
    work = DiskGuest(lab, workers=2)
    session = colo.Session(lab, work.guest, verify=False)
    session.wait_protected()
    work.no_harm("a")
    session.wait_checkpoints(session.status()["checkpoints"] + 2, 60)
    equal(session.stop(), 0, "exit status of xl remus")
    equal(work.checksum("a"), work.checksum("b"), "contents of the disks")
    session = colo.Session(lab, work.guest, verify=False)
    session.wait_protected()
    again = work.disk(session)
    equal(again["sync_done_bytes"], work.size, "bytes compared")
    equal(again["sync_sent_bytes"], 0, "bytes sent, nothing having changed")
    session.stop()


@deadline(300)
def test_fifty_checkpoints_under_checked_work(lab):
    work = DiskGuest(lab)
    session = colo.Session(lab, work.guest, interval_ms=500)
    session.wait_protected()
    status = session.wait_checkpoints(50, 200)
    equal(status["verify_bad"], 0, "pages that differ")
    check(status["disks"][0]["writes"] > 50, "writes: %s" % status["disks"])
    work.wait_work(50)
    work.no_harm("a")
    equal(session.stop(), 0, "exit status of xl remus")


@deadline(300)
def test_every_kind_of_disk_and_ring_survives_a_failover(lab):
    """A ring of several pages, read-only disks, discards."""
    for host in ("a", "b"):
        lab.execute(host, "mkdir -p /var/lib/lab; cd /var/lib/lab; for n in ro cd; do "
                    "yes $n | head -c 4M >$n.img; done")
    # Linux keeps 17 MiB of pages for each such ring.
    work = DiskGuest(lab, memory_mb=192, args="xen_blkfront.max_ring_page_order=2", disks=(
        "format=raw,vdev=xvdb,access=ro,target=/var/lib/lab/ro.img",
        "format=raw,vdev=xvdc,access=ro,target=/var/lib/lab/cd.img"))
    nodes = lab.execute("a", "xenstore-ls /local/domain/%d/device/vbd/51712" %
                        work.guest.domid("a")).stdout
    check('ring-page-order = "2"' in nodes, nodes)
    read = "md5sum </dev/xvdb; md5sum </dev/xvdc; cat /sys/block/xvd[abc]/ro"
    before = work.guest.run("echo 3 >/proc/sys/vm/drop_caches; " + read)
    session = colo.Session(lab, work.guest, interval_ms=2000, verify=False)
    equal(len(session.wait_protected()["disks"]), 3, "disks")
    session.wait_checkpoints(3, 60)
    work.wait_work(100)
    work.guest.run("blkdiscard -o %d -l %d /dev/xvda" % (work.size - MIB, MIB))
    equal(work.guest.run("echo 3 >/proc/sys/vm/drop_caches; " + read), before, "what they hold")
    lab.kill("a")
    colo.wait_active(lab, "b", work.name)
    work.wait_work(200)
    equal(work.guest.run("echo 3 >/proc/sys/vm/drop_caches; " + read), before, "what they hold")
    work.no_harm("b")
    session.process.kill()


@deadline(300)
def test_shared_storage_is_neither_sent_nor_lost(lab):
    """-d: both hosts reach the same disk; the copy goes on with what the guest wrote to it."""
    work = DiskGuest(lab, workers=2, path="/dev/vdb")
    work.wait_work(50)
    refusal = lab.execute("a", "xl remus --plain --arbiter manual -d g1 b", check=False)
    check(refusal.returncode == 2 and "-F says that you accept this" in refusal.stderr, refusal)
    session = colo.Session(lab, work.guest, mode="remus", options="-d", verify=False)
    session.wait_protected()
    work.wait_work(50)
    work.no_harm("a")
    content = "dd if=/dev/xvda bs=1M count=16 iflag=direct 2>/dev/null | md5sum"
    before = work.guest.run(content)
    session.wait_checkpoints(session.status()["checkpoints"] + 2, 60)
    disk = work.disk(session)
    equal((disk["sync_done_bytes"], disk["sync_sent_bytes"]), (0, 0), "bytes of the disk sent")
    lab.kill("a")
    colo.wait_active(lab, "b", work.name)
    equal(work.guest.run(content), before, "what the copy reads")
    work.work(2)
    work.wait_work(100)
    work.no_harm("b")
    session.process.kill()


@deadline(300)
def test_a_guest_with_a_disk_may_reboot_and_power_off(lab):
    work = DiskGuest(lab)
    session = colo.Session(lab, work.guest, verify=False)
    session.wait_protected()
    before = work.guest.domid("a")
    work.guest.ask(7007, "reboot")
    equal(session.wait_end(90), 4, "exit status of xl remus")
    wait(lambda: work.guest.domid("a") not in (None, before), 90, "the guest's next life", 1)
    lab.guest_wait("a", work.name)
    colo.check_nothing_left(lab, "b")
    work.work(work.workers)
    session = colo.Session(lab, work.guest, verify=False)
    session.wait_protected()
    work.wait_work(50)
    work.guest.ask(7007, "poweroff")
    equal(session.wait_end(90), 4, "exit status of xl remus")
    wait(lambda: work.name not in lab.execute("a", "xl list").stdout, 60, "the guest to go")
    check(work.name not in lab.execute("b", "xl list").stdout, "the copy is still there")
    colo.check_nothing_left(lab, "a")
    colo.check_nothing_left(lab, "b")
    # Nobody holds the files any more.
    for host in ("a", "b"):
        equal(lab.execute(host, "losetup -n -j " + work.path).stdout, "", "loop devices of " + host)


@deadline(300)
def test_a_link_cut_during_the_synchronisation_leaves_the_guest_alone(lab):
    work = DiskGuest(lab)
    session = colo.Session(lab, work.guest, options="--sync-rate 2", verify=False)
    wait(lambda: (session.status() or {}).get("disks"), 60, "the synchronisation begins")
    wait(lambda: work.disk(session)["sync_done_bytes"], 60, "it compares")
    lab.cut("repl")
    code = session.wait_end(90)
    check(code in (3, 6), "exit status %d" % code)
    lab.mend("repl")
    work.wait_work(100)
    work.no_harm("a")
    colo.check_nothing_left(lab, "a", work.guest)
    colo.check_nothing_left(lab, "b")


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
