#include "tools/libxl/remus_message.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <yajl/yajl_gen.h>
#include <yajl/yajl_tree.h>

uint64_t remus_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Bytes of the UTF-8 sequence at s; 0: it is none, or a control character. */
static size_t utf8_length(const unsigned char *s)
{
    size_t length, i;
    uint32_t code;

    if (s[0] < 0x80)
        return s[0] >= 0x20 && s[0] != 0x7f ? 1 : 0;
    if (s[0] >= 0xc2 && s[0] <= 0xdf) {
        length = 2;
        code = s[0] & 0x1f;
    } else if (s[0] >= 0xe0 && s[0] <= 0xef) {
        length = 3;
        code = s[0] & 0x0f;
    } else if (s[0] >= 0xf0 && s[0] <= 0xf4) {
        length = 4;
        code = s[0] & 0x07;
    } else {
        return 0;
    }
    for (i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (s[i] & 0x3f);
    }
    /* C1 controls move a terminal's cursor too; surrogates and overlong forms are no characters. */
    if (code < 0xa0 || (code >= 0xd800 && code <= 0xdfff) || code > 0x10ffff)
        return 0;
    if ((length == 3 && code < 0x800) || (length == 4 && code < 0x10000))
        return 0;
    return length;
}

void remus_text_clean(char *out, size_t room, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t length, used = 0;

    if (!room)
        return;
    while (*s) {
        length = utf8_length(s);
        if (used + (length ? length : 1) >= room)
            break;
        if (length) {
            memcpy(out + used, s, length);
            used += length;
            s += length;
        } else {
            out[used++] = '?';
            s++;
        }
    }
    out[used] = '\0';
}

/* ---- Writing ------------------------------------------------------------------------------ */

struct remus_object {
    yajl_gen gen;
    bool failed;
};

static void put(struct remus_object *o, yajl_gen_status status)
{
    if (status != yajl_gen_status_ok)
        o->failed = true;
}

static void put_string(struct remus_object *o, const char *value)
{
    size_t room = strlen(value) + 1;
    char *clean = malloc(room);

    if (!clean) {
        o->failed = true;
        return;
    }
    remus_text_clean(clean, room, value);
    put(o, yajl_gen_string(o->gen, (const unsigned char *)clean, strlen(clean)));
    free(clean);
}

struct remus_object *remus_object_new(const char *type)
{
    struct remus_object *o = calloc(1, sizeof(*o));

    if (!o)
        return NULL;
    o->gen = yajl_gen_alloc(NULL);
    if (!o->gen) {
        free(o);
        return NULL;
    }
    put(o, yajl_gen_map_open(o->gen));
    remus_object_string(o, "type", type);
    return o;
}

void remus_object_string(struct remus_object *o, const char *key, const char *value)
{
    if (!o || !value)
        return;
    put_string(o, key);
    put_string(o, value);
}

void remus_object_number(struct remus_object *o, const char *key, uint64_t value)
{
    if (!o)
        return;
    put_string(o, key);
    put(o, yajl_gen_integer(o->gen, value > INT64_MAX ? INT64_MAX : (long long)value));
}

void remus_object_flag(struct remus_object *o, const char *key, bool value)
{
    if (!o)
        return;
    put_string(o, key);
    put(o, yajl_gen_bool(o->gen, value));
}

void remus_object_list(struct remus_object *o, const char *key)
{
    if (!o)
        return;
    put_string(o, key);
    put(o, yajl_gen_array_open(o->gen));
}

void remus_object_item(struct remus_object *o, const char *value)
{
    if (o)
        put_string(o, value);
}

void remus_object_list_end(struct remus_object *o)
{
    if (o)
        put(o, yajl_gen_array_close(o->gen));
}

void remus_object_map(struct remus_object *o, const char *key)
{
    if (!o)
        return;
    if (key)
        put_string(o, key);
    put(o, yajl_gen_map_open(o->gen));
}

void remus_object_map_end(struct remus_object *o)
{
    if (o)
        put(o, yajl_gen_map_close(o->gen));
}

char *remus_object_finish(struct remus_object *o)
{
    const unsigned char *text;
    size_t length;
    char *line = NULL;

    if (!o)
        return NULL;
    put(o, yajl_gen_map_close(o->gen));
    if (!o->failed && yajl_gen_get_buf(o->gen, &text, &length) == yajl_gen_status_ok &&
        length + 1 <= REMUS_LINE_MAX) {
        line = malloc(length + 2);
        if (line) {
            memcpy(line, text, length);
            line[length] = '\n';
            line[length + 1] = '\0';
        }
    }
    yajl_gen_free(o->gen);
    free(o);
    return line;
}

/* ---- Reading ------------------------------------------------------------------------------- */

