// PaLM's block, and its gradient: y = x + MLP(norm(x)) + Attention(norm(x)).
//
// A pass is a few jobs of many tasks. Most tasks take rows: what is computed of them stays in a core's cache from one
// equation to the next. Kernels are packed once in a pass, and read by all tasks.
#ifndef MINDSPORE_PALM_CPU_TRAINING_BLOCK_H_
#define MINDSPORE_PALM_CPU_TRAINING_BLOCK_H_

#include <algorithm>
#include <cstdint>

#include "attention.h"
#include "gemm.h"
#include "pool.h"
#include "rows.h"
#include "tasks.h"
#include "vector.h"

namespace {

struct BlockSizes {
  int64_t tokens, d_model, heads;
  AttentionSizes attention;
  int64_t mlp;  // per head
  int64_t K() const { return attention.head_dim; }
  int64_t sequences() const { return tokens / attention.length; }
  // Columns of the weights of that name; rows of o_wo. A head's columns are q, gate and up; its rows attention and mlp.
  int64_t q_wi() const { return heads * (K() + 2 * mlp); }
  int64_t kv() const { return 2 * K(); }
  int64_t o_wo() const { return heads * (K() + mlp); }
};

struct BlockWeights {
  const float *scale, *q_wi, *kv, *o_wo;
  const float *cos_q, *sin_q, *cos_k, *sin_k;  // [S, K / 2]
  float epsilon, scale_offset;
};

// What the backward pass needs of the forward pass, beside its input.
struct BlockActivations {
  float *y, *inverse;  // norm(x) [T, D], and its factor [T]
  float *q_wi, *kv;    // y q_wi [T, q_wi] and y kv [T, 2K], with q and k rotated
  float* joined;       // by head, attention and mlp [T, o_wo]
  float* log_z;        // of attention's softmax [T, H]
};

// Buffers of a pass, kept from pass to pass: allocating them takes longer than computing with them.
struct BlockBuffers {
  AlignedBuffer q_wi, kv, o_wo;                   // packed kernels
  AlignedBuffer keys;                             // PackedKv of each sequence
  AlignedBuffer d_q_wi, d_kv, d_joined;           // gradients of activations
  RowSums d_scale;
  AlignedBuffer d_keys;                           // of keys and values, by sequence and head
  static BlockBuffers& Get() {
    static BlockBuffers buffers;
    return buffers;
  }
};

class Block {
 public:
  Block(const BlockSizes& sizes, const BlockWeights& weights, const BlockActivations& activations)
      : s_(sizes), w_(weights), a_(activations), pool_(ThreadPool::Get()), to_(BlockBuffers::Get()) {
    to_.q_wi.Resize(std::max(PackedSize(s_.d_model, s_.q_wi()), PackedSize(s_.q_wi(), s_.d_model)));
    to_.kv.Resize(std::max(PackedSize(s_.d_model, s_.kv()), PackedSize(s_.kv(), s_.d_model)));
    to_.o_wo.Resize(std::max(PackedSize(s_.d_model, s_.o_wo()), PackedSize(s_.o_wo(), s_.d_model)));
    kv_size_ = 2 * PackedKv::Size(s_.attention);
    to_.keys.Resize(s_.sequences() * kv_size_);
  }

  // x [T, D] to out [T, D]; writes the activations.
  void Forward(const float* x, float* out) {
    const int64_t D = s_.d_model, W = s_.q_wi(), K = s_.K(), J = s_.o_wo();
    Packing packing;
    packing.Add(RowMajor(w_.q_wi, W), D, W, to_.q_wi.data());
    packing.Add(RowMajor(w_.kv, s_.kv()), D, s_.kv(), to_.kv.data());
    packing.Add(RowMajor(w_.o_wo, D), J, D, to_.o_wo.data());
    packing.Run(pool_);
    ForRows(pool_, s_.tokens, [&](int64_t first, int64_t end) {
      for (int64_t t = first; t < end; ++t) {
        a_.inverse[t] = RmsNorm(x + t * D, w_.scale, a_.y + t * D, D, w_.epsilon, w_.scale_offset);
      }
      const Matrix y = RowMajor(a_.y + first * D, D);
      MultiplyPacked(y, to_.q_wi.data(), a_.q_wi + first * W, W, end - first, W, D, false);
      MultiplyPacked(y, to_.kv.data(), a_.kv + first * s_.kv(), s_.kv(), end - first, s_.kv(), D, false);
      for (int64_t t = first; t < end; ++t) {
        const int64_t table = t % s_.attention.length * K / 2;
        Rotate(a_.kv + t * s_.kv(), w_.cos_k + table, w_.sin_k + table, K);
        for (int64_t h = 0; h < s_.heads; ++h) {
          float* q = Q(a_.q_wi, t, h);
          Rotate(q, w_.cos_q + table, w_.sin_q + table, K);
          SwiGLU(q + K, q + K + s_.mlp, Joined(a_.joined, t, h) + K, s_.mlp);
        }
      }
    });
    PackKv();
    const int64_t strips = RoundUp(s_.attention.length, kTileRows) / kTileRows;
    const int64_t heads = s_.sequences() * s_.heads,
                  pieces = heads >= 4 * pool_.threads() ? 1 : std::min<int64_t>(strips, 8);
    pool_.Run(heads * pieces, [&](int64_t task) {  // the last strips of a sequence, which take longest, come first
      const int64_t piece = pieces - 1 - task / heads, b = task % heads / s_.heads, h = task % s_.heads;
      const int64_t length = s_.attention.length;
      float* scratch = Scratch(AttentionScratch(s_.attention));
      for (int64_t strip = piece * strips / pieces; strip < (piece + 1) * strips / pieces; ++strip) {
        const int64_t position = strip * kTileRows, t = b * length + position;
        AttendStrip(Q(a_.q_wi, t, h), W, Kv(b), Joined(a_.joined, t, h), J, a_.log_z + t * s_.heads + h, s_.heads,
                    position, std::min<int64_t>(kTileRows, length - position), s_.attention, scratch);
      }
    });
    ForRows(pool_, s_.tokens, [&](int64_t first, int64_t end) {
      std::copy_n(x + first * D, (end - first) * D, out + first * D);
      MultiplyPacked(RowMajor(a_.joined + first * J, J), to_.o_wo.data(), out + first * D, D, end - first, D, J, true);
    });
  }

