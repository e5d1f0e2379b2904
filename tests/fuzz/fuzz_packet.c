/*
 * fuzz_packet.c: any bytes as a frame (libFuzzer).  The first byte chooses a rewrite; the rest is
 * the frame, in memory of exactly its size.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tools/remus/packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
    if (!holds) {
        abort();
    }
}

static void check_offsets(const struct packet *p)
{
    check(p->length <= REMUS_PACKET_MAX);
    check(p->end <= p->length);
    switch (p->kind) {
    case PACKET_TCP:
        check(p->payload >= p->l4 + 20);
        check(p->tcp.sack_blocks <= PACKET_SACK_MAX);
        check(!p->tcp.sack_blocks || p->tcp.sack_at + 2 + 8u * p->tcp.sack_blocks <= p->payload);
        check(!p->tcp.has_timestamp || p->tcp.timestamp_at + 8 <= p->payload);
        /* fall through */
    case PACKET_UDP:
    case PACKET_ICMP:
    case PACKET_ICMPV6:
    case PACKET_IP:
    case PACKET_FRAGMENT:
        check(p->ip_version == 4 || p->ip_version == 6);
        check(p->l3 < p->l4 && p->l4 <= p->payload && p->payload <= p->end);
        break;
    case PACKET_ARP:
        check(p->l3 < p->end);
        break;
    }
}

static void rewrite(uint8_t choice, uint8_t *frame, size_t size, struct packet *p)
{
    static const uint32_t blocks[PACKET_SACK_MAX][2] = {{1, 2}, {3, 4}, {5, 6}, {7, 8}};
    bool partial = choice & 0x80, was_right = packet_checksum_ok(frame, p);
    uint8_t l4_length = (uint8_t)(p->payload - p->l4);
    struct packet again;

    switch (choice & 7) {
    case 0:
        packet_tcp_shift_seq(frame, p, 0x12345678, partial);
        break;
    case 1:
        packet_tcp_shift_ack(frame, p, 0xfffffff0, partial);
        break;
    case 2:
        packet_tcp_shift_sack(frame, p, 0x80000001, partial);
        break;
    case 3:
        packet_tcp_shift_tsval(frame, p, 77, partial);
        break;
    case 4:
        packet_tcp_shift_tsecr(frame, p, 77, partial);
        break;
    case 5:
        packet_tcp_set_window(frame, p, (uint16_t)(choice * 257), partial);
        break;
    case 6:
        packet_tcp_set_sack(frame, p, blocks, (choice >> 3) % (p->tcp.sack_blocks + 1u), partial);
        break;
    default:
        packet_checksum_fill(frame, p);
        was_right = true;
        partial = false;
    }
    check(!packet_parse(&again, frame, size));
    check(again.kind == PACKET_TCP && again.payload - again.l4 == l4_length);
    check(again.tcp.seq == p->tcp.seq && again.tcp.ack == p->tcp.ack);
    check(again.tcp.window == p->tcp.window);
    if (was_right && !partial) {
        check(packet_checksum_ok(frame, &again));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[PACKET_DESCRIBE_MAX];
    struct packet_key key, back;
    struct remus_flow flow;
    struct packet p;
    uint8_t *frame;
    int rc;

    if (!size) {
        return 0;
    }
    frame = malloc(size);
    memcpy(frame, data + 1, size - 1);
    rc = packet_parse(&p, frame, size - 1);
    check(!rc == (p.kind != PACKET_BAD));
    check_offsets(&p);
    packet_key(&key, &p, data[0] & 1);
    packet_key_describe(&key, text, sizeof(text));
    check(strlen(text) < sizeof(text) - 1);
    if (p.kind == PACKET_TCP) {
        packet_key_to_flow(&flow, &key);
        packet_key_from_flow(&back, &flow);
        /* An IPv6 packet may carry mapped addresses; that much is lost on the way. */
        back.ip_version = key.ip_version;
        check(!memcmp(&key, &back, sizeof(key)));
        rewrite(data[0], frame, size - 1, &p);
    } else if (!rc) {
        packet_checksum_fill(frame, &p);
    }
    free(frame);
    return 0;
}
