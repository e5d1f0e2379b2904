/* LINK: tools/libxl/remus_transport.c tools/libxl/remus_message.c tools/libxl/remus_tls.c */
/*
 * TLS of the channels: who gets in and who does not.  Where this machine's kernel has no TLS for
 * TCP, a stand-in in user space does with the keys what the kernel would (RFC 8446, 5.2).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_transport.h"

/* The real one, under another name. */
#define remus_ktls_set real_ktls_set
#include "tools/libxl/remus_ktls.c"
#undef remus_ktls_set
#include "tools/libxl/remus_tls.h"

static bool kernel_has_tls;

/* ---- A stand-in for the kernel ---- */

#define RECORD_MAX  16384u
#define TAG         16u

struct pump {
    int wire, inner;            /* records; plain */
    bool to_wire;
    struct remus_tls_keys keys;
};

static bool read_all(int fd, uint8_t *to, size_t count)
{
    ssize_t r;

    for (; count; to += r, count -= (size_t)r) {
        r = read(fd, to, count);
        if (r <= 0)
            return false;
    }
    return true;
}

static bool write_all(int fd, const uint8_t *from, size_t count)
{
    ssize_t r;

    for (; count; from += r, count -= (size_t)r) {
        r = send(fd, from, count, MSG_NOSIGNAL);
        if (r <= 0)
            return false;
    }
    return true;
}

static void next_nonce(struct remus_tls_keys *k, uint8_t nonce[12])
{
    unsigned int i;

    memcpy(nonce, k->iv, 12);
    for (i = 0; i < 8; i++)
        nonce[4 + i] ^= k->sequence[i];
    for (i = 8; i-- && !++k->sequence[i];)
        ;
}

static bool pump_record(struct pump *p, gnutls_aead_cipher_hd_t cipher)
{
    uint8_t plain[RECORD_MAX + 1], record[5 + RECORD_MAX + 1 + TAG], nonce[12];
    size_t length, out;
    ssize_t r;

    if (p->to_wire) {
        r = read(p->inner, plain, RECORD_MAX);
        if (r <= 0)
            return false;
        plain[r] = 0x17;
        length = (size_t)r + 1 + TAG;
        memcpy(record, ((uint8_t[]){0x17, 3, 3, (uint8_t)(length >> 8), (uint8_t)length}), 5);
        next_nonce(&p->keys, nonce);
        out = sizeof(record) - 5;
        return !gnutls_aead_cipher_encrypt(cipher, nonce, 12, record, 5, TAG, plain, (size_t)r + 1,
                                           record + 5, &out) &&
               write_all(p->wire, record, 5 + out);
    }
    if (!read_all(p->wire, record, 5))
        return false;
    length = (size_t)record[3] << 8 | record[4];
    if (length > RECORD_MAX + 1 + TAG || !read_all(p->wire, record + 5, length))
        return false;
    next_nonce(&p->keys, nonce);
    out = sizeof(plain);
    if (gnutls_aead_cipher_decrypt(cipher, nonce, 12, record, 5, TAG, record + 5, length, plain,
                                   &out) || !out || plain[out - 1] != 0x17)
        return false;
    return write_all(p->inner, plain, out - 1);
}

static void *pump_thread(void *arg)
{
    struct pump *p = arg;
    const gnutls_datum_t key = {p->keys.key, sizeof(p->keys.key)};
    gnutls_aead_cipher_hd_t cipher;

    if (!gnutls_aead_cipher_init(&cipher, GNUTLS_CIPHER_CHACHA20_POLY1305, &key)) {
        while (pump_record(p, cipher))
            ;
        gnutls_aead_cipher_deinit(cipher);
    }
    shutdown(p->to_wire ? p->wire : p->inner, SHUT_WR);
    close(p->wire);
    close(p->inner);
    free(p);
    return NULL;
}

