/* LINK: tools/remus/nfq.c */
/* Taking a queue's messages apart, and what the verdict writer lets through. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <netlink/attr.h>
#include <netlink/msg.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tools/remus/nfq.h"

#define QUEUE 100
#define TYPE(msg) ((NFNL_SUBSYS_QUEUE << 8) | (msg))

static const uint8_t l2[14] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x08, 0x00 };
static const uint8_t l3[20] = { 0x45, 0, 0, 20, 'p', 'a', 'y', 'l', 'o', 'a', 'd' };

static struct nl_msg *message(int type, uint16_t queue)
{
    const struct nfgenmsg head = { .nfgen_family = AF_UNSPEC, .res_id = htons(queue) };
    struct nl_msg *msg = nlmsg_alloc_size(4096);

    assert_non_null(msg);
    memcpy(nlmsg_data(nlmsg_put(msg, 0, 0, TYPE(type), sizeof(head), NLM_F_REQUEST)), &head,
           sizeof(head));
    return msg;
}

static void put_packet_header(struct nl_msg *msg, uint32_t id)
{
    const struct nfqnl_msg_packet_hdr header = { .packet_id = htonl(id) };

    assert_int_equal(nla_put(msg, NFQA_PACKET_HDR, sizeof(header), &header), 0);
}

static void put_u32(struct nl_msg *msg, int type, uint32_t value)
{
    assert_int_equal(nla_put_u32(msg, type, htonl(value)), 0);
}

static void put_vlan(struct nl_msg *msg, uint16_t proto, uint16_t tci)
{
    struct nlattr *nest = nla_nest_start(msg, NFQA_VLAN);

    nla_put_u16(msg, NFQA_VLAN_PROTO, htons(proto));
    nla_put_u16(msg, NFQA_VLAN_TCI, htons(tci));
    nla_nest_end(msg, nest);
}

static void put_frame(struct nl_msg *msg)
{
    assert_int_equal(nla_put(msg, NFQA_L2HDR, sizeof(l2), l2), 0);
    assert_int_equal(nla_put(msg, NFQA_PAYLOAD, sizeof(l3), l3), 0);
}

static int parse(struct nl_msg *msg, struct nfq_frame *frame)
{
    return nfq_parse((uint8_t *)nlmsg_hdr(msg), nlmsg_hdr(msg)->nlmsg_len, frame);
}

static void a_frame_is_put_together(void **state)
{
    struct nl_msg *msg = message(NFQNL_MSG_PACKET, QUEUE);
    struct nfq_frame frame;

    (void)state;
    put_packet_header(msg, 0xfffffffe);
    put_u32(msg, NFQA_SKB_INFO, NFQA_SKB_GSO | NFQA_SKB_CSUMNOTREADY);
    put_frame(msg);
    assert_int_equal(parse(msg, &frame), 0);
    assert_int_equal(frame.packet_id, 0xfffffffe);
    assert_int_equal(frame.length, sizeof(l2) + sizeof(l3));
    assert_int_equal(frame.wire_length, frame.length);
    assert_int_equal(frame.l3_offset, sizeof(l2));
    assert_memory_equal(frame.bytes, l2, sizeof(l2));
    assert_memory_equal(frame.bytes + sizeof(l2), l3, sizeof(l3));
    assert_true(frame.gso && frame.csum_partial && !frame.truncated);
    nlmsg_free(msg);
}

static void a_vlan_tag_is_put_back_in_line(void **state)
{
    struct nl_msg *msg = message(NFQNL_MSG_PACKET, QUEUE);
    static const uint8_t tag[6] = { 0x81, 0x00, 0x20, 0x0c, 0x08, 0x00 };
    struct nfq_frame frame;

    (void)state;
    put_packet_header(msg, 1);
    put_vlan(msg, 0x8100, 0x200c);
    put_frame(msg);
    assert_int_equal(parse(msg, &frame), 0);
    assert_int_equal(frame.length, sizeof(l2) + 4 + sizeof(l3));
    assert_int_equal(frame.l3_offset, sizeof(l2) + 4);
    assert_memory_equal(frame.bytes, l2, 12);
    assert_memory_equal(frame.bytes + 12, tag, sizeof(tag));
    assert_memory_equal(frame.bytes + 18, l3, sizeof(l3));
    assert_false(frame.gso || frame.csum_partial);
    nlmsg_free(msg);
}

static void the_smallest_message_has_room_for_the_largest_header(void **state)
{
    struct nl_msg *msg = message(NFQNL_MSG_PACKET, QUEUE);
    struct nfq_frame frame;

    (void)state;
    put_vlan(msg, 0x88a8, 1);
    put_packet_header(msg, 1);
    put_frame(msg);
    assert_int_equal(parse(msg, &frame), 0);
    assert_true(frame.bytes >= (uint8_t *)nlmsg_hdr(msg));
    nlmsg_free(msg);
}

static void a_frame_longer_than_the_copy_is_marked(void **state)
{
    struct nl_msg *msg = message(NFQNL_MSG_PACKET, QUEUE);
    struct nfq_frame frame;

    (void)state;
    put_packet_header(msg, 1);
    put_u32(msg, NFQA_CAP_LEN, 70000);
    put_frame(msg);
    assert_int_equal(parse(msg, &frame), 0);
    assert_true(frame.truncated);
    assert_int_equal(frame.wire_length, 70014);
    nlmsg_free(msg);
}

static void what_is_no_ethernet_frame_still_has_its_id(void **state)
{
    struct nl_msg *msg = message(NFQNL_MSG_PACKET, QUEUE);
    struct nfq_frame frame;

    (void)state;
    put_packet_header(msg, 9);
    assert_int_equal(parse(msg, &frame), 0);
    assert_int_equal(frame.packet_id, 9);
    assert_int_equal(frame.length, 0);
    nla_put(msg, NFQA_PAYLOAD, sizeof(l3), l3);
    assert_int_equal(parse(msg, &frame), 0);
    assert_int_equal(frame.length, 0);
    nla_put(msg, NFQA_L2HDR, 13, l2);
    assert_int_equal(parse(msg, &frame), 0);
    assert_int_equal(frame.length, 0);
    nlmsg_free(msg);
}

static void messages_without_an_id_are_refused(void **state)
{
    struct nl_msg *msg = message(NFQNL_MSG_PACKET, QUEUE);
    struct nfq_frame frame;

    (void)state;
    put_frame(msg);
    assert_int_equal(parse(msg, &frame), -EBADMSG);
    assert_int_equal(nfq_parse((uint8_t *)nlmsg_hdr(msg), 3, &frame), -EBADMSG);
    nlmsg_free(msg);
    msg = message(NFQNL_MSG_CONFIG, QUEUE);
    put_packet_header(msg, 1);
    put_frame(msg);
    assert_int_equal(parse(msg, &frame), -EBADMSG);
    nlmsg_free(msg);
    msg = message(NFQNL_MSG_PACKET, QUEUE);
    nla_put(msg, NFQA_PACKET_HDR, 6, l2);
    assert_int_equal(parse(msg, &frame), -EBADMSG);
    nlmsg_free(msg);
}

/* ---- The writer ---------------------------------------------------------------------------- */

