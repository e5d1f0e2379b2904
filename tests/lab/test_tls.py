#!/usr/bin/env python3
"""What crosses between the hosts is encrypted, by kernels that read and write it as if it were
plain, and whoever has not got the session's secret gets nothing."""

import json
import os
import re
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402
from lablib import common  # noqa: E402

INSTALL = True

DRIVER = os.path.join(common.TOP, "build/tests/lab/tls-driver")
with open(os.path.join(common.TOP, "xen/include/public/remus.h"), encoding="utf-8") as header:
    PROTOCOL = re.search(r"REMUS_PROTOCOL_VERSION\s+(\d+)u", header.read()).group(1)
MARKS = {"memory": b"in-the-guests-memory-", "packets": b"in-the-guests-packets-",
         "disk": b"on-the-guests-disk---"}


def test_the_kernels_connections_are_what_the_project_counts_on(lab):
    lab.push("a", [DRIVER], "/root/")
    result = lab.execute("a", "/root/tls-driver check", check=False, timeout_s=120)
    check("not ok" not in result.stdout and result.stdout.count("ok ") >= 10, result.stdout)
    equal(result.returncode, 0, "status of tls-driver: " + result.stderr)


# ---- What a capture shows ----

def seen(lab, options):
    """The marks that a capture of a session shows, from initial copy to checkpoints."""
    for host in ("a", "b"):
        lab.execute(host, "mkdir -p /var/lib/lab; rm -f /var/lib/lab/g1.img; "
                    "truncate -s 4M /var/lib/lab/g1.img")
    guest = lab.guest("a", disk_mb=4)
    guest.run("for i in $(seq 200); do echo %s$i; done >/tmp/marks" % MARKS["memory"].decode())
    path = lab.capture_start("repl", os.path.join(lab.directory, "capture.pcap"))
    session = colo.Session(lab, guest, interval_ms=2000, verify=False, options=options)
    session.wait_protected()
    for i in range(5):
        payload = MARKS["packets"] * 40 + b"%d" % i
        equal(guest.ask_udp(7004, payload), b"echo " + payload, "the guest's echo")
    guest.run("yes %s | head -c 65536 | dd of=/dev/xvda bs=64k oflag=direct 2>&1" %
              MARKS["disk"].decode())
    session.wait_checkpoints(session.status()["checkpoints"] + 2, 60)
    equal(session.stop(), 0, "exit status of xl remus")
    lab.capture_stop("repl")
    equal(lab.execute("b", "head -c 65536 /var/lib/lab/g1.img | grep -c %s" %
                      MARKS["disk"].decode()).stdout.strip() != "0", True, "the disk over there")
    with open(path, "rb") as f:
        capture = f.read()
    check(len(capture) > 10 << 20, "the capture has only %d octets" % len(capture))
    os.unlink(path)
    return {name for name, mark in MARKS.items() if mark in capture}


@deadline(300)
def test_a_capture_of_the_link_shows_nothing_of_the_guest(lab):
    equal(seen(lab, ""), set(), "what a capture shows")


@deadline(300)
def test_a_capture_of_a_plain_link_shows_the_guest(lab):
    """Or the test above would not have found it either."""
    equal(seen(lab, "--plain"), set(MARKS), "what a capture shows")


# ---- Who is not the right one ----

