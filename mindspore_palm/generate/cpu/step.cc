// One decoding step on one CPU: the next token of every sequence, through the whole network, as one function that
// ops.Custom calls ("aot").
//
// A step reads every weight once and computes little with it, so memory bandwidth sets its speed, and what counts is
// the order in which weights are read (matmul.h). MindSpore's own matmuls are built for many rows of x, and between
// matmuls lies work of microseconds: an op of a graph costs as many before it computes anything (MS-41).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include "attention.h"
#include "elementwise.h"
#include "matmul.h"
#include "pool.h"
#include "vector.h"

namespace {

struct Sizes {
  int64_t sequences, batch, d_model, heads, kv_heads, head_dim, mlp_per_head, context, vocabulary;
  // Columns of the weights of that name; rows of o_wo.
  int64_t q_wi() const { return heads * (head_dim + 2 * mlp_per_head); }
  int64_t kv() const { return 2 * kv_heads * head_dim; }
  int64_t o_wo() const { return heads * (head_dim + mlp_per_head); }
};

// Norm and logit scale, where networks like PaLM differ from it: CpuStep.constants of step.py, in this order.
struct Switches {
  float subtract_mean, epsilon, scale_offset, logit_scale;
};

struct Block {
  const float *scale, *q_wi, *kv, *o_wo;
  float *keys, *values;  // [B, kv_heads, C, K]
};

struct Rotation {
  const float *cos_q, *sin_q, *cos_k, *sin_k;  // [C, K / 2]
};

// RMSNorm or LayerNorm of x [D].
void Norm(const float *x, const float *scale, float *y, int64_t D, const Switches &switches) {
  float mean = 0;
  if (switches.subtract_mean != 0) {
    for (int64_t d = 0; d < D; ++d) mean += x[d];
    mean /= static_cast<float>(D);
  }
  for (int64_t d = 0; d < D; ++d) y[d] = x[d] - mean;
  const float factor = 1.0f / std::sqrt(Dot(y, y, D) / static_cast<float>(D) + switches.epsilon);
  for (int64_t d = 0; d < D; ++d) y[d] = y[d] * factor * (switches.scale_offset + scale[d]);
}

// log(sum(e^x)) of x [count].
float LogSumExp(const float *x, int64_t count) {
  const float largest = *std::max_element(x, x + count);
  Vector sums = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sums += Exp(Load(x + i) - largest);
  float sum = Sum(sums);
  for (; i < count; ++i) sum += Exp(x[i] - largest);
  return std::log(sum) + largest;
}

constexpr int32_t kIdle = INT32_MIN;  // IDLE of step.py
constexpr int64_t kMaxGroup = 4;  // query heads that share one read of each key and value

// The network at one step.
class Network {
 public:
  Network(const Sizes &sizes, const Switches &switches, const Rotation &rotation, const int32_t *positions,
          const std::vector<int64_t> &rows)
      : s_(sizes),
        switches_(switches),
        rotation_(rotation),
        positions_(positions),
        rows_(rows),
        pool_(ThreadPool::Get()) {
    partials_ = pool_.threads() == 1 ? 1 : std::min(2 * pool_.threads(), 16);
    const int64_t per_key = s_.heads / s_.kv_heads, wanted = std::max<int64_t>(1, 2 * pool_.threads() / s_.batch);
    group_size_ = std::min({per_key, kMaxGroup, (s_.heads + wanted - 1) / wanted});
    groups_ = (per_key + group_size_ - 1) / group_size_ * s_.kv_heads;
    x_.Resize(s_.batch * s_.d_model);
    y_.Resize(s_.batch * s_.d_model);
    q_wi_.Resize(partials_ * s_.batch * s_.q_wi());
    kv_.Resize(partials_ * s_.batch * s_.kv());
    scratch_.Resize(s_.batch * groups_ * Scratch());
    attended_.Resize(s_.batch * s_.o_wo());
    o_wo_.Resize(partials_ * s_.batch * s_.d_model);
  }

