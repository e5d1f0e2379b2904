#!/usr/bin/env python3
"""The same guest and workloads through every mode, the distribution's xl remus, and unprotected.

    tests/bench/modes_bench.py [--modes M,...] [--workloads W,...] [--seconds N] [--out DIR] [--add]

After each measurement the primary's host is silenced under a client, and what the copy has is
looked at. Writes modes.md, modes.html and modes.json to build/bench, anew after each cell, so that
a run that is ended early leaves what it had. A cell that fails is shown with its reason and does
not keep the others from being measured; the exit status is 1 then. What the figures mean stands in
the report itself (modes_report.py). Hosts are emulated and share two cores: only ratios mean
anything.
"""

import argparse
import contextlib
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lab")]

import colo  # noqa: E402
import labtest  # noqa: E402
import modes_report  # noqa: E402
from lablib import common  # noqa: E402
from labtest import check, equal, wait  # noqa: E402

SAMPLE_US = 2000        # of the sampler: at 0.5 ms it would take a third of an emulated dom0
WARM_UP_S = 2
AUTO_DECIDES_S = 14     # auto looks back 10 s before it changes
CLIENTS = 8
BULK_BYTES = 1000000
BULK_BYTES_AT_LOSS = 200000
WORK_ROUNDS = 16        # of arithmetic for each page: some 1000 pages a second in the lab
WORK_PAGES = 4096
CELL_S = 240
TAKEOVER_S = 60
GO_ON_S = 12            # for a connection to go on after the takeover
GO_ON_STOCK_S = 22      # where nothing shortens TCP's own back-off
STOCK_SSH_PORT = 2222
STOCK_INTERVAL_MS = 200

WINDOW = r"""
s=/sys/class/net/repl/statistics
now() { read up rest </proc/uptime; echo "$up $(cat $s/tx_bytes) $(cat $s/rx_bytes)"; }
now; sampler -v -i %d -s %g %d; now
"""

# An sshd that gives up a peer which says nothing, as ours does after 5 s.
STOCK_SSHD = r"""
pid=$(cat /run/sshd-stock.pid 2>/dev/null) && kill -0 "$pid" 2>/dev/null && exit
/usr/sbin/sshd -p %d -o PidFile=/run/sshd-stock.pid -o ClientAliveInterval=1 \
    -o ClientAliveCountMax=5
""" % STOCK_SSH_PORT

DB_IMAGE = "/var/lib/lab/g1.img"
DB_SAVED = "/var/lib/lab/saved/db"


