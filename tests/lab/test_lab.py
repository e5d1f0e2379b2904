#!/usr/bin/env python3
"""Tests of the lab itself: what every other test here relies on."""

import os
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import labtest  # noqa: E402
from lablib import common  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402


def ping(lab, source, target):
    """Whether one host reaches another address within some tries."""
    return lab.execute(source, "ping -q -c 1 -W 1 " + target, check=False,
                       timeout_s=20).returncode == 0


@deadline(60)
def test_hosts_run_xen_and_reach_each_other(lab):
    for host, other in (("a", "b"), ("b", "a")):
        equal(lab.execute(host, "hostname").stdout.strip(), host, "host name")
        info = lab.execute(host, "xl info").stdout
        check("xen_version            : 4.17" in info, "xl info says " + info)
        for name in (other, other + "-client"):
            equal(lab.execute(host, "ssh %s hostname" % name).stdout.strip(), other,
                  "ssh %s on %s" % (name, host))
    result = lab.execute("a", "cat; echo err >&2; exit 7", check=False, stdin="in\n")
    equal((result.returncode, result.stdout, result.stderr), (7, "in\n", "err\n"), "exec")


@deadline(60)
def test_dom0_has_what_the_tools_need(lab):
    for host in ("a", "b"):
        lab.execute(host, "set -e\n"
                    "nft add table bridge t\n"
                    "nft add chain bridge t c '{ type filter hook forward priority 0; }'\n"
                    "nft add rule bridge t c meta ibrname xenbr0 queue num 7\n"
                    "nft delete table bridge t\n"
                    "! lsmod | grep br_netfilter\n"
                    "test \"$(cat /sys/module/xen_netback/parameters/max_queues)\" = 1\n"
                    "ip tuntap add dev t0 mode tap && ip link del t0\n"
                    "verify-stream-v2 --help >/dev/null\n"
                    "test -e /dev/fd/0\n")


@deadline(150)
def test_every_service_of_a_guest_answers(lab):
    guest = lab.guest("a", vcpus=2)
    equal(guest.ask(7000, "inc").split()[0], "1", "counter")
    equal(guest.ask(7001, "0"), "", "source of nothing")
    with guest.connect(7003) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with s.makefile("rb") as stream:
            check(stream.read().endswith(b"The same answer to everybody, every time.\n"), "HTTP")
    equal(guest.ask_udp(7004, b"hello"), b"echo hello", "UDP echo")
    check(guest.ask(7005, "x") != guest.ask(7005, "x"), "diverge agrees with itself")
    check(guest.ask_udp(7005, b"x").endswith(b" x"), "UDP diverge")
    guest.dirty(500)
    equal(guest.ask(7006, "nonsense"), "error", "dirty service")
    lab.run_client(guest, 5, long=50, short=100, udp=50, ping=50, diverge=100, bulk_down=500000,
                   bulk_up=500000)
    guest.dirty(0)
    equal(guest.ask(7007, "poweroff"), "ok", "poweroff")
    wait(lambda: guest.domid("a") is None, 30, "the guest is gone after its poweroff")


@deadline(90)
def test_a_guest_has_a_disk_if_asked_for(lab):
    lab.guest("b", disk_mb=8)
    state = lab.execute("b", "xenstore-read /local/domain/$(xl domid g1)/device/vbd/51712/state")
    equal(state.stdout.strip(), "4", "state of the disk's frontend")


@deadline(60)
def test_links_are_cut_and_mended(lab):
    for link, target in (("repl", "10.78.0.2"), ("client-b", "10.77.0.2")):
        check(ping(lab, "a", target), "%s does not work before" % link)
        lab.cut(link)
        check(not ping(lab, "a", target), "%s works though cut" % link)
        lab.mend(link)
        wait(lambda t=target: ping(lab, "a", t), 10, "%s works again" % link)


@deadline(60)
def test_a_link_is_delayed(lab):
    lab.delay("repl", 150)
    begin = time.monotonic()
    check(ping(lab, "a", "10.78.0.2"), "no answer on a slow link")
    check(time.monotonic() - begin > 0.3, "the answer came too early")
    lab.delay("repl", 0)


@deadline(60)
def test_traffic_is_captured(lab):
    path = lab.capture_start("repl")
    check(ping(lab, "a", "10.78.0.2"), "no ping")
    lab.capture_stop("repl")
    check(os.path.getsize(path) > 24 + 2 * 98, "capture holds %d bytes" % os.path.getsize(path))


@deadline(120)
def test_a_power_failure_is_noticed_and_repaired(lab):
    lab.execute("b", "echo kept >/root/kept; sync")
    lab.kill("b")
    check(not lab.is_running("b"), "b still runs")
    check(not ping(lab, "a", "10.78.0.2"), "b still answers")
    try:
        lab.execute("b", "true", timeout_s=10)
    except labtest.LabError as e:
        check("not running" in str(e), "the wrong error: %s" % e)
    else:
        raise labtest.Failure("a command on a dead host succeeded")
    lab.start("b")
    equal(lab.execute("b", "cat /root/kept").stdout, "kept\n", "the disk after a power failure")
    wait(lambda: ping(lab, "a", "10.78.0.2"), 10, "b answers again")


@deadline(60)
def test_a_frozen_host_is_silent_until_thawed(lab):
    lab.freeze("b")
    check(not ping(lab, "a", "10.78.0.2"), "b answers though frozen")
    lab.thaw("b")
    wait(lambda: ping(lab, "a", "10.78.0.2"), 20, "b answers again")


@deadline(90)
def test_guests_are_restored_from_a_saved_boot(lab):
    lab.guest("a")  # saved now, or in an earlier test
    lab.guest_destroy("a", "g1")
    begin = time.monotonic()
    guest = lab.guest("a")
    check(time.monotonic() - begin < 25 * common.patience(), "restoring took longer than a boot")
    equal(guest.ask(7000, "inc").split()[0], "1", "counter")


@deadline(60)
def test_a_crashed_host_is_reported_with_its_console(lab):
    try:
        lab.execute("b", "echo c >/proc/sysrq-trigger", check=False, timeout_s=30)
    except labtest.LabError:
        pass
    wait(lambda: not lab.is_running("b"), 30, "the crashed host is off")
    try:
        lab.execute("b", "true", timeout_s=10)
    except labtest.LabError as e:
        check("not running" in str(e), "the wrong error: %s" % e)
    else:
        raise labtest.Failure("a command on a crashed host succeeded")
    check("panic" in open(lab.console_log("b")).read(), "no panic in the serial log")


@deadline(150)
def test_stock_save_and_restore_keep_a_connection(lab):
    guest = lab.guest("a", fresh=True)
    client = lab.client(guest, long=100)
    client.wait_answers(5)
    lab.execute("a", "xl save g1 /tmp/g1.save", timeout_s=60)
    check(guest.domid("a") is None, "the guest is still there after xl save")
    lab.execute("a", "verify-stream-v2 -i /tmp/g1.save -x | tail -n 3 | grep -q .", check=False)
    lab.execute("a", "xl restore /tmp/g1.save; rm /tmp/g1.save", timeout_s=60)
    client.wait_answers(5, timeout_s=60)
    figures = client.stop_without_errors()
    equal(figures["classes"]["long"]["connects"], 1, "connections made")


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
