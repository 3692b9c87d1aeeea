// Sizes, weights and inputs of a network, of the decoding step and of prompts.
#ifndef MINDSPORE_PALM_GENERATE_CPU_NETWORK_H_
#define MINDSPORE_PALM_GENERATE_CPU_NETWORK_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "matmul.h"
#include "pool.h"
#include "vector.h"

namespace {

constexpr int32_t kIdle = INT32_MIN;  // IDLE of step.py

struct Sizes {
  int64_t sequences, batch, d_model, heads, kv_heads, head_dim, mlp_per_head, context, vocabulary;
  // Columns of the weights of that name; rows of o_wo.
  int64_t q_wi() const { return heads * (head_dim + 2 * mlp_per_head); }
  int64_t kv() const { return 2 * kv_heads * head_dim; }
  int64_t o_wo() const { return heads * (head_dim + mlp_per_head); }
};

// Norm and logit scale, where networks like PaLM differ from it: `constants` of step.py, in this order.
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

// What both functions are called with: first come inputs of their own, then switches [4], four rotation tables
// [C, K/2], embedding [V, D], scale of the final norm [D]; then for each block scale [D], q_wi, kv, o_wo, and the
// caches of keys and values; last, the outputs logits [B, rows of V without padding] and log(Z) [B].
struct Arguments {
  Sizes sizes;
  Switches switches;
  Rotation rotation;
  const float *embedding, *final_scale;
  std::vector<Block> blocks;
  float *logits, *log_z;
};

// Arguments of which the first `own` are a function's own.
Arguments ReadArguments(int own, int count, void **params, int64_t **shapes) {
  constexpr int kBeforeBlocks = 7, kPerBlock = 6, kOutputs = 2;
  const auto floats = [&](int i) { return static_cast<float *>(params[i]); };
  const int first = own + kBeforeBlocks, end = count - kOutputs;
  Arguments read;
  Sizes &sizes = read.sizes;
  sizes.sequences = sizes.batch = shapes[end][0];
  sizes.vocabulary = shapes[end][1];
  sizes.context = shapes[own + 1][0];
  sizes.head_dim = 2 * shapes[own + 1][1];
  sizes.d_model = shapes[own + 5][1];
  const int64_t q_wi = shapes[first + 1][1], o_wo = shapes[first + 3][0];
  sizes.heads = (2 * o_wo - q_wi) / sizes.head_dim;
  sizes.kv_heads = shapes[first + 2][1] / (2 * sizes.head_dim);
  sizes.mlp_per_head = o_wo / sizes.heads - sizes.head_dim;
  const float *values = floats(own);
  read.switches = {values[0], values[1], values[2], values[3]};
  read.rotation = {floats(own + 1), floats(own + 2), floats(own + 3), floats(own + 4)};
  read.embedding = floats(own + 5);
  read.final_scale = floats(own + 6);
  for (int i = first; i < end; i += kPerBlock) {
    read.blocks.push_back({floats(i), floats(i + 1), floats(i + 2), floats(i + 3), floats(i + 4), floats(i + 5)});
  }
  read.logits = floats(end);
  read.log_z = floats(end + 1);
  return read;
}

// Whether the network has such a token, and the caches such a position.
bool InRange(const Sizes &sizes, int32_t token, int32_t position) {
  return token >= 0 && token < sizes.vocabulary && position >= 0 && position < sizes.context;
}

// Parts into which the rows of each matmul's w are shared: each part has a sum of its own.
int64_t Parts(const ThreadPool &pool) { return pool.threads() == 1 ? 1 : std::min(2 * pool.threads(), 16); }

// Columns of a task of MatmulColumns: full blocks, or less than one.
int64_t TaskColumns(const ThreadPool &pool, int64_t N) {
  const int64_t columns = N / (4 * pool.threads()) + 1;
  return RoundUp(columns, columns < kBlockWidth ? 2 * kLanes : kBlockWidth);
}

// Floats of scratch of MatmulOfManyRows, for any N.
int64_t ManyRowsScratch(const ThreadPool &pool, int64_t M, int64_t D) {
  const int64_t tasks = 4 * pool.threads() + 1;
  return Padded(M * D) + tasks * ColumnsScratch(M);
}

// y [M, N] = x [M, D] w [D, N] for many rows of x.
void MatmulOfManyRows(ThreadPool &pool, const float *x, const float *w, float *y, int64_t M, int64_t D, int64_t N,
                      float *scratch) {
  float *packed = scratch, *of_tasks = scratch + Padded(M * D);
  PackTiles(pool, x, M, D, packed);
  const int64_t width = TaskColumns(pool, N);
  ForRanges(pool, N, width, [&](int64_t first, int64_t end) {
    MatmulColumns(packed, w, y, M, D, N, first, end, Parts(pool), of_tasks + first / width * ColumnsScratch(M));
  });
}

// x [batch, D] to logits [batch, vocabulary] and log_z [batch]; y [batch, D] is scratch.
void Logits(ThreadPool &pool, const Arguments &with, int64_t batch, const float *x, float *y) {
  const int64_t D = with.sizes.d_model, V = with.sizes.vocabulary, parts = 4 * Parts(pool);
  for (int64_t b = 0; b < batch; ++b) {
    Norm(x + b * D, with.final_scale, y + b * D, D, with.switches);
    for (int64_t d = 0; d < D; ++d) y[b * D + d] *= with.switches.logit_scale;
  }
  pool.Run(parts, [&](int64_t part) {
    MatmulTransposed(y, with.embedding, with.logits, batch, D, V, part * V / parts, (part + 1) * V / parts);
  });
  pool.Run(batch, [&](int64_t b) { with.log_z[b] = LogSumExp(with.logits + b * V, V); });
}

// Moves results of the sequences in `rows`, in ascending order, to their places; the others become zeros.
void SpreadResults(const Arguments &with, const std::vector<int64_t> &rows) {
  const int64_t V = with.sizes.vocabulary;
  // from the back: no row is lost
  for (int64_t row = with.sizes.sequences - 1, b = static_cast<int64_t>(rows.size()) - 1; row >= 0; --row) {
    float *to = with.logits + row * V;
    if (b < 0 || rows[b] != row) {
      std::fill_n(to, V, 0.0f);
      with.log_z[row] = 0;
      continue;
    }
    if (b != row) {
      std::copy_n(with.logits + b * V, V, to);
      with.log_z[row] = with.log_z[b];
    }
    --b;
  }
}

}  // namespace

#endif  // MINDSPORE_PALM_GENERATE_CPU_NETWORK_H_
