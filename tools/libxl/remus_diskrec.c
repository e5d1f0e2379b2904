/* remus_diskrec.c: see remus_diskrec.h. */
#include "tools/libxl/remus_diskrec.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <xxhash.h>

#define PATH_BYTES   512u
#define BOOT_BYTES   40u
#define UNTIL_S      (3 * REMUS_DISKREC_RENEW_S)
#define SECOND_NS    1000000000ll
#define VERSION      1u
#define TICKS_MAX    100u            /* ms, should the clock be set back */

struct facts {
    bool device;
    uint64_t size;
    /* a file */
    uint64_t fsid, inode;
    int64_t born_ns, ctime_ns;
    /* a block device */
    uint32_t major, minor;
    uint64_t sequence;              /* the kernel's number of it: another one has its minor, too */
    uint64_t written;               /* sectors, since it is there */
};

struct record {
    uint8_t relation[BLKLOG_RELATION_BYTES];
    bool closed;
    struct facts facts;
    int64_t until_ns;               /* open: of a file's ctime */
    char boot[BOOT_BYTES];
};

/* ---- What is seen of a disk ----------------------------------------------------------------- */

static int64_t to_ns(int64_t seconds, uint32_t ns)
{
    return seconds * SECOND_NS + ns;
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return to_ns(t.tv_sec, (uint32_t)t.tv_nsec);
}

/* This boot's number; empty if it cannot be read. */
static void read_boot(char boot[BOOT_BYTES])
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

    boot[0] = 0;
    if (f && fgets(boot, (int)BOOT_BYTES, f)) {
        boot[strcspn(boot, "\n")] = 0;
    }
    if (f) {
        fclose(f);
    }
}

/* What the kernel has counted: sectors written and discarded. */
static int read_written(struct facts *f)
{
    uint64_t n[14] = { 0 };
    char path[64];
    FILE *file;
    int i;

    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/stat", f->major, f->minor);
    file = fopen(path, "re");
    if (!file) {
        return -errno;
    }
    for (i = 0; i < 14 && fscanf(file, "%" SCNu64, &n[i]) == 1; i++) {
    }
    fclose(file);
    f->written = n[6] + n[13];
    return i > 6 ? 0 : -EIO;
}

static int read_facts(int fd, struct facts *f)
{
    struct statx st;
    struct statfs fs;

    memset(f, 0, sizeof(*f));
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &st)) {
        return -errno;
    }
    f->device = S_ISBLK(st.stx_mode);
    if (f->device) {
        f->major = st.stx_rdev_major;
        f->minor = st.stx_rdev_minor;
        if (ioctl(fd, BLKGETDISKSEQ, &f->sequence)) {
            f->sequence = 0;        /* Linux before 5.15 has none */
        }
        return ioctl(fd, BLKGETSIZE64, &f->size) ? -errno : read_written(f);
    }
    if (fstatfs(fd, &fs)) {
        return -errno;
    }
    memcpy(&f->fsid, &fs.f_fsid, sizeof(f->fsid));
    f->size = st.stx_size;
    f->inode = st.stx_ino;
    f->born_ns = st.stx_mask & STATX_BTIME ? to_ns(st.stx_btime.tv_sec, st.stx_btime.tv_nsec) : 0;
    f->ctime_ns = to_ns(st.stx_ctime.tv_sec, st.stx_ctime.tv_nsec);
    return 0;
}

/* ---- The file ------------------------------------------------------------------------------- */

static void record_path(char out[PATH_BYTES], const char *directory, const char *path)
{
    snprintf(out, PATH_BYTES, "%.400s/disk-%016" PRIx64, directory,
             (uint64_t)XXH64(path, strlen(path), 0));
}

static int sync_directory(const char *directory)
{
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || fsync(fd) ? -errno : 0;

    if (fd >= 0) {
        close(fd);
    }
    return rc;
}

