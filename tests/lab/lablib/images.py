"""Builds what the lab boots. Each layer is a directory named by the hash of its inputs below
build/lab/images; it is made under a temporary name and renamed when complete."""

import lzma
import os
import shutil
import subprocess
import tempfile
import time

from . import common
from .common import BIN, IMAGES, LAB_DIR, LabError, run, say

INITRD_MODULES = ["virtio_pci", "virtio_blk", "crc32c", "ext4"]
GUEST_MODULES = ["xen-netfront", "xen-blkfront", "8021q", "ext4", "crc32c_generic"]
DISK_BYTES = 3 << 30
WARNINGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wvla", "-Werror"]
APT_OPTS = ["-o", "APT::Sandbox::User=root", "-o", "DPkg::Lock::Timeout=300"]

# Bump a layer's number when the code below changes what it makes.
VERSION = {"boot": 2, "rootfs": 1, "guest": 1, "dom0": 1, "cluster": 1}


def lab_path(*parts):
    return os.path.join(LAB_DIR, *parts)


def layer(name, key, build):
    """The directory of a layer; build(dir) makes it if it is not there yet."""
    path = os.path.join(IMAGES, "%s-%s" % (name, key[:12]))
    if os.path.isdir(path):
        return path
    say("lab: building %s" % os.path.basename(path))
    start = time.monotonic()
    temp = tempfile.mkdtemp(prefix=".new-%s-" % name, dir=IMAGES)
    os.chmod(temp, 0o755)
    try:
        build(temp)
        os.rename(temp, path)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    say("lab: %s took %.1f s" % (os.path.basename(path), time.monotonic() - start))
    return path


def key_of(name, *inputs):
    return common.hash_strings(name, str(VERSION[name]), *inputs)


def kernel_package():
    output = run(["apt-cache", "depends", "linux-image-amd64"]).stdout
    for line in output.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "Depends:" and words[1].startswith("linux-image-"):
            return words[1]
    raise LabError("apt-cache knows no kernel package: run apt-get update first")


def unpack_kernel(bzimage):
    """The ELF kernel inside a bzImage: unpacking it under emulation would cost seconds a boot."""
    start = bzimage.find(b"\xfd7zXZ\0")
    if start < 0:
        raise LabError("the kernel image holds no xz stream")
    return lzma.LZMADecompressor().decompress(bzimage[start:])


def build_boot(out):
    """Kernel, its modules and the hypervisor, taken out of their packages."""
    package = kernel_package()
    version = package[len("linux-image-"):]
    with tempfile.TemporaryDirectory(dir=IMAGES) as temp:
        run(["apt-get"] + APT_OPTS + ["download", package, "xen-hypervisor-4.17-amd64"], cwd=temp)
        for name in os.listdir(temp):
            run(["dpkg-deb", "-x", name, "x"], cwd=temp)
        x = os.path.join(temp, "x")
        with open(os.path.join(x, "boot", "vmlinuz-" + version), "rb") as f:
            vmlinux = unpack_kernel(f.read())
        with open(os.path.join(out, "vmlinux"), "wb") as f:
            f.write(vmlinux)
        with open(os.path.join(out, "xen.elf"), "wb") as f:
            subprocess.run(["gunzip", "-c", os.path.join(x, "boot", "xen-4.17-amd64.gz")],
                           stdout=f, check=True)
        src = os.path.join(x, "lib", "modules", version)
        dst = os.path.join(out, "root", "usr", "lib", "modules", version)
        os.makedirs(dst)
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            shutil.copy(os.path.join(src, name), dst)
        for part in common.read_list(lab_path("dom0", "modules.txt")):
            source, target = os.path.join(src, "kernel", part), os.path.join(dst, "kernel", part)
            if os.path.isdir(source):
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif os.path.exists(source):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copy(source, target)
            else:
                raise LabError("the kernel package has no module %s" % part)
        # modprobe on the build machine looks below lib/, the image's root below usr/lib/.
        os.symlink("usr/lib", os.path.join(out, "root", "lib"))
        run(["depmod", "-b", os.path.join(out, "root"), version])
    with open(os.path.join(out, "version"), "w") as f:
        f.write(version + "\n")


