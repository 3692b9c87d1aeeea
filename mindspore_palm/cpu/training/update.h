// Norm of all gradients, clipping, and an optimizer's update of all weights.
//
// Weights are cut into chunks, which threads share. Sums are taken over chunks and then from the first chunk to the
// last, in double: the same bits whatever the number of threads.
#ifndef MINDSPORE_PALM_CPU_TRAINING_UPDATE_H_
#define MINDSPORE_PALM_CPU_TRAINING_UPDATE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "pool.h"
#include "vector.h"

namespace {

struct Weight {
  const float* g;
  float *p, *m, *v;
  int64_t size;
  bool matrix;
};

class Update {
 public:
  explicit Update(std::vector<Weight> weights) : weights_(std::move(weights)), pool_(ThreadPool::Get()) {
    for (size_t w = 0; w < weights_.size(); ++w) {
      for (int64_t i = 0; i < weights_[w].size; i += kChunk) {
        chunks_.push_back({w, i, std::min(kChunk, weights_[w].size - i)});
      }
    }
  }

  // sqrt(sum of g^2 over all weights).
  float Norm() {
    std::vector<double> sums(chunks_.size());
    Chunks([&](size_t c, const Weight& w, int64_t first, int64_t count) {
      sums[c] = Dot(w.g + first, w.g + first, count);
    });
    double sum = 0;
    for (double share : sums) sum += share;
    return static_cast<float>(std::sqrt(sum));
  }

  struct AdamWSettings {
    float beta1, beta2, epsilon, decay;  // decay of matrices
  };

  // AdamW.construct of optim/adamw.py at step k with gradients times `clip`. The loops over elements have constants of
  // their own: a value that a lambda refers to might lie among the weights, as far as the compiler knows, and then it
  // would not use vectors.
  void AdamW(float k, float lr, float clip, const AdamWSettings& s) {
    const float rate = lr / (1.0f - std::pow(s.beta1, k)), correction = 1.0f / (1.0f - std::pow(s.beta2, k));
    Chunks([&](size_t, const Weight& w, int64_t first, int64_t count) {
      const float* g = w.g + first;
      float *p = w.p + first, *m = w.m + first, *v = w.v + first;
      const float keep = w.matrix ? 1.0f - lr * s.decay : 1.0f, factor = clip, step = rate, unbiased = correction;
      const float beta1 = s.beta1, beta2 = s.beta2, epsilon = s.epsilon;
      for (int64_t i = 0; i < count; ++i) {
        const float gradient = g[i] * factor;
        m[i] = m[i] * beta1 + gradient * (1.0f - beta1);
        v[i] = v[i] * beta2 + gradient * gradient * (1.0f - beta2);
        p[i] = p[i] * keep - m[i] * step / (std::sqrt(v[i] * unbiased) + epsilon);
      }
    });
  }

  struct AdafactorSettings {
    float update_clip, decay_by_square;  // 0 for no clip; 1 for p *= 1 - lr^2
    float momentum, decay_exponent, tiny, smallest_scale;
  };

  // Adafactor.construct of optim/adafactor.py at step k with gradients times `clip`.
  void Adafactor(float k, float lr, float clip, const AdafactorSettings& s) {
    const float fresh = std::pow(k, s.decay_exponent), old = 1.0f - fresh;
    std::vector<double> p_squares(chunks_.size()), u_squares(chunks_.size());
    Chunks([&](size_t c, const Weight& w, int64_t first, int64_t count) {
      const float* g = w.g + first;
      float* v = w.v + first;
      Vector sums = {};
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) {
        const Vector gradient = Load(g + i) * clip, square = gradient * gradient;
        const Vector new_v = Load(v + i) * old + (square + s.tiny) * fresh;
        Store(v + i, new_v);
        sums += square / new_v;
      }
      float sum = Sum(sums);
      for (; i < count; ++i) {
        const float square = g[i] * clip * (g[i] * clip);
        v[i] = v[i] * old + (square + s.tiny) * fresh;
        sum += square / v[i];
      }
      u_squares[c] = sum;
      p_squares[c] = Dot(w.p + first, w.p + first, count);
    });
    const std::vector<float> rms_p = Rms(p_squares), rms_u = Rms(u_squares);
    const float decay = s.decay_by_square != 0 ? 1.0f - lr * lr : 1.0f;
    Chunks([&](size_t c, const Weight& w, int64_t first, int64_t count) {
      const size_t index = chunks_[c].weight;
      float size = lr * std::max(rms_p[index], s.smallest_scale);
      if (s.update_clip > 0) size /= std::max(rms_u[index] / s.update_clip, 1.0f);
      const float step = size * (1.0f - s.momentum) * clip;
      const float *g = w.g + first, *v = w.v + first;
      float *p = w.p + first, *m = w.m + first;
      const float momentum = s.momentum, keep = decay;
      for (int64_t i = 0; i < count; ++i) {
        m[i] = m[i] * momentum + g[i] / std::sqrt(v[i]) * step;
        p[i] = p[i] * keep - m[i];
      }
    });
  }

 private:
  static constexpr int64_t kChunk = 16384;  // floats
  struct Chunk {
    size_t weight;
    int64_t first, count;
  };

  template <typename Work>
  void Chunks(const Work& work) {
    const int64_t count = static_cast<int64_t>(chunks_.size()), shares = std::min<int64_t>(count, 8 * pool_.threads());
    pool_.Run(shares, [&](int64_t share) {
      for (int64_t c = share * count / shares; c < (share + 1) * count / shares; ++c) {
        const Chunk& chunk = chunks_[c];
        work(static_cast<size_t>(c), weights_[chunk.weight], chunk.first, chunk.count);
      }
    });
  }

  std::vector<float> Rms(const std::vector<double>& sums) const {
    std::vector<double> squares(weights_.size());
    for (size_t c = 0; c < chunks_.size(); ++c) squares[chunks_[c].weight] += sums[c];
    std::vector<float> rms;
    for (size_t w = 0; w < weights_.size(); ++w) {
      rms.push_back(static_cast<float>(std::sqrt(squares[w] / static_cast<double>(weights_[w].size))));
    }
    return rms;
  }

  const std::vector<Weight> weights_;
  ThreadPool& pool_;
  std::vector<Chunk> chunks_;
};

}  // namespace

#endif  // MINDSPORE_PALM_CPU_TRAINING_UPDATE_H_
