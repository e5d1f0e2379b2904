#!/usr/bin/env python3
"""The report of modes_bench.py, as Markdown and as a page that needs nothing but itself.

    tests/bench/modes_report.py [modes.json]     writes modes.md and modes.html beside it

The page's charts are SVG that is made here; its colours follow the reader's choice of light or
dark.
"""

import html
import json
import math
import os
import re
import sys

MODES = {
    "native": "no protection",
    "stock": "the distribution's `xl remus`: output not held, disks not replicated (see below)",
    "remus": "copy paused, a checkpoint every 200 ms, output held until it is safe",
    "kemari": "copy paused, a checkpoint at each first packet or disk write, output held",
    "curling": "copy paused, a checkpoint 20 ms after the last, output not held",
    "colo": "copy runs, output is compared, a checkpoint when it differs, or at 10 s",
    "auto": "colo while that pays, else remus",
}

WORKLOADS = {
    "idle": ("Idle",
             "Nothing is asked of the guest while it is watched. Then, for the latency, one "
             "request each 200 ms on one connection."),
    "web": ("Web requests, the same answer to each",
            "Eight clients, each with a kept connection, ask again as soon as they are answered."),
    "diverge": ("Requests whose answers always differ",
                "The same with answers that contain the guest's clock in nanoseconds: two copies "
                "never agree."),
    "memory": ("A compiler-like memory writer",
               "A thread computes, writes a page, and goes on to the next of 16 MiB, without ever "
               "waiting; its pages are counted in the guest. Latency is that of a request each "
               "100 ms beside it."),
    "db": ("Database commits",
           "SQLite on ext4 on the guest's disk, write-ahead log, every commit synced; one client, "
           "one row for each commit."),
    "bulk": ("Bulk TCP, both ways",
             "Transfers of 1 MB, first from the guest, then to it. Latency is that of a request "
             "each 100 ms beside them."),
}

EXPLANATION = [
    "Both hosts are **emulated** (QEMU without any virtualisation hardware) and share two cores "
    "with the clients. Absolute figures say nothing about hardware. Only ratios within this run "
    "mean something, and of those only large ones: two runs differ by up to a factor of two. The "
    "number in brackets is the ratio to the unprotected guest (native) of the same run and "
    "workload.",
    "A running copy (colo) costs the second core what the guest costs the first. Where the guest "
    "and its host share one core, whatever the host does for protection is taken from the guest.",
    "**Guest stopped** is sampled from outside, every 2 ms, by asking the hypervisor; one stop is "
    "one checkpoint, and native is watched in the same way. **Link** counts both directions of "
    "the replication link's network device. **Answer** is the time from a request to its whole "
    "answer, as the client sees it; of all answers, none is left out.",
    "**After the loss of its host**: under the same load, at no particular moment, the primary's "
    "host is silenced for good (its emulator is stopped: no packet, no heartbeat, nothing is said "
    "on any connection). Another connection that counts up every 100 ms, and new connections, are "
    "watched from then on. *Kept*: the connections of the load and the counting one went on. "
    "*Answers lost*: how far the guest's counter is behind what a client has seen. *Commits lost*: "
    "acknowledged rows that are not in the database. *Gap*: how long the counting connection "
    "had no answer; *new*: until a new connection was answered. Our hosts call each other lost "
    "after 5 s.",
    "**stock** is `xl remus -F -n -d` of the distribution, with its interval of 200 ms, memory to "
    "the second host through ssh. Debian's libxl is built without network buffering, so its "
    "output is not held (`-n`), and its disk replication needs a DRBD that nobody ships, so the "
    "disk over there is as it was at the start (`-d`). It has no heartbeat of its own: the sshd "
    "over there was told to give up a silent peer after 5 s (`ClientAliveInterval`), which ends "
    "`xl migrate-receive` into its takeover.",
]

LOSSLESS = ("remus", "kemari", "colo", "auto")