def debian_sources():
    """The build machine's own package sources for the lab's Debian release."""
    for path in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"):
        if os.path.exists(path):
            return path
    raise LabError("no apt sources found on this machine")


EXCLUDED = ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*",
            "/usr/share/gcc/*"]


def build_rootfs(out, lists):
    """A minimal Debian with the Xen tools, as a tar file."""
    packages = [package for path in lists for package in common.read_list(path)]
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", "--include=" + ",".join(packages)]
    argv += ["--dpkgopt=path-exclude=" + pattern for pattern in EXCLUDED]
    argv += ["bookworm", os.path.join(out, "root.tar"), debian_sources()]
    log = os.path.join(common.BUILD, "mmdebstrap.log")
    with open(log, "w") as f:
        if subprocess.run(argv, stdout=f, stderr=f, stdin=subprocess.DEVNULL).returncode != 0:
            raise LabError("mmdebstrap failed:\n" + common.tail(log))


def build_cluster(out, rootfs, packages):
    """The files of packages that the root file system lacks, and of those they need, as a tar file.
    No script of theirs runs: what those would have done is with whoever uses the files."""
    with tempfile.TemporaryDirectory(dir=IMAGES) as temp:
        status = os.path.join("var", "lib", "dpkg", "status")
        run(["tar", "-xf", os.path.join(rootfs, "root.tar"), "-C", temp, "./" + status])
        archives = os.path.join(temp, "archives")
        os.makedirs(os.path.join(archives, "partial"))
        run(["apt-get"] + APT_OPTS +
            ["-o", "Dir::State::status=" + os.path.join(temp, status),
             "-o", "Dir::Cache::archives=" + archives, "-y", "--no-install-recommends",
             "--no-upgrade", "--download-only", "install"] + packages)
        # Only for the shell functions that agents source: none of what it depends on is run.
        run(["apt-get"] + APT_OPTS + ["download", "resource-agents"], cwd=archives)
        root = os.path.join(temp, "root")
        for name in sorted(os.listdir(archives)):
            if name.endswith(".deb"):
                run(["dpkg-deb", "-x", os.path.join(archives, name), root])
        run(["tar", "-C", root, "-czf", os.path.join(out, "cluster.tar.gz")] +
            ["--exclude=.%s" % pattern for pattern in EXCLUDED] + ["."])


def module_paths(boot, names):
    """Files to load, in order, for the named modules (without repeats)."""
    with open(os.path.join(boot, "version")) as f:
        version = f.read().strip()
    paths = []
    for name in names:
        output = run(["modprobe", "-d", os.path.join(boot, "root"), "-S", version,
                      "--show-depends", name]).stdout
        for line in output.splitlines():
            words = line.split()
            if words[0] == "insmod" and words[1] not in paths:
                paths.append(words[1])
    return paths


def write_initrd(path, boot, init, modules, programs=()):
    """A compressed initramfs: busybox, an init script, modules in loading order, programs."""
    with tempfile.TemporaryDirectory(dir=IMAGES) as temp:
        for name in ("bin", "sbin", "dev", "proc", "sys", "run", "root", "tmp", "etc", "modules"):
            os.mkdir(os.path.join(temp, name))
        shutil.copy("/bin/busybox", os.path.join(temp, "bin", "busybox"))
        shutil.copy(init, os.path.join(temp, "init"))
        os.chmod(os.path.join(temp, "init"), 0o755)
        with open(os.path.join(temp, "modules.order"), "w") as order:
            for module in module_paths(boot, modules):
                shutil.copy(module, os.path.join(temp, "modules"))
                order.write(os.path.basename(module) + "\n")
        for program in programs:
            shutil.copy(program, os.path.join(temp, "bin"))
        command = "find . | LC_ALL=C sort | cpio -o -H newc --quiet | gzip -n -6"
        with open(path, "wb") as f:
            subprocess.run(["sh", "-c", command], cwd=temp, stdout=f, check=True)


def compile_c(source, target, extra=(), libs=()):
    argv = ["gcc"] + WARNINGS + list(extra) + [source, "-o", target] + list(libs)
    run(argv)


