/* A forward of the draft, weights in 4 or 8 bits, activations rounded to 8 for the products.

   One parallel region: the threads meet at the end of each `omp for`. */
#include <math.h>
#include <stdlib.h>

#include "draft.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

/* ---- activations in 8 bits: [rows][columns], with a scale and a sum for each group ---- */

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

/* The scalar product of one group of codes. */
#ifdef __AVX2__
typedef __m256 Sum;
INLINE Sum nothing(void) { return _mm256_setzero_ps(); }
INLINE __m256i pairs(__m256i a, __m256i b) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
}
INLINE Sum add_group(Sum sum, const uint8_t *w, const int8_t *x, long group, int bits, float scale) {
    __m256i whole = _mm256_setzero_si256();
    if (bits == 4) {
        const __m256i low = _mm256_set1_epi8(15);
        for (long i = 0; i < group; i += CHUNK) {
            __m256i both = _mm256_loadu_si256((const void *)(w + i / 2));
            __m256i first = _mm256_maddubs_epi16(_mm256_and_si256(both, low),
                                                 _mm256_loadu_si256((const void *)(x + i)));
            __m256i second = _mm256_maddubs_epi16(
                _mm256_and_si256(_mm256_srli_epi16(both, 4), low),
                _mm256_loadu_si256((const void *)(x + i + CHUNK / 2)));
            whole = _mm256_add_epi32(whole, _mm256_madd_epi16(_mm256_add_epi16(first, second),
                                                              _mm256_set1_epi16(1)));
        }
    } else {
        for (long i = 0; i < group; i += CHUNK / 2) {
            __m256i a = _mm256_loadu_si256((const void *)(w + i));
            __m256i b = _mm256_loadu_si256((const void *)(x + i));
            /* One factor must be without sign: it goes over to the other. */
            whole = _mm256_add_epi32(whole, pairs(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a)));
        }
    }
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(scale), sum);
}
INLINE float summed(Sum sum) { return total((floats)sum); }
#else
typedef float Sum;
INLINE Sum nothing(void) { return 0; }
INLINE Sum add_group(Sum sum, const uint8_t *w, const int8_t *x, long group, int bits, float scale) {
    int32_t whole = 0;
    if (bits == 4) {
        for (long i = 0; i < group; i += CHUNK)
            for (long j = 0; j < CHUNK / 2; j++) {
                uint8_t both = w[i / 2 + j];
                whole += (both & 15) * x[i + j] + (both >> 4) * x[i + CHUNK / 2 + j];
            }
    } else {
        for (long i = 0; i < group; i++) whole += (int8_t)w[i] * x[i];
    }
    return sum + scale * (float)whole;
}
INLINE float summed(Sum sum) { return sum; }
#endif

INLINE float product(const Matrix *m, long row, const Rounded *x, long input, int bits) {
    long groups = m->columns / m->group;
    const uint8_t *w = m->codes + row * m->columns * bits / 8;
    const uint16_t *scales = m->scales + row * groups * 2;
    const int8_t *codes = x->codes + input * m->columns;
    Sum sum = nothing();
    float offsets = 0;
    for (long g = 0; g < groups; g++) {
        sum = add_group(sum, w + g * m->group * bits / 8, codes + g * m->group, m->group, bits,
                        from_bfloat16(scales[2 * g]) * x->scales[input * groups + g]);
        if (bits == 4) offsets += from_bfloat16(scales[2 * g + 1]) * x->sums[input * groups + g];
    }
    return summed(sum) + offsets + (m->bias ? m->bias[row] : 0);
}

/* All threads share the rows of the matrix; they do not wait for each other at the end.
   out[input][row], `width` apart; added to what is there, or put there. */
static void multiply(const Matrix *m, const Rounded *x, long inputs, float *out, long width,
                     int adds) {
#pragma omp for schedule(static) nowait
    for (long row = 0; row < m->rows; row++)
        for (long input = 0; input < inputs; input++) {
            float value = m->bits == 4 ? product(m, row, x, input, 4) : product(m, row, x, input, 8);
            float *to = out + input * width + row;
            *to = adds ? *to + value : value;
        }
}

static void round_rows(const float *x, long rows, const Matrix *for_matrix, Rounded *to) {
    long group = for_matrix->group, groups = for_matrix->columns / group;
#pragma omp for schedule(static)
    for (long g = 0; g < rows * groups; g++)
        round_group(x + g * group, group, to->codes + g * group, to->scales + g, to->sums + g);
}

/* ---- the parts of a layer ---- */

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

/* One query head over the rows that it sees; scores: scratch for so many. */
INLINE void attend(const float *query, const void *keys, const void *values, long first, long end,
                   long width, int is_float, float *scores, float *out) {
    float most = -INFINITY, sum, scale = 1 / sqrtf((float)width);
    for (long row = first; row < end; row++) {
        floats products = {0};
        for (long i = 0; i < width; i += LANES)
            products += load(query + i) * cached(keys, row * width + i, is_float);
        float score = total(products) * scale;
        scores[row - first] = score;
        most = score > most ? score : most;
    }
    long count = end - first;
    for (long i = count; i % LANES; i++) scores[i] = -INFINITY; /* there is room */
    floats sums = {0};
    for (long i = 0; i < count; i += LANES) {
        floats weight = exponential(load(scores + i) - most);
        store(scores + i, weight);
        sums += weight;
    }
    sum = total(sums);
    for (long i = 0; i < width; i += LANES) {
        floats mixed = {0};
        for (long row = first; row < end; row++)
            mixed += scores[row - first] * cached(values, row * width + i, is_float);
        store(out + i, mixed / sum);
    }
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
   for attention, 2 for MLP, 3 for both. logits: [kept][head rows] of the last `kept` inputs.
   Returns 0, or 1 if there was no memory. */
int swift_sd_draft(const Draft *d, const Rows *rows, const uint8_t *skips, float *hidden,
                   int64_t inputs, const float *cosines, const float *sines, float *logits,
                   int64_t kept) {
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
            multiply(&d->head, &s.rounded, kept, logits, d->head.rows, 0);
        }
        free(scores);
    }
    free(room);
    return failed;
}