/* A connection within this machine: the descriptor is to stay a TCP socket. */
static void tcp_pair(int fds[2])
{
    char error[REMUS_ERROR_BYTES];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uint16_t port;
    int listener;

    assert_int_equal(remus_listen("127.0.0.1", 0, &listener, &port, error), 0);
    to.sin_port = htons(port);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fds[0], (struct sockaddr *)&to, sizeof(to)), 0);
    fds[1] = accept(listener, NULL, NULL);
    assert_true(fds[1] >= 0);
    close(listener);
}

static void pump_start(int wire, int inner, bool to_wire, const struct remus_tls_keys *keys)
{
    struct pump *p = malloc(sizeof(*p));
    pthread_t thread;

    *p = (struct pump){.wire = wire, .inner = inner, .to_wire = to_wire, .keys = *keys};
    assert_int_equal(pthread_create(&thread, NULL, pump_thread, p), 0);
    pthread_detach(thread);
}

int remus_ktls_set(int fd, const struct remus_tls_keys *send_keys,
                   const struct remus_tls_keys *receive_keys, char *error)
{
    int pair[2], wire, flags = fcntl(fd, F_GETFL);

    if (kernel_has_tls)
        return real_ktls_set(fd, send_keys, receive_keys, error);
    tcp_pair(pair);
    wire = dup(fd);
    assert_int_equal(fcntl(wire, F_SETFL, flags & ~O_NONBLOCK), 0);
    assert_int_equal(fcntl(pair[0], F_SETFL, flags), 0);
    assert_int_equal(dup2(pair[0], fd), fd);
    close(pair[0]);
    pump_start(wire, pair[1], true, send_keys);
    pump_start(dup(wire), dup(pair[1]), false, receive_keys);
    return 0;
}

/* ---- Both sides ---- */

#define ONE   (1u << REMUS_CHANNEL_LINK)
#define THREE (ONE | 1u << REMUS_CHANNEL_PACKETS | 1u << REMUS_CHANNEL_DISKS)

struct acceptor {
    pthread_t thread;
    int listen_fd, fds[REMUS_CHANNELS], rc;
    bool plain;
    unsigned int wanted, deadline_ms;
    uint16_t port;
    uint8_t secret[REMUS_SECRET_BYTES];
    char error[REMUS_ERROR_BYTES];
};

static void *accept_thread(void *arg)
{
    struct acceptor *a = arg;

    a->rc = remus_accept_channels((const int[]){a->listen_fd, -1}, a->secret, a->plain, a->wanted,
                                  a->deadline_ms, -1, a->fds, a->error);
    return NULL;
}

static void acceptor_start(struct acceptor *a, unsigned int wanted, bool plain,
                           unsigned int deadline_ms)
{
    memset(a, 0, sizeof(*a));
    a->wanted = wanted;
    a->plain = plain;
    a->deadline_ms = deadline_ms;
    assert_int_equal(remus_secret_new(a->secret), 0);
    assert_int_equal(remus_listen("127.0.0.1", 0, &a->listen_fd, &a->port, a->error), 0);
    assert_int_equal(pthread_create(&a->thread, NULL, accept_thread, a), 0);
}

static void acceptor_join(struct acceptor *a)
{
    pthread_join(a->thread, NULL);
    close(a->listen_fd);
}

static int connect_with(const struct acceptor *a, uint16_t channel, const uint8_t *secret,
                        bool plain, int *fd, char *error)
{
    return remus_connect_channel("127.0.0.1", a->port, channel, secret, plain, 3000, fd, error);
}

static int right_one(const struct acceptor *a, uint16_t channel)
{
    char error[REMUS_ERROR_BYTES] = "";
    int fd;

    if (connect_with(a, channel, a->secret, false, &fd, error))
        fail_msg("%s", error);
    return fd;
}

