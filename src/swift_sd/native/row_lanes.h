/* Linear layers where the processor has no instructions for bfloat16.

   torch computes every output there as the scalar product of a row and a row of weights in floats:
   eight vectors of eight lanes run along them and are added up pairwise at the end. */
#ifndef SWIFT_SD_ROW_LANES_H
#define SWIFT_SD_ROW_LANES_H

#include "vectors.h"

#define PARTS 8 /* vectors that run along a row */
#define STRIDE (LANES * PARTS)
#define OUTPUTS 3 /* rows of weights, and */
#define ROWS 4    /* rows of input in registers at a time */
#define LONG 3000 /* numbers: OUTPUTS such rows do not stay in the nearest cache */
#define BLOCK_STEPS 32 /* so many steps along them do */
#ifndef CACHED
#define CACHED 400000 /* bytes of input to go over again and again: they stay in the cache */
#endif

typedef floats Input; /* numbers of rows, as `spread_row` leaves them */

/* The parts of each sum, pairwise. */
INLINE float joined(floats *parts) {
    for (int half = PARTS / 2; half; half /= 2)
        for (int part = 0; part < half; part++) parts[part] = parts[part] + parts[part + half];
    return total(parts[0]);
}

typedef struct {
    const uint16_t *weights; /* OUTPUTS rows of k numbers */
    const Input *inputs;    /* [PARTS][steps][rows] vectors */
    long k;
    const char *ahead; /* so many lines of 64 bytes, which come next, are fetched meanwhile: */
    long lines;        /* left to itself the processor asks for them too late */
} Work;

/* Adds to running[OUTPUTS][ROWS] the steps from `begin` to `end` of a part. */
INLINE void add_steps(const Work *work, int part, long begin, long end, int outputs, int rows,
                      floats running[OUTPUTS][ROWS]) {
    const uint16_t *w = work->weights + part * LANES;
    const floats *x = work->inputs + part * (work->k / STRIDE) * rows;
    for (long step = begin; step < end; step++) {
        floats weight[OUTPUTS];
        for (int a = 0; a < outputs; a++)
            weight[a] = load_bfloat16(w + a * work->k + step * STRIDE);
        for (int b = 0; b < rows; b++) {
            floats input = x[step * rows + b];
            for (int a = 0; a < outputs; a++) running[a][b] += weight[a] * input;
        }
    }
}

/* Sums of `outputs` x `rows` products, to out[OUTPUTS][ROWS]. */
INLINE void tile(const Work *work, int outputs, int rows, float *out) {
    floats sums[OUTPUTS][ROWS][PARTS];
    long line = 0;
    for (int part = 0; part < PARTS; part++) {
        for (; line < (part + 1) * work->lines / PARTS; line++)
            __builtin_prefetch(work->ahead + 64 * line);
        floats running[OUTPUTS][ROWS];
        for (int a = 0; a < outputs; a++)
            for (int b = 0; b < rows; b++) running[a][b] = (floats){0};
        add_steps(work, part, 0, work->k / STRIDE, outputs, rows, running);
        for (int a = 0; a < outputs; a++)
            for (int b = 0; b < rows; b++) sums[a][b][part] = running[a][b];
    }
    for (int a = 0; a < outputs; a++)
        for (int b = 0; b < rows; b++) out[a * ROWS + b] = joined(sums[a][b]);
}

/* The same where rows are so long that their weights would not stay in the nearest cache from one
   part to the next: a block of steps after the other. */
