/* LINK: tools/libxl/remus_transport.c tools/libxl/remus_message.c tools/libxl/remus_tls.c tools/libxl/remus_ktls.c */
/* How two hosts come together: secret, opening of plain channels (encrypted ones: test_tls.c),
 * addresses, ssh, message lines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_transport.h"

/* ---- Secret ---- */

static void a_secret_survives_its_text(void **state)
{
    uint8_t a[REMUS_SECRET_BYTES], b[REMUS_SECRET_BYTES];
    char text[REMUS_SECRET_TEXT_BYTES];

    (void)state;
    assert_int_equal(remus_secret_new(a), 0);
    remus_secret_format(text, a);
    assert_int_equal(remus_secret_parse(b, text), 0);
    assert_true(remus_secret_equal(a, b));
    b[REMUS_SECRET_BYTES - 1] ^= 1;
    assert_false(remus_secret_equal(a, b));
    b[REMUS_SECRET_BYTES - 1] ^= 1;
    b[0] ^= 0x80;
    assert_false(remus_secret_equal(a, b));
}

static void two_secrets_differ(void **state)
{
    uint8_t a[REMUS_SECRET_BYTES], b[REMUS_SECRET_BYTES];

    (void)state;
    assert_int_equal(remus_secret_new(a), 0);
    assert_int_equal(remus_secret_new(b), 0);
    assert_false(remus_secret_equal(a, b));
}

static void a_secret_of_wrong_text_is_refused(void **state)
{
    uint8_t a[REMUS_SECRET_BYTES];
    char text[REMUS_SECRET_TEXT_BYTES + 1];

    (void)state;
    memset(text, 'a', sizeof(text));
    text[REMUS_SECRET_TEXT_BYTES] = '\0'; /* one digit too many */
    assert_int_equal(remus_secret_parse(a, text), -EINVAL);
    text[REMUS_SECRET_TEXT_BYTES - 1] = '\0';
    assert_int_equal(remus_secret_parse(a, text), 0);
    text[5] = 'g';
    assert_int_equal(remus_secret_parse(a, text), -EINVAL);
    text[5] = 'A';
    assert_int_equal(remus_secret_parse(a, text), -EINVAL);
    assert_int_equal(remus_secret_parse(a, ""), -EINVAL);
}

/* ---- Channels ---- */

struct acceptor {
    pthread_t thread;
    int listen_fds[2], cancel_fd, fds[REMUS_CHANNELS], rc;
    unsigned int wanted;
    unsigned int deadline_ms;
    uint16_t port, second_port;
    uint8_t secret[REMUS_SECRET_BYTES];
    char error[REMUS_ERROR_BYTES];
};

static void *accept_thread(void *arg)
{
    struct acceptor *a = arg;

    a->rc = remus_accept_channels(a->listen_fds, a->secret, true, a->wanted, a->deadline_ms,
                                  a->cancel_fd, a->fds, a->error);
    return NULL;
}

#define ONE  (1u << REMUS_CHANNEL_LINK)
#define BOTH (ONE | 1u << REMUS_CHANNEL_PACKETS)

static void acceptor_start(struct acceptor *a, unsigned int wanted, unsigned int deadline_ms,
                           int cancel_fd)
{
    memset(a, 0, sizeof(*a));
    a->wanted = wanted;
    a->deadline_ms = deadline_ms;
    a->cancel_fd = cancel_fd;
    assert_int_equal(remus_secret_new(a->secret), 0);
    assert_int_equal(remus_listen("127.0.0.1", 0, &a->listen_fds[0], &a->port, a->error), 0);
    assert_int_not_equal(a->port, 0);
    a->listen_fds[1] = -1;
    if (wanted & 1u << REMUS_CHANNEL_HEARTBEAT)
        assert_int_equal(remus_listen("127.0.0.2", 0, &a->listen_fds[1], &a->second_port,
                                      a->error), 0);
    assert_int_equal(pthread_create(&a->thread, NULL, accept_thread, a), 0);
}

static void acceptor_join(struct acceptor *a)
{
    pthread_join(a->thread, NULL);
    close(a->listen_fds[0]);
    if (a->listen_fds[1] >= 0)
        close(a->listen_fds[1]);
}

