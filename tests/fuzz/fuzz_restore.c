/* LINK: tools/libxc/xc_sr_restore.c */
/*
 * fuzz_restore.c: the reader of migration streams against any bytes whatever.
 *
 * Xen is tests/unit/fake_sr.h.  Byte 0 chooses the domain's size and whether the two headers
 * and the end of the static data are supplied, so that the interesting part is reached without
 * guessing them; the rest is the stream.
 */
#define FAKE_SR_BLOCKS
#include <endian.h>

#include "tests/unit/fake_sr.h"
#include "tools/libxc/xc_sr_stream.h"

struct input {
    uint8_t prefix[512];
    size_t prefix_bytes;
    const uint8_t *data;
    size_t size, at;
};

static int fuzz_read(void *arg, void *data, size_t length)
{
    struct input *in = arg;

    if (in->at < in->prefix_bytes) {
        /* The reader never reads across a header, so the prefix is used up exactly. */
        if (length > in->prefix_bytes - in->at)
            return -EPIPE;
        memcpy(data, in->prefix + in->at, length);
    } else {
        if (length > in->size - (in->at - in->prefix_bytes))
            return -EPIPE;
        memcpy(data, in->data + (in->at - in->prefix_bytes), length);
    }
    in->at += length;
    return 0;
}

static int fuzz_static_data_done(void *arg, unsigned int missing)
{
    (void)arg;
    (void)missing;
    return 0;
}

static void fuzz_log(void *arg, enum xc_sr_level level, const char *text)
{
    /* Every message is read to its end, so that an unterminated one shows. */
    volatile size_t length = strlen(text);

    (void)arg;
    (void)level;
    (void)length;
}

static void add(struct input *in, const void *data, size_t length)
{
    memcpy(in->prefix + in->prefix_bytes, data, length);
    in->prefix_bytes += length;
}

static void add_prefix(struct input *in, uint8_t choice)
{
    static const struct xc_sr_domain_header domain = {
        .type = XC_SR_DOMAIN_X86_HVM, .page_shift = XC_SR_PAGE_SHIFT, .xen_major = 4,
    };
    static const struct xc_sr_record_header end = { .type = XC_SR_REC_STATIC_DATA_END };
    struct xc_sr_image_header image = {
        .marker = XC_SR_IMAGE_MARKER, .id = htobe32(XC_SR_IMAGE_ID), .version = htobe32(3),
    };

    if (choice & 1) {
        add(in, &image, sizeof(image));
        add(in, &domain, sizeof(domain));
        if (choice & 2)
            add(in, &end, sizeof(end));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct xc_sr_restore_params ports = { .store_port = 1, .console_port = 2 };
    static const struct xc_sr_handles h = { .domid = 9, .log = fuzz_log };
    static struct fake_guest guest;
    static uint32_t *frames;
    struct xc_sr_restore_ops ops = { .read = fuzz_read };
    struct xc_sr_restore_result result;
    struct input in = { .data = data + 1, .size = size - 1 };
    int rc;

    if (!size)
        return 0;
    add_prefix(&in, data[0]);
    if (data[0] & 4)
        ops.static_data_done = fuzz_static_data_done;

    /* Making a guest anew clears 4 MiB; it is enough to take back what the last input placed. */
    if (!frames) {
        fake_guest_new(&guest, 9, 0);
        frames = guest.frame;
    } else {
        uint64_t *dirty = guest.dirty;

        for (uint64_t gfn = 0; guest.pages && gfn <= guest.max_gfn; gfn++)
            fake_depopulate(&guest, gfn);
        memset(&guest, 0, sizeof(guest));
        guest.domid = 9;
        guest.hvm = true;
        guest.frame = frames;
        guest.dirty = dirty;
    }
    guest.pages_max = data[0] & 8 ? 2048 : 4;
    fake = &guest;

    rc = xc_sr_restore_libxc(&h, &ports, &ops, &in, &result);

    if (guest.pages > guest.pages_max || guest.mappings)
        abort();
    /* A domain is completed only by a stream that was read to its end without an error. */
    if (rc && guest.seeded)
        abort();
    if (!rc && (!guest.seeded || !guest.context_set_bytes || !guest.frame[result.store_gfn]))
        abort();
    return 0;
}
