/* A forward of the target over several rows: decoders of the common layout in bfloat16, each row to
   the bit as transformers' modules give it alone.

   Every number that those modules would write to memory is rounded to bfloat16 here too; sums are
   taken in torch's order. Whoever uses this must check that the results are the same. One parallel
   region: the threads meet at the end of each `omp for` that is not `nowait`. */
#include <stdlib.h>

#include "attention.h"
#include "cache_rows.h"
#include "rows.h"

typedef struct {
    const uint16_t *attention_norm, *mlp_norm; /* [hidden] */
    const uint16_t *query_norm, *key_norm;     /* [head_dim] or NULL */
    Linear queries, keys, values, attention_out, gate, up, down;
} Layer;

typedef struct {
    int64_t layers, hidden, heads, kv_heads, head_dim, inner;
    float epsilon, scale;
    const Layer *layer;
    const uint16_t *final_norm, *activation; /* [hidden]; [65536]: of each bfloat16 by its bits */
    Linear head;
} Target;

/* Scratch that all threads share. Each has its `own` besides, for attention and the squares of a
   norm. */
typedef struct {
    uint16_t *normed, *queries, *keys, *values, *mixed, *added, *gate, *up;
    Input *inputs; /* of a linear layer */
} Shared;

#define LEVELS 4
#define COLUMNS 4

/* The sum of `count` vectors of floats in torch's order: four columns, in each of them partial sums
   at several levels, so that no sum has many terms. */
static floats cascade(const float *from, long count) {
    floats sums[LEVELS][COLUMNS];
    memset(sums, 0, sizeof sums);
    long rows = count / COLUMNS, power = 0, row = 0;
    while (1L << power < rows) power++;
    power = power / LEVELS > 4 ? power / LEVELS : 4;
    long step = 1L << power, mask = step - 1;
    while (row + step <= rows) {
        for (long i = 0; i < step; i++, row++)
            for (int c = 0; c < COLUMNS; c++)
                sums[0][c] += load(from + (row * COLUMNS + c) * LANES);
        for (int level = 1; level < LEVELS; level++) {
            for (int c = 0; c < COLUMNS; c++)
                sums[level][c] += sums[level - 1][c], sums[level - 1][c] = (floats){0};
            if (row & (mask << (level * power))) break;
        }
    }
    for (; row < rows; row++)
        for (int c = 0; c < COLUMNS; c++) sums[0][c] += load(from + (row * COLUMNS + c) * LANES);
    for (int level = 1; level < LEVELS; level++)
        for (int c = 0; c < COLUMNS; c++) sums[0][c] += sums[level][c];
    for (long i = rows * COLUMNS; i < count; i++) sums[0][0] += load(from + i * LANES);
    for (int c = 1; c < COLUMNS; c++) sums[0][0] += sums[0][c];
    return sums[0][0];
}

/* Root mean square norm; width a multiple of LANES. squares: room for as many floats. */
static void normalise(const uint16_t *x, const uint16_t *weight, long width, float epsilon,
                      float *squares, uint16_t *to) {
    for (long i = 0; i < width; i += LANES) {
        floats v = load_bfloat16(x + i);
        store(squares + i, v * v);
    }
    __asm__ volatile("" ::: "memory"); /* the squares are rounded before they are added */
    floats lanes = cascade(squares, width / LANES);
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    float scale = 1 / sqrtf(sum / (float)width + epsilon);
    for (long i = 0; i < width; i++) {
        float scaled = from_bfloat16(to_bfloat16(from_bfloat16(x[i]) * scale));
        to[i] = to_bfloat16(from_bfloat16(weight[i]) * scaled);
    }
}

/* To the residual stream is added what a sublayer gave, if any; then the norm of the next one. */
static void add_and_normalise(const Target *t, uint16_t *hidden, const uint16_t *added, long rows,
                              const uint16_t *norm, Shared *s, float *own) {
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++) {
        uint16_t *x = hidden + row * t->hidden;
        for (long i = 0; added && i < t->hidden; i++)
            x[i] = to_bfloat16(from_bfloat16(x[i]) +
                               from_bfloat16(added[row * t->hidden + i]));
        normalise(x, norm, t->hidden, t->epsilon, own, s->normed + row * t->hidden);
        spread_row(s->normed + row * t->hidden, rows, row, t->hidden, s->inputs);
    }
}

/* Rotary embedding; cosines, sines: [width] of one position. */
static void rotate(uint16_t *head, const uint16_t *cosines, const uint16_t *sines, long width) {
    for (long i = 0; i < width / 2; i++) {
        long j = i + width / 2;
        float a = from_bfloat16(head[i]), b = from_bfloat16(head[j]);
        uint16_t parts[4] = {to_bfloat16(a * from_bfloat16(cosines[i])),
                             to_bfloat16(-b * from_bfloat16(sines[i])),
                             to_bfloat16(b * from_bfloat16(cosines[j])),
                             to_bfloat16(a * from_bfloat16(sines[j]))};
        head[i] = to_bfloat16(from_bfloat16(parts[0]) + from_bfloat16(parts[1]));
        head[j] = to_bfloat16(from_bfloat16(parts[2]) + from_bfloat16(parts[3]));
    }
}

