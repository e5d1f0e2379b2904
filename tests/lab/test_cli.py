"""xl remus, xl remus-receive and xl remus-status as an operator meets them: dispatch, wrong use,
every refusal that the lab can bring about, connections that do not come together, and endings that
are not failovers."""

import json
import re

from labtest import check, deadline, equal, wait

INSTALL = True

# Data over the replication link; generous times, because the machine may be busy.
PROTECT = "xl remus --colo -F --json --timeout 20000 g1 b"


def run(lab, command, host="a", timeout_s=120):
    """Exit status and all output of a command."""
    result = lab.execute(host, command, check=False, timeout_s=timeout_s)
    return result.returncode, result.stdout + result.stderr


def refused(lab, command, *words, status=2, host="a"):
    """The command ends with this status, and its output holds each of the words."""
    got, text = run(lab, command, host)
    for word in words:
        check(word in text, "'%s' lacks '%s': %s" % (command, word, text))
    equal(got, status, "status of '%s' (%s)" % (command, text))


def create(lab, name, *lines, host="a", paused=True, edit=lambda text: text):
    """A domain with lines of the lab's configuration replaced or added; paused: it never runs."""
    ip, mac = lab.guest_addresses("g1")
    text = edit(lab.guest_config(name, ip, mac, 1, 128, "pvh", (), ()))
    keys = [line.split("=")[0].strip() for line in lines] + ["vif"] * paused
    kept = [line for line in text.splitlines() if line.split("=")[0].strip() not in keys]
    lab.execute(host, "cat > /tmp/%s.cfg" % name, stdin="\n".join(kept + list(lines)) + "\n")
    lab.execute(host, "xl create -q %s -e /tmp/%s.cfg" % ("-p" * paused, name))


def events(process, kind):
    """The objects of one type that `xl remus --json` has printed so far."""
    found = []
    with open(process.log_path) as f:
        for line in f:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if value.get("type") == kind:
                found.append(value)
    return found


def protected(lab, guest, command=PROTECT, name="remus"):
    """Start a session and wait until an epoch is acknowledged."""
    process = lab.spawn("a", command, name=name)

    def probe():
        check(process.poll() is None, "xl remus ended: %s" % open(process.log_path).read()[-2000:])
        return any(s["protected"] for s in events(process, "status"))

    wait(probe, 150, "%s is protected" % guest.name, interval_s=0.5)
    return process


def ended(process, status, end, timeout_s=120):
    wait(lambda: process.poll() is not None, timeout_s, "xl remus ends", interval_s=0.5)
    last = events(process, "end")
    check(last, "no end in %s" % open(process.log_path).read()[-2000:])
    equal((process.returncode, last[-1]["end"]), (status, end), last[-1]["reason"])
    return last[-1]


def nothing_left(lab, guest):
    """The guest answers on a; no rule, no copy and no session is left anywhere."""
    equal(guest.ask(7000, "hello").split()[0] != "", True, "answer")
    text = run(lab, "nft list ruleset; ls /run/xen/remus/*.json; pgrep -x colo-proxyd", "a")[1]
    check("vif" not in text and "json" not in text.replace("No such", "").split("cannot")[0] and
          not re.search(r"^\d+$", text, re.M), "left on a: " + text)
    wait(lambda: "g1" not in lab.execute("b", "xl list").stdout, 60, "the copy on b is gone")


def worker_of(lab):
    return lab.execute("a", "xenstore-read /local/domain/$(xl domid g1)/remus/pid").stdout.strip()


# ---- Words and arguments ----

def test_other_words_are_the_distributions(lab):
    equal(run(lab, "xl domid Domain-0 || xl list | grep -c ' 0 '")[0], 0, "status of xl domid")
    check("Domain-0" in run(lab, "xl list")[1] or " 0 " in run(lab, "xl list")[1], "xl list")
    check("xen_version" in run(lab, "xl info")[1], "xl info")
    check("free_memory" in run(lab, "xl -v info")[1], "xl -v info")
    got, text = run(lab, "xl no-such-word")
    check(got != 0 and "command not" in text, "an unknown word: %s" % text)
    text = run(lab, "xl help")[1]
    check("remus-receive" in text and "create" in text, "xl help shows both: %s" % text[-300:])
    text = run(lab, "xl help remus")[1]
    check("--colo" in text and "--json" in text, "xl help remus")


