/* Products of a matrix in 4 or 8 bits with activations rounded to 8, in whole numbers. */
#ifndef SWIFT_SD_PRODUCTS_H
#define SWIFT_SD_PRODUCTS_H

#include <math.h>

#include "draft.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

/* Activations in 8 bits, [rows][columns], with a scale and a sum for each group. */

typedef struct {
    int8_t *codes;
    float *scales, *sums;
} Rounded;

static void round_group(const float *x, long group, int8_t *codes, float *scale, float *sum) {
    float most = 0;
    for (long i = 0; i < group; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    float inverse = most > 0 ? 127 / most : 0;
    int32_t all = 0;
    for (long i = 0; i < group; i++) {
        int32_t code = (int32_t)rintf(x[i] * inverse);
        codes[i] = (int8_t)code;
        all += code;
    }
    *scale = most / 127;
    *sum = *scale * (float)all;
}

/* Adds the scalar products of one group of weights with that of `inputs` inputs, `apart` codes
   from each other; every weight is unpacked once. */
#define AHEAD 2048 /* bytes: left to itself the processor asks for weights too late */
#define INPUTS 4 /* at a time, in registers */
#ifdef __AVX2__
typedef __m256 Sum;
INLINE __m256i code_at(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE __m256i pairs(__m256i products) {
    return _mm256_madd_epi16(products, _mm256_set1_epi16(1));
}
INLINE void add_group(Sum *sums, const uint8_t *w, const int8_t *x, long apart, long group,
                      int bits, int inputs, const float *scales) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i whole[INPUTS];
    for (int i = 0; i < inputs; i++) whole[i] = _mm256_setzero_si256();
    for (long at = 0; at < group; at += bits == 4 ? CHUNK : CHUNK / 2) {
        __m256i codes = code_at(w + at * bits / 8);
        if (bits == 4) {
            __m256i first = _mm256_and_si256(codes, low);
            __m256i second = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low);
            for (int i = 0; i < inputs; i++) {
                const int8_t *from = x + i * apart + at;
                __m256i sum = _mm256_add_epi16(
                    _mm256_maddubs_epi16(first, code_at(from)),
                    _mm256_maddubs_epi16(second, code_at(from + CHUNK / 2)));
                whole[i] = _mm256_add_epi32(whole[i], pairs(sum));
            }
        } else { /* one factor must be without sign: it goes over to the other */
            __m256i sizes = _mm256_abs_epi8(codes);
            for (int i = 0; i < inputs; i++) {
                __m256i signs = _mm256_sign_epi8(code_at(x + i * apart + at), codes);
                whole[i] = _mm256_add_epi32(whole[i], pairs(_mm256_maddubs_epi16(sizes, signs)));
            }
        }
    }
    for (int i = 0; i < inputs; i++)
        sums[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[i]), _mm256_set1_ps(scales[i]), sums[i]);
}
INLINE float summed(Sum sum) { return total((floats)sum); }
#else
typedef float Sum;
INLINE void add_group(Sum *sums, const uint8_t *w, const int8_t *x, long apart, long group,
                      int bits, int inputs, const float *scales) {
    for (int i = 0; i < inputs; i++) {
        const int8_t *from = x + i * apart;
        int32_t whole = 0;
        for (long at = 0; bits == 4 && at < group; at += CHUNK)
            for (long j = 0; j < CHUNK / 2; j++) {
                uint8_t both = w[at / 2 + j];
                whole += (both & 15) * from[at + j] + (both >> 4) * from[at + CHUNK / 2 + j];
            }
        for (long j = 0; bits == 8 && j < group; j++) whole += (int8_t)w[j] * from[j];
        sums[i] += scales[i] * (float)whole;
    }
}
INLINE float summed(Sum sum) { return sum; }
#endif

/* One row of weights with `inputs` inputs from `first` on. */
INLINE void products(const Matrix *m, long row, const Rounded *x, long first, int bits, int inputs,
                     float *out) {
    long groups = m->columns / m->group;
    const uint8_t *w = m->codes + row * m->columns * bits / 8;
    const uint16_t *own = m->scales + row * groups * 2;
    const int8_t *codes = x->codes + first * m->columns;
    Sum sums[INPUTS];
    float offsets[INPUTS], scales[INPUTS];
    for (int i = 0; i < inputs; i++) sums[i] = (Sum){0}, offsets[i] = m->bias ? m->bias[row] : 0;
    for (long g = 0; g < groups; g++) {
        float scale = from_bfloat16(own[2 * g]), offset = from_bfloat16(own[2 * g + 1]);
        for (int i = 0; i < inputs; i++) {
            scales[i] = scale * x->scales[(first + i) * groups + g];
            if (bits == 4) offsets[i] += offset * x->sums[(first + i) * groups + g];
        }
        for (long at = 0; at < m->group * bits / 8; at += 64)
            __builtin_prefetch(w + g * m->group * bits / 8 + at + AHEAD);
        add_group(sums, w + g * m->group * bits / 8, codes + g * m->group, m->columns, m->group,
                  bits, inputs, scales);
    }
    for (int i = 0; i < inputs; i++) out[i] = summed(sums[i]) + offsets[i];
}

INLINE void some_products(const Matrix *m, long row, const Rounded *x, long first, int inputs,
                          float *out) {
    if (m->bits == 4) products(m, row, x, first, 4, inputs, out);
    else products(m, row, x, first, 8, inputs, out);
}

/* The product of one row with all inputs. out[input][row], `width` apart; added to what is there,
   or put there. */
static void multiply_row(const Matrix *m, long row, const Rounded *x, long inputs, float *out,
                         long width, int adds) {
    for (long first = 0; first < inputs; first += INPUTS) {
        float values[INPUTS];
        int count = inputs - first < INPUTS ? inputs - first : INPUTS;
        if (count == 4) some_products(m, row, x, first, 4, values);
        else if (count == 3) some_products(m, row, x, first, 3, values);
        else if (count == 2) some_products(m, row, x, first, 2, values);
        else some_products(m, row, x, first, 1, values);
        for (int i = 0; i < count; i++) {
            float *to = out + (first + i) * width + row;
            *to = adds ? *to + values[i] : values[i];
        }
    }
}

/* All threads share the rows of the matrix; they do not wait for each other at the end. */
static void multiply(const Matrix *m, const Rounded *x, long inputs, float *out, long width,
                     int adds) {
#pragma omp for schedule(static) nowait
    for (long row = 0; row < m->rows; row++) multiply_row(m, row, x, inputs, out, width, adds);
}

/* The same for `count` of the rows only; the others are left as they are. */
static void multiply_some(const Matrix *m, const int32_t *rows, long count, const Rounded *x,
                          long inputs, float *out) {
#pragma omp for schedule(static) nowait
    for (long each = 0; each < count; each++)
        multiply_row(m, rows[each], x, inputs, out, m->rows, 0);
}

static void round_rows(const float *x, long rows, const Matrix *for_matrix, Rounded *to) {
    long group = for_matrix->group, groups = for_matrix->columns / group;
#pragma omp for schedule(static)
    for (long g = 0; g < rows * groups; g++)
        round_group(x + g * group, group, to->codes + g * group, to->scales + g, to->sums + g);
}

#endif
