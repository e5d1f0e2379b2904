#!/usr/bin/env python3
"""Saver and reader of tools/libxc against the distribution's xl, with a guest that works."""

import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import labtest  # noqa: E402
from labtest import alone, check, deadline, equal, wait  # noqa: E402

INSTALL = True

REMUS = "/usr/local/lib/remus/"
SAVER = REMUS + "remus-sr save "
HELPER = "LIBXL_SAVE_HELPER=" + REMUS + "remus-save-helper "
FILE = "/tmp/g1.xl"


def working_guest(lab, vcpus=1, dirty=300):
    """A guest whose client has a connection open and whose memory changes."""
    guest = lab.guest("a", vcpus=vcpus)
    guest.dirty(dirty)
    client = lab.client(guest, long=100)
    client.wait_answers(5)
    return guest, client


def goes_on(client):
    """The client's one connection goes on, with the data that it had."""
    client.wait_answers(5, timeout_s=90)
    figures = client.stop_without_errors()
    equal(figures["classes"]["long"]["connects"], 1, "connections made")


def verify(lab):
    """Xen's own verifier accepts the file; what it says."""
    return lab.execute("a", "verify-stream-v2 -v -f xl -i " + FILE, timeout_s=120).stdout


def save_by_hand(lab, options, file=FILE):
    """remus-sr's figures of one save of g1 (the last one with --repeat)."""
    out = lab.execute("a", SAVER + options + " $(xl domid g1) " + file, timeout_s=120).stdout
    return json.loads(out.splitlines()[-1])


def exchange(lab, vcpus, *pairs):
    """One guest is saved and restored by each pair of programs in turn; its connection lives on."""
    guest, client = working_guest(lab, vcpus)
    for save, restore in pairs:
        lab.execute("a", save, timeout_s=120)
        check(guest.domid("a") is None, "the guest is still there after: " + save)
        lab.execute("a", restore, timeout_s=120)
        client.wait_answers(5, timeout_s=90)
    goes_on(client)
    verify(lab)
    lab.execute("a", "rm " + FILE)


@deadline(500)
def test_our_saver_and_the_distributions_understand_each_other(lab):
    exchange(lab, 1, (HELPER + "xl save g1 " + FILE, HELPER + "xl restore " + FILE),
             (HELPER + "xl save g1 " + FILE, "xl restore " + FILE))


@deadline(600)
def test_with_two_vcpus_and_live_each_restores_what_the_other_saved(lab):
    exchange(lab, 2, ("xl save g1 " + FILE, HELPER + "xl restore " + FILE),
             (SAVER + "--live $(xl domid g1) " + FILE, "xl restore " + FILE))


@deadline(500)
def test_xl_migrates_with_our_saver_and_back_with_our_reader(lab):
    guest, client = working_guest(lab)
    lab.execute("a", HELPER + "xl migrate g1 b", timeout_s=120)
    check(guest.domid("a") is None and guest.domid("b") is not None, "the guest is not on b")
    client.wait_answers(5, timeout_s=60)
    lab.execute("b", ["xl", "migrate", "-s", "", "g1",
                      "ssh a env " + HELPER + "xl migrate-receive"], timeout_s=120)
    check(guest.domid("a") is not None and guest.domid("b") is None, "the guest is not on a")
    goes_on(client)


@deadline(400)
def test_a_guest_works_on_while_it_is_saved_again_and_again(lab):
    guest, client = working_guest(lab, 2)
    domid = guest.domid("a")
    figures = save_by_hand(lab, "--live --resume --repeat=4")
    check(figures["pages"] > 32000, "only %d pages" % figures["pages"])
    check(figures["stopped_ms"] < figures["seconds"] * 1000 / 2, "stopped for most of it")
    check("HVM params" in verify(lab), "the file is not complete")
    save_by_hand(lab, "--resume")
    equal(guest.domid("a"), domid, "domain id")
    goes_on(client)


@deadline(400)
def test_a_save_that_fails_leaves_the_guest_at_work(lab):
    guest, client = working_guest(lab)
    for options in ("", "--resume ", "--live ", "--live --resume "):
        result = lab.execute("a", SAVER + options + "$(xl domid g1) /dev/full", check=False)
        equal(result.returncode, 1, "status of a save to /dev/full")
        check("No space left" in result.stderr, "it says " + result.stderr)
        client.wait_answers(3)
    result = lab.execute("a", HELPER + "xl save g1 /dev/full", check=False)
    check(result.returncode != 0, "xl save to /dev/full with our saver says that it worked")
    check(guest.domid("a") is not None, "the guest is gone")
    goes_on(client)