def test_help_and_wrong_arguments(lab):
    for word in ("remus", "remus-receive", "remus-status", "remus-decide", "remus-stop",
                 "remus-switch", "remus-mode", "remus-cleanup"):
        got, text = run(lab, "xl %s --help" % word)
        equal(got, 0, "status of xl %s --help" % word)
        check("Usage: xl " + word in text, text)
    refused(lab, "xl remus", "DOMAIN", status=1)
    refused(lab, "xl remus --colo g1", "HOST", status=1)
    refused(lab, "xl remus --kemari --curling g1 b", "one mode", status=1)
    refused(lab, "xl remus --colo -F -b g1 b", "--colo", status=1)
    refused(lab, "xl remus --colo -N x g1 b", "colo-proxyd", status=1)
    refused(lab, "xl remus --colo -p g1 b", "always", status=1)
    refused(lab, "xl remus --colo -e g1 b", "takeover", status=1)
    refused(lab, "xl remus --colo --timeout 5 g1 b", "milliseconds", status=1)
    refused(lab, "xl remus-receive g1 < /dev/null", "no arguments", status=1)
    refused(lab, "xl remus-status g1 g2", "one DOMAIN", status=1)
    refused(lab, "xl remus-status g1", "not protected")
    refused(lab, "xl remus --colo nobody b", "no domain nobody")
    refused(lab, "xl remus-decide g1", "go-on", status=1)
    refused(lab, "xl remus-decide g1 go-on", "nobody waits")
    refused(lab, "xl remus --colo 0 b", "dom0")


# ---- Preflight ----

@deadline(500)
def test_every_refusal_says_what_to_do(lab):
    guest = lab.guest("a")
    remus = "xl remus --colo -F g1 b"
    domid = lab.execute("a", "xl domid g1").stdout.strip()
    node = "/local/domain/%s" % domid

    # The guest.
    lab.execute("a", "xl pause g1")
    refused(lab, remus, "paused", "xl unpause g1")
    lab.execute("a", "xl unpause g1; xenstore-write %s/control/feature-suspend 0" % node)
    refused(lab, remus, "feature-suspend")
    lab.execute("a", "xenstore-write %s/control/feature-suspend 1 "
                "%s/device/vif/0/multi-queue-num-queues 2" % (node, node))
    refused(lab, remus, "2 queues", "max_queues=1")
    lab.execute("a", "xenstore-rm %s/device/vif/0/multi-queue-num-queues" % node)
    refused(lab, "xl remus --colo g1 b", "no arbiter", "--arbiter", "-F")
    refused(lab, "xl remus --colo --arbiter nobody g1 b", "arbiter-nobody", "No such file")
    refused(lab, "xl remus --colo --arbiter fence g1 b", "/etc/xen/remus-fence")
    lab.execute("a", "mkdir -p /run/xen/remus; setsid -f flock /run/xen/remus/%s.lock sleep 8 "
                "> /dev/null 2>&1 < /dev/null; sleep 0.5" % domid)
    refused(lab, remus, "protected already")
    refused(lab, "xl remus --release g1", "a session that lives")
    refused(lab, "xl remus --colo -n g1 b", "-F")

    # Guests of other kinds: asked before they run, all reasons come at once.
    create(lab, "pv1", 'type = "pv"')
    refused(lab, "xl remus --colo pv1 b", "PV guest", "pvh", "paused")
    create(lab, "many", "vcpus = 33", "maxvcpus = 33")
    refused(lab, "xl remus --colo many b", "33 vCPUs", "32")
    lab.execute("a", "truncate -s 1M /tmp/disk.img")
    create(lab, "disk", 'disk = ["format=raw, vdev=xvda, access=rw, target=/tmp/disk.img"]')
    refused(lab, "xl remus --colo disk b", "paused", "disk 51712 is not connected")
    refused(lab, "xl remus --colo -d disk b", "writable", "-F")
    got, text = run(lab, "xl remus --colo -d -F disk b")
    check(got == 2 and "writable" not in text and "paused" in text, text)
    lab.execute("a", "for i in pv1 many disk; do xl destroy $i; done")

    # This host.
    refused(lab, "xl remus --colo -F --libexec /nowhere g1 b", "/nowhere/colo-proxyd", "--libexec")
    lab.execute("a", "mv /dev/xen/evtchn /dev/xen/evtchn.away")
    try:
        text = run(lab, remus)[1]
        check("evtchn" in text or "open" in text, text)
    finally:
        lab.execute("a", "mv /dev/xen/evtchn.away /dev/xen/evtchn")
    refused(lab, "xl remus --colo -F g1 a", "this host itself")

    # The other one: its reasons come with its name.
    create(lab, "g1", host="b")
    refused(lab, remus, "b: there is a domain g1 already")
    lab.execute("b", "xl rename g1 g1--incoming")
    refused(lab, remus, "b: a copy named g1--incoming", "xl destroy g1--incoming")
    lab.execute("b", "xl destroy g1--incoming")
    free = int(re.search(r"free_memory *: (\d+)", lab.execute("b", "xl info").stdout).group(1))
    create(lab, "big", "memory = %d" % (free - 100), "maxmem = %d" % (free - 100), host="b")
    refused(lab, remus, "b: Xen has", "MiB free")
    lab.execute("b", "xl destroy big")
    lab.execute("b", "m=$(awk '/MemAvailable/ {print int($2/1024)}' /proc/meminfo); "
                "mkdir -p /tmp/f; mount -t tmpfs -o size=90% f /tmp/f; "
                "head -c $((m - 130))M /dev/zero > /tmp/f/f")
    try:
        refused(lab, remus, "b: dom0 has", "dom0_mem")
    finally:
        lab.execute("b", "umount /tmp/f")
    lab.execute("b", "ip link set xenbr0 down && ip link set xenbr0 name away0")
    try:
        refused(lab, remus, "b: there is no bridge xenbr0", "same name")
    finally:
        lab.execute("b", "ip link set away0 name xenbr0 && ip link set xenbr0 up")
    lab.execute("b", "mv /dev/net/tun /dev/net/tun.away")
    try:
        refused(lab, remus, "b: b has no /dev/net/tun", "modprobe tun")
    finally:
        lab.execute("b", "mv /dev/net/tun.away /dev/net/tun")
    lab.execute("b", "mv /usr/local/lib/remus/colo-shadowd /tmp/")
    try:
        refused(lab, remus, "b: b lacks", "colo-shadowd", "make install")
    finally:
        lab.execute("b", "mv /tmp/colo-shadowd /usr/local/lib/remus/")

    # Nothing of all this has changed the guest.
    equal(lab.execute("a", "xl domid g1").stdout.strip(), domid, "domain id of g1")
    check(guest.ask(7000, "hello"), "g1 answers")


