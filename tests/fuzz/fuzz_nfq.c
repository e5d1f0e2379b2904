/* LINK: tools/remus/nfq.c */
/*
 * Fuzz target: netlink messages.  As from the kernel (nfq_parse), and as from a daemon that was
 * taken over, on their way to the kernel (nfq_verdicts_only).  First byte: which of them.
 */
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <netlink/msg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tools/remus/nfq.h"

#define QUEUE 100

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void as_from_the_kernel(uint8_t *bytes, size_t size)
{
    struct nfq_frame frame;
    uint32_t sum = 0, i;

    if (nfq_parse(bytes, size, &frame) || !frame.length) {
        return;
    }
    if (frame.bytes < bytes || frame.bytes + frame.length > bytes + size ||
        frame.l3_offset > frame.length || frame.wire_length < frame.length) {
        abort();
    }
    for (i = 0; i < frame.length; i++) {
        sum += frame.bytes[i];
    }
    if (sum == 0xffffffffu) {
        abort();                 /* never: keeps the loop */
    }
}

/* The kernel's own walk over what passed must find verdicts only. */
static void as_to_the_kernel(const uint8_t *bytes, size_t size)
{
    if (!nfq_verdicts_only(bytes, size, QUEUE)) {
        return;
    }
    while (size >= NLMSG_HDRLEN) {
        struct nlmsghdr head;
        size_t step;

        memcpy(&head, bytes, sizeof(head));
        if (head.nlmsg_len < NLMSG_HDRLEN || head.nlmsg_len > size ||
            head.nlmsg_type != ((NFNL_SUBSYS_QUEUE << 8) | NFQNL_MSG_VERDICT)) {
            abort();
        }
        step = NLMSG_ALIGN(head.nlmsg_len);
        step = step > size ? size : step;
        bytes += step;
        size -= step;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy;

    if (size < 1 || size > 65536) {
        return 0;
    }
    /* As recvmmsg leaves it: aligned, and not a byte longer. */
    copy = malloc(size - 1 ? size - 1 : 1);
    if (!copy) {
        return 0;
    }
    memcpy(copy, data + 1, size - 1);
    if (data[0] & 1) {
        as_from_the_kernel(copy, size - 1);
    } else {
        as_to_the_kernel(copy, size - 1);
    }
    free(copy);
    return 0;
}
