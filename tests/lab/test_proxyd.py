#!/usr/bin/env python3
"""colo-proxyd on a real vif; tools/proxy-driver.py plays the coordinator and the secondary."""

import contextlib
import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import labtest  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402
from lablib import common  # noqa: E402

HOST = "a"
OUT_QUEUE, IN_QUEUE = 100, 104
UDP_ECHO = 7004
WHY_QUEUE = 4
# For tests where a busy machine must not make the secondary look silent.
PATIENT = ("--deadline-min-ms", "60000", "--deadline-max-ms", "60000")


def programs():
    """colo-proxyd as it was built last; the packet filter driver, built here; the driver."""
    found = [f for f in glob.glob(os.path.join(common.TOP, "build/**/colo-proxyd"), recursive=True)
             if os.path.isfile(f)]
    proxyd = os.environ.get("COLO_PROXYD") or max(found, key=os.path.getmtime, default=None)
    check(proxyd, "colo-proxyd has not been built")
    nft = os.path.join(common.TOP, "build", "lab", "bin", "nft-driver")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libnftables"], check=True,
                           stdout=subprocess.PIPE, universal_newlines=True).stdout.split()
    subprocess.run(["gcc", "-std=gnu11", "-O2", "-I", common.TOP, "-o", nft,
                    os.path.join(common.TOP, "tests/lab/tools/nft-driver.c"),
                    *(os.path.join(common.TOP, "tools/remus", name)
                      for name in ("nftrules.c", "bypass.c", "packet.c"))] + flags, check=True)
    return [proxyd, nft, os.path.join(common.TOP, "tests/lab/tools/proxy-driver.py")]


class Proxy:
    """A guest whose vif is held by colo-proxyd."""

    def __init__(self, lab, *options):
        self.lab = lab
        self.guest = lab.guest(HOST)
        self.domid = self.guest.domid(HOST)
        self.vif = "vif%d.0" % self.domid
        lab.push(HOST, programs(), "/root/")
        self.process = lab.spawn(
            HOST, "exec python3 /root/proxy-driver.py serve --domid %d --vif %s:%d:%d "
            "--proxyd /root/colo-proxyd --nft /root/nft-driver -- --log-level 2 %s" %
            (self.domid, self.vif, OUT_QUEUE, IN_QUEUE, " ".join(options)), "driver")

        def ready():
            with open(self.process.log_path) as f:
                return "proxy-driver: ready" in f.read()

        wait(ready, 60, "colo-proxyd is ready: " + common.tail(self.process.log_path, 5))

    def do(self, words):
        result = self.lab.execute(HOST, "python3 /root/proxy-driver.py do " + words, check=False,
                                  timeout_s=90)
        check(result.returncode == 0, "driver, %s: %s%s" % (words, result.stdout, result.stderr))
        return json.loads(result.stdout)

    def state(self):
        return self.do("state")

    def stats(self):
        return self.do("stats")

    def wait_asked(self, count=1):
        """The checkpoints asked for, when there are so many."""
        def probe():
            asked = self.state()["asked"]
            return asked if len(asked) >= count else None

        return wait(probe, 30, "colo-proxyd asks for a checkpoint")

    def ping_start(self, count, interval_s=0.2, wait_s=2):
        return self.lab.client_start(
            ["ping", "-n", "-q", "-i", str(interval_s), "-c", str(count), "-W", str(wait_s),
             self.guest.ip], stdout=subprocess.PIPE, universal_newlines=True)

    @staticmethod
    def ping_answers(process, timeout_s=60):
        out, _ = process.communicate(timeout=timeout_s)
        return int(re.search(r"(\d+) received", out).group(1))

    def pings(self, count=5):
        return self.ping_answers(self.ping_start(count))

    @contextlib.contextmanager
    def datagram(self, text):
        """A UDP request on its way; yields a function that waits for its answer."""
        with self.lab.client_udp() as s:
            s.sendto(text, (self.guest.ip, UDP_ECHO))

            def answer(timeout_s):
                s.settimeout(timeout_s)
                try:
                    return s.recv(2048)
                except socket.timeout:
                    return None

            yield answer

    def rules(self):
        return self.lab.execute(HOST, "nft list ruleset; "
                                "cat /proc/net/netfilter/nfnetlink_queue").stdout.strip()

    def nft(self, *words):
        self.lab.execute(HOST, "/root/nft-driver " + " ".join(words))


