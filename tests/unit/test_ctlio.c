/* LINK: tools/remus/ctlio.c */
/* What coordinator and daemons may say to each other, and what is refused. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/remus/ctlio.h"

struct pair {
    int a, b;
};

static int setup(void **state)
{
    static struct pair pair;
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
    pair.a = fds[0];
    pair.b = fds[1];
    *state = &pair;
    return 0;
}

static int teardown(void **state)
{
    struct pair *p = *state;

    if (p->a >= 0) {
        close(p->a);
    }
    if (p->b >= 0) {
        close(p->b);
    }
    return 0;
}

static int open_fds(void)
{
    int fd, count = 0;

    for (fd = 0; fd < 256; fd++) {
        count += fcntl(fd, F_GETFD) >= 0;
    }
    return count;
}

static void send_raw(int fd, const void *bytes, size_t count)
{
    assert_int_equal(send(fd, bytes, count, 0), (ssize_t)count);
}

static void a_plain_message_arrives_as_it_was_sent(void **state)
{
    struct pair *p = *state;
    const struct ctl_msg msg = { .type = CTL_CUT, .code = 7, .epoch = 1ull << 40 };
    struct ctl_in in;

    assert_int_equal(ctl_send(p->a, &msg, NULL, NULL, NULL, 0), 0);
    assert_int_equal(ctl_recv(p->b, &in), 0);
    assert_int_equal(in.msg.type, CTL_CUT);
    assert_int_equal(in.msg.code, 7);
    assert_true(in.msg.epoch == 1ull << 40);
    assert_int_equal(in.msg.count, 0);
    assert_string_equal(in.text, "");
    assert_int_equal(ctl_recv(p->b, &in), -EAGAIN);
}

static void text_arrives_and_is_cut_at_its_limit(void **state)
{
    struct pair *p = *state;
    const struct ctl_msg msg = { .type = CTL_FAILED };
    char text[CTL_TEXT_MAX + 100];
    struct ctl_in in;

    assert_int_equal(ctl_say(p->a, CTL_CHECKPOINT, CTL_WHY_DEADLINE, 3, "flow %d", 12), 0);
    assert_int_equal(ctl_recv(p->b, &in), 0);
    assert_string_equal(in.text, "flow 12");
    assert_int_equal(in.msg.code, CTL_WHY_DEADLINE);

    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    assert_int_equal(ctl_send(p->a, &msg, NULL, text, NULL, 0), 0);
    assert_int_equal(ctl_recv(p->b, &in), 0);
    assert_int_equal(strlen(in.text), CTL_TEXT_MAX);
}

static void structures_arrive_with_their_text(void **state)
{
    struct pair *p = *state;
    struct ctl_attach attach[REMUS_VIFS_MAX];
    struct ctl_stats stats;
    struct ctl_msg msg = { .type = CTL_ATTACH, .epoch = 2, .count = REMUS_VIFS_MAX };
    struct ctl_in in;
    unsigned int i;

    memset(attach, 0, sizeof(attach));
    for (i = 0; i < REMUS_VIFS_MAX; i++) {
        attach[i].vif = i;
        attach[i].mac[5] = (uint8_t)i;
    }
    assert_int_equal(ctl_send(p->a, &msg, attach, "hello", NULL, 0), 0);
    assert_int_equal(ctl_recv(p->b, &in), 0);
    assert_int_equal(in.msg.count, REMUS_VIFS_MAX);
    assert_memory_equal(in.structs.attach, attach, sizeof(attach));
    assert_string_equal(in.text, "hello");

    memset(&stats, 0x5a, sizeof(stats));
    msg = (struct ctl_msg){ .type = CTL_STATS, .count = 1 };
    assert_int_equal(ctl_send(p->b, &msg, &stats, NULL, NULL, 0), 0);
    assert_int_equal(ctl_recv(p->a, &in), 0);
    assert_memory_equal(&in.structs.stats, &stats, sizeof(stats));
}

static void failover_carries_descriptors(void **state)
{
    struct pair *p = *state;
    const struct ctl_msg msg = { .type = CTL_FAILOVER };
    int before, fds[REMUS_VIFS_MAX];
    struct ctl_in in;
    unsigned int i;
    char byte;

    int pipe_fds[2];

    assert_int_equal(pipe(pipe_fds), 0);
    for (i = 0; i < REMUS_VIFS_MAX; i++) {
        fds[i] = pipe_fds[0];
    }
    before = open_fds();
    assert_int_equal(ctl_send(p->a, &msg, NULL, NULL, fds, REMUS_VIFS_MAX), 0);
    assert_int_equal(ctl_recv(p->b, &in), 0);
    assert_int_equal(in.n_fds, REMUS_VIFS_MAX);
    assert_int_equal(open_fds(), before + (int)REMUS_VIFS_MAX);
    assert_true(fcntl(in.fds[0], F_GETFD) & FD_CLOEXEC);
    assert_int_equal(write(pipe_fds[1], "z", 1), 1);
    assert_int_equal(read(in.fds[REMUS_VIFS_MAX - 1], &byte, 1), 1);
    close(in.fds[0]);
    in.fds[0] = -1;
    ctl_in_dispose(&in);
    ctl_in_dispose(&in);
    assert_int_equal(open_fds(), before);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

/* Sent by hand, as ctl_send refuses. */
static void send_with_fds(int fd, uint32_t type, unsigned int count)
{
    struct ctl_msg msg = { .type = type };
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * 32)];
    } control;
    struct iovec iov = { .iov_base = &msg, .iov_len = sizeof(msg) };
    struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
                         .msg_controllen = CMSG_SPACE(sizeof(int) * count) };
    struct cmsghdr *cm;
    unsigned int i;

    memset(&control, 0, sizeof(control));
    cm = CMSG_FIRSTHDR(&mh);
    cm->cmsg_level = SOL_SOCKET;
    cm->cmsg_type = SCM_RIGHTS;
    cm->cmsg_len = CMSG_LEN(sizeof(int) * count);
    for (i = 0; i < count; i++) {
        const int one = 0;

        memcpy(CMSG_DATA(cm) + i * sizeof(int), &one, sizeof(one));
    }
    assert_int_equal(sendmsg(fd, &mh, 0), (ssize_t)sizeof(msg));
}

