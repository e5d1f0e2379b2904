#!/usr/bin/env python3
"""colo-shadowd as the backend of a real guest's vif. The coordinator and the primary's host are
played by tools/shadow-driver.py in dom0; after failover real clients come through the bridge."""

import glob
import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import labtest  # noqa: E402
from labtest import check, deadline, equal, wait  # noqa: E402
from lablib import common  # noqa: E402

HOST = "a"
DRIVER = os.path.join(common.TOP, "tests/lab/tools/shadow-driver.py")


def program():
    """colo-shadowd as it was built last."""
    found = [os.environ["COLO_SHADOWD"]] if "COLO_SHADOWD" in os.environ else \
        glob.glob(os.path.join(common.TOP, "build/**/colo-shadowd"), recursive=True)
    check(found, "colo-shadowd has not been built")
    return max(found, key=os.path.getmtime)


class Shadow:
    """A guest whose vif colo-shadowd has."""

    def __init__(self, lab):
        self.lab = lab
        self.guest = lab.guest(HOST)
        self.domid = self.guest.domid(HOST)
        lab.push(HOST, [program(), DRIVER], "/root/")
        self.process = lab.spawn(
            HOST, "exec python3 /root/shadow-driver.py serve --domid %d --ip %s "
            "--shadowd /root/colo-shadowd -- --log-level info" % (self.domid, self.guest.ip),
            "driver")
        wait(lambda: "ready\n" in self.log(), 60, "colo-shadowd is ready: " + self.log())

    def log(self):
        with open(self.process.log_path) as f:
            return f.read()

    def do(self, words):
        """Runs words, separated by commas; their answers, a list if there are several."""
        result = self.lab.execute(HOST, "python3 /root/shadow-driver.py do " + words, check=False,
                                  timeout_s=280)
        answers = [json.loads(line) for line in result.stdout.splitlines()]
        for answer in answers:
            check("error" not in answer, "%s: %s" % (words, answer.get("error")))
        check(answers, "%s: %s" % (words, result.stderr))
        answers = [answer["answer"] for answer in answers]
        return answers if len(answers) > 1 else answers[0]

    def attach(self):
        self.do("attach 1 , go")
        return self


@deadline(900)
def test_injected_input_is_answered_and_the_daemon_is_confined(lab):
    shadow = Shadow(lab).attach()
    confined, arp, ping, stats = shadow.do("confined , arp , ping 50 , stats")
    equal(arp, True, "answer to ARP")
    equal(ping["answers"], 50, "answers to pings")
    equal(ping["ids_in_order"], True, "output ids count up")
    check(confined["Uid"].split()[0] != "0", "runs as root")
    equal((confined["CapEff"].strip("0"), confined["CapBnd"].strip("0")), ("", ""), "capabilities")
    equal((confined["NoNewPrivs"], confined["Seccomp"]), ("1", "2"), "confinement")
    equal((stats["dropped_other"], stats["dropped_old"]), (0, 0), "drops")
    check(stats["held"] >= 51, "output is not kept until it is matched")
    stats = shadow.do("matched 1 %d , stats" % stats["output_packets"])[1]
    check(stats["held"] < 5, "matched output is still kept")
    equal(shadow.do("signal 15")["alive"], True, "alive after SIGTERM while controlled")
    equal(shadow.do("quit")["status"], 0, "exit status")


@deadline(900)
def test_epochs_decide_what_is_injected(lab):
    shadow = Shadow(lab).attach()
    # Of the future: waits. Of the past: forgotten.
    shadow.do("pause , detach 1")
    early = shadow.do("ping 3 56 2")
    equal(early["answers"], 0, "answers while detached")
    shadow.do("ping 2 56 1 , attach 2 , go , unpause , sleep 1")
    outputs = shadow.do("outputs")
    equal((outputs["pings"], outputs["epochs"]), (3, [2]), "output after ATTACH 2")
    stats = shadow.do("ping 3 56 1 , stats")[1]
    equal(stats["dropped_old"], 5, "old input dropped")
    # Unmatched output of an epoch goes with it.
    stats = shadow.do("pause , detach 2 , stats")[2]
    equal(stats["held"], 0, "output kept of an epoch that is over")
    shadow.do("attach 3 , go , unpause")
    equal(shadow.do("ping 5")["answers"], 5, "answers in epoch 3")


@deadline(900)
def test_young_connections_have_the_primarys_numbers(lab):
    shadow = Shadow(lab).attach()
    for how in ("flow 305419896", "ack 4294967295", "flow -5 1", "ack 3000000000 1"):
        answer = shadow.do("tcp " + how)
        equal((answer["wrong"], answer["fin_at"]), ([], 0), "connection " + how)


@deadline(900)
def test_large_frames_and_partial_checksums_reach_the_guest(lab):
    shadow = Shadow(lab).attach()
    whole, small, partial = shadow.do("upload 4 , upload 0.25 1460 0 , upload 0.25 1460 1")
    equal(whole["said"].split()[0], "4194304", "bytes that the sink got in large frames")
    equal(small["said"], partial["said"], "the same bytes with full and partial checksums")
    # A frontend that takes no GSO: the same frames are cut here, and the sink cannot tell.
    shadow.do("detach 1")
    shadow.do("""attach 2 '{"gso4": 0, "gso6": 0}' , go""")
    cut = shadow.do("upload 4")
    equal(cut["said"], whole["said"], "the same bytes in frames that colo-shadowd has cut")
    stats = shadow.do("stats")
    equal(stats["dropped_other"], 0, "drops")