/* The one that is expected after all others have been turned away. */
static void right_one_still_gets_in(struct acceptor *a)
{
    char text[4];
    int fd = right_one(a, REMUS_CHANNEL_LINK);

    acceptor_join(a);
    if (a->rc)
        fail_msg("%s", a->error);
    assert_int_equal(write(fd, "abc", 4), 4);
    assert_true(read_all(a->fds[REMUS_CHANNEL_LINK], (uint8_t *)text, 4));
    assert_string_equal(text, "abc");
    close(fd);
    close(a->fds[REMUS_CHANNEL_LINK]);
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

/* Reads until the peer closes; the bytes that came. False: it does not close. */
static bool closes_within(int fd, int timeout_ms, size_t *bytes)
{
    uint64_t deadline = remus_now_ms() + (uint64_t)timeout_ms;
    uint8_t buffer[512];
    ssize_t r;

    *bytes = 0;
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        uint64_t now = remus_now_ms();

        if (now >= deadline || poll(&p, 1, (int)(deadline - now)) <= 0)
            return false;
        r = read(fd, buffer, sizeof(buffer));
        if (r <= 0)
            return true;
        *bytes += (size_t)r;
    }
}

/* What a side that knows the secret sends first. */
static size_t first_flight(const uint8_t *secret, uint8_t *out, size_t room)
{
    char error[REMUS_ERROR_BYTES];
    struct remus_tls *tls;
    ssize_t n;
    int pair[2];

    tcp_pair(pair);
    assert_int_equal(remus_tls_new(&tls, pair[0], false, secret), 0);
    assert_int_equal(remus_tls_step(tls, error), -EAGAIN);
    n = read(pair[1], out, room);
    assert_true(n > 60);
    remus_tls_free(tls);
    close(pair[0]);
    close(pair[1]);
    return (size_t)n;
}

/* ---- The right peer ---- */

static void *write_much(void *arg)
{
    static uint8_t block[300000];
    int fd = *(int *)arg;
    unsigned int i, n;

    for (n = 0; n < 10; n++) {
        for (i = 0; i < sizeof(block); i++)
            block[i] = (uint8_t)(i * 7 + n);
        if (!write_all(fd, block, sizeof(block)))
            break;
    }
    return NULL;
}

static void *read_much(void *arg)
{
    static uint8_t block[300000];
    int fd = *(int *)arg;
    unsigned int i, n;

    for (n = 0; n < 10; n++) {
        if (!read_all(fd, block, sizeof(block)))
            return (void *)"ended early";
        for (i = 0; i < sizeof(block); i++)
            if (block[i] != (uint8_t)(i * 7 + n))
                return (void *)"differs";
    }
    return NULL;
}

static void all_channels_open_with_the_secret_and_carry_data(void **state)
{
    int fds[REMUS_CHANNELS], both[2], i;
    pthread_t writer, reader;
    struct acceptor a;
    char text[6];
    void *what;

    (void)state;
    acceptor_start(&a, THREE, false, 10000);
    for (i = REMUS_CHANNEL_DISKS; i >= (int)REMUS_CHANNEL_LINK; i--) {
        fds[i] = right_one(&a, (uint16_t)i);
        /* Right behind the opening: nothing of it may be lost in the hand-over. */
        assert_int_equal(write(fds[i], "first", 6), 6);
    }
    acceptor_join(&a);
    if (a.rc)
        fail_msg("%s", a.error);
    for (i = REMUS_CHANNEL_LINK; i <= (int)REMUS_CHANNEL_DISKS; i++) {
        assert_true(read_all(a.fds[i], (uint8_t *)text, 6));
        assert_string_equal(text, "first");
        for (both[0] = 0; both[0] < 2; both[0]++) {
            int from = both[0] ? fds[i] : a.fds[i], to = both[0] ? a.fds[i] : fds[i];

            pthread_create(&writer, NULL, write_much, &from);
            pthread_create(&reader, NULL, read_much, &to);
            pthread_join(writer, NULL);
            pthread_join(reader, &what);
            if (what)
                fail_msg("channel %d: %s", i, (const char *)what);
        }
        close(fds[i]);
        assert_int_equal(read(a.fds[i], text, 1), 0);
        close(a.fds[i]);
    }
}

