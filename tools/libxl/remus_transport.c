#include "tools/libxl/remus_transport.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_tls.h"

/* ---- The secret ------------------------------------------------------------------------------ */

int remus_secret_new(uint8_t secret[REMUS_SECRET_BYTES])
{
    size_t have = 0;
    ssize_t r;

    while (have < REMUS_SECRET_BYTES) {
        r = getrandom(secret + have, REMUS_SECRET_BYTES - have, 0);
        if (r < 0 && errno != EINTR)
            return -errno;
        if (r > 0)
            have += (size_t)r;
    }
    return 0;
}

bool remus_secret_equal(const uint8_t *a, const uint8_t *b)
{
    volatile uint8_t differs = 0;
    size_t i;

    for (i = 0; i < REMUS_SECRET_BYTES; i++)
        differs |= a[i] ^ b[i];
    return differs == 0;
}

void remus_secret_format(char text[REMUS_SECRET_TEXT_BYTES],
                         const uint8_t secret[REMUS_SECRET_BYTES])
{
    size_t i;

    for (i = 0; i < REMUS_SECRET_BYTES; i++)
        snprintf(text + 2 * i, 3, "%02x", secret[i]);
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

int remus_secret_parse(uint8_t secret[REMUS_SECRET_BYTES], const char *text)
{
    size_t i;

    if (strlen(text) != REMUS_SECRET_TEXT_BYTES - 1)
        return -EINVAL;
    for (i = 0; i < REMUS_SECRET_BYTES; i++) {
        int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);

        if (high < 0 || low < 0)
            return -EINVAL;
        secret[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

/* ---- ssh ---------------------------------------------------------------------------------- */

/* In the child, between fork and exec. */
static void become_ssh(const char *ssh, const char *host, const char *command, int in, int out,
                       pid_t parent)
{
    sigset_t none;
    char *text = NULL;

    /* ssh keeps to these when they are ignored before it starts. */
    signal(SIGINT, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* After a takeover the receiver, and with it ssh, stays: nobody's ssh must not, nor keep the
     * terminal or pipe that it has as its standard error. */
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) || getppid() != parent)
        _exit(127);
    if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0)
        _exit(127);
    if (!ssh[0]) {
        execl("/bin/sh", "sh", "-c", host, (char *)NULL);
    } else {
        /* HOST and COMMAND are arguments of the shell, never part of its text. */
        if (asprintf(&text, "exec %s \"$0\" \"$1\"", ssh) < 0)
            _exit(127);
        execl("/bin/sh", "sh", "-c", text, host, command, (char *)NULL);
    }
    _exit(127);
}

int remus_ssh_spawn(struct remus_ssh *out, const char *ssh, const char *host, const char *command)
{
    int down[2] = {-1, -1}, up[2] = {-1, -1};
    int rc = 0, i;
    pid_t pid, parent = getpid();

    *out = (struct remus_ssh){.in_fd = -1, .out_fd = -1};
    /* ssh would take a host that begins with '-' for an option. */
    if (ssh[0] && host[0] == '-')
        return -EINVAL;
    if (pipe2(down, O_CLOEXEC) < 0 || pipe2(up, O_CLOEXEC) < 0) {
        rc = -errno;
        goto out;
    }
    pid = fork();
    if (pid < 0) {
        rc = -errno;
        goto out;
    }
    if (pid == 0)
        become_ssh(ssh, host, command, down[0], up[1], parent);
    out->pid = pid;
    out->out_fd = down[1];
    out->in_fd = up[0];
    down[1] = up[0] = -1;
out:
    for (i = 0; i < 2; i++) {
        if (down[i] >= 0)
            close(down[i]);
        if (up[i] >= 0)
            close(up[i]);
    }
    return rc;
}

int remus_ssh_end(struct remus_ssh *s, unsigned int timeout_ms)
{
    uint64_t deadline = remus_now_ms() + timeout_ms;
    bool killed = false;
    int status;
    pid_t r;

    if (s->pid <= 0)
        return -1;
    for (;;) {
        r = waitpid(s->pid, &status, killed ? 0 : WNOHANG);
        if (r == s->pid || (r < 0 && errno != EINTR))
            break;
        if (!killed && remus_now_ms() >= deadline) {
            kill(s->pid, SIGKILL);
            killed = true;
            continue;
        }
        poll(NULL, 0, 20);
    }
    s->pid = 0;
    return r < 0 ? -1 : status;
}

void remus_host_address(char *out, size_t room, const char *host)
{
    const char *at;
    size_t length;

    if (!strncmp(host, "ssh://", 6)) {
        host += 6;
        at = strrchr(host, '@');
        if (at)
            host = at + 1;
        /* Only this form can carry ssh's port, which is not ours. */
        length = host[0] == '[' ? strcspn(host, "]") : strcspn(host, ":/");
    } else {
        at = strrchr(host, '@');
        if (at)
            host = at + 1;
        length = host[0] == '[' ? strcspn(host, "]") : strlen(host);
    }
    if (host[0] == '[') {
        host++;
        length--;
    }
    snprintf(out, room, "%.*s", (int)length, host);
}

/* ---- TCP ---------------------------------------------------------------------------------- */

int remus_address_parse(const char *text, char *addr, size_t room, uint16_t *port)
{
    const char *colon = NULL, *begin = text;
    size_t length = strlen(text);
    unsigned long value;
    char *end;

    *port = 0;
    if (text[0] == '[') {
        const char *close_bracket = strchr(text, ']');

        if (!close_bracket || (close_bracket[1] && close_bracket[1] != ':'))
            return -EINVAL;
        begin = text + 1;
        length = (size_t)(close_bracket - begin);
        colon = close_bracket[1] ? close_bracket + 1 : NULL;
    } else {
        colon = strchr(text, ':');
        /* More than one colon without brackets: an IPv6 address alone. */
        if (colon && strchr(colon + 1, ':'))
            colon = NULL;
        if (colon)
            length = (size_t)(colon - begin);
    }
    if (length >= room)
        return -EINVAL;
    if (colon) {
        if (colon[1] < '0' || colon[1] > '9')
            return -EINVAL;
        value = strtoul(colon + 1, &end, 10);
        if (*end || value == 0 || value > 65535)
            return -EINVAL;
        *port = (uint16_t)value;
    }
    memcpy(addr, begin, length);
    addr[length] = '\0';
    return 0;
}

/* Small frames leave at once, and a peer that vanished is noticed by the kernel too. */
static int tune(int fd)
{
    int one = 1, idle = 10, interval = 5, count = 3;

    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count)) < 0)
        return -errno;
    return 0;
}

