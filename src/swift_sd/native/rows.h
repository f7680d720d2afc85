/* Linear layers in bfloat16 over several rows for one reading of their weights.

   torch computes every output of such a layer, where it has no better instructions, as the scalar
   product of a row and a row of weights in floats: eight vectors of eight lanes run along them and
   are added up pairwise at the end. Several rows then cost it as many times one row. Here each
   weight comes from memory once for all rows, and every sum is taken in that very order, so that
   the results are the same to the bit; whoever uses this must check that they are. */
#ifndef SWIFT_SD_ROWS_H
#define SWIFT_SD_ROWS_H

#include "vectors.h"

#define PARTS 8 /* vectors that run along a row */
#define STRIDE (LANES * PARTS)
#define OUTPUTS 3 /* rows of weights, and */
#define ROWS 4    /* rows of input in registers at a time */
#ifndef CACHED
#define CACHED 400000 /* bytes of input to go over again and again: they stay in the cache */
#endif

typedef struct {
    const uint16_t *weight, *bias; /* [n][k]; [n] or NULL */
    int64_t k, n;                  /* k a multiple of STRIDE */
} Linear;

/* The parts of each sum, pairwise. */
INLINE float joined(floats *parts) {
    for (int half = PARTS / 2; half; half /= 2)
        for (int part = 0; part < half; part++) parts[part] = parts[part] + parts[part + half];
    return total(parts[0]);
}

/* Sums of `outputs` x `rows` products, to out[OUTPUTS][ROWS].
   weights: rows of k numbers; inputs: [PARTS][all][steps] vectors. Meanwhile so many `lines` of 64
   bytes from `ahead` on, which come next, are fetched from memory: left to itself the processor
   asks for them too late. */
INLINE void tile(const uint16_t *weights, long k, const floats *inputs, long all, int outputs,
                 int rows, float *out, const char *ahead, long lines) {
    floats sums[OUTPUTS][ROWS][PARTS];
    long steps = k / STRIDE;
    for (int part = 0; part < PARTS; part++) {
        for (long line = part * lines / PARTS; line < (part + 1) * lines / PARTS; line++)
            __builtin_prefetch(ahead + 64 * line);
        const uint16_t *w = weights + part * LANES;
        const floats *x = inputs + part * all * steps;
        floats running[OUTPUTS][ROWS];
        for (int a = 0; a < outputs; a++)
            for (int b = 0; b < rows; b++) running[a][b] = (floats){0};
        for (long step = 0; step < steps; step++) {
            floats weight[OUTPUTS];
            for (int a = 0; a < outputs; a++) weight[a] = load_bfloat16(w + a * k + step * STRIDE);
            for (int b = 0; b < rows; b++) {
                floats input = x[b * steps + step];
                for (int a = 0; a < outputs; a++) running[a][b] += weight[a] * input;
            }
        }
        for (int a = 0; a < outputs; a++)
            for (int b = 0; b < rows; b++) sums[a][b][part] = running[a][b];
    }
    for (int a = 0; a < outputs; a++)
        for (int b = 0; b < rows; b++) out[a * ROWS + b] = joined(sums[a][b]);
}

/* A single row with a row of weights; `ahead` is another one, or NULL. */
INLINE float alone(const uint16_t *weight, const floats *input, long steps, const char *ahead) {
    floats sums[PARTS];
    for (int part = 0; part < PARTS; part++) sums[part] = (floats){0};
    for (long step = 0; step < steps; step++) {
        if (ahead) {
            __builtin_prefetch(ahead + 2 * STRIDE * step);
            __builtin_prefetch(ahead + 2 * STRIDE * step + 64);
        }
        for (int part = 0; part < PARTS; part++)
            sums[part] += load_bfloat16(weight + step * STRIDE + part * LANES) *
                          input[part * steps + step];
    }
    return joined(sums);
}

/* Widened to [PARTS][of][steps] vectors, as row `place` of `of`. */
INLINE void spread(const uint16_t *row, long steps, long of, long place, floats *to) {
    for (long step = 0; step < steps; step++)
        for (int part = 0; part < PARTS; part++)
            to[(part * of + place) * steps + step] =
                load_bfloat16(row + step * STRIDE + part * LANES);
}

/* How many rows of k numbers are gone over at once. */
INLINE long at_once(long k) {
    long most = CACHED / (k * (long)sizeof(float)) / ROWS * ROWS;
    return most < ROWS ? ROWS : most;
}

/* Where a tile of rows begins: all are of nearly the same size, since one row alone is slow. */
INLINE long begin_of(long rows, long tiles, long number) { return rows * number / tiles; }

/* Row `row` of all `rows` to its place among the inputs of its group. */
INLINE void spread_row(const uint16_t *from, long rows, long row, long k, floats *inputs) {
    long group = at_once(k), first = row / group * group;
    long of = rows - first < group ? rows - first : group;
    spread(from, k / STRIDE, of, row - first, inputs + first * (k / LANES));
}

/* The outputs from `first` on, for a group of rows. */
static void some_outputs(const Linear *l, long first, long rows, const floats *inputs,
                         uint16_t *output) {
    const uint16_t *weights = l->weight + first * l->k;
    int outputs = l->n - first < OUTPUTS ? l->n - first : OUTPUTS;
    long steps = l->k / STRIDE, tiles = (rows + ROWS - 1) / ROWS;
    const char *ahead = (const char *)(weights + OUTPUTS * l->k);
    long lines = first + 2 * OUTPUTS > l->n ? 0 : OUTPUTS * l->k / 32 / tiles;
    for (long number = 0; number < tiles; number++, ahead += 64 * lines) {
        long row = begin_of(rows, tiles, number);
        const floats *x = inputs + row * steps;
        int few = begin_of(rows, tiles, number + 1) - row;
        float out[OUTPUTS * ROWS];
        /* Constants, so that all sums stay in registers. */
        if (rows == 1)
            for (int a = 0; a < outputs; a++)
                out[a * ROWS] = alone(weights + a * l->k, x, steps,
                                      lines ? ahead + 2 * a * l->k : NULL);
        else if (outputs == OUTPUTS && few == 4)
            tile(weights, l->k, x, rows, OUTPUTS, 4, out, ahead, lines);
        else if (outputs == OUTPUTS && few == 3)
            tile(weights, l->k, x, rows, OUTPUTS, 3, out, ahead, lines);
        else if (outputs == OUTPUTS && few == 2)
            tile(weights, l->k, x, rows, OUTPUTS, 2, out, ahead, lines);
        else tile(weights, l->k, x, rows, outputs, few, out, ahead, lines);
        for (int a = 0; a < outputs; a++)
            for (int b = 0; b < few; b++) {
                float sum = out[a * ROWS + b];
                if (l->bias) sum = sum + from_bfloat16(l->bias[first + a]);
                output[(row + b) * l->n + first + a] = to_bfloat16(sum);
            }
    }
}

/* output[row][n] = bias[n] + sum over k of input[row][k] * weight[n][k], by all threads of a team,
   which do not wait for each other at the end. inputs: from spread_row, in every row. */
static void multiply_rows(const Linear *l, long rows, const floats *inputs, uint16_t *output) {
    long group = at_once(l->k);
    for (long first = 0; first < rows; first += group) {
        long count = rows - first < group ? rows - first : group;
#pragma omp for schedule(static) nowait
        for (long n = 0; n < l->n; n += OUTPUTS)
            some_outputs(l, n, count, inputs + first * (l->k / LANES),
                         output + first * l->n);
    }
}

#endif