static int open_with(const struct acceptor *a, uint16_t channel, const uint8_t *secret)
{
    char error[REMUS_ERROR_BYTES];
    int fd;

    assert_int_equal(remus_connect_channel("127.0.0.1", a->port, channel, secret, true, 2000, &fd,
                                           error), 0);
    return fd;
}

static bool closed_by_peer(int fd)
{
    char byte;
    ssize_t r = read(fd, &byte, 1);

    return r == 0 || (r < 0 && errno == ECONNRESET);
}

static int raw_connect(uint16_t port)
{
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    return fd;
}

static void both_channels_open_with_the_secret(void **state)
{
    struct acceptor a;
    char text[4];
    int link, packets;

    (void)state;
    acceptor_start(&a, BOTH, 5000, -1);
    /* The order does not matter. */
    packets = open_with(&a, REMUS_CHANNEL_PACKETS, a.secret);
    link = open_with(&a, REMUS_CHANNEL_LINK, a.secret);
    acceptor_join(&a);
    assert_int_equal(a.rc, 0);
    assert_int_equal(write(link, "abc", 4), 4);
    assert_int_equal(read(a.fds[REMUS_CHANNEL_LINK], text, 4), 4);
    assert_string_equal(text, "abc");
    assert_int_equal(write(a.fds[REMUS_CHANNEL_PACKETS], "xyz", 4), 4);
    assert_int_equal(read(packets, text, 4), 4);
    assert_string_equal(text, "xyz");
    close(link);
    close(packets);
    close(a.fds[REMUS_CHANNEL_LINK]);
    close(a.fds[REMUS_CHANNEL_PACKETS]);
}

static void a_second_address_takes_a_channel_too(void **state)
{
    char text[4], error[REMUS_ERROR_BYTES];
    struct acceptor a;
    int link, beats;

    (void)state;
    acceptor_start(&a, ONE | 1u << REMUS_CHANNEL_HEARTBEAT, 5000, -1);
    link = open_with(&a, REMUS_CHANNEL_LINK, a.secret);
    assert_int_equal(remus_connect_channel("127.0.0.2", a.second_port, REMUS_CHANNEL_HEARTBEAT,
                                           a.secret, true, 2000, &beats, error), 0);
    acceptor_join(&a);
    assert_int_equal(a.rc, 0);
    assert_int_equal(write(beats, "abc", 4), 4);
    assert_int_equal(read(a.fds[REMUS_CHANNEL_HEARTBEAT], text, 4), 4);
    assert_string_equal(text, "abc");
    close(link);
    close(beats);
    close(a.fds[REMUS_CHANNEL_LINK]);
    close(a.fds[REMUS_CHANNEL_HEARTBEAT]);
}

static void without_network_only_the_link_is_awaited(void **state)
{
    struct acceptor a;
    int link;

    (void)state;
    acceptor_start(&a, ONE, 5000, -1);
    link = open_with(&a, REMUS_CHANNEL_LINK, a.secret);
    acceptor_join(&a);
    assert_int_equal(a.rc, 0);
    assert_int_equal(a.fds[REMUS_CHANNEL_PACKETS], -1);
    close(link);
    close(a.fds[REMUS_CHANNEL_LINK]);
}

static void a_wrong_secret_is_turned_away_and_the_right_one_still_gets_in(void **state)
{
    uint8_t wrong[REMUS_SECRET_BYTES] = {0};
    struct acceptor a;
    int bad, link;

    (void)state;
    acceptor_start(&a, ONE, 5000, -1);
    bad = open_with(&a, REMUS_CHANNEL_LINK, wrong);
    assert_true(closed_by_peer(bad));
    link = open_with(&a, REMUS_CHANNEL_LINK, a.secret);
    acceptor_join(&a);
    assert_int_equal(a.rc, 0);
    close(bad);
    close(link);
    close(a.fds[REMUS_CHANNEL_LINK]);
}