@deadline(250)
def test_equal_output_is_released_in_both_sizes_and_kinds(lab):
    """With a secondary that says the same, TCP, UDP and ping work without a checkpoint."""
    proxy = Proxy(lab, *PATIENT)
    lab.run_client(proxy.guest, 6, long=50, short=200, udp=50, ping=50, bulk_down=300000,
                   bulk_up=300000)
    stats, state = proxy.stats(), proxy.state()
    equal(state["asked"], [], "checkpoints asked for")
    check(stats["released_equal"] >= stats["output_packets"] - stats["held"] > 100,
          "released %(released_equal)d of %(output_packets)d, %(held)d held" % stats)
    check(state["counts"]["matched"] >= stats["released_equal"] - 32,
          "the secondary heard of %d matches" % state["counts"]["matched"])
    check(state["counts"]["output_max"] > 1514, "no large (GSO) output was seen")
    check(state["input"].get("gso") and state["input"].get("partial"),
          "no large (GSO) or unsummed input was seen: %s" % state["input"])
    equal(state["input"]["frames"], stats["input_packets"], "input frames copied")
    equal(stats["dropped_other"], 0, "frames dropped")


@deadline(200)
def test_different_output_waits_for_its_checkpoint(lab):
    proxy = Proxy(lab)
    proxy.do("mode alter")
    with proxy.datagram(b"one") as answer:
        check(proxy.wait_asked()[0]["text"], "a reason is given")
        equal(answer(1), None, "an answer before the checkpoint")
        proxy.do("mode equal")
        proxy.do("checkpoint")
        equal(answer(5), b"echo one", "the answer after the checkpoint")
    with proxy.datagram(b"two") as answer:
        equal(answer(5), b"echo two", "an answer in the new epoch")
    stats = proxy.stats()
    check(stats["released_epoch"] >= 1 and stats["released_equal"] >= 1, "released: %s" % stats)


@deadline(200)
def test_output_is_released_by_its_own_epoch_only(lab):
    proxy = Proxy(lab)
    proxy.do("mode silent")
    with proxy.datagram(b"one") as answer_1:
        wait(lambda: proxy.stats()["held"] == 1, 10, "the first answer is held")
        proxy.do("stop")
        proxy.do("cut")
        with proxy.datagram(b"two") as answer_2:
            wait(lambda: proxy.stats()["held"] == 2, 10, "the second answer is held")
            equal(answer_1(0.5), None, "the first answer before its epoch is acknowledged")
            proxy.do("release")
            equal(answer_1(5), b"echo one", "the first answer")
            equal(answer_2(1), None, "the second answer, of the next epoch")
            proxy.do("checkpoint")
            equal(answer_2(5), b"echo two", "the second answer after its checkpoint")


@deadline(200)
def test_stopped_input_is_kept_and_belongs_to_the_next_epoch(lab):
    proxy = Proxy(lab)
    equal(proxy.pings(2), 2, "pings before")
    proxy.do("stop")
    before = proxy.state()["input_epochs"]
    process = proxy.ping_start(20, 0.05, 40)
    time.sleep(3)
    equal(proxy.state()["input_epochs"], before, "input copied while it was stopped")
    proxy.do("cut")
    # Nothing of the second epoch leaves before the first is acknowledged.
    proxy.do("release")
    equal(proxy.ping_answers(process), 20, "pings answered after the cut")
    after = proxy.state()["input_epochs"]
    equal(after["1"], before["1"], "input of the first epoch")
    check(after["2"] >= 20, "input of the second epoch: %s" % after)
    proxy.do("stop")
    process = proxy.ping_start(5, 0.05, 40)
    time.sleep(1)
    proxy.do("go")
    equal(proxy.ping_answers(process), 5, "pings answered after a checkpoint that was given up")
    equal(proxy.stats()["dropped_other"], 0, "frames dropped")


@deadline(200)
def test_a_slow_channel_holds_input_and_loses_none(lab):
    proxy = Proxy(lab)
    proxy.do("read off")
    client = lab.client(proxy.guest, bulk_up=8000000)
    before = -1
    while before != proxy.stats()["input_bytes"]:
        before = proxy.stats()["input_bytes"]
        time.sleep(2)
    check(before > 4 << 20, "input stopped after %d bytes" % before)
    proxy.do("read on")
    client.wait_answers(1, 60)
    client.stop_without_errors()
    stats, state = proxy.stats(), proxy.state()
    equal(state["input"]["frames"], stats["input_packets"], "input frames copied")
    equal((stats["dropped_other"], state["lost"]), (0, None), "drops, channel lost")


@deadline(200)
def test_the_end_of_colo_proxyd_fences_the_guest(lab):
    proxy = Proxy(lab)
    proxy.do("mode silent")
    with proxy.datagram(b"held") as answer:
        wait(lambda: proxy.stats()["held"] == 1, 10, "the answer is held")
        proxy.do("kill")
        equal(answer(1), None, "an answer that was held when colo-proxyd died")
    equal(proxy.pings(5), 0, "pings while nobody listens")
    proxy.nft("unprotect", proxy.vif)
    equal(proxy.pings(3), 3, "pings after the rules have gone")
    equal(proxy.rules(), "", "rules and queues left")


