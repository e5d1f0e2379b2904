#!/usr/bin/env python3
"""Plays the coordinator and the primary's side for colo-shadowd, in a dom0 of the lab.

    shadow-driver.py serve --domid N --ip ADDRESS --shadowd PATH [-- OPTIONS OF colo-shadowd]
    shadow-driver.py do WORD [ARGUMENT]... [, WORD [ARGUMENT]...]...

`serve` takes the vif away from the kernel's netback, starts colo-shadowd with its two sockets and
obeys the words, one at a time; each answers with one JSON object on a line, and an error ends the
list. What a word does is said at its method do_WORD. Words that talk to the guest write and read
whole Ethernet frames, as a primary's host would; the peer in them is made up (10.77.0.200).
"""

import argparse
import array
import collections
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

SOCKET = "/run/shadow-driver"
ATTACH, DETACH, GO, FAILOVER, STATS_GET, QUIT = 32, 33, 34, 35, 64, 65
READY, ATTACHED, DETACHED, ACTIVE, STATS, FAILED = 96, 101, 102, 103, 106, 107
INPUT, OUTPUT, MATCHED, FLOW = 1, 2, 3, 4
PARTIAL, GSO, WIRE = 1, 2, 0x100
HEAD = struct.Struct("<IBBHQQH3H")
MSG = struct.Struct("<IIQII")
STATS_NAMES = ("input_packets input_bytes output_packets output_bytes released_equal "
               "released_epoch held held_bytes held_max flows flows_max offsets dropped_old "
               "dropped_other why0 why1 why2 why3 why4 why5 delay_us_sum delay_us_max lag_us "
               "attach_us_sum attach_us_max attaches").split()
PEER_MAC, PEER_IP = bytes.fromhex("02aabbccddee"), "10.77.0.200"
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


class Problem(Exception):
    pass


def run(*argv):
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Problem("%s: %s" % (" ".join(argv), result.stderr.strip()))
    return result.stdout.strip()


def node(path, default=None):
    try:
        return run("xenstore-read", path)
    except Problem:
        return default


def write_sysfs(path, text):
    with open(path, "w") as f:
        f.write(text)


# ---- frames ----

def ones_sum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return total


def pseudo(src, dst, proto, length):
    return socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack("!HH", proto, length)


def ipv4(src, dst, proto, payload, ident=1):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), ident, 0x4000, 64, proto, 0,
                       socket.inet_aton(src), socket.inet_aton(dst))
    return head[:10] + struct.pack("!H", 0xffff ^ ones_sum(head)) + head[12:] + payload


def tcp(src, dst, sport, dport, seq, ack, flags, payload=b"", options=b"", partial=False,
        window=64000):
    options += b"\1" * (-len(options) % 4)
    head = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xffffffff, ack & 0xffffffff,
                       (20 + len(options)) << 2, flags, window, 0, 0) + options
    front = pseudo(src, dst, 6, len(head) + len(payload))
    check = ones_sum(front) if partial else 0xffff ^ ones_sum(front + head + payload)
    return head[:16] + struct.pack("!H", check) + head[18:] + payload


def icmp_echo(ident, number, payload):
    head = struct.pack("!BBHHH", 8, 0, 0, ident, number)
    return head[:2] + struct.pack("!H", 0xffff ^ ones_sum(head + payload)) + head[4:] + payload


class Segment:
    """A TCP segment that the guest has sent; None fields of anything else."""

    def __init__(self, frame, flags):
        self.is_tcp = frame[12:14] == b"\x08\x00" and frame[23] == 6
        if not self.is_tcp:
            return
        ip = frame[14:]
        total, = struct.unpack("!H", ip[2:4])
        at = (ip[0] & 15) * 4
        self.src, self.dst = socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20])
        body = ip[at:total]
        (self.sport, self.dport, self.seq, self.ack, doff, self.flags, self.window, self.check,
         _) = struct.unpack("!HHIIBBHHH", body[:20])
        self.payload = body[(doff >> 4) * 4:]
        front = pseudo(self.src, self.dst, 6, len(body))
        if flags & WIRE and self.check == ones_sum(front):
            self.good = True     # what another interface of this host has not filled in
        elif flags & PARTIAL:
            self.good = self.check == ones_sum(front)
        else:
            self.good = ones_sum(front + body) == 0xffff
        self.ecr = None
        options = body[20:(doff >> 4) * 4]
        while options and options[0]:
            if options[0] == 1:
                options = options[1:]
                continue
            if options[0] == 8:
                self.tsval, self.ecr = struct.unpack("!II", options[2:10])
            options = options[options[1]:]


