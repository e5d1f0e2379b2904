#!/usr/bin/env python3
"""Every kind of network that a guest may have, through comparison and failover."""

import os
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
from labtest import alone, check, deadline, equal, wait  # noqa: E402

INSTALL = True

MIX = {"long": 100, "short": 500, "http": 200, "udp": 300, "ping": 300}


def of_class(status, vif, name):
    """Figures of one class of traffic on the interface with this index."""
    for figures in status["classes"]:
        if figures["vif"].endswith(".%d" % vif) and figures["class"] == name:
            return figures
    return {"primary": 0, "released_equal": 0}


@alone
@deadline(400)
def test_ipv6_a_vlan_and_a_second_interface_survive_a_failover(lab):
    guest = lab.guest("a", nets=("ipv6", "vlan", "second"))
    lab.vlan_port()
    session = colo.Session(lab, guest, interval_ms=4000)
    session.wait_protected()
    addresses = (guest.ip, guest.ip6, guest.vlan_ip, guest.second_ip)
    clients = [lab.client(guest, ip=ip, **MIX) for ip in addresses]
    for client in clients:
        client.wait_answers(5, timeout_s=120)
    # In pieces, with other identifications on either side.
    payload = bytes(range(256)) * 20
    for ip in addresses:
        equal(guest.ask_udp(7004, payload, ip=ip, timeout_s=60), b"echo " + payload,
              "long datagram from " + ip)
    status = wait(lambda: session.status(), 20, "a status")
    equal(status["net"]["dropped_other"], 0, "frames dropped")
    for vif in (0, 1):
        for name in ("tcp", "udp", "icmp"):
            figures = of_class(status, vif, name)
            check(figures["released_equal"] > figures["primary"] // 4,
                  "%s on interface %d is hardly ever equal: %s" % (name, vif, figures))
    lab.freeze("a")
    colo.wait_active(lab, "b", guest.name)
    for client in clients:
        client.wait_answers(5, timeout_s=120)
    for client in clients:
        client.stop_without_errors()
    session.process.kill()


class Callee:
    """Whom a guest calls: gives each number back after a while and sees that none is missing."""

    def __init__(self, lab, pause_s):
        self.listener = lab.client_listen()
        self.port = self.listener.getsockname()[1]
        self.pause_s, self.last, self.connections, self.error = pause_s, 0, 0, None
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        try:
            while True:
                connection, _ = self.listener.accept()
                self.connections += 1
                with connection, connection.makefile("rb") as lines:
                    for line in lines:
                        equal(int(line), self.last + 1, "number after %d" % self.last)
                        time.sleep(self.pause_s)
                        connection.sendall(line)
                        self.last += 1
        except Exception as e:
            self.error = e

    def wait_numbers(self, count):
        """So many more, without an error."""
        end = self.last + count
        wait(lambda: self.error or self.last >= end, 90, "the guest sends %d numbers" % count)
        equal(self.error, None, "error")


@deadline(300)
def test_connections_that_the_guest_opens_survive_a_failover(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=4000)
    session.wait_protected()
    # One that lasts, and one opened anew again and again.
    callees = [Callee(lab, 0.1), Callee(lab, 0.1)]
    for callee, rounds in zip(callees, (0, 4)):
        equal(guest.ask(7008, "call %d %d" % (callee.port, rounds)), "ok", "call")
    for callee in callees:
        callee.wait_numbers(25)
    tcp = of_class(session.status(), 0, "tcp")
    check(tcp["released_equal"] > tcp["primary"] // 4, "hardly ever equal: %s" % tcp)
    lab.freeze("a")
    colo.wait_active(lab, "b", guest.name)
    for callee in callees:
        callee.wait_numbers(25)
    equal(callees[0].connections, 1, "connections that were to last")
    check(callees[1].connections >= 10, "connections: %d" % callees[1].connections)
    session.process.kill()


@deadline(500)
def test_two_guests_of_a_host_are_taken_over(lab):
    guests = [lab.guest("a", name) for name in ("g1", "g2")]
    sessions = [colo.Session(lab, guest, interval_ms=4000) for guest in guests]
    for session in sessions:
        session.wait_protected()
    clients = [lab.client(guest, long=100, udp=300, ping=300) for guest in guests]
    for client in clients:
        client.wait_answers(10)
    rows = lab.execute("a", "xl remus-status").stdout
    check("g1" in rows and "g2" in rows, rows)
    lab.freeze("a")
    for guest in guests:
        colo.wait_active(lab, "b", guest.name)
    for client in clients:
        client.wait_answers(10, timeout_s=90)
    for client in clients:
        client.stop_without_errors()
    for session in sessions:
        session.process.kill()


@deadline(300)
def test_who_asks_for_checkpoints_is_reported(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=20000)
    session.wait_protected()
    client = lab.client(guest, diverge=300, udp=300)
    client.wait_answers(8, timeout_s=90)
    text = lab.execute("a", "xl remus-status " + guest.name).stdout
    check("tcp port 7005 peer 10.77.0.100/32" in text, text)
    check("0x" in text.split("tcp port 7005")[1], "the differing byte is not named: " + text)
    cause = session.status()["causes"][0]
    equal(cause["flow"], "tcp port 7005 peer 10.77.0.100/32", "the most frequent cause")
    check(cause["diverged"] >= 3, cause)
    client.stop_without_errors()
    equal(session.stop(), 0, "exit status of xl remus")


@deadline(240)
def test_no_packet_is_lost_when_protection_begins_or_ends(lab):
    guest = lab.guest("a")
    for mode, interval_ms in (("colo", 1000), ("remus", None)):
        for begins in (True, False):
            client = lab.client(guest, udp=20, ping=20)
            client.wait_answers(10)
            if begins:
                session = colo.Session(lab, guest, mode=mode, verify=False, interval_ms=interval_ms)
                session.wait_protected()
            else:
                equal(session.stop(), 0, "exit status of xl remus")
            client.wait_answers(10)
            figures = client.stop_without_errors()["classes"]
            equal({name: c["lost"] for name, c in figures.items()}, {"udp": 0, "ping": 0},
                  "datagrams lost in %s, %s" % (mode, "beginning" if begins else "ending"))
