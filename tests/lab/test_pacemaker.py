#!/usr/bin/env python3
"""A protected guest as a resource of a real cluster: Pacemaker and corosync in both dom0s."""

import concurrent.futures
import os
import socket
import sys
import threading
import xml.etree.ElementTree as xml

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
import test_arbiter  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402
from lablib import images  # noqa: E402
from lablib.common import LabError  # noqa: E402
from lablib.instance import CLIENT_IP  # noqa: E402

INSTALL = True
NODES = {"a": 1, "b": 2}

# What the packages' own scripts would have done, and a link that xl-remus-ocf(7) asks for.
PREPARE = r"""
set -e
getent group haclient >/dev/null || groupadd -r haclient
getent passwd hacluster >/dev/null ||
    useradd -r -g haclient -d /var/lib/pacemaker -s /usr/sbin/nologin hacluster
ldconfig
rm -rf /var/lib/pacemaker/cib/* /var/lib/pacemaker/pengine/* /var/lib/corosync/* \
    /var/log/pacemaker/*.log /var/log/corosync/* /var/log/xen/remus-*.log /run/xen/remus/ocf-*
chown -R hacluster:haclient /var/lib/pacemaker /var/log/pacemaker
ln -sfn /usr/local/lib/ocf/resource.d/remus /usr/lib/ocf/resource.d/remus
chmod 755 /usr/sbin/fence_lab
sync
"""

COROSYNC = """totem {
    version: 2
    cluster_name: lab
    transport: knet
    crypto_cipher: none
    crypto_hash: none
    token: 10000
}
nodelist {
%s}
quorum {
    provider: corosync_votequorum
    two_node: 1
}
logging {
    to_logfile: yes
    logfile: /var/log/corosync/corosync.log
    to_syslog: no
    timestamp: on
}
""" % "".join("    node {\n        name: %s\n        nodeid: %d\n        ring0_addr: 10.78.0.%d\n"
              "        ring1_addr: 10.77.0.%d\n    }\n" % (h, n, n, n) for h, n in NODES.items())

# The cluster's power switch: asks whoever runs the lab.
FENCE_AGENT = r"""#!/bin/sh
while IFS='=' read -r key value; do
    case $key in
    action) action=$value ;;
    port | plug | nodename) node=$value ;;
    esac
done
case $action in
metadata)
    cat <<END
<?xml version="1.0"?>
<resource-agent name="fence_lab" shortdesc="Power switch of the lab">
<longdesc>Switches emulated hosts off.</longdesc>
<parameters>
<parameter name="action" unique="0" required="1"><content type="string" default="off"/></parameter>
<parameter name="port" unique="0" required="0"><content type="string"/></parameter>
</parameters>
<actions>
<action name="off"/><action name="on"/><action name="status"/><action name="monitor"/>
<action name="metadata"/>
</actions>
</resource-agent>
END
    ;;
off | on | status | monitor)
    answer=$(echo "$action $node" | nc -w 60 %s %d)
    case $answer in
    ok) ;;
    off) exit 2 ;;
    *) exit 1 ;;
    esac
    ;;
*) ;;
esac
exit 0
"""

RESOURCES = """<resources>
<primitive id="fence" class="stonith" type="fence_lab">
  <instance_attributes id="fence-ia">
    <nvpair id="fence-hosts" name="pcmk_host_list" value="a b"/>
    <nvpair id="fence-check" name="pcmk_host_check" value="static-list"/>
  </instance_attributes>
</primitive>
<clone id="web">
  <meta_attributes id="web-meta">
    <nvpair id="web-promotable" name="promotable" value="true"/>
    <nvpair id="web-promoted-max" name="promoted-max" value="1"/>
    <nvpair id="web-clone-max" name="clone-max" value="2"/>
    <nvpair id="web-notify" name="notify" value="true"/>
  </meta_attributes>
  <primitive id="g1" class="ocf" provider="remus" type="remus">
    <instance_attributes id="g1-ia">
      <nvpair id="g1-domain" name="domain" value="g1"/>
      <nvpair id="g1-config" name="config" value="/etc/xen/g1.cfg"/>
      <nvpair id="g1-hosts" name="hosts" value="a=a b=b"/>
      <nvpair id="g1-options" name="options"
        value="--colo --verbose -i 2000 --timeout %d --arbiter %s"/>
      <nvpair id="g1-shared" name="shared_disks" value="%s"/>
      <nvpair id="g1-heartbeat" name="heartbeat_hosts" value="a=10.77.0.1 b=10.77.0.2"/>
    </instance_attributes>
    <operations>
      <op id="g1-start" name="start" interval="0" timeout="240s"/>
      <op id="g1-stop" name="stop" interval="0" timeout="600s"/>
      <op id="g1-promote" name="promote" interval="0" timeout="600s"/>
      <op id="g1-demote" name="demote" interval="0" timeout="600s"/>
      <op id="g1-notify" name="notify" interval="0" timeout="240s"/>
      <op id="g1-monitor-10" name="monitor" interval="10s" timeout="240s" role="Promoted"/>
      <op id="g1-monitor-11" name="monitor" interval="11s" timeout="240s" role="Unpromoted"/>
    </operations>
  </primitive>
</clone>
</resources>
"""


