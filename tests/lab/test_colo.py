#!/usr/bin/env python3
"""Protection from running guest to surviving the loss of a host, on two real Xen hosts."""

import os
import signal
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import colo  # noqa: E402
import labtest  # noqa: E402
from labtest import alone, check, deadline, equal, wait  # noqa: E402

INSTALL = True


# ---- checkpoints ----

def hundred_checkpoints(lab, vcpus):
    guest = lab.guest("a", vcpus=vcpus)
    session = colo.Session(lab, guest, interval_ms=100)
    session.wait_protected()
    client = lab.client(guest, long=100, short=700, udp=300, ping=400)
    guest.dirty(200)
    status = session.wait_checkpoints(100, 400)
    guest.dirty(0)
    client.stop_without_errors()
    check(status["verify_epochs"] >= 99, "only %d epochs verified" % status["verify_epochs"])
    equal(status["verify_bad"], 0, "pages that differ")
    equal(session.stop(), 0, "exit status of xl remus")
    colo.check_nothing_left(lab, "a", guest)
    colo.check_nothing_left(lab, "b")


@alone
@deadline(600)
def test_100_checkpoints_under_load_leave_no_page_different_with_1_vcpu(lab):
    hundred_checkpoints(lab, 1)


@alone
@deadline(600)
def test_100_checkpoints_under_load_leave_no_page_different_with_2_vcpus(lab):
    hundred_checkpoints(lab, 2)


def big_epochs(lab, options):
    """Both sides have heartbeats to send while one copies and the other applies many pages."""
    guest = lab.guest("a", memory_mb=256, fresh=True)
    session = colo.Session(lab, guest, interval_ms=4000, timeout_ms=1500, options=options)
    session.wait_protected()
    guest.dirty(36000, 36000)
    longest = {"pause_us": 0, "ack_us": 0, "apply_us": 0}

    def probe():
        status = session.status()
        check(session.process.poll() is None and status, "xl remus ended: " + session.log()[-600:])
        for name in longest:
            longest[name] = max(longest[name], status[name])
        return status["checkpoints"] >= 6 and status
    status = wait(probe, 200, "6 checkpoints", 0.5)
    guest.dirty(0)
    check(max(longest.values()) > 1500000, "no epoch took longer than the timeout: %s" % longest)
    equal(status["verify_bad"], 0, "pages that differ")
    equal(session.stop(), 0, "exit status of xl remus")
    colo.check_nothing_left(lab, "a", guest)


@alone
@deadline(400)
def test_a_plain_epoch_that_takes_longer_than_the_timeout_is_no_loss(lab):
    big_epochs(lab, "--plain")


@alone
@deadline(400)
def test_an_epoch_that_takes_longer_than_the_timeout_is_no_loss(lab):
    big_epochs(lab, "")


@deadline(300)
def test_bypassed_traffic_is_neither_held_nor_compared(lab):
    """Answers that always differ cost a checkpoint each, unless they are declared unprotected."""
    guest = lab.guest("a")
    words = "--bypass 'tcp port 7005' --bypass 'udp port 7004 peer 10.77.0.0/24'"
    session = colo.Session(lab, guest, interval_ms=20000, verify=False, options=words)
    session.wait_protected()
    client = lab.client(guest, long=100, udp=200, diverge=200)
    client.wait_answers(40, timeout_s=90)
    status = session.status()
    equal(status["requested"]["diverged"], 0, "checkpoints because of divergence")
    rules = lab.execute("a", "nft list table bridge remus").stdout
    check("sport 7005 counter packets" in rules, rules)
    passed = [line for line in rules.splitlines() if "counter" in line and "accept" in line]
    check(len(passed) == 4 and "packets 0 " not in "".join(passed),
          "a rule that nothing has met: " + rules)
    client.stop_without_errors()
    equal(session.stop(), 0, "exit status of xl remus")
    colo.check_nothing_left(lab, "a", guest)


# ---- failover ----

def fail_over(lab, guest, session, client, answers=15, lose=None):
    """Host a loses power; the client must go on on host b without an error. lose=lab.freeze: it
    falls silent instead, which is the same to the others and spares the next test a boot."""
    (lose or lab.kill)("a")
    colo.wait_active(lab, "b", guest.name)
    client.wait_answers(answers, timeout_s=90)
    figures = client.stop_without_errors()
    session.process.kill()
    return figures


@deadline(240)
def test_failover_while_idle_keeps_an_open_connection(lab):
    guest = lab.guest("a", fresh=True)
    session = colo.Session(lab, guest)
    session.wait_protected()
    with guest.connect(7000) as s, s.makefile("rb") as answers:
        s.sendall(b"inc\n")
        equal(answers.readline().split()[0], b"1", "counter before")
        time.sleep(3)
        lab.kill("a")
        colo.wait_active(lab, "b", guest.name)
        s.sendall(b"inc\n")
        equal(answers.readline().split()[0], b"2", "counter after")
    session.process.kill()