  // tokens [B] to logits [B, vocabulary] and log_z [B]. Those of idle sequences are zeros.
  void Run(const int32_t *tokens, const float *embedding, const std::vector<Block> &blocks, const float *final_scale,
           float *logits, float *log_z) {
    for (int64_t b = 0; b < s_.batch; ++b) {
      std::copy_n(embedding + tokens[rows_[b]] * s_.d_model, s_.d_model, x_.data() + b * s_.d_model);
    }
    for (const Block &block : blocks) RunBlock(block);
    for (int64_t b = 0; b < s_.batch; ++b) {
      float *y = y_.data() + b * s_.d_model;
      Norm(x_.data() + b * s_.d_model, final_scale, y, s_.d_model, switches_);
      for (int64_t d = 0; d < s_.d_model; ++d) y[d] *= switches_.logit_scale;
    }
    const int64_t parts = 4 * partials_;
    pool_.Run(parts, [&](int64_t part) {
      MatmulTransposed(y_.data(), embedding, logits, s_.batch, s_.d_model, s_.vocabulary, part * s_.vocabulary / parts,
                       (part + 1) * s_.vocabulary / parts);
    });
    pool_.Run(s_.batch, [&](int64_t b) { log_z[b] = LogSumExp(logits + b * s_.vocabulary, s_.vocabulary); });
    for (int64_t row = s_.sequences - 1, b = s_.batch - 1; row >= 0; --row) {  // from the back: no row is lost
      float *to = logits + row * s_.vocabulary;
      if (b < 0 || rows_[b] != row) {
        std::fill_n(to, s_.vocabulary, 0.0f);
        log_z[row] = 0;
        continue;
      }
      if (b != row) {
        std::copy_n(logits + b * s_.vocabulary, s_.vocabulary, to);
        log_z[row] = log_z[b];
      }
      --b;
    }
  }

 private:
  // x += attention(norm(x)) + mlp(norm(x)).
  void RunBlock(const Block &block) {
    const int64_t D = s_.d_model;
    for (int64_t b = 0; b < s_.batch; ++b) Norm(x_.data() + b * D, block.scale, y_.data() + b * D, D, switches_);
    pool_.Run(2 * partials_, [&](int64_t task) {
      const int64_t part = task % partials_;
      if (task < partials_) {
        MatmulPartial(y_.data(), block.q_wi, q_wi_.data() + part * s_.batch * s_.q_wi(), s_.batch, D, s_.q_wi(), part,
                      partials_);
      } else {
        MatmulPartial(y_.data(), block.kv, kv_.data() + part * s_.batch * s_.kv(), s_.batch, D, s_.kv(), part,
                      partials_);
      }
    });
    for (int64_t b = 0; b < s_.batch; ++b) AppendKv(block, b);
    pool_.Run(s_.batch * groups_, [&](int64_t task) {
      const int64_t groups = groups_ / s_.kv_heads, heads = s_.heads / s_.kv_heads, group = task % groups_;
      const int64_t first = group / groups * heads + group % groups * group_size_;
      const int64_t count = std::min(group_size_, (group / groups + 1) * heads - first);
      AttendHeads(block, task / groups_, first, count, scratch_.data() + task * Scratch());
    });
    pool_.Run(partials_, [&](int64_t part) {
      MatmulPartial(attended_.data(), block.o_wo, o_wo_.data() + part * s_.batch * D, s_.batch, s_.o_wo(), D, part,
                    partials_);
    });
    const float *out = o_wo_.data();
    for (int64_t part = 0; part < partials_; ++part, out += s_.batch * D) {
      for (int64_t i = 0; i < s_.batch * D; ++i) x_.data()[i] += out[i];
    }
  }

  // Appends the key and value of sequence b's new token to the cache.
  void AppendKv(const Block &block, int64_t b) {
    const int64_t K = s_.head_dim, position = positions_[rows_[b]];
    for (int64_t g = 0; g < s_.kv_heads; ++g) {
      const int64_t slot = ((rows_[b] * s_.kv_heads + g) * s_.context + position) * K, column = b * s_.kv() + g * K;
      ReducePartials(kv_, s_.kv(), column, block.keys + slot, K);
      Rotate(block.keys + slot, rotation_.cos_k + position * K / 2, rotation_.sin_k + position * K / 2, K);
      ReducePartials(kv_, s_.kv(), column + s_.kv_heads * K, block.values + slot, K);
    }
  }

  // Attention and mlp of heads first .. first + count of sequence b, which share a key and value head.
  void AttendHeads(const Block &block, int64_t b, int64_t first, int64_t count, float *scratch) {
    const int64_t K = s_.head_dim, F = s_.mlp_per_head, position = positions_[rows_[b]];
    float *q = scratch, *mlp = q + group_size_ * K, *weights = mlp + 2 * F;
    for (int64_t h = 0; h < count; ++h) {
      const int64_t column = b * s_.q_wi() + (first + h) * (K + 2 * F);
      ReducePartials(q_wi_, s_.q_wi(), column, q + h * K, K);
      Rotate(q + h * K, rotation_.cos_q + position * K / 2, rotation_.sin_q + position * K / 2, K);
      ReducePartials(q_wi_, s_.q_wi(), column + K, mlp, 2 * F);
      SwiGLU(mlp, mlp + F, attended_.data() + b * s_.o_wo() + (first + h) * (K + F) + K, F);
    }
    const int64_t cache = (rows_[b] * s_.kv_heads + first / (s_.heads / s_.kv_heads)) * s_.context * K;
    float *out = attended_.data() + b * s_.o_wo() + first * (K + F);
    constexpr decltype(&Attend<1>) kAttend[] = {Attend<1>, Attend<2>, Attend<3>, Attend<4>};
    kAttend[count - 1](q, block.keys + cache, block.values + cache, out, K + F, position + 1, K, weights);
  }