static int make_blocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

static int listen_on(const struct addrinfo *ai, int *fd, uint16_t *bound)
{
    struct sockaddr_storage local;
    socklen_t length = sizeof(local);
    int s, one = 1, zero = 0, rc;

    s = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s < 0)
        return -errno;
    (void)setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (ai->ai_family == AF_INET6)
        (void)setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
    if (bind(s, ai->ai_addr, ai->ai_addrlen) < 0 || listen(s, 8) < 0 ||
        getsockname(s, (struct sockaddr *)&local, &length) < 0) {
        rc = -errno;
        close(s);
        return rc;
    }
    *bound = ntohs(local.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&local)->sin6_port
                                               : ((struct sockaddr_in *)&local)->sin_port);
    *fd = s;
    return 0;
}

int remus_listen(const char *addr, uint16_t port, int *fd, uint16_t *bound, char *error)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL, *ai;
    int r, rc = -EADDRNOTAVAIL, pass;
    char service[8];

    *fd = -1;
    snprintf(service, sizeof(service), "%u", port);
    r = getaddrinfo(addr && addr[0] ? addr : NULL, service, &hints, &list);
    if (r) {
        snprintf(error, REMUS_ERROR_BYTES, "'%s' is no address to listen on: %s",
                 addr ? addr : "", gai_strerror(r));
        return -EADDRNOTAVAIL;
    }
    /* IPv6 first: such a socket takes IPv4 as well. */
    for (pass = 0; pass < 2 && *fd < 0; pass++)
        for (ai = list; ai && *fd < 0; ai = ai->ai_next)
            if ((ai->ai_family == AF_INET6) == (pass == 0))
                rc = listen_on(ai, fd, bound);
    freeaddrinfo(list);
    if (*fd < 0) {
        snprintf(error, REMUS_ERROR_BYTES, "cannot listen on %s port %u: %s",
                 addr && addr[0] ? addr : "any address", port, strerror(-rc));
        return rc;
    }
    return 0;
}