static int write_record(const char *directory, const char *path, const struct record *r)
{
    char name[PATH_BYTES], new_name[PATH_BYTES + 8];
    const struct facts *f = &r->facts;
    FILE *file;
    uint32_t i;
    int rc = 0;

    record_path(name, directory, path);
    snprintf(new_name, sizeof(new_name), "%s.new", name);
    file = fopen(new_name, "we");
    if (!file) {
        return -errno;
    }
    fprintf(file, "version %u\npath %s\nstate %s\nrelation ", VERSION, path,
            r->closed ? "closed" : "open");
    for (i = 0; i < BLKLOG_RELATION_BYTES; i++) {
        fprintf(file, "%02x", r->relation[i]);
    }
    fprintf(file, "\nboot %s\nsize %" PRIu64 "\n", r->boot, f->size);
    if (f->device) {
        fprintf(file, "device %u:%u:%" PRIu64 "\nwritten %" PRIu64 "\n", f->major, f->minor,
                f->sequence, f->written);
    } else {
        fprintf(file, "file %" PRIx64 ":%" PRIu64 ":%" PRId64 "\nctime %" PRId64 "\nuntil %" PRId64
                "\n", f->fsid, f->inode, f->born_ns, f->ctime_ns, r->until_ns);
    }
    /* The last line is what shows that none is missing. */
    fprintf(file, "end\n");
    if (fflush(file) || fsync(fileno(file))) {
        rc = -errno;
    }
    if (fclose(file) && !rc) {
        rc = -errno;
    }
    if (!rc && rename(new_name, name)) {
        rc = -errno;
    }
    return rc ? rc : sync_directory(directory);
}

static bool parse_relation(const char *text, uint8_t relation[BLKLOG_RELATION_BYTES])
{
    unsigned int i, byte;

    for (i = 0; i < BLKLOG_RELATION_BYTES; i++) {
        if (sscanf(text + 2 * i, "%2x", &byte) != 1) {
            return false;
        }
        relation[i] = (uint8_t)byte;
    }
    return true;
}

/* One line, "WORD VALUE".  false: it makes no sense. */
static bool parse_line(char *line, const char *path, struct record *r, bool *whole)
{
    char *value = strchr(line, ' ');
    struct facts *f = &r->facts;

    *whole = !strcmp(line, "end");
    if (*whole) {
        return true;
    }
    if (!value) {
        return false;
    }
    *value++ = 0;
    if (!strcmp(line, "version")) {
        return strtoul(value, NULL, 10) == VERSION;
    }
    if (!strcmp(line, "path")) {
        return !strcmp(value, path);
    }
    if (!strcmp(line, "state")) {
        r->closed = !strcmp(value, "closed");
        return r->closed || !strcmp(value, "open");
    }
    if (!strcmp(line, "relation")) {
        return strlen(value) == 2 * BLKLOG_RELATION_BYTES && parse_relation(value, r->relation);
    }
    if (!strcmp(line, "boot")) {
        snprintf(r->boot, sizeof(r->boot), "%.39s", value);
        return true;
    }
    if (!strcmp(line, "size")) {
        return sscanf(value, "%" SCNu64, &f->size) == 1;
    }
    if (!strcmp(line, "device")) {
        f->device = true;
        return sscanf(value, "%u:%u:%" SCNu64, &f->major, &f->minor, &f->sequence) == 3;
    }
    if (!strcmp(line, "written")) {
        return sscanf(value, "%" SCNu64, &f->written) == 1;
    }
    if (!strcmp(line, "file")) {
        return sscanf(value, "%" SCNx64 ":%" SCNu64 ":%" SCNd64, &f->fsid, &f->inode,
                      &f->born_ns) == 3;
    }
    if (!strcmp(line, "ctime")) {
        return sscanf(value, "%" SCNd64, &f->ctime_ns) == 1;
    }
    return !strcmp(line, "until") && sscanf(value, "%" SCNd64, &r->until_ns) == 1;
}

/* -EBADMSG: it is damaged, or of another path. */
static int read_record(const char *directory, const char *path, struct record *r)
{
    char name[PATH_BYTES], line[PATH_BYTES + 16];
    bool whole = false, good = true;
    FILE *file;

    memset(r, 0, sizeof(*r));
    record_path(name, directory, path);
    file = fopen(name, "re");
    if (!file) {
        return -errno;
    }
    while (good && !whole && fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = 0;
        good = parse_line(line, path, r, &whole);
    }
    fclose(file);
    return good && whole ? 0 : -EBADMSG;
}

/* ---- Proof ---------------------------------------------------------------------------------- */

static bool is_own(const char *path)
{
    FILE *file = fopen(REMUS_DISKREC_OWN, "re");
    char line[PATH_BYTES];
    bool own = false;

    while (file && !own && fgets(line, sizeof(line), file)) {
        line[strcspn(line, " \t\r\n#")] = 0;
        own = line[0] && !fnmatch(line, path, FNM_PATHNAME);
    }
    if (file) {
        fclose(file);
    }
    return own;
}

static const char *doubt_file(const struct record *r, const struct facts *now, const char *boot)
{
    const int64_t boot_ns = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_BOOTTIME);
    const struct facts *f = &r->facts;

    if (f->fsid != now->fsid || f->inode != now->inode || f->born_ns != now->born_ns) {
        return "it is another file";
    }
    if (r->closed) {
        return f->ctime_ns == now->ctime_ns ? NULL : "it was changed since";
    }
    if (!boot[0] || !strcmp(boot, r->boot)) {
        return "the process that kept it up to date was killed";
    }
    return now->ctime_ns >= f->ctime_ns && now->ctime_ns <= r->until_ns &&
           now->ctime_ns < boot_ns ? NULL : "it was changed since this host lost it";
}