# As in xl-remus-ocf(7): the cluster's fencing is the session's arbiter.
ARBITER_FENCE = """#!/bin/sh
case $REMUS_PEER in
a | b) node=$REMUS_PEER ;;
*) exit 1 ;;
esac
case $1 in
check) stonith_admin -l $node ;;
fence) stonith_admin -F $node ;;
esac
"""


class PowerSwitch:
    """Turns hosts off for the cluster; says which, in order."""

    def __init__(self, lab):
        self.lab, self.switched = lab, []
        self.socket = lab.client_listen()
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()
        lab.running.append(self)

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rw") as stream:
                try:
                    stream.write(self.do(*stream.readline().split()) + "\n")
                except (LabError, OSError, TypeError) as e:
                    print("# power switch: %s" % e)

    def do(self, action, host=None):
        if action == "status" and host:
            return "ok" if self.lab.is_running(host) else "off"
        if action == "off":
            if self.lab.is_running(host):
                self.lab.kill(host)
            self.switched.append(host)
        # "on" is the test's to do.
        return "ok"

    def kill(self):
        with self.socket:
            # Wakes the thread that waits in accept().
            try:
                self.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Cluster:
    """Two nodes, a power switch, and the guest g1 as a promotable resource."""

    def __init__(self, lab, shared_disks="false", arbiter=None):
        self.lab = lab
        self.guest = labtest.Guest(lab, "g1", lab.guest_addresses("g1")[0])
        self.witness = lab.witness()
        self.power = PowerSwitch(lab)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(self.prepare, NODES))
            list(pool.map(self.start, NODES))
        wait(lambda: self.online() == {"a", "b"}, 180, "both nodes are online", 1)
        options = (colo.TIMEOUT_MS, arbiter or self.witness.spec, shared_disks)
        for name, value in (("stonith-action", "off"), ("stonith-timeout", "120s"),
                            ("have-watchdog", "false")):
            self.run("a", "crm_attribute -t crm_config -n %s -v %s" % (name, value))
        self.run("a", "cibadmin --replace --scope resources --xml-pipe",
                 stdin=RESOURCES % options)

    def prepare(self, host):
        """The packages' files, once in an instance's life, and what this cluster is."""
        lab, tar = self.lab, images.cluster()
        name = os.path.basename(os.path.dirname(tar))
        if lab.execute(host, "test -e /lab/" + name, check=False).returncode != 0:
            lab.push(host, [tar], "/tmp/cluster.tar.gz")
            lab.execute(host, "tar -xzf /tmp/cluster.tar.gz -C / --no-same-owner "
                        "--keep-directory-symlink && rm /tmp/cluster.tar.gz && sync && touch "
                        "/lab/" + name, timeout_s=120)
        ip, mac = lab.guest_addresses("g1")
        for path, text in (("/etc/corosync/corosync.conf", COROSYNC),
                           ("/usr/sbin/fence_lab", FENCE_AGENT % (CLIENT_IP, self.power.port)),
                           ("/etc/xen/g1.cfg",
                            lab.guest_config("g1", ip, mac, 1, 128, "pvh", (), ()))):
            lab.execute(host, "cat > " + path, stdin=text)
        lab.execute(host, "cat > /etc/xen/remus-fence; chmod 755 /etc/xen/remus-fence",
                    stdin=ARBITER_FENCE)
        lab.execute(host, PREPARE)

    def start(self, host):
        self.lab.execute(host, "corosync && setsid -f pacemakerd >/dev/null 2>&1 </dev/null",
                         timeout_s=120)

    def run(self, host, command, **options):
        return self.lab.execute(host, command, timeout_s=60, **options).stdout

    def wait_first(self):
        """The node that was chosen for the guest, which answers and is protected; the other one."""
        wait(lambda: "Promoted" in self.roles().values(), 180, "a node is promoted", 1)
        first = next(n for n, role in self.roles().items() if role == "Promoted")
        second = "b" if first == "a" else "a"
        self.lab.guest_wait(first, "g1")
        self.wait_roles({first: "Promoted", second: "Unpromoted"})
        self.wait_protected(first)
        equal(self.failures(), [], "failed actions after the start")
        return first, second

    # ---- What the cluster thinks ----

    def view(self, host=None):
        """crm_mon's document, as seen by a host that runs; None if it does not answer yet."""
        host = host or next(h for h in NODES if self.lab.is_running(h))
        result = self.lab.execute(host, "crm_mon -1 --output-as=xml", check=False, timeout_s=60)
        try:
            return xml.fromstring(result.stdout)
        except xml.ParseError:
            return None

    def online(self, host=None):
        view = self.view(host)
        return set() if view is None else {
            node.get("name") for node in view.findall("./nodes/node")
            if node.get("online") == "true" and node.get("pending") == "false"}

    def roles(self, host=None):
        """{node: role} of the guest's instances."""
        view = self.view(host)
        return {} if view is None else {
            node.get("name"): {"Master": "Promoted", "Slave": "Unpromoted"}.get(
                resource.get("role"), resource.get("role"))
            for resource in view.findall("./resources/clone[@id='web']/resource")
            for node in resource.findall("node")
            if resource.get("failed") == "false" and resource.get("blocked") == "false"}

    def failures(self):
        return [f.attrib for f in self.view().findall("./failures/failure")]

    def wait_roles(self, wanted, timeout_s=120):
        last = {}

        def probe():
            last.clear()
            last.update(self.roles())
            return last == wanted
        try:
            wait(probe, timeout_s, "", 1)
        except labtest.Failure:
            raise labtest.Failure("the cluster has %s, wanted %s; failures: %s" %
                                  (last, wanted, self.failures())) from None

    # ---- What is so ----

    def wait_protected(self, host, timeout_s=240):
        """The guest runs here and has a whole copy."""
        wait(lambda: '"protected":true' in self.lab.execute(
            host, "xl remus-status --json g1 | grep '\"role\":\"primary\"'", check=False,
            timeout_s=30).stdout, timeout_s, "g1 is protected on " + host, 1)

    def domains(self, host):
        return [line.split()[0] for line in self.run(host, "xl list").splitlines()[2:]]


