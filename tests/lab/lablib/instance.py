r"""One lab: two emulated machines running Xen, a client, and the networks between them.

                              build machine
  +--------------------------------------------------------------------------------+
  |   127.0.0.1:PORT_A (ssh)                             127.0.0.1:PORT_B (ssh)    |
  |         |  QEMU user network, used by `lab exec` only       |                  |
  |  +------+---------- host a ------+        +------ host b ---+-----------+      |
  |  |    mgmt                       |        |               mgmt          |      |
  |  |  dom0 Xen 4.17                |        |  dom0 Xen 4.17              |      |
  |  |    xenbr0 10.77.0.1           |        |    xenbr0 10.77.0.2         |      |
  |  |    |    |                     |        |    |    |                   |      |
  |  |  vif1.0 client    repl        |        |  vif1.0 client    repl      |      |
  |  |    |    |       10.78.0.1     |        |    |    |       10.78.0.2   |      |
  |  |  guest  |          |          |        |  guest  |          |        |      |
  |  |  10.77. |          |          |        |  10.77. |          |        |      |
  |  |  0.10+  |          |          |        |  0.10+  |          |        |      |
  |  +---------+----------+----------+        +---------+----------+--------+      |
  |            |          |                             |          |               |
  |  +---------+----------+---- network namespace ------+----------+------------+  |
  |  |      a-client    a-repl                      b-client    b-repl          |  |
  |  |         |           |                            |           |           |  |
  |  |         |           +----------- br-repl --------|-----------+           |  |
  |  |         +-------------------- br-client ---------+                       |  |
  |  |                               10.77.0.100: the client                    |  |
  |  +--------------------------------------------------------------------------+  |
  +--------------------------------------------------------------------------------+

br-repl carries no address: only the two hosts use it. Both bridges are taps and Linux bridges in
one namespace per lab, so any number of labs can run side by side.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

from . import common, images
from .common import BIN, LabError, run, say

HOSTS = ("a", "b")
LINKS = {
    "client": [("a", "client"), ("b", "client")],
    "client-a": [("a", "client")],
    "client-b": [("b", "client")],
    "repl": [("a", "repl"), ("b", "repl")],
}
CLIENT_IP6, CLIENT_SECOND_IP, CLIENT_VLAN_IP = "fd77::100", "10.76.0.100", "10.79.0.100"
CLIENT_IP = "10.77.0.100"
BOOT_TIMEOUT_S = 120
GUEST_TIMEOUT_S = 90
EXEC_TIMEOUT_S = 600
HOST_MEMORY_MB = 2600
SHARED_MB = 64
REPL_MTU = 9000
XEN_ARGS = ("console=com1 com1=115200,8n1 dom0_mem=1024M,max:1024M bootscrub=0 spec-ctrl=eager-fpu "
            "loglvl=warning")
DOM0_ARGS = "console=hvc0 quiet net.ifnames=0 panic=1"
GUEST_ARGS = "xen.fifo_events=0 xen_nopvspin console=hvc0 quiet panic=1"
# Without erms the kernel clears and copies by the word: emulation does `rep movsb` byte by byte,
# nine times slower. The others are emulated wrongly or too slowly (see README.md).
CPU = "max,-smap,-smep,-rdtscp,-avx,-avx2,-pku,-la57,-f16c,-fma,-erms,-fsrm"
FATAL_MARKS = ("LAB-FAILED", "Kernel panic", "Panic on CPU", "Domain 0 crashed")

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


def prefer():
    """Emulated hosts come before compilers and the like: they have the deadlines."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -5)