def number(value, digits=3):
    """Three figures that count, without an exponent."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - int(math.floor(math.log10(abs(value)))))
    text = "%.*f" % (min(places, 3), value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def get(cell, *path):
    for key in path:
        cell = cell.get(key) if isinstance(cell, dict) else None
    return cell


def with_ratio(value, base):
    if value is None:
        return "–"
    if not base:
        return number(value)
    return "%s (%s)" % (number(value), number(value / base, 2))


def figures(cell):
    """What stands in a row: a heading, the path in a cell, and whether native has it too."""
    rows = [("%s, %s" % (t["name"], t["unit"]) if t["name"] else t["unit"],
             ("throughput", i, "value"), True)
            for i, t in enumerate(get(cell, "throughput") or [])]
    rows += [("answer %s, ms" % p, ("latency_ms", p), True) for p in ("p50", "p90", "p99", "max")]
    rows += [("stopped %s, ms" % p, ("stops", p), False) for p in ("median", "p90", "max")]
    rows += [("time stopped, %", ("stops", "share_percent"), False),
             ("checkpoints/s", ("stops", "per_s"), False),
             ("link, KB/s", ("link_kb_per_s",), False)]
    return rows


def fetch(cell, path):
    for key in path:
        if isinstance(cell, list):
            cell = cell[key] if key < len(cell) else None
        elif isinstance(cell, dict):
            cell = cell.get(key)
        else:
            return None
    return cell


def after_loss(cell, mode):
    """The sentence about what the copy had."""
    r = get(cell, "recovered")
    if mode == "native":
        return "the guest is lost with its host"
    if not r:
        return "not measured"
    if not r.get("took_over"):
        return "no takeover: %s" % r.get("reason", "unknown")
    words = []
    if r.get("load_total"):
        kept, total = r.get("load_kept", 0) + bool(r.get("kept")), r["load_total"] + 1
    else:
        kept, total = int(bool(r.get("kept"))), 1
    words.append("%s of %d connections kept" % ("all" if kept == total else kept or "none", total)
                 if total > 1 else "connection kept" if kept else "connection broken")
    lost = r.get("answers_lost")
    words.append("answers lost: unknown" if lost is None else
                 "%d answers lost" % lost if lost else "no answer lost")
    if "commits_lost" in r:
        lost = r["commits_lost"]
        words.append(r.get("database") or "database unreadable" if lost is None else
                     "%d of %d commits lost" % (lost, r["commits"]) if lost else
                     "none of %d commits lost" % r["commits"])
    if r.get("work_lost"):
        words.append(r["work_lost"])
    if r.get("kept") and r.get("gap_ms"):
        words.append("gap %s s" % number(r["gap_ms"] / 1e3))
    if r.get("back_ms"):
        words.append("new %s s" % number(r["back_ms"] / 1e3))
    return ", ".join(words)


def cells(data):
    """Every (workload, [(mode, cell)...]) in order."""
    for workload in data["workloads"]:
        yield workload, [(mode, get(data, "cells", workload, mode) or
                          {"status": "not run", "reason": "the run ended before"})
                         for mode in data["modes"]]


def table(data, workload, row):
    """Headings and rows, as text, of a workload's table."""
    native = get(data, "cells", workload, "native")
    sample = next((c for _, c in row if c.get("throughput")), row[0][1])
    columns = figures(sample)
    heads = ["mode"] + [name for name, _, _ in columns] + ["after the loss of its host"]
    lines = []
    for mode, cell in row:
        line = [mode]
        if cell["status"] != "ok" and not cell.get("stops"):
            line += ["–"] * len(columns)
        else:
            line += [with_ratio(fetch(cell, path),
                                fetch(native, path) if has_native and mode != "native" else None)
                     for _, path, has_native in columns]
        last = after_loss(cell, mode) if cell.get("stops") else ""
        if cell["status"] != "ok":
            last = "**%s**: %s%s" % (cell["status"].upper(), cell.get("reason", "unknown"),
                                     "; " + last if last else "")
        lines.append(line + [last])
    return heads, lines


