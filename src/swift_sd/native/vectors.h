/* Eight floats at a time, in GCC's and Clang's vector types: the same source for every machine. */
#ifndef SWIFT_SD_VECTORS_H
#define SWIFT_SD_VECTORS_H

#include <stdint.h>
#include <string.h>

#define LANES 8
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

INLINE floats load(const float *from) {
    floats value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void store(float *to, floats value) { memcpy(to, &value, sizeof value); }

/* bfloat16 is the upper half of a float. */
INLINE floats load_bfloat16(const uint16_t *from) {
    halves value;
    memcpy(&value, from, sizeof value);
    words wide = __builtin_convertvector(value, words) << 16;
    floats result;
    memcpy(&result, &wide, sizeof result);
    return result;
}

INLINE float from_bfloat16(uint16_t half) {
    uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* Rounds to nearest, ties to even, as everybody does. */
INLINE uint16_t to_bfloat16(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    if ((word & 0x7fffffff) > 0x7f800000) return 0x7fc0; /* NaN */
    return (uint16_t)((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

/* Adds the halves, then the halves of that, then the last two. */
INLINE float total(floats v) {
#ifdef __clang__
    v = v + __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v = v + __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    v = v + __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
#else
    v = v + __builtin_shuffle(v, (words){4, 5, 6, 7, 0, 1, 2, 3});
    v = v + __builtin_shuffle(v, (words){2, 3, 0, 1, 6, 7, 4, 5});
    v = v + __builtin_shuffle(v, (words){1, 0, 3, 2, 5, 4, 7, 6});
#endif
    return v[0];
}

INLINE floats chosen(ints where, floats yes, floats no) {
    ints a, b;
    floats result;
    memcpy(&a, &yes, sizeof a);
    memcpy(&b, &no, sizeof b);
    a = (a & where) | (b & ~where);
    memcpy(&result, &a, sizeof result);
    return result;
}

/* To about 1e-7 of the value; what lies beyond a float is cut off. */
INLINE floats exponential(floats x) {
    const floats highest = (floats){0} + 88.0f, lowest = (floats){0} - 87.0f;
    x = chosen(x > highest, highest, x);
    x = chosen(x < lowest, lowest, x);
    /* x = n ln 2 + r; adding 1.5 * 2^23 rounds to a whole number. */
    const float magic = 12582912.0f;
    floats n = (x * 1.44269504088896341f + magic) - magic;
    floats r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    /* The exponential series up to r^7 / 7!. */
    floats e = r * 1.98412698e-4f + 1.38888889e-3f;
    e = e * r + 8.33333333e-3f;
    e = e * r + 4.16666667e-2f;
    e = e * r + 1.66666667e-1f;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    ints power = (__builtin_convertvector(n, ints) + 127) << 23;
    floats scale;
    memcpy(&scale, &power, sizeof scale);
    return e * scale;
}

#endif