@deadline(1200)
def test_a_cluster_manages_a_guest_that_does_not_stop(lab):
    """First start, power failure, the node's return, a planned move, and the end."""
    cluster = Cluster(lab)
    guest = cluster.guest
    first, second = cluster.wait_first()

    # The guest's host dies.
    captures = test_arbiter.Captures(lab, guest)
    client = lab.client(guest, long=100, short=500, ping=300)
    client.wait_answers(10)
    lab.kill(first)
    colo.wait_active(lab, second, "g1")
    client.wait_answers(10, timeout_s=90)
    wait(lambda: cluster.power.switched, 180, "the cluster has the dead node turned off", 1)
    cluster.wait_roles({second: "Promoted"})
    equal(cluster.domains(second), ["g1"], "domains of the host that is left")
    client.wait_answers(10, timeout_s=60)
    captures.check_one_speaks(second)

    # It comes back.
    lab.start(first)
    cluster.start(first)
    cluster.wait_roles({first: "Unpromoted", second: "Promoted"}, 180)
    cluster.wait_protected(second)
    equal(cluster.power.switched, [first], "nodes that were turned off")
    client.wait_answers(10, timeout_s=60)
    figures = client.stop_without_errors()
    print("# longest gap of a client with the power failure: %.0f ms" %
          figures["classes"]["long"]["gap_ms"])

    # A planned move back.
    client = lab.client(guest, long=50, short=300, udp=100, ping=100)
    client.wait_answers(20)
    captures = test_arbiter.Captures(lab, guest)
    cluster.run(second, "crm_resource --move --resource web --promoted --node " + first)
    cluster.wait_roles({first: "Promoted", second: "Unpromoted"}, 180)
    check(guest.domid(first) is not None and guest.domid(second) is None,
          "the guest is not on %s alone" % first)
    client.wait_answers(20, timeout_s=60)
    figures = client.stop_without_errors()
    captures.check_one_speaks(first)
    print("# longest gap of a client with the move: %.0f ms" %
          figures["classes"]["long"]["gap_ms"])
    cluster.run(second, "crm_resource --clear --resource web")
    cluster.wait_protected(first)
    cluster.wait_roles({first: "Promoted", second: "Unpromoted"})
    equal(cluster.failures(), [], "failed actions after the move")

    # The end.
    cluster.run(first, "crm_resource --resource web --meta --set-parameter target-role "
                "--parameter-value Stopped")
    cluster.wait_roles({}, 240)
    for host in NODES:
        equal(cluster.domains(host), [], "domains of %s at the end" % host)
        colo.check_nothing_left(lab, host)
    equal(cluster.failures(), [], "failed actions at the end")


