// Rotation, SwiGLU and the powers of a softmax, of a row: for decoding and for training.
#ifndef MINDSPORE_PALM_CPU_ELEMENTWISE_H_
#define MINDSPORE_PALM_CPU_ELEMENTWISE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vector.h"

namespace {

struct Powers {
  float sum, largest;
};

// The first `count` of x [end] become e^(x - largest), and the others zeros; `end` is at least Padded(count).
Powers TakePowers(float* x, int64_t count, int64_t end) {
  const int64_t padded = Padded(count);
  std::fill(x + count, x + padded, -INFINITY);
  const float largest = Largest(x, count);
  Vector sums = {};
  for (int64_t c = 0; c < padded; c += kLanes) {
    const Vector power = Exp(Load(x + c) - largest);
    Store(x + c, power);
    sums += power;
  }
  std::fill(x + count, x + end, 0.0f);  // Exp never returns zero
  return {Sum(sums), largest};
}

// Rotates x [K] in place: element i of the first half is paired with element i of the second.
void Rotate(float* x, const float* cos, const float* sin, int64_t K) {
  const int64_t half = K / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[i], second = x[half + i];
    x[i] = first * cos[i] - second * sin[i];
    x[half + i] = second * cos[i] + first * sin[i];
  }
}

// y [F] = swish(gate) * up.
void SwiGLU(const float* gate, const float* up, float* y, int64_t F) {
  int64_t i = 0;
  for (; i + kLanes <= F; i += kLanes) {
    const Vector g = Load(gate + i);
    Store(y + i, g / (1.0f + Exp(-g)) * Load(up + i));
  }
  for (; i < F; ++i) y[i] = gate[i] / (1.0f + Exp(-gate[i])) * up[i];
}

}  // namespace

#endif  // MINDSPORE_PALM_CPU_ELEMENTWISE_H_
