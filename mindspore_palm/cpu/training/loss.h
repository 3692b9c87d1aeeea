// Cross-entropy over the vocabulary and log(Z) of one token, and their gradient.
#ifndef MINDSPORE_PALM_CPU_TRAINING_LOSS_H_
#define MINDSPORE_PALM_CPU_TRAINING_LOSS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vector.h"

namespace {

// Sums over at least four vectors are as exact as those over a few times as many rows, and do not wait for each other.
constexpr int kSums = 4;

// x [count] becomes e^(x - largest); returns the sum.
float ShiftedExp(float* x, float largest, int64_t count) {
  Vector sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= count; i += kSums * kLanes) {
    for (int j = 0; j < kSums; ++j) {
      const Vector power = Exp(Load(x + i + j * kLanes) - largest);
      Store(x + i + j * kLanes, power);
      sums[j] += power;
    }
  }
  float sum = Sum(sums[0] + sums[1] + (sums[2] + sums[3]));
  for (; i < count; ++i) sum += x[i] = Exp(x[i] - largest);
  return sum;
}

struct TokenLoss {
  float cross_entropy, log_z;  // zero where the target is negative
  float inverse;               // of the sum of the powers; zero where the target is negative
};

// The loss of a token from its logits [padded], which become e^(logit - largest): that is what the gradient needs.
// Columns beyond the vocabulary are no tokens.
TokenLoss LossOf(float* logits, int32_t target, int64_t vocabulary, int64_t padded) {
  const float largest = Largest(logits, vocabulary), logit = logits[std::max(target, 0)];
  const float sum = ShiftedExp(logits, largest, vocabulary), log_sum = std::log(sum);
  std::fill(logits + vocabulary, logits + padded, 0.0f);
  if (target < 0) return {0.0f, 0.0f, 0.0f};
  return {log_sum - (logit - largest), log_sum + largest, 1.0f / sum};
}

// The gradient of logits first .. end of a token, to d_logits [end - first].
void LossGradient(const float* powers, int32_t target, float inverse, float d_cross_entropy, float d_log_z,
                  int64_t first, int64_t end, float* d_logits) {
  if (target < 0) {
    std::fill_n(d_logits, end - first, 0.0f);
    return;
  }
  const float factor = (d_cross_entropy + d_log_z) * inverse;
  for (int64_t v = first; v < end; ++v) d_logits[v - first] = powers[v] * factor;
  if (first <= target && target < end) d_logits[target - first] -= d_cross_entropy;
}

}  // namespace

#endif  // MINDSPORE_PALM_CPU_TRAINING_LOSS_H_
