#!/usr/bin/env python3
"""Writing and running tests that need the lab.

A test file is tests/lab/test_*.py; each function test_*(lab) in it is a test, with the docstring
or the name as its sentence. Run them all, some files, or some tests by name:

    tests/lab/labtest.py [--keep] [--list] [FILE|NAME]...

The lab of the environment variable LAB is used (default here: check); it is booted if needed, put
in order before every test, and taken down at the end unless --keep is given or it was up before.
Every test has a deadline, extended when the machine is busy (LAB_PATIENCE=FACTOR fixes it). What
is needed to understand a failure is saved below build/lab/results/LAB/NAME/. LAB_TRACE=1 shows
what takes long. The exit status is 0 only if every test passed.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from lablib import common, images  # noqa: E402
from lablib.common import LabError, run, say  # noqa: E402
from lablib.instance import CLIENT_IP, CLIENT_VLAN_IP, HOSTS, LINKS, Lab  # noqa: E402

DEADLINE_S = 300

# Ends whatever a test may have left running on a host. Only the processes of the project and the
# toolstack's own; a leftover `xl` would react to the next test's guests.
CLEAN_HOST = r"""
pkill -KILL -x 'pacemaker.*|corosync' && pkill -KILL -f '[r]esource.d/remus/'
pkill -KILL -x 'colo-.*|remus-.*|disk-driver|sampler|xl|libxl-save-help'
for id in $(xenstore-list /local/domain); do
    [ "$id" = 0 ] && continue
    # A vif that colo-shadowd served has no driver that would close it: libxl waits 10 s for that.
    for vif in $(xenstore-list /local/domain/0/backend/vif/$id 2>/dev/null); do
        [ -e /sys/bus/xen-backend/drivers/vif/vif-$id-$vif ] ||
            xenstore-write /local/domain/0/backend/vif/$id/$vif/state 6
    done
    xl destroy "$id"
done
for path in /sys/class/net/*; do
    dev=${path##*/}
    [ -e "$path/device" ] && continue
    case $dev in
    lo | xenbr0) ;;
    *) ip link del "$dev" ;;
    esac
