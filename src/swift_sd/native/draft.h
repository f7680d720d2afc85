/* What a draft model of the common layout is made of; model/compiled_draft.py has its mirror. */
#ifndef SWIFT_SD_DRAFT_H
#define SWIFT_SD_DRAFT_H

#include "cache_rows.h"
#include "vectors.h"

#define CHUNK 64 /* weights that are unpacked at a time; groups are multiples of it */

typedef struct {
    const uint8_t *codes;   /* [rows][columns * bits / 8]; of 4 bits the low halves come first */
    const uint16_t *scales; /* [rows][groups][2]: scale and offset, bfloat16 */
    const float *bias;      /* [rows] or NULL */
    int64_t rows, columns, group, bits;
} Matrix;

typedef struct {
    const float *attention_norm, *mlp_norm;  /* [hidden] */
    const float *query_norm, *key_norm;      /* [head_dim] or NULL */
    Matrix queries, keys, values, attention_out, gate, up, down;
} Layer;

typedef struct {
    int64_t layers, hidden, heads, kv_heads, head_dim, inner;
    float epsilon;
    int32_t cache_is_float; /* else bfloat16 */
    const Layer *layer;
    const float *final_norm;
    Matrix head;
} Draft;

#endif
