/* LINK: tools/remus/channel.c */
/*
 * Fuzz target: bytes from the other host.
 *
 * First byte: role (bit 0), how the rest is cut (bits 1 to 7, bytes per piece).  The frames that
 * come out are checked against what channel.h promises about them.
 */
#include <stdint.h>
#include <stdlib.h>

#include "tools/remus/channel.h"

#define VIFS 2u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct sum {
    enum channel_role role;
    uint32_t value;              /* every payload byte is read, for the address sanitizer */
};

static int deliver(void *arg, const struct remus_packet *head, const uint8_t *payload)
{
    struct sum *sum = arg;
    struct remus_flow flow;
    uint32_t i;

    if (head->vif >= VIFS || head->length > REMUS_PACKET_MAX) {
        abort();
    }
    for (i = 0; i < head->length; i++) {
        sum->value += payload[i];
    }
    switch (head->type) {
    case REMUS_PACKET_INPUT:
        if (sum->role != CHANNEL_SECONDARY || head->length < CHANNEL_FRAME_MIN || head->id) {
            abort();
        }
        break;
    case REMUS_PACKET_OUTPUT:
        if (sum->role != CHANNEL_PRIMARY || head->length < CHANNEL_FRAME_MIN || !head->id) {
            abort();
        }
        break;
    case REMUS_PACKET_MATCHED:
        for (i = 0; i < channel_matched_count(head); i++) {
            sum->value += (uint32_t)channel_matched_id(payload, i);
        }
        break;
    case REMUS_PACKET_FLOW:
        channel_flow_get(payload, &flow);
        sum->value += flow.primary_isn;
        break;
    case REMUS_PACKET_SENT:
        if (sum->role != CHANNEL_SECONDARY || head->length < CHANNEL_SENT_MIN ||
            head->length > CHANNEL_SENT_MAX) {
            abort();
        }
        break;
    case REMUS_PACKET_PONG:
        break;
    default:
        abort();
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct channel_options options = { .vifs = VIFS, .out_max = 4096, .out_high = 2048,
                                       .out_low = 1024 };
    struct channel *ch;
    struct sum sum;
    size_t piece;
    int rc = 0;

    if (!size) {
        return 0;
    }
    options.role = data[0] & 1 ? CHANNEL_PRIMARY : CHANNEL_SECONDARY;
    sum = (struct sum){ .role = options.role };
    piece = data[0] >> 1 ? data[0] >> 1 : size;
    data++;
    size--;
    if (channel_new(&ch, -1, &options)) {
        abort();
    }
    while (size && !rc) {
        const size_t taken = channel_feed(ch, data, piece < size ? piece : size);

        if (!taken) {
            abort();             /* whole frames were delivered: there must be room */
        }
        data += taken;
        size -= taken;
        rc = channel_deliver(ch, deliver, &sum, 1000000);
        if (rc && !channel_error(ch)[0]) {
            abort();
        }
    }
    channel_free(ch);
    return 0;
}

#ifdef FUZZ_STANDALONE
#include <stdio.h>

/* Without a fuzzing engine: replay files. */
int main(int argc, char **argv)
{
    static uint8_t bytes[1 << 20];
    int i;

    for (i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");

        if (f) {
            LLVMFuzzerTestOneInput(bytes, fread(bytes, 1, sizeof(bytes), f));
            fclose(f);
        }
    }
    return 0;
}
#endif