@deadline(900)
def test_a_hundred_checkpoints_and_the_cost_of_attaching(lab):
    shadow = Shadow(lab).attach()
    result = shadow.do("cycles 100 3")
    equal((result["answers"], result["bad"]), (300, []), "pings answered over 100 checkpoints")
    print("# attach: mean %.0f us, max %d us of CPU time (the first one maps and binds)" %
          (result["attach_us_mean"], result["attach_us_max"]))
    check(result["attach_us_mean"] < 1000, "attaching costs %(attach_us_mean)d us" % result)


@deadline(900)
def test_a_guest_that_takes_nothing_loses_input_and_stops_nobody(lab):
    """What fits the queue waits for it; the channel stops for a second at most, because it is that
    of its other interfaces, too."""
    shadow = Shadow(lab).attach()
    burst = shadow.do("burst 12000 1400")
    stats = shadow.do("stats")
    equal((burst["stuck"], burst["sent"]), (12000, 12000), "sent while the guest was paused")
    count = stats["input_packets"] + stats["dropped_other"]
    check(12000 <= count <= 12010, "injected and dropped: %d" % count)    # with some ARP
    check(stats["input_packets"] > 5000, "injected %(input_packets)d of 12000" % stats)
    equal(stats["dropped_old"], 0, "dropped as old")
    # Linux' ICMP has room for 58 answers of this size that wait for the interface; it drops others.
    check(burst["answers"] > 0, "no answers")
    check(stats["held"] <= 8192, "more is kept than the bound allows: %(held)d" % stats)
    equal(shadow.do("ping 5")["answers"], 5, "answers afterwards")


@deadline(900)
def test_a_hostile_guest_loses_its_network_and_nothing_else(lab):
    shadow = Shadow(lab).attach()
    shadow.do("pause , spoil tx , unpause")
    shadow.do("ping 1")
    check("nonsense" in shadow.log(), "the daemon has not said that the ring is broken")
    stats = shadow.do("detach 1 , attach 2 , go , stats")[3]
    equal(stats["attaches"], 2, "attached again")


@deadline(900)
def test_after_failover_clients_reach_the_guest_and_old_connections_go_on(lab):
    shadow = Shadow(lab).attach()
    before = shadow.do("open a flow 77777777 0 100000 , use a , open b ack 4000000000 1 , use b")
    equal((before[1]["wrong"], before[3]["wrong"]), ([], []), "connections before")
    failover = shadow.do("failover")
    print("# FAILOVER to ACTIVE: %.1f ms" % failover["ms"])
    after = shadow.do("use a , use b , use a , ping 5 , arp , stats")
    for i in range(3):
        equal(after[i]["wrong"], [], "connection after failover")
    equal([a["answer"].split()[0] for a in after[:3]], ["2", "2", "3"], "counters")
    equal((after[3]["answers"], after[4]), (5, True), "ping and ARP through the tap")
    equal(after[5]["offsets"], 2, "connections whose numbers are changed")
    check("announced 1 addresses" in shadow.log(), "no announcement")
    equal(shadow.do("close a , close b , part")[0]["fin_at"], 0, "end of the connection")

    figures = lab.run_client(shadow.guest, 8, long=50, short=200, ping=100, udp=100,
                             bulk_down=500000, bulk_up=500000)["classes"]
    print("# bulk down %d kB/s, up %d kB/s" % (figures["bulk-down"]["bytes_per_s"] / 1000,
                                               figures["bulk-up"]["bytes_per_s"] / 1000))
    equal(shadow.do("leave")["alive"], True, "alive without its coordinator")
    lab.run_client(shadow.guest, 2, long=50, ping=100)
    equal(shadow.do("signal 15")["alive"], False, "alive after SIGTERM without a coordinator")


@deadline(900)
def test_what_was_not_matched_is_sent_at_failover(lab):
    shadow = Shadow(lab).attach()
    # Three answers nobody has matched, three that wait for the guest to run.
    shadow.do("arp , ping 1")    # so that the guest knows the peer
    known = shadow.do("stats")["output_packets"]
    shadow.do("matched 1 %d , ping 3 , matched %d %d , pause" % (known, known + 1, known + 1))
    equal(shadow.do("ping 3")["answers"], 0, "answers of a paused guest")
    sent = shadow.do("failover , unpause , sleep 2 , outputs")[3]
    equal(sent["pings"], 2 + 3, "unmatched and new answers to pings")
    check(sent["count"] >= 2 + 3 + 5, "no 5 announcements: %s" % sent)


@deadline(900)
def test_what_it_has_read_reaches_the_guest_before_it_lets_go(lab):
    shadow = Shadow(lab).attach()
    shadow.do("failover , ping 5")
    got = shadow.do("detach_behind 50")["got"]
    check(got >= 50, "frames that the guest got: %d of 50" % got)


@deadline(900)
def test_the_kernels_netback_takes_over_again(lab):
    shadow = Shadow(lab).attach()
    shadow.do("failover , part")
    lab.run_client(shadow.guest, 2, long=50, ping=100)
    client = lab.client(shadow.guest, long=50)
    client.wait_answers(10)
    shadow.do("pause , detach 1 , quit , give_back , unpause")
    lab.execute(HOST, "ip link del shadow0", check=False)
    client.wait_answers(20)
    client.stop_without_errors()


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