static void guessing_ends_after_a_few_attempts(void **state)
{
    uint8_t wrong[REMUS_SECRET_BYTES] = {0};
    struct acceptor a;
    unsigned int i;

    (void)state;
    acceptor_start(&a, BOTH, 5000, -1);
    for (i = 0; i < REMUS_OPEN_BAD_MAX; i++) {
        int fd = open_with(&a, REMUS_CHANNEL_LINK, wrong);

        assert_true(closed_by_peer(fd));
        close(fd);
    }
    acceptor_join(&a);
    assert_int_equal(a.rc, -EACCES);
    assert_non_null(strstr(a.error, "secret"));
    assert_int_equal(a.fds[REMUS_CHANNEL_LINK], -1);
}

static void a_channel_opens_once_only(void **state)
{
    struct acceptor a;
    int link, again, packets;

    (void)state;
    acceptor_start(&a, BOTH, 5000, -1);
    link = open_with(&a, REMUS_CHANNEL_LINK, a.secret);
    again = open_with(&a, REMUS_CHANNEL_LINK, a.secret);
    assert_true(closed_by_peer(again));
    packets = open_with(&a, REMUS_CHANNEL_PACKETS, a.secret);
    acceptor_join(&a);
    assert_int_equal(a.rc, 0);
    close(link);
    close(again);
    close(packets);
    close(a.fds[REMUS_CHANNEL_LINK]);
    close(a.fds[REMUS_CHANNEL_PACKETS]);
}

static void an_unknown_channel_version_or_magic_is_turned_away(void **state)
{
    struct acceptor a;
    struct remus_open open;
    unsigned int i;
    int fd, link;

    (void)state;
    acceptor_start(&a, ONE, 5000, -1);
    for (i = 0; i < 3; i++) {
        open = (struct remus_open){
            .magic = htole32(i == 0 ? 0x12345678 : REMUS_OPEN_MAGIC),
            .version = htole16(i == 1 ? REMUS_PROTOCOL_VERSION + 1 : REMUS_PROTOCOL_VERSION),
            .channel = htole16(i == 2 ? 9 : REMUS_CHANNEL_LINK),
        };
        memcpy(open.secret, a.secret, sizeof(open.secret));
        fd = raw_connect(a.port);
        assert_int_equal(write(fd, &open, sizeof(open)), sizeof(open));
        assert_true(closed_by_peer(fd));
        close(fd);
    }
    link = open_with(&a, REMUS_CHANNEL_LINK, a.secret);
    acceptor_join(&a);
    assert_int_equal(a.rc, 0);
    close(link);
    close(a.fds[REMUS_CHANNEL_LINK]);
}

static void silent_connections_do_not_keep_the_right_one_out(void **state)
{
    struct acceptor a;
    int silent[REMUS_OPEN_PENDING_MAX - 1], link;
    unsigned int i;

    (void)state;
    acceptor_start(&a, ONE, 5000, -1);
    for (i = 0; i < REMUS_OPEN_PENDING_MAX - 1; i++) {
        silent[i] = raw_connect(a.port);
        assert_int_equal(write(silent[i], "x", 1), 1);
    }
    link = open_with(&a, REMUS_CHANNEL_LINK, a.secret);
    acceptor_join(&a);
    assert_int_equal(a.rc, 0);
    for (i = 0; i < REMUS_OPEN_PENDING_MAX - 1; i++)
        close(silent[i]);
    close(link);
    close(a.fds[REMUS_CHANNEL_LINK]);
}

static void nobody_coming_is_a_timeout(void **state)
{
    struct acceptor a;

    (void)state;
    acceptor_start(&a, BOTH, 100, -1);
    acceptor_join(&a);
    assert_int_equal(a.rc, -ETIMEDOUT);
}

static void the_primary_giving_up_ends_the_wait(void **state)
{
    struct acceptor a;
    int pair[2];

    (void)state;
    assert_int_equal(pipe(pair), 0);
    acceptor_start(&a, BOTH, 10000, pair[0]);
    close(pair[1]);
    acceptor_join(&a);
    assert_int_equal(a.rc, -ECANCELED);
    close(pair[0]);
}

