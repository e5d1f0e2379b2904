"""Paths, errors and small helpers that every part of the lab uses."""

import ctypes
import fcntl
import hashlib
import os
import subprocess
import sys
import time

LAB_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOP = os.path.dirname(os.path.dirname(LAB_DIR))
BUILD = os.environ.get("LAB_BUILD", os.path.join(TOP, "build", "lab"))
IMAGES = os.path.join(BUILD, "images")
BIN = os.path.join(BUILD, "bin")
RUN_ROOT = os.path.join(BUILD, "run")
STAGE = os.path.join(BUILD, "stage")
RESULTS = os.path.join(BUILD, "results")

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """Something that the user of the lab is told in one sentence."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(argv, check=True, **kwargs):
    """Run a program to its end; return the CompletedProcess with text output."""
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    result = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **kwargs)
    if check and result.returncode != 0:
        detail = (result.stderr or result.stdout).strip()[-2000:]
        raise LabError("%s failed (%d): %s" % (" ".join(argv), result.returncode, detail))
    return result


def patience():
    """By what factor to extend deadlines: 1 on a quiet machine, more under other people's load."""
    fixed = os.environ.get("LAB_PATIENCE")
    if fixed:
        return float(fixed)
    return min(6.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def wait_for(probe, timeout_s, interval_s=0.1):
    """Call probe() until it returns something true; None after timeout_s."""
    end = time.monotonic() + timeout_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() >= end:
            return None
        time.sleep(interval_s)


def tail(path, lines=40):
    """The last lines of a file, or an explanation instead of them."""
    try:
        with open(path, "rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(0, f.tell() - 64 * 1024))
            text = f.read().decode("utf-8", "replace").replace("\r", "")
    except OSError as e:
        return "(%s: %s)" % (path, e.strerror)
    return "\n".join(text.splitlines()[-lines:])


def hash_strings(*strings):
    digest = hashlib.sha256()
    for s in strings:
        digest.update(s.encode() + b"\0")
    return digest.hexdigest()


def hash_files(*paths):
    """A hash of names, modes and contents below the given files and directories."""
    digest = hashlib.sha256()
    for top in paths:
        names = [top]
        if os.path.isdir(top):
            names = []
            for base, dirs, files in os.walk(top):
                dirs.sort()
                names += [os.path.join(base, f) for f in sorted(files)]
        for name in names:
            digest.update(os.path.relpath(name, LAB_DIR).encode() + b"\0")
            if os.path.islink(name):
                digest.update(os.readlink(name).encode())
                continue
            digest.update(b"%o\0" % (os.stat(name).st_mode & 0o111))
            with open(name, "rb") as f:
                digest.update(f.read())
    return digest.hexdigest()


class FileLock:
    """An exclusive lock held for the time of a `with` block."""

    def __init__(self, path):
        self.path = path
        self.fd = -1

    def __enter__(self):
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        return self

    def __exit__(self, *exc):
        os.close(self.fd)


def enter_netns(name):
    """Move the calling thread into a named network namespace (inherited by its children)."""
    fd = os.open("/run/netns/" + name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, CLONE_NEWNET) != 0:
            raise LabError("cannot enter network namespace %s: %s" %
                           (name, os.strerror(ctypes.get_errno())))
    finally:
        os.close(fd)


def read_list(path):
    """The lines of a list file without comments and empty lines."""
    with open(path) as f:
        lines = [line.split("#", 1)[0].strip() for line in f]
    return [line for line in lines if line]


def process_start_time(pid):
    """A number that tells this process from a later one with the same pid; None if it is gone."""
    try:
        with open("/proc/%d/stat" % pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    # The first thread of several may be gone before the others, and they have its files open.
    if fields[0] in "ZX" and int(fields[17]) <= 1:
        return None
    return int(fields[19])
