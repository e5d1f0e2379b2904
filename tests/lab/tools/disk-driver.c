/*
 * disk-driver.c: plays the coordinator for colo-blkd, in a dom0 of the lab.
 *
 *   disk-driver DOMID PATH-OF-COLO-BLKD
 *
 * Obeys words on stdin, one a line; answers each with a line "WORD ok ..." or "WORD failed: ...":
 *
 *   take        the guest's disks from blkback, under the running guest, to a new colo-blkd
 *   rest N      N times: guest paused, colo-blkd at rest, attached again, guest goes on
 *   stats       counters of all disks, summed
 *   kill        SIGKILL to colo-blkd
 *   revive      another colo-blkd in the place of the one that was killed
 *   give        the disks back to blkback
 *   end         as give, if they were taken; then exit
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tools/libxl/remus_disk.h"
#include "tools/remus/ctlio.h"

#define ANSWER_MS 60000

struct driver {
    uint32_t domid;
    const char *program;
    xc_interface *xch;
    xengnttab_handle *xgt;
    struct xs_handle *xs;
    unsigned int count;
    struct remus_disk disk[REMUS_DISKS_MAX];
    bool taken;
    int ctl, keep;
    pid_t pid;
    struct ctl_in in;
    char error[REMUS_DISK_ERROR_BYTES];
};

static uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static int failed(struct driver *d, const char *what)
{
    snprintf(d->error, sizeof(d->error), "%s: %s", what, strerror(errno));
    return -1;
}

/* The next message is of this type, or it is the answer to something gone wrong. */
static int expect(struct driver *d, uint32_t type)
{
    struct pollfd p = { .fd = d->ctl, .events = POLLIN };
    int rc;

    if (poll(&p, 1, ANSWER_MS) != 1) {
        snprintf(d->error, sizeof(d->error), "no %s", ctl_type_name(type));
        return -1;
    }
    rc = ctl_recv(d->ctl, &d->in);
    if (rc || d->in.msg.type != type) {
        snprintf(d->error, sizeof(d->error), "%s instead of %s: %.150s",
                 rc ? strerror(-rc) : ctl_type_name(d->in.msg.type), ctl_type_name(type),
                 rc ? "" : d->in.text);
        return -1;
    }
    return 0;
}

static int start_daemon(struct driver *d)
{
    char domid[16];
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        return failed(d, "socketpair");
    }
    snprintf(domid, sizeof(domid), "%u", d->domid);
    d->pid = fork();
    if (!d->pid) {
        dup2(pair[1], REMUS_CTL_FD);
        if (pair[1] == REMUS_CTL_FD) {
            fcntl(REMUS_CTL_FD, F_SETFD, 0);
        }
        dup2(d->keep, REMUS_BLK_KEEP_FD);
        if (d->keep == REMUS_BLK_KEEP_FD) {
            fcntl(REMUS_BLK_KEEP_FD, F_SETFD, 0);
        }
        execl(d->program, "colo-blkd", "--domid", domid, NULL);
        _exit(127);
    }
    close(pair[1]);
    d->ctl = pair[0];
    return d->pid < 0 ? failed(d, "fork") : expect(d, CTL_READY);
}

static int attach(struct driver *d)
{
    struct ctl_blk_attach rings[REMUS_RINGS_MAX];
    struct ctl_msg msg = { .type = CTL_BLK_ATTACH };
    uint32_t i, k;

    for (i = 0; i < d->count; i++) {
        for (k = 0; k < d->disk[i].rings && msg.count < REMUS_RINGS_MAX; k++) {
            rings[msg.count++] = d->disk[i].ring[k];
        }
    }
    if (ctl_send_wait(d->ctl, &msg, rings, NULL, NULL, 0, 1000)) {
        return failed(d, "ATTACH");
    }
    return expect(d, CTL_ATTACHED) || ctl_say(d->ctl, CTL_GO, 0, 0, NULL);
}

static int describe_disks(struct driver *d)
{
    uint32_t i;

    for (i = 0; i < d->count; i++) {
        const struct ctl_msg msg = { .type = CTL_DISK, .count = 1 };
        int fd = remus_disk_open(&d->disk[i], d->error), rc;

        if (fd < 0) {
            return -1;
        }
        rc = ctl_send_wait(d->ctl, &msg, &d->disk[i].info, NULL, &fd, 1, 1000);
        close(fd);
        if (rc || expect(d, CTL_READY)) {
            return -1;
        }
    }
    return 0;
}

static int take(struct driver *d, char *said, size_t size)
{
    uint64_t start;
    unsigned int i;
    int rc = 0;

    d->count = REMUS_DISKS_MAX;
    if (d->keep >= 0) {
        close(d->keep);
    }
    d->keep = memfd_create("colo-blkd", MFD_CLOEXEC);
    if (remus_disks_read(d->xs, d->domid, d->disk, &d->count, d->error) || start_daemon(d) ||
        describe_disks(d)) {
        return -1;
    }
    start = now_us();
    xc_domain_pause(d->xch, d->domid);
    for (i = 0; !rc && i < d->count; i++) {
        rc = remus_disk_take(d->xch, d->xgt, &d->disk[i], 10000, d->error);
    }
    if (!rc) {
        rc = attach(d);
        d->taken = true;
    }
    xc_domain_unpause(d->xch, d->domid);
    snprintf(said, size, "disks %u paused_us %" PRIu64, d->count, now_us() - start);
    return rc;
}