struct pending {
    int fd;
    struct remus_tls *tls;          /* NULL: the handshake is over, or plain */
    size_t have;
    uint64_t deadline_ms;
    struct remus_open open;
};

static void pending_begin(struct pending *p, int fd, const uint8_t secret[REMUS_SECRET_BYTES],
                          bool plain, uint64_t deadline_ms)
{
    *p = (struct pending){.fd = fd, .deadline_ms = deadline_ms};
    if (!plain && remus_tls_new(&p->tls, fd, true, secret)) {
        close(fd);
        p->fd = -1;
    }
}

/* The descriptor is closed, unless keep_fd. */
static void pending_end(struct pending *p, bool keep_fd)
{
    remus_tls_free(p->tls);
    p->tls = NULL;
    if (!keep_fd && p->fd >= 0)
        close(p->fd);
    p->fd = -1;
    explicit_bzero(&p->open, sizeof(p->open));
}

/* 0: more is to come; 1: complete; -ENOTSUP: this host's fault; negative errno: it ended. */
static int pending_read(struct pending *p, char *error)
{
    ssize_t r;
    int rc;

    if (p->tls) {
        rc = remus_tls_step(p->tls, error);
        if (rc)
            return rc == -EAGAIN ? 0 : rc;
        remus_tls_free(p->tls);
        p->tls = NULL;
    }
    do
        r = read(p->fd, (uint8_t *)&p->open + p->have, sizeof(p->open) - p->have);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return errno == EAGAIN ? 0 : -errno;
    if (r == 0)
        return -EPIPE;
    p->have += (size_t)r;
    return p->have == sizeof(p->open);
}

/* The channel that a complete opening is for; 0: it proves nothing. */
static unsigned int open_channel(const struct remus_open *o,
                                 const uint8_t secret[REMUS_SECRET_BYTES])
{
    /* The secret first and always, so that time tells nothing about the other fields either. */
    bool known = remus_secret_equal(o->secret, secret);
    uint16_t channel = le16toh(o->channel);

    if (!known || le32toh(o->magic) != REMUS_OPEN_MAGIC ||
        le16toh(o->version) != REMUS_PROTOCOL_VERSION || channel >= REMUS_CHANNELS)
        return 0;
    return channel;
}