static void both_descriptors_are_blocking_afterwards(void **state)
{
    struct acceptor a;
    int fd;

    (void)state;
    acceptor_start(&a, ONE, false, 5000);
    fd = right_one(&a, REMUS_CHANNEL_LINK);
    acceptor_join(&a);
    assert_int_equal(a.rc, 0);
    assert_false(fcntl(fd, F_GETFL) & O_NONBLOCK);
    assert_false(fcntl(a.fds[REMUS_CHANNEL_LINK], F_GETFL) & O_NONBLOCK);
    close(fd);
    close(a.fds[REMUS_CHANNEL_LINK]);
}

/* The rest of what is expected of it is in tests/lab/tools/tls-driver.c. */
static void the_kernel_refuses_what_is_under_another_key(void **state)
{
    struct remus_tls_keys a = {.key = "a"}, b = {.key = "b"}, c = {.key = "c"};
    char error[REMUS_ERROR_BYTES], byte;
    int pair[2];

    (void)state;
    if (!kernel_has_tls)
        skip();
    tcp_pair(pair);
    assert_int_equal(real_ktls_set(pair[0], &a, &b, error), 0);
    assert_int_equal(real_ktls_set(pair[1], &c, &a, error), 0);
    assert_int_equal(write(pair[0], "x", 1), 1);
    assert_int_equal(read(pair[1], &byte, 1), 1);
    assert_int_equal(write(pair[1], "y", 1), 1);
    assert_int_equal(read(pair[0], &byte, 1), -1);
    assert_int_equal(errno, EBADMSG);
    close(pair[0]);
    close(pair[1]);
}

/* ---- The wrong ones ---- */

static void a_wrong_secret_is_turned_away_and_the_right_one_still_gets_in(void **state)
{
    uint8_t wrong[REMUS_SECRET_BYTES];
    char error[REMUS_ERROR_BYTES];
    struct acceptor a;
    int fd;

    (void)state;
    acceptor_start(&a, ONE, false, 10000);
    memcpy(wrong, a.secret, sizeof(wrong));
    wrong[REMUS_SECRET_BYTES - 1] ^= 1;
    assert_int_equal(connect_with(&a, REMUS_CHANNEL_LINK, wrong, false, &fd, error), -EACCES);
    assert_non_null(strstr(error, "secret"));
    assert_int_equal(fd, -1);
    right_one_still_gets_in(&a);
}

static void guessing_ends_after_a_few_attempts(void **state)
{
    uint8_t wrong[REMUS_SECRET_BYTES] = {0};
    char error[REMUS_ERROR_BYTES];
    struct acceptor a;
    unsigned int i;
    int fd;

    (void)state;
    acceptor_start(&a, ONE, false, 10000);
    for (i = 0; i < REMUS_OPEN_BAD_MAX; i++)
        assert_int_equal(connect_with(&a, REMUS_CHANNEL_LINK, wrong, false, &fd, error), -EACCES);
    acceptor_join(&a);
    assert_int_equal(a.rc, -EACCES);
    assert_non_null(strstr(a.error, "secret"));
}

static void an_opening_in_clear_gets_nothing_even_with_the_secret(void **state)
{
    char error[REMUS_ERROR_BYTES];
    struct acceptor a;
    size_t bytes;
    int fd;

    (void)state;
    acceptor_start(&a, ONE, false, 10000);
    assert_int_equal(connect_with(&a, REMUS_CHANNEL_LINK, a.secret, true, &fd, error), 0);
    assert_true(closes_within(fd, 3000, &bytes));
    assert_true(bytes <= 7); /* an alert at most */
    close(fd);
    right_one_still_gets_in(&a);
}

static void a_peer_that_expects_clear_text_is_said_to_be_one(void **state)
{
    char error[REMUS_ERROR_BYTES];
    struct acceptor a;
    int fd;

    (void)state;
    acceptor_start(&a, ONE, true, 1500);
    assert_int_equal(connect_with(&a, REMUS_CHANNEL_LINK, a.secret, false, &fd, error), -EPIPE);
    assert_non_null(strstr(error, "--plain"));
    acceptor_join(&a);
    assert_int_equal(a.rc, -ETIMEDOUT);
}