static struct nl_msg *verdict(int type, uint16_t queue, uint32_t value)
{
    const struct nfqnl_msg_verdict_hdr header = { .verdict = htonl(value), .id = htonl(1) };
    struct nl_msg *msg = message(type, queue);

    assert_int_equal(nla_put(msg, NFQA_VERDICT_HDR, sizeof(header), &header), 0);
    return msg;
}

static bool passes(struct nl_msg *msg)
{
    const bool ok = nfq_verdicts_only((const uint8_t *)nlmsg_hdr(msg), nlmsg_hdr(msg)->nlmsg_len,
                                      QUEUE);

    nlmsg_free(msg);
    return ok;
}

static void verdicts_for_the_queue_pass_the_writer(void **state)
{
    struct nl_msg *msg;
    uint8_t two[256];
    size_t bytes;

    (void)state;
    assert_true(passes(verdict(NFQNL_MSG_VERDICT, QUEUE, NF_ACCEPT)));
    assert_true(passes(verdict(NFQNL_MSG_VERDICT, QUEUE, NF_DROP)));
    msg = verdict(NFQNL_MSG_VERDICT, QUEUE, NF_ACCEPT);
    nla_put(msg, NFQA_PAYLOAD, 7, l3);
    bytes = NLMSG_ALIGN(nlmsg_hdr(msg)->nlmsg_len);
    memcpy(two, nlmsg_hdr(msg), bytes);
    memcpy(two + bytes, nlmsg_hdr(msg), bytes);
    assert_true(nfq_verdicts_only(two, 2 * bytes, QUEUE));
    assert_false(nfq_verdicts_only(two, 2 * bytes - 4, QUEUE));
    assert_false(nfq_verdicts_only(two, bytes + 8, QUEUE));
    assert_true(passes(msg));
    assert_true(nfq_verdicts_only(two, 0, QUEUE));
}