INLINE void tile_in_blocks(const Work *work, int outputs, int rows, float *out) {
    floats sums[OUTPUTS][ROWS][PARTS];
    long steps = work->k / STRIDE, line = 0;
    long turns = (steps + BLOCK_STEPS - 1) / BLOCK_STEPS * PARTS;
    memset(sums, 0, sizeof sums);
    for (long turn = 0; turn < turns; turn++) {
        long part = turn % PARTS, begin = turn / PARTS * BLOCK_STEPS;
        long end = begin + BLOCK_STEPS < steps ? begin + BLOCK_STEPS : steps;
        for (; line < (turn + 1) * work->lines / turns; line++)
            __builtin_prefetch(work->ahead + 64 * line);
        floats running[OUTPUTS][ROWS];
        for (int a = 0; a < outputs; a++)
            for (int b = 0; b < rows; b++) running[a][b] = sums[a][b][part];
        add_steps(work, part, begin, end, outputs, rows, running);
        for (int a = 0; a < outputs; a++)
            for (int b = 0; b < rows; b++) sums[a][b][part] = running[a][b];
    }
    for (int a = 0; a < outputs; a++)
        for (int b = 0; b < rows; b++) out[a * ROWS + b] = joined(sums[a][b]);
}

INLINE void any_tile(const Work *work, int outputs, int rows, float *out) {
    if (work->k > LONG) tile_in_blocks(work, outputs, rows, out);
    else tile(work, outputs, rows, out);
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

/* How many rows of k numbers are gone over at once. */
INLINE long at_once(long k) {
    long most = CACHED / (k * (long)sizeof(float)) / ROWS * ROWS;
    return most < ROWS ? ROWS : most;
}

/* Where a tile of rows begins: all are of nearly the same size, since one row alone is slow. */
INLINE long begin_of(long rows, long tiles, long number) { return rows * number / tiles; }

/* Row `row` of all `rows`, widened, to its place among the inputs of its tile. */
INLINE void spread_row(const uint16_t *from, long rows, long row, long k, Input *inputs) {
    long group = at_once(k), first = row / group * group, steps = k / STRIDE;
    long of = rows - first < group ? rows - first : group, tiles = (of + ROWS - 1) / ROWS;
    long number = ((row - first + 1) * tiles - 1) / of, begin = begin_of(of, tiles, number);
    long few = begin_of(of, tiles, number + 1) - begin;
    floats *to = inputs + (first + begin) * (k / LANES) + (row - first - begin);
    for (long step = 0; step < steps; step++)
        for (int part = 0; part < PARTS; part++)
            to[(part * steps + step) * few] = load_bfloat16(from + step * STRIDE + part * LANES);
}

/* The outputs from `first` on, for a group of rows. */
static void some_outputs(const Linear *l, long first, long rows, const Input *inputs,
                         uint16_t *output) {
    const uint16_t *weights = l->weight + first * l->k;
    int outputs = l->n - first < OUTPUTS ? l->n - first : OUTPUTS;
    long steps = l->k / STRIDE, tiles = (rows + ROWS - 1) / ROWS;
    Work work = {weights, inputs, l->k, (const char *)(weights + OUTPUTS * l->k),
                 first + 2 * OUTPUTS > l->n ? 0 : OUTPUTS * l->k / 32 / tiles};
    for (long number = 0; number < tiles; number++, work.ahead += 64 * work.lines) {
        long row = begin_of(rows, tiles, number);
        int few = begin_of(rows, tiles, number + 1) - row;
        float out[OUTPUTS * ROWS];
        work.inputs = inputs + row * (l->k / LANES);
        /* Constants, so that all sums stay in registers. */
        if (rows == 1)
            for (int a = 0; a < outputs; a++)
                out[a * ROWS] = alone(weights + a * l->k, inputs, steps,
                                      work.lines ? work.ahead + 2 * a * l->k : NULL);
        else if (outputs == OUTPUTS && few == 4) any_tile(&work, OUTPUTS, 4, out);
        else if (outputs == OUTPUTS && few == 3) any_tile(&work, OUTPUTS, 3, out);
        else if (outputs == OUTPUTS && few == 2) any_tile(&work, OUTPUTS, 2, out);
        else any_tile(&work, outputs, few, out);
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
static void multiply_rows(const Linear *l, long rows, const Input *inputs, uint16_t *output) {
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