done
for dev in client repl; do tc qdisc del dev $dev root; done
nft flush ruleset
umount /var/lib/lab/small 2>/dev/null
[ -e /dev/mapper/g1 ] && dmsetup remove g1
losetup -D
rm -rf /run/xen/remus/*.json /run/xen/remus/*.lost /etc/xen/remus.d
rm -f /run/xen/remus/*.dirty /run/xen/remus/*.minder /run/xen/remus/ocf-*
i=0
while left=$(xl list | awk 'NR > 1 && $2 > 0'); [ -n "$left" ] && [ "$i" -lt 20 ]; do
    i=$((i + 1))
    sleep 0.1
done 2>/dev/null
echo "$left"
[ -z "$left" ]
"""

# What is kept of each host when a test failed.
COLLECT = r"""
echo '== xl list'; xl list
echo '== xl vcpu-list'; xl vcpu-list
for guest in $(xl list | awk 'NR > 1 && $2 > 0 { print $2 }'); do
    echo "== vCPUs and requests of domain $guest"
    /usr/lib/xen-4.17/bin/xenctx -a "$guest"
    xenstore-ls -f "/local/domain/$guest/control"
done
xl debug-keys qe
echo '== xl list -l'; xl list -l
echo '== processes'; ps axf -o pid,stat,wchan:20,args | grep -v '\['
echo '== network'; ip addr; bridge link; tc qdisc; nft list ruleset
echo '== xenstore'; xenstore-ls -f / | head -400
echo '== dmesg'; dmesg | tail -120
echo '== xl dmesg'; xl dmesg | tail -200
for f in /var/log/xen/*.log /var/log/xen/console/*.log /var/log/remus/* /var/log/colo* \
    /var/log/waker.log /var/log/pacemaker/pacemaker.log /var/log/corosync/corosync.log; do
    [ -f "$f" ] && { echo "== $f"; tail -n 80 "$f"; }
done
true
"""


class Failure(AssertionError):
    """The tested thing did not do what the test's sentence says."""


class Deadline(Exception):
    pass


def check(condition, reason):
    if not condition:
        raise Failure(reason)


def equal(got, wanted, what):
    if got != wanted:
        raise Failure("%s: got %r, wanted %r" % (what, got, wanted))


def deadline(seconds):
    """Decorator: this test may take so long (default DEADLINE_S)."""
    def mark(function):
        function.deadline_s = seconds
        return function
    return mark


def alone(function):
    """Decorator: this test keeps both cores busy, or measures; nothing else runs beside it."""
    function.alone = True
    return function


def trace(what, begin):
    """With LAB_TRACE=1: what took long, on standard error."""
    now = time.monotonic()
    if os.environ.get("LAB_TRACE") and now - begin > 0.3:
        say("# at %.1f s, %.1f s: %s" % (now, now - begin, what))


def wait(probe, timeout_s, what, interval_s=0.1):
    """Poll until probe() is true and return its value; fail the test after timeout_s (more on a
    busy machine, see common.patience)."""
    timeout_s = round(timeout_s * common.patience())
    begin = time.monotonic()
    value = common.wait_for(probe, timeout_s, interval_s)
    if not value:
        raise Failure("not within %d s: %s" % (timeout_s, what))
    trace("wait: " + what, begin)
    return value


class Guest:
    """A guest known to the lab by its name; it may move between hosts."""

    def __init__(self, lab, name, ip):
        self.lab, self.name, self.ip = lab, name, ip
        number = ip.split(".")[-1]
        self.ip6, self.vlan_ip = "fd77::" + number, "10.79.0." + number
        self.second_ip = "10.76.0." + number

    def connect(self, port, timeout_s=40):
        return self.lab.client_connect(self.ip, port, timeout_s)

    def ask(self, port, line, timeout_s=40):
        """Send one line on a new connection; return the answer's first line."""
        with self.connect(port, timeout_s) as s:
            s.sendall(line.encode() + b"\n")
            with s.makefile("r") as stream:
                return stream.readline().rstrip("\n")

    def run(self, script, timeout_s=60):
        """Run a shell script in the guest; return what it printed. It has to succeed."""
        with self.connect(7011, timeout_s) as s:
            s.sendall(("exec 2>&1\n(\n%s\n)\necho \" exit $?\"\nexit\n" % script).encode())
            with s.makefile("r") as stream:
                output, _, status = stream.read().rpartition(" exit ")
        equal(status.strip(), "0", "exit status of %r in %s: %s" % (script, self.name, output))
        return output

    def ask_udp(self, port, payload, timeout_s=10, ip=None):
        """One datagram and its answer; sent again each second, as UDP may lose it."""
        end = time.monotonic() + timeout_s
        ip = ip or self.ip
        with self.lab.client_udp(socket.AF_INET6 if ":" in ip else socket.AF_INET) as s:
            s.settimeout(1)
            while True:
                s.sendto(payload, (ip, port))
                try:
                    return s.recv(65536)
                except socket.timeout:
                    if time.monotonic() > end:
                        raise Failure("no UDP answer from %s:%d" % (ip, port)) from None

    def dirty(self, pages_per_s, area_pages=4096):
        equal(self.ask(7006, "dirty %d %d" % (pages_per_s, area_pages)), "ok", "dirty")

    def domid(self, host):
        """The guest's domain id on a host, or None."""
        result = self.lab.execute(host, ["xl", "domid", self.name], check=False, timeout_s=60)
        return int(result.stdout) if result.returncode == 0 else None

    def console(self, host, lines=40):
        return self.lab.guest_console(host, self.name, lines)


class Client:
    """A running labclient. Options: long=MS, short=MS, udp=MS, ping=MS, diverge=MS,
    bulk_down=BYTES, bulk_up=BYTES, max_lost=N, timeout=S, raw=True."""

    def __init__(self, lab, ip, directory, seconds=None, **options):
        self.base = os.path.join(directory, "client-%d" % time.monotonic_ns())
        argv = ["labclient", "--server", ip, "--status", self.base + ".status"]
        if seconds:
            argv += ["--seconds", str(seconds)]
        for name, value in options.items():
            for one in value if isinstance(value, (list, tuple)) else [value]:
                argv.append("--" + name.replace("_", "-"))
                if one is not True:
                    argv.append(str(one))
        with open(self.base + ".json", "wb") as out, open(self.base + ".err", "wb") as err:
            self.process = lab.client_start(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self.figures = None

    def status(self):
        """The figures so far, as one dictionary per class; {} before the first."""
        try:
            with open(self.base + ".status") as f:
                return json.load(f)["classes"]
        except (OSError, ValueError):
            return {}

    def wait_answers(self, count, timeout_s=60):
        """Wait until every class has this many more answers than now."""
        before = {name: c["answers"] for name, c in self.status().items()}

        def probe():
            now = self.status()
            return now and all(c["answers"] >= before.get(n, 0) + count for n, c in now.items())

        wait(probe, timeout_s, "every class of the client gets %d answers; now %s" %
             (count, {n: c["answers"] for n, c in self.status().items()}))

    def stop(self, timeout_s=150):
        """End the client; returns its report."""
        if self.figures is None:
            if self.process.poll() is None:
                self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise Failure("the client does not end") from None
            with open(self.base + ".json") as f:
                text = f.read()
            try:
                self.figures = json.loads(text)
            except ValueError:
                raise Failure("the client's report is broken: " + text[:200] +
                              common.tail(self.base + ".err", 5)) from None
        return self.figures

    def stop_without_errors(self, timeout_s=150):
        figures = self.stop(timeout_s)
        bad = {n: c["first_error"] for n, c in figures["classes"].items() if c["errors"]}
        check(not bad, "the client saw errors: %s" % bad)
        return figures

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Witness:
    """An etcd beside the client: the third machine that decides."""

    URL = "http://%s:2379" % CLIENT_IP

    def __init__(self, lab):
        self.lab, self.spec, self.process = lab, "etcd:" + self.URL, None
        self.log_path = os.path.join(lab.directory, "etcd.log")
        self.start()

    def start(self):
        data = os.path.join(self.lab.directory, "etcd")
        argv = ["etcd", "--data-dir", data, "--listen-client-urls", self.URL,
                "--advertise-client-urls", self.URL, "--listen-peer-urls", "http://127.0.0.1:2380",
                "--log-level", "error"]
        with open(self.log_path, "ab") as log:
            self.process = self.lab.client_start(argv, stdin=subprocess.DEVNULL, stdout=log,
                                                 stderr=log)
        # An election comes first, of one.
        wait(self.answers, 60, "etcd answers", 0.2)

    def answers(self):
        check(self.process.poll() is None, "etcd ended: " + common.tail(self.log_path, 5))
        try:
            with self.lab.client_connect(CLIENT_IP, 2379, 5) as s:
                s.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return b'"true"' in s.makefile("rb").read()
        except OSError:
            return False

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class TestLab(Lab):
    """The lab as a test sees it: everything of lablib.instance.Lab and what follows."""

    def __init__(self, name=None):
        super().__init__(name or os.environ.get("LAB") or "check")
        self.results = os.path.join(common.RESULTS, self.name)
        self.directory = self.results
        self.running = []

    def execute(self, host, command, *args, **options):
        begin = time.monotonic()
        try:
            return super().execute(host, command, *args, **options)
        finally:
            trace("%s: %s" % (host, str(command).strip()[:60].replace("\n", ";")), begin)

    # ---- order between tests ----

    def begin(self, name):
        self.directory = os.path.join(self.results, name)
        shutil.rmtree(self.directory, ignore_errors=True)
        os.makedirs(self.directory)

    def put_in_order(self, reach=True):
        """Both hosts up, links whole, no guests. A host that cannot be cleaned is restarted; reach:
        both if they do not hear each other."""
        for client in self.running:
            with contextlib.suppress(OSError):
                client.kill()
        self.running = []
        if set(self.hosts()) != set(HOSTS):
            self.up(2)
        for link in list(self.state()["captures"]):
            self.capture_stop(link)
        dead = []
        for host in HOSTS:
            if not self.is_running(host):
                dead.append(host)
                continue
            with contextlib.suppress(LabError):
                self.thaw(host)
        if self.state()["cuts"]:
            for link in LINKS:
                self.mend(link)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            dirty = list(pool.map(self.clean_host, [h for h in HOSTS if h not in dead]))
        dead += [host for host in dirty if host]
        if not dead and reach and not self.hosts_reach_each_other():
            for host in HOSTS:
                with contextlib.suppress(LabError):
                    self.kill(host)
            dead = list(HOSTS)
        for host in dead:
            self.launch_again(host)
        for host in dead:
            self.wait_booted(host, time.monotonic() + 120 * common.patience())
        with self.changing_state() as state:
            state["guests"] = {}

    def clock_stops(self):
        """How often Xen says that its platform timer has wrapped, which it does every 43 s, without
        its having looked: no timer interrupt came for so long, and nothing that waits in such a
        host was woken. Hosts of iron do not do that; what a test says then is of the emulator."""
        count = 0
        for host in HOSTS:
            with contextlib.suppress(OSError), open(self.console_log(host), "rb") as log:
                count += log.read().count(b"appears to have unexpectedly wrapped")
        return count

    def hosts_reach_each_other(self):
        """Seen twice: a host slept for 20 s or more, once without a timer tick, and its network
        card was deaf from then on. By the look of it the emulator had lost an interrupt."""
        for address in ("10.78.0.2", "10.77.0.2"):
            try:
                if self.execute("a", "ping -c 2 -W 5 " + address, check=False,
                                timeout_s=60).returncode == 0:
                    continue
            except LabError:
                pass
            say("# a does not reach %s: power cycle of both hosts" % address)
            return False
        return True

    def clean_host(self, host):
        """Remove what tests leave behind; returns the host if it had to be powered off instead."""
        try:
            result = self.execute(host, CLEAN_HOST, check=False, timeout_s=60)
            if result.returncode == 0:
                return None
            left = result.stdout.strip()
        except LabError as e:
            left = str(e).splitlines()[0]
        say("# host %s cannot be cleaned (%s); power cycle" % (host, left))
        with contextlib.suppress(LabError):
            self.kill(host)
        return host

    def collect(self):
        """Save what explains a failure; returns the directory."""
        for host in self.hosts():
            with contextlib.suppress(OSError):
                shutil.copy(self.console_log(host), self.directory)
            if not self.is_running(host):
                continue
            try:
                result = self.execute(host, COLLECT, check=False, timeout_s=60)
                text = result.stdout + result.stderr
            except LabError as e:
                text = str(e)
            with open(os.path.join(self.directory, host + ".state"), "w") as f:
                f.write(text)
        return self.directory

    # ---- for tests ----

    def guest(self, host, name="g1", vcpus=1, memory_mb=128, kind="pvh", fresh=False, nets=(),
              **options):
        """A guest whose service answers. It is restored from an image saved when a guest of this
        kind was first asked for, which takes a third of the time of a boot; fresh=True, or any of
        the other options of Lab.guest_create, boots it."""
        if fresh or options:
            return Guest(self, name, self.guest_create(host, name, vcpus, memory_mb, kind,
                                                       nets=nets, **options))
        ip, mac = self.guest_addresses(name)
        config = self.guest_config(name, ip, mac, vcpus, memory_mb, kind, (), (), nets)
        saved = "/var/lib/lab/saved/%s" % common.hash_strings(config)[:16]
        if self.execute(host, "test -e " + saved, check=False, timeout_s=30).returncode != 0:
            self.guest_create(host, name, vcpus, memory_mb, kind, nets=nets)
            self.execute(host, "mkdir -p /var/lib/lab/saved; xl save %s %s.new && mv %s.new %s" %
                         (name, saved, saved, saved), timeout_s=90)
        self.execute(host, "xl restore %s" % saved, timeout_s=90)
        self.guest_wait(host, name)
        return Guest(self, name, ip)

    def client(self, guest, ip=None, **options):
        """Start a client towards a guest, or another address of it; see class Client."""
        client = Client(self, ip or guest.ip, self.directory, **options)
        self.running.append(client)
        return client

    def witness(self):
        witness = Witness(self)
        self.running.append(witness)
        return witness

    def run_client(self, guest, seconds, **options):
        """A client for some seconds; its report, without errors."""
        client = self.client(guest, seconds=seconds, **options)
        with contextlib.suppress(subprocess.TimeoutExpired):
            client.process.wait(seconds + 150)
        return client.stop_without_errors()

    def spawn(self, host, command, name="command", timeout_s=600):
        """Start a command on a host in the background. Returns its Popen object; its output goes
        to the file .log_path, in the test's results."""
        self.ensure_ssh(host)
        path = os.path.join(self.directory, "%s-%s.log" % (name, host))
        number = 2
        while os.path.exists(path):
            path = os.path.join(self.directory, "%s-%s-%d.log" % (name, host, number))
            number += 1
        with open(path, "wb") as log:
            process = subprocess.Popen(self.ssh_argv(host, command, timeout_s=timeout_s),
                                       stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        process.log_path = path
        self.running.append(process)
        return process

    def vlan_port(self):
        """The client gets an interface in VLAN 5 until the test is over."""
        process = self.client_start(["vlanport", "br-client", "5", "vlan5"],
                                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.running.append(process)
        equal(process.stdout.readline(), b"ready\n", "vlanport says")
        for words in ("addr add %s/24 dev vlan5" % CLIENT_VLAN_IP, "link set vlan5 up"):
            run(["ip", "-n", self.netns] + words.split())

    def sample_stops(self, host, domid, seconds):
        """The times for which a domain is stopped during some seconds (see tools/sampler.c)."""
        result = self.execute(host, "sampler -s %g %d" % (seconds, domid), timeout_s=seconds + 60)
        return json.loads(result.stdout)

    def launch_again(self, host):
        if not self.is_running(host):
            self.stop_ssh(host)
            self.launch(host)


# ---- the runner ----

def load(path):
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    tests = [(n, f) for n, f in vars(module).items() if n.startswith("test_") and callable(f)]
    return module, tests


def on_alarm(_number, _frame):
    raise Deadline()


def run_one(lab, name, function):
    """Run one test; returns None or the reason of its failure."""
    limit = round(getattr(function, "deadline_s", DEADLINE_S) * common.patience())
    reason = None
    lab.begin(name)
    try:
        # The lab's own waits have deadlines; putting it in order is not the test's time.
        lab.put_in_order()
    except (LabError, OSError, subprocess.SubprocessError) as e:
        return "the lab cannot be put in order: %s" % e
    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        function(lab)
    except Deadline:
        reason = "not done after %d s" % limit
    except (Failure, LabError) as e:
        reason = str(e)
    except Exception as e:
        reason = "%s: %s" % (type(e).__name__, e)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if reason:
        with open(os.path.join(lab.directory, "reason"), "w") as f:
            f.write(reason + "\n\n" + traceback.format_exc())
    return reason


def print_guests(path, host):
    """What COLLECT says of a host's guests: whether they run, where, and their last words."""
    with contextlib.suppress(OSError), open(path, errors="replace") as f:
        for section in f.read().split("\n== "):
            title, _, text = section.partition("\n")
            if title.startswith(("xl vcpu-list", "vCPUs and", "/var/log/xen/console")):
                print("# %s of %s:" % (title.replace("/var/log/xen/console/", "console "), host))
                for line in text.splitlines()[-12:]:
                    print("#   " + line)


def report_failure(lab, reason):
    directory = lab.collect()
    for line in reason.splitlines()[1:40]:
        print("#   " + line)
    for host in lab.hosts():
        print_guests(os.path.join(directory, host + ".state"), host)
        print("# serial console of %s:" % host)
        for line in common.tail(lab.console_log(host), 12).splitlines():
            print("#   " + line)
    for name in sorted(os.listdir(directory)):
        if name.endswith((".log", ".err")):
            text = common.tail(os.path.join(directory, name), 15)
            if text:
                print("# %s:" % name)
                for line in text.splitlines():
                    print("#   " + line)
    print("# more in %s" % os.path.relpath(directory, common.TOP))


def take(queue, name):
    """Whether a test is ours to run: of several runners that share a queue, one gets it."""
    if not queue:
        return True
    try:
        os.close(os.open(os.path.join(queue, name), os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False


def relay(process, lock, counts):
    """Show what a runner prints, one test's lines at a time, and add up its last line."""
    block = []

    def show():
        with lock:
            sys.stdout.write("".join(block))
            sys.stdout.flush()
        block.clear()

    for line in process.stdout:
        result = re.match(r"(\d+) passed, (\d+) failed", line)
        if result:
            counts.append((int(result[1]), int(result[2])))
            continue
        if re.match("(ok|not ok|lab:|labtest:) ", line):
            show()
        block.append(line)
    show()


def run_jobs(jobs, words):
    """Several runners, each with a lab of its own, take their tests from one list; then one runs
    those that are to be alone."""
    started = time.monotonic()
    images.build()
    lock, counts, processes = threading.Lock(), [], []
    name = os.environ.get("LAB") or "check"

    def start(number, *options):
        process = subprocess.Popen(
            [sys.executable, os.path.realpath(__file__), *options] + words,
            env=dict(os.environ, LAB="%s%d" % (name, number)), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(process)
        thread = threading.Thread(target=relay, args=(process, lock, counts))
        thread.start()
        return thread

    with tempfile.TemporaryDirectory() as queue:
        # The first lab is kept for the tests that come last.
        for thread in [start(number, "--share", queue, *(["--keep"] if number == 1 else []))
                       for number in range(1, jobs + 1)]:
            thread.join()
    start(1, "--alone").join()
    with contextlib.suppress(LabError, OSError):
        TestLab(name + "1").down()
    crashed = sum(process.wait() not in (0, 1) for process in processes)
    passed = sum(c[0] for c in counts)
    failed = sum(c[1] for c in counts) + crashed + len(processes) - len(counts)
    print("%d passed, %d failed (%.0f s)" % (passed, failed, time.monotonic() - started))
    return 1 if failed else 0


def main(argv, default_file=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the lab up at the end")
    parser.add_argument("--list", action="store_true", help="print the tests' names, run nothing")
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="run the tests in N labs at a time")
    parser.add_argument("--share", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", metavar="FILE|NAME")
    options = parser.parse_args(argv)
    words, keep, only_list = options.words, options.keep, options.list
    here = common.LAB_DIR
    paths = [w for w in words if w.endswith(".py")]
    names = [w for w in words if not w.endswith(".py")]
    if not paths:
        paths = [default_file] if default_file else sorted(
            os.path.join(here, n) for n in os.listdir(here)
            if n.startswith("test_") and n.endswith(".py"))
    tests, needs_install = [], False
    for path in paths:
        module, found = load(path)
        chosen = [(n, f) for n, f in found if not names or n in names]
        needs_install |= bool(chosen) and getattr(module, "INSTALL", False)
        tests += chosen
    unknown = set(names) - {n for n, _ in tests}
    if unknown:
        say("labtest: no test named %s" % ", ".join(sorted(unknown)))
        return 2
    if only_list:
        for name, function in tests:
            print("%-50s %s" % (name, (function.__doc__ or "").strip().split("\n")[0]))
        return 0
    if options.jobs > 1:
        return run_jobs(options.jobs, words)
    if options.share or options.alone:
        tests = [t for t in tests if getattr(t[1], "alone", False) == options.alone]
        if not tests:
            print("0 passed, 0 failed (0 s)")
            return 0
    lab = TestLab()
    was_up = bool(lab.hosts())
    started = time.monotonic()
    passed = failed = 0
    try:
        lab.up(2)
        if needs_install:
            lab.install()
        for name, function in tests:
            if not take(options.share, name):
                continue
            begin = time.monotonic()
            stops = lab.clock_stops()
            reason = run_one(lab, name, function)
            if reason and lab.clock_stops() > stops:
                print("# %s: %s; the emulator had lost a host's timer for 43 s: once more" %
                      (name, reason.splitlines()[0]), flush=True)
                report_failure(lab, reason)
                reason = run_one(lab, name, function)
            seconds = time.monotonic() - begin
            if reason is None:
                print("ok %s (%.1f s)" % (name, seconds), flush=True)
                passed += 1
                continue
            failed += 1
            first = (reason or "no reason given").splitlines()[0]
            print("not ok %s: %s (%.1f s)" % (name, first, seconds), flush=True)
            report_failure(lab, reason)
            sys.stdout.flush()
    except LabError as e:
        say("labtest: %s" % e)
        failed += 1
    finally:
        with contextlib.suppress(LabError, OSError):
            for thing in lab.running:
                thing.kill()
            if keep or was_up:
                lab.put_in_order()
            else:
                lab.down()
    print("%d passed, %d failed (%.0f s)" % (passed, failed, time.monotonic() - started))
    return 1 if failed else 0


if __name__ == "__main__":
    # Test files import this module by its name.
    sys.modules["labtest"] = sys.modules["__main__"]
    sys.exit(main(sys.argv[1:]))