static int rest(struct driver *d, unsigned int times, char *said, size_t size)
{
    uint64_t sum = 0, most = 0;
    unsigned int i;
    int rc = 0;

    for (i = 0; !rc && i < times; i++) {
        uint64_t start, took;

        xc_domain_pause(d->xch, d->domid);
        start = now_us();
        rc = ctl_say(d->ctl, CTL_DETACH, 0, i, NULL) || expect(d, CTL_DETACHED) || attach(d);
        took = now_us() - start;
        xc_domain_unpause(d->xch, d->domid);
        sum += took;
        most = took > most ? took : most;
        usleep(20000);
    }
    snprintf(said, size, "mean_us %" PRIu64 " most_us %" PRIu64, sum / (times ? times : 1), most);
    return rc;
}

static int stats(struct driver *d, char *said, size_t size)
{
    struct ctl_blk_stats s = { 0 };
    uint32_t i;

    if (ctl_say(d->ctl, CTL_STATS_GET, 0, 0, NULL) || expect(d, CTL_BLK_STATS)) {
        return -1;
    }
    for (i = 0; i < d->in.msg.count; i++) {
        s.reads += d->in.structs.disks[i].reads;
        s.writes += d->in.structs.disks[i].writes;
        s.flushes += d->in.structs.disks[i].flushes;
        s.discards += d->in.structs.disks[i].discards;
        s.bad += d->in.structs.disks[i].bad;
        s.errors += d->in.structs.disks[i].errors;
        s.busy += d->in.structs.disks[i].busy;
        s.delay_us_sum += d->in.structs.disks[i].delay_us_sum;
    }
    snprintf(said, size, "reads %" PRIu64 " writes %" PRIu64 " flushes %" PRIu64 " discards %"
             PRIu64 " bad %" PRIu64 " errors %" PRIu64 " busy %" PRIu64 " delay_us_sum %" PRIu64,
             s.reads, s.writes, s.flushes, s.discards, s.bad, s.errors, s.busy, s.delay_us_sum);
    return 0;
}

static void reap(struct driver *d, int number)
{
    if (number) {
        kill(d->pid, number);
    }
    waitpid(d->pid, NULL, 0);
    close(d->ctl);
    d->pid = 0;
}

static int give(struct driver *d, char *said, size_t size)
{
    uint64_t start = now_us();
    unsigned int i;
    int rc;

    if (ctl_say(d->ctl, CTL_DETACH, 0, 0, NULL) || expect(d, CTL_DETACHED) ||
        ctl_say(d->ctl, CTL_QUIT, 0, 0, NULL)) {
        return -1;
    }
    reap(d, 0);
    for (i = 0, rc = 0; !rc && i < d->count; i++) {
        rc = remus_disk_give(d->xch, d->xs, &d->disk[i], 10000, d->error);
    }
    d->taken = false;
    snprintf(said, size, "away_us %" PRIu64, now_us() - start);
    return rc;
}

static int revive(struct driver *d)
{
    return start_daemon(d) || describe_disks(d) || attach(d);
}

int main(int argc, char **argv)
{
    struct driver d = { .ctl = -1, .keep = -1 };
    char line[64], said[256];
    unsigned int times;
    int rc;

    if (argc != 3) {
        fprintf(stderr, "Usage: disk-driver DOMID PATH-OF-COLO-BLKD\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    d.domid = (uint32_t)strtoul(argv[1], NULL, 10);
    d.program = argv[2];
    d.xch = xc_interface_open(NULL, NULL, 0);
    d.xgt = xengnttab_open(NULL, 0);
    d.xs = xs_open(0);
    if (!d.xch || !d.xgt || !d.xs) {
        perror("disk-driver");
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("ready\n");
    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = 0;
        said[0] = d.error[0] = 0;
        rc = 0;
        if (!strcmp(line, "take")) {
            rc = take(&d, said, sizeof(said));
        } else if (sscanf(line, "rest %u", &times) == 1) {
            rc = rest(&d, times, said, sizeof(said));
        } else if (!strcmp(line, "stats")) {
            rc = stats(&d, said, sizeof(said));
        } else if (!strcmp(line, "kill")) {
            reap(&d, SIGKILL);
        } else if (!strcmp(line, "revive")) {
            rc = revive(&d);
        } else if (!strcmp(line, "give")) {
            rc = give(&d, said, sizeof(said));
        } else if (!strcmp(line, "end")) {
            break;
        } else {
            rc = -1;
        }
        printf("%s %s%s\n", line, rc ? "failed: " : "ok ", rc ? d.error : said);
    }
    if (d.taken) {
        give(&d, said, sizeof(said));
    }
    return 0;
}
