"""The words of the lab command."""

import json
import os
import subprocess
import sys

from . import common, images
from .common import LabError
from .instance import HOSTS, LINKS, Lab

USAGE = """usage: lab WORD ...            (environment: LAB=name of the instance, default main)

  build                           make all images and programs (cached)
  up [--hosts 1|2]                boot the hosts; returns when xl works on all of them
  down                            end everything of this instance
  status [--json]                 what runs
  exec [-t S] HOST CMD...         run a command in a dom0 (one word: a shell script; several
                                  words: exactly these arguments); -t: deadline, 0 for none
  push HOST FILE... DEST          copy files into a dom0
  install                         make install, then copy the result to all running hosts
  console HOST [-n N|-f|-i]       serial log of a host: last N lines, follow, interactive
  console HOST GUEST [-n N|-f|-i] the same for a guest
  guest HOST create NAME [--vcpus N] [--mem MB] [--type pvh|pv] [--disk MB] [--extra LINE]
                    [--no-wait]   make a guest and wait for its service; prints its address
  guest HOST destroy NAME | wait NAME | ip NAME | list
  kill HOST / start HOST          power failure / power on again (the disk keeps its contents)
  freeze HOST / thaw HOST         stop and continue a host's QEMU
  cut LINK / mend LINK            LINK: %s
  delay LINK MS                   hold what each host sends on LINK for MS ms; 0 ends it
  client CMD...                   run a command in the client's network namespace
  capture start LINK [FILE] / capture stop LINK      LINK: client, repl; a-client etc.: what that
                    host sends
""" % " ".join(LINKS)


class Usage(Exception):
    pass


def take_option(args, name, default=None):
    """Remove `name VALUE` from args and return VALUE."""
    if name not in args:
        return default
    i = args.index(name)
    if i + 1 >= len(args):
        raise Usage("%s needs a value" % name)
    value = args[i + 1]
    del args[i:i + 2]
    return value


def take_flag(args, name):
    if name in args:
        args.remove(name)
        return True
    return False


def number(text, what):
    try:
        value = int(text)
    except ValueError:
        raise Usage("%s: '%s' is not a number" % (what, text)) from None
    if value < 0:
        raise Usage("%s must not be negative" % what)
    return value


def need(args, count, what):
    if len(args) != count:
        raise Usage(what)
    return args


def host_name(text):
    if text not in HOSTS:
        raise Usage("no host '%s'; there are: %s" % (text, " ".join(HOSTS)))
    return text


def word_build(_lab, args):
    need(args, 0, "build takes no arguments")
    for name, path in sorted(images.build().items()):
        print("%-8s %s" % (name, path))


def word_up(lab, args):
    count = number(take_option(args, "--hosts", "2"), "--hosts")
    need(args, 0, "up takes --hosts only")
    if count not in (1, 2):
        raise Usage("--hosts: 1 or 2")
    lab.up(count)


def word_down(lab, args):
    need(args, 0, "down takes no arguments")
    lab.down()


def word_status(lab, args):
    as_json = take_flag(args, "--json")
    need(args, 0, "status takes --json only")
    state = lab.state()
    for host, info in state["hosts"].items():
        info["running"] = lab.is_running(host)
    state["lab"], state["namespace"] = lab.name, lab.netns
    if as_json:
        print(json.dumps(state, indent=1, sort_keys=True))
    else:
        print("lab %s, namespace %s, directory %s" % (lab.name, lab.netns, lab.dir))
        for host, info in sorted(state["hosts"].items()):
            print("host %s: %s, pid %s, ssh port %s" % (
                host, "running" if info["running"] else "off", info.get("pid"), info.get("port")))
        for name, guest in sorted(state["guests"].items()):
            print("guest %s: %s %s" % (name, guest["ip"], guest["mac"]))
        for link in state["cuts"]:
            print("link %s is cut" % link)
        for link, capture in sorted(state["captures"].items()):
            print("capture on %s: %s" % (link, capture["file"]))
    return 0 if state["hosts"] and all(h["running"] for h in state["hosts"].values()) else 1


def word_exec(lab, args):
    timeout_s = 600
    if args and args[0] == "-t":
        timeout_s = number(args[1] if len(args) > 1 else "", "-t")
        args = args[2:]
    if len(args) < 2:
        raise Usage("exec [-t S] HOST CMD...")
    host = host_name(args[0])
    lab.ensure_ssh(host)
    command = args[1] if len(args) == 2 else args[1:]
    code = subprocess.call(lab.ssh_argv(host, command, timeout_s=timeout_s))
    if code == 255 and not lab.is_running(host):
        raise lab.host_failure(host, "went down during the command")
    if code == 124:
        common.say("lab: deadline of %d s (exec -t)\n%s" %
                   (timeout_s, lab.host_failure(host, "still runs, but")))
    return code


