"""What session tests, demo and benchmarks share: starting protection and watching it."""

import json
import signal
import subprocess
import time

from labtest import check, wait

# Emulated hosts that share two cores stall for seconds; what is tested here is not how soon a
# loss is noticed, except where a test says so.
TIMEOUT_MS = 5000
NO_WORKER = "no worker of xl remus"


class Session:
    """`xl remus` on one host towards the other."""

    def __init__(self, lab, guest, host="a", peer="b", options="", env="", peer_env="",
                 verify=True, timeout_ms=TIMEOUT_MS, interval_ms=None, arbiter=None,
                 mode="colo"):
        self.lab, self.guest, self.host, self.peer = lab, guest, host, peer
        words = [env, "xl remus --%s --verbose --timeout %d" % (mode, timeout_ms),
                 "--arbiter '%s'" % arbiter if arbiter else "-F"]
        if verify:
            words.append("--verify")
        if interval_ms:
            words.append("-i %d" % interval_ms)
        if peer_env:
            words.append("--receive-command 'env %s xl remus-receive'" % peer_env)
        words += [options, guest.name, peer]
        self.process = lab.spawn(host, " ".join(w for w in words if w), name="remus")

    def log(self):
        with open(self.process.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def status(self, host=None):
        """The newest status on a host, None when there is no session."""
        result = self.lab.execute(host or self.host, "cat /run/xen/remus/*.json 2>/dev/null",
                                  check=False, timeout_s=30)
        try:
            return json.loads(result.stdout.splitlines()[0])
        except (IndexError, json.JSONDecodeError):
            return None

    def wait_protected(self, timeout_s=150):
        """The status then. What is looked at is here: asking the host would slow its copy down."""
        def probe():
            if self.process.poll() is not None:
                raise AssertionError("xl remus ended: " + self.log()[-400:])
            return ": protected  epoch" in self.log()
        wait(probe, timeout_s, "protection", 0.1)
        return self.status()

    def wait_checkpoints(self, count, timeout_s):
        def probe():
            if self.process.poll() is not None:
                raise AssertionError("xl remus ended: " + self.log()[-400:])
            status = self.status()
            return status and status["checkpoints"] >= count and status
        return wait(probe, timeout_s, "%d checkpoints" % count, 1)

    def wait_copying(self, pages=2000, timeout_s=90):
        """Until the initial copy has sent some pages, and is not done."""
        def probe():
            status = self.status()
            return status and status["copy"]["pages_done"] >= pages and status
        status = wait(probe, timeout_s, "%d pages of the initial copy" % pages, 0.1)
        check(not status["protected"] and status["epoch"] == 0, "the copy is done already")

    def wait_end(self, timeout_s=60):
        """Exit status of xl remus."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError("xl remus does not end: " + self.log()[-400:]) from None

    def stop(self, timeout_s=60):
        """Ctrl-C: the orderly end."""
        self.lab.execute(self.host, "pkill -INT -o -f '^xl remus --'", timeout_s=30)
        return self.wait_end(timeout_s)


def worker_pid(lab, host):
    """The coordinator's process: the child of the recorded one that is xl too."""
    script = ("pid=$(sed -n 's/.*\"pid\":\\([0-9]*\\).*/\\1/p' /run/xen/remus/*.json);"
              " for p in $(cat /proc/$pid/task/$pid/children); do"
              " [ \"$(readlink /proc/$p/exe)\" = /usr/local/sbin/xl ] && echo $p; done")
    pids = lab.execute(host, script, check=False, timeout_s=30).stdout.split()
    return int(pids[0]) if pids else None


def wait_stopped_worker(lab, host, timeout_s=90):
    """Until the coordinator has stopped itself at its test point."""
    def probe():
        pid = worker_pid(lab, host)
        if not pid:
            return False
        state = lab.execute(host, "awk '/^State/{print $2}' /proc/%d/status" % pid, check=False,
                            timeout_s=30).stdout.strip()
        return state == "T"
    wait(probe, timeout_s, "the coordinator at its test point", 0.2)


def kill_by_name(lab, host, name, number=signal.SIGKILL):
    lab.execute(host, "pkill -%d -x %s" % (number, name), timeout_s=30)


def wait_active(lab, host, name, timeout_s=60):
    """Until the copy has taken over under the guest's name."""
    def probe():
        return lab.execute(host, "xl domid %s" % name, check=False, timeout_s=30).returncode == 0
    wait(probe, timeout_s, "%s on host %s" % (name, host), 0.5)


def check_nothing_left(lab, host, guest=None):
    """No rules, no daemons, no copy, no session nodes."""
    script = ("nft list tables | grep remus; pgrep -l colo-; xl list | grep incoming;"
              " ip -o link | grep ' remus'; ls /run/xen/remus/*.json 2>/dev/null; true")
    left = ""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        left = lab.execute(host, script, timeout_s=30).stdout.strip()
        if not left:
            break
        time.sleep(0.5)
    check(not left, "left behind on %s: %s" % (host, left))
    if guest:
        nodes = lab.execute(host, "xenstore-ls /local/domain/%d/remus 2>/dev/null; true" %
                            guest.domid(host), timeout_s=30).stdout.strip()
        check(not nodes, "session nodes left in xenstore: " + nodes)
