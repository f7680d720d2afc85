/* Linear layers where the processor multiplies and adds pairs of bfloat16 numbers (AVX512_BF16).

   oneDNN, to which torch leaves them there, gives each output a lane: pair after pair is added to
   it, and such sums over 512 numbers are added to each other. Weights lie row by row and are turned
   round for that, a block of 16 outputs by 512 numbers at a time. */
#ifndef SWIFT_SD_ROW_PAIRS_H
#define SWIFT_SD_ROW_PAIRS_H

#include <immintrin.h>

#include "vectors.h"

#define OUTPUTS 16 /* lanes */
#define BLOCK_PAIRS 256
#define TILE 16 /* pairs that are turned round at a time */
#define ROWS 8      /* of input at a time: their sums stay in registers */
#define MAX_ROWS 32 /* of input for one turning round of weights */

typedef uint32_t Input __attribute__((may_alias)); /* pairs, [rows][k / 2] */

/* Row `row` to its place among the inputs. */
INLINE void spread_row(const uint16_t *from, long rows, long row, long k, Input *inputs) {
    (void)rows;
    memcpy(inputs + row * (k / 2), from, 2 * k);
}

/* Of each of 16 rows 16 pairs, to[pair][row]. */
INLINE void transpose(const Input *const *rows, long at, __m512i *to) {
    __m512i a[TILE], b[TILE];
    for (int i = 0; i < TILE; i++) a[i] = _mm512_loadu_si512(rows[i] + at);
    for (int i = 0; i < TILE; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < TILE; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
    /* a[4 g + p], in each quarter q: pair 4 q + p of rows 4 g to 4 g + 3. */
    for (int p = 0; p < 4; p++)
        for (int half = 0; half < 2; half++) {
            b[8 * half + p] = _mm512_shuffle_i32x4(a[8 * half + p], a[8 * half + p + 4], 0x88);
            b[8 * half + p + 4] = _mm512_shuffle_i32x4(a[8 * half + p], a[8 * half + p + 4], 0xdd);
        }
    for (int p = 0; p < 4; p++) {
        to[p] = _mm512_shuffle_i32x4(b[p], b[p + 8], 0x88);
        to[p + 8] = _mm512_shuffle_i32x4(b[p], b[p + 8], 0xdd);
        to[p + 4] = _mm512_shuffle_i32x4(b[p + 4], b[p + 12], 0x88);
        to[p + 12] = _mm512_shuffle_i32x4(b[p + 4], b[p + 12], 0xdd);
    }
}

/* Adds to sums[rows] the products of a block of turned weights. Meanwhile those that come next, from
   `ahead` on in rows `apart` bytes from each other, are fetched: left to itself the processor asks
   for them too late. */
INLINE void add_block(const __m512i *turned, long pairs, const Input *inputs, long width,
                      int rows, const char *ahead, long apart, __m512 *sums) {
    __m512 running[ROWS];
    for (int r = 0; r < rows; r++) running[r] = _mm512_setzero_ps();
    for (long i = 0; i < pairs; i++) {
        if (ahead) __builtin_prefetch(ahead + i % OUTPUTS * apart + i / OUTPUTS * 64);
        for (int r = 0; r < rows; r++)
            running[r] = _mm512_dpbf16_ps(running[r], (__m512bh)turned[i],
                                          (__m512bh)_mm512_set1_epi32((int)inputs[r * width + i]));
    }
    for (int r = 0; r < rows; r++) sums[r] = _mm512_add_ps(sums[r], running[r]);
}

/* 16 outputs from `first` on, or as many as there are, for up to MAX_ROWS rows. */
static void some_outputs(const Linear *l, long first, long rows, const Input *inputs,
                         uint16_t *output) {
    __m512i turned[BLOCK_PAIRS];
    __m512 sums[MAX_ROWS];
    const Input *weights[OUTPUTS];
    long width = l->k / 2, count = l->n - first < OUTPUTS ? l->n - first : OUTPUTS;
    for (int i = 0; i < OUTPUTS; i++)
        weights[i] = (const Input *)(l->weight + (first + (i < count ? i : 0)) * l->k);
    for (long r = 0; r < rows; r++) sums[r] = _mm512_setzero_ps();
    for (long begin = 0; begin < width; begin += BLOCK_PAIRS) {
        long pairs = width - begin < BLOCK_PAIRS ? width - begin : BLOCK_PAIRS;
        for (long at = 0; at < pairs; at += TILE) transpose(weights, begin + at, turned + at);
        /* The rest of these rows, else the beginning of the next ones. */
        int is_last = begin + BLOCK_PAIRS >= width;
        const char *ahead = is_last ? (const char *)(weights[0] + OUTPUTS * width)
                                    : (const char *)(weights[0] + begin + BLOCK_PAIRS);
        if (first + (is_last ? 2 : 1) * OUTPUTS > l->n) ahead = NULL;
        for (long row = 0; row < rows; row += ROWS, ahead = NULL) {
            const Input *from = inputs + row * width + begin;
            /* Constants, so that all sums stay in registers. */
            switch (rows - row) {
            case 1: add_block(turned, pairs, from, width, 1, ahead, 2 * l->k, sums + row); break;
            case 2: add_block(turned, pairs, from, width, 2, ahead, 2 * l->k, sums + row); break;
            case 3: add_block(turned, pairs, from, width, 3, ahead, 2 * l->k, sums + row); break;
            case 4: add_block(turned, pairs, from, width, 4, ahead, 2 * l->k, sums + row); break;
            case 5: add_block(turned, pairs, from, width, 5, ahead, 2 * l->k, sums + row); break;
            case 6: add_block(turned, pairs, from, width, 6, ahead, 2 * l->k, sums + row); break;
            case 7: add_block(turned, pairs, from, width, 7, ahead, 2 * l->k, sums + row); break;
            default: add_block(turned, pairs, from, width, ROWS, ahead, 2 * l->k, sums + row);
            }
        }
    }
    for (long r = 0; r < rows; r++) {
        float out[OUTPUTS];
        _mm512_storeu_ps(out, sums[r]);
        for (long i = 0; i < count; i++) {
            float sum = out[i];
            if (l->bias) sum = sum + from_bfloat16(l->bias[first + i]);
            output[r * l->n + first + i] = to_bfloat16(sum);
        }
    }
}

/* output[row][n] = bias[n] + sum over k of input[row][k] * weight[n][k], by all threads of a team,
   which do not wait for each other at the end. inputs: from spread_row, in every row. */
static void multiply_rows(const Linear *l, long rows, const Input *inputs, uint16_t *output) {
    for (long first = 0; first < rows; first += MAX_ROWS) {
        long count = rows - first < MAX_ROWS ? rows - first : MAX_ROWS;
#pragma omp for schedule(static) nowait
        for (long n = 0; n < l->n; n += OUTPUTS)
            some_outputs(l, n, count, inputs + first * (l->k / 2), output + first * l->n);
    }
}

#endif
