/* A forward of the draft, weights in 4 or 8 bits, activations rounded to 8 for the products.

   One parallel region: the threads meet at the end of each `omp for`. */
#include <math.h>
#include <stdlib.h>

#include "products.h"

static void normalise(const float *x, const float *weight, long width, float epsilon, float *to) {
    floats squares = {0};
    for (long i = 0; i < width; i += LANES) {
        floats v = load(x + i);
        squares += v * v;
    }
    float scale = 1 / sqrtf(total(squares) / (float)width + epsilon);
    for (long i = 0; i < width; i++) to[i] = x[i] * scale * weight[i];
}

static void normalise_rows(const float *x, long rows, const float *weight, long width,
                           float epsilon, float *to) {
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++)
        normalise(x + row * width, weight, width, epsilon, to + row * width);
}

/* cosines, sines: [head_dim] of one position. */
static void rotate(float *head, const float *cosines, const float *sines, long width) {
    for (long i = 0; i < width / 2; i++) {
        float a = head[i], b = head[i + width / 2];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + width / 2] = b * cosines[i + width / 2] + a * sines[i + width / 2];
    }
}

INLINE floats cached(const void *from, long at, int is_float) {
    return is_float ? load((const float *)from + at) : load_bfloat16((const uint16_t *)from + at);
}

static void keep(void *to, long at, const float *values, long count, int is_float) {
    if (is_float) memcpy((float *)to + at, values, count * sizeof(float));
    else
        for (long i = 0; i < count; i++) ((uint16_t *)to)[at + i] = to_bfloat16(values[i]);
}

#define TOGETHER 4 /* rows whose sums do not wait for each other */
#define SPAN 8     /* vectors of the output in registers */

/* Scores of `count` rows from `row` on. */
INLINE void score(const float *query, const void *keys, long row, long width, int is_float,
                  int count, float *scores) {
    floats sums[TOGETHER];
    for (int j = 0; j < count; j++) sums[j] = (floats){0};
    for (long i = 0; i < width; i += LANES)
        for (int j = 0; j < count; j++)
            sums[j] += load(query + i) * cached(keys, (row + j) * width + i, is_float);
    for (int j = 0; j < count; j++) scores[j] = total(sums[j]);
}

/* `span` vectors of the sum of all rows, weighted. */
INLINE void mix(const float *weights, const void *values, long first, long end, long width,
                long at, int is_float, int span, float *out) {
    floats mixed[SPAN];
    for (int j = 0; j < span; j++) mixed[j] = (floats){0};
    for (long row = first; row < end; row++)
        for (int j = 0; j < span; j++)
            mixed[j] += weights[row - first] *
                        cached(values, row * width + at + j * LANES, is_float);
    for (int j = 0; j < span; j++) store(out + at + j * LANES, mixed[j]);
}

/* One query head over the rows that it sees; scores: scratch for so many. */
INLINE void attend(const float *query, const void *keys, const void *values, long first, long end,
                   long width, int is_float, float *scores, float *out) {
    float most = -INFINITY, scale = 1 / sqrtf((float)width);
    long count = end - first, row = first, at = 0;
    for (; row + TOGETHER <= end; row += TOGETHER)
        score(query, keys, row, width, is_float, TOGETHER, scores + row - first);
    for (; row < end; row++) score(query, keys, row, width, is_float, 1, scores + row - first);
    for (long i = 0; i < count; i++) {
        scores[i] *= scale;
        most = scores[i] > most ? scores[i] : most;
    }
    for (long i = count; i % LANES; i++) scores[i] = -INFINITY; /* there is room */
    floats sums = {0};
    for (long i = 0; i < count; i += LANES) {
        floats weight = exponential(load(scores + i) - most);
        store(scores + i, weight);
        sums += weight;
    }
    float share = 1 / total(sums);
    for (long i = 0; i < count; i++) scores[i] *= share;
    for (; at + SPAN * LANES <= width; at += SPAN * LANES)
        mix(scores, values, first, end, width, at, is_float, SPAN, out);
    for (; at < width; at += LANES) mix(scores, values, first, end, width, at, is_float, 1, out);
}

typedef struct {
    float *normed, *queries, *keys, *values, *mixed, *gate, *up;
    Rounded rounded;
} Scratch;