class Connection:
    """One TCP connection of the made-up peer, whose counterpart has the primary's numbers."""

    def __init__(self, driver, how, shift, early, ahead):
        self.driver, self.ahead = driver, ahead
        self.sport = 20000 + int(time.monotonic() * 1000) % 20000
        self.ends = (PEER_IP, driver.ip, self.sport, 7000)
        self.seq, self.stamp, self.wrong = 0x11223344, 777, []
        self.seen_stamp = 0
        self.send(SYN, options=b"\2\4\5\xb4", ack=0)
        self.seq += 1
        synack = None
        primary = (0x7fff0000 + shift) & 0xffffffff
        if not early:
            synack = self.wait()
            primary = (synack.seq + shift) & 0xffffffff
        if how == "flow":
            driver.flow(self.sport, primary, 7000)
        self.ack = (primary + 1) & 0xffffffff
        self.send(ACK)
        if early:
            time.sleep(0.3)
            driver.do_unpause()
            synack = self.wait()
            driver.do_pause()    # the caller's unpause is for this
        if synack.flags & (SYN | ACK) != SYN | ACK:
            raise Problem("flags %#x instead of a SYN-ACK" % synack.flags)
        self.offset = (primary - synack.seq) & 0xffffffff

    def facts(self):
        return {"sport": self.sport, "offset": self.offset}

    def send(self, flags, payload=b"", options=b"", ack=None, partial=False):
        self.stamp += 1
        options += b"\1\1\x08\x0a" + struct.pack("!II", self.stamp, self.seen_stamp & 0xffffffff)
        self.driver.send_frame(ipv4(PEER_IP, self.driver.ip, 6,
                                    tcp(*self.ends, self.seq, self.ack if ack is None else ack,
                                        flags, payload, options, partial)),
                               flags=PARTIAL if partial else 0)

    def wait(self):
        """The next segment of this connection; notes what is wrong with it."""
        def mine(o):
            s = Segment(o.frame, o.flags)
            return s if s.is_tcp and s.dport == self.sport and s.sport == self.ends[3] else None

        s = self.driver.wait_output(mine)
        if not s:
            raise Problem("the guest is silent; wrong so far: %s" % self.wrong)
        if not s.good:
            self.wrong.append("checksum")
        stamp = s.tsval + (0 if self.driver.wire else self.ahead)
        if stamp < self.seen_stamp:
            self.wrong.append("TSval %d after %d" % (stamp, self.seen_stamp))
        self.seen_stamp = max(self.seen_stamp, stamp)
        return s

    def receive(self, done):
        """In order bytes until done(bytes, segment)."""
        data = b""
        while True:
            s = self.wait()
            at = (s.seq - self.ack) & 0xffffffff
            if at and at < 1 << 31 and s.payload:
                self.wrong.append("seq %d beyond the expected" % at)
            if s.payload and not at:
                data += s.payload
                self.ack = (self.ack + len(s.payload)) & 0xffffffff
            if s.flags & RST:
                raise Problem("reset; wrong so far: %s" % self.wrong)
            if done(data, s):
                return data, s

    def request(self):
        # With a partial checksum on the channel, as from a neighbour on the primary's host.
        self.send(ACK | PSH, b"inc\n", partial=not self.driver.wire)
        self.seq += 4
        data, _ = self.receive(lambda data, _: data.endswith(b"\n"))
        self.send(ACK)
        return {"answer": data.decode().strip(), "wrong": self.wrong, "offset": self.offset}

    def close(self):
        self.send(FIN | ACK)
        self.seq += 1
        _, s = self.receive(lambda _, s: s.flags & FIN)
        at = (s.seq - self.ack) & 0xffffffff
        self.ack += 1
        self.send(ACK)
        return {"fin_at": at}


# ---- the daemon and its two sockets ----

Output = collections.namedtuple("Output", "vif flags epoch id gso frame")


