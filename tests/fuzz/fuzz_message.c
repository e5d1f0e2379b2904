/* LINK: tools/libxl/remus_message.c tools/libxl/remus_transport.c tools/libxl/remus_tls.c tools/libxl/remus_ktls.c */
/*
 * fuzz_message.c: what the other host says through ssh, and what an operator types as an address.
 * A message that is accepted is asked for fields of every kind; the text for the terminal must hold
 * no control character.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_transport.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const keys[] = {"type", "name", "port", "vifs", "reasons", "net", ""};
    uint8_t secret[REMUS_SECRET_BYTES];
    struct remus_message *m;
    char clean[64], addr[32];
    uint64_t value;
    uint16_t port;
    size_t i, k;
    char *text;

    if (!remus_message_parse(&m, (const char *)data, size)) {
        if (!remus_message_type(m))
            abort();
        for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
            if (remus_message_number(m, keys[i], 65535, &value) && value > 65535)
                abort();
            (void)remus_message_flag(m, keys[i], false);
            (void)remus_message_string(m, keys[i]);
            for (k = 0; k < remus_message_count(m, keys[i]); k++) {
                (void)remus_message_item(m, keys[i], k, NULL);
                (void)remus_message_item(m, keys[i], k, "bridge");
            }
        }
        remus_message_free(m);
    }
    text = malloc(size + 1);
    if (!text)
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    for (i = 1; i <= sizeof(clean); i *= 2) {
        remus_text_clean(clean, i, text);
        if (strlen(clean) >= i)
            abort();
        for (k = 0; clean[k]; k++)
            if ((unsigned char)clean[k] < 0x20 || clean[k] == 0x7f)
                abort();
    }
    (void)remus_secret_parse(secret, text);
    if (!remus_address_parse(text, addr, sizeof(addr), &port) && strlen(addr) >= sizeof(addr))
        abort();
    remus_host_address(addr, sizeof(addr), text);
    free(text);
    return 0;
}
