/* Linear layers in bfloat16 over several rows for one reading of their weights.

   torch takes the time of one row for each of several, or adds them up in another order. Here every
   weight comes from memory once for all rows, and each sum is taken in the order in which torch
   takes that of a single row, so that the results are the same to the bit; whoever uses this must
   check that they are. */
#ifndef SWIFT_SD_ROWS_H
#define SWIFT_SD_ROWS_H

#include <stdint.h>

typedef struct {
    const uint16_t *weight, *bias; /* [n][k]; [n] or NULL */
    int64_t k, n;                  /* k a multiple of 64 */
} Linear;

#ifdef __AVX512BF16__
#include "row_pairs.h"
#else
#include "row_lanes.h"
#endif

#endif