static void a_closed_port_is_said_with_its_number(void **state)
{
    uint8_t secret[REMUS_SECRET_BYTES] = {0};
    char error[REMUS_ERROR_BYTES], text[16];
    uint16_t port;
    int fd;

    (void)state;
    assert_int_equal(remus_listen("127.0.0.1", 0, &fd, &port, error), 0);
    close(fd);
    assert_int_equal(remus_connect_channel("127.0.0.1", port, REMUS_CHANNEL_LINK, secret, false,
                                           1000, &fd, error), -ECONNREFUSED);
    snprintf(text, sizeof(text), "port %u", port);
    assert_non_null(strstr(error, text));
    assert_int_equal(fd, -1);
}

static void a_name_without_address_points_to_the_option(void **state)
{
    uint8_t secret[REMUS_SECRET_BYTES] = {0};
    char error[REMUS_ERROR_BYTES];
    int fd;

    (void)state;
    assert_int_equal(remus_connect_channel("no host", 1, REMUS_CHANNEL_LINK, secret, true, 1000,
                                           &fd, error), -EADDRNOTAVAIL);
    assert_non_null(strstr(error, "--data-address"));
}

/* ---- Addresses ---- */

static void addresses_with_and_without_ports_are_understood(void **state)
{
    char addr[32];
    uint16_t port;

    (void)state;
    assert_int_equal(remus_address_parse("10.0.0.1", addr, sizeof(addr), &port), 0);
    assert_string_equal(addr, "10.0.0.1");
    assert_int_equal(port, 0);
    assert_int_equal(remus_address_parse("10.0.0.1:77", addr, sizeof(addr), &port), 0);
    assert_string_equal(addr, "10.0.0.1");
    assert_int_equal(port, 77);
    assert_int_equal(remus_address_parse("[fe80::1]:77", addr, sizeof(addr), &port), 0);
    assert_string_equal(addr, "fe80::1");
    assert_int_equal(port, 77);
    assert_int_equal(remus_address_parse("fe80::1", addr, sizeof(addr), &port), 0);
    assert_string_equal(addr, "fe80::1");
    assert_int_equal(remus_address_parse(":9000", addr, sizeof(addr), &port), 0);
    assert_string_equal(addr, "");
    assert_int_equal(port, 9000);
    assert_int_equal(remus_address_parse("a:0", addr, sizeof(addr), &port), -EINVAL);
    assert_int_equal(remus_address_parse("a:65536", addr, sizeof(addr), &port), -EINVAL);
    assert_int_equal(remus_address_parse("a:7x", addr, sizeof(addr), &port), -EINVAL);
    assert_int_equal(remus_address_parse("a:", addr, sizeof(addr), &port), -EINVAL);
    assert_int_equal(remus_address_parse("[::1", addr, sizeof(addr), &port), -EINVAL);
    assert_int_equal(remus_address_parse("[::1]x", addr, sizeof(addr), &port), -EINVAL);
    assert_int_equal(remus_address_parse("a-name-that-is-longer-than-the-room.example", addr,
                                         sizeof(addr), &port), -EINVAL);
}

static void the_host_s_address_is_what_ssh_was_given_without_the_user(void **state)
{
    char out[64];

    (void)state;
    remus_host_address(out, sizeof(out), "beta");
    assert_string_equal(out, "beta");
    remus_host_address(out, sizeof(out), "root@beta.example");
    assert_string_equal(out, "beta.example");
    remus_host_address(out, sizeof(out), "ssh://root@beta:2222/");
    assert_string_equal(out, "beta");
    remus_host_address(out, sizeof(out), "root@[fe80::2]");
    assert_string_equal(out, "fe80::2");
    remus_host_address(out, sizeof(out), "fe80::2");
    assert_string_equal(out, "fe80::2");
}

/* ---- ssh ---- */

static void ssh_gets_host_and_command_as_arguments(void **state)
{
    struct remus_ssh s;
    char text[128] = "";
    ssize_t n;

    (void)state;
    /* Neither HOST nor COMMAND may be taken for shell text. */
    assert_int_equal(remus_ssh_spawn(&s, "printf '%s|%s|'", "a;b $HOME", "c | d"), 0);
    n = read(s.in_fd, text, sizeof(text) - 1);
    assert_true(n > 0);
    assert_string_equal(text, "a;b $HOME|c | d|");
    assert_int_equal(WEXITSTATUS(remus_ssh_end(&s, 2000)), 0);
    close(s.in_fd);
    close(s.out_fd);
}

