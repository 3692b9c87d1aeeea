// The gradient of the table, of which tokens are embedded with the rows, and logits computed.
#ifndef MINDSPORE_PALM_CPU_TRAINING_EMBED_H_
#define MINDSPORE_PALM_CPU_TRAINING_EMBED_H_

#include <algorithm>
#include <cstdint>

#include "pool.h"
#include "vector.h"

namespace {

// out [V, D] = d_table + the rows of d_x [T, D], each added at the row of its token, in the order of tokens.
void AddRows(const float* d_x, const int32_t* tokens, const float* d_table, float* out, int64_t T, int64_t D,
             int64_t V) {
  ThreadPool& pool = ThreadPool::Get();
  ForRanges(pool, V, V / (4 * pool.threads()) + 1, [&](int64_t first, int64_t end) {
    std::copy_n(d_table + first * D, (end - first) * D, out + first * D);
    for (int64_t t = 0; t < T; ++t) {
      if (tokens[t] < first || tokens[t] >= end) continue;
      float* row = out + tokens[t] * D;
      for (int64_t d = 0; d < D; ++d) row[d] += d_x[t * D + d];
    }
  });
}

}  // namespace

#endif  // MINDSPORE_PALM_CPU_TRAINING_EMBED_H_
