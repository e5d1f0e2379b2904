#include "tools/libxl/remus_tls.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/tls.h>

#include "tools/libxl/remus_transport.h"

#ifndef SOL_TLS
#define SOL_TLS 282
#endif
#ifndef TLS_RX_EXPECT_NO_PAD
#define TLS_RX_EXPECT_NO_PAD 4
#endif

_Static_assert(sizeof(((struct remus_tls_keys *)0)->key) == TLS_CIPHER_CHACHA20_POLY1305_KEY_SIZE &&
               sizeof(((struct remus_tls_keys *)0)->iv) == TLS_CIPHER_CHACHA20_POLY1305_IV_SIZE &&
               sizeof(((struct remus_tls_keys *)0)->sequence) ==
                   TLS_CIPHER_CHACHA20_POLY1305_REC_SEQ_SIZE, "the kernel's sizes");

static int set_direction(int fd, int direction, const struct remus_tls_keys *keys)
{
    struct tls12_crypto_info_chacha20_poly1305 info = {
        .info = {.version = TLS_1_3_VERSION, .cipher_type = TLS_CIPHER_CHACHA20_POLY1305},
    };
    int rc = 0;

    memcpy(info.key, keys->key, sizeof(info.key));
    memcpy(info.iv, keys->iv, sizeof(info.iv));
    memcpy(info.rec_seq, keys->sequence, sizeof(info.rec_seq));
    if (setsockopt(fd, SOL_TLS, direction, &info, sizeof(info)) < 0)
        rc = -errno;
    explicit_bzero(&info, sizeof(info));
    return rc;
}

int remus_ktls_set(int fd, const struct remus_tls_keys *send, const struct remus_tls_keys *receive,
                   char *error)
{
    const int one = 1;
    int rc;

    if (setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")) < 0) {
        snprintf(error, REMUS_ERROR_BYTES, "the kernel has no TLS for TCP connections (%s): run "
                 "modprobe tls", strerror(errno));
        return -ENOTSUP;
    }
    rc = set_direction(fd, TLS_TX, send);
    if (!rc)
        rc = set_direction(fd, TLS_RX, receive);
    if (rc) {
        snprintf(error, REMUS_ERROR_BYTES, "the kernel's TLS has no CHACHA20-POLY1305 (%s): run "
                 "modprobe chacha20poly1305", strerror(-rc));
        return -ENOTSUP;
    }
    /* Neither side pads: records are decrypted into the reader's memory (older kernels: copied). */
    (void)setsockopt(fd, SOL_TLS, TLS_RX_EXPECT_NO_PAD, &one, sizeof(one));
    return 0;
}

int remus_ktls_probe(char *error)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    static const struct remus_tls_keys none;
    socklen_t length = sizeof(here);
    int listener, fd = -1, rc;

    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener >= 0)
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(listener, (struct sockaddr *)&here, sizeof(here)) < 0 ||
        listen(listener, 1) < 0 || getsockname(listener, (struct sockaddr *)&here, &length) < 0 ||
        connect(fd, (struct sockaddr *)&here, sizeof(here)) < 0) {
        snprintf(error, REMUS_ERROR_BYTES, "it cannot be tried on a connection to 127.0.0.1: %s",
                 strerror(errno));
        rc = -ENOTSUP;
    } else {
        rc = remus_ktls_set(fd, &none, &none, error);
    }
    if (fd >= 0)
        close(fd);
    if (listener >= 0)
        close(listener);
    return rc;
}
