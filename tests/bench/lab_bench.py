#!/usr/bin/env python3
"""Figures of the lab against the distribution's tools and an unprotected guest, in one run.

    tests/bench/lab_bench.py [stops|saver|traffic|link|disks]...

Hosts are emulated and share two cores: only the ratios mean anything.
"""

import json
import os
import statistics
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lab"))

import colo  # noqa: E402
import labtest  # noqa: E402
import test_blkd  # noqa: E402
from lablib import common  # noqa: E402

INTERVAL_MS = 500
SAMPLE_S = 30
ROUNDS = 3
BULK_BYTES = 2000000
DIRTY_PAGES_PER_S = 500
DISK_MB = 128
FIO_S = 6
FIO_ROUNDS = 3


def row(name, ours, theirs, unit, ratio):
    print("%-46s %10.2f %10.2f %-8s %6.2f" % (name, ours, theirs, unit, ratio), flush=True)


def stock_remus_stops(lab, guest):
    """Stops of the guest under the distribution's xl remus, memory to nowhere, no buffering."""
    stock = lab.execute("a", "ls /usr/lib/xen-*/bin/xl").stdout.split()[0]
    process = lab.spawn("a", "%s remus -F -b -n -d -i %d %s nowhere" %
                        (stock, INTERVAL_MS, guest.name), name="stock")
    time.sleep(12)
    sample = lab.sample_stops("a", guest.domid("a"), SAMPLE_S)
    # It leaves the guest suspended when it is ended; destroying the guest is the only way out.
    lab.execute("a", "xl destroy " + guest.name, check=False)
    process.kill()
    return sample


def our_stops(lab, guest):
    session = colo.Session(lab, guest, interval_ms=INTERVAL_MS, verify=False, options="-n -F")
    session.wait_protected()
    time.sleep(5)
    sample = lab.sample_stops("a", guest.domid("a"), SAMPLE_S)
    session.stop()
    return sample


def stops(lab):
    ours, theirs = [], []
    for _ in range(ROUNDS):
        lab.put_in_order()
        guest = lab.guest("a")
        guest.dirty(DIRTY_PAGES_PER_S)
        ours.append(our_stops(lab, guest))
        theirs.append(stock_remus_stops(lab, guest))
    for figure in ("median", "p90", "max"):
        o = statistics.median(s[figure] for s in ours)
        t = statistics.median(s[figure] for s in theirs)
        row("guest stopped per checkpoint, %s" % figure, o, t, "ms", o / t)


def saver(lab):
    """The same xl save of the same guest, with their save helper and with ours."""
    lab.put_in_order()
    guest = lab.guest("a")
    pages = int(lab.execute("a", "xl list %s | awk 'END { print $3 * 256 }'" % guest.name).stdout)
    command = ("s=$(date +%%s%%N); %s xl save -c %s /dev/null >/dev/null 2>&1 || exit;"
               " e=$(date +%%s%%N); echo $((e - s))")
    rates = {"": [], "LIBXL_SAVE_HELPER=/usr/local/lib/remus/remus-save-helper": []}
    for _ in range(ROUNDS):
        for helper, found in rates.items():
            ns = int(lab.execute("a", command % (helper, guest.name), timeout_s=120).stdout)
            found.append(pages / (ns / 1e9))
    t, o = (statistics.median(found) for found in rates.values())
    row("saver, pages per second of a whole xl save", o, t, "pages/s", o / t)


def traffic(lab):
    lab.put_in_order()
    guest = lab.guest("a")

    def measure():
        latency = lab.run_client(guest, 15, long=20)["classes"]["long"]["latency_ms"]
        down = lab.run_client(guest, 15, bulk_down=BULK_BYTES)["classes"]["bulk-down"]
        up = lab.run_client(guest, 15, bulk_up=BULK_BYTES)["classes"]["bulk-up"]
        return (latency["p50"], latency["p99"], down["bytes_per_s"] / 1e6,
                up["bytes_per_s"] / 1e6)

    plain = measure()
    session = colo.Session(lab, guest, verify=False)
    session.wait_protected()
    time.sleep(5)
    protected = measure()
    status = session.status()
    session.stop()
    for name, unit, o, t in (("request latency, p50", "ms", protected[0], plain[0]),
                             ("request latency, p99", "ms", protected[1], plain[1]),
                             ("bulk TCP from the guest", "MB/s", protected[2], plain[2]),
                             ("bulk TCP to the guest", "MB/s", protected[3], plain[3])):
        row(name + " (against unprotected)", o, t, unit, o / t)
    print("checkpoints %d, asked for: %s" % (status["checkpoints"], status["requested"]))


LINKS = {"plain": "--plain", "plain, lz4": "--plain --compress lz4", "encrypted": "",
         "encrypted, lz4": "--compress lz4"}
LINK_CHECKPOINTS = 6


def link_figures(lab, options):
    """Initial copy, ms; of its checkpoints: ms until 1000 pages are acknowledged, bytes a page."""
    lab.put_in_order()
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=1500, verify=False, options=options)
    copy = session.wait_protected()["copy"]
    guest.dirty(DIRTY_PAGES_PER_S * 4)
    acks, sizes, seen = [], [], session.status()["checkpoints"]
    while len(acks) < LINK_CHECKPOINTS:
        status = session.wait_checkpoints(seen + 1, 60)
        seen = status["checkpoints"]
        if status["dirty_pages"] > 1000:
            acks.append(status["ack_us"] / 1000 / status["dirty_pages"] * 1000)
            sizes.append(status["epoch_bytes"] / status["dirty_pages"])
    session.stop()
    return copy["ms"], statistics.median(acks), statistics.median(sizes)


