#!/usr/bin/env python3
"""Plays the coordinator and the secondary for one colo-proxyd, on the host of the protected guest.

    proxy-driver.py serve --domid N --vif NAME[:OUT:IN] --proxyd FILE --nft FILE [-- OPTION...]
    proxy-driver.py do WORD [ARGUMENT...]          prints one line of JSON

`serve` starts colo-proxyd, waits for READY, installs the rules and then serves commands on a Unix
socket. What the guest sends is seen by a packet socket on its vif, ahead of the bridge, and sent
back as the output of the secondary, as the mode says:

    mode equal        the same bytes
    mode alter        the last byte of each UDP or TCP payload is different
    mode silent       nothing
    mode late MS      the same bytes, so much later

Words: mode ..., stop (INPUT_STOP), go (INPUT_GO), cut, release, checkpoint (all of these, the guest
paused in between), auto on|off (a checkpoint whenever colo-proxyd asks), hold, unprotect, fence,
stats, state, read on|off (of the packet channel), tap off (see nothing of the guest's output from
now on), lose (close the channel), kill and signal N (colo-proxyd), quit.
"""

import collections
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time

SOCKET = "/run/proxy-driver.sock"
MSG = struct.Struct("<IIQII")
PACKET = struct.Struct("<IBBHQQH6x")
STATS = ("input_packets input_bytes output_packets output_bytes released_equal released_epoch held "
         "held_bytes held_max flows flows_max offsets dropped_old dropped_other checkpoint_0 "
         "diverged deadline uncomparable queue output delay_us_sum delay_us_max lag_us "
         "attach_us_sum attach_us_max attaches").split()
(INPUT_STOP, CUT, RELEASE, HOLD, UNPROTECT, FENCE, INPUT_GO) = range(1, 8)
STATS_GET, QUIT = 64, 65
(READY, INPUT_STOPPED, CUT_DONE, UNPROTECTED, FENCED, _ATTACHED, _DETACHED, _ACTIVE, CHECKPOINT,
 CHANNEL_LOST, STATS_MSG, FAILED) = range(96, 108)
INPUT, OUTPUT, MATCHED, FLOW, PING, PONG = range(1, 7)
PACKET_OUTGOING = 4
F_PARTIAL, F_GSO = 1, 2
ANSWER_TIMEOUT_S = 20


