// Norm of a row with its gradient, and the gradients of rotation and SwiGLU.
#ifndef MINDSPORE_PALM_CPU_TRAINING_ROWS_H_
#define MINDSPORE_PALM_CPU_TRAINING_ROWS_H_

#include <cmath>
#include <cstdint>

#include "elementwise.h"
#include "vector.h"

namespace {

// y [D] = x / sqrt(mean(x^2) + epsilon) * (offset + scale). Returns 1 / sqrt(mean(x^2) + epsilon).
float RmsNorm(const float* x, const float* scale, float* y, int64_t D, float epsilon, float offset) {
  const float inverse = 1.0f / std::sqrt(Dot(x, x, D) / static_cast<float>(D) + epsilon);
  for (int64_t d = 0; d < D; ++d) y[d] = x[d] * inverse * (offset + scale[d]);
  return inverse;
}

// dx [D] = residual + the gradient of RmsNorm at x for dy; `inverse` is what RmsNorm returned. Adds to d_scale [D].
void RmsNormGradient(const float* x, const float* scale, const float* dy, const float* residual, float inverse,
                     float* dx, float* d_scale, int64_t D, float offset) {
  Vector sums = {};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    const Vector product = Load(dy + d) * Load(x + d);
    Store(d_scale + d, Load(d_scale + d) + product * inverse);
    sums += product * (offset + Load(scale + d));
  }
  float sum = Sum(sums);
  for (; d < D; ++d) {
    d_scale[d] += dy[d] * x[d] * inverse;
    sum += dy[d] * x[d] * (offset + scale[d]);
  }
  const float factor = sum * inverse * inverse / static_cast<float>(D);
  for (d = 0; d < D; ++d) dx[d] = residual[d] + inverse * (dy[d] * (offset + scale[d]) - x[d] * factor);
}

// The gradient of Rotate, from that of its result, in place.
void RotateGradient(float* x, const float* cos, const float* sin, int64_t K) {
  const int64_t half = K / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[i], second = x[half + i];
    x[i] = first * cos[i] + second * sin[i];
    x[half + i] = second * cos[i] - first * sin[i];
  }
}

// Gradients of gate and up [F] for that of SwiGLU's result.
void SwiGLUGradient(const float* gate, const float* up, const float* dy, float* d_gate, float* d_up, int64_t F) {
  int64_t i = 0;
  for (; i + kLanes <= F; i += kLanes) {
    const Vector g = Load(gate + i), sigmoid = 1.0f / (1.0f + Exp(-g)), d = Load(dy + i) * sigmoid;
    const Vector above = Load(up + i);
    Store(d_gate + i, d * above * (1.0f + g * (1.0f - sigmoid)));
    Store(d_up + i, d * g);
  }
  for (; i < F; ++i) {
    const float sigmoid = 1.0f / (1.0f + Exp(-gate[i])), d = dy[i] * sigmoid;
    d_gate[i] = d * up[i] * (1.0f + gate[i] * (1.0f - sigmoid));
    d_up[i] = d * gate[i];
  }
}

}  // namespace

#endif  // MINDSPORE_PALM_CPU_TRAINING_ROWS_H_