def summary(data):
    """The one table: throughput and p50 of the answers, as ratios to native."""
    heads = ["mode"] + [WORKLOADS[w][0] for w in data["workloads"]]
    lines = []
    for mode in data["modes"]:
        line = [mode]
        for workload, row in cells(data):
            cell, native = dict(row)[mode], get(data, "cells", workload, "native")
            if cell["status"] != "ok":
                line.append("**%s**" % cell["status"].upper())
                continue
            parts = []
            for i, t in enumerate(cell.get("throughput") or []):
                base = fetch(native, ("throughput", i, "value"))
                text = number(t["value"] / base, 2) + "×" if base else \
                    "%s %s" % (number(t["value"]), t["unit"])
                parts.append(t["name"] + " " + text if t["name"] else text)
            value, base = get(cell, "latency_ms", "p50"), get(native, "latency_ms", "p50")
            if value is not None:
                parts.append("answer " + (number(value / base, 2) + "×" if base else
                                          number(value) + " ms"))
            line.append(", ".join(parts))
        lines.append(line)
    return heads, lines


def failures(data):
    return [(w, m, c) for w, row in cells(data) for m, c in row if c["status"] != "ok"]


def facts(data):
    run = data["run"]
    lines = ["%s: commit %s, `%s`: %s; %s minutes" %
             (part["when"], part["commit"], part["command"], ", ".join(part["workloads"]),
              number(part["minutes"])) for part in data["parts"]]
    lines.append("%s cores (%s), %s; %s s for each measurement" %
                 (run["cores"], run["cpu"], run["xen"], number(run["seconds"])))
    loads = [c["load_average"] for _, row in cells(data) for _, c in row if c.get("load_average")]
    if loads:
        lines.append("Load average of the machine, hosts included: %s to %s" %
                     (number(min(loads)), number(max(loads))))
    bad = failures(data)
    lines.append("%d cells, %d of them failed or not run" %
                 (len(data["modes"]) * len(data["workloads"]), len(bad)))
    return lines


# ---- Markdown ----

def markdown_table(heads, lines):
    out = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for line in lines:
        out.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in line) + " |")
    return "\n".join(out)


def markdown(data):
    parts = ["# The modes compared", "\n".join("- " + line for line in facts(data)),
             "## In one table",
             "Ratios to the unprotected guest: throughput (more is better), and the median time of "
             "an answer (less is better).", markdown_table(*summary(data))]
    for workload, row in cells(data):
        title, text = WORKLOADS[workload]
        parts += ["## " + title, text, markdown_table(*table(data, workload, row))]
        notes = ["- %s: %s" % (mode, note) for mode, cell in row for note in cell.get("notes", [])]
        if notes:
            parts.append("\n".join(notes))
    parts += ["## How to read this"] + EXPLANATION
    parts.append("\n".join("- **%s**: %s" % (mode, MODES[mode]) for mode in data["modes"]))
    return "\n\n".join(parts) + "\n"


# ---- HTML ----

STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --ink: #1c1b19; --soft: #6a6862;
  --line: #dedcd6; --bar: #2f6fb3; --range: #a9c6e6; --native: #8f8c85; --bad: #b3261e;
  --band: #f3f2ee; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #191917; --ink: #eceae4; --soft: #a19e96; --line: #3a3935; --bar: #6ba7e5;
    --range: #2f567f; --native: #85827b; --bad: #f2857d; --band: #232321; } }
body { margin: 0 auto; max-width: 90rem; padding: 1.5rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p, li { max-width: 50rem; } .facts, .note { color: var(--soft); font-size: .9rem; }
code { font-family: ui-monospace, monospace; font-size: .92em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td { white-space: nowrap; }
th:first-child, td:first-child, .words { text-align: left; }
td.words { white-space: normal; min-width: 15rem; }
tr.bad td.words strong, td strong { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr));
  gap: 1rem 2rem; margin: 1rem 0; }
