/* One linear layer by itself. */
#include <stdlib.h>

#include "rows.h"

/* output[row][n] = bias[n] + sum over k of input[row][k] * weight[n][k]; k a multiple of 64.
   bias may be NULL. Returns 0, or 1 if there was no memory. */
int swift_sd_linear_rows(const uint16_t *input, const uint16_t *weight, const uint16_t *bias,
                         uint16_t *output, int64_t rows, int64_t k, int64_t n) {
    Linear l = {weight, bias, k, n};
    Input *inputs = aligned_alloc(64, (size_t)rows * k * sizeof(float));
    if (!inputs) return 1;
#pragma omp parallel
    {
#pragma omp for
        for (long row = 0; row < rows; row++) spread_row(input + row * k, rows, row, k, inputs);
        multiply_rows(&l, rows, inputs, output);
    }
    free(inputs);
    return 0;
}