static void a_handshake_that_is_cut_short_is_turned_away(void **state)
{
    uint8_t hello[1024];
    struct acceptor a;
    size_t n, cuts[] = {0, 1, 4, 5, 6, 40}, i, bytes;
    int fd;

    (void)state;
    acceptor_start(&a, ONE, false, 20000);
    n = first_flight(a.secret, hello, sizeof(hello));
    for (i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        fd = raw_connect(a.port);
        assert_true(write_all(fd, hello, cuts[i]));
        shutdown(fd, SHUT_WR);
        assert_true(closes_within(fd, 3000, &bytes));
        close(fd);
    }
    assert_true(n > cuts[i - 1]);
    right_one_still_gets_in(&a);
}

static void a_recorded_hello_is_of_no_use(void **state)
{
    uint8_t hello[1024];
    struct acceptor a;
    size_t n, bytes;
    int fd;

    (void)state;
    acceptor_start(&a, ONE, false, 10000);
    n = first_flight(a.secret, hello, sizeof(hello));
    fd = raw_connect(a.port);
    assert_true(write_all(fd, hello, n));
    /* It is answered, but what would have to follow takes keys that were never sent. */
    assert_true(write_all(fd, hello, n));
    assert_true(closes_within(fd, 3000, &bytes));
    assert_true(bytes > 100);
    close(fd);
    right_one_still_gets_in(&a);
}

static void garbage_is_turned_away(void **state)
{
    /* Another protocol; an endless record; records of a kind that is passed over, on and on. */
    static const uint8_t http[] = "GET / HTTP/1.1\r\n\r\n", large[] = {0x16, 3, 1, 64, 0},
                         changes[] = {0x14, 3, 3, 0, 1, 1};
    const struct { const uint8_t *bytes; size_t count; } what[] = {
        {http, sizeof(http) - 1}, {large, sizeof(large)}, {changes, sizeof(changes)},
    };
    struct acceptor a;
    size_t i, n, bytes;
    int fd;

    (void)state;
    acceptor_start(&a, ONE, false, 20000);
    for (i = 0; i < sizeof(what) / sizeof(what[0]); i++) {
        fd = raw_connect(a.port);
        for (n = 0; n < 20000 && write_all(fd, what[i].bytes, what[i].count); n++)
            ;
        assert_true(closes_within(fd, 3000, &bytes));
        assert_true(bytes <= 7);
        close(fd);
    }
    right_one_still_gets_in(&a);
}

/* Neither blocks the loop while others wait, nor has longer than others. */
static void slow_handshakes_end_at_the_deadline_and_keep_nobody_out(void **state)
{
    uint8_t hello[1024];
    struct acceptor a;
    size_t n, bytes, sent = 0;
    uint64_t began;
    int packets, mute, drip;

    (void)state;
    acceptor_start(&a, ONE | 1u << REMUS_CHANNEL_PACKETS, false, 30000);
    n = first_flight(a.secret, hello, sizeof(hello));
    mute = raw_connect(a.port);     /* says hello and nothing more */
    assert_true(write_all(mute, hello, n));
    drip = raw_connect(a.port);     /* an octet now and then */
    assert_true(write_all(drip, hello, 1));
    began = remus_now_ms();
    packets = right_one(&a, REMUS_CHANNEL_PACKETS);
    assert_true(remus_now_ms() - began < 3000);
    while (remus_now_ms() - began < REMUS_OPEN_DEADLINE_MS + 2000 &&
           write_all(drip, hello + ++sent, 1))
        poll(NULL, 0, 100);
    assert_true(sent < n);
    assert_true(remus_now_ms() - began >= REMUS_OPEN_DEADLINE_MS - 500);
    assert_true(remus_now_ms() - began < REMUS_OPEN_DEADLINE_MS + 2000);
    assert_true(closes_within(mute, 1000, &bytes));
    close(mute);
    close(drip);
    right_one_still_gets_in(&a);
    close(packets);
    close(a.fds[REMUS_CHANNEL_PACKETS]);
}