@deadline(300)
def test_a_guest_that_hangs_in_its_suspend_goes_on_as_its_copy(lab):
    """Paused, it does nothing; the test reads one request in its place, and no other."""
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=1500)
    session.wait_protected()
    client = lab.client(guest, long=200, udp=400)
    session.wait_checkpoints(3, 60)
    client.wait_answers(5)
    lab.execute("a", "xl pause g1; path=/local/domain/$(xl domid g1)/control/shutdown; "
                "until [ \"$(xenstore-read $path)\" = suspend ]; do sleep 0.1; done; "
                "xenstore-write $path ''")
    colo.wait_active(lab, "b", guest.name, 90)
    client.wait_answers(10, timeout_s=60)
    client.stop_without_errors()
    equal(session.process.wait(60), 5, "exit status of xl remus")
    check("hangs" in session.log() and "was destroyed" in session.log(), session.log()[-400:])
    check(guest.domid("a") is None, "the guest that hung is still there")


@alone
@deadline(300)
def test_failover_under_load_loses_no_answer_with_2_vcpus(lab):
    guest = lab.guest("a", vcpus=2)
    session = colo.Session(lab, guest, interval_ms=2000, verify=False)
    session.wait_protected()
    guest.dirty(200)
    client = lab.client(guest, long=50, short=300, ping=200, udp=200, bulk_down=200000)
    client.wait_answers(8, timeout_s=90)
    fail_over(lab, guest, session, client)


@deadline(240)
def test_failover_right_after_a_checkpoint(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=4000, env="REMUS_TEST_STOP_AT='run 4'")
    session.wait_protected()
    client = lab.client(guest, long=100)
    client.wait_answers(3)
    colo.wait_stopped_worker(lab, "a")
    fail_over(lab, guest, session, client, lose=lab.freeze)


def failover_at(lab, state, epoch):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=2500,
                           env="REMUS_TEST_STOP_AT='%s %d'" % (state, epoch))
    session.wait_protected()
    client = lab.client(guest, long=100, ping=200)
    colo.wait_stopped_worker(lab, "a")
    fail_over(lab, guest, session, client, lose=lab.freeze)


@deadline(240)
def test_failover_while_the_guest_is_asked_to_suspend(lab):
    failover_at(lab, "suspend", 3)


@deadline(240)
def test_failover_while_the_guest_is_stopped_and_drained(lab):
    failover_at(lab, "quiesce", 3)


@deadline(240)
def test_failover_while_state_is_copied(lab):
    failover_at(lab, "stage", 3)


@deadline(240)
def test_failover_between_resume_and_the_first_byte_of_the_epoch(lab):
    failover_at(lab, "send", 4)


@deadline(240)
def test_failover_after_the_acknowledgement_before_the_epoch_is_applied(lab):
    failover_at(lab, "apply", 4)


@deadline(240)
def test_failover_right_after_a_connection_was_opened(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=20000, verify=False)
    session.wait_protected()
    time.sleep(2)
    with guest.connect(7000) as s, s.makefile("rb") as answers:
        s.sendall(b"inc\n")
        equal(answers.readline().split()[0], b"1", "counter before")
        lab.freeze("a")
        colo.wait_active(lab, "b", guest.name)
        for n in range(2, 6):
            s.sendall(b"inc\n")
            equal(answers.readline().split()[0], b"%d" % n, "counter after")
    session.process.kill()


# ---- loss of the secondary ----

def secondary_lost(lab, **where):
    guest = lab.guest("a")
    session = colo.Session(lab, guest, interval_ms=2500, **where)
    session.wait_protected()
    client = lab.client(guest, long=100, ping=200)
    client.wait_answers(3)
    if where:
        colo.wait_stopped_worker(lab, "b")
    (lab.freeze if where else lab.kill)("b")
    equal(session.wait_end(90), 3, "exit status of xl remus")
    client.wait_answers(15)
    client.stop_without_errors()
    colo.check_nothing_left(lab, "a", guest)


@deadline(240)
def test_the_guest_runs_on_when_the_secondary_host_dies_while_idle(lab):
    secondary_lost(lab)


@deadline(240)
def test_the_guest_runs_on_when_the_secondary_host_dies_while_receiving(lab):
    secondary_lost(lab, peer_env="REMUS_TEST_STOP_AT=\"receiving epoch 3\"")


@deadline(240)
def test_the_guest_runs_on_when_the_secondary_host_dies_while_applying(lab):
    secondary_lost(lab, peer_env="REMUS_TEST_STOP_AT=\"applying epoch 3\"")