static void an_empty_ssh_runs_the_host_itself(void **state)
{
    struct remus_ssh s;
    char text[16] = "";

    (void)state;
    assert_int_equal(remus_ssh_spawn(&s, "", "read x; echo got $x", "unused"), 0);
    assert_int_equal(write(s.out_fd, "it\n", 3), 3);
    assert_int_equal(read(s.in_fd, text, sizeof(text) - 1), 7);
    assert_string_equal(text, "got it\n");
    remus_ssh_end(&s, 2000);
    close(s.in_fd);
    close(s.out_fd);
}

static void a_host_that_looks_like_an_option_is_refused(void **state)
{
    struct remus_ssh s;

    (void)state;
    assert_int_equal(remus_ssh_spawn(&s, "ssh", "-oProxyCommand=true", "x"), -EINVAL);
}

static void a_stuck_ssh_is_not_waited_for_longer_than_said(void **state)
{
    struct remus_ssh s;
    uint64_t began = remus_now_ms();
    int status;

    (void)state;
    assert_int_equal(remus_ssh_spawn(&s, "", "exec sleep 60", ""), 0);
    status = remus_ssh_end(&s, 100);
    assert_true(WIFSIGNALED(status));
    assert_true(remus_now_ms() - began < 5000);
    close(s.in_fd);
    close(s.out_fd);
}

/* ---- Message lines ---- */

static struct remus_message *parse(const char *text)
{
    struct remus_message *m;

    assert_int_equal(remus_message_parse(&m, text, strlen(text)), 0);
    return m;
}

static void an_object_comes_back_as_it_was_written(void **state)
{
    struct remus_object *o = remus_object_new("hello");
    struct remus_message *m;
    uint64_t value;
    char *line;

    (void)state;
    remus_object_string(o, "name", "web \"1\"\\");
    remus_object_number(o, "pages", 32768);
    remus_object_flag(o, "verify", true);
    remus_object_list(o, "vifs");
    remus_object_map(o, NULL);
    remus_object_string(o, "bridge", "br0");
    remus_object_map_end(o);
    remus_object_list_end(o);
    remus_object_list(o, "reasons");
    remus_object_item(o, "one");
    remus_object_item(o, "two");
    remus_object_list_end(o);
    line = remus_object_finish(o);
    assert_non_null(line);
    assert_int_equal(line[strlen(line) - 1], '\n');
    m = parse(line);
    assert_string_equal(remus_message_type(m), "hello");
    assert_string_equal(remus_message_string(m, "name"), "web \"1\"\\");
    assert_true(remus_message_number(m, "pages", UINT32_MAX, &value));
    assert_int_equal(value, 32768);
    assert_true(remus_message_flag(m, "verify", false));
    assert_int_equal(remus_message_count(m, "vifs"), 1);
    assert_string_equal(remus_message_item(m, "vifs", 0, "bridge"), "br0");
    assert_null(remus_message_item(m, "vifs", 1, "bridge"));
    assert_string_equal(remus_message_item(m, "reasons", 1, NULL), "two");
    remus_message_free(m);
    free(line);
}

static void fields_of_the_wrong_type_are_as_if_absent(void **state)
{
    struct remus_message *m =
        parse("{\"type\":\"t\",\"n\":-1,\"f\":1.5,\"s\":7,\"l\":{},\"big\":99}");
    uint64_t value = 5;

    (void)state;
    assert_false(remus_message_number(m, "n", UINT64_MAX, &value));
    assert_false(remus_message_number(m, "f", UINT64_MAX, &value));
    assert_false(remus_message_number(m, "big", 98, &value));
    assert_false(remus_message_number(m, "absent", UINT64_MAX, &value));
    assert_int_equal(value, 5);
    assert_null(remus_message_string(m, "s"));
    assert_int_equal(remus_message_count(m, "l"), 0);
    assert_true(remus_message_flag(m, "s", true));
    remus_message_free(m);
}