static void unwanted_descriptors_are_refused_and_closed(void **state)
{
    struct pair *p = *state;
    const int before = open_fds();
    struct ctl_in in;

    send_with_fds(p->a, CTL_CUT, 1);
    assert_int_equal(ctl_recv(p->b, &in), -EPROTO);
    send_with_fds(p->a, CTL_FAILOVER, REMUS_VIFS_MAX + 1);
    assert_int_equal(ctl_recv(p->b, &in), -EPROTO);
    send_with_fds(p->a, CTL_FAILOVER, 32);
    assert_int_equal(ctl_recv(p->b, &in), -EPROTO);
    assert_int_equal(open_fds(), before);
    send_with_fds(p->a, CTL_FAILOVER, 1);
    assert_int_equal(ctl_recv(p->b, &in), 0);
    ctl_in_dispose(&in);
    assert_int_equal(open_fds(), before);
}

static void malformed_messages_are_refused_one_by_one(void **state)
{
    struct pair *p = *state;
    uint8_t packet[CTL_PACKET_MAX + 64];
    struct ctl_msg msg = { .type = CTL_CUT };
    struct ctl_in in;

    memset(packet, 0, sizeof(packet));
#define REFUSED(bytes) do { \
        memcpy(packet, &msg, sizeof(msg)); \
        send_raw(p->a, packet, (bytes)); \
        assert_int_equal(ctl_recv(p->b, &in), -EPROTO); \
    } while (0)
    REFUSED(1);
    REFUSED(sizeof(msg) - 1);
    REFUSED(sizeof(msg) + 1);
    REFUSED(sizeof(packet));
    msg.type = 0;
    REFUSED(sizeof(msg));
    msg.type = 31;
    REFUSED(sizeof(msg));
    msg.type = 0xffffffffu;
    REFUSED(sizeof(msg));
    msg = (struct ctl_msg){ .type = CTL_CUT, .count = 1 };
    REFUSED(sizeof(msg));
    msg = (struct ctl_msg){ .type = CTL_CUT, .text_bytes = 5 };
    REFUSED(sizeof(msg) + 4);
    msg = (struct ctl_msg){ .type = CTL_CUT, .text_bytes = CTL_TEXT_MAX + 1 };
    REFUSED(sizeof(msg) + CTL_TEXT_MAX + 1);
    msg = (struct ctl_msg){ .type = CTL_CUT, .text_bytes = 0xffffffffu };
    REFUSED(sizeof(msg));
    msg = (struct ctl_msg){ .type = CTL_ATTACH, .count = REMUS_VIFS_MAX + 1 };
    REFUSED(sizeof(msg) + (REMUS_VIFS_MAX + 1) * sizeof(struct ctl_attach));
    msg = (struct ctl_msg){ .type = CTL_ATTACH, .count = 0x10000001u };
    REFUSED(sizeof(msg) + sizeof(struct ctl_attach));
    msg = (struct ctl_msg){ .type = CTL_STATS, .count = 1 };
    REFUSED(sizeof(msg) + sizeof(struct ctl_stats) - 1);