static void project(const Target *t, const Layer *l, const Rows *to, long rows,
                    const uint16_t *cosines, const uint16_t *sines, Shared *s, float *own) {
    long dim = t->head_dim, wide = t->heads * dim, narrow = t->kv_heads * dim;
    multiply_rows(&l->queries, rows, s->inputs, s->queries);
    multiply_rows(&l->keys, rows, s->inputs, s->keys);
    multiply_rows(&l->values, rows, s->inputs, s->values);
#pragma omp barrier
    long heads = t->heads + t->kv_heads;
#pragma omp for schedule(static)
    for (long each = 0; each < rows * heads; each++) {
        long row = each / heads, head = each % heads, key = head - t->heads;
        uint16_t *x = key < 0 ? s->queries + row * wide + head * dim
                              : s->keys + row * narrow + key * dim;
        const uint16_t *norm = key < 0 ? l->query_norm : l->key_norm;
        if (norm) normalise(x, norm, dim, t->epsilon, own, x);
        rotate(x, cosines + row * dim, sines + row * dim, dim);
        if (key < 0) continue;
        long at = key * to->stride + (to->row + row) * dim;
        memcpy((uint16_t *)to->keys + at, x, 2 * dim);
        memcpy((uint16_t *)to->values + at, s->values + row * narrow + key * dim, 2 * dim);
    }
}

static void attention(const Target *t, const Layer *l, const Rows *at, long rows,
                      const int32_t *paths, const int32_t *lengths, Shared *s, float *own) {
    long dim = t->head_dim;
    Attention a = {s->queries,  at->keys,    at->values,     s->mixed,     paths,
                   lengths,     rows,        at->row,        at->window,   t->heads,
                   t->kv_heads, dim,         dim,            t->heads * dim, at->stride,
                   at->stride,  t->scale};
#pragma omp for schedule(static)
    for (long each = 0; each < rows * t->heads; each++)
        attend(&a, each % rows, each / rows, own);
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++)
        spread_row(s->mixed + row * t->heads * dim, rows, row, t->heads * dim, s->inputs);
    multiply_rows(&l->attention_out, rows, s->inputs, s->added);
#pragma omp barrier
}

static void mlp(const Target *t, const Layer *l, long rows, Shared *s) {
    multiply_rows(&l->gate, rows, s->inputs, s->gate);
    multiply_rows(&l->up, rows, s->inputs, s->up);
#pragma omp barrier
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++) {
        uint16_t *gate = s->gate + row * t->inner, *up = s->up + row * t->inner;
        for (long i = 0; i < t->inner; i++)
            gate[i] = to_bfloat16(from_bfloat16(t->activation[gate[i]]) * from_bfloat16(up[i]));
        spread_row(gate, rows, row, t->inner, s->inputs);
    }
    multiply_rows(&l->down, rows, s->inputs, s->added);
#pragma omp barrier
}

static void layers(const Target *t, const Rows *at, uint16_t *hidden, long rows,
                   const int32_t *paths, const int32_t *lengths, const uint16_t *cosines,
                   const uint16_t *sines, uint16_t *logits, long kept, Shared *s, float *own) {
    const uint16_t *added = NULL;
    for (long i = 0; i < t->layers; i++, at++) {
        const Layer *l = t->layer + i;
        add_and_normalise(t, hidden, added, rows, l->attention_norm, s, own);
        project(t, l, at, rows, cosines, sines, s, own);
        attention(t, l, at, rows, paths, lengths, s, own);
        add_and_normalise(t, hidden, s->added, rows, l->mlp_norm, s, own);
        mlp(t, l, rows, s);
        added = s->added;
    }
    long skipped = rows - kept;
    add_and_normalise(t, hidden + skipped * t->hidden, added + skipped * t->hidden, kept,
                      t->final_norm, s, own);
    multiply_rows(&t->head, kept, s->inputs, logits);
}

/* hidden: [rows][hidden], embeddings that become the residual stream. at: of each layer. paths,
   lengths: see attention.h. cosines, sines: [rows][head_dim]. logits: [kept][vocabulary] of the
   last `kept` rows, one at least. Returns 0, or 1 if there was no memory. */
int swift_sd_target(const Target *t, const Rows *at, uint16_t *hidden, int64_t rows,
                    const int32_t *paths, const int32_t *lengths, const uint16_t *cosines,
                    const uint16_t *sines, uint16_t *logits, int64_t kept) {
    long wide = t->heads * t->head_dim, narrow = t->kv_heads * t->head_dim;
    long widest = wide > t->inner ? wide : t->inner;
    if (t->hidden > widest) widest = t->hidden;
    size_t numbers = 2 * t->hidden + 2 * wide + 2 * narrow + 2 * t->inner;
    Shared s;
    int failed = 0;
    s.inputs = aligned_alloc(64, (size_t)rows * widest * sizeof(float));
    uint16_t *room = malloc(rows * numbers * sizeof(uint16_t)), *next = room;
    s.normed = next, next += rows * t->hidden;
    s.added = next, next += rows * t->hidden;
    s.queries = next, next += rows * wide;
    s.mixed = next, next += rows * wide;
    s.keys = next, next += rows * narrow;
    s.values = next, next += rows * narrow;
    s.gate = next, next += rows * t->inner;
    s.up = next;
    if (!room || !s.inputs) failed = 1;
#pragma omp parallel if (!failed)
    {
        long scores = attention_scratch(t->head_dim);
        float *own = malloc((scores > widest ? scores : widest) * sizeof(float));
        if (!own) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed)
            layers(t, at, hidden, rows, paths, lengths, cosines, sines, logits, kept, &s, own);
        free(own);
    }
    free(room);
    free(s.inputs);
    return failed;
}