/* ---- The wrong receiver ---- */

static void a_receiver_that_says_nothing_is_waited_for_until_the_deadline(void **state)
{
    uint8_t secret[REMUS_SECRET_BYTES] = {1};
    char error[REMUS_ERROR_BYTES];
    uint64_t began = remus_now_ms();
    uint16_t port;
    int listener, fd;

    (void)state;
    assert_int_equal(remus_listen("127.0.0.1", 0, &listener, &port, error), 0);
    assert_int_equal(remus_connect_channel("127.0.0.1", port, REMUS_CHANNEL_LINK, secret, false,
                                           300, &fd, error), -ETIMEDOUT);
    assert_non_null(strstr(error, "handshake"));
    assert_true(remus_now_ms() - began < 3000);
    close(listener);
}

struct impostor {
    int listener;
    bool certificate;       /* else: a pre-shared key of its own */
    gnutls_certificate_credentials_t x509;
    gnutls_psk_server_credentials_t psk;
    int handshake;          /* how it ended */
};

static int any_key(gnutls_session_t session, const char *identity, gnutls_datum_t *key)
{
    (void)session;
    (void)identity;
    key->data = gnutls_calloc(1, 32);
    key->size = 32;
    return key->data ? 0 : -1;
}

static void self_signed(struct impostor *im)
{
    gnutls_x509_privkey_t key;
    gnutls_x509_crt_t crt;
    uint8_t serial = 1;

    assert_int_equal(gnutls_x509_privkey_init(&key), 0);
    assert_int_equal(gnutls_x509_privkey_generate(key, GNUTLS_PK_EDDSA_ED25519, 0, 0), 0);
    assert_int_equal(gnutls_x509_crt_init(&crt), 0);
    gnutls_x509_crt_set_version(crt, 3);
    gnutls_x509_crt_set_serial(crt, &serial, 1);
    gnutls_x509_crt_set_activation_time(crt, time(NULL) - 60);
    gnutls_x509_crt_set_expiration_time(crt, time(NULL) + 3600);
    gnutls_x509_crt_set_key(crt, key);
    assert_int_equal(gnutls_x509_crt_sign2(crt, crt, key, GNUTLS_DIG_SHA512, 0), 0);
    assert_int_equal(gnutls_certificate_allocate_credentials(&im->x509), 0);
    assert_int_equal(gnutls_certificate_set_x509_key(im->x509, &crt, 1, key), 0);
    gnutls_x509_crt_deinit(crt);
    gnutls_x509_privkey_deinit(key);
}

static void *impostor_thread(void *arg)
{
    struct impostor *im = arg;
    struct pollfd p = {.fd = im->listener, .events = POLLIN};
    gnutls_session_t session;
    int fd;

    poll(&p, 1, 3000);
    fd = accept(im->listener, NULL, NULL);
    gnutls_init(&session, GNUTLS_SERVER | GNUTLS_NO_SIGNAL);
    gnutls_priority_set_direct(session, im->certificate ? "NORMAL" : "NORMAL:-KX-ALL:+ECDHE-PSK",
                               NULL);
    if (im->certificate)
        gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, im->x509);
    else
        gnutls_credentials_set(session, GNUTLS_CRD_PSK, im->psk);
    gnutls_transport_set_int(session, fd);
    gnutls_handshake_set_timeout(session, 3000);
    im->handshake = gnutls_handshake(session);
    gnutls_deinit(session);
    close(fd);
    return NULL;
}