@deadline(200)
def test_fifo_event_channels_are_refused(lab):
    create(lab, "g1", paused=False, edit=lambda text: text.replace("xen.fifo_events=0", ""))
    domid = lab.execute("a", "xl domid g1").stdout.strip()
    wait(lambda: run(lab, "xenstore-read /local/domain/%s/device/vif/0/state" % domid)[1].strip() ==
         "4", 150, "the guest has booted", interval_s=1)
    refused(lab, "xl remus --colo -F g1 b", "FIFO", "xen.fifo_events=0")


# ---- Coming together ----

@deadline(300)
def test_a_host_that_cannot_be_reached_leaves_the_guest_alone(lab):
    guest = lab.guest("a")
    refused(lab, "xl remus --colo -F -s 'ssh -o ConnectTimeout=2' g1 10.78.0.77",
            "ssh could not reach", status=6)
    refused(lab, "xl remus --colo -F g1 no-such-host", "ssh could not reach", status=6)
    refused(lab, "xl remus --colo -F --receive-command false g1 b", "ended without an answer",
            status=6)
    refused(lab, "xl remus --colo -F --receive-command no-such-command g1 b", "was not found",
            status=6)
    refused(lab, "xl remus --colo -F --receive-command 'yes hello' g1 b", "something else", "hello",
            status=6)
    # The xl of the distribution does not know the word.
    refused(lab, "xl remus -cF --receive-command '/usr/lib/xen-4.17/bin/xl remus-receive' g1 b",
            "ended without an answer", status=6)
    # Reached, but not on the way that the data takes.
    lab.execute("b", "nft 'add table inet t; add chain inet t i { type filter hook input "
                "priority 0; }; add rule inet t i iifname repl tcp dport 7999 reject with tcp "
                "reset'")
    refused(lab, "xl remus --colo -F --data-address 10.78.0.2:7999 g1 b", "7999", status=6)
    wait(lambda: run(lab, "pgrep -x xl", "b")[1] == "", 30, "the receiver on b has ended")
    check(guest.ask(7000, "hello"), "the guest answers")