static void attention(const Draft *d, const Layer *l, const Rows *rows, float *hidden, long inputs,
                      const float *cosines, const float *sines, Scratch *s, float *scores) {
    long dim = d->head_dim, wide = d->heads * dim, narrow = d->kv_heads * dim;
    normalise_rows(hidden, inputs, l->attention_norm, d->hidden, d->epsilon, s->normed);
    round_rows(s->normed, inputs, &l->queries, &s->rounded);
    multiply(&l->queries, &s->rounded, inputs, s->queries, wide, 0);
    multiply(&l->keys, &s->rounded, inputs, s->keys, narrow, 0);
    multiply(&l->values, &s->rounded, inputs, s->values, narrow, 0);
#pragma omp barrier
#pragma omp for schedule(static)
    for (long each = 0; each < inputs * (d->heads + d->kv_heads); each++) {
        long input = each / (d->heads + d->kv_heads), head = each % (d->heads + d->kv_heads);
        int is_key = head >= d->heads;
        float *x = is_key ? s->keys + input * narrow + (head - d->heads) * dim
                          : s->queries + input * wide + head * dim;
        const float *norm = is_key ? l->key_norm : l->query_norm;
        if (norm) normalise(x, norm, dim, d->epsilon, x);
        rotate(x, cosines + input * dim, sines + input * dim, dim);
        if (is_key) {
            long at = (head - d->heads) * rows->stride + (rows->row + input) * dim;
            keep(rows->keys, at, x, dim, d->cache_is_float);
            keep(rows->values, at, s->values + input * narrow + (head - d->heads) * dim, dim,
                 d->cache_is_float);
        }
    }
    long size = d->cache_is_float ? sizeof(float) : sizeof(uint16_t);
#pragma omp for schedule(static)
    for (long each = 0; each < inputs * d->heads; each++) {
        long input = each / d->heads, head = each % d->heads;
        long end = rows->row + input + 1, first = end > rows->window ? end - rows->window : 0;
        long from = head / (d->heads / d->kv_heads) * rows->stride * size;
        const void *keys = (const char *)rows->keys + from;
        const void *values = (const char *)rows->values + from;
        const float *query = s->queries + input * wide + head * dim;
        float *out = s->mixed + input * wide + head * dim;
        if (d->cache_is_float) attend(query, keys, values, first, end, dim, 1, scores, out);
        else attend(query, keys, values, first, end, dim, 0, scores, out);
    }
    round_rows(s->mixed, inputs, &l->attention_out, &s->rounded);
    multiply(&l->attention_out, &s->rounded, inputs, hidden, d->hidden, 1);
#pragma omp barrier
}

static void mlp(const Draft *d, const Layer *l, float *hidden, long inputs, Scratch *s) {
    normalise_rows(hidden, inputs, l->mlp_norm, d->hidden, d->epsilon, s->normed);
    round_rows(s->normed, inputs, &l->gate, &s->rounded);
    multiply(&l->gate, &s->rounded, inputs, s->gate, d->inner, 0);
    multiply(&l->up, &s->rounded, inputs, s->up, d->inner, 0);
#pragma omp barrier
#pragma omp for schedule(static)
    for (long i = 0; i < inputs * d->inner; i += LANES) {
        floats gate = load(s->gate + i);
        store(s->gate + i, gate / (1 + exponential(-gate)) * load(s->up + i));
    }
    round_rows(s->gate, inputs, &l->down, &s->rounded);
    multiply(&l->down, &s->rounded, inputs, hidden, d->hidden, 1);
#pragma omp barrier
}

/* hidden: [inputs][hidden], embeddings that become the residual stream. skips: for each layer 1
   for attention, 2 for MLP, 3 for both. logits: [kept][head rows] of the last `kept` inputs;
   only of the tokens that are `listed`, `count` of them, if that is not NULL. Returns 0, or 1 if
   there was no memory. */
int swift_sd_draft(const Draft *d, const Rows *rows, const uint8_t *skips, float *hidden,
                   int64_t inputs, const float *cosines, const float *sines, float *logits,
                   int64_t kept, const int32_t *listed, int64_t count) {
    long widest = d->hidden > d->inner ? d->hidden : d->inner;
    long wide = d->heads * d->head_dim, narrow = d->kv_heads * d->head_dim, most = 1;
    if (wide > widest) widest = wide;
    for (long i = 0; i < d->layers; i++)
        if (rows[i].row + inputs > most) most = rows[i].row + inputs;
    size_t numbers = d->hidden + 2 * wide + 2 * narrow + 2 * d->inner + 2 * (widest / CHUNK + 1);
    float *room = malloc((size_t)inputs * (numbers * sizeof(float) + widest));
    if (!room) return 1;
    Scratch s;
    float *next = room;
    s.normed = next, next += inputs * d->hidden;
    s.queries = next, next += inputs * wide;
    s.mixed = next, next += inputs * wide;
    s.keys = next, next += inputs * narrow;
    s.values = next, next += inputs * narrow;
    s.gate = next, next += inputs * d->inner;
    s.up = next, next += inputs * d->inner;
    s.rounded.scales = next, next += inputs * (widest / CHUNK + 1);
    s.rounded.sums = next, next += inputs * (widest / CHUNK + 1);
    s.rounded.codes = (int8_t *)next;
    int failed = 0;
#pragma omp parallel
    {
        float *scores = malloc((most + LANES) * sizeof(float));
        if (!scores) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        for (long i = 0; i < d->layers && !failed; i++) {
            if (!(skips[i] & 1))
                attention(d, d->layer + i, rows + i, hidden, inputs, cosines, sines, &s, scores);
            if (!(skips[i] & 2)) mlp(d, d->layer + i, hidden, inputs, &s);
        }
        if (!failed && kept) {
            const float *last = hidden + (inputs - kept) * d->hidden;
            normalise_rows(last, kept, d->final_norm, d->hidden, d->epsilon, s.normed);
            round_rows(s.normed, kept, &d->head, &s.rounded);
            if (!listed) multiply(&d->head, &s.rounded, kept, logits, d->head.rows, 0);
            else multiply_some(&d->head, listed, count, &s.rounded, kept, logits);
        }
        free(scores);
    }
    free(room);
    return failed;
}