def word_push(lab, args):
    if len(args) < 3:
        raise Usage("push HOST FILE... DEST")
    lab.push(host_name(args[0]), args[1:-1], args[-1])


def word_install(lab, args):
    need(args, 0, "install takes no arguments")
    lab.install()


def word_console(lab, args):
    lines = number(take_option(args, "-n", "60"), "-n")
    follow, interactive = take_flag(args, "-f"), take_flag(args, "-i")
    if not 1 <= len(args) <= 2:
        raise Usage("console HOST [GUEST] [-n N|-f|-i]")
    host = host_name(args[0])
    if len(args) == 1:
        if interactive:
            common.say("lab: leave with Ctrl-]")
            os.execvp("socat", ["socat", "-,raw,echo=0,escape=0x1d",
                                "UNIX-CONNECT:" + lab.socket_path(host + ".serial")])
        path = lab.console_log(host)
        if follow:
            os.execvp("tail", ["tail", "-n", str(lines), "-f", path])
        print(common.tail(path, lines))
        return 0
    guest = args[1]
    lab.ensure_ssh(host)
    if interactive:
        common.say("lab: leave with Ctrl-]")
        argv = lab.ssh_argv(host, ["xl", "console", guest], tty=True, timeout_s=0)
    else:
        argv = ["tail", "-n", str(lines)] + (["-f"] if follow else [])
        argv = lab.ssh_argv(host, argv + ["/var/log/xen/console/guest-%s.log" % guest],
                            timeout_s=0)
    os.execvp(argv[0], argv)


def word_guest(lab, args):
    if len(args) < 2:
        raise Usage("guest HOST create|destroy|wait|ip|list ...")
    host, verb, rest = host_name(args[0]), args[1], args[2:]
    if verb == "create":
        options = {
            "vcpus": number(take_option(rest, "--vcpus", "1"), "--vcpus"),
            "memory_mb": number(take_option(rest, "--mem", "128"), "--mem"),
            "kind": take_option(rest, "--type", "pvh"),
            "disk_mb": number(take_option(rest, "--disk", "0"), "--disk"),
            "wait": not take_flag(rest, "--no-wait"),
        }
        extra = []
        while "--extra" in rest:
            extra.append(take_option(rest, "--extra"))
        need(rest, 1, "guest HOST create NAME [options]")
        print(lab.guest_create(host, rest[0], extra=extra, **options))
    elif verb == "destroy":
        need(rest, 1, "guest HOST destroy NAME")
        lab.guest_destroy(host, rest[0])
    elif verb == "wait":
        need(rest, 1, "guest HOST wait NAME")
        lab.guest_wait(host, rest[0])
    elif verb == "ip":
        need(rest, 1, "guest HOST ip NAME")
        print(lab.guest_ip(rest[0]))
    elif verb == "list":
        print(lab.execute(host, "xl list").stdout, end="")
    else:
        raise Usage("guest: no such word '%s'" % verb)
    return 0


def host_word(method):
    def word(lab, args):
        need(args, 1, "%s HOST" % method)
        getattr(lab, method)(host_name(args[0]))
    return word


def word_cut(lab, args):
    lab.cut(need(args, 1, "cut LINK")[0])


def word_mend(lab, args):
    lab.mend(need(args, 1, "mend LINK")[0])


def word_delay(lab, args):
    need(args, 2, "delay LINK MS")
    lab.delay(args[0], number(args[1], "MS"))


def word_client(lab, args):
    if not args:
        raise Usage("client CMD...")
    lab.note_client(os.getpid())
    common.enter_netns(lab.netns)
    os.execvpe(args[0], args, lab.client_environment())


def word_capture(lab, args):
    if len(args) in (2, 3) and args[0] == "start":
        print(lab.capture_start(*args[1:]))
    elif len(args) == 2 and args[0] == "stop":
        path = lab.capture_stop(args[1])
        if path:
            print(path)
    else:
        raise Usage("capture start LINK [FILE] | capture stop LINK")


WORDS = {
    "build": word_build, "up": word_up, "down": word_down, "status": word_status,
    "exec": word_exec, "push": word_push, "install": word_install, "console": word_console,
    "guest": word_guest, "kill": host_word("kill"), "start": host_word("start"),
    "freeze": host_word("freeze"), "thaw": host_word("thaw"), "cut": word_cut, "mend": word_mend,
    "delay": word_delay, "client": word_client, "capture": word_capture,
}


def main(argv):
    if not argv or argv[0] in ("help", "--help", "-h"):
        print(USAGE, end="")
        return 0 if argv else 2
    if argv[0] not in WORDS:
        common.say("lab: no such word '%s'; see lab help" % argv[0])
        return 2
    try:
        return WORDS[argv[0]](Lab(), list(argv[1:])) or 0
    except Usage as e:
        common.say("lab: %s" % e)
        return 2
    except (LabError, OSError, subprocess.SubprocessError) as e:
        common.say("lab: %s" % e)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    finally:
        sys.stdout.flush()