@deadline(900)
def test_a_cluster_follows_a_copy_that_took_over(lab):
    """The replication link fails, the cluster's second ring does not: nobody is fenced, and a guest
    that may be created on either node is not created beside its copy."""
    cluster = Cluster(lab, shared_disks="true")
    guest = cluster.guest
    first, second = cluster.wait_first()
    captures = test_arbiter.Captures(lab, guest)
    client = lab.client(guest, long=100, short=500, ping=300)
    client.wait_answers(10)
    # The first one asks the arbiter in vain, until the other one has its answer.
    route = "ip route %s blackhole " + CLIENT_IP + "/32"
    lab.execute(first, route % "add")
    lab.cut("repl")
    colo.wait_active(lab, second, "g1", 120)
    lab.execute(first, route % "del")
    wait(lambda: guest.domid(first) is None, 60, "the guest that lost is gone", 1)
    cluster.wait_roles({second: "Promoted", first: "Unpromoted"}, 180)
    client.wait_answers(10, timeout_s=60)
    captures.check_one_speaks(second)
    lab.mend("repl")
    cluster.wait_protected(second)
    cluster.wait_roles({second: "Promoted", first: "Unpromoted"})
    client.wait_answers(10, timeout_s=60)
    client.stop_without_errors()
    for host in NODES:
        log = cluster.run(host, "grep -a 'remus(g1).*not created' /var/log/pacemaker/pacemaker.log;"
                          " true")
        print("# refused on %s: %d times" % (host, len(log.splitlines())))
    for failure in cluster.failures():
        equal((failure["node"], failure["task"]), (first, "monitor"), "failed: %s" % failure)
    equal(cluster.power.switched, [], "nodes that were turned off")

    # Protection that ends is begun again.
    lab.execute(second, "xl remus-stop g1", timeout_s=120)
    equal(cluster.domains(first), [], "domains of the copy's host")
    cluster.wait_protected(second)


@deadline(1200)
def test_a_cluster_that_falls_apart_has_one_guest(lab):
    """Both rings are cut, and with them the session's link and its second network: each node takes
    the other one for dead, and the cluster's fencing, which is the arbiter, decides."""
    cluster = Cluster(lab, arbiter="fence")
    guest = cluster.guest
    first, second = cluster.wait_first()
    captures = test_arbiter.Captures(lab, guest)
    client = lab.client(guest, long=100, short=500, ping=300)
    client.wait_answers(10)
    for host, peer in ((first, second), (second, first)):
        lab.execute(host, "ip route add blackhole 10.77.0.%d/32" % NODES[peer])
    lab.cut("repl")
    wait(lambda: cluster.power.switched, 120, "a node is turned off", 0.5)
    winner, = [host for host in NODES if host != cluster.power.switched[0]]
    client.wait_answers(10, timeout_s=90)
    cluster.wait_roles({winner: "Promoted"}, 180)
    equal(cluster.domains(winner), ["g1"], "domains of the host that is left")
    client.wait_answers(10, timeout_s=60)
    captures.check_one_speaks(winner)
    equal(set(cluster.power.switched), {"a", "b"} - {winner}, "nodes that were turned off")

    # Repaired, and switched on again.
    loser = cluster.power.switched[0]
    lab.execute(winner, "ip route del blackhole 10.77.0.%d/32" % NODES[loser])
    lab.mend("repl")
    lab.start(loser)
    cluster.start(loser)
    cluster.wait_roles({loser: "Unpromoted", winner: "Promoted"}, 180)
    cluster.wait_protected(winner)
    client.wait_answers(10, timeout_s=60)
    figures = client.stop_without_errors()
    print("# %s had the guest, %s goes on; longest gap of a client: %.0f ms" %
          (first, winner, figures["classes"]["long"]["gap_ms"]))
    equal(set(cluster.power.switched), {loser}, "nodes that were turned off in the end")


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