  // Floats of scratch that a call of AttendHeads needs.
  int64_t Scratch() const {
    return Padded(group_size_ * s_.head_dim + 2 * s_.mlp_per_head + group_size_ * Padded(s_.context));
  }

  // Sums the partials of a matmul over `count` columns. Each partial is [B, width]; `column` counts through its rows.
  void ReducePartials(AlignedBuffer &partials, int64_t width, int64_t column, float *to, int64_t count) {
    std::copy_n(partials.data() + column, count, to);
    for (int64_t part = 1; part < partials_; ++part) {
      const float *from = partials.data() + part * s_.batch * width + column;
      for (int64_t i = 0; i < count; ++i) to[i] += from[i];
    }
  }

  const Sizes s_;
  const Switches switches_;
  const Rotation rotation_;
  const int32_t *positions_;
  const std::vector<int64_t> &rows_;  // the sequences that write, of which matmuls have one row each
  ThreadPool &pool_;
  int64_t partials_;             // of each matmul: shares of its rows, each with a result of its own
  int64_t group_size_, groups_;  // query heads that share reads of the cache, and the number of such groups
  static AlignedBuffer x_, y_, q_wi_, kv_, attended_, o_wo_, scratch_;
};

// Kept from step to step: allocating them takes longer than computing with them.
AlignedBuffer Network::x_, Network::y_, Network::q_wi_, Network::kv_, Network::attended_, Network::o_wo_,
    Network::scratch_;
std::mutex in_use;  // guards the buffers: one step at a time

}  // namespace

// Inputs: tokens int32 [B, 1], positions int32 [B], switches [4], four rotation tables [C, K/2], embedding [V, D],
// scale of the final norm [D]; then for each block scale [D], q_wi, kv, o_wo, and the caches of keys and values, to
// which the token's are appended. A sequence at position kIdle appends nothing, and its results are zeros. Outputs:
// logits [B, rows of V without padding], log(Z) [B]. Returns 0; or 1 if a token or position is out of range, all
// sequences are idle, or memory does not suffice.
extern "C" int DecodeStep(int count, void **params, int *, int64_t **shapes, const char **, void *, void *) {
  constexpr int kFirstBlock = 9, kPerBlock = 6, kOutputs = 2;
  const auto floats = [&](int i) { return static_cast<float *>(params[i]); };
  const auto *tokens = static_cast<int32_t *>(params[0]), *positions = static_cast<int32_t *>(params[1]);
  const int end = count - kOutputs;
  Sizes sizes;
  sizes.sequences = shapes[0][0];
  sizes.context = shapes[3][0];
  sizes.head_dim = 2 * shapes[3][1];
  sizes.d_model = shapes[7][1];
  const int64_t q_wi = shapes[kFirstBlock + 1][1], o_wo = shapes[kFirstBlock + 3][0];
  sizes.heads = (2 * o_wo - q_wi) / sizes.head_dim;
  sizes.kv_heads = shapes[kFirstBlock + 2][1] / (2 * sizes.head_dim);
  sizes.mlp_per_head = o_wo / sizes.heads - sizes.head_dim;
  sizes.vocabulary = shapes[end][1];
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < sizes.sequences; ++row) {
    if (positions[row] == kIdle) continue;
    if (tokens[row] < 0 || tokens[row] >= sizes.vocabulary || positions[row] < 0 || positions[row] >= sizes.context) {
      return 1;
    }
    rows.push_back(row);
  }
  if (rows.empty()) return 1;
  sizes.batch = static_cast<int64_t>(rows.size());
  const float *values = floats(2);
  const Switches switches = {values[0], values[1], values[2], values[3]};
  const Rotation rotation = {floats(3), floats(4), floats(5), floats(6)};
  std::lock_guard<std::mutex> lock(in_use);
  try {
    std::vector<Block> blocks;
    for (int i = kFirstBlock; i < end; i += kPerBlock) {
      blocks.push_back({floats(i), floats(i + 1), floats(i + 2), floats(i + 3), floats(i + 4), floats(i + 5)});
    }
    Network(sizes, switches, rotation, positions, rows)
        .Run(tokens, floats(7), blocks, floats(8), floats(end), floats(end + 1));
  } catch (const std::exception &) {  // all memory is allocated before threads start
    return 1;
  }
  return 0;
}