figure { margin: 0; } figcaption { font-size: .85rem; font-weight: 600; }
figcaption span { color: var(--soft); font-weight: 400; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
svg .soft { fill: var(--soft); } svg .failed { fill: var(--bad); }
svg .bar { fill: var(--bar); } svg .native { fill: var(--native); } svg .band { fill: var(--band); }
svg .range { stroke: var(--range); stroke-width: 5; stroke-linecap: round; }
svg .axis { stroke: var(--line); }
"""

LEFT, WIDTH, STEP = 58, 340, 20
PLOT = WIDTH - LEFT - 74


MARKS = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\*([^*]+)\*")


def escape(text):
    """Text of the report, with its `code`, **strong** and *emphasis*."""
    def tag(match):
        name = ("code", "strong", "em")[match.lastindex - 1]
        return "<%s>%s</%s>" % (name, match[match.lastindex], name)
    return MARKS.sub(tag, html.escape(text))


def chart(title, unit, values, scale="linear"):
    """values: (mode, value or (low, high) or None, text for None). Bars begin at zero; ranges are
    dots, and may have a logarithmic scale."""
    numbers = [n for _, v, _ in values if v is not None
               for n in (v if isinstance(v, tuple) else (v,)) if n is not None]
    if not numbers:
        return ""
    top = max(numbers) or 1
    bottom = 0.0
    if scale == "log":
        positive = [n for n in numbers if n > 0] or [1]
        bottom = 10 ** math.floor(math.log10(min(positive)))
        top = 10 ** math.ceil(math.log10(top)) if top > bottom else bottom * 10

    def x(n):
        if scale == "log":
            return LEFT + PLOT * (math.log10(max(n, bottom) / bottom) / math.log10(top / bottom))
        return LEFT + PLOT * n / top

    height = STEP * len(values) + (18 if scale == "log" else 4)
    out = ['<svg viewBox="0 0 %d %d" role="img" aria-label="%s">' %
           (WIDTH, height, html.escape("%s, %s" % (title, unit)))]
    if scale == "log":
        mark = bottom
        while mark <= top * 1.001:
            out.append('<line class="axis" x1="%.1f" x2="%.1f" y1="0" y2="%d"/>'
                       '<text class="soft" x="%.1f" y="%d" text-anchor="middle">%s</text>' %
                       (x(mark), x(mark), height - 15, x(mark), height - 3, number(mark)))
            mark *= 10
    for i, (mode, value, missing) in enumerate(values):
        y = i * STEP + STEP / 2
        kind = "native" if mode == "native" else "bar"
        out.append('<text x="%d" y="%.1f" text-anchor="end">%s</text>' %
                   (LEFT - 6, y + 4, html.escape(mode)))
        if value is None:
            out.append('<text class="%s" x="%d" y="%.1f">%s</text>' %
                       ("failed" if missing == "failed" else "soft", LEFT + 2, y + 4,
                        html.escape(missing)))
        elif isinstance(value, tuple):
            low, high = value
            out.append('<line class="range" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>'
                       '<circle class="%s" cx="%.1f" cy="%.1f" r="4.5"/>'
                       '<text class="soft" x="%.1f" y="%.1f">%s … %s</text>' %
                       (x(low), x(high), y, y, kind, x(low), y, x(high) + 8, y + 4, number(low),
                        number(high)))
        else:
            out.append('<rect class="%s" x="%d" y="%.1f" width="%.1f" height="%d" rx="2"/>'
                       '<text class="soft" x="%.1f" y="%.1f">%s</text>' %
                       (kind, LEFT, y - 6, max(1, x(value) - LEFT), 12, max(1, x(value) - LEFT) +
                        LEFT + 5, y + 4, number(value)))
    out.append("</svg>")
    return "<figure><figcaption>%s <span>%s</span></figcaption>%s</figure>" % (
        html.escape(title), html.escape(unit), "".join(out))


def missing_word(cell):
    return "failed" if cell["status"] == "failed" else "–"


def charts(row):
    out = []
    sample = next((c for _, c in row if c.get("throughput")), {})
    for i, t in enumerate(sample.get("throughput", [])):
        out.append(chart(t["name"] or "throughput", t["unit"],
                         [(m, fetch(c, ("throughput", i, "value")), missing_word(c))
                          for m, c in row]))

    def ranges(key, low, high, absent):
        return [(m, (get(c, key, low), get(c, key, high)) if get(c, key, low) is not None else None,
                 absent if c["status"] == "ok" else missing_word(c)) for m, c in row]

    out.append(chart("time of an answer", "ms, median … 99th percentile, logarithmic",
                     ranges("latency_ms", "p50", "p99", "–"), "log"))
    out.append(chart("guest stopped for a checkpoint", "ms, median … longest",
                     ranges("stops", "median", "max", "never")))
    out.append(chart("time for which the guest was stopped", "%",
                     [(m, get(c, "stops", "share_percent"), missing_word(c)) for m, c in row]))
    gaps = []
    for mode, cell in row:
        r = get(cell, "recovered") or {}
        back = r.get("gap_ms") if r.get("kept") else r.get("back_ms")
        gaps.append((mode, back / 1e3 if back else None,
                     "guest lost" if mode == "native" else missing_word(cell)))
    out.append(chart("silence after the loss of the host", "s, until an answer", gaps))
    return '<div class="charts">%s</div>' % "".join(out)


def html_table(heads, lines, words=True):
    out = ['<div class="wide"><table><thead><tr>']
    for i, head in enumerate(heads):
        last = words and i == len(heads) - 1
        out.append("<th%s>%s</th>" % (' class="words"' if last else "", escape(head)))
    out.append("</tr></thead><tbody>")
    for line in lines:
        out.append("<tr>")
        for i, text in enumerate(line):
            last = words and i == len(line) - 1
            out.append("<td%s>%s</td>" % (' class="words"' if last else "", escape(text)))
        out.append("</tr>")
    out.append("</tbody></table></div>")
    return "".join(out)


def page(data):
    body = ["<h1>The modes compared</h1>"]
    body += ['<p class="facts">%s</p>' % "<br>".join(escape(line) for line in facts(data))]
    body += ["<h2>In one table</h2><p>Ratios to the unprotected guest: throughput (more is "
             "better), and the median time of an answer (less is better).</p>",
             html_table(*summary(data), words=False)]
    for workload, row in cells(data):
        title, text = WORKLOADS[workload]
        body += ['<section id="%s"><h2>%s</h2><p>%s</p>' % (workload, escape(title), escape(text)),
                 charts(row), html_table(*table(data, workload, row))]
        notes = ["%s: %s" % (mode, escape(note))
                 for mode, cell in row for note in cell.get("notes", [])]
        body.append('<p class="note">%s</p></section>' % "<br>".join(notes))
    body.append("<h2>How to read this</h2>")
    body += ["<p>%s</p>" % escape(text) for text in EXPLANATION]
    body.append("<ul>%s</ul>" % "".join("<li><strong>%s</strong>: %s</li>" %
                                        (mode, escape(MODES[mode])) for mode in data["modes"]))
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            "<title>The modes compared</title><style>%s</style></head><body>\n%s\n</body></html>\n"
            % (STYLE, "\n".join(b for b in body if b)))


def write(data, directory):
    """modes.json, modes.md, modes.html; each is complete or as it was."""
    os.makedirs(directory, exist_ok=True)
    for name, text in (("modes.json", json.dumps(data, indent=1) + "\n"),
                       ("modes.md", markdown(data)), ("modes.html", page(data))):
        path = os.path.join(directory, name)
        with open(path + ".new", "w", encoding="utf-8") as f:
            f.write(text)
        os.rename(path + ".new", path)


def main(argv):
    if len(argv) > 1 or argv[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 2
    here = os.path.dirname(os.path.realpath(__file__))
    path = argv[0] if argv else os.path.join(here, "..", "..", "build", "bench", "modes.json")
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    write(data, os.path.dirname(os.path.abspath(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
