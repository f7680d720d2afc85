/* Where a forward finds a layer's keys and values; model/common_layout.py has its mirror. */
#ifndef SWIFT_SD_CACHE_ROWS_H
#define SWIFT_SD_CACHE_ROWS_H

#include <stdint.h>

/* One layer's part of the cache, [kv_heads][..][head_dim], heads `stride` numbers apart. */
typedef struct {
    void *keys, *values;
    int64_t stride;
    int64_t row;    /* where the first new one goes */
    int64_t window; /* rows that each query sees, itself included */
} Rows;

#endif
