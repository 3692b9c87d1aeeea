// Attention of one new token to the cached keys and values.
#ifndef MINDSPORE_PALM_GENERATE_CPU_ATTENTION_H_
#define MINDSPORE_PALM_GENERATE_CPU_ATTENTION_H_

#include <algorithm>
#include <cstdint>

#include "elementwise.h"
#include "matmul.h"
#include "vector.h"

namespace {

// softmax(q k^T) v of `heads` query heads over the first `seen` positions of keys and values [C, K].
//
// q [heads, K] is scaled already. Head h writes K floats at out + h * width. `weights` is scratch of
// heads * Padded(seen) floats.
void Attend(int64_t heads, const float *q, const float *keys, const float *values, float *out, int64_t width,
            int64_t seen, int64_t K, float *weights) {
  const int64_t stride = Padded(seen);
  MatmulTransposed(q, keys, weights, heads, K, stride, 0, seen);
  for (int64_t h = 0; h < heads; ++h) {
    float *row = weights + h * stride;
    const float factor = 1.0f / TakePowers(row, seen, stride).sum;
    for (int64_t c = 0; c < seen; ++c) row[c] *= factor;
    std::fill_n(out + h * width, K, 0.0f);
  }
  AccumulateRows(seen, weights, stride, values, K, out, width, heads, 0, K);
}

}  // namespace

#endif  // MINDSPORE_PALM_GENERATE_CPU_ATTENTION_H_