  struct Gradients {
    float *x, *scale, *q_wi, *kv, *o_wo;
  };

  // The gradients of x and the weights for d_out [T, D], that of Forward's result.
  void Backward(const float* x, const float* d_out, const Gradients& d) {
    const int64_t D = s_.d_model, W = s_.q_wi(), K = s_.K(), J = s_.o_wo(), T = s_.tokens;
    to_.d_q_wi.Resize(T * W);
    to_.d_kv.Resize(T * s_.kv());
    to_.d_joined.Resize(T * J);
    Packing packing;
    packing.Add(RowMajor(w_.q_wi, W).Transposed(), W, D, to_.q_wi.data());
    packing.Add(RowMajor(w_.kv, s_.kv()).Transposed(), s_.kv(), D, to_.kv.data());
    packing.Add(RowMajor(w_.o_wo, D).Transposed(), D, J, to_.o_wo.data());
    packing.Run(pool_);
    PackKv();
    float *d_joined = to_.d_joined.data(), *d_q_wi = to_.d_q_wi.data(), *d_kv = to_.d_kv.data();
    ForRows(pool_, T, [&](int64_t first, int64_t end) {
      MultiplyPacked(RowMajor(d_out + first * D, D), to_.o_wo.data(), d_joined + first * J, J, end - first, J, D,
                     false);
      for (int64_t t = first; t < end; ++t) {
        for (int64_t h = 0; h < s_.heads; ++h) {
          const float* gate = Q(a_.q_wi, t, h) + K;
          float* d_gate = Q(d_q_wi, t, h) + K;
          SwiGLUGradient(gate, gate + s_.mlp, Joined(d_joined, t, h) + K, d_gate, d_gate + s_.mlp, s_.mlp);
        }
      }
    });
    const int64_t head_size = s_.attention.context() * s_.attention.columns();
    to_.d_keys.Resize(s_.sequences() * s_.heads * 2 * head_size);
    pool_.Run(s_.sequences() * s_.heads, [&](int64_t task) {
      const int64_t t = task / s_.heads * s_.attention.length, h = task % s_.heads;
      float* d_keys = to_.d_keys.data() + task * 2 * head_size;
      std::fill_n(d_keys, 2 * head_size, 0.0f);
      const HeadGradient head = {Q(a_.q_wi, t, h),
                                 Joined(a_.joined, t, h),
                                 Joined(d_joined, t, h),
                                 a_.log_z + t * s_.heads + h,
                                 Q(d_q_wi, t, h),
                                 d_keys,
                                 d_keys + head_size,
                                 W,
                                 J,
                                 s_.heads};
      AttendGradient(head, Kv(task / s_.heads), s_.attention, Scratch(AttentionGradientScratch(s_.attention)));
    });
    to_.d_scale.Resize(T, D);
    ForRows(pool_, T, [&](int64_t first, int64_t end) {
      for (int64_t t = first; t < end; ++t) {
        const int64_t b = t / s_.attention.length, position = t % s_.attention.length, table = position * K / 2;
        for (int64_t h = 0; h < s_.heads; ++h) RotateGradient(Q(d_q_wi, t, h), w_.cos_q + table, w_.sin_q + table, K);
        const float* d_keys = to_.d_keys.data() + b * s_.heads * 2 * head_size + position * s_.attention.columns();
        float *dk = d_kv + t * s_.kv(), *dv = dk + K;
        std::copy_n(d_keys, K, dk);
        std::copy_n(d_keys + head_size, K, dv);
        for (int64_t h = 1; h < s_.heads; ++h) {
          const float* from = d_keys + h * 2 * head_size;
          for (int64_t k = 0; k < K; ++k) dk[k] += from[k];
          for (int64_t k = 0; k < K; ++k) dv[k] += from[head_size + k];
        }
        RotateGradient(dk, w_.cos_k + table, w_.sin_k + table, K);
      }
      float* dy = Scratch((end - first) * D);
      MultiplyPacked(RowMajor(d_q_wi + first * W, W), to_.q_wi.data(), dy, D, end - first, D, W, false);
      MultiplyPacked(RowMajor(d_kv + first * s_.kv(), s_.kv()), to_.kv.data(), dy, D, end - first, D, s_.kv(), true);
      for (int64_t t = first; t < end; ++t) {
        RmsNormGradient(x + t * D, w_.scale, dy + (t - first) * D, d_out + t * D, a_.inverse[t], d.x + t * D,
                        to_.d_scale.Row(t), D, w_.scale_offset);
      }
    });
    to_.d_scale.Sum(d.scale);
    WeightGradients(d_out, d);
  }

