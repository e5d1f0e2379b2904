/* privdrop.c: see privdrop.h. */
#define _GNU_SOURCE 1

#include "tools/remus/privdrop.h"

#include <cap-ng.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <sched.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PRIVDROP_NOBODY 65534

/* Allowed to every daemon, whatever the arguments. */
static const int privdrop_common[] = {
    SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev),
    SCMP_SYS(recvmsg), SCMP_SYS(sendmsg), SCMP_SYS(recvfrom), SCMP_SYS(sendto),
    SCMP_SYS(recvmmsg), SCMP_SYS(sendmmsg), SCMP_SYS(shutdown), SCMP_SYS(getsockopt),
    SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_ctl),
    SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(timerfd_settime),
    SCMP_SYS(clock_gettime), SCMP_SYS(clock_nanosleep), SCMP_SYS(gettimeofday),
    SCMP_SYS(close), SCMP_SYS(fstat), SCMP_SYS(lseek), SCMP_SYS(pread64),
    SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(futex),
    SCMP_SYS(getpid), SCMP_SYS(gettid), SCMP_SYS(tgkill), SCMP_SYS(getrandom),
    SCMP_SYS(sched_yield), SCMP_SYS(restart_syscall), SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigaction), SCMP_SYS(exit), SCMP_SYS(exit_group),
};

static int privdrop_fail(int rc, const char *what, char *error, size_t error_bytes)
{
    snprintf(error, error_bytes, "dropping privileges: %s: %s", what, strerror(-rc));
    return rc;
}

/* /run serves as mount point only: what it holds is covered by an empty file system, which becomes
 * the root; the old root is let go.  No directory has to exist for us, none is left behind. */
static int privdrop_root(void)
{
    if (unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", "/run", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,mode=555") < 0 ||
        mount(NULL, "/run", NULL,
              MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0 ||
        chdir("/run") < 0 ||
        syscall(SYS_pivot_root, ".", ".") < 0 ||
        umount2(".", MNT_DETACH) < 0 ||
        chdir("/") < 0) {
        return -errno;
    }
    return 0;
}

static int privdrop_user(const struct privdrop_options *options, uid_t uid, gid_t gid)
{
    size_t i;

    capng_clear(CAPNG_SELECT_BOTH);
    for (i = 0; i < options->capability_count; i++) {
        if (capng_update(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED,
                         (unsigned int)options->capabilities[i])) {
            return -EINVAL;
        }
    }
    return capng_change_id((int)uid, (int)gid, CAPNG_DROP_SUPP_GRP | CAPNG_CLEAR_BOUNDING) ?
           -EPERM : 0;
}

static int privdrop_seccomp(const struct privdrop_options *options)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    size_t i;
    int rc = 0;

    if (!ctx) {
        return -ENOMEM;
    }
    for (i = 0; !rc && i < sizeof(privdrop_common) / sizeof(privdrop_common[0]); i++) {
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, privdrop_common[i], 0);
    }
    /* Memory of any kind but executable. */
    if (!rc) {
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                              SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    }
    if (!rc) {
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                              SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    }
    for (i = 0; !rc && i < options->syscall_count; i++) {
        const struct privdrop_syscall *call = &options->syscalls[i];

        if (call->arg < 0) {
            rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, call->number, 0);
        } else {
            const struct scmp_arg_cmp match = {
                .arg = (unsigned int)call->arg, .op = SCMP_CMP_EQ, .datum_a = call->value,
            };

            rc = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, call->number, 1, &match);
        }
    }
    if (!rc) {
        rc = seccomp_load(ctx);
    }
    seccomp_release(ctx);
    return rc;
}

int remus_privdrop(const struct privdrop_options *options, char *error, size_t error_bytes)
{
    const char *name = options->user ? options->user : "nobody";
    uid_t uid = PRIVDROP_NOBODY;
    gid_t gid = PRIVDROP_NOBODY;
    const struct passwd *pw;
    int rc;

    pw = getpwnam(name);       /* while there is still a file to look in */
    if (pw) {
        uid = pw->pw_uid;
        gid = pw->pw_gid;
    } else if (options->user) {
        return privdrop_fail(-ENOENT, name, error, error_bytes);
    }
    rc = privdrop_root();
    if (rc) {
        return privdrop_fail(rc, "empty root", error, error_bytes);
    }
    rc = privdrop_user(options, uid, gid);
    if (rc) {
        return privdrop_fail(rc, "user and capabilities", error, error_bytes);
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) {
        return privdrop_fail(-errno, "prctl", error, error_bytes);
    }
    /* A change of user has undone one that was set before. */
    if (options->death_signal && prctl(PR_SET_PDEATHSIG, options->death_signal, 0, 0, 0) < 0) {
        return privdrop_fail(-errno, "signal for the parent's death", error, error_bytes);
    }
    rc = privdrop_seccomp(options);
    if (rc) {
        return privdrop_fail(rc, "system call filter", error, error_bytes);
    }
    return 0;
}
