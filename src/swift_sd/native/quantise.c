/* Rounds rows of weights to 8 or 4 bits, group by group. */
#include <math.h>

#include "draft.h"

#define SHRINKS 6 /* a narrower range rounds most weights better and cuts off a few */

/* 4 bits: code * scale + offset, codes 0 to 15. */
static float rounded4(const float *w, long group, float low, float high, float *scale,
                      float *offset) {
    *offset = from_bfloat16(to_bfloat16(low));
    *scale = from_bfloat16(to_bfloat16((high - *offset) / 15));
    float inverse = *scale > 0 ? 1 / *scale : 0, error = 0;
    for (long i = 0; i < group; i++) {
        float code = rintf((w[i] - *offset) * inverse);
        code = code < 0 ? 0 : code > 15 ? 15 : code;
        float gap = code * *scale + *offset - w[i];
        error += gap * gap;
    }
    return error;
}

static void group4(const float *w, long group, uint8_t *codes, uint16_t *scales) {
    float low = w[0], high = w[0], best = INFINITY, scale = 0, offset = 0;
    for (long i = 1; i < group; i++) {
        low = w[i] < low ? w[i] : low;
        high = w[i] > high ? w[i] : high;
    }
    for (int shrink = 0; shrink < SHRINKS; shrink++) {
        float cut = 0.025f * shrink * (high - low), s, o;
        float error = rounded4(w, group, low + cut, high - cut, &s, &o);
        if (error < best) best = error, scale = s, offset = o;
    }
    float inverse = scale > 0 ? 1 / scale : 0;
    for (long chunk = 0; chunk < group; chunk += CHUNK)
        for (long i = 0; i < CHUNK / 2; i++) {
            uint8_t pair[2];
            for (int half = 0; half < 2; half++) {
                float code = rintf((w[chunk + half * CHUNK / 2 + i] - offset) * inverse);
                pair[half] = (uint8_t)(code < 0 ? 0 : code > 15 ? 15 : code);
            }
            codes[chunk / 2 + i] = (uint8_t)(pair[0] | pair[1] << 4);
        }
    scales[0] = to_bfloat16(scale);
    scales[1] = to_bfloat16(offset);
}

/* 8 bits: code * scale, codes -127 to 127. */
static void group8(const float *w, long group, uint8_t *codes, uint16_t *scales) {
    float most = 0;
    for (long i = 0; i < group; i++) most = fabsf(w[i]) > most ? fabsf(w[i]) : most;
    /* Rounded up, so that the largest still fits. */
    float scale = from_bfloat16(to_bfloat16(most / 127 * 1.004f));
    float inverse = scale > 0 ? 1 / scale : 0;
    for (long i = 0; i < group; i++) codes[i] = (uint8_t)(int8_t)rintf(w[i] * inverse);
    scales[0] = to_bfloat16(scale);
    scales[1] = 0;
}

/* weights: [rows][columns]; codes: [rows][columns * bits / 8]; scales: [rows][groups][2]. */
void swift_sd_quantise(const float *weights, int64_t rows, int64_t columns, int64_t group,
                       int64_t bits, uint8_t *codes, uint16_t *scales) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++)
        for (long first = 0; first < columns; first += group) {
            const float *w = weights + row * columns + first;
            uint8_t *c = codes + (row * columns + first) * bits / 8;
            uint16_t *s = scales + (row * columns + first) / group * 2;
            if (bits == 4) group4(w, group, c, s);
            else group8(w, group, c, s);
        }
}