static const char *doubt_device(const struct record *r, const struct facts *now, const char *boot,
                                const char *path)
{
    const struct facts *f = &r->facts;

    if (is_own(path)) {
        return NULL;
    }
    if (!r->closed) {
        return "whoever wrote to it did not come to an end";
    }
    if (!boot[0] || strcmp(boot, r->boot)) {
        return "this host was started anew, and a block device does not tell whether it was "
               "written to (" REMUS_DISKREC_OWN ")";
    }
    if (f->major != now->major || f->minor != now->minor || !now->sequence ||
        f->sequence != now->sequence) {
        return "it is another device, or was removed meanwhile";
    }
    return f->written == now->written ? NULL : "it was written to since";
}

int remus_diskrec_check(const char *directory, const char *path, int fd,
                        uint8_t relation[BLKLOG_RELATION_BYTES], char *why)
{
    char boot[BOOT_BYTES];
    const char *doubt;
    struct facts now;
    struct record r;
    int rc = read_record(directory, path, &r);

    memset(relation, 0, BLKLOG_RELATION_BYTES);
    if (rc == -ENOENT) {
        snprintf(why, REMUS_DISKREC_WHY_BYTES, "nothing is known of it");
        return rc;
    }
    read_boot(boot);
    if (rc) {
        doubt = "what is recorded of it cannot be read";
    } else if ((rc = read_facts(fd, &now))) {
        doubt = strerror(-rc);
    } else if (r.facts.device != now.device || r.facts.size != now.size) {
        doubt = "it is another disk";
    } else if (now.device) {
        doubt = doubt_device(&r, &now, boot, path);
    } else {
        doubt = doubt_file(&r, &now, boot);
    }
    if (doubt) {
        snprintf(why, REMUS_DISKREC_WHY_BYTES, "%s", doubt);
        return -ESTALE;
    }
    memcpy(relation, r.relation, sizeof(r.relation));
    return 0;
}

bool remus_diskrec_is_open(const char *directory, const char *path)
{
    char boot[BOOT_BYTES];
    struct record r;

    read_boot(boot);
    return !read_record(directory, path, &r) && !r.closed && boot[0] && !strcmp(boot, r.boot);
}

/* The kernel's times are as coarse as its tick: who writes from here on is seen to have done so. */
static void wait_a_tick(int64_t ctime_ns)
{
    unsigned int i;

    for (i = 0; i < TICKS_MAX && clock_ns(CLOCK_REALTIME_COARSE) <= ctime_ns; i++) {
        usleep(1000);
    }
}

static int record(const char *directory, const char *path, int fd,
                  const uint8_t relation[BLKLOG_RELATION_BYTES], bool closed)
{
    struct record r = { .closed = closed };
    int rc;

    memcpy(r.relation, relation, sizeof(r.relation));
    read_boot(r.boot);
    /* The inode is on the disk as it is seen here: what a host that loses its power finds is no
     * older. */
    rc = fsync(fd) ? -errno : read_facts(fd, &r.facts);
    if (!rc && closed) {
        wait_a_tick(r.facts.ctime_ns);
    }
    r.until_ns = closed ? 0 : clock_ns(CLOCK_REALTIME) + UNTIL_S * SECOND_NS;
    return rc ? rc : write_record(directory, path, &r);
}

int remus_diskrec_open(const char *directory, const char *path, int fd,
                       const uint8_t relation[BLKLOG_RELATION_BYTES])
{
    return record(directory, path, fd, relation, false);
}

int remus_diskrec_renew(const char *directory, const char *path)
{
    struct record r;
    int rc = read_record(directory, path, &r);

    if (!rc && r.closed) {
        rc = -EINVAL;
    }
    r.until_ns = clock_ns(CLOCK_REALTIME) + UNTIL_S * SECOND_NS;
    return rc ? rc : write_record(directory, path, &r);
}

int remus_diskrec_close(const char *directory, const char *path, int fd,
                        const uint8_t relation[BLKLOG_RELATION_BYTES])
{
    return record(directory, path, fd, relation, true);
}

int remus_diskrec_remove(const char *directory, const char *path)
{
    char name[PATH_BYTES];

    record_path(name, directory, path);
    if (unlink(name)) {
        return errno == ENOENT ? 0 : -errno;
    }
    return sync_directory(directory);
}