# A receiver with the hello of a primary, in front of which others try. Arguments: more of the
# hello, the tries.
TRIES = r"""
import json, socket, struct, subprocess, sys
p = subprocess.Popen(["xl", "remus-receive"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
greeting = json.loads(p.stdout.readline())
hello = {"type": "hello", "protocol": greeting["protocol"], "name": "ghost", "host": "a",
         "mode": "colo", "arbiter": "none", "session": "00112233-4455-6677-8899-aabbccddeeff",
         "memory_kb": 1024, "need_kb": 1024, "pages": 256, "vcpus": 1, "period_ms": 0,
         "heartbeat_ms": 0, "timeout_ms": 0, "deadline_ms": 0, "net": False,
         "listen": "127.0.0.1", "port": 0, "vifs": []}
hello.update(json.loads(sys.argv[1]))
p.stdin.write(json.dumps(hello).encode() + b"\n")
p.stdin.flush()
answer = json.loads(p.stdout.readline())
port, secret = answer["port"], answer["secret"]
got = []

def raw(octets):
    s = socket.create_connection(("127.0.0.1", port))
    s.settimeout(10)
    count, more = 0, b"?"
    try:
        s.sendall(octets)
        while more:
            more = s.recv(64)
            count += len(more)
        got.append(count)
    except OSError as e:
        # An alert may come before the reset.
        got.append(count if count else type(e).__name__)
    s.close()

def tls(key):
    p = subprocess.run(["/root/tls-driver", "open", "127.0.0.1", str(port), key],
                       stdout=subprocess.PIPE, timeout=20, text=True)
    got.append(p.stdout.strip())

for what in sys.argv[2:]:
    {"plain": lambda: raw(struct.pack("<IHH32s", 0x31534d52, VERSION, 1, bytes.fromhex(secret))),
     "garbage": lambda: raw(b"GET / HTTP/1.0\r\n\r\n" * 10),
     "other": lambda: tls("ab" * 32),
     "right": lambda: tls(secret)}[what]()
answer = json.loads(p.stdout.readline())
print(json.dumps({"plain": answer.get("plain"), "answer": answer["type"], "got": got}))
p.kill()
"""


def tries(lab, hello, *words):
    lab.push("b", [DRIVER], "/root/")
    program = TRIES.replace("VERSION", PROTOCOL)
    out = lab.execute("b", ["python3", "-c", program, json.dumps(hello)] + list(words),
                      timeout_s=60).stdout
    return json.loads(out.splitlines()[-1])


def test_a_wrong_peer_gets_nothing_and_the_right_one_gets_in(lab):
    got = tries(lab, {}, "plain", "garbage", "other", "right")
    plain, garbage, other, right = got["got"]
    for what in (plain, garbage):
        check(what == "ConnectionResetError" or what <= 7, "more than an alert: %s" % got)
    check(other.startswith("refused: ") and "secret" in other, other)
    equal(right, "open", "what the right one is told")
    equal(got["answer"], "connected", "the receiver's answer")


def test_a_plain_session_takes_no_tls(lab):
    got = tries(lab, {"plain": True}, "right", "plain")
    check(got["got"][0].startswith("refused: ") and "--plain" in got["got"][0], str(got))
    equal(got["answer"], "connected", "the receiver's answer")


# ---- Choosing ----

@deadline(300)
def test_a_kernel_without_tls_is_refused_and_plain_goes_on(lab):
    guest = lab.guest("a")
    remove = "rmmod tls 2>/dev/null; f=$(modinfo -n tls); mv $f $f.away"
    restore = "for f in $(find /lib/modules -name tls.ko.away); do mv $f ${f%.away}; done"
    for host, name in (("a", ""), ("b", "b: ")):
        lab.execute(host, remove)
        try:
            result = lab.execute("a", "xl remus --colo -F g1 b", check=False, timeout_s=60)
            text = result.stdout + result.stderr
            check(result.returncode == 2 and name + "%s cannot encrypt" % host in text and
                  "modprobe tls" in text and "--plain" in text, text)
            if host == "b":
                session = colo.Session(lab, guest, options="--plain")
                session.wait_protected()
                equal(session.stop(), 0, "exit status of xl remus")
        finally:
            lab.execute(host, restore)
    # What the other host's operator wants counts.
    result = lab.execute("a", "xl remus --colo -F --plain --receive-command "
                         "'xl remus-receive --no-plain' g1 b", check=False, timeout_s=60)
    text = result.stdout + result.stderr
    check(result.returncode == 2 and "--no-plain" in text, text)
    colo.check_nothing_left(lab, "a", guest)


@deadline(240)
def test_a_plain_session_survives_a_failover(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=2500, options="--plain")
    session.wait_protected()
    client = lab.client(guest, long=100, ping=200)
    client.wait_answers(5)
    lab.freeze("a")
    colo.wait_active(lab, "b", guest.name)
    client.wait_answers(15, timeout_s=90)
    client.stop_without_errors()
    session.process.kill()


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
