// The last norm, the logits, and the loss of every token, with their gradient.
//
// Logits are computed for some rows of the table at a time: a part of the table that is packed, or of the logits'
// gradient, is never larger than kPart columns. One tensor of the logits' size is kept for the gradient.
#ifndef MINDSPORE_PALM_CPU_TRAINING_UNEMBED_H_
#define MINDSPORE_PALM_CPU_TRAINING_UNEMBED_H_

#include <algorithm>
#include <cstdint>

#include "gemm.h"
#include "loss.h"
#include "pool.h"
#include "rows.h"
#include "tasks.h"
#include "vector.h"

namespace {

struct UnembedSizes {
  int64_t tokens, d_model, vocabulary, padded;  // columns of the logits beyond the vocabulary are no tokens
  float epsilon, scale_offset, logit_scale;
  bool subtract_mean;
};

// What the backward pass needs of the forward pass.
struct UnembedActivations {
  float *y, *inverse_norm;       // norm(x) times the logits' scale [T, D], and the norm's factor [T]
  float *powers, *inverse_sum;  // e^(logit - largest) [T, padded], and the inverse of their sum [T]
};

class Unembed {
 public:
  Unembed(const UnembedSizes& sizes, const float* scale, const float* table, const int32_t* targets,
          const UnembedActivations& activations)
      : s_(sizes),
        scale_(scale),
        table_(table),
        targets_(targets),
        a_(activations),
        pool_(ThreadPool::Get()) {}

  // x [T, D] to cross_entropy and log_z [T]; writes the activations.
  void Forward(const float* x, float* cross_entropy, float* log_z) {
    const int64_t D = s_.d_model, V = s_.padded;
    ForRows(pool_, s_.tokens, [&](int64_t first, int64_t end) {
      for (int64_t t = first; t < end; ++t) {
        float* y = a_.y + t * D;
        a_.inverse_norm[t] = RmsNorm(Centred(x, t), scale_, y, D, s_.epsilon, s_.scale_offset);
        for (int64_t d = 0; d < D; ++d) y[d] *= s_.logit_scale;
      }
    });
    Parts([&](int64_t v, int64_t width) {
      const float* packed = Pack(RowMajor(table_ + v * D, D).Transposed(), D, width);
      ForRows(pool_, s_.tokens, [&](int64_t first, int64_t end) {
        MultiplyPacked(RowMajor(a_.y + first * D, D), packed, a_.powers + first * V + v, V, end - first, width, D,
                       false);
        if (v + width < V) return;
        for (int64_t t = first; t < end; ++t) {  // all logits of these rows are there
          const TokenLoss loss = LossOf(a_.powers + t * V, targets_[t], s_.vocabulary, V);
          cross_entropy[t] = loss.cross_entropy;
          log_z[t] = loss.log_z;
          a_.inverse_sum[t] = loss.inverse;
        }
      });
    });
  }

  // The gradients of x [T, D], scale [D] and table [padded, D] for those of Forward's results.
  void Backward(const float* x, const float* d_cross_entropy, const float* d_log_z, float* d_x, float* d_scale,
                float* d_table) {
    const int64_t D = s_.d_model, T = s_.tokens;
    Buffers& to = Buffers::Get();
    to.d_logits.Resize(T * (std::min(kPart, s_.padded) + kGap));
    to.d_y.Resize(T * D);
    to.y.Resize(PackedSize(T, D));
    Packing packing;
    packing.Add(RowMajor(a_.y, D), T, D, to.y.data());
    packing.Run(pool_);
    Parts([&](int64_t v, int64_t width) {
      float *d_logits = to.d_logits.data(), *d_y = to.d_y.data();
      const float* packed = Pack(RowMajor(table_ + v * D, D), width, D);
      const int64_t row = width + kGap;
      ForRows(pool_, T, [&](int64_t first, int64_t end) {
        for (int64_t t = first; t < end; ++t) {
          LossGradient(a_.powers + t * s_.padded, targets_[t], a_.inverse_sum[t], d_cross_entropy[t], d_log_z[t], v,
                       v + width, d_logits + t * row);
        }
        MultiplyPacked(RowMajor(d_logits + first * row, row), packed, d_y + first * D, D, end - first, D, width,
                       v > 0);
      });
      ForRows(pool_, width, [&](int64_t first, int64_t end) {
        MultiplyPacked(RowMajor(d_logits + first, row).Transposed(), to.y.data(), d_table + (v + first) * D, D,
                       end - first, D, T, false);
      });
    });
    to.d_scale.Resize(T, D);
    ForRows(pool_, T, [&](int64_t first, int64_t end) {
      for (int64_t t = first; t < end; ++t) {
        float *d_y = to.d_y.data() + t * D, *dx = d_x + t * D;
        for (int64_t d = 0; d < D; ++d) d_y[d] *= s_.logit_scale;
        std::fill_n(dx, D, 0.0f);
        RmsNormGradient(Centred(x, t), scale_, d_y, dx, a_.inverse_norm[t], dx, to.d_scale.Row(t), D, s_.scale_offset);
        if (s_.subtract_mean) Centre(dx, dx);
      }
    });
    to.d_scale.Sum(d_scale);
  }

 private:
  static constexpr int64_t kPart = 16 * kDepth;  // a multiple of kDepth: sums over parts have the order of one sum
  static constexpr int64_t kGap = 16;  // between rows: at powers of two, they push each other out of the cache

  // Buffers of a pass, kept from pass to pass.
  struct Buffers {
    AlignedBuffer packed, y, d_logits, d_y;
    RowSums d_scale;
    static Buffers& Get() {
      static Buffers buffers;
      return buffers;
    }
  };

  // Calls part(first row of the table, number of rows) for all rows, padding included.
  template <typename Part>
  void Parts(const Part& part) {
    for (int64_t v = 0; v < s_.padded; v += kPart) part(v, std::min(kPart, s_.padded - v));
  }

  const float* Pack(const Matrix& b, int64_t depth, int64_t columns) {
    AlignedBuffer& packed = Buffers::Get().packed;
    packed.Resize(PackedSize(depth, columns));
    Packing packing;
    packing.Add(b, depth, columns, packed.data());
    packing.Run(pool_);
    return packed.data();
  }

  // Row t of x; for layer norm, minus its mean.
  const float* Centred(const float* x, int64_t t) const {
    x += t * s_.d_model;
    return s_.subtract_mean ? Centre(x, Scratch(s_.d_model)) : x;
  }

  float* Centre(const float* x, float* y) const {
    double sum = 0;
    for (int64_t d = 0; d < s_.d_model; ++d) sum += x[d];
    const float mean = static_cast<float>(sum / static_cast<double>(s_.d_model));
    for (int64_t d = 0; d < s_.d_model; ++d) y[d] = x[d] - mean;
    return y;
  }

  const UnembedSizes s_;
  const float *scale_, *table_;
  const int32_t* targets_;
  const UnembedActivations a_;
  ThreadPool& pool_;
};

}  // namespace

#endif  // MINDSPORE_PALM_CPU_TRAINING_UNEMBED_H_
