#include "tools/xl/record.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

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

void record_remove(uint32_t domid)
{
    char path[96];

    snprintf(path, sizeof(path), REMUS_RUN_DIR "/%u.json", domid);
    unlink(path);
}