static void what_is_no_object_with_a_type_is_refused(void **state)
{
    static const char *const bad[] = {
        "", "x", "[]", "{}", "{\"type\":1}", "{\"type\":\"a\"", "{\"type\":\"a\"} x", "\"type\"",
    };
    struct remus_message *m;
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(remus_message_parse(&m, bad[i], strlen(bad[i])), -EBADMSG);
    assert_int_equal(remus_message_parse(&m, "{\"type\":\"a\"}\0", 13), -EBADMSG);
}

static void deep_nesting_is_refused_before_it_is_parsed(void **state)
{
    char text[4000];
    struct remus_message *m;

    (void)state;
    memset(text, '[', sizeof(text));
    assert_int_equal(remus_message_parse(&m, text, sizeof(text)), -E2BIG);
    /* Brackets inside a string are no nesting. */
    m = parse("{\"type\":\"a\",\"s\":\"[[[[[[[[[[[[[[[[[[\\\"[[[[\"}");
    remus_message_free(m);
}

static void control_characters_and_bad_utf8_are_made_harmless(void **state)
{
    char out[64];

    (void)state;
    remus_text_clean(out, sizeof(out), "a\033[2Jb\x7f\xc2\x9b" "c\xff" "d\xc3\xa9\n");
    assert_string_equal(out, "a?[2Jb???c?d\xc3\xa9?");
    remus_text_clean(out, 4, "ab\xc3\xa9");
    assert_string_equal(out, "ab"); /* never half a character */
    remus_text_clean(out, sizeof(out), "\xe0\x80\x80\xed\xa0\x80");
    assert_string_equal(out, "??????");
}

struct pair {
    struct remus_talk *talk;
    int in, out;    /* the other side's ends */
};

static void pair_open(struct pair *p)
{
    int up[2], down[2];

    assert_int_equal(pipe(up), 0);
    assert_int_equal(pipe(down), 0);
    p->in = down[0];
    p->out = up[1];
    assert_int_equal(remus_talk_new(&p->talk, up[0], down[1]), 0);
}

static void pair_close(struct pair *p)
{
    remus_talk_free(p->talk);
    close(p->in);
    if (p->out >= 0)
        close(p->out);
}

static void lines_arrive_one_by_one_however_they_are_cut(void **state)
{
    static const char text[] = "{\"type\":\"a\"}\n{\"type\":\"b\"}\n{\"type\":";
    struct remus_message *m;
    struct pair p;

    (void)state;
    pair_open(&p);
    assert_int_equal(write(p.out, text, 5), 5);
    assert_int_equal(remus_talk_wait(p.talk, 20, &m), -ETIMEDOUT);
    assert_int_equal(write(p.out, text + 5, sizeof(text) - 6), sizeof(text) - 6);
    assert_int_equal(remus_talk_wait(p.talk, 1000, &m), 0);
    assert_string_equal(remus_message_type(m), "a");
    remus_message_free(m);
    assert_int_equal(remus_talk_wait(p.talk, 1000, &m), 0);
    assert_string_equal(remus_message_type(m), "b");
    remus_message_free(m);
    close(p.out);
    p.out = -1;
    assert_int_equal(remus_talk_wait(p.talk, 1000, &m), -EPIPE);
    pair_close(&p);
}

static void a_bad_line_is_reported_and_the_next_one_read(void **state)
{
    static const char text[] = "Welcome to \033[1mbeta\n{\"type\":\"a\"}\n";
    struct remus_message *m;
    struct pair p;

    (void)state;
    pair_open(&p);
    assert_int_equal(write(p.out, text, sizeof(text) - 1), sizeof(text) - 1);
    assert_int_equal(remus_talk_wait(p.talk, 1000, &m), -EBADMSG);
    assert_string_equal(remus_talk_bad(p.talk), "Welcome to ?[1mbeta");
    assert_int_equal(remus_talk_wait(p.talk, 1000, &m), 0);
    remus_message_free(m);
    pair_close(&p);
}