WRONG_SECRET = r"""
import json, socket, struct, subprocess, sys
p = subprocess.Popen(["xl", "remus-receive"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
greeting = json.loads(p.stdout.readline())
hello = {"type": "hello", "protocol": 3, "name": "ghost", "host": "a", "mode": "colo",
         "arbiter": "none", "session": "00112233-4455-6677-8899-aabbccddeeff",
         "memory_kb": 1024, "need_kb": 1024, "pages": 256, "vcpus": 1, "period_ms": 0,
         "heartbeat_ms": 0, "timeout_ms": 0, "deadline_ms": 0, "net": False,
         "listen": "127.0.0.1", "port": 0, "vifs": []}
hello.update(json.loads(sys.argv[1]))
p.stdin.write(json.dumps(hello).encode() + b"\n")
p.stdin.flush()
answer = json.loads(p.stdout.readline())
closed = 0
while answer["type"] == "ready" and closed < 8:
    s = socket.create_connection(("127.0.0.1", answer["port"]))
    s.settimeout(10)
    said = b""
    try:
        s.sendall(struct.pack("<IHH32s", 0x31534d52, 1, 1, b"x" * 32))
        while part := s.recv(64):
            said += part
    except ConnectionResetError:
        pass
    closed += said == b"" or (said[0] == 21 and len(said) == 7)  # at most an alert of TLS
    s.close()
if closed:
    answer = json.loads(p.stdout.readline())
print(json.dumps({"answer": answer, "closed": closed, "status": p.wait()}))
"""


def receiver_says(lab, **changes):
    out = lab.execute("b", ["python3", "-c", WRONG_SECRET, json.dumps(changes)]).stdout
    return json.loads(out.splitlines()[-1])


def test_a_wrong_secret_is_turned_away(lab):
    got = receiver_says(lab)
    equal(got["closed"], 8, "connections that were closed")
    equal(got["answer"]["type"], "refused", "answer")
    check("secret" in got["answer"]["reasons"][0], got)
    equal(got["status"], 6, "status of the receiver")
    check("ghost" not in lab.execute("b", "xl list").stdout, "no domain was made")


def test_a_malformed_hello_is_refused(lab):
    for changes in ({"name": "../../etc"}, {"name": ""}, {"name": "n" * 64}, {"protocol": 2},
                    {"mode": "turbo"}, {"mode": 7}, {"memory_kb": -1}, {"session": "x"},
                    {"vifs": [{}] * 9}, {"net": True, "vifs": [{"bridge": "../x"}]},
                    {"type": "hullo"}, {"deadline_ms": 1.5}, {"arbiter": "../x"}, {"arbiter": 0}):
        got = receiver_says(lab, **changes)
        equal((got["answer"]["type"], got["status"]), ("refused", 2), str(changes))


# ---- Sessions ----

@deadline(400)
def test_remus_stop_ends_protection_from_either_host(lab):
    guest = lab.guest("a")
    for host, wanted in (("a", (0,)), ("b", (0, 3))):
        process = protected(lab, guest)
        got = lab.execute(host, "xl remus-stop g1 2>&1", check=False, timeout_s=120)
        equal(got.returncode, 0, "status of xl remus-stop on %s: %s" % (host, got.stdout))
        check(process.wait(60) in wanted, "status of xl remus: %s" % process.returncode)
        check(guest.ask(7000, "hello"), "the guest answers")
        got = lab.execute(host, "xl remus-stop g1 2>&1", check=False, timeout_s=60)
        equal(got.returncode, 2, "status without a session: %s" % got.stdout)
    equal(lab.execute("a", "xl remus-cleanup").stdout, "", "what is left")
    equal(lab.execute("b", "xl remus-cleanup").stdout, "", "what is left")


@deadline(300)
def test_cleanup_removes_what_dead_sessions_left(lab):
    guest = lab.guest("a")
    process = protected(lab, guest)
    lab.execute("a", "pkill -KILL -x xl; pkill -KILL -x colo-proxyd; sleep 1")
    process.wait(60)
    got, text = run(lab, "xl remus-cleanup")
    check(got == 2 and "g1 is fenced" in text and "xl remus --release g1" in text, text)
    refused(lab, "xl remus --colo -F g1 b", "cut off", "xl remus --release g1")
    lab.execute("a", "xl destroy g1")
    got, text = run(lab, "xl remus-cleanup")
    check(got == 0 and "record of domain" in text and "rules of vif" in text, text)
    equal(run(lab, "xl remus-cleanup"), (0, ""), "a second time")