int remus_accept_channels(const int listen_fds[2], const uint8_t secret[REMUS_SECRET_BYTES],
                          bool plain, unsigned int wanted, unsigned int deadline_ms, int cancel_fd,
                          int fds[REMUS_CHANNELS], char *error)
{
    /* Where TLS has proven the peer, the secret is not shown. */
    static const uint8_t proven[REMUS_SECRET_BYTES];
    struct pending pending[REMUS_OPEN_PENDING_MAX];
    uint64_t deadline = remus_now_ms() + deadline_ms;
    unsigned int bad = 0, i;
    int rc;

    for (i = 0; i < REMUS_CHANNELS; i++)
        fds[i] = -1;
    for (i = 0; i < REMUS_OPEN_PENDING_MAX; i++)
        pending[i] = (struct pending){.fd = -1};

    while (wanted) {
        struct pollfd p[REMUS_OPEN_PENDING_MAX + 3], *const listening = p + REMUS_OPEN_PENDING_MAX;
        uint64_t now = remus_now_ms(), next = deadline;
        unsigned int slot = REMUS_OPEN_PENDING_MAX;
        int fd;

        if (bad >= REMUS_OPEN_BAD_MAX) {
            snprintf(error, REMUS_ERROR_BYTES,
                     "%u connections came that do not know this session's secret; giving up", bad);
            rc = -EACCES;
            goto out;
        }
        if (now >= deadline) {
            snprintf(error, REMUS_ERROR_BYTES,
                     "the primary did not connect within %u s: is the port filtered?",
                     deadline_ms / 1000);
            rc = -ETIMEDOUT;
            goto out;
        }
        for (i = 0; i < REMUS_OPEN_PENDING_MAX; i++) {
            p[i] = (struct pollfd){
                .fd = pending[i].fd,
                .events = pending[i].tls ? remus_tls_events(pending[i].tls) : POLLIN,
            };
            if (pending[i].fd < 0)
                slot = i;
            else if (pending[i].deadline_ms < next)
                next = pending[i].deadline_ms;
        }
        /* While all places are taken new connections wait in the kernel's queue. */
        for (i = 0; i < 2; i++)
            listening[i] = (struct pollfd){
                .fd = slot < REMUS_OPEN_PENDING_MAX ? listen_fds[i] : -1, .events = POLLIN,
            };
        listening[2] = (struct pollfd){.fd = cancel_fd, .events = POLLIN};
        if (poll(p, REMUS_OPEN_PENDING_MAX + 3, next > now ? (int)(next - now) : 0) < 0) {
            if (errno == EINTR)
                continue;
            rc = -errno;
            snprintf(error, REMUS_ERROR_BYTES, "waiting for the primary: %s", strerror(-rc));
            goto out;
        }
        if (listening[2].revents) {
            snprintf(error, REMUS_ERROR_BYTES, "the primary gave up before it connected");
            rc = -ECANCELED;
            goto out;
        }
        now = remus_now_ms();
        for (i = 0; i < REMUS_OPEN_PENDING_MAX; i++) {
            struct pending *q = &pending[i];
            unsigned int channel;
            int r = 0;

            if (q->fd < 0)
                continue;
            if (p[i].revents)
                r = pending_read(q, error);
            if (r == -ENOTSUP) {
                rc = r;
                goto out;
            }
            if (r == 0 && now < q->deadline_ms)
                continue;
            channel = r == 1 ? open_channel(&q->open, plain ? secret : proven) : 0;
            if (channel && wanted >> channel & 1 && !tune(q->fd) && !make_blocking(q->fd)) {
                fds[channel] = q->fd;
                wanted &= ~(1u << channel);
                pending_end(q, true);
            } else {
                bad++;
                pending_end(q, false);
            }
        }
        if (!listening[0].revents && !listening[1].revents)
            continue;
        /* The other one, if both have somebody, comes next. */
        fd = accept4(listening[!listening[0].revents].fd, NULL, NULL,
                     SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0)
            pending_begin(&pending[slot], fd, secret, plain, now + REMUS_OPEN_DEADLINE_MS);
    }
    rc = 0;
out:
    for (i = 0; i < REMUS_OPEN_PENDING_MAX; i++)
        pending_end(&pending[i], false);
    for (i = 0; rc && i < REMUS_CHANNELS; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
        fds[i] = -1;
    }
    return rc;
}

/* Connects within the deadline; the socket is blocking again afterwards. */
static int connect_one(const struct addrinfo *ai, uint64_t deadline, int *fd)
{
    struct pollfd p = {.events = POLLOUT};
    socklen_t length = sizeof(int);
    int s, r, failure = 0;
    uint64_t now;

    s = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s < 0)
        return -errno;
    if (connect(s, ai->ai_addr, ai->ai_addrlen) < 0) {
        if (errno != EINPROGRESS) {
            failure = errno;
            goto out;
        }
        p.fd = s;
        do {
            now = remus_now_ms();
            r = poll(&p, 1, now < deadline ? (int)(deadline - now) : 0);
        } while (r < 0 && errno == EINTR);
        if (r < 0)
            failure = errno;
        else if (r == 0)
            failure = ETIMEDOUT;
        else if (getsockopt(s, SOL_SOCKET, SO_ERROR, &failure, &length) < 0)
            failure = errno;
    }
    if (!failure)
        failure = -make_blocking(s);
    if (!failure)
        failure = -tune(s);
