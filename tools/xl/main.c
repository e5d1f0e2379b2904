/*
 * main.c: an xl that knows some more words (remus and remus-...) and hands every other to the
 * distribution's.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/xl/commands.h"

static const struct {
    const char *word;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"remus", cmd_remus, "Keep a copy of a guest on another host that takes over"},
    {"remus-receive", cmd_remus_receive, "Take such a copy (started by xl remus, through ssh)"},
    {"remus-status", cmd_remus_status, "Show this host's protected guests and copies"},
    {"remus-stop", cmd_remus_stop, "End a guest's protection in order"},
    {"remus-mode", cmd_remus_mode, "Change the mode of a guest's protection"},
    {"remus-switch", cmd_remus_switch, "Let a guest's copy take over now"},
    {"remus-decide", cmd_remus_decide, "Say which side goes on (--arbiter manual)"},
    {"remus-cleanup", cmd_remus_cleanup, "Remove what dead sessions have left"},
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

void libexec_directory(char *out, size_t room, const char *given)
{
    char self[PATH_MAX], beside[PATH_MAX + 16];
    ssize_t n;

    if (given) {
        snprintf(out, room, "%s", given);
        return;
    }
    n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n > 0) {
        self[n] = '\0';
        *strrchr(self, '/') = '\0';
        snprintf(beside, sizeof(beside), "%s/colo-proxyd", self);
        if (!access(beside, X_OK)) {
            snprintf(out, room, "%s", self);
            return;
        }
    }
    snprintf(out, room, "%s", REMUS_LIBEXEC);
}

int open_log(const char *name, char *path, size_t room)
{
    char clean[64];
    size_t i;

    snprintf(clean, sizeof(clean), "%.63s", name);
    for (i = 0; clean[i]; i++)
        if (clean[i] == '/' || (unsigned char)clean[i] < 0x20)
            clean[i] = '_';
    snprintf(path, room, "/var/log/xen/remus-%s.log", clean);
    return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
}

static int same_file(const char *path)
{
    struct stat a, b;

    return !stat(path, &a) && !stat("/proc/self/exe", &b) && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

static int usable(const char *path)
{
    return !access(path, X_OK) && !same_file(path);
}

/* Reads a small number from sysfs; -1: not there (not a Xen host). */
static int read_version(const char *path)
{
    FILE *f = fopen(path, "re");
    int value = -1;

    if (f) {
        if (fscanf(f, "%d", &value) != 1)
            value = -1;
        fclose(f);
    }
    return value;
}

/* The distribution's xl: the one for the Xen that runs, else any, else /usr/sbin/xl. */
static int distribution_xl(char *out, size_t room)
{
    const char *override = getenv("REMUS_DISTRIBUTION_XL");
    int major = read_version("/sys/hypervisor/version/major");
    int minor = read_version("/sys/hypervisor/version/minor");
    glob_t found = {0};
    int rc = -ENOENT;
    size_t i;

    if (override && override[0]) {
        snprintf(out, room, "%s", override);
        return usable(out) ? 0 : -ENOENT;
    }
    if (major >= 0 && minor >= 0) {
        snprintf(out, room, "/usr/lib/xen-%d.%d/bin/xl", major, minor);
        if (usable(out))
            return 0;
    }
    if (!glob("/usr/lib/xen-*/bin/xl", 0, NULL, &found))
        for (i = found.gl_pathc; i-- && rc;)
            if (usable(found.gl_pathv[i])) {
                snprintf(out, room, "%s", found.gl_pathv[i]);
                rc = 0;
            }
    globfree(&found);
    if (rc) {
        snprintf(out, room, "/usr/sbin/xl");
        rc = usable(out) ? 0 : -ENOENT;
    }
    return rc;
}

static int hand_over(char **argv)
{
    char path[PATH_MAX];

    if (distribution_xl(path, sizeof(path))) {
        fprintf(stderr, "xl: the distribution's xl was not found (Debian: xen-utils-4.17); this "
                        "program adds remus and its kin to it\n");
        return XL_USAGE;
    }
    argv[0] = path;
    execv(path, argv);
    fprintf(stderr, "xl: %s: %s\n", path, strerror(errno));
    return XL_USAGE;
}

static int help(int argc, char **argv)
{
    size_t i;
    pid_t pid;
    int status;

    for (i = 0; argc > 2 && i < COMMANDS; i++)
        if (!strcmp(argv[2], commands[i].word)) {
            char option[] = "--help", *args[] = {argv[2], option, NULL};

            return commands[i].run(2, args);
        }
    if (argc > 2)
        return hand_over(argv);
    pid = fork();
    if (pid == 0)
        _exit(hand_over(argv));
    if (pid > 0)
        waitpid(pid, &status, 0);
    printf("\nNon-stop virtual machines (%s):\n\n", REMUS_VERSION);
    for (i = 0; i < COMMANDS; i++)
        printf(" %-19s %s\n", commands[i].word, commands[i].help);
    printf("\n'xl help COMMAND' or 'xl COMMAND --help' tells more.\n");
    return 0;
}

int main(int argc, char **argv)
{
    int word = 1;
    size_t i;

    /* `xl -v remus` means our remus too; xl's global options take no values. */
    while (word < argc && argv[word][0] == '-')
        word++;
    if (word < argc) {
        for (i = 0; i < COMMANDS; i++)
            if (!strcmp(argv[word], commands[i].word))
                return commands[i].run(argc - word, argv + word);
        if (word == 1 && !strcmp(argv[1], "help"))
            return help(argc, argv);
    }
    return hand_over(argv);
}