static void is_refused(struct impostor *im)
{
    uint8_t secret[REMUS_SECRET_BYTES] = {1};
    char error[REMUS_ERROR_BYTES] = "";
    pthread_t thread;
    uint16_t port;
    int fd, rc;

    assert_int_equal(remus_listen("127.0.0.1", 0, &im->listener, &port, error), 0);
    pthread_create(&thread, NULL, impostor_thread, im);
    rc = remus_connect_channel("127.0.0.1", port, REMUS_CHANNEL_LINK, secret, false, 3000, &fd,
                               error);
    pthread_join(thread, NULL);
    close(im->listener);
    assert_true(rc == -EACCES || rc == -EPIPE);
    assert_int_equal(fd, -1);
    assert_true(im->handshake < 0);
}

static void a_receiver_with_another_key_is_refused(void **state)
{
    struct impostor im = {.certificate = false};

    (void)state;
    assert_int_equal(gnutls_psk_allocate_server_credentials(&im.psk), 0);
    gnutls_psk_set_server_credentials_function(im.psk, any_key);
    is_refused(&im);
    gnutls_psk_free_server_credentials(im.psk);
}

static void a_receiver_with_a_certificate_is_refused(void **state)
{
    struct impostor im = {.certificate = true};

    (void)state;
    self_signed(&im);
    is_refused(&im);
    gnutls_certificate_free_credentials(im.x509);
}

/* One that has the key, but would do with less than the right side asks for. */
static void a_handshake_without_fresh_keys_is_refused(void **state)
{
    gnutls_psk_client_credentials_t psk;
    gnutls_session_t session;
    struct acceptor a;
    gnutls_datum_t key;
    int fd, r;

    (void)state;
    acceptor_start(&a, ONE, false, 10000);
    assert_int_equal(gnutls_psk_allocate_client_credentials(&psk), 0);
    key = (gnutls_datum_t){a.secret, sizeof(a.secret)};
    assert_int_equal(gnutls_psk_set_client_credentials(psk, "remus", &key, GNUTLS_PSK_KEY_RAW), 0);
    fd = raw_connect(a.port);
    gnutls_init(&session, GNUTLS_CLIENT | GNUTLS_NO_SIGNAL);
    assert_int_equal(gnutls_priority_set_direct(session, "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:"
                                                "+PSK", NULL), 0);
    gnutls_credentials_set(session, GNUTLS_CRD_PSK, psk);
    gnutls_transport_set_int(session, fd);
    gnutls_handshake_set_timeout(session, 3000);
    r = gnutls_handshake(session);
    assert_true(r < 0);
    gnutls_deinit(session);
    gnutls_psk_free_client_credentials(psk);
    close(fd);
    right_one_still_gets_in(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_channels_open_with_the_secret_and_carry_data),
        cmocka_unit_test(both_descriptors_are_blocking_afterwards),
        cmocka_unit_test(the_kernel_refuses_what_is_under_another_key),
        cmocka_unit_test(a_wrong_secret_is_turned_away_and_the_right_one_still_gets_in),
        cmocka_unit_test(guessing_ends_after_a_few_attempts),
        cmocka_unit_test(an_opening_in_clear_gets_nothing_even_with_the_secret),
        cmocka_unit_test(a_peer_that_expects_clear_text_is_said_to_be_one),
        cmocka_unit_test(a_handshake_that_is_cut_short_is_turned_away),
        cmocka_unit_test(a_recorded_hello_is_of_no_use),
        cmocka_unit_test(garbage_is_turned_away),
        cmocka_unit_test(slow_handshakes_end_at_the_deadline_and_keep_nobody_out),
        cmocka_unit_test(a_receiver_that_says_nothing_is_waited_for_until_the_deadline),
        cmocka_unit_test(a_receiver_with_another_key_is_refused),
        cmocka_unit_test(a_receiver_with_a_certificate_is_refused),
        cmocka_unit_test(a_handshake_without_fresh_keys_is_refused),
    };
    char error[REMUS_ERROR_BYTES];

    kernel_has_tls = !remus_ktls_probe(error);
    if (!kernel_has_tls)
        printf("# %s: a stand-in does the kernel's part\n", error);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
