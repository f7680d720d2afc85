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
   weights: [PARTS][OUTPUTS][steps], inputs: [PARTS][all][steps] vectors. Meanwhile so many `lines`
   of 64 bytes from `ahead` on, which come next, are fetched from memory. */
INLINE void tile(const floats *weights, const floats *inputs, long steps, long all, int outputs,
                 int rows, float *out, const char *ahead, long lines) {
    floats sums[PARTS][OUTPUTS][ROWS];
    for (int part = 0; part < PARTS; part++) {
        for (long line = part * lines / PARTS; line < (part + 1) * lines / PARTS; line++)
            __builtin_prefetch(ahead + 64 * line);
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

typedef struct {
    const uint16_t *input, *weight, *bias;
    uint16_t *output;
    long rows, k, n;
} Layer;

/* The outputs from `first` on, for all rows. weights: room for OUTPUTS rows of floats. */
static void some_outputs(const Layer *l, long first, const floats *inputs, floats *weights) {
    long steps = l->k / STRIDE;
    int outputs = l->n - first < OUTPUTS ? l->n - first : OUTPUTS;
    for (int a = 0; a < outputs; a++)
        spread(l->weight + (first + a) * l->k, steps, OUTPUTS, a, weights);
    const char *ahead = (const char *)(l->weight + (first + OUTPUTS) * l->k);
    long lines = first + 2 * OUTPUTS > l->n ? 0 : OUTPUTS * l->k / 32;
    lines /= (l->rows + ROWS - 1) / ROWS;
    for (long row = 0; row < l->rows; row += ROWS, ahead += 64 * lines) {
        const floats *x = inputs + row * steps;
        int rows = l->rows - row < ROWS ? l->rows - row : ROWS;
        float out[OUTPUTS * ROWS];
        /* Constants, so that all sums stay in registers. */
        if (outputs == OUTPUTS && rows == 4)
            tile(weights, x, steps, l->rows, OUTPUTS, 4, out, ahead, lines);
        else if (outputs == OUTPUTS && rows == 3)
            tile(weights, x, steps, l->rows, OUTPUTS, 3, out, ahead, lines);
        else if (outputs == OUTPUTS && rows == 2)
            tile(weights, x, steps, l->rows, OUTPUTS, 2, out, ahead, lines);
        else tile(weights, x, steps, l->rows, outputs, rows, out, ahead, lines);
        for (int a = 0; a < outputs; a++)
            for (int b = 0; b < rows; b++) {
                float sum = out[a * ROWS + b];
                if (l->bias) sum = sum + from_bfloat16(l->bias[first + a]);
                l->output[(row + b) * l->n + first + a] = to_bfloat16(sum);
            }
    }
}

/* As many rows as stay in the cache. Returns 0, or 1 if there was no memory. */
static int few_rows(const Layer *l) {
    int failed = 0;
    floats *inputs = aligned_alloc(64, (size_t)l->rows * l->k * sizeof(float));
    if (!inputs) return 1;
#pragma omp parallel
    {
        floats *weights = aligned_alloc(64, (size_t)OUTPUTS * l->k * sizeof(float));
        if (!weights) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for
        for (long row = 0; row < l->rows; row++)
            spread(l->input + row * l->k, l->k / STRIDE, l->rows, row, inputs);
#pragma omp for schedule(static)
        for (long first = 0; first < l->n; first += OUTPUTS)
            if (weights) some_outputs(l, first, inputs, weights);
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
        Layer l = {input + row * k, weight, bias, output + row * n, count, k, n};
        if (few_rows(&l)) return 1;
    }
    return 0;
}