class Lab:
    def __init__(self, name=None):
        self.name = name or os.environ.get("LAB") or "main"
        if not self.name.replace("-", "").replace("_", "").isalnum() or len(self.name) > 32:
            raise LabError("LAB=%s: use letters, digits, - and _ only" % self.name)
        self.dir = os.path.join(common.RUN_ROOT, self.name)
        self.tag = hashlib.sha1(self.dir.encode()).hexdigest()[:6]
        self.netns = "lab-%s-%s" % (self.name, self.tag)
        # Unix socket paths are short; the checkout's path may not be.
        self.sockets = "/run/lab-" + self.tag
        self.state_path = os.path.join(self.dir, "state.json")

    # ---- state kept between commands ----

    def state(self):
        try:
            with open(self.state_path) as f:
                return json.load(f)
        except FileNotFoundError:
            return {"hosts": {}, "guests": {}, "captures": {}, "cuts": []}

    @contextlib.contextmanager
    def changing_state(self):
        with common.FileLock(os.path.join(self.dir, "state.lock")):
            state = self.state()
            yield state
            with open(self.state_path + ".new", "w") as f:
                json.dump(state, f, indent=1, sort_keys=True)
            os.rename(self.state_path + ".new", self.state_path)

    def host_state(self, host):
        state = self.state()
        if host not in state["hosts"]:
            raise LabError("lab %s has no host '%s' (up: %s)" %
                           (self.name, host, " ".join(sorted(state["hosts"])) or "none"))
        return state["hosts"][host]

    def hosts(self):
        return sorted(self.state()["hosts"])

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def socket_path(self, name):
        return os.path.join(self.sockets, name)

    def console_log(self, host):
        return self.path(host + ".console")

    # ---- processes ----

    def is_running(self, host):
        info = self.state()["hosts"].get(host)
        return bool(info) and bool(info.get("pid")) and \
            common.process_start_time(info["pid"]) == info["start_time"]

    def signal_host(self, host, number):
        info = self.host_state(host)
        if not self.is_running(host):
            raise LabError("host %s of lab %s is not running" % (host, self.name))
        os.kill(info["pid"], number)

    def kill_recorded(self, pid, start_time):
        """Kill a process that this lab started, if it is still that process."""
        if not pid or common.process_start_time(pid) != start_time:
            return
        os.kill(pid, signal.SIGKILL)
        common.wait_for(lambda: common.process_start_time(pid) != start_time, 20, 0.02)

    # ---- networks ----

    def mac(self, host, number):
        tag = self.tag
        return "52:54:%s:%s:%s:%02x" % (tag[0:2], tag[2:4], "0" + host, number)

    def setup_network(self):
        ns = self.netns
        if os.path.exists("/run/netns/" + ns):
            run(["ip", "netns", "del", ns], check=False)
        run(["ip", "netns", "add", ns])
        lines = ["link set lo up"]
        for bridge in ("client", "repl"):
            lines.append("link add br-%s type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
                         % bridge)
        for host in HOSTS:
            for bridge in ("client", "repl"):
                tap = "%s-%s" % (host, bridge)
                lines.append("tuntap add dev %s mode tap vnet_hdr" % tap)
                if bridge == "repl":
                    lines.append("link set %s mtu %d" % (tap, REPL_MTU))
                lines.append("link set %s master br-%s" % (tap, bridge))
                lines.append("link set %s up" % tap)
        lines.append("addr add %s/24 dev br-client" % CLIENT_IP)
        lines.append("addr add %s/24 dev br-client" % CLIENT_SECOND_IP)
        lines.append("link set br-client up")
        lines.append("link set br-repl mtu %d up" % REPL_MTU)
        run(["sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1",
             "net.ipv6.conf.default.disable_ipv6=1"], check=False,
            preexec_fn=lambda: common.enter_netns(ns))
        for line in lines:
            run(["ip", "-n", ns] + line.split())
        run(["sysctl", "-q", "-w", "net.ipv6.conf.br-client.disable_ipv6=0",
             "net.ipv6.conf.br-client.accept_dad=0"],
            preexec_fn=lambda: common.enter_netns(ns))
        run(["ip", "-n", ns, "addr", "add", CLIENT_IP6 + "/64", "dev", "br-client"])
        # The build machine's own bridge filter, where there is one, is not part of the lab.
        for family in ("iptables", "ip6tables", "arptables"):
            run(["sysctl", "-q", "-w", "net.bridge.bridge-nf-call-%s=0" % family], check=False,
                preexec_fn=lambda: common.enter_netns(ns))

    def open_tap(self, name):
        """An inheritable descriptor of a tap device in the lab's namespace."""
        result = []

        def work():
            common.enter_netns(self.netns)
            fd = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(),
                                                   IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
            os.set_inheritable(fd, True)
            result.append(fd)

        self.in_thread(work)
        return result[0]

    @staticmethod
    def in_thread(work):
        """Run work() in a thread of its own: changing namespace concerns one thread only."""
        errors = []

        def guarded():
            try:
                work()
            except Exception as e:  # handed on below
                errors.append(e)

        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]

    def client_connect(self, ip, port, timeout_s=3.0):
        """A TCP connection from the client's namespace; raises OSError if there is none."""
        result = []

        def work():
            common.enter_netns(self.netns)
            result.append(socket.create_connection((ip, port), timeout_s))

        self.in_thread(work)
        return result[0]

    def client_listen(self):
        """A listening TCP socket in the client's namespace, on a port of its own."""
        result = []

        def work():
            common.enter_netns(self.netns)
            result.append(socket.create_server(("", 0)))

        self.in_thread(work)
        return result[0]

    def client_udp(self, family=socket.AF_INET):
        result = []

        def work():
            common.enter_netns(self.netns)
            result.append(socket.socket(family, socket.SOCK_DGRAM))

        self.in_thread(work)
        return result[0]

    # ---- hosts ----

    def qemu_argv(self, host, files, info, taps):
        console = "socket,id=serial,path=%s,server=on,wait=off,logfile=%s,logappend=on" % (
            self.socket_path(host + ".serial"), self.console_log(host))
        argv = ["qemu-system-x86_64", "-name", "lab-%s-%s" % (self.name, host),
                "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU,
                "-smp", "1", "-m", str(HOST_MEMORY_MB),
                "-kernel", files["xen"], "-append", XEN_ARGS,
                "-initrd", "%s %s lab.host=%s,%s" % (files["vmlinux"], DOM0_ARGS, host,
                                                     files["initrd"]),
                "-drive", "file=%s,if=none,id=disk,format=qcow2,cache=unsafe" %
                self.path(host + ".qcow2"),
                "-device", "virtio-blk-pci,drive=disk",
                # The same for both hosts, as a SAN would be: /dev/vdb.
                "-drive", "file=%s,if=none,id=shared,format=raw,cache=unsafe,file.locking=off" %
                self.path("shared.raw"),
                "-device", "virtio-blk-pci,drive=shared,share-rw=on",
                "-chardev", console, "-serial", "chardev:serial",
                "-qmp", "unix:%s,server=on,wait=off" % self.socket_path(host + ".qmp"),
                "-netdev", "user,id=mgmt,restrict=on,hostfwd=tcp:127.0.0.1:%d-:22" % info["port"],
                "-device", "virtio-net-pci,netdev=mgmt,id=nic-mgmt,mac=" + self.mac(host, 0)]
        for number, (name, fd) in enumerate(taps, 1):
            argv += ["-netdev", "tap,id=%s,fd=%d" % (name, fd),
                     "-device", "virtio-net-pci,netdev=%s,id=nic-%s,mac=%s" %
                     (name, name, self.mac(host, number))]
        return argv

    def launch(self, host):
        """Power on one host; returns at once."""
        info = self.host_state(host)
        with open(self.console_log(host), "ab") as f:
            offset = f.tell()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            info["port"] = s.getsockname()[1]
        taps = [(name, self.open_tap("%s-%s" % (host, name))) for name in ("client", "repl")]
        argv = self.qemu_argv(host, self.state()["images"], info, taps)
        with open(self.path(host + ".qemu.log"), "ab") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       pass_fds=[fd for _, fd in taps], start_new_session=True,
                                       cwd="/", preexec_fn=prefer)
        for _, fd in taps:
            os.close(fd)
        info.update(pid=process.pid, start_time=common.process_start_time(process.pid),
                    console_offset=offset, argv=shlex.join(argv))
        with self.changing_state() as state:
            state["hosts"][host] = info
        # Not waited for: it outlives this command.
        process.returncode = 0

    def console_since_boot(self, host):
        info = self.host_state(host)
        try:
            with open(self.console_log(host), "rb") as f:
                f.seek(info["console_offset"])
                return f.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def host_failure(self, host, reason):
        return LabError("host %s: %s\n--- serial console, last lines ---\n%s\n--- QEMU ---\n%s" % (
            host, reason, common.tail(self.console_log(host)),
            common.tail(self.path(host + ".qemu.log"), 10)))

    def wait_booted(self, host, end):
        """Wait until Xen's tools and sshd of a host work; end is a time.monotonic() value."""
        while True:
            text = self.console_since_boot(host)
            for mark in FATAL_MARKS:
                if mark in text:
                    raise self.host_failure(host, "failed while booting (%s)" % mark)
            if "LAB-READY" in text:
                break
            if not self.is_running(host):
                raise self.host_failure(host, "QEMU ended while booting")
            if time.monotonic() > end:
                raise self.host_failure(host, "did not boot in time")
            time.sleep(0.1)
        while True:
            result = self.execute(host, "xl info", check=False, timeout_s=30)
            if result.returncode == 0 and "xen_version" in result.stdout:
                return
            if time.monotonic() > end:
                raise self.host_failure(host, "xl info does not work: %s%s" %
                                        (result.stdout, result.stderr))
            time.sleep(0.2)

    def up(self, count=2):
        started = time.monotonic()
        wanted = list(HOSTS[:count])
        os.makedirs(self.dir, exist_ok=True)
        with common.FileLock(self.path("up.lock")):
            files = images.build()
            if self.is_up(wanted):
                if self.state()["images"] != files:
                    say("lab: note: %s runs older images; use `lab down` and `lab up`" % self.name)
                say("lab: %s is already up" % self.name)
                return
            self.down_locked()
            os.makedirs(self.sockets, mode=0o700, exist_ok=True)
            self.setup_network()
            with self.changing_state() as state:
                state.update(images=files, hosts={h: {} for h in wanted}, guests={}, captures={},
                             cuts=[])
            run(["truncate", "-s", "%dM" % SHARED_MB, self.path("shared.raw")])
            for host in wanted:
                run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", files["disk"],
                     self.path(host + ".qcow2")])
                self.launch(host)
            end = time.monotonic() + BOOT_TIMEOUT_S * common.patience()
            for host in wanted:
                self.wait_booted(host, end)
        say("lab: %s is up (hosts %s) after %.1f s" %
            (self.name, " ".join(wanted), time.monotonic() - started))

    def is_up(self, wanted):
        if not os.path.exists("/run/netns/" + self.netns):
            return False
        if not set(wanted) <= set(self.hosts()):
            return False
        for host in wanted:
            if not self.is_running(host):
                return False
            if self.execute(host, "xl info", check=False, timeout_s=30).returncode != 0:
                return False
        return True

    def down(self):
        if not os.path.isdir(self.dir):
            return
        with common.FileLock(self.path("up.lock")):
            self.down_locked()

    def down_locked(self):
        state = self.state()
        for host, info in state["hosts"].items():
            self.stop_ssh(host)
            self.kill_recorded(info.get("pid"), info.get("start_time"))
        for capture in state["captures"].values():
            self.kill_recorded(capture["pid"], capture["start_time"])
        pids = self.path("clients")
        if os.path.isdir(pids):
            for name in os.listdir(pids):
                pid, start_time = name.split("-")
                self.kill_recorded(int(pid), int(start_time))
            shutil.rmtree(pids, ignore_errors=True)
        if os.path.exists("/run/netns/" + self.netns):
            # Persistent taps would keep their names until the namespace is really gone.
            for host in HOSTS:
                for bridge in ("client", "repl"):
                    run(["ip", "-n", self.netns, "link", "del", "%s-%s" % (host, bridge)],
                        check=False)
            run(["ip", "netns", "del", self.netns], check=False)
        shutil.rmtree(self.sockets, ignore_errors=True)
        if os.path.isdir(self.dir):
            for name in os.listdir(self.dir):
                if name == "state.json" or \
                        name.endswith((".qcow2", ".raw", ".console", ".qemu.log")):
                    os.unlink(self.path(name))

    def kill(self, host):
        self.signal_host(host, signal.SIGKILL)
        info = self.host_state(host)
        gone = common.wait_for(
            lambda: common.process_start_time(info["pid"]) != info["start_time"], 20, 0.01)
        if not gone:
            raise LabError("QEMU of host %s does not die" % host)
        self.stop_ssh(host)

    def start(self, host):
        if self.is_running(host):
            raise LabError("host %s is already running" % host)
        self.host_state(host)
        started = time.monotonic()
        self.stop_ssh(host)
        self.launch(host)
        for link in self.state()["cuts"]:
            for link_host, nic in LINKS[link]:
                if link_host == host:
                    self.set_link(host, nic, False)
        self.wait_booted(host, time.monotonic() + BOOT_TIMEOUT_S * common.patience())
        say("lab: host %s is up after %.1f s" % (host, time.monotonic() - started))

    def freeze(self, host):
        self.signal_host(host, signal.SIGSTOP)

    def thaw(self, host):
        self.signal_host(host, signal.SIGCONT)

    # ---- commands on a host ----

    def ssh_options(self, host):
        info = self.host_state(host)
        return ["-F", "/dev/null", "-i", self.state()["images"]["ssh_key"],
                "-o", "Port=%d" % info["port"], "-o", "User=root",
                "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30",
                # A packet a second may also wake a host whose timer interrupt the emulator has
                # lost (seen: a dom0 without a tick for 43 s).
                "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=120",
                "-o", "IdentitiesOnly=yes", "-o", "GSSAPIAuthentication=no",
                "-o", "ControlPath=" + self.socket_path(host + ".ssh")]

    def ensure_ssh(self, host):
        """One connection per host, kept in the background, carries every command."""
        if not self.is_running(host):
            raise LabError("host %s of lab %s is not running" % (host, self.name))
        path = self.socket_path(host + ".ssh")
        if os.path.exists(path):
            return
        with common.FileLock(self.socket_path(host + ".ssh.lock")):
            if os.path.exists(path):
                return
            argv = ["ssh"] + self.ssh_options(host) + ["-o", "ControlMaster=yes", "-N", "-f",
                                                       "127.0.0.1"]
            last = ""
            end = time.monotonic() + 60
            while time.monotonic() < end:
                with open(self.path(host + ".ssh.log"), "w+") as log:
                    code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                          start_new_session=True).returncode
                    log.seek(0)
                    last = log.read()
                if code == 0:
                    return
                if not self.is_running(host):
                    raise self.host_failure(host, "QEMU ended")
                time.sleep(0.2)
            raise self.host_failure(host, "no ssh connection: " + last.strip())

    def stop_ssh(self, host):
        path = self.socket_path(host + ".ssh")
        if os.path.exists(path):
            with contextlib.suppress(subprocess.TimeoutExpired, LabError):
                run(["ssh"] + self.ssh_options(host) + ["-O", "exit", "127.0.0.1"], check=False,
                    timeout=10)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def ssh_argv(self, host, command, tty=False, timeout_s=EXEC_TIMEOUT_S):
        """The argument list that runs a command on a host. A string is a shell script, a list is
        an exact argument vector."""
        if not isinstance(command, str):
            command = shlex.join(command)
        limit = ["timeout", "--foreground", "-k", "5", str(timeout_s)] if timeout_s else []
        return limit + ["ssh"] + self.ssh_options(host) + (["-t"] if tty else ["-T"]) + \
            ["127.0.0.1", command]

    def execute(self, host, command, check=True, timeout_s=EXEC_TIMEOUT_S, stdin=None):
        """Run a command on a host; return its CompletedProcess with text output. A command that
        is ended on its deadline (longer on a busy machine) has the return code 124."""
        self.ensure_ssh(host)
        argv = self.ssh_argv(host, command, timeout_s=round(timeout_s * common.patience()))
        if stdin is not None:
            result = subprocess.run(argv, input=stdin, stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True)
        else:
            result = run(argv, check=False)
        if check and result.returncode != 0:
            raise LabError("host %s: '%s' failed (%d)%s: %s" % (
                host, command if isinstance(command, str) else shlex.join(command),
                result.returncode, " on its deadline" if result.returncode == 124 else "",
                (result.stderr or result.stdout).strip()[-2000:]))
        return result

    def push(self, host, sources, destination):
        self.ensure_ssh(host)
        run(["scp", "-q", "-r"] + self.ssh_options(host) + list(sources) +
            ["127.0.0.1:" + destination])

    def install(self):
        """Build the project's tools and put them on every running host."""
        if not os.path.exists(os.path.join(common.TOP, "Makefile")):
            raise LabError("there is no Makefile at the top of the project yet")
        started = time.monotonic()
        with common.FileLock(common.STAGE + ".lock"):
            shutil.rmtree(common.STAGE, ignore_errors=True)
            os.makedirs(common.STAGE)
            result = subprocess.run(["make", "-s", "-j2", "-C", common.TOP, "install",
                                     "DESTDIR=" + common.STAGE, "PREFIX=/usr/local"],
                                    stdin=subprocess.DEVNULL)
            if result.returncode != 0:
                raise LabError("make install failed")
            for host in self.hosts():
                if not self.is_running(host):
                    continue
                self.ensure_ssh(host)
                unpack = "tar -xf - -C / --no-same-owner --keep-directory-symlink && " \
                    "ldconfig && sync"
                tar = subprocess.Popen(["tar", "-cf", "-", "-C", common.STAGE, "--owner=0",
                                        "--group=0", "."], stdout=subprocess.PIPE)
                code = subprocess.run(self.ssh_argv(host, unpack, timeout_s=120),
                                      stdin=tar.stdout).returncode
                tar.stdout.close()
                if code != 0 or tar.wait() != 0:
                    raise LabError("could not unpack the tools on host %s" % host)
        say("lab: tools installed after %.1f s" % (time.monotonic() - started))

    # ---- links ----

    def qmp(self, host, command, **arguments):
        with common.FileLock(self.socket_path(host + ".qmp.lock")), \
                socket.socket(socket.AF_UNIX) as s:
            s.settimeout(20)

            def connect():
                try:
                    s.connect(self.socket_path(host + ".qmp"))
                    return True
                except (FileNotFoundError, ConnectionRefusedError):
                    return False

            if not common.wait_for(connect, 10, 0.05):
                raise LabError("host %s: QEMU's monitor cannot be reached" % host)
            stream = s.makefile("rw")
            stream.readline()
            for execute, args in (("qmp_capabilities", {}), (command, arguments)):
                stream.write(json.dumps({"execute": execute, "arguments": args}) + "\n")
                stream.flush()
                while True:
                    try:
                        line = stream.readline()
                    except socket.timeout:
                        raise LabError("host %s: QEMU's monitor does not answer" % host) from None
                    if not line:
                        raise LabError("host %s: QEMU's monitor closed" % host)
                    answer = json.loads(line)
                    if "error" in answer:
                        raise LabError("host %s: %s: %s" %
                                       (host, execute, answer["error"].get("desc")))
                    if "return" in answer:
                        break
            return answer["return"]

    def set_link(self, host, nic, up):
        self.qmp(host, "set_link", name="nic-" + nic, up=up)

    def change_link(self, link, up):
        if link not in LINKS:
            raise LabError("no link '%s'; there are: %s" % (link, " ".join(LINKS)))
        for host, nic in LINKS[link]:
            if self.is_running(host):
                self.set_link(host, nic, up)
        with self.changing_state() as state:
            cuts = set(state["cuts"])
            if up:
                cuts -= {name for name in LINKS
                         if set(LINKS[name]) & set(LINKS[link])}
            else:
                cuts.add(link)
            state["cuts"] = sorted(cuts)

    def cut(self, link):
        self.change_link(link, False)

    def mend(self, link):
        self.change_link(link, True)

    def delay(self, link, delay_ms):
        """Delay what each host sends on a link; 0 ends it."""
        if link not in LINKS:
            raise LabError("no link '%s'; there are: %s" % (link, " ".join(LINKS)))
        for host, nic in LINKS[link]:
            if not self.is_running(host):
                continue
            if delay_ms:
                self.execute(host, "tc qdisc replace dev %s root netem limit 20000 delay %dms" %
                             (nic, delay_ms))
            else:
                self.execute(host, "tc qdisc del dev %s root" % nic, check=False)

    def capture_device(self, link):
        """A link as a whole, or what one host sends on it."""
        if link in ("client", "repl"):
            return "br-" + link
        host, _, nic = link.partition("-")
        if host in HOSTS and nic in ("client", "repl"):
            return link
        raise LabError("captures run on 'client' or 'repl', or on a host's port: 'a-client'")

    def capture_start(self, link, filename=None):
        device = self.capture_device(link)
        self.capture_stop(link)
        filename = os.path.abspath(filename or self.path("capture-%s.pcap" % link))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(filename)
        with open(self.path("capture-%s.log" % link), "wb") as log:
            process = subprocess.Popen(
                ["tcpdump", "--immediate-mode", "-i", device, "-U", "-s", "0", "-n",
                 "-Q", "inout" if device.startswith("br-") else "in",
                 "-Z", "root", "-w", filename],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: common.enter_netns(self.netns))
        # tcpdump writes the file's header once it captures.
        ready = common.wait_for(
            lambda: os.path.exists(filename) and os.path.getsize(filename) >= 24, 10, 0.05)
        if not ready:
            process.kill()
            raise LabError("tcpdump did not start: " +
                           common.tail(self.path("capture-%s.log" % link), 5))
        with self.changing_state() as state:
            state["captures"][link] = {"pid": process.pid, "file": filename,
                                       "start_time": common.process_start_time(process.pid)}
        process.returncode = 0
        return filename

    def capture_stop(self, link):
        with self.changing_state() as state:
            capture = state["captures"].pop(link, None)
        if not capture:
            return None
        if common.process_start_time(capture["pid"]) == capture["start_time"]:
            os.kill(capture["pid"], signal.SIGTERM)
            common.wait_for(
                lambda: common.process_start_time(capture["pid"]) != capture["start_time"],
                10, 0.02)
        return capture["file"]

    # ---- guests ----

    def guest_config(self, name, ip, mac, vcpus, memory_mb, kind, disks, extra, nets=(),
                     args=""):
        """nets: what the guest has besides IPv4 on its interface: "ipv6", "vlan" (5, on it),
        "second" (another interface). disks: as xl has them. args: more words for its kernel."""
        vifs = ["mac=%s,bridge=xenbr0" % mac]
        if "second" in nets:
            vifs.append("mac=%s:1%s,bridge=xenbr0" % (mac[:-3], mac[-1]))
        lines = ['name = "%s"' % name, 'type = "%s"' % kind,
                 'kernel = "/lab/guest/vmlinux"', 'ramdisk = "/lab/guest/initrd.gz"',
                 'extra = "%s lab.ip=%s lab.name=%s lab.nets=%s %s"' % (
                     GUEST_ARGS, ip, name, ",".join(nets), args),
                 "memory = %d" % memory_mb, "maxmem = %d" % memory_mb, "vcpus = %d" % vcpus,
                 "vif = [ %s ]" % ", ".join('"%s"' % vif for vif in vifs)]
        if disks:
            lines.append("disk = [ %s ]" % ", ".join('"%s"' % disk for disk in disks))
        return "\n".join(lines + list(extra)) + "\n"

    def guest_addresses(self, name):
        with self.changing_state() as state:
            guests = state["guests"]
            if name not in guests:
                used = {g["number"] for g in guests.values()}
                number = next(n for n in range(10, 100) if n not in used)
                guests[name] = {"number": number, "ip": "10.77.0.%d" % number,
                                "mac": "00:16:3e:%s:%s:%02x" % (self.tag[:2], self.tag[2:4],
                                                                number)}
            return guests[name]["ip"], guests[name]["mac"]

    def guest_ip(self, name):
        guests = self.state()["guests"]
        if name not in guests:
            raise LabError("no guest '%s' was created in lab %s" % (name, self.name))
        return guests[name]["ip"]

    def guest_create(self, host, name, vcpus=1, memory_mb=128, kind="pvh", disk_mb=0, extra=(),
                     nets=(), disk_options="", disks=(), args="", wait=True,
                     timeout_s=GUEST_TIMEOUT_S):
        """Create a guest and wait until its service answers the client; returns its address.
        disk_mb: the size of a disk xvda of its own, xl's disk_options with it; disks: others."""
        if not name.replace("-", "").replace("_", "").isalnum():
            raise LabError("guest name '%s': use letters, digits, - and _ only" % name)
        if kind not in ("pvh", "pv"):
            raise LabError("guest type '%s': the lab has pvh and pv" % kind)
        started = time.monotonic()
        ip, mac = self.guest_addresses(name)
        disk = "/var/lib/lab/%s.img" % name
        script = "cat >/etc/xen/%s.cfg; " % name
        if disk_mb:
            disks = ("format=raw,vdev=xvda,access=rw,%starget=%s" %
                     (disk_options and disk_options + ",", disk), *disks)
            script += "mkdir -p /var/lib/lab; truncate -s %dM %s; " % (disk_mb, disk)
        script += "rm -f /var/log/xen/console/guest-%s.log; xl create -q /etc/xen/%s.cfg" % (
            name, name)
        self.execute(host, script, timeout_s=90,
                     stdin=self.guest_config(name, ip, mac, vcpus, memory_mb, kind, disks, extra,
                                             nets, args))
        if wait:
            self.guest_wait(host, name, started + timeout_s * common.patience())
            say("lab: guest %s on %s answers at %s after %.1f s" %
                (name, host, ip, time.monotonic() - started))
        return ip

    def guest_wait(self, host, name, end=None):
        """Wait until the guest's counter service answers the client."""
        ip = self.guest_ip(name)
        end = end or time.monotonic() + GUEST_TIMEOUT_S * common.patience()

        def probe():
            try:
                with self.client_connect(ip, 7000) as s:
                    s.sendall(b"inc\n")
                    return bool(s.recv(100))
            except OSError:
                return False

        while not probe():
            if not self.is_running(host):
                raise self.host_failure(host, "QEMU ended while guest %s booted" % name)
            if time.monotonic() > end:
                raise LabError("guest %s on %s does not answer at %s\n--- its console ---\n%s\n"
                               "--- xl list ---\n%s" % (
                                   name, host, ip, self.guest_console(host, name),
                                   self.execute(host, "xl list", check=False,
                                                timeout_s=30).stdout))
            time.sleep(0.2)

    def guest_console(self, host, name, lines=40):
        result = self.execute(host, "tail -n %d /var/log/xen/console/guest-%s.log" %
                              (lines, name), check=False, timeout_s=30)
        return (result.stdout or result.stderr).replace("\r", "")

    def guest_destroy(self, host, name):
        """Destroy a guest; no error if there is none of that name."""
        self.execute(host, "if xl domid %s >/dev/null 2>&1; then xl destroy %s; fi" % (name, name),
                     timeout_s=60)

    # ---- the client ----

    def client_environment(self):
        env = dict(os.environ)
        env["PATH"] = BIN + ":" + env.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        return env

    def note_client(self, pid):
        """Remember a process in the namespace, so that `down` can end it."""
        os.makedirs(self.path("clients"), exist_ok=True)
        path = self.path("clients", "%d-%d" % (pid, common.process_start_time(pid)))
        with open(path, "w"):
            pass

    def client_start(self, argv, **kwargs):
        """Start a program in the client's namespace; returns its Popen object."""
        process = subprocess.Popen(argv, env=self.client_environment(),
                                   preexec_fn=lambda: common.enter_netns(self.netns), **kwargs)
        self.note_client(process.pid)
        return process