@deadline(240)
def test_the_guest_runs_on_when_the_secondary_dies_during_the_initial_copy(lab):
    guest = lab.guest("a")
    client = lab.client(guest, long=100)
    session = colo.Session(lab, guest)
    session.wait_copying()
    lab.freeze("b")
    equal(session.wait_end(180), 3, "exit status of xl remus")
    client.wait_answers(15)
    client.stop_without_errors()
    colo.check_nothing_left(lab, "a", guest)


# ---- the guest's own end, the operator, the daemons ----

@deadline(240)
def test_a_poweroff_of_the_guest_is_no_failover(lab):
    guest = lab.guest("a", fresh=True)
    session = colo.Session(lab, guest)
    session.wait_protected()
    guest.ask(7007, "poweroff")
    equal(session.wait_end(90), 4, "exit status of xl remus")
    wait(lambda: guest.name not in lab.execute("a", "xl list").stdout, 60, "the guest to go")
    check(guest.name not in lab.execute("b", "xl list").stdout, "the copy is still there")
    colo.check_nothing_left(lab, "a")
    colo.check_nothing_left(lab, "b")


@deadline(300)
def test_a_reboot_of_the_guest_brings_it_back_on_its_host(lab):
    guest = lab.guest("a", fresh=True)
    session = colo.Session(lab, guest)
    session.wait_protected()
    before = guest.domid("a")
    guest.ask(7007, "reboot")
    equal(session.wait_end(90), 4, "exit status of xl remus")
    wait(lambda: lab.execute("a", "xl domid " + guest.name, check=False).stdout.strip() not in
         ("", str(before)), 90, "the guest's next life", 1)
    lab.guest_wait("a", guest.name)
    equal(guest.ask(7000, "inc").split()[0], "1", "counter")
    colo.check_nothing_left(lab, "b")


@deadline(240)
def test_ctrl_c_ends_protection_and_the_guest_runs_on(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest)
    session.wait_protected()
    client = lab.client(guest, long=100)
    client.wait_answers(5)
    equal(session.stop(), 0, "exit status of xl remus")
    client.wait_answers(10)
    client.stop_without_errors()
    colo.check_nothing_left(lab, "a", guest)
    colo.check_nothing_left(lab, "b")
    again = colo.Session(lab, guest)
    again.wait_protected()
    equal(again.stop(), 0, "exit status of the second xl remus")


@deadline(180)
def test_ctrl_c_during_the_initial_copy(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest)
    session.wait_copying()
    equal(session.stop(), 0, "exit status of xl remus")
    equal(guest.ask(7000, "inc").split()[0], "1", "counter")
    colo.check_nothing_left(lab, "a", guest)
    colo.check_nothing_left(lab, "b")


def daemon_killed(lab, host, name, number=signal.SIGKILL):
    guest = lab.guest("a")
    session = colo.Session(lab, guest)
    session.wait_protected()
    client = lab.client(guest, long=100)
    client.wait_answers(5)
    colo.kill_by_name(lab, host, name, number)
    equal(session.wait_end(90), 3, "exit status of xl remus")
    client.wait_answers(10)
    client.stop_without_errors()
    colo.check_nothing_left(lab, "a", guest)
    colo.check_nothing_left(lab, "b")


@deadline(240)
def test_the_death_of_colo_proxyd_ends_protection_and_not_the_guest(lab):
    daemon_killed(lab, "a", "colo-proxyd")


@deadline(240)
def test_the_death_of_colo_shadowd_ends_protection_and_not_the_guest(lab):
    daemon_killed(lab, "b", "colo-shadowd")


@deadline(240)
def test_a_colo_proxyd_that_hangs_counts_as_dead(lab):
    daemon_killed(lab, "a", "colo-proxyd", signal.SIGSTOP)


@deadline(240)
def test_a_colo_shadowd_that_hangs_counts_as_dead(lab):
    daemon_killed(lab, "b", "colo-shadowd", signal.SIGSTOP)


@deadline(240)
def test_the_death_of_the_primary_coordinator_is_a_failover_without_two_guests(lab):
    guest = lab.guest("a")
    session = colo.Session(lab, guest)
    session.wait_protected()
    client = lab.client(guest, long=100)
    client.wait_answers(5)
    pid = colo.worker_pid(lab, "a")
    check(pid, colo.NO_WORKER)
    lab.execute("a", "kill -9 %d" % pid)
    session.wait_end(90)
    client.wait_answers(15)
    client.stop_without_errors()
    on_a = guest.name in lab.execute("a", "xl list").stdout
    on_b = " r" in lab.execute("b", "xl list %s; true" % guest.name).stdout or \
        guest.name + " " in lab.execute("b", "xl list").stdout
    check(on_a != on_b, "the guest is on %s" % ("both hosts" if on_a else "no host"))


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