out:
    if (failure) {
        close(s);
        return -failure;
    }
    *fd = s;
    return 0;
}

/* Until the peer has proven itself, as we have. */
static int connect_tls(int fd, const uint8_t secret[REMUS_SECRET_BYTES], uint64_t deadline,
                       char *error)
{
    struct remus_tls *tls;
    int rc;

    rc = remus_tls_new(&tls, fd, false, secret);
    if (rc) {
        snprintf(error, REMUS_ERROR_BYTES, "no TLS session can be made: %s", strerror(-rc));
        return rc;
    }
    while ((rc = remus_tls_step(tls, error)) == -EAGAIN) {
        struct pollfd p = {.fd = fd, .events = remus_tls_events(tls)};
        uint64_t now = remus_now_ms();

        if (now >= deadline) {
            snprintf(error, REMUS_ERROR_BYTES, "no answer in the TLS handshake");
            rc = -ETIMEDOUT;
            break;
        }
        if (poll(&p, 1, (int)(deadline - now)) < 0 && errno != EINTR) {
            rc = -errno;
            snprintf(error, REMUS_ERROR_BYTES, "poll: %s", strerror(errno));
            break;
        }
    }
    remus_tls_free(tls);
    return rc;
}

int remus_connect_channel(const char *addr, uint16_t port, uint16_t channel,
                          const uint8_t secret[REMUS_SECRET_BYTES], bool plain,
                          unsigned int deadline_ms, int *fd, char *error)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    uint64_t deadline = remus_now_ms() + deadline_ms;
    struct addrinfo *list = NULL, *ai;
    struct remus_open open = {
        .magic = htole32(REMUS_OPEN_MAGIC),
        .version = htole16(REMUS_PROTOCOL_VERSION),
        .channel = htole16(channel),
    };
    char service[8], why[REMUS_ERROR_BYTES] = "";
    int r, rc = -EADDRNOTAVAIL;

    *fd = -1;
    snprintf(service, sizeof(service), "%u", port);
    r = getaddrinfo(addr, service, &hints, &list);
    if (r) {
        snprintf(error, REMUS_ERROR_BYTES,
                 "'%s' has no address here (%s): name one with --data-address", addr,
                 gai_strerror(r));
        return -EADDRNOTAVAIL;
    }
    for (ai = list; ai && *fd < 0; ai = ai->ai_next)
        rc = connect_one(ai, deadline, fd);
    freeaddrinfo(list);
    if (*fd < 0) {
        snprintf(error, REMUS_ERROR_BYTES,
                 "cannot connect to %s port %u: %s (is the port filtered? --data-address ADDR:PORT "
                 "chooses both)", addr, port, strerror(-rc));
        return rc;
    }
    rc = 0;
    if (plain)
        memcpy(open.secret, secret, sizeof(open.secret));
    else
        rc = connect_tls(*fd, secret, deadline, why);
    /* 40 bytes into an empty send buffer: all or an error. */
    if (!rc && send(*fd, &open, sizeof(open), MSG_NOSIGNAL) != (ssize_t)sizeof(open)) {
        rc = errno ? -errno : -EPIPE;
        snprintf(why, sizeof(why), "%s", strerror(-rc));
    }
    if (rc) {
        snprintf(error, REMUS_ERROR_BYTES, "%.40s port %u: %.190s", addr, port, why);
        close(*fd);
        *fd = -1;
    }
    explicit_bzero(&open, sizeof(open));
    return rc;
}