#undef REFUSED
    /* And the next good one is read as if nothing had been. */
    assert_int_equal(ctl_say(p->a, CTL_QUIT, 0, 0, NULL), 0);
    assert_int_equal(ctl_recv(p->b, &in), 0);
    assert_int_equal(in.msg.type, CTL_QUIT);
}

static void what_does_not_fit_its_type_is_not_sent(void **state)
{
    struct pair *p = *state;
    struct ctl_msg msg = { .type = 0 };
    const int fd = 0;

    assert_int_equal(ctl_send(p->a, &msg, NULL, NULL, NULL, 0), -EINVAL);
    msg = (struct ctl_msg){ .type = CTL_CUT, .count = 1 };
    assert_int_equal(ctl_send(p->a, &msg, &msg, NULL, NULL, 0), -EINVAL);
    msg = (struct ctl_msg){ .type = CTL_ATTACH, .count = 1 };
    assert_int_equal(ctl_send(p->a, &msg, NULL, NULL, NULL, 0), -EINVAL);
    msg = (struct ctl_msg){ .type = CTL_CUT };
    assert_int_equal(ctl_send(p->a, &msg, NULL, NULL, &fd, 1), -EINVAL);
}

static void the_other_ends_end_is_told(void **state)
{
    struct pair *p = *state;
    struct ctl_in in;

    assert_int_equal(ctl_say(p->a, CTL_QUIT, 0, 0, NULL), 0);
    close(p->a);
    p->a = -1;
    assert_int_equal(ctl_recv(p->b, &in), 0);
    assert_int_equal(ctl_recv(p->b, &in), -EPIPE);
    assert_int_equal(ctl_say(p->b, CTL_READY, 0, 0, NULL), -EPIPE);
}

static void a_reader_that_stopped_does_not_stop_the_sender(void **state)
{
    struct pair *p = *state;
    const struct ctl_msg msg = { .type = CTL_CUT };
    unsigned int sent = 0;
    int rc;

    while ((rc = ctl_send(p->a, &msg, NULL, "text", NULL, 0)) == 0) {
        assert_true(++sent < 1000000);
    }
    assert_int_equal(rc, -EAGAIN);
    assert_int_equal(ctl_send_wait(p->a, &msg, NULL, NULL, NULL, 0, 30), -ETIMEDOUT);
}

static void every_type_has_a_name(void **state)
{
    (void)state;
    assert_string_equal(ctl_type_name(CTL_INPUT_STOP), "INPUT_STOP");
    assert_string_equal(ctl_type_name(CTL_FAILED), "FAILED");
    assert_string_equal(ctl_type_name(60), "unknown");
    assert_int_equal(ctl_struct_bytes(CTL_STATS), sizeof(struct ctl_stats));
    assert_int_equal(ctl_struct_bytes(1000), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_plain_message_arrives_as_it_was_sent),
        TEST(text_arrives_and_is_cut_at_its_limit),
        TEST(structures_arrive_with_their_text),
        TEST(failover_carries_descriptors),
        TEST(unwanted_descriptors_are_refused_and_closed),
        TEST(malformed_messages_are_refused_one_by_one),
        TEST(what_does_not_fit_its_type_is_not_sent),
        TEST(the_other_ends_end_is_told),
        TEST(a_reader_that_stopped_does_not_stop_the_sender),
        TEST(every_type_has_a_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
