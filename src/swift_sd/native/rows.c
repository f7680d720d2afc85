/* A linear layer in bfloat16 over several rows for one reading of its weights.

   torch computes every output of such a layer, where it has no better instructions, as the scalar
   product of a row and a row of weights in floats: eight vectors of eight lanes run along them and
   are added up pairwise at the end. Several rows then cost it as many times one row. Here each
   weight is widened once for all rows, and every sum is taken in that very order, so that the
   results are the same to the bit; whoever uses this must check that they are. */
#include <stdlib.h>

#include "vectors.h"

#define PARTS 8 /* vectors that run along a row */
#define STRIDE (LANES * PARTS)
#define OUTPUTS 3 /* rows of weights, and */
#define ROWS 4    /* rows of input in registers at a time */
#ifndef CACHED
#define CACHED 400000 /* bytes of input to go over again and again: they stay in the cache */
#endif

/* Sums of `outputs` x `rows` products, to out[OUTPUTS][ROWS].
   weights: [PARTS][OUTPUTS][steps], inputs: [PARTS][all][steps] vectors. */
INLINE void tile(const floats *weights, const floats *inputs, long steps, long all, int outputs,
                 int rows, float *out) {
    floats sums[PARTS][OUTPUTS][ROWS];
    for (int part = 0; part < PARTS; part++) {
        const floats *w = weights + (long)part * OUTPUTS * steps;
        const floats *x = inputs + part * all * steps;
        floats running[OUTPUTS][ROWS];
        for (int a = 0; a < outputs; a++)
            for (int b = 0; b < rows; b++) running[a][b] = (floats){0};
        for (long step = 0; step < steps; step++) {
            floats weight[OUTPUTS];
            for (int a = 0; a < outputs; a++) weight[a] = w[a * steps + step];
            for (int b = 0; b < rows; b++) {
                floats input = x[b * steps + step];
                for (int a = 0; a < outputs; a++) running[a][b] += weight[a] * input;
            }
        }
        for (int a = 0; a < outputs; a++)
            for (int b = 0; b < rows; b++) sums[part][a][b] = running[a][b];
    }
    for (int a = 0; a < outputs; a++)
        for (int b = 0; b < rows; b++) {
            for (int half = PARTS / 2; half; half /= 2)
                for (int part = 0; part < half; part++)
                    sums[part][a][b] = sums[part][a][b] + sums[part + half][a][b];
            out[a * ROWS + b] = total(sums[0][a][b]);
        }
}

/* To [PARTS][of][steps] vectors, as row `place` of `of`. */
INLINE void spread(const uint16_t *row, long steps, long of, long place, floats *to) {
    for (long step = 0; step < steps; step++)
        for (int part = 0; part < PARTS; part++)
            to[(part * of + place) * steps + step] =
                load_bfloat16(row + step * STRIDE + part * LANES);
}

static int few_rows(const uint16_t *input, const uint16_t *weight, const uint16_t *bias,
                    uint16_t *output, int64_t rows, int64_t k, int64_t n) {
    long steps = k / STRIDE, blocks = (n + OUTPUTS - 1) / OUTPUTS;
    int failed = 0;
    floats *inputs = aligned_alloc(64, (size_t)rows * k * sizeof(float));
    if (!inputs) return 1;
#pragma omp parallel
    {
        floats *weights = aligned_alloc(64, (size_t)OUTPUTS * k * sizeof(float));
        if (!weights) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for
        for (long row = 0; row < rows; row++) spread(input + row * k, steps, rows, row, inputs);
#pragma omp for schedule(static)
        for (long block = 0; block < blocks; block++) {
            if (!weights) continue;
            long first = block * OUTPUTS;
            int outputs = n - first < OUTPUTS ? n - first : OUTPUTS;
            for (int a = 0; a < outputs; a++)
                spread(weight + (first + a) * k, steps, OUTPUTS, a, weights);
            for (long row = 0; row < rows; row += ROWS) {
                const floats *x = inputs + row * steps;
                int count = rows - row < ROWS ? rows - row : ROWS;
                float out[OUTPUTS * ROWS];
                /* Constants, so that all sums stay in registers. */
                if (outputs < OUTPUTS) tile(weights, x, steps, rows, outputs, count, out);
                else if (count == 4) tile(weights, x, steps, rows, OUTPUTS, 4, out);
                else if (count == 3) tile(weights, x, steps, rows, OUTPUTS, 3, out);
                else if (count == 2) tile(weights, x, steps, rows, OUTPUTS, 2, out);
                else tile(weights, x, steps, rows, OUTPUTS, 1, out);
                for (int a = 0; a < outputs; a++)
                    for (int b = 0; b < count; b++) {
                        float sum = out[a * ROWS + b];
                        if (bias) sum = sum + from_bfloat16(bias[first + a]);
                        output[(row + b) * n + first + a] = to_bfloat16(sum);
                    }
            }
        }
        free(weights);
    }
    free(inputs);
    return failed;
}

/* output[row][n] = bias[n] + sum over k of input[row][k] * weight[n][k]; k a multiple of 64.
   bias may be NULL. Returns 0, or 1 if there was no memory. */
int swift_sd_linear_rows(const uint16_t *input, const uint16_t *weight, const uint16_t *bias,
                         uint16_t *output, int64_t rows, int64_t k, int64_t n) {
    long most = CACHED / (k * (long)sizeof(float)) / ROWS * ROWS;
    if (most < ROWS) most = ROWS;
    for (long row = 0; row < rows; row += most) {
        long count = rows - row < most ? rows - row : most;
        if (few_rows(input + row * k, weight, bias, output + row * n, count, k, n)) return 1;
    }
    return 0;
}