static void nothing_else_passes_the_writer(void **state)
{
    struct nl_msg *msg;

    (void)state;
    assert_false(passes(verdict(NFQNL_MSG_VERDICT, QUEUE + 1, NF_ACCEPT)));
    assert_false(passes(verdict(NFQNL_MSG_VERDICT_BATCH, QUEUE, NF_ACCEPT)));
    assert_false(passes(verdict(NFQNL_MSG_CONFIG, QUEUE, NF_ACCEPT)));
    assert_false(passes(verdict(NFQNL_MSG_VERDICT, QUEUE, NF_QUEUE)));
    assert_false(passes(verdict(NFQNL_MSG_VERDICT, QUEUE, NF_QUEUE | (7u << 16))));
    assert_false(passes(verdict(NFQNL_MSG_VERDICT, QUEUE, NF_REPEAT)));
    assert_false(passes(message(NFQNL_MSG_VERDICT, QUEUE)));
    msg = verdict(NFQNL_MSG_VERDICT, QUEUE, NF_ACCEPT);
    put_u32(msg, NFQA_MARK, 1);
    assert_false(passes(msg));
    msg = verdict(NFQNL_MSG_VERDICT, QUEUE, NF_ACCEPT);
    nla_put(msg, NFQA_CT, 4, l3);
    assert_false(passes(msg));
    msg = verdict(NFQNL_MSG_VERDICT, QUEUE, NF_ACCEPT);
    nla_put(msg, NFQA_VERDICT_HDR, 8, l3);
    assert_false(passes(msg));
    msg = verdict(NFQNL_MSG_VERDICT, QUEUE, NF_ACCEPT);
    nlmsg_hdr(msg)->nlmsg_flags |= NLM_F_ACK;
    assert_false(passes(msg));
    msg = verdict(NFQNL_MSG_VERDICT, QUEUE, NF_ACCEPT);
    nlmsg_hdr(msg)->nlmsg_type = NFNL_MSG_BATCH_BEGIN;
    assert_false(passes(msg));
    msg = verdict(NFQNL_MSG_VERDICT, QUEUE, NF_ACCEPT);
    nlmsg_hdr(msg)->nlmsg_len = 0xfffffffe;      /* aligned modulo 2^32 it would be 0 */
    assert_false(nfq_verdicts_only((const uint8_t *)nlmsg_hdr(msg), 32, QUEUE));
    nlmsg_hdr(msg)->nlmsg_len = 32;
    ((struct nlattr *)((uint8_t *)nlmsg_hdr(msg) + NLMSG_LENGTH(sizeof(struct nfgenmsg))))->nla_len
        = 100;
    assert_false(passes(msg));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frame_is_put_together),
        cmocka_unit_test(a_vlan_tag_is_put_back_in_line),
        cmocka_unit_test(the_smallest_message_has_room_for_the_largest_header),
        cmocka_unit_test(a_frame_longer_than_the_copy_is_marked),
        cmocka_unit_test(what_is_no_ethernet_frame_still_has_its_id),
        cmocka_unit_test(messages_without_an_id_are_refused),
        cmocka_unit_test(verdicts_for_the_queue_pass_the_writer),
        cmocka_unit_test(nothing_else_passes_the_writer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