static void *write_much(void *arg)
{
    static char junk[REMUS_LINE_MAX + 10];
    int fd = *(int *)arg;
    size_t done = 0;
    ssize_t r;

    memset(junk, 'x', sizeof(junk));
    while (done < sizeof(junk) && (r = write(fd, junk + done, sizeof(junk) - done)) > 0)
        done += (size_t)r;
    return NULL;
}

static void a_line_without_end_is_cut_off_at_the_bound(void **state)
{
    struct remus_message *m;
    pthread_t thread;
    struct pair p;

    (void)state;
    pair_open(&p);
    pthread_create(&thread, NULL, write_much, &p.out);
    assert_int_equal(remus_talk_wait(p.talk, 5000, &m), -E2BIG);
    pthread_join(thread, NULL);
    pair_close(&p);
}

static void a_reader_that_stands_still_costs_droppable_messages_only(void **state)
{
    struct pair p;
    char *big = malloc(30001);
    int rc = 0, i;

    (void)state;
    memset(big, 'y', 30000);
    big[30000] = '\0';
    pair_open(&p);
    for (i = 0; i < 100; i++) {
        struct remus_object *o = remus_object_new("status");

        remus_object_string(o, "text", big);
        assert_int_equal(remus_talk_send(p.talk, o, true), 0);
    }
    /* Half of the room is kept for what must arrive. */
    assert_int_equal(remus_talk_send(p.talk, remus_object_new("active"), false), 0);
    for (i = 0; i < 100 && !rc; i++) {
        struct remus_object *o = remus_object_new("log");

        remus_object_string(o, "text", big);
        rc = remus_talk_send(p.talk, o, false);
    }
    assert_int_equal(rc, -ENOBUFS);
    pair_close(&p);
    free(big);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_secret_survives_its_text),
        cmocka_unit_test(two_secrets_differ),
        cmocka_unit_test(a_secret_of_wrong_text_is_refused),
        cmocka_unit_test(both_channels_open_with_the_secret),
        cmocka_unit_test(a_second_address_takes_a_channel_too),
        cmocka_unit_test(without_network_only_the_link_is_awaited),
        cmocka_unit_test(a_wrong_secret_is_turned_away_and_the_right_one_still_gets_in),
        cmocka_unit_test(guessing_ends_after_a_few_attempts),
        cmocka_unit_test(a_channel_opens_once_only),
        cmocka_unit_test(an_unknown_channel_version_or_magic_is_turned_away),
        cmocka_unit_test(silent_connections_do_not_keep_the_right_one_out),
        cmocka_unit_test(nobody_coming_is_a_timeout),
        cmocka_unit_test(the_primary_giving_up_ends_the_wait),
        cmocka_unit_test(a_closed_port_is_said_with_its_number),
        cmocka_unit_test(a_name_without_address_points_to_the_option),
        cmocka_unit_test(addresses_with_and_without_ports_are_understood),
        cmocka_unit_test(the_host_s_address_is_what_ssh_was_given_without_the_user),
        cmocka_unit_test(ssh_gets_host_and_command_as_arguments),
        cmocka_unit_test(an_empty_ssh_runs_the_host_itself),
        cmocka_unit_test(a_host_that_looks_like_an_option_is_refused),
        cmocka_unit_test(a_stuck_ssh_is_not_waited_for_longer_than_said),
        cmocka_unit_test(an_object_comes_back_as_it_was_written),
        cmocka_unit_test(fields_of_the_wrong_type_are_as_if_absent),
        cmocka_unit_test(what_is_no_object_with_a_type_is_refused),
        cmocka_unit_test(deep_nesting_is_refused_before_it_is_parsed),
        cmocka_unit_test(control_characters_and_bad_utf8_are_made_harmless),
        cmocka_unit_test(lines_arrive_one_by_one_however_they_are_cut),
        cmocka_unit_test(a_bad_line_is_reported_and_the_next_one_read),
        cmocka_unit_test(a_line_without_end_is_cut_off_at_the_bound),
        cmocka_unit_test(a_reader_that_stands_still_costs_droppable_messages_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
