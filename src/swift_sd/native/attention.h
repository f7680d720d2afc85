/* Attention of single queries over cached keys in bfloat16, several of them at once.

   Written to give, to the bit, what torch's attention gives for each query alone on AMD's CPUs, in
   the order in which MKL and torch take their sums there: scores in four lanes, values
   four keys at a time, the softmax block by block. Whoever uses this must check that it does. */
#ifndef SWIFT_SD_ATTENTION_H
#define SWIFT_SD_ATTENTION_H

#include <math.h>

#include "vectors.h"

#define BLOCK 512 /* keys of a softmax block */
#define TOGETHER 8

typedef float four __attribute__((vector_size(16)));

typedef struct {
    const uint16_t *queries, *keys, *values; /* rows of `width` numbers each */
    uint16_t *out;                           /* [rows][heads][width] */
    const int32_t *paths;   /* [rows][rows]: of the keys behind `prefix`, those a query sees */
    const int32_t *lengths; /* [rows]: how many those are */
    int64_t rows, prefix, window, heads, kv_heads, width;
    int64_t query_head, query_row, key_head, value_head; /* strides, in numbers */
    float scale;
} Attention;

INLINE four load_four(const uint16_t *from) {
    typedef uint16_t small __attribute__((vector_size(8)));
    typedef uint32_t large __attribute__((vector_size(16)));
    small value;
    memcpy(&value, from, sizeof value);
    large wide = __builtin_convertvector(value, large) << 16;
    four result;
    memcpy(&result, &wide, sizeof result);
    return result;
}

/* The scores of `count` keys, of which each is a chain of its own. */
INLINE void score(const float *query, const uint16_t *keys, const int32_t *places, long width,
                  int count, float *scores) {
    four sums[TOGETHER];
    for (int i = 0; i < count; i++) sums[i] = (four){0};
    for (long d = 0; d < width; d += 4) {
        four q;
        memcpy(&q, query + d, sizeof q);
        for (int i = 0; i < count; i++)
            sums[i] += q * load_four(keys + (long)places[i] * width + d);
    }
    for (int i = 0; i < count; i++)
        scores[i] = (sums[i][0] + sums[i][2]) + (sums[i][1] + sums[i][3]);
}

INLINE floats spread_out(float value) { return (floats){0} + value; }

/* torch takes the softmax in vectors as wide as the processor has. */
#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define WIDE 16
#else
#define WIDE LANES
#endif
typedef float wide __attribute__((vector_size(4 * WIDE)));
typedef int32_t wide_ints __attribute__((vector_size(4 * WIDE)));

/* torch's quickest exponential: a float whose bits, read as a whole number, are 2^23 (127 + y) is
   about 2^y; a cubic of y's fraction, with torch's coefficients, makes up for the difference. */
INLINE wide quick_exponential(wide x) {
    wide_ints is_low = x < (wide){0} - 87.3365478515625f, whole;
    wide y = x * 1.44269504088896341f, floor, result;
    for (int i = 0; i < WIDE; i++) floor[i] = floorf(y[i]);
    wide fraction = y - floor;
    wide gap = fraction * -0.079204240219773236f + -0.22433836478672356f;
    gap = gap * fraction + 0.30354260500649682f;
    gap = gap * fraction + 0.00010703434948458272f;
    whole = __builtin_convertvector(8388608.0f * (y - gap) + 1065353216.0f, wide_ints) & ~is_low;
    memcpy(&result, &whole, sizeof result);
    return result;
}

/* torch's single exponentials were found to be correctly rounded, as expf's are not always. */
INLINE float rounded_exponential(float x) { return (float)exp((double)x); }

/* Adds the halves as long as there are two, then as `total` does. */
INLINE float sum_of(wide value) {
    floats parts[WIDE / LANES];
    memcpy(parts, &value, sizeof value);
    return total(WIDE > LANES ? parts[0] + parts[WIDE / LANES - 1] : parts[0]);
}