struct remus_message {
    yajl_val tree;
    const char *type;
};

/* The parser's tree is freed recursively: its depth is bounded before it is built. */
static bool nesting_ok(const char *line, size_t length)
{
    unsigned int depth = 0;
    bool in_string = false;
    size_t i;

    for (i = 0; i < length; i++) {
        if (in_string) {
            if (line[i] == '\\')
                i++;
            else if (line[i] == '"')
                in_string = false;
            continue;
        }
        switch (line[i]) {
        case '"':
            in_string = true;
            break;
        case '{':
        case '[':
            if (++depth > REMUS_LINE_NESTING)
                return false;
            break;
        case '}':
        case ']':
            if (depth)
                depth--;
            break;
        default:
            break;
        }
    }
    return true;
}

static yajl_val field(yajl_val object, const char *key)
{
    size_t i;

    if (!YAJL_IS_OBJECT(object))
        return NULL;
    for (i = 0; i < object->u.object.len; i++)
        if (!strcmp(object->u.object.keys[i], key))
            return object->u.object.values[i];
    return NULL;
}

int remus_message_parse(struct remus_message **out, const char *line, size_t length)
{
    struct remus_message *m = NULL;
    char *text = NULL, error[128];
    int rc = -EBADMSG;

    *out = NULL;
    if (length > REMUS_LINE_MAX || !nesting_ok(line, length))
        return -E2BIG;
    if (memchr(line, '\0', length))
        return -EBADMSG;
    text = strndup(line, length);
    m = calloc(1, sizeof(*m));
    if (!text || !m) {
        rc = -ENOMEM;
        goto out;
    }
    m->tree = yajl_tree_parse(text, error, sizeof(error));
    if (!m->tree)
        goto out;
    m->type = YAJL_GET_STRING(field(m->tree, "type"));
    if (!m->type)
        goto out;
    *out = m;
    m = NULL;
    rc = 0;
out:
    remus_message_free(m);
    free(text);
    return rc;
}

void remus_message_free(struct remus_message *m)
{
    if (!m)
        return;
    yajl_tree_free(m->tree);
    free(m);
}

const char *remus_message_type(const struct remus_message *m)
{
    return m->type;
}

const char *remus_message_string(const struct remus_message *m, const char *key)
{
    return YAJL_GET_STRING(field(m->tree, key));
}

/* "key", or "map.key". */
static yajl_val inner_field(yajl_val object, const char *key)
{
    const char *dot = strchr(key, '.');
    char map[64];

    if (!dot)
        return field(object, key);
    snprintf(map, sizeof(map), "%.*s", (int)(dot - key), key);
    return field(field(object, map), dot + 1);
}

bool remus_message_number(const struct remus_message *m, const char *key, uint64_t max,
                          uint64_t *value)
{
    yajl_val v = inner_field(m->tree, key);

    if (!YAJL_IS_INTEGER(v) || YAJL_GET_INTEGER(v) < 0 || (uint64_t)YAJL_GET_INTEGER(v) > max)
        return false;
    *value = (uint64_t)YAJL_GET_INTEGER(v);
    return true;
}

bool remus_message_flag(const struct remus_message *m, const char *key, bool fallback)
{
    yajl_val v = field(m->tree, key);

    if (YAJL_IS_TRUE(v))
        return true;
    return YAJL_IS_FALSE(v) ? false : fallback;
}

size_t remus_message_count(const struct remus_message *m, const char *key)
{
    yajl_val v = field(m->tree, key);

    return YAJL_IS_ARRAY(v) ? v->u.array.len : 0;
}

static yajl_val item(const struct remus_message *m, const char *key, size_t index,
                     const char *name)
{
    yajl_val v = field(m->tree, key);

    if (!YAJL_IS_ARRAY(v) || index >= v->u.array.len)
        return NULL;
    v = v->u.array.values[index];
    return name ? field(v, name) : v;
}

const char *remus_message_item(const struct remus_message *m, const char *key, size_t index,
                               const char *name)
{
    return YAJL_GET_STRING(item(m, key, index, name));
}

uint64_t remus_message_item_number(const struct remus_message *m, const char *key, size_t index,
                                   const char *name)
{
    yajl_val v = item(m, key, index, name);

    return YAJL_IS_INTEGER(v) && YAJL_GET_INTEGER(v) > 0 ? (uint64_t)YAJL_GET_INTEGER(v) : 0;
}

/* ---- Conversation ---------------------------------------------------------------------------- */

struct remus_talk {
    int in, out;
    bool ended, broken;     /* nothing more will come; nobody reads */
    size_t in_have, out_have;
    char bad[80];
    char input[REMUS_LINE_MAX];
    char output[REMUS_TALK_OUT_MAX];
};

