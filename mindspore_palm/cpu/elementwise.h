// Rotation, SwiGLU and the powers of a softmax, of a row: for decoding and for training.
#ifndef MINDSPORE_PALM_CPU_ELEMENTWISE_H_
#define MINDSPORE_PALM_CPU_ELEMENTWISE_H_

#include <cmath>
#include <cstdint>

#include "vector.h"

namespace {

struct Powers {
  float sum, largest;
};

// The first `count` of x [end] become e^(x - largest), and the others zeros. `end` is a multiple of kLanes.
Powers TakePowers(float* x, int64_t count, int64_t end) {
  const int64_t last = (count - 1) / kLanes * kLanes, in_last = count - last;  // of the vector with the last one
  const Vector cut = FirstLanes(Load(x + last), in_last, Broadcast(-INFINITY));
  Vector most = cut;
  for (int64_t c = 0; c < last; c += kLanes) most = Larger(Load(x + c), most);
  const float largest = Largest(most);
  Vector sums = {};
  for (int64_t c = 0; c < last; c += kLanes) {
    const Vector power = Exp(Load(x + c) - largest);
    Store(x + c, power);
    sums += power;
  }
  const Vector power = FirstLanes(Exp(cut - largest), in_last, Vector{});  // Exp never returns zero
  Store(x + last, power);
  for (int64_t c = last + kLanes; c < end; c += kLanes) Store(x + c, Vector{});
  return {Sum(sums + power), largest};
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
