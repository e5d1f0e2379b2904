/*
 * What the lab's guest service and its client agree on.
 *
 * port   protocol  request              answer
 * 7000   TCP       "inc\n"              "<this connection's count> <all connections' count>\n"
 * 7001   TCP       "<N>\n"              N bytes of lab_fill(), then end of stream
 * 7002   TCP       bytes, half-close    "<count> <lab_sum in hex>\n", then end of stream
 * 7003   TCP       HTTP/1.0 request     LAB_HTTP_ANSWER, then end of stream
 *                  HTTP/1.1 request     LAB_HTTP_KEPT, and the connection stays
 * 7004   UDP       payload              "echo " payload
 * 7005   TCP, UDP  line or payload      "<nanoseconds> " line: two copies never agree
 * 7006   TCP       "dirty <N> [<M>]\n"  "ok\n": from now on N pages a second are written, in turn
 *                                       among M (default 4096); 0 stops it
 *                  "work <N> [<M>]\n"   "ok\n", and
 *                  "progress\n"         "<pages>\n": see labwork.h
 * 7007   TCP       "poweroff\n" "reboot\n" "crash\n"   "ok\n", then it happens
 * 7008   TCP       "call <PORT> <N>\n"  "ok\n": the guest connects to PORT of whoever said so and
 *                                       sends "1\n"; for each number that it gets back it sends the
 *                                       next.  After N of them it connects anew and counts on (0:
 *                                       never).  Another answer, or a broken connection, ends it
 * 7009   TCP       "disk <N>\n" "stats\n"   work on the disk: see labdisk.h
 * 7010   TCP       "open\n" "put <N>\n" ...  a database on the disk: see labdb.h
 * 7011   TCP       a shell, which init has listen there
 */
#ifndef LABPROTO_H
#define LABPROTO_H

#include <stddef.h>
#include <stdint.h>

enum {
    LAB_PORT_COUNTER = 7000,
    LAB_PORT_SOURCE = 7001,
    LAB_PORT_SINK = 7002,
    LAB_PORT_HTTP = 7003,
    LAB_PORT_ECHO = 7004,
    LAB_PORT_DIVERGE = 7005,
    LAB_PORT_DIRTY = 7006,
    LAB_PORT_POWER = 7007,
    LAB_PORT_CALL = 7008,
    LAB_PORT_DISK = 7009,
    LAB_PORT_DB = 7010,
};

#define LAB_LINE_MAX 256
#define LAB_HTTP_BODY "The same answer to everybody, every time.\n"
#define LAB_HTTP_ANSWER                                                                            \
    "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 42\r\n"                        \
    "Connection: close\r\n\r\n" LAB_HTTP_BODY

#define LAB_HTTP_KEPT                                                                              \
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 42\r\n\r\n" LAB_HTTP_BODY

_Static_assert(sizeof(LAB_HTTP_BODY) - 1 == 42, "Content-Length of the fixed answer");

/* The bytes of the endless deterministic stream from an offset on. */
static inline void lab_fill(uint8_t *buf, uint64_t offset, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++, offset++) {
        uint64_t x = (offset >> 3) * 0x9e3779b97f4a7c15ULL;

        x ^= x >> 29;
        buf[i] = (uint8_t)(x >> ((offset & 7) * 8));
    }
}

#define LAB_SUM_START 0xcbf29ce484222325ULL

/* A running FNV-1a sum over bytes; start with LAB_SUM_START. */
static inline uint64_t lab_sum(uint64_t sum, const uint8_t *buf, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        sum = (sum ^ buf[i]) * 0x100000001b3ULL;
    return sum;
}

#endif
