/* LINK: tools/xl/systemd.c */
/* What a service manager is told, by the protocol of sd_notify(3). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tools/xl/systemd.h"

static char said[512];

/* path: "@..." is of the abstract namespace. */
static void tell(const char *path, const char *text)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    ssize_t n;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (path[0] == '@')
        address.sun_path[0] = '\0';
    assert_int_equal(bind(fd, (struct sockaddr *)&address,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path))), 0);
    setenv("NOTIFY_SOCKET", path, 1);
    systemd_status(text);
    n = recv(fd, said, sizeof(said) - 1, 0);
    said[n > 0 ? n : 0] = '\0';
    close(fd);
    if (path[0] == '/')
        unlink(path);
}

static void a_status_arrives_in_either_namespace(void **state)
{
    char path[64];

    (void)state;
    snprintf(path, sizeof(path), "@remus-test-%d", (int)getpid());
    tell(path, "protected, epoch 7");
    assert_string_equal(said, "STATUS=protected, epoch 7");
    snprintf(path, sizeof(path), "/tmp/remus-test-%d", (int)getpid());
    tell(path, "protected, epoch 8");
    assert_string_equal(said, "STATUS=protected, epoch 8");
}

static void nobody_there_is_no_trouble(void **state)
{
    char long_path[300];

    (void)state;
    unsetenv("NOTIFY_SOCKET");
    systemd_status("x");
    setenv("NOTIFY_SOCKET", "/nowhere/at/all", 1);
    systemd_status("x");
    setenv("NOTIFY_SOCKET", "vsock:2:1234", 1);
    systemd_status("x");
    memset(long_path, 'a', sizeof(long_path));
    long_path[0] = '/';
    long_path[sizeof(long_path) - 1] = '\0';
    setenv("NOTIFY_SOCKET", long_path, 1);
    systemd_status("x");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_status_arrives_in_either_namespace),
        cmocka_unit_test(nobody_there_is_no_trouble),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
