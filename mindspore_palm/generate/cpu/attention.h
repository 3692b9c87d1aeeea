// Attention of one new token to the cached keys and values.
#ifndef MINDSPORE_PALM_GENERATE_CPU_ATTENTION_H_
#define MINDSPORE_PALM_GENERATE_CPU_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vector.h"

namespace {

// softmax(q k^T) v of kHeads <= 4 query heads over the first `seen` positions of keys and values [C, K].
//
// q [kHeads, K] is scaled already. Head h writes K floats at out + h * width. `weights` is scratch of
// kHeads * Padded(seen) floats.
template <int kHeads>
void Attend(const float *q, const float *keys, const float *values, float *out, int64_t width, int64_t seen,
            int64_t dim, float *weights) {
  const int64_t padded = Padded(seen);
  std::fill(weights, weights + kHeads * padded, -INFINITY);
  for (int64_t c = 0; c < seen; ++c) {
    const float *key = keys + c * dim;
    Vector sums[4] = {};
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) {
      for (int h = 0; h < kHeads; ++h) sums[h] = MulAdd(Load(q + h * dim + i), Load(key + i), sums[h]);
    }
    float scores[4];
    SumFour(sums[0], sums[1], sums[2], sums[3], scores);
    for (int h = 0; h < kHeads; ++h) {
      for (int64_t k = i; k < dim; ++k) scores[h] = MulAdd(q[h * dim + k], key[k], scores[h]);
      weights[h * padded + c] = scores[h];
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    float *row = weights + h * padded;
    const float largest = *std::max_element(row, row + seen);
    Vector sums = {};
    for (int64_t c = 0; c < padded; c += kLanes) {
      const Vector power = Exp(Load(row + c) - largest);
      Store(row + c, power);
      sums += power;
    }
    const float factor = 1.0f / Sum(sums);
    for (int64_t c = 0; c < seen; ++c) row[c] *= factor;
  }
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    Vector sums[kHeads] = {};
    for (int64_t c = 0; c < seen; ++c) {
      const Vector value = Load(values + c * dim + i);
      for (int h = 0; h < kHeads; ++h) sums[h] = MulAdd(Broadcast(weights[h * padded + c]), value, sums[h]);
    }
    for (int h = 0; h < kHeads; ++h) Store(out + h * width + i, sums[h]);
  }
  for (; i < dim; ++i) {
    for (int h = 0; h < kHeads; ++h) {
      float sum = 0;
      for (int64_t c = 0; c < seen; ++c) sum = MulAdd(weights[h * padded + c], values[c * dim + i], sum);
      out[h * width + i] = sum;
    }
  }
}

}  // namespace

#endif  // MINDSPORE_PALM_GENERATE_CPU_ATTENTION_H_