def percentiles(values):
    """As the client makes them."""
    if not values:
        return None
    v = sorted(values)
    n = len(v)
    return {"p50": v[n // 2], "p90": v[n * 9 // 10], "p99": v[n * 99 // 100], "max": v[-1],
            "count": n}


# ---- what watches the guest ----

class Window:
    """The guest's stops and the link's bytes for some seconds, seen from its host."""

    def __init__(self, cell, seconds):
        self.seconds = seconds
        self.process = cell.lab.spawn("a", WINDOW % (SAMPLE_US, seconds, cell.domid), name="window")

    def result(self):
        self.process.wait(self.seconds + 60)
        with open(self.process.log_path, encoding="utf-8", errors="replace") as f:
            text = f.read()
        try:
            first, sample, last = text.strip().splitlines()[-3:]
            begin, end = ([float(w) for w in line.split()] for line in (first, last))
            sample = json.loads(sample)
        except ValueError:
            raise labtest.Failure("the sampler's report is broken: " + text[-300:]) from None
        return {"seconds": sample["seconds"], "intervals": sample["intervals_ms"],
                "stopped_ms": sample["total_ms"], "link_s": end[0] - begin[0],
                "link_bytes": end[1] - begin[1] + end[2] - begin[2]}


def stops_of(windows):
    """What several windows saw, as one."""
    seconds = sum(w["seconds"] for w in windows)
    intervals = sorted(i for w in windows for i in w["intervals"])
    found = {"count": len(intervals), "seconds": seconds, "per_s": len(intervals) / seconds,
             "share_percent": sum(w["stopped_ms"] for w in windows) / seconds / 10}
    if intervals:
        p = percentiles(intervals)
        found.update(median=p["p50"], p90=p["p90"], max=p["max"])
    link_s = sum(w["link_s"] for w in windows)
    return found, sum(w["link_bytes"] for w in windows) / link_s / 1e3


class Asker(threading.Thread):
    """Asks on one connection, and notes when answers came and what is wrong with it."""

    PORT = 7000
    PAUSE_S = 0.1

    def __init__(self, guest):
        super().__init__(daemon=True)
        self.socket = guest.connect(self.PORT, 60)
        self.socket.settimeout(None)
        self.stream = self.socket.makefile("rwb")
        self.ending, self.error = False, None
        self.answers, self.last, self.gap_ms, self.sent_at = 0, 0, 0.0, 0.0
        self.latencies_ms = []

    def ask(self, line):
        self.stream.write(line.encode() + b"\n")
        self.stream.flush()
        answer = self.stream.readline().decode()
        if not answer.endswith("\n"):
            raise OSError("the connection ended")
        return answer.rstrip("\n")

    def one(self):
        own, total = map(int, self.ask("inc").split())
        equal(own, self.answers + 1, "count of the connection")
        self.last = total

    def run(self):
        before = time.monotonic()
        try:
            while not self.ending:
                sent = time.monotonic()
                self.one()
                now = time.monotonic()
                self.answers += 1
                self.latencies_ms.append((now - sent) * 1e3)
                self.gap_ms = max(self.gap_ms, (now - before) * 1e3)
                before = now
                time.sleep(self.PAUSE_S)
        except (OSError, ValueError, AssertionError) as e:
            if not self.ending:
                self.error = str(e)

    def kill(self):
        self.ending = True
        try:
            self.socket.shutdown(2)
        except OSError:
            pass
        self.join(10)


class Committer(Asker):
    """Puts rows into the guest's database, one after the other."""

    PORT = 7010
    PAUSE_S = 0

    def one(self):
        equal(self.ask("put %d" % (self.last + 1)), "ok %d" % (self.last + 1), "a commit's answer")
        self.last += 1


class Newcomer(threading.Thread):
    """When a new connection was answered for the first time."""

    def __init__(self, guest):
        super().__init__(daemon=True)
        self.guest, self.began, self.back_ms, self.ending = guest, time.monotonic(), None, False

    def run(self):
        while not self.ending and self.back_ms is None:
            try:
                # A lost SYN comes again after a second; a new attempt each time is as good.
                with self.guest.connect(7003, 3) as s:
                    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    if s.recv(100):
                        self.back_ms = (time.monotonic() - self.began) * 1e3
            except OSError:
                time.sleep(0.2)

    def kill(self):
        self.ending = True
        self.join(10)


# ---- the workloads ----

class Workload:
    """What a cell does with a guest. Subclasses say more."""

    load = {}           # options of the client for as long as it runs
    load_at_loss = None

    def guest(self, lab):
        return lab.guest("a")

    def begin(self, cell):
        if self.load:
            seconds = WARM_UP_S
            if cell.mode == "auto" and isinstance(self, Diverge):
                seconds = AUTO_DECIDES_S
            cell.lab.run_client(cell.guest, seconds, **self.load)

    def measure(self, cell, seconds):
        """Throughput (a list of figures), latencies, windows."""
        window = Window(cell, seconds)
        report = cell.run_client(seconds, **self.load)
        answers = sum(c["answers"] for c in report["classes"].values())
        return ([self.rate("", "requests/s", answers / report["seconds"])],
                cell.latencies(report), [window.result()])

    @staticmethod
    def rate(name, unit, value):
        return {"name": name, "unit": unit, "value": value}

    def start_load(self, cell):
        load = self.load_at_loss or self.load
        return cell.lab.client(cell.guest, timeout=90, **load) if load else None

    def after_loss(self, cell, found):
        pass


class Idle(Workload):
    def measure(self, cell, seconds):
        window = Window(cell, seconds)
        windows = [window.result()]
        return [], cell.latencies(cell.run_client(max(3, seconds / 2), long=200)), windows


class Web(Workload):
    load = {"http": [0] * CLIENTS}


class Diverge(Workload):
    load = {"diverge": [0] * CLIENTS}


class Bulk(Workload):
    load_at_loss = {"bulk_down": BULK_BYTES_AT_LOSS, "bulk_up": BULK_BYTES_AT_LOSS}

    def begin(self, cell):
        cell.lab.run_client(cell.guest, 1, bulk_down=BULK_BYTES_AT_LOSS)

    def measure(self, cell, seconds):
        rates, latencies, windows = [], [], []
        for name, option in (("from the guest", "bulk_down"), ("to the guest", "bulk_up")):
            window = Window(cell, seconds)
            report = cell.run_client(seconds, long=100, **{option: BULK_BYTES})
            bulk = report["classes"].pop(option.replace("_", "-"))
            rates.append(self.rate(name, "MB/s", bulk["bytes_per_s"] / 1e6))
            latencies += cell.latencies(report)
            windows.append(window.result())
        return rates, latencies, windows


class Memory(Workload):
    def begin(self, cell):
        equal(cell.guest.ask(7006, "work %d %d" % (WORK_ROUNDS, WORK_PAGES)), "ok", "work")
        time.sleep(WARM_UP_S)

    @staticmethod
    def progress(cell):
        """Pages done, and when: in the middle between question and answer, which may be held."""
        began = time.monotonic()
        pages = int(cell.guest.ask(7006, "progress"))
        return pages, (began + time.monotonic()) / 2

    def measure(self, cell, seconds):
        before, began = self.progress(cell)
        window = Window(cell, seconds)
        latencies = cell.latencies(cell.run_client(seconds, long=100))
        windows = [window.result()]
        after, ended = self.progress(cell)
        return ([self.rate("", "pages/s", (after - before) / (ended - began))],
                latencies, windows)

    def after_loss(self, cell, found):
        before, _ = self.progress(cell)
        time.sleep(1)
        check(self.progress(cell)[0] > before, "the work does not go on after the takeover")


class Db(Workload):
    """The guest was booted once with its disk and saved with the database open; it is restored with
    a copy of that disk, the same on both hosts."""

    def guest(self, lab):
        disk = "format=raw,vdev=xvda,access=rw,target=" + DB_IMAGE
        if lab.execute("a", "test -e " + DB_SAVED, check=False).returncode != 0:
            lab.execute("a", "mkdir -p /var/lib/lab/saved; rm -f {0}; truncate -s 32M {0};"
                        " mke2fs -q -t ext4 {0}".format(DB_IMAGE), timeout_s=90)
            guest = lab.guest("a", disks=(disk,))
            equal(guest.ask(7010, "open", 90), "ok", "opening the database")
            lab.execute("a", "xl save g1 {0}.new && cp --sparse=always {1} {0}.img && ssh b mkdir "
                        "-p /var/lib/lab/saved && scp -q {0}.img b:{0}.img && mv {0}.new {0}"
                        .format(DB_SAVED, DB_IMAGE), timeout_s=120)
        for host in ("a", "b"):
            lab.execute(host, "cp --sparse=always %s.img %s; sync" % (DB_SAVED, DB_IMAGE),
                        timeout_s=90)
        ip, _ = lab.guest_addresses("g1")
        lab.execute("a", "xl restore " + DB_SAVED, timeout_s=90)
        lab.guest_wait("a", "g1")
        return labtest.Guest(lab, "g1", ip)

    def begin(self, cell):
        self.client = Committer(cell.guest)
        cell.lab.running.append(self.client)
        self.client.start()
        time.sleep(WARM_UP_S)

    def measure(self, cell, seconds):
        window = Window(cell, seconds)
        began, first = time.monotonic(), self.client.answers
        time.sleep(seconds)
        count, took = self.client.answers - first, time.monotonic() - began
        windows = [window.result()]
        check(not self.client.error, "the database's client: %s" % self.client.error)
        check(count, "no commit in %.0f s" % took)
        return ([self.rate("", "commits/s", count / took)],
                self.client.latencies_ms[first:first + count], windows)

    def start_load(self, cell):
        return self.client

    def after_loss(self, cell, found):
        self.client.kill()
        acknowledged = self.client.last
        found["commits"] = acknowledged
        found["commits_lost"] = None
        try:
            said = cell.guest.ask(7010, "check %d" % acknowledged, 60)
        except OSError as e:
            said = str(e)
        words = said.split(None, 2)
        if len(words) == 3 and words[0].isdigit() and words[2] == "ok":
            found["commits_lost"] = int(words[0])
        else:
            found["database"] = "database damaged (%s)" % (said.strip()[:80] or "no answer")


WORKLOADS = {"idle": Idle, "web": Web, "diverge": Diverge, "memory": Memory, "db": Db,
             "bulk": Bulk}


# ---- protection ----

class Stock:
    """The distribution's `xl remus`, memory to the second host."""

    def __init__(self, cell):
        lab = cell.lab
        lab.execute("b", STOCK_SSHD)
        self.xl = lab.execute("a", "ls /usr/lib/xen-*/bin/xl").stdout.split()[0]
        self.cell = cell
        self.process = lab.spawn("a", "%s -v remus -F -n -d -i %d -s 'ssh -p %d' %s b" % (
            self.xl, STOCK_INTERVAL_MS, STOCK_SSH_PORT, cell.guest.name), name="stock")

    def wait_protected(self):
        """It says nothing: it checkpoints when the guest is stopped again and again."""
        seen = []

        def probe():
            check(self.process.poll() is None, "the distribution's xl remus ended: " +
                  common.tail(self.process.log_path, 3))
            seen.append(self.cell.lab.sample_stops("a", self.cell.domid, 1.5)["count"])
            return sum(seen) >= 3
        wait(probe, 120, "checkpoints of the distribution's xl remus", 0.1)

    def note(self):
        return None


class Ours:
    def __init__(self, cell):
        self.mode = cell.mode
        self.session = colo.Session(cell.lab, cell.guest, mode=cell.mode, verify=False)
        self.process = self.session.process

    def wait_protected(self):
        self.session.wait_protected()

    def note(self):
        status = self.session.status()
        check(status and status["protected"], "not protected after the measurement: %s" %
              self.session.log()[-300:])
        asked = {why: n for why, n in status["requested"].items() if n}
        text = "%d checkpoints since the beginning, asked for: %s" % (
            status["checkpoints"], ", ".join("%s %d" % item for item in asked.items()) or "none")
        if self.mode == "auto":
            text += "; running as " + status["running_mode"]
        return text


class Cell:
    """One mode under one workload."""

    def __init__(self, lab, mode, workload):
        self.lab, self.mode, self.workload = lab, mode, WORKLOADS[workload]()
        self.guest = self.domid = None
        self.out = {"status": "failed", "notes": []}

    def run_client(self, seconds, **options):
        """The report of a client that ran so long; each of its classes had answers."""
        report = self.lab.run_client(self.guest, round(seconds), raw=True, **options)
        empty = [n for n, c in report["classes"].items() if not c["answers"] and not c["bytes"]]
        check(not empty, "no answer in %d s to: %s" % (seconds, ", ".join(empty)))
        return report

    @staticmethod
    def latencies(report):
        return [ms for c in report["classes"].values() for ms in c["latencies_ms"]]

    def run(self, seconds):
        self.guest = self.workload.guest(self.lab)
        self.domid = self.guest.domid("a")
        protection = None
        if self.mode != "native":
            protection = Stock(self) if self.mode == "stock" else Ours(self)
            protection.wait_protected()
            time.sleep(1)
        self.workload.begin(self)
        rates, latencies, windows = self.workload.measure(self, seconds)
        stops, link = stops_of(windows)
        self.out.update(throughput=rates, latency_ms=percentiles(latencies), stops=stops,
                        link_kb_per_s=link)
        if protection:
            note = protection.note()
            if note:
                self.out["notes"].append(note)
            self.out["recovered"] = self.lose(protection)
        self.judge()

    # What the copy has when its primary is gone.

    def lose(self, protection):
        lab, found = self.lab, {"took_over": False}
        asker = Asker(self.guest)
        load = self.workload.start_load(self)
        lab.running.append(asker)
        asker.start()
        wait(lambda: asker.answers >= 5 or asker.error, 60, "answers before the loss of the host")
        time.sleep(random.uniform(1, 2))
        check(not asker.error, "before the loss of the host: %s" % asker.error)
        lab.freeze("a")
        newcomer = Newcomer(self.guest)
        lab.running.append(newcomer)
        newcomer.start()
        try:
            colo.wait_active(lab, "b", self.guest.name, TAKEOVER_S)
            found["took_over"] = True
        except labtest.Failure as e:
            found["reason"] = "%s; xl list there: %s" % (e, " ".join(lab.execute(
                "b", "xl list | tail -n +3", check=False).stdout.split()))
            return found
        counts = self.counts(load)
        # Those that are alive go on within TCP's back-off; a connection that hangs never does.
        before = asker.answers
        patience = GO_ON_STOCK_S if self.mode == "stock" else GO_ON_S
        if self.mode in modes_report.LOSSLESS:
            patience *= common.patience()
        common.wait_for(lambda: (asker.answers >= before + 3 or asker.error) and
                        self.kept(load, counts) in (None, len(counts)), patience, 0.2)
        found["kept"] = not asker.error and asker.answers >= before + 3
        found["gap_ms"] = asker.gap_ms
        if asker.error:
            found["error"] = asker.error
        if counts:
            found["load_total"], found["load_kept"] = len(counts), self.kept(load, counts)
        common.wait_for(lambda: newcomer.back_ms, patience, 0.2)
        found["back_ms"] = newcomer.back_ms
        newcomer.kill()
        asker.kill()
        if isinstance(load, labtest.Client):
            load.kill()
        # Every answer counted the guest's counter up by one, and this one does, too.
        try:
            found["answers_lost"] = max(0, asker.last + 1 -
                                        int(self.guest.ask(7000, "inc", 60).split()[1]))
        except (OSError, ValueError, IndexError) as e:
            found["error"] = "a new connection: %s" % e
        try:
            self.workload.after_loss(self, found)
        except (AssertionError, OSError, ValueError) as e:
            found["work_lost"] = str(e)
        return found

    @staticmethod
    def counts(load):
        if isinstance(load, Asker):
            return {"commits": load.answers}
        return {n: c["answers"] for n, c in load.status().items()} if load else {}

    def kept(self, load, before):
        """How many of the load's connections were answered since, and broke never."""
        if isinstance(load, Asker):
            return int(not load.error and load.answers > before["commits"])
        if not load:
            return None
        now = load.status()
        return sum(not now[n]["errors"] and now[n]["answers"] > b for n, b in before.items())

    def judge(self):
        """Whether the mode has kept its word."""
        r, bad = self.out.get("recovered"), []
        if self.mode in modes_report.LOSSLESS:
            if not r["took_over"]:
                bad.append("no takeover: " + r["reason"])
            else:
                if not r["kept"]:
                    bad.append("connection lost (%s)" % r.get("error", "no answer"))
                if r.get("load_total") != r.get("load_kept"):
                    bad.append("%d of %d connections of the load kept" %
                               (r["load_kept"], r["load_total"]))
                if r.get("answers_lost") != 0:
                    bad.append("answers lost: %s" % r.get("answers_lost", "unknown"))
                if r.get("work_lost"):
                    bad.append(r["work_lost"])
                if r.get("commits_lost", 0) != 0:
                    bad.append("commits lost: %s" % r.get("database", r["commits_lost"]))
        if bad:
            self.out["reason"] = "; ".join(bad)
        else:
            self.out["status"] = "ok"


def put_back(lab, collect):
    """Host a as if it had been restarted: it wakes with its links cut, and forgets everything.
    That takes a third of the time of a power cycle. collect: what explains a failure is kept."""
    def links(how):
        for port in ("a-client", "a-repl"):
            common.run(["ip", "-n", lab.netns, "link", "set", port, how])
    links("down")
    try:
        if collect:
            with contextlib.suppress(common.LabError):
                lab.thaw("a")
            lab.collect()
        lab.put_in_order(reach=False)
    finally:
        links("up")


# ---- the run ----

def brief(cell, native):
    """A cell in a line of the terminal."""
    words = ["%s %s" % (modes_report.with_ratio(t["value"], modes_report.fetch(
        native, ("throughput", i, "value"))), t["unit"] + (" " + t["name"] if t["name"] else ""))
             for i, t in enumerate(cell.get("throughput") or [])]
    if cell.get("latency_ms"):
        words.append("p50 %s p99 %s ms" % tuple(modes_report.number(cell["latency_ms"][p])
                                                for p in ("p50", "p99")))
    stops = cell.get("stops")
    if stops and stops["count"]:
        words.append("stopped %s ms, %s/s" % (modes_report.number(stops["median"]),
                                              modes_report.number(stops["per_s"])))
    return ", ".join(words)


def describe(argv, seconds):
    def first(path, key):
        try:
            with open(path, encoding="utf-8") as f:
                return next(line.split(":", 1)[1].strip() for line in f if line.startswith(key))
        except (OSError, StopIteration):
            return "unknown"
    git = subprocess.run(["git", "-C", common.TOP, "describe", "--always", "--dirty"],
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return {"seconds": seconds, "cores": os.cpu_count(), "xen": "two emulated hosts",
            "cpu": first("/proc/cpuinfo", "model name")}, \
        {"when": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
         "commit": git.stdout.strip() or "unknown", "minutes": 0,
         "command": " ".join(["tests/bench/modes_bench.py"] + argv)}


def one_cell(lab, mode, workload, seconds):
    """Runs a cell whatever happens in it; puts the lab in order afterwards."""
    lab.begin("%s-%s" % (workload, mode))
    cell = Cell(lab, mode, workload)
    signal.signal(signal.SIGALRM, labtest.on_alarm)
    signal.setitimer(signal.ITIMER_REAL, (CELL_S + 6 * seconds) * common.patience())
    try:
        cell.run(seconds)
    except labtest.Deadline:
        cell.out["reason"] = "not done in time"
    except (AssertionError, OSError, ValueError, KeyError, common.LabError,
            subprocess.SubprocessError) as e:
        cell.out["reason"] = "%s%s" % ("" if isinstance(e, (AssertionError, common.LabError)) else
                                       type(e).__name__ + ": ", (str(e).splitlines() or ["?"])[0])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    cell.out["load_average"] = round(os.getloadavg()[0], 1)
    put_back(lab, cell.out["status"] != "ok")
    return cell.out


def add_to(data, out):
    """The workloads of an earlier run that are not measured now stay in the report, which tells
    when they were. A workload's ratios are all to the native of its own run."""
    path = os.path.join(out, "modes.json")
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as f:
        earlier = json.load(f)
    check(earlier["modes"] == data["modes"] and
          earlier["run"]["seconds"] == data["run"]["seconds"],
          "the report there is of other modes, or of another length")
    kept = [w for w in earlier["workloads"] if w not in data["workloads"]]
    data["cells"] = {w: earlier["cells"].get(w, {}) for w in kept}
    parts = [dict(part, workloads=[w for w in part["workloads"] if w in kept])
             for part in earlier["parts"]]
    data["parts"] = [part for part in parts if part["workloads"]] + data["parts"]
    data["workloads"] = [w for w in WORKLOADS if w in kept + data["workloads"]]


def run(lab, data, out, seconds):
    began, number = time.monotonic(), 0
    part = data["parts"][-1]
    total = len(data["modes"]) * len(part["workloads"])
    for workload in part["workloads"]:
        row = data["cells"][workload] = {}
        for mode in data["modes"]:
            number += 1
            cell = row[mode] = one_cell(lab, mode, workload, seconds)
            part["minutes"] = (time.monotonic() - began) / 60
            modes_report.write(data, out)
            print("[%2d/%d %5.0f s] %s, %s: %s" % (
                number, total, time.monotonic() - began, workload, mode,
                brief(cell, row.get("native") if mode != "native" else None)), flush=True)
            if cell["status"] != "ok":
                print("         FAILED: %s (see %s)" % (cell["reason"], os.path.relpath(
                    lab.directory)), flush=True)
            elif cell.get("recovered"):
                print("         host lost: " + modes_report.after_loss(cell, mode), flush=True)


def names(known):
    def split(text):
        found = [w for w in text.split(",") if w]
        unknown = [w for w in found if w not in known]
        if unknown or not found:
            raise argparse.ArgumentTypeError("there are: " + ", ".join(known))
        return [w for w in known if w in found]
    return split


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", type=names(modes_report.MODES), default=list(modes_report.MODES),
                        metavar="M,...", help=", ".join(modes_report.MODES))
    parser.add_argument("--workloads", type=names(WORKLOADS), default=list(WORKLOADS),
                        metavar="W,...", help=", ".join(WORKLOADS))
    parser.add_argument("--seconds", type=int, default=6, metavar="N",
                        help="for each measurement (default 6)")
    parser.add_argument("--out", metavar="DIR", default=os.path.join(common.TOP, "build", "bench"),
                        help="where the report goes (default build/bench)")
    parser.add_argument("--add", action="store_true",
                        help="keep the other workloads that the report there has")
    options = parser.parse_args(argv)
    if options.seconds < 3:
        parser.error("--seconds: at least 3")
    about, part = describe(argv, options.seconds)
    data = {"run": about, "parts": [dict(part, workloads=options.workloads)],
            "modes": options.modes, "workloads": options.workloads, "cells": {}}
    if options.add:
        try:
            add_to(data, options.out)
        except (OSError, ValueError, KeyError, AssertionError) as error:
            print("modes: --add: %s" % error)
            return 2
    lab = labtest.TestLab(os.environ.get("LAB") or "bench")
    lab.begin("modes")
    was_up = bool(lab.hosts())
    try:
        lab.up(2)
        lab.install()
        version = lab.execute("a", "xl info xen_version; uname -r").stdout.split()
        data["run"]["xen"] = "Xen %s, dom0 Linux %s, emulated" % tuple(version)
        lab.put_in_order()
        run(lab, data, options.out, options.seconds)
    except (OSError, common.LabError) as error:
        print("modes: %s" % error)
        return 1
    finally:
        for thing in lab.running:
            thing.kill()
        if not was_up:
            lab.down()
    bad = modes_report.failures(data)
    print("%s: %d of %d cells failed" % (os.path.relpath(os.path.join(options.out, "modes.html")),
                                         len(bad), len(data["modes"]) * len(data["workloads"])))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