class Driver:
    def __init__(self, domid, ip, shadowd, options):
        self.domid = domid
        self.front = "/local/domain/%d/device/vif/0/" % domid
        self.back = "/local/domain/0/backend/vif/%d/0/" % domid
        self.mac = node(self.front + "mac")
        self.ip = ip
        self.epoch = 0
        self.connections = {}
        self.wire = None
        self.outputs = collections.deque()
        self.seen = 0
        self.news = threading.Condition()
        self.sending = threading.Lock()
        self.xc = ctypes.CDLL("libxenctrl.so.4.17")
        self.xc.xc_interface_open.restype = ctypes.c_void_p
        self.xch = ctypes.c_void_p(self.xc.xc_interface_open(None, None, 0))
        self.take_vif()
        self.start(shadowd, options)

    def take_vif(self):
        name = "vif-%d-0" % self.domid
        if os.path.exists("/sys/bus/xen-backend/drivers/vif/" + name):
            write_sysfs("/sys/bus/xen-backend/drivers/vif/unbind", name)

    def start(self, shadowd, options):
        self.ctl, ctl = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        argv = [shadowd, "--domid", str(self.domid), "--vifs", "1"] + options
        self.pid = os.fork()
        if not self.pid:
            a, b = os.dup(ctl.fileno()), os.dup(channel.fileno())
            a, b = fcntl.fcntl(a, fcntl.F_DUPFD, 50), fcntl.fcntl(b, fcntl.F_DUPFD, 50)
            os.dup2(a, 3)
            os.dup2(b, 4)
            os.closerange(5, 256)
            os.execv(shadowd, argv)
        ctl.close()
        channel.close()
        self.expect(READY)
        threading.Thread(target=self.read_outputs, daemon=True).start()

    def tell(self, kind, epoch=0, count=0, structs=b"", fds=()):
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.ctl.sendmsg([MSG.pack(kind, 0, epoch, count, 0) + structs], ancillary)

    def expect(self, kind, timeout_s=10):
        self.ctl.settimeout(timeout_s)
        data = self.ctl.recv(4096)
        if not data:
            raise Problem("colo-shadowd is gone")
        got, _, epoch, count, text = MSG.unpack(data[:MSG.size])
        if got != kind:
            raise Problem("message %d for %d: %s" % (got, kind, data[len(data) - text:].decode()))
        return epoch, data[MSG.size:]

    def read_exactly(self, count):
        data = b""
        while len(data) < count:
            piece = self.channel.recv(count - len(data))
            if not piece:
                return None
            data += piece
        return data

    def read_outputs(self):
        while True:
            data = self.read_exactly(HEAD.size)
            if data is None:
                return
            length, kind, vif, flags, epoch, number, gso = HEAD.unpack(data)[:7]
            frame = self.read_exactly(length)
            if frame is None:
                return
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and \
                    frame[38:42] == socket.inet_aton(PEER_IP):
                self.answer_arp(frame)
            if kind == OUTPUT:
                self.note(Output(vif, flags, epoch, number, gso, frame))

    def note(self, output):
        with self.news:
            self.seen += 1
            self.outputs.append(output)
            while len(self.outputs) > 20000:
                self.outputs.popleft()
            self.news.notify_all()

    def read_wire(self):
        wire = self.wire
        while True:
            try:
                frame = wire.recv(70000)
            except OSError:
                return           # the interface is gone
            if frame[6:12] == PEER_MAC:
                continue
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and \
                    frame[38:42] == socket.inet_aton(PEER_IP):
                self.answer_arp(frame)
            self.note(Output(0, WIRE, 0, 0, 0, frame))

    def wait_output(self, wanted, timeout_s=5):
        """Take outputs off the queue until one is wanted (wanted() returns a true value)."""
        end = time.monotonic() + timeout_s
        with self.news:
            while True:
                while self.outputs:
                    output = self.outputs.popleft()
                    found = wanted(output)
                    if found:
                        return found
                left = end - time.monotonic()
                if left <= 0:
                    return None
                self.news.wait(left)

    def send(self, kind, payload, flags=0, epoch=None, gso=0):
        with self.sending:
            self.channel.sendall(HEAD.pack(len(payload), kind, 0, flags,
                                           self.epoch if epoch is None else epoch, 0, gso,
                                           0, 0, 0) + payload)

    def answer_arp(self, request):
        """The guest asks for the peer: without an answer it would fall silent after a minute."""
        self.send_frame(request[14:20] + b"\0\2" + PEER_MAC + socket.inet_aton(PEER_IP) +
                        request[22:32], 0x0806)

    def send_frame(self, payload, ethertype=0x0800, flags=0, epoch=None, gso=0):
        frame = bytes.fromhex(self.mac.replace(":", "")) + PEER_MAC + struct.pack("!H", ethertype)
        if self.wire:
            self.wire.send(frame + payload)
            return
        self.send(INPUT, frame + payload, flags, epoch, gso)

    # ---- words ----

    def do_attach(self, epoch, overrides="{}"):
        """ATTACH to what xenstore says; overrides: fields of ctl_attach, JSON."""
        port = node(self.front + "event-channel")
        field = {
            "tx_ref": int(node(self.front + "tx-ring-ref")),
            "rx_ref": int(node(self.front + "rx-ring-ref")),
            "tx_port": int(node(self.front + "event-channel-tx", port)),
            "rx_port": int(node(self.front + "event-channel-rx", port)),
            "sg": int(node(self.front + "feature-sg", "0")),
            "gso4": int(node(self.front + "feature-gso-tcpv4", "0")),
            "gso6": int(node(self.front + "feature-gso-tcpv6", "0")),
            "csum6_offload": int(node(self.front + "feature-ipv6-csum-offload", "0")),
            "rx_copy": int(node(self.front + "request-rx-copy", "0")),
        }
        field.update(json.loads(overrides))
        self.attach_record = struct.pack("<11I6s2x", self.domid, 0, *field.values(),
                                         bytes.fromhex(self.mac.replace(":", "")))
        self.attach_again(int(epoch))
        return field

    def attach_again(self, epoch):
        self.epoch = epoch
        self.tell(ATTACH, epoch, 1, self.attach_record)
        self.expect(ATTACHED)

    def do_go(self):
        self.tell(GO, self.epoch)

    def do_detach(self, epoch):
        self.tell(DETACH, int(epoch))
        self.expect(DETACHED)

    def do_detach_behind(self, count="20"):
        """After failover: frames for the guest and then DETACH, which colo-shadowd finds together;
        how many frames the guest got before DETACHED."""
        before = self.do_stats()["input_packets"]
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)
        for number in range(int(count)):
            self.send_frame(ipv4(PEER_IP, self.ip, 1, icmp_echo(1, number, bytes(56))))
        time.sleep(0.2)
        self.tell(DETACH, self.epoch)
        os.kill(self.pid, signal.SIGCONT)
        self.expect(DETACHED)
        return {"got": self.do_stats()["input_packets"] - before}

    def do_pause(self):
        self.xc.xc_domain_pause(self.xch, self.domid)

    def do_unpause(self):
        self.xc.xc_domain_unpause(self.xch, self.domid)

    def do_stats(self):
        self.tell(STATS_GET)
        data = self.expect(STATS)[1]
        stats = dict(zip(STATS_NAMES, struct.unpack("<%dQ" % len(STATS_NAMES), data)))
        with open("/proc/%d/stat" % self.pid) as f:
            times = f.read().rsplit(")", 1)[1].split()
        stats["cpu_s"] = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        return stats

    def do_confined(self):
        """What the kernel says of the daemon's privileges."""
        with open("/proc/%d/status" % self.pid) as f:
            lines = dict(line.rstrip().split(":\t", 1) for line in f
                         if ":\t" in line.rstrip())
        return {name: lines[name] for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}

    def do_arp(self):
        """An ARP request from the peer; true if the guest answers."""
        mac = bytes.fromhex(self.mac.replace(":", ""))
        self.send_frame(struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, PEER_MAC,
                                    socket.inet_aton(PEER_IP), bytes(6),
                                    socket.inet_aton(self.ip)), 0x0806)
        return bool(self.wait_output(lambda o: o.frame[12:14] == b"\x08\x06" and
                                     o.frame[20:28] == b"\0\2" + mac))

    def do_ping(self, count="10", size="56", epoch=None):
        """Echo requests all at once; how many answers came."""
        count, ident = int(count), int(time.monotonic() * 1000) & 0xffff
        payload = bytes(i & 255 for i in range(int(size)))
        start = time.monotonic()
        for number in range(count):
            self.send_frame(ipv4(PEER_IP, self.ip, 1, icmp_echo(ident, number, payload)),
                            epoch=None if epoch is None else int(epoch))
        got, ids = set(), []

        def answer(o):
            if (o.frame[12:14] == b"\x08\x00" and o.frame[23] == 1 and o.frame[34] == 0 and
                    struct.unpack("!H", o.frame[38:40])[0] == ident and
                    o.frame[42:] == payload):
                got.add(struct.unpack("!H", o.frame[40:42])[0])
                ids.append(o.id)
            return len(got) == count

        self.wait_output(answer, 5)
        return {"answers": len(got), "ms": (time.monotonic() - start) * 1000,
                "ids_in_order": ids == sorted(ids)}

    def flow(self, sport, isn, port):
        mapped = bytes(10) + b"\xff\xff"
        self.send(FLOW, mapped + socket.inet_aton(self.ip) + mapped + socket.inet_aton(PEER_IP) +
                  struct.pack("!HH", port, sport) + struct.pack("<IHHI", isn, 0xffff, 0xffff, 0))

    def do_open(self, name, how="flow", shift="305419896", early="0", ahead="0"):
        """A connection from the peer to the counter, as a primary with another ISN (the secondary's
        + shift) has it. how: "flow" (FLOW tells that ISN) or "ack" (only the peer's ACK does).
        early 1: FLOW and the peer's ACK come before the guest's own SYN-ACK. ahead: by how many ms
        the primary's timestamps are ahead of the secondary's."""
        if early == "1":
            self.do_pause()
        try:
            self.connections[name] = Connection(self, how, int(shift), early == "1", int(ahead))
        finally:
            if early == "1":
                self.do_unpause()
        return self.connections[name].facts()

    def do_use(self, name):
        """A request on it; the answer, and what was wrong with the segments that carried it."""
        return self.connections[name].request()

    def do_close(self, name):
        return self.connections.pop(name).close()

    def do_tcp(self, how="flow", shift="305419896", early="0"):
        """All three."""
        self.do_open("tcp", how, shift, early)
        answer = self.do_use("tcp")
        answer.update(self.do_close("tcp"))
        return answer

    def do_upload(self, megabytes="4", size="32000", flags="3"):
        """Sends bytes to the sink in frames of size bytes (flags 1: partial checksums, 2: GSO) with
        no more than a window under way; said: what the sink has got, and its hash of it."""
        total, size, flags = int(float(megabytes) * 2**20), int(size), int(flags)
        sport, mine, sent, acked = 20000 + int(time.monotonic() * 100) % 20000, 1000, 0, 0
        ends = (PEER_IP, self.ip, sport, 7002)

        def segment(o):
            s = Segment(o.frame, o.flags)
            return s if s.is_tcp and s.dport == sport else None

        self.send_frame(ipv4(PEER_IP, self.ip, 6, tcp(*ends, mine, 0, SYN,
                                                      options=b"\2\4\5\xb4\1\3\3\7")))
        synack = self.wait_output(segment)
        if not synack:
            raise Problem("no SYN-ACK")
        base, theirs = mine + 1, synack.seq + 1
        self.flow(sport, synack.seq, 7002)
        start = time.monotonic()
        self.send_frame(ipv4(PEER_IP, self.ip, 6, tcp(*ends, base, theirs, ACK)))
        window = 60000
        pattern = bytes(i & 255 for i in range(65536 + 256))
        while acked < total:
            while sent < total and sent - acked < window:
                piece = pattern[sent // 1000 & 255:][:min(size, total - sent)]
                large = flags & GSO and len(piece) > 1460
                self.send_frame(ipv4(PEER_IP, self.ip, 6,
                                     tcp(*ends, base + sent, theirs, ACK | PSH, piece,
                                         partial=bool(flags & PARTIAL))),
                                flags=flags if large else flags & PARTIAL,
                                gso=1460 if large else 0)
                sent += len(piece)
            s = self.wait_output(segment, 10)
            if not s:
                raise Problem("the guest has stopped at %d of %d (sent %d)" % (acked, total, sent))
            acked = max(acked, (s.ack - base) & 0xffffffff)
        seconds = time.monotonic() - start
        self.send_frame(ipv4(PEER_IP, self.ip, 6, tcp(*ends, base + total, theirs, FIN | ACK)))
        s = self.wait_output(lambda o: (lambda x: x if x and x.payload else None)(segment(o)))
        self.send_frame(ipv4(PEER_IP, self.ip, 6, tcp(*ends, base + total + 1, theirs, RST)))
        return {"seconds": seconds, "said": s.payload.decode().strip() if s else None,
                "total": total}

    def do_cycles(self, count="100", pings="3"):
        """Checkpoints: pause, DETACH, ATTACH, GO, unpause, and pings that must be answered."""
        answers, bad = 0, []
        for i in range(int(count)):
            self.do_pause()
            self.do_detach(self.epoch)
            self.attach_again(self.epoch + 1)
            self.do_go()
            self.do_unpause()
            got = self.do_ping(pings)["answers"]
            answers += got
            if got != int(pings):
                bad.append((i, got))
        stats = self.do_stats()
        return {"answers": answers, "bad": bad, "epoch": self.epoch,
                "attach_us_mean": stats["attach_us_sum"] / stats["attaches"],
                "attach_us_max": stats["attach_us_max"], "attaches": stats["attaches"]}

    def do_outputs(self):
        """Counts of what the guest has sent and nobody has taken; takes it."""
        with self.news:
            taken = list(self.outputs)
            self.outputs.clear()
        pings = [o for o in taken if o.frame[12:14] == b"\x08\x00" and o.frame[23] == 1 and
                 not o.frame[34]]
        return {"count": len(taken), "pings": len(pings), "seen": self.seen,
                "ids": [o.id for o in taken][-20:],
                "epochs": sorted({o.epoch for o in taken}), "gso": sum(bool(o.gso) for o in taken)}

    def do_sleep(self, seconds):
        time.sleep(float(seconds))

    def do_signal(self, number="15"):
        """Sends it to colo-shadowd; is that still there?"""
        os.kill(self.pid, int(number))
        time.sleep(0.3)
        return {"alive": not os.waitpid(self.pid, os.WNOHANG)[0]}

    def do_spoil(self, ring="tx"):
        """Index nonsense in a shared ring, as a hostile guest would write it (pause it first)."""
        gnttab = ctypes.CDLL("libxengnttab.so.1")
        gnttab.xengnttab_open.restype = gnttab.xengnttab_map_grant_ref.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(gnttab.xengnttab_open(None, 0))
        page = gnttab.xengnttab_map_grant_ref(handle, self.domid,
                                              int(node(self.front + ring + "-ring-ref")), 3)
        index = ctypes.c_uint32.from_address(page)
        old, index.value = index.value, index.value + 12345
        gnttab.xengnttab_unmap(handle, ctypes.c_void_p(page), 1)
        gnttab.xengnttab_close(handle)
        return {"was": old}

    def do_burst(self, count="3000", size="1400"):
        """More input than colo-shadowd's queues and the socket take, while the guest is paused: how
        much could be written within ten seconds, and what arrives once the guest runs."""
        count, ident, done = int(count), 4242, []
        payload = bytes(int(size))

        def feed():
            for number in range(count):
                self.send_frame(ipv4(PEER_IP, self.ip, 1, icmp_echo(ident, number, payload)))
                done.append(number)

        self.do_pause()
        thread = threading.Thread(target=feed, daemon=True)
        thread.start()
        thread.join(10)
        stuck = len(done)
        self.do_unpause()
        thread.join(60)
        answers, before = set(), -1

        def answer(o):
            if o.frame[12:14] == b"\x08\x00" and o.frame[23] == 1 and o.frame[34] == 0 and \
                    o.frame[38:40] == struct.pack("!H", ident):
                answers.add(o.frame[40:42])
            return len(answers) == count

        while self.wait_output(answer, 10) is None:
            if len(answers) == before:
                break            # nothing more for ten seconds
            before = len(answers)
        return {"stuck": stuck, "sent": len(done), "answers": len(answers)}

    def do_inject(self, text, flags="0", epoch=None, gso="0"):
        """A whole Ethernet frame, in hex."""
        self.send(INPUT, bytes.fromhex(text), int(flags), None if epoch is None else int(epoch),
                  int(gso))

    def do_matched(self, first, last):
        ids = range(int(first), int(last) + 1)
        self.send(MATCHED, struct.pack("<%dQ" % len(ids), *ids))

    def do_failover(self, name="shadow0", bridge="xenbr0"):
        """A tap on the bridge, FAILOVER; how long until ACTIVE. The peer moves to an interface on
        the same bridge, where frames have full checksums or none yet."""
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(tap, 0x400454ca, struct.pack("16sH22x", name.encode(), 0x5002))
        run("ip", "link", "set", name, "master", bridge, "txqueuelen", "1000", "up")
        run("ip", "link", "add", "peer0", "type", "veth", "peer", "name", "peer1")
        run("ip", "link", "set", "peer0", "master", bridge, "up")
        run("ip", "link", "set", "peer1", "promisc", "on", "up")
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.bind(("peer1", 0))
        self.wire = wire
        threading.Thread(target=self.read_wire, daemon=True).start()
        start = time.monotonic()
        self.tell(FAILOVER, self.epoch, fds=[tap])
        self.expect(ACTIVE)
        os.close(tap)
        return {"ms": (time.monotonic() - start) * 1000}

    def do_part(self):
        """The peer's interface goes: its slow reading of the bridge would spoil every figure."""
        run("ip", "link", "del", "peer0")

    def do_leave(self):
        """Closes the control socket and the channel; is colo-shadowd still there after a second?"""
        self.ctl.close()
        self.channel.close()
        time.sleep(1)
        return {"alive": not os.waitpid(self.pid, os.WNOHANG)[0]}

    def do_quit(self):
        self.tell(QUIT)
        return {"status": os.waitpid(self.pid, 0)[1]}

    def do_give_back(self):
        """The vif to netback again, and its device onto the bridge."""
        name = "vif-%d-0" % self.domid
        write_sysfs("/sys/bus/xen-backend/drivers/vif/bind", name)
        run("xenstore-write", self.back + "hotplug-status", "connected")
        device = "vif%d.0" % self.domid
        for _ in range(50):
            if os.path.exists("/sys/class/net/" + device):
                break
            time.sleep(0.1)
        run("ip", "link", "set", device, "master", "xenbr0", "up")
        return {"device": device}


def serve(arguments):
    # The name by which the lab's cleaning finds it: it must not outlive its test.
    ctypes.CDLL(None).prctl(15, b"remus-driver", 0, 0, 0)
    driver = Driver(arguments.domid, arguments.ip, arguments.shadowd, arguments.options)
    server = socket.socket(socket.AF_UNIX)
    if os.path.exists(SOCKET):
        os.unlink(SOCKET)
    server.bind(SOCKET)
    server.listen(4)
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rw") as stream:
            words = json.loads(stream.readline())
            if words[0] == "end":
                return
            try:
                answer = getattr(driver, "do_" + words[0])(*words[1:])
                stream.write(json.dumps({"answer": answer}) + "\n")
            except Exception as e:
                stream.write(json.dumps({"error": "%s: %s" % (type(e).__name__, e)}) + "\n")


def do(words):
    while words:
        end = words.index(",") if "," in words else len(words)
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(SOCKET)
            with s.makefile("rw") as stream:
                stream.write(json.dumps(words[:end]) + "\n")
                stream.flush()
                answer = stream.readline().rstrip() or '{"answer": null}'
        print(answer, flush=True)
        if "error" in json.loads(answer):
            return 1
        words = words[end + 1:]
    return 0


def main():
    parser = argparse.ArgumentParser()
    sub = parser.add_subparsers(dest="what", required=True)
    p = sub.add_parser("serve")
    p.add_argument("--domid", type=int, required=True)
    p.add_argument("--ip", required=True)
    p.add_argument("--shadowd", required=True)
    p.add_argument("options", nargs="*")
    p = sub.add_parser("do")
    p.add_argument("words", nargs="+")
    arguments = parser.parse_args()
    if arguments.what == "serve":
        return serve(arguments)
    return do(arguments.words)


if __name__ == "__main__":
    sys.exit(main())