 private:
  float* Q(float* q_wi, int64_t t, int64_t h) const { return q_wi + t * s_.q_wi() + h * (s_.K() + 2 * s_.mlp); }
  float* Joined(float* joined, int64_t t, int64_t h) const { return joined + t * s_.o_wo() + h * (s_.K() + s_.mlp); }

  PackedKv Kv(int64_t sequence) const {
    float* at = to_.keys.data() + sequence * kv_size_;
    const int64_t by_column = s_.attention.context() * s_.K(), by_row = s_.attention.length * s_.attention.columns();
    return {at, at + by_column, at + 2 * by_column, at + 2 * by_column + by_row};
  }

  void PackKv() {
    const int64_t K = s_.K(), length = s_.attention.length;
    pool_.Run(2 * s_.sequences(), [&](int64_t task) {
      const PackedKv to = Kv(task / 2);
      const bool values = task % 2;
      const Matrix from = RowMajor(a_.kv + task / 2 * length * s_.kv() + values * K, s_.kv());
      PackColumns(from.Transposed(), K, length, const_cast<float*>(values ? to.values_by_column : to.keys_by_column));
      PackColumns(from, length, K, const_cast<float*>(values ? to.values : to.keys));
    });
  }

  // Each task takes some rows or columns of one weight's gradient, whichever are more, and all tokens.
  void WeightGradients(const float* d_out, const Gradients& d) {
    const int64_t T = s_.tokens, D = s_.d_model, W = s_.q_wi(), J = s_.o_wo();
    struct Part {
      Matrix a, b;
      float* c;
      int64_t rows, columns, height, width;
      int64_t Across() const { return (columns + width - 1) / width; }
      int64_t Tasks() const { return (rows + height - 1) / height * Across(); }
    };
    Part parts[] = {
        {RowMajor(a_.joined, J).Transposed(), RowMajor(d_out, D), d.o_wo, J, D, 0, 0},
        {RowMajor(a_.y, D).Transposed(), RowMajor(to_.d_q_wi.data(), W), d.q_wi, D, W, 0, 0},
        {RowMajor(a_.y, D).Transposed(), RowMajor(to_.d_kv.data(), s_.kv()), d.kv, D, s_.kv(), 0, 0},
    };
    int64_t all = 0, tasks = 0;
    for (const Part& part : parts) all += part.rows * part.columns;
    const int64_t share = std::max<int64_t>(1, all / (8 * pool_.threads()));
    for (Part& part : parts) {
      const bool by_rows = part.rows > part.columns;
      part.height = by_rows ? RoundUp(share / part.columns + 1, kTileRows) : part.rows;
      part.width = by_rows ? part.columns : RoundUp(share / part.rows + 1, kTileColumns);
      part.width = std::min(part.width, kMostColumns);
      tasks += part.Tasks();
    }
    pool_.Run(tasks, [&](int64_t task) {
      for (const Part& part : parts) {
        if (task < part.Tasks()) {
          const int64_t m = task / part.Across() * part.height, n = task % part.Across() * part.width;
          Multiply(part.a.At(m, 0), part.b.At(0, n), part.c + m * part.columns + n, part.columns,
                   std::min(part.height, part.rows - m), std::min(part.width, part.columns - n), T, false);
          return;
        }
        task -= part.Tasks();
      }
    });
  }

  static constexpr int64_t kMostColumns = 512;
  const BlockSizes s_;
  const BlockWeights w_;
  const BlockActivations a_;
  ThreadPool& pool_;
  BlockBuffers& to_;
  int64_t kv_size_;
};

}  // namespace

#endif  // MINDSPORE_PALM_CPU_TRAINING_BLOCK_H_