def link(lab):
    """The same guest through each kind of connection between the hosts, in turn."""
    found = {name: [] for name in LINKS}
    for _ in range(ROUNDS):
        for name, options in LINKS.items():
            found[name].append(link_figures(lab, options))
    median = {name: [statistics.median(f[i] for f in rounds) for i in range(3)]
              for name, rounds in found.items()}
    for name in LINKS:
        for i, (what, unit) in enumerate((("initial copy", "ms"),
                                          ("1000 pages sent and acknowledged", "ms"),
                                          ("bytes for a page of a checkpoint", "bytes"))):
            row("%s, %s" % (what, name), median[name][i], median["plain"][i], unit,
                median[name][i] / median["plain"][i])


# What fio does: its options, the figure of its report, and how it is called.
FIO_JOBS = [
    ("--rw=randread --bs=4k --iodepth=16", "read", "iops", "random 4 KB reads, IOPS"),
    ("--rw=randwrite --bs=4k --iodepth=16", "write", "iops", "random 4 KB writes, IOPS"),
    ("--rw=read --bs=1M --iodepth=4", "read", "bw", "sequential 1 MB reads, KiB/s"),
    ("--rw=write --bs=1M --iodepth=4", "write", "bw", "sequential 1 MB writes, KiB/s"),
]

# dom0's fio, with its libraries, as a file system for the guests, the same on both hosts.
FIO_IMAGE = r"""
cd /var/lib/lab && [ -e fio.img ] && exit
rm -rf fio && mkdir -p fio
for file in /usr/bin/fio $(ldd /usr/bin/fio | grep -o '/[^ ]*'); do cp -L "$file" fio/; done
mke2fs -q -t ext4 -d fio fio.img 96M
scp -q fio.img b:/var/lib/lab/
"""


def fio(guest, figures):
    """Each job once."""
    for options, direction, figure, name in FIO_JOBS:
        report = guest.run(
            "[ -e /mnt/fio ] || { mkdir -p /mnt && mount -t ext4 -o ro /dev/xvdb /mnt; }\n"
            "/mnt/ld-linux-x86-64.so.2 --library-path /mnt /mnt/fio --name=x --filename=/dev/xvda "
            "--ioengine=libaio --direct=1 %s --runtime=%d --time_based --size=%dM "
            "--output-format=json" % (options, FIO_S, DISK_MB), 180)
        job = json.loads(report[report.index("{"):])["jobs"][0]
        figures.setdefault(name, []).append(job[direction][figure])


def disks(lab):
    """One file as a guest's disk behind four backends in turn."""
    image = "/var/lib/lab/g1.img"
    lab.put_in_order()
    for host in ("a", "b"):
        lab.execute(host, "mkdir -p /var/lib/lab; dd if=/dev/zero of=%s bs=1M count=%d "
                    "status=none" % (image, DISK_MB), timeout_s=120)
    lab.execute("a", FIO_IMAGE, timeout_s=120)
    options = {"disk_mb": DISK_MB, "memory_mb": 192,
               "disks": ("format=raw,vdev=xvdb,access=ro,target=/var/lib/lab/fio.img",)}
    blkback, qdisk, alone, protected = {}, {}, {}, {}
    for _ in range(FIO_ROUNDS):
        lab.put_in_order()
        guest = lab.guest("a", disk_options="backendtype=qdisk", **options)
        fio(guest, qdisk)
        lab.put_in_order()
        disk = test_blkd.Disk(lab, workers=0, **options)
        fio(disk.guest, blkback)
        disk.do("take")
        fio(disk.guest, alone)
        disk.do("give")
        disk.process.kill()
        session = colo.Session(lab, disk.guest, verify=False)
        session.wait_protected(300)
        fio(disk.guest, protected)
        session.stop()
    for _, _, _, name in FIO_JOBS:
        b, q, a, p = (statistics.median(f[name]) for f in (blkback, qdisk, alone, protected))
        for title, ours, theirs in ((", colo-blkd : qdisk", a, q), (", colo-blkd : blkback", a, b),
                                    (", protected : qdisk", p, q),
                                    (", protected : blkback", p, b)):
            row(name.split(",")[0] + title, ours, theirs, name.split(", ")[1], ours / theirs)


PARTS = {"stops": stops, "saver": saver, "traffic": traffic, "link": link, "disks": disks}


def main(argv):
    unknown = [a for a in argv if a not in PARTS]
    if unknown:
        print("usage: lab_bench.py [%s]..." % "|".join(PARTS))
        return 2
    os.environ["LAB_FLAVOUR"] = "bench"
    lab = labtest.TestLab(os.environ.get("LAB") or "bench")
    lab.begin("bench")
    was_up = bool(lab.hosts())
    try:
        lab.up(2)
        lab.install()
        print("%-46s %10s %10s %-8s %6s" % ("", "ours", "theirs", "", "ratio"))
        for name in argv or PARTS:
            PARTS[name](lab)
        return 0
    except (AssertionError, OSError, common.LabError) as error:
        print("bench: %s" % error)
        return 1
    finally:
        for thing in lab.running:
            thing.kill()
        if not was_up:
            lab.down()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