class Driver:
    def __init__(self, domid, vif, proxyd, nft, options):
        self.domid, self.nft, self.epoch = domid, nft, 1
        self.vif, self.out_queue, self.in_queue = (vif.split(":") + ["100", "104"])[:3]
        self.mode, self.late_s, self.auto, self.reading = "equal", 0.0, False, True
        self.next_id, self.delayed = 1, collections.deque()
        self.asked, self.lost, self.failed = [], None, None
        self.input = collections.Counter()
        self.input_epochs = collections.Counter()
        self.counts = collections.Counter()
        self.buffer = bytearray()
        self.out = bytearray()
        self.answers = []
        self.start(proxyd, options)
        self.tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.tap.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
        self.tap.bind((self.vif, 3))
        self.tap.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.tap, selectors.EVENT_READ, self.on_tap)
        self.selector.register(self.control, selectors.EVENT_READ, self.on_control)
        self.selector.register(self.channel, selectors.EVENT_READ, self.on_channel)

    def start(self, proxyd, options):
        pairs = (socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
                 socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
        # Descriptors 3 and 4 are where the daemon looks; what stood there moves up.
        ours = [socket.socket(fileno=os.dup(p[0].fileno())) for p in pairs]
        theirs = [os.dup(p[1].fileno()) for p in pairs]
        high = [self.above(s.detach()) for s in ours]
        theirs = [self.above(fd) for fd in theirs]
        for pair in pairs:
            for s in pair:
                s.close()
        for fd, number in zip(theirs, (3, 4)):
            os.dup2(fd, number)
            os.close(fd)
        self.process = subprocess.Popen(
            [proxyd, "--domid", str(self.domid), "--vif",
             "%s:%s:%s" % (self.vif, self.out_queue, self.in_queue)] + options,
            pass_fds=(3, 4), stdin=subprocess.DEVNULL)
        os.close(3)
        os.close(4)
        self.control, self.channel = [socket.socket(fileno=fd) for fd in high]
        self.control.settimeout(ANSWER_TIMEOUT_S)
        kind, text = self.receive()
        if kind != READY:
            raise SystemExit("proxy-driver: colo-proxyd says %d %s" % (kind, text))
        self.channel.setblocking(False)
        subprocess.run([self.nft, "protect", self.vif, self.out_queue, self.in_queue], check=True)

    @staticmethod
    def above(fd):
        spare = []
        while fd < 10:
            spare.append(fd)
            fd = os.dup(fd)
        for one in spare:
            os.close(one)
        return fd

    # ---- control ----

    def receive(self):
        data = self.control.recv(4096)
        if len(data) < MSG.size:
            return None, "end"
        kind, code, epoch, count, text_bytes = MSG.unpack_from(data)
        text = data[len(data) - text_bytes:].decode("utf-8", "replace") if text_bytes else ""
        if kind == CHECKPOINT:
            self.asked.append({"why": code, "epoch": epoch, "text": text,
                               "ms": int(time.monotonic() * 1000)})
        elif kind == CHANNEL_LOST:
            self.lost = text
        elif kind == FAILED:
            self.failed = text
        elif kind == STATS_MSG:
            text = dict(zip(STATS, struct.unpack("<%dQ" % len(STATS), data[MSG.size:])))
        return kind, text

    def on_control(self):
        kind, text = self.receive()
        if kind is None:
            self.selector.unregister(self.control)
            self.failed = self.failed or "colo-proxyd is gone"
        elif kind == CHECKPOINT and self.auto:
            self.do_checkpoint()
        elif kind != CHECKPOINT:
            self.answers.append((kind, text))

    def tell(self, kind, epoch=0, answer=None):
        """Send; with an answer, go on with everything until it is there."""
        self.answers = []
        self.control.send(MSG.pack(kind, 0, epoch, 0, 0))
        end = time.monotonic() + ANSWER_TIMEOUT_S
        while answer:
            for kind_got, text in self.answers:
                if kind_got == answer:
                    return text
            if time.monotonic() > end or self.failed:
                raise RuntimeError("no answer %d: %s" % (answer, self.failed))
            self.turn(0.2)
        return None

    # ---- the secondary ----

    def send(self, kind, payload, number=0, flags=0, gso_size=0):
        self.out += PACKET.pack(len(payload), kind, 0, flags, self.epoch, number, gso_size)
        self.out += payload

    def flush(self):
        if not self.out or self.lost is not None:
            self.out = bytearray() if self.lost is not None else self.out
            return
        try:
            sent = self.channel.send(self.out)
            del self.out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.out = bytearray()

    def say(self, frame):
        if self.mode == "silent":
            return
        if self.mode == "alter":
            frame = self.alter(frame)
        self.send(OUTPUT, frame, self.next_id)
        self.next_id += 1

    @staticmethod
    def alter(frame):
        """Change the last byte of a TCP or UDP payload over IPv4."""
        if frame[12:14] != b"\x08\x00" or frame[23] not in (6, 17):
            return frame
        l4 = 14 + (frame[14] & 15) * 4
        end = 14 + struct.unpack_from(">H", frame, 16)[0]
        start = l4 + (8 if frame[23] == 17 else (frame[l4 + 12] >> 4) * 4)
        if end > len(frame) or end <= start:
            return frame
        changed = bytearray(frame)
        changed[end - 1] ^= 0x55
        return bytes(changed)

    def on_tap(self):
        for _ in range(64):
            try:
                frame, address = self.tap.recvfrom(70000)
            except OSError:  # nothing there, or the guest is gone
                return
            if address[2] == PACKET_OUTGOING:
                continue
            self.counts["output"] += 1
            self.counts["output_max"] = max(self.counts["output_max"], len(frame))
            if self.mode == "late":
                self.delayed.append((time.monotonic() + self.late_s, frame))
            else:
                self.say(frame)

    def on_channel(self):
        try:
            data = self.channel.recv(1 << 20)
        except BlockingIOError:
            return
        if not data:
            self.selector.unregister(self.channel)
            return
        self.buffer += data
        at = 0
        while len(self.buffer) - at >= PACKET.size:
            length, kind, _vif, flags, epoch, _id, gso_size = PACKET.unpack_from(self.buffer, at)
            if len(self.buffer) - at < PACKET.size + length:
                break
            payload = bytes(self.buffer[at + PACKET.size:at + PACKET.size + length])
            at += PACKET.size + length
            self.on_packet(kind, flags, epoch, gso_size, payload)
        del self.buffer[:at]

    def on_packet(self, kind, flags, epoch, gso_size, payload):
        if kind == INPUT:
            self.input["frames"] += 1
            self.input["bytes"] += len(payload)
            self.input["max"] = max(self.input["max"], len(payload))
            if flags & F_GSO:
                self.input["gso"] += 1
                self.input["gso_size"] = gso_size
            if flags & F_PARTIAL:
                self.input["partial"] += 1
            if payload[12:14] == b"\x08\x00" and payload[23] == 1:
                self.input["icmp"] += 1
            self.input_epochs[epoch] += 1
        elif kind == MATCHED:
            self.counts["matched"] += len(payload) // 8
        elif kind == FLOW:
            self.counts["flows"] += 1
        else:
            self.counts["other"] += 1

    # ---- commands ----

    def do_mode(self, mode, late_ms="0"):
        self.mode, self.late_s = mode, float(late_ms) / 1000

    def do_stop(self):
        self.tell(INPUT_STOP, answer=INPUT_STOPPED)

    def do_go(self):
        self.tell(INPUT_GO)

    def do_cut(self):
        started = time.monotonic()
        # What is not read by now belongs to the next epoch: exact if the guest is paused.
        self.on_tap()
        self.selector.unregister(self.tap)
        try:
            self.tell(CUT, self.epoch, CUT_DONE)
            self.epoch += 1
        finally:
            self.selector.register(self.tap, selectors.EVENT_READ, self.on_tap)
        return {"us": int((time.monotonic() - started) * 1e6)}

    def do_release(self):
        self.tell(RELEASE, self.epoch - 1)

    def do_checkpoint(self):
        self.do_stop()
        subprocess.run(["xl", "pause", str(self.domid)], check=True)
        try:
            self.on_tap()
            self.do_cut()
        finally:
            subprocess.run(["xl", "unpause", str(self.domid)], check=True)
        self.do_release()

    def do_auto(self, word):
        self.auto = word == "on"

    def do_hold(self):
        self.tell(HOLD)

    def do_unprotect(self):
        self.tell(UNPROTECT, answer=UNPROTECTED)
        subprocess.run([self.nft, "unprotect", self.vif], check=True)

    def do_fence(self):
        self.tell(FENCE, answer=FENCED)

    def do_stats(self):
        return self.tell(STATS_GET, answer=STATS_MSG)

    def do_state(self):
        return {"epoch": self.epoch, "asked": self.asked, "lost": self.lost, "failed": self.failed,
                "input": dict(self.input), "input_epochs": dict(self.input_epochs),
                "counts": dict(self.counts), "running": self.process.poll() is None,
                "pid": self.process.pid, "unsent": len(self.out)}

    def do_read(self, word):
        self.reading = word == "on"
        if self.reading:
            self.selector.register(self.channel, selectors.EVENT_READ, self.on_channel)
        else:
            self.selector.unregister(self.channel)

    def do_tap(self, word):
        """Packet socket off: nothing but colo-proxyd's queue makes the kernel copy a frame."""
        if word == "off":
            self.selector.unregister(self.tap)
            self.tap.close()

    def do_lose(self):
        self.selector.unregister(self.channel)
        self.channel.close()
        end = time.monotonic() + ANSWER_TIMEOUT_S
        while self.lost is None and time.monotonic() < end:
            self.turn(0.2)

    def do_kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def do_signal(self, number):
        self.process.send_signal(int(number))

    def do_quit(self):
        self.tell(QUIT)
        self.process.wait(ANSWER_TIMEOUT_S)
        return {"status": self.process.returncode}

    # ---- loop ----

    def turn(self, timeout_s):
        now = time.monotonic()
        while self.delayed and self.delayed[0][0] <= now:
            self.say(self.delayed.popleft()[1])
        if self.delayed:
            timeout_s = min(timeout_s, self.delayed[0][0] - now)
        if self.out:
            timeout_s = min(timeout_s, 0.01)
        for key, _events in self.selector.select(max(0, timeout_s)):
            if key.fileobj is not self.server_or_none():
                key.data()
        self.flush()

    def server_or_none(self):
        return getattr(self, "server", None)

    def serve(self):
        try:
            os.unlink(SOCKET)
        except FileNotFoundError:
            pass
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(SOCKET)
        self.server.listen(4)
        self.server.settimeout(0)
        print("proxy-driver: ready", flush=True)
        while True:
            self.turn(0.05)
            try:
                peer, _address = self.server.accept()
            except BlockingIOError:
                continue
            with peer:
                peer.setblocking(True)
                words = peer.recv(4096).decode().split()
                try:
                    result = getattr(self, "do_" + words[0])(*words[1:]) or {}
                except Exception as e:  # told to the caller of `do`
                    result = {"error": "%s: %s" % (type(e).__name__, e)}
                peer.sendall(json.dumps(result).encode() + b"\n")
            if words[0] == "quit":
                return


def do(words):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(60)
        s.connect(SOCKET)
        s.sendall(" ".join(words).encode())
        text = s.makefile().readline()
    print(text.strip())
    return 1 if "error" in json.loads(text) else 0


def serve(argv):
    options = []
    if "--" in argv:
        cut = argv.index("--")
        argv, options = argv[:cut], argv[cut + 1:]
    values = dict(zip(argv[::2], argv[1::2]))
    Driver(int(values["--domid"]), values["--vif"], values["--proxyd"], values["--nft"],
           options).serve()
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("serve", "do"):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(serve(sys.argv[2:]) if sys.argv[1] == "serve" else do(sys.argv[2:]))
