/* script.h: a fuzz target's input as a script, read number by number; 0 behind its end. */
#ifndef TESTS_FUZZ_SCRIPT_H
#define TESTS_FUZZ_SCRIPT_H

#include <stdint.h>

struct script {
    const uint8_t *at, *end;
};

static inline uint32_t next(struct script *s, unsigned int bytes)
{
    uint32_t value = 0;

    while (bytes--) {
        value = value << 8 | (s->at < s->end ? *s->at++ : 0);
    }
    return value;
}

#endif
