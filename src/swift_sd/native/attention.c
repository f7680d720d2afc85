/* Attention by itself. */
#include <stdlib.h>

#include "attention.h"

/* Returns 0, or 1 if there was no memory. */
int swift_sd_attention(const Attention *a) {
    int failed = 0;
#pragma omp parallel
    {
        float *scratch = aligned_alloc(64, attention_scratch(a->width) * sizeof(float));
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (long each = 0; each < a->rows * a->heads; each++)
            if (scratch) attend(a, each % a->rows, each / a->rows, scratch);
        free(scratch);
    }
    return failed;
}