@deadline(400)
def test_a_session_is_shown_and_ends_in_order_on_ctrl_c(lab):
    guest = lab.guest("a")
    process = protected(lab, guest)
    refused(lab, "xl remus --colo -F g1 b", "protected already")
    row = lab.execute("a", "xl remus-status g1").stdout
    check("primary" in row and "colo" in row and "protected" in row, row)
    status = json.loads(lab.execute("a", "xl remus-status --json g1").stdout)
    check(status["live"] and status["epoch"] >= 1 and status["peer"] == "b", status)
    row = lab.execute("b", "xl remus-status").stdout
    check("secondary" in row and "g1" in row, row)
    lab.execute("a", "kill -INT %d" % status["pid"])
    end = ended(process, 0, "stopped")
    check("g1 runs unprotected" in end["reason"], end)
    nothing_left(lab, guest)
    # What a killed session recorded of a domain that is gone misleads nobody.
    stale = "/run/xen/remus/999.json"
    lab.execute("a", "echo '{\"domain\":\"g1\"}' >" + stale)
    refused(lab, "xl remus-status g1", "not protected")
    equal(lab.execute("a", "ls %s; true" % stale).stdout, "", "stale record")


@deadline(400)
def test_the_loss_of_ssh_and_of_the_terminal_does_not_end_protection(lab):
    guest = lab.guest("a")
    process = protected(lab, guest)
    epoch = events(process, "status")[-1]["epoch"]
    pid = json.loads(lab.execute("a", "xl remus-status --json g1").stdout)["pid"]
    lab.execute("a", "pkill -P %d -x ssh; kill -HUP %d" % (pid, pid))
    wait(lambda: json.loads(lab.execute("a", "xl remus-status --json g1").stdout)["epoch"] > epoch,
         90, "epochs go on", interval_s=1)
    lab.execute("a", "kill -TERM %d" % pid)
    ended(process, 0, "stopped")
    nothing_left(lab, guest)


@deadline(400)
def test_a_killed_worker_leaves_the_guest_running_somewhere(lab):
    guest = lab.guest("a")
    process = protected(lab, guest)
    lab.execute("a", "kill -KILL %s" % worker_of(lab))
    wait(lambda: process.poll() is not None, 150, "xl remus ends", interval_s=0.5)
    end = events(process, "end")[-1]
    # The copy notices the end of the link and takes over: then it is the guest, and the only one.
    here = "g1" in lab.execute("a", "xl list").stdout
    there = "g1" in lab.execute("b", "xl list").stdout
    equal((here, there), (end["end"] != "fenced", end["end"] == "fenced"), str(end))
    check(process.returncode in (3, 5), end)
    wait(lambda: guest.ask(7000, "hello"), 60, "the guest answers")


@deadline(400)
def test_a_killed_supervisor_ends_protection_in_order(lab):
    guest = lab.guest("a")
    protected(lab, guest)
    pid = json.loads(lab.execute("a", "xl remus-status --json g1").stdout)["pid"]
    worker = worker_of(lab)
    lab.execute("a", "kill -KILL %d" % pid)
    wait(lambda: run(lab, "kill -0 %s" % worker)[0] != 0, 90, "the worker ends", interval_s=0.5)
    lab.execute("a", "rm -f /run/xen/remus/*.json")
    nothing_left(lab, guest)


@deadline(500)
def test_a_guest_that_nobody_decides_about_stays_fenced_until_released(lab):
    """Worker killed, and HOST frozen: the guest may have been taken over."""
    guest = lab.guest("a")
    process = protected(lab, guest)
    lab.freeze("b")
    try:
        lab.execute("a", "kill -KILL %s" % worker_of(lab))
        end = ended(process, 7, "undecided", 180)
        check("xl remus --release g1" in end["reason"] and "xl destroy g1" in end["reason"], end)
        state = lab.execute("a", "xl list g1").stdout.splitlines()[-1]
        check(" ---s" not in state and "--p" not in state, "suspended or paused: " + state)
        check("vif" in lab.execute("a", "nft list ruleset").stdout, "the fence is gone")
        # Nobody is left to notice that, and the guest may be running on b.
        lab.execute("a", "nft flush ruleset")
        got = lab.client_start(["ping", "-c", "5", "-i", "0.3", "-W", "1", guest.ip]).wait(20)
        equal(got, 1, "status of ping: a fenced guest answers after a firewall's reload")
        lab.kill("b")
        lab.execute("a", "xl remus --release g1")
        check(guest.ask(7000, "hello"), "the guest answers")
    finally:
        if lab.is_running("b"):
            lab.thaw("b")
