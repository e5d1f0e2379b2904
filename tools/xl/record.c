#include "tools/xl/record.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <uuid/uuid.h>
#include <xenstore.h>

#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_preflight.h"
#include "tools/xl/display.h"

void record_write(const struct remus_status *s)
{
    struct remus_object *o;
    char path[96], fresh[104], *text;
    ssize_t written = -1;
    size_t length;
    int fd;

    if (!s->domid)
        return;
    o = remus_object_new("status");
    if (o)
        display_status_fields(o, s);
    remus_object_number(o, "pid", (uint64_t)getpid());
    remus_object_number(o, "time", (uint64_t)time(NULL));
    text = remus_object_finish(o);
    if (!text)
        return;
    snprintf(path, sizeof(path), REMUS_RUN_DIR "/%u.json", s->domid);
    snprintf(fresh, sizeof(fresh), "%s.new", path);
    length = strlen(text);
    fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd >= 0) {
        written = write(fd, text, length);
        close(fd);
    }
    if (written != (ssize_t)length || rename(fresh, path))
        unlink(fresh);
    free(text);
}

void record_forget_session(const char *session)
{
    struct xs_handle *xs = xs_open(0);
    char path[128];

    snprintf(path, sizeof(path), REMUS_XS_SESSIONS "/%.64s", session);
    if (xs) {
        xs_rm(xs, XBT_NULL, path);
        xs_close(xs);
    }
}

/* False: it is no UUID. */
static bool lost_path(char *path, size_t room, const char *uuid)
{
    uuid_t binary;
    char text[37];

    if (uuid_parse(uuid, binary))
        return false;
    uuid_unparse_lower(binary, text);
    snprintf(path, room, REMUS_RUN_DIR "/%s.lost", text);
    return true;
}

void record_lost(const char *uuid, bool lost)
{
    char path[96];
    int fd;

    if (!lost_path(path, sizeof(path), uuid))
        return;
    if (!lost) {
        unlink(path);
        return;
    }
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd >= 0)
        close(fd);
}

bool record_was_lost(const char *uuid)
{
    char path[96];

    return lost_path(path, sizeof(path), uuid) && !access(path, F_OK);
}

void record_remove(uint32_t domid)
{
    char path[96];

    snprintf(path, sizeof(path), REMUS_RUN_DIR "/%u.json", domid);
    unlink(path);
}