def check_with_clang(source):
    """Our C programs have to be free of warnings with both compilers."""
    if shutil.which("clang"):
        run(["clang"] + WARNINGS + ["-fsyntax-only", source])


def build_guest(out, boot):
    sources = [lab_path("guest", name) for name in
               ("labservice.c", "labdb.c", "labdisk.c", "labwork.c")]
    for source in sources:
        check_with_clang(source)
    program = os.path.join(out, "labservice")
    compile_c(sources[0], program, ["-static", "-s"],
              sources[1:] + ["-pthread", "-lsqlite3", "-lm", "-ldl"])
    write_initrd(os.path.join(out, "initrd.gz"), boot, lab_path("guest", "init"), GUEST_MODULES,
                 [program])


def build_dom0(out, boot, rootfs, guest):
    root = os.path.join(out, "root")
    os.mkdir(root)
    run(["tar", "-xf", os.path.join(rootfs, "root.tar"), "-C", root])
    run(["cp", "-a", os.path.join(boot, "root", "usr", "lib", "modules"),
         os.path.join(root, "usr", "lib")])
    # The overlay may come from a checkout with any umask and owner.
    run(["cp", "-r", "--no-preserve=ownership", lab_path("dom0", "overlay") + "/.", root])
    run(["chmod", "-R", "u+rwX,go+rX,go-w", os.path.join(root, "etc"), os.path.join(root, "lab")])
    for name in ("sbin/init", "etc/systemd/network/99-default.link"):
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
    os.symlink("/bin/busybox", os.path.join(root, "sbin/init"))
    # Otherwise udev gives each bridge and tap an address made from the machine id.
    os.symlink("/dev/null", os.path.join(root, "etc/systemd/network/99-default.link"))
    local_bin = os.path.join(root, "usr", "local", "bin")
    os.makedirs(local_bin, exist_ok=True)
    for name in ("sampler", "waker"):
        shutil.copy(os.path.join(BIN, name), local_bin)
    run(["chmod", "-R", "u+rwX,go+rX,go-w", local_bin])
    guest_dir = os.path.join(root, "lab", "guest")
    os.makedirs(guest_dir)
    shutil.copy(os.path.join(boot, "vmlinux"), guest_dir)
    shutil.copy(os.path.join(guest, "initrd.gz"), guest_dir)

    key = os.path.join(out, "ssh_key")
    host_key = os.path.join(root, "etc/ssh/ssh_host_ed25519_key")
    for path in (key, host_key):
        for old in (path, path + ".pub"):
            if os.path.exists(old):
                os.unlink(old)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", path])
    for old in ("rsa", "ecdsa"):
        for suffix in ("", ".pub"):
            path = os.path.join(root, "etc/ssh/ssh_host_%s_key%s" % (old, suffix))
            if os.path.exists(path):
                os.unlink(path)
    ssh_dir = os.path.join(root, "root", ".ssh")
    os.makedirs(ssh_dir, mode=0o700, exist_ok=True)
    shutil.copy(key, os.path.join(ssh_dir, "id_ed25519"))
    os.chmod(os.path.join(ssh_dir, "id_ed25519"), 0o600)
    shutil.copy(key + ".pub", os.path.join(ssh_dir, "authorized_keys"))

    image = os.path.join(out, "dom0.img")
    run(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-L", "dom0", "-O", "^metadata_csum",
         "-E", "lazy_itable_init=1,root_owner=0:0", "-d", root, image, str(DISK_BYTES // 1024)])
    shutil.rmtree(root)
    write_initrd(os.path.join(out, "initrd.gz"), boot, lab_path("dom0", "initrd-init"),
                 INITRD_MODULES)


def build_programs():
    """Programs of the build machine (the client) and of dom0 (the sampler, the waker)."""
    os.makedirs(BIN, exist_ok=True)
    programs = [("client/labclient.c", ["-pthread"]), ("client/vlanport.c", []),
                ("tools/sampler.c", ["-lxenctrl"]),
                ("tools/waker.c", ["-lxenctrl", "-lxenstore"])]
    for relative, libs in programs:
        source = lab_path(relative)
        if not os.path.exists(source):
            continue
        target = os.path.join(BIN, os.path.basename(source)[:-2])
        stamp = target + ".hash"
        wanted = common.hash_strings(common.hash_files(source, lab_path("guest", "labproto.h")),
                                     *WARNINGS, *libs)
        try:
            with open(stamp) as f:
                fresh = f.read() == wanted and os.path.exists(target)
        except OSError:
            fresh = False
        if fresh:
            continue
        check_with_clang(source)
        compile_c(source, target + ".new", [], libs)
        os.rename(target + ".new", target)
        with open(stamp, "w") as f:
            f.write(wanted)


def remove_old_layers(keep):
    """Delete layers that no instance uses, an hour after they were made, where there are newer ones
    of their kind."""
    used = ""
    kinds = {os.path.basename(path).rpartition("-")[0] for path in keep}
    for base, _, files in os.walk(common.RUN_ROOT):
        if "state.json" in files:
            with open(os.path.join(base, "state.json")) as f:
                used += f.read()
    for name in os.listdir(IMAGES):
        path = os.path.join(IMAGES, name)
        if not os.path.isdir(path) or path in keep or name in used or \
                name.rpartition("-")[0] not in kinds:
            continue
        if time.time() - os.stat(path).st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)


def cluster():
    """Corosync and Pacemaker for the dom0 of `build`: the path of a tar file, made when it is first
    asked for."""
    packages = lab_path("dom0", "packages-cluster.txt")
    rootfs_key = key_of("rootfs", common.hash_files(lab_path("dom0", "packages.txt")))
    os.makedirs(IMAGES, exist_ok=True)
    with common.FileLock(os.path.join(IMAGES, ".lock")):
        rootfs = layer("rootfs", rootfs_key,
                       lambda out: build_rootfs(out, [lab_path("dom0", "packages.txt")]))
        path = layer("cluster", key_of("cluster", rootfs, common.hash_files(packages)),
                     lambda out: build_cluster(out, rootfs, common.read_list(packages)))
        remove_old_layers([path])
    return os.path.join(path, "cluster.tar.gz")


def build():
    """Build what is missing; return the paths of what a host boots. The environment variable
    LAB_FLAVOUR names a list of more packages for dom0."""
    flavour = os.environ.get("LAB_FLAVOUR")
    lists = [lab_path("dom0", "packages.txt")]
    suffix = ""
    if flavour:
        lists.append(lab_path("dom0", "packages-%s.txt" % flavour))
        suffix = "." + flavour
    os.makedirs(IMAGES, exist_ok=True)
    with common.FileLock(os.path.join(IMAGES, ".lock")):
        build_programs()
        modules_list = common.hash_files(lab_path("dom0", "modules.txt"))
        boot = layer("boot", key_of("boot", modules_list), build_boot)
        rootfs = layer("rootfs" + suffix, key_of("rootfs", common.hash_files(*lists)),
                       lambda out: build_rootfs(out, lists))
        guest_key = key_of("guest", boot, common.hash_files(lab_path("guest")),
                           common.hash_files("/bin/busybox"))
        guest = layer("guest", guest_key, lambda out: build_guest(out, boot))
        dom0_key = key_of("dom0", boot, rootfs, guest,
                          common.hash_files(lab_path("dom0", "overlay")),
                          common.hash_files(lab_path("dom0", "initrd-init")),
                          common.hash_files(lab_path("tools", "sampler.c"),
                                            lab_path("tools", "waker.c")))
        dom0 = layer("dom0" + suffix, dom0_key, lambda out: build_dom0(out, boot, rootfs, guest))
        remove_old_layers([boot, rootfs, guest, dom0])
    return {
        "xen": os.path.join(boot, "xen.elf"),
        "vmlinux": os.path.join(boot, "vmlinux"),
        "guest": guest,
        "disk": os.path.join(dom0, "dom0.img"),
        "initrd": os.path.join(dom0, "initrd.gz"),
        "ssh_key": os.path.join(dom0, "ssh_key"),
    }
