// Decoding on one CPU: the next token of every sequence, or prompts (prompts.h), through the network, each as one
// function that ops.Custom calls ("aot").
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
#include "network.h"
#include "pool.h"
#include "prompts.h"
#include "vector.h"

namespace {

// The network at one step.
class Step {
 public:
  Step(const Arguments &arguments, const int32_t *positions, const std::vector<int64_t> &rows)
      : with_(arguments),
        s_(arguments.sizes),
        rotation_(arguments.rotation),
        positions_(positions),
        rows_(rows),
        pool_(ThreadPool::Get()) {
    many_ = s_.batch >= kManyRows;
    partials_ = many_ ? 1 : Parts(pool_);
    const int64_t per_key = s_.heads / s_.kv_heads, wanted = std::max<int64_t>(1, 2 * pool_.threads() / s_.batch);
    group_size_ = std::min(per_key, (s_.heads + wanted - 1) / wanted);
    groups_ = (per_key + group_size_ - 1) / group_size_ * s_.kv_heads;
    x_.Resize(s_.batch * s_.d_model);
    y_.Resize(s_.batch * s_.d_model);
    q_wi_.Resize(partials_ * s_.batch * s_.q_wi());
    kv_.Resize(partials_ * s_.batch * s_.kv());
    scratch_.Resize(s_.batch * groups_ * Scratch());
    attended_.Resize(s_.batch * s_.o_wo());
    o_wo_.Resize(partials_ * s_.batch * s_.d_model);
    if (many_) columns_.Resize(ManyRowsScratch(pool_, s_.batch, std::max(s_.d_model, s_.o_wo())));
  }

  // tokens [B] to logits [B, vocabulary] and log_z [B]. Those of idle sequences are zeros.
  void Run(const int32_t *tokens) {
    for (int64_t b = 0; b < s_.batch; ++b) {
      std::copy_n(with_.embedding + tokens[rows_[b]] * s_.d_model, s_.d_model, x_.data() + b * s_.d_model);
    }
    for (const Block &block : with_.blocks) RunBlock(block);
    Logits(pool_, with_, s_.batch, x_.data(), y_.data());
    SpreadResults(with_, rows_);
  }

 private:
  // x += attention(norm(x)) + mlp(norm(x)).
  void RunBlock(const Block &block) {
    const int64_t D = s_.d_model;
    for (int64_t b = 0; b < s_.batch; ++b) Norm(x_.data() + b * D, block.scale, y_.data() + b * D, D, with_.switches);
    if (many_) {
      MatmulOfManyRows(pool_, y_.data(), block.q_wi, q_wi_.data(), s_.batch, D, s_.q_wi(), columns_.data());
      MatmulOfManyRows(pool_, y_.data(), block.kv, kv_.data(), s_.batch, D, s_.kv(), columns_.data());
    } else {
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
    }
    for (int64_t b = 0; b < s_.batch; ++b) AppendKv(block, b);
    pool_.Run(s_.batch * groups_, [&](int64_t task) {
      const int64_t groups = groups_ / s_.kv_heads, heads = s_.heads / s_.kv_heads, group = task % groups_;
      const int64_t first = group / groups * heads + group % groups * group_size_;
      const int64_t count = std::min(group_size_, (group / groups + 1) * heads - first);
      AttendHeads(block, task / groups_, first, count, scratch_.data() + task * Scratch());
    });
    if (many_) {
      MatmulOfManyRows(pool_, attended_.data(), block.o_wo, o_wo_.data(), s_.batch, s_.o_wo(), D, columns_.data());
    } else {
      pool_.Run(partials_, [&](int64_t part) {
        MatmulPartial(attended_.data(), block.o_wo, o_wo_.data() + part * s_.batch * D, s_.batch, s_.o_wo(), D, part,
                      partials_);
      });
    }
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
    Attend(count, q, block.keys + cache, block.values + cache, out, K + F, position + 1, K, weights);
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

  const Arguments &with_;
  const Sizes s_;
  const Rotation rotation_;
  const int32_t *positions_;
  const std::vector<int64_t> &rows_;  // the sequences that write, of which matmuls have one row each
  ThreadPool &pool_;
  bool many_;                    // matmuls have one result, summed by column; else `partials_` results
  int64_t partials_;             // of each matmul: shares of its rows, each with a result of its own
  int64_t group_size_, groups_;  // query heads that share reads of the cache, and the number of such groups
  static AlignedBuffer x_, y_, q_wi_, kv_, attended_, o_wo_, scratch_, columns_;
};

// Kept from step to step: allocating them takes longer than computing with them.
AlignedBuffer Step::x_, Step::y_, Step::q_wi_, Step::kv_, Step::attended_, Step::o_wo_, Step::scratch_, Step::columns_;
std::mutex in_use;  // guards the buffers of both functions: one call at a time

}  // namespace

// Inputs: tokens int32 [B, 1], positions int32 [B], and those of Arguments. The token's keys and values are appended to
// the caches. A sequence at position kIdle appends nothing, and its results are zeros. Returns 0; or 1 if a token or
// position is out of range, all sequences are idle, or memory does not suffice.
extern "C" int DecodeStep(int count, void **params, int *, int64_t **shapes, const char **, void *, void *) {
  try {
    Arguments arguments = ReadArguments(2, count, params, shapes);
    Sizes &sizes = arguments.sizes;
    const auto *tokens = static_cast<int32_t *>(params[0]), *positions = static_cast<int32_t *>(params[1]);
    std::vector<int64_t> rows;
    for (int64_t row = 0; row < sizes.sequences; ++row) {
      if (positions[row] == kIdle) continue;
      if (!InRange(sizes, tokens[row], positions[row])) return 1;
      rows.push_back(row);
    }
    if (rows.empty()) return 1;
    sizes.batch = static_cast<int64_t>(rows.size());
    std::lock_guard<std::mutex> lock(in_use);
    Step(arguments, positions, rows).Run(tokens);
  } catch (const std::exception &) {  // all memory is allocated before threads start
    return 1;
  }
  return 0;
}

// Inputs: int32 [4, R], of each row a token, its sequence, its position, and whether logits after it are wanted; and
// those of Arguments. The tokens of a sequence lie side by side, at consecutive positions; their keys and values are
// written to the caches. Rows at position kIdle are left out. At most one row of a sequence is wanted; the results of
// other sequences are zeros. Returns as DecodeStep does.
extern "C" int ReadPrompts(int count, void **params, int *, int64_t **shapes, const char **, void *, void *) {
  try {
    const Arguments arguments = ReadArguments(1, count, params, shapes);
    Prompts prompts(arguments);
    if (!prompts.Take(static_cast<int32_t *>(params[0]), shapes[0][1])) return 1;
    std::lock_guard<std::mutex> lock(in_use);
    prompts.Run();
  } catch (const std::exception &) {
    return 1;
  }
  return 0;
}