@deadline(400)
def test_a_guest_that_balloons_while_it_is_saved_is_restored(lab):
    guest, client = working_guest(lab)
    # Nothing is built from the first saves: they see the balloon come and go.
    domid = guest.domid("a")
    lab.spawn("a", "for size in 100 128 100 128 100 128; do xl mem-set %d $size; sleep 0.5; done" %
              domid, "balloon")
    result = lab.execute("a", SAVER + "--live --resume --repeat=2 %d /dev/null" % domid,
                         check=False, timeout_s=120)
    check(result.returncode == 0 or "save it again" in result.stderr, "it says " + result.stderr)
    lab.running[-1].wait(60)
    # The restored guest has fewer pages than when its save began, and more than it was to have.
    lab.spawn("a", "xl mem-set %d 100" % domid, "balloon")
    save_by_hand(lab, "--live")
    check(guest.domid("a") is None, "the guest is still there after its save")
    # The verifier is slow: when it is done the client's TCP would wait minutes to send again.
    lab.execute("a", "xl restore " + FILE, timeout_s=120)
    goes_on(client)
    verify(lab)
    lab.execute("a", "rm " + FILE)


@deadline(400)
def test_our_reader_refuses_damaged_files_with_a_reason(lab):
    lab.guest("a")
    save_by_hand(lab, "")
    # 24 bytes of outer stream, 40 of headers, then the header of the CPUID policy's record.
    damages = (
        ("printf '\\033' | dd of=$f bs=1 seek=$((begin + 64)) conv=notrunc status=none",
         "unknown mandatory type"),
        ("printf '\\377' | dd of=$f bs=1 seek=$((begin + 71)) conv=notrunc status=none",
         "the limit is"),
        ("truncate -s 50000000 $f", "cannot be read"),
    )
    for damage, reason in damages:
        result = lab.execute(
            "a", "f=/root/damaged.xl; cp %s $f; " % FILE +
            "begin=$(head -c 65536 $f | grep -obUa -m1 LibxlFmt | head -n 1 | cut -d: -f1); " +
            damage + "; " + HELPER + "xl restore -e $f; status=$?; rm $f; exit $status",
            check=False, timeout_s=200)
        check(result.returncode != 0, "a file is restored after: " + damage)
        check(reason in result.stderr, "%s: it says %s" % (damage, result.stderr))
        wait(lambda: lab.execute("a", "xl domid g1", check=False).returncode != 0, 30,
             "nothing is left of the guest that was not restored")
    lab.execute("a", HELPER + "xl restore %s; rm %s" % (FILE, FILE), timeout_s=200)
    lab.guest_wait("a", "g1")


@alone
@deadline(500)
def test_our_saver_is_faster_than_the_distributions(lab):
    """Pages per second to /dev/null, best of three in turn; xl against xl, and remus-sr."""
    lab.guest("a")
    xl = "s=$(date +%s%N); xl save -c g1 /dev/null 2>/dev/null; e=$(date +%s%N); echo $((e - s))"
    pages, seconds = 0, {"stock": [], "ours": [], "by hand": []}
    for _ in range(3):
        figures = save_by_hand(lab, "--resume", "/dev/null")
        pages = figures["pages"]
        seconds["by hand"].append(figures["seconds"])
        seconds["stock"].append(int(lab.execute("a", xl).stdout) / 1e9)
        seconds["ours"].append(int(lab.execute("a", "export " + HELPER + "; " + xl).stdout) / 1e9)
    rates = {name: pages / min(values) for name, values in seconds.items()}
    with open(os.path.join(lab.directory, "figures.json"), "w") as f:
        json.dump({"pages": pages, "seconds": seconds, "pages_per_second": rates}, f)
    print("# " + ", ".join("%s %.0f pages/s" % item for item in sorted(rates.items())))
    check(rates["ours"] > rates["stock"], "xl save is slower with our saver: %s" % rates)
    check(rates["by hand"] > rates["stock"], "remus-sr is slower: %s" % rates)


if __name__ == "__main__":
    sys.exit(labtest.main(sys.argv[1:], os.path.realpath(__file__)))