@deadline(200)
def test_the_end_of_the_coordinator_ends_colo_proxyd(lab):
    proxy = Proxy(lab)
    for number in (2, 15, 1):
        proxy.do("signal %d" % number)
    equal(proxy.pings(2), 2, "pings after SIGINT, SIGTERM and SIGHUP")
    lab.execute(HOST, "pkill -KILL -f 'proxy-driver.py serve'", check=False)
    wait(lambda: lab.execute(HOST, "pidof colo-proxyd", check=False).returncode, 10,
         "colo-proxyd ends with its coordinator")
    equal(proxy.pings(5), 0, "pings after the coordinator's death")
    equal(lab.execute(HOST, "/root/nft-driver list").stdout.split()[0], proxy.vif,
          "the vif in the rules, for cleaning up")
    proxy.nft("unprotect", proxy.vif)
    equal(proxy.pings(3), 3, "pings after cleaning up")


@deadline(200)
def test_unprotect_lets_everything_go_and_leaves_nothing(lab):
    proxy = Proxy(lab)
    proxy.do("mode silent")
    with proxy.datagram(b"held") as answer:
        wait(lambda: proxy.stats()["held"] == 1, 10, "the answer is held")
        proxy.do("unprotect")
        equal(answer(5), b"echo held", "the answer that was held")
    equal(proxy.pings(5), 5, "pings")
    equal(proxy.do("quit")["status"], 0, "exit status")
    equal(proxy.rules(), "", "rules and queues left")
    equal(proxy.pings(3), 3, "pings after the end")


@deadline(200)
def test_a_fence_is_final(lab):
    proxy = Proxy(lab)
    proxy.do("mode silent")
    with proxy.datagram(b"held") as answer:
        wait(lambda: proxy.stats()["held"] == 1, 10, "the answer is held")
        proxy.do("fence")
        equal(answer(1), None, "the answer that was held")
    proxy.do("mode equal")
    equal(proxy.pings(5), 0, "pings")
    proxy.nft("fence", proxy.vif)
    proxy.do("kill")
    equal(proxy.pings(3), 0, "pings with the fence in the rules")
    proxy.nft("unprotect", proxy.vif)
    equal(proxy.rules(), "", "rules and queues left")


@deadline(200)
def test_a_lost_channel_holds_output_until_told(lab):
    proxy = Proxy(lab)
    proxy.do("lose")
    check(proxy.state()["lost"], "the coordinator hears of the lost channel")
    with proxy.datagram(b"one") as answer:
        wait(lambda: proxy.stats()["held"] == 1, 10, "the answer is held")
        equal(answer(1), None, "an answer without the channel")
        proxy.do("checkpoint")
        equal(answer(5), b"echo one", "the answer after its epoch was acknowledged")
    equal(proxy.pings(3), 0, "pings without the channel")
    proxy.do("unprotect")
    equal(proxy.pings(3), 3, "pings after unprotect")


@deadline(200)
def test_a_queue_that_fills_up_asks_for_a_checkpoint(lab):
    proxy = Proxy(lab, "--queue-length", "64", *PATIENT)
    proxy.do("mode silent")
    pings = proxy.ping_start(100, 0.02, 8)
    asked = proxy.wait_asked()
    equal(asked[0]["why"], WHY_QUEUE, "why: " + asked[0]["text"])
    check(proxy.stats()["held"] <= 64, "held: %d" % proxy.stats()["held"])
    proxy.do("mode equal")
    proxy.do("checkpoint")
    check(proxy.ping_answers(pings) >= 48, "pings released by the checkpoint")


@deadline(200)
def test_output_lost_in_the_kernel_is_seen(lab):
    proxy = Proxy(lab, "--socket-buffer", "65536", *PATIENT)
    proxy.do("signal %d" % signal.SIGSTOP)
    pings = proxy.ping_start(200, 0.01, 2)
    time.sleep(6)
    proxy.do("signal %d" % signal.SIGCONT)
    asked = proxy.wait_asked()
    equal(asked[0]["why"], WHY_QUEUE, "why: " + asked[0]["text"])
    check(proxy.stats()["dropped_other"] > 0, "lost frames are counted")
    proxy.ping_answers(pings)
    proxy.do("checkpoint")
    equal(proxy.pings(3), 3, "pings afterwards")


@deadline(200)
def test_the_hosts_own_traffic_is_held_as_well(lab):
    proxy = Proxy(lab)
    ping = "ping -n -q -c 3 -i 0.2 -W 1 " + proxy.guest.ip
    lab.execute(HOST, ping)
    check(proxy.state()["input"]["icmp"] >= 3, "input from the host itself is copied")
    proxy.do("mode silent")
    check(lab.execute(HOST, ping, check=False).returncode, "the host sees output that is held")


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