/* Weights of a block from its scores, in bfloat16; returns their sum. */
static float weigh(const float *scores, long count, float most, uint16_t *weights) {
    wide sums[2] = {{0}, {0}}, score;
    long i = 0;
    for (; i + WIDE <= count; i += WIDE) {
        memcpy(&score, scores + i, sizeof score);
        wide weight = quick_exponential(score - most);
        int is_second = i / WIDE % 2 && i / WIDE < count / WIDE / 2 * 2;
        sums[is_second] += weight;
        for (int j = 0; j < WIDE; j++) weights[i + j] = to_bfloat16(weight[j]);
    }
    float sum = sum_of(sums[0] + sums[1]);
    for (; i < count; i++) {
        float weight = rounded_exponential(scores[i] - most);
        sum += weight;
        weights[i] = to_bfloat16(weight);
    }
    return sum;
}

/* mixed[width] += weights x values. */
static void mix(const uint16_t *weights, const uint16_t *values, const int32_t *places, long count,
                long width, float *mixed) {
    long i = 0;
    for (; i + 4 <= count; i += 4) {
        floats w[4];
        const uint16_t *v[4];
        for (int j = 0; j < 4; j++) {
            w[j] = spread_out(from_bfloat16(weights[i + j]));
            v[j] = values + (long)places[i + j] * width;
        }
        for (long d = 0; d < width; d += LANES) {
            floats even = w[0] * load_bfloat16(v[0] + d) + w[2] * load_bfloat16(v[2] + d);
            floats odd = w[1] * load_bfloat16(v[1] + d) + w[3] * load_bfloat16(v[3] + d);
            store(mixed + d, load(mixed + d) + (even + odd));
        }
    }
    for (long j = count - 1; j >= i; j--) {
        floats w = spread_out(from_bfloat16(weights[j]));
        const uint16_t *v = values + (long)places[j] * width;
        for (long d = 0; d < width; d += LANES)
            store(mixed + d, load(mixed + d) + w * load_bfloat16(v + d));
    }
}

/* Where the keys are that a query sees: `count` of them, from the `first` on. */
static void find(const Attention *a, long row, long first, long count, int32_t *places) {
    for (long i = 0; i < count; i++) {
        long key = first + i;
        places[i] = key < a->prefix ? key : a->prefix + a->paths[row * a->rows + key - a->prefix];
    }
}

/* Numbers of scratch that `attend` needs. */
INLINE long attention_scratch(long width) { return 2 * width + 3 * BLOCK; }

static void attend(const Attention *a, long row, long head, float *scratch) {
    float *query = scratch, *mixed = query + a->width, *scores = mixed + a->width;
    int32_t *places = (int32_t *)(scores + BLOCK);
    uint16_t *weights = (uint16_t *)(places + BLOCK);
    const uint16_t *from = a->queries + head * a->query_head + row * a->query_row;
    long group = head / (a->heads / a->kv_heads);
    const uint16_t *keys = a->keys + group * a->key_head;
    const uint16_t *values = a->values + group * a->value_head;
    float highest = -INFINITY, sum = 0;
    for (long d = 0; d < a->width; d++) query[d] = from_bfloat16(from[d]), mixed[d] = 0;
    long all = a->prefix + a->lengths[row], begin = all > a->window ? all - a->window : 0;
    for (long first = begin; first < all; first += BLOCK) {
        long count = all - first < BLOCK ? all - first : BLOCK, i = 0;
        find(a, row, first, count, places);
        for (; i + TOGETHER <= count; i += TOGETHER)
            score(query, keys, places + i, a->width, TOGETHER, scores + i);
        for (; i < count; i++) score(query, keys, places + i, a->width, 1, scores + i);
        float most = highest;
        for (i = 0; i < count; i++) {
            scores[i] *= a->scale;
            most = scores[i] > most ? scores[i] : most;
        }
        float part = weigh(scores, count, most, weights);
        float faded = rounded_exponential(highest - most);
        sum = part + faded * sum;
        highest = most;
        if (first > begin)
            for (long d = 0; d < a->width; d++) mixed[d] *= faded;
        mix(weights, values, places, count, a->width, mixed);
    }
    uint16_t *out = a->out + (row * a->heads + head) * a->width;
    float share = 1 / sum;
    for (long d = 0; d < a->width; d++) out[d] = to_bfloat16(mixed[d] * share);
}

#endif