static int set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

int remus_talk_new(struct remus_talk **out, int in_fd, int out_fd)
{
    struct remus_talk *t;
    int rc;

    *out = NULL;
    rc = set_nonblocking(in_fd);
    if (!rc)
        rc = set_nonblocking(out_fd);
    if (rc)
        return rc;
    t = calloc(1, sizeof(*t));
    if (!t)
        return -ENOMEM;
    t->in = in_fd;
    t->out = out_fd;
    *out = t;
    return 0;
}

void remus_talk_free(struct remus_talk *t)
{
    if (!t)
        return;
    close(t->in);
    if (t->out != t->in)
        close(t->out);
    free(t);
}

int remus_talk_in(const struct remus_talk *t)
{
    return t->ended ? -1 : t->in;
}

int remus_talk_out(const struct remus_talk *t)
{
    return t->out_have && !t->broken ? t->out : -1;
}

const char *remus_talk_bad(const struct remus_talk *t)
{
    return t->bad;
}

int remus_talk_flush(struct remus_talk *t)
{
    ssize_t r;

    if (t->broken)
        return -EPIPE;
    while (t->out_have) {
        r = write(t->out, t->output, t->out_have);
        if (r < 0) {
            if (errno == EINTR)
                continue;
            if (errno == EAGAIN)
                return 0;
            t->broken = true;
            return -EPIPE;
        }
        t->out_have -= (size_t)r;
        memmove(t->output, t->output + r, t->out_have);
    }
    return 0;
}

int remus_talk_send(struct remus_talk *t, struct remus_object *o, bool may_drop)
{
    char *line = remus_object_finish(o);
    size_t length;
    int rc = 0;

    if (!line)
        return -ENOMEM;
    length = strlen(line);
    if (t->broken)
        rc = -EPIPE;
    else if (length > sizeof(t->output) - t->out_have)
        rc = may_drop ? 0 : -ENOBUFS;
    else if (!may_drop || t->out_have + length <= sizeof(t->output) / 2) {
        memcpy(t->output + t->out_have, line, length);
        t->out_have += length;
        rc = remus_talk_flush(t);
    }
    free(line);
    return rc;
}

int remus_talk_fill(struct remus_talk *t)
{
    ssize_t r;

    if (t->ended)
        return -EPIPE;
    if (t->in_have == sizeof(t->input))
        return 0; /* _next says that the line is too long */
    do
        r = read(t->in, t->input + t->in_have, sizeof(t->input) - t->in_have);
    while (r < 0 && errno == EINTR);
    if (r > 0) {
        t->in_have += (size_t)r;
        return 0;
    }
    if (r < 0 && errno == EAGAIN)
        return 0;
    t->ended = true;
    return -EPIPE;
}

int remus_talk_next(struct remus_talk *t, struct remus_message **m)
{
    char *end;
    size_t length, n;
    int rc;

    *m = NULL;
    end = memchr(t->input, '\n', t->in_have);
    if (!end) {
        if (t->in_have < sizeof(t->input))
            return 0;
        length = t->in_have;
        rc = -E2BIG;
    } else {
        length = (size_t)(end - t->input);
        rc = remus_message_parse(m, t->input, length);
        length++;
    }
    if (rc) {
        char head[sizeof(t->bad)];

        n = length < sizeof(head) ? length : sizeof(head);
        memcpy(head, t->input, n);
        head[n ? n - 1 : 0] = '\0';
        remus_text_clean(t->bad, sizeof(t->bad), head);
    }
    t->in_have -= length;
    memmove(t->input, t->input + length, t->in_have);
    return rc ? rc : 1;
}

int remus_talk_wait(struct remus_talk *t, unsigned int timeout_ms, struct remus_message **m)
{
    uint64_t deadline = remus_now_ms() + timeout_ms;
    int rc;

    for (;;) {
        struct pollfd p[2];
        uint64_t now;

        rc = remus_talk_next(t, m);
        if (rc)
            return rc < 0 ? rc : 0;
        if (t->ended)
            return -EPIPE;
        now = remus_now_ms();
        if (now >= deadline)
            return -ETIMEDOUT;
        p[0] = (struct pollfd){.fd = remus_talk_in(t), .events = POLLIN};
        p[1] = (struct pollfd){.fd = remus_talk_out(t), .events = POLLOUT};
        if (poll(p, 2, (int)(deadline - now)) < 0 && errno != EINTR)
            return -errno;
        if (p[1].revents)
            (void)remus_talk_flush(t);
        if (p[0].revents) {
            rc = remus_talk_fill(t);
            /* Lines that came before the end are still handed out. */
            if (rc && rc != -EPIPE)
                return rc;
        }
    }
}
