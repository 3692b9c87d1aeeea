// Cross-entropy over the vocabulary and log(Z) of every token, and their gradient: each reads the logits once.
#ifndef MINDSPORE_PALM_CPU_TRAINING_LOSS_H_
#define MINDSPORE_PALM_CPU_TRAINING_LOSS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "pool.h"
#include "vector.h"

namespace {

// Sums over at least four vectors are as exact as those over a few times as many rows, and do not wait for each other.
constexpr int kSums = 4;

// e^(x - largest) of x [count] to y, and their sum.
float ShiftedExp(const float* x, float largest, float* y, int64_t count) {
  Vector sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= count; i += kSums * kLanes) {
    for (int j = 0; j < kSums; ++j) {
      const Vector power = Exp(Load(x + i + j * kLanes) - largest);
      Store(y + i + j * kLanes, power);
      sums[j] += power;
    }
  }
  float sum = Sum(sums[0] + sums[1] + (sums[2] + sums[3]));
  for (; i < count; ++i) sum += y[i] = Exp(x[i] - largest);
  return sum;
}

struct TokenLoss {
  int64_t tokens, vocabulary, padded;  // columns beyond the vocabulary are no tokens

  // logits [T, padded] and targets [T] to cross_entropy and log_z [T], zero where the target is negative. What the
  // gradient needs: powers [T, padded], e^(logit - largest), and the inverse of their sum [T].
  void Forward(const float* logits, const int32_t* targets, float* cross_entropy, float* log_z, float* powers,
               float* inverse) const {
    Rows([=, this](int64_t t) {
      const float* row = logits + t * padded;
      const float largest = Largest(row, vocabulary);
      const float sum = ShiftedExp(row, largest, powers + t * padded, vocabulary);
      std::fill(powers + t * padded + vocabulary, powers + (t + 1) * padded, 0.0f);
      const bool real = targets[t] >= 0;
      const float log_sum = std::log(sum);
      inverse[t] = real ? 1.0f / sum : 0.0f;
      cross_entropy[t] = real ? log_sum - (row[targets[t]] - largest) : 0.0f;
      log_z[t] = real ? log_sum + largest : 0.0f;
    });
  }

  // The gradient of the logits for those of cross-entropy and log(Z).
  void Backward(const int32_t* targets, const float* powers, const float* inverse, const float* d_cross_entropy,
                const float* d_log_z, float* d_logits) const {
    Rows([=, this](int64_t t) {
      const float factor = (d_cross_entropy[t] + d_log_z[t]) * inverse[t];
      const float* from = powers + t * padded;
      float* to = d_logits + t * padded;
      if (targets[t] < 0) {
        std::fill_n(to, padded, 0.0f);
        return;
      }
      for (int64_t v = 0; v < padded; ++v) to[v] = from[v] * factor;
      to[targets[t]] -= d_cross_entropy[t];
    });
  }

 private:
  template <typename Row>
  void Rows(const Row& row) const {
    constexpr int64_t kElements = 32768;  // of a task, at least
    ThreadPool& pool = ThreadPool::Get();
    ForRanges(pool, tokens, std::max<int64_t>(1, kElements / padded), [&](int64_t first, int64_t end) {
      for (int64_t t = first; t < end; ++t) row(t);
    });
  }
};

}  // namespace

#endif  // MINDSPORE_PALM_CPU_TRAINING_LOSS_H_
