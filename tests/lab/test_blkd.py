#!/usr/bin/env python3
"""colo-blkd as the backend of a real guest's disk, taken from the kernel's blkback while the guest
works on it, and given back. The coordinator is played by tools/disk-driver.c in dom0; the guest's
own work (guest/labdisk.h) checks every sector that it reads against what it wrote."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import labtest  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402
from lablib import common  # noqa: E402

INSTALL = True

HOST = "a"
DRIVER = os.path.join(common.TOP, "build/tests/lab/disk-driver")
BLKD = "/usr/local/lib/remus/colo-blkd"
COUNTS = ("writes", "reads", "flushes", "errors", "wrong", "longest_ms")


class Disk:
    """A guest with a disk that it works on, and the driver."""

    def __init__(self, lab, workers=4, disk_mb=64, **options):
        self.lab = lab
        self.guest = lab.guest(HOST, disk_mb=disk_mb, **options)
        self.domid = self.guest.domid(HOST)
        lab.push(HOST, [DRIVER], "/root/")
        self.process = lab.spawn(
            HOST, "rm -f /run/dd; mkfifo /run/dd; exec 3<>/run/dd; exec /root/disk-driver %d %s <&3"
            % (self.domid, BLKD), "driver")
        wait(lambda: "ready\n" in self.log(), 30, "the driver is ready: " + self.log())
        self.said = 0
        self.workers = workers
        self.work(workers)

    def log(self):
        with open(self.process.log_path) as f:
            return f.read()

    def answers(self):
        return [line for line in self.log().splitlines() if " ok " in line or " failed: " in line]

    def do(self, words, timeout_s=90):
        """The driver's answer to some words, as a dictionary of its figures."""
        self.lab.execute(HOST, "echo %s > /run/dd" % words)
        self.said += 1
        wait(lambda: len(self.answers()) >= self.said, timeout_s, "an answer to '%s'" % words)
        answer = self.answers()[self.said - 1]
        check(answer.startswith(words + " ok "), answer + "\n" + self.log()[-600:])
        figures = answer[len(words) + 4:].split()
        return {name: int(value) for name, value in zip(figures[::2], figures[1::2])}

    def work(self, workers):
        equal(self.guest.ask(7009, "disk %d" % workers, 60), "ok", "work on the disk")

    def counts(self):
        return dict(zip(COUNTS, map(int, self.guest.ask(7009, "stats").split())))

    def wait_work(self, operations, timeout_s=90):
        """The guest does so many more writes and reads; all of them were good."""
        before = self.counts()

        def probe():
            now = self.counts()
            equal((now["errors"], now["wrong"]), (0, 0), "errors and wrong sectors")
            return now["writes"] + now["reads"] >= before["writes"] + before["reads"] + operations \
                and now
        return wait(probe, timeout_s, "%d more operations" % operations, 0.5)

    def no_harm(self):
        """The work stops without an error, and the kernel of the guest had nothing to say."""
        self.work(0)
        now = self.counts()
        equal((now["errors"], now["wrong"]), (0, 0), "errors and wrong sectors")
        console = self.guest.console(HOST)
        for words in ("I/O error", "response has wrong", "disabled for further use"):
            check(words not in console, console[-800:])


@deadline(400)
def test_a_disk_is_taken_from_blkback_under_io_and_given_back(lab):
    disk = Disk(lab)
    disk.wait_work(100)
    for _ in range(3):
        taken = disk.do("take")
        equal(taken["disks"], 1, "disks")
        disk.wait_work(200)
        stats = disk.do("stats")
        check(stats["writes"] > 20 and stats["reads"] > 20, "colo-blkd did nothing: %s" % stats)
        equal((stats["bad"], stats["errors"]), (0, 0), "bad requests and errors")
        given = disk.do("give")
        disk.wait_work(100)
        print("# guest paused %.1f ms for taking; without a backend %.1f ms for giving" %
              (taken["paused_us"] / 1000, given["away_us"] / 1000))
    disk.no_harm()


@deadline(400)
def test_fifty_checkpoints_under_io_lose_no_request(lab):
    disk = Disk(lab, vcpus=2)
    disk.do("take")
    rested = disk.do("rest 50")
    print("# at rest and attached again: mean %.1f ms, most %.1f ms" %
          (rested["mean_us"] / 1000, rested["most_us"] / 1000))
    disk.wait_work(200)
    disk.do("give")
    disk.wait_work(50)
    disk.no_harm()


@deadline(400)
def test_a_killed_daemon_costs_a_delay_and_no_request(lab):
    disk = Disk(lab, vcpus=2)
    disk.do("take")
    disk.wait_work(50)
    again = 0
    for _ in range(10):
        disk.do("kill")
        disk.do("revive")
        disk.wait_work(30)
    for line in disk.log().splitlines():
        if "done again" in line:
            again += int(line.split(": ")[3].split()[0])
    print("# 10 kills: %d requests were done again" % again)
    check(again > 0, "no kill met a request under way")
    disk.do("give")
    disk.wait_work(50)
    disk.no_harm()


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
