// Prompts: many tokens of one or several sequences go through the network at once, and into the caches.
//
// Each weight is used for all tokens of a call, so arithmetic sets the speed. Every sum is taken in one order, whatever
// the tokens of a call: a prompt leaves the same bits in the caches in one call or in several, alone or beside others.
#ifndef MINDSPORE_PALM_GENERATE_CPU_PROMPTS_H_
#define MINDSPORE_PALM_GENERATE_CPU_PROMPTS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "elementwise.h"
#include "gemm.h"
#include "matmul.h"
#include "network.h"
#include "pool.h"
#include "vector.h"

namespace {

// Consecutive positions of a sequence that are read in a call.
struct Span {
  int64_t sequence, row, rows, position;  // the first row of the call, the number of rows, the first position
  int64_t end() const { return position + rows; }
};

// Keys [K, positions] and values [positions, K] of a sequence and a head, packed in panels of kTileColumns.
struct PackedCache {
  const float *keys, *values;
  static int64_t Size(int64_t end, int64_t K) { return PackedSize(K, end) + PackedSize(end, K); }
};

constexpr int64_t kStrip = 24;  // queries of a task

// out [rows, K of width] = softmax(q k^T) v for queries at positions first .. first + rows. q [rows, K of q_width] is
// scaled already. `scratch` holds StripScratch floats.
void AttendStrip(const float *q, int64_t q_width, const PackedCache &cache, int64_t end, float *out, int64_t width,
                 int64_t first, int64_t rows, int64_t K, float *scratch) {
  const int64_t seen = first + rows, stride = RoundUp(seen, kTileColumns), columns = RoundUp(K, kTileColumns);
  float *sums = scratch, *weights = sums + kStrip * columns, factors[kStrip];
  std::fill_n(weights, rows * stride, 0.0f);
  std::fill_n(sums, rows * columns, 0.0f);
  for (int64_t c = 0; c < stride; c += kTileColumns) {
    AccumulateTiles<2, false>(K, q, q_width, cache.keys + c * K, kTileColumns, weights + c, rows, stride);
  }
  for (int64_t r = 0; r < rows; ++r) {
    factors[r] = 1.0f / TakePowers(weights + r * stride, first + r + 1, stride).sum;
  }
  for (int64_t column = 0; column < columns; column += kTileColumns) {
    AccumulateTiles<2, false>(seen, weights, stride, cache.values + column * end, kTileColumns, sums + column, rows,
                              columns);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < K; ++k) out[r * width + k] = sums[r * columns + k] * factors[r];
  }
}

// Floats of scratch of AttendStrip, for any position of the context.
int64_t StripScratch(int64_t context, int64_t K) {
  return kStrip * (RoundUp(context, kTileColumns) + RoundUp(K, kTileColumns));
}

class Prompts {
 public:
  explicit Prompts(const Arguments &arguments) : with_(arguments), s_(arguments.sizes), pool_(ThreadPool::Get()) {}

  // Takes the rows of a call, int32 [4, count]: tokens, sequences, positions, and which are wanted. False if they are
  // not as ReadPrompts says.
  bool Take(const int32_t *rows, int64_t count) {
    const int32_t *tokens = rows, *sequences = rows + count, *positions = rows + 2 * count, *wanted = rows + 3 * count;
    std::vector<int64_t> wanted_row(s_.sequences, -1);
    std::vector<bool> taken(s_.sequences);
    for (int64_t row = 0; row < count; ++row) {
      const int64_t sequence = sequences[row], position = positions[row];
      if (position == kIdle) continue;
      if (sequence < 0 || sequence >= s_.sequences || !InRange(s_, tokens[row], positions[row])) return false;
      const bool goes_on = !spans_.empty() && spans_.back().sequence == sequence && spans_.back().end() == position;
      if (!goes_on) {
        if (taken[sequence]) return false;
        taken[sequence] = true;
        spans_.push_back({sequence, static_cast<int64_t>(tokens_.size()), 0, position});
      }
      ++spans_.back().rows;
      if (wanted[row] != 0) wanted_row[sequence] = static_cast<int64_t>(tokens_.size());
      tokens_.push_back(tokens[row]);
    }
    for (int64_t sequence = 0; sequence < s_.sequences; ++sequence) {
      if (wanted_row[sequence] < 0) continue;
      wanted_rows_.push_back(wanted_row[sequence]);
      wanted_sequences_.push_back(sequence);
    }
    return !tokens_.empty();
  }

  // Reads the rows; writes logits and log(Z) after the wanted ones.
  void Run() {
    Allocate();
    const int64_t D = s_.d_model;
    for (int64_t t = 0; t < Tokens(); ++t) {
      std::copy_n(with_.embedding + tokens_[t] * D, D, to_.x.data() + t * D);
    }
    for (const Block &block : with_.blocks) RunBlock(block);
    const int64_t batch = static_cast<int64_t>(wanted_rows_.size());
    for (int64_t b = 0; b < batch; ++b) {
      std::copy_n(to_.x.data() + wanted_rows_[b] * D, D, to_.last.data() + b * D);
    }
    if (batch > 0) Logits(pool_, with_, batch, to_.last.data(), to_.y.data());
    SpreadResults(with_, wanted_sequences_);
  }

 private:
  // Kept from call to call: allocating them takes longer than computing with them.
  struct Buffers {
    AlignedBuffer x, y, last, q_wi, kv, joined, packed, strips;
    static Buffers &Get() {
      static Buffers buffers;
      return buffers;
    }
  };

  int64_t Tokens() const { return static_cast<int64_t>(tokens_.size()); }

  void Allocate() {
    const int64_t T = Tokens(), D = s_.d_model;
    to_.x.Resize(T * D);
    to_.y.Resize(T * D);
    to_.last.Resize(s_.sequences * D);
    to_.q_wi.Resize(T * s_.q_wi());
    to_.kv.Resize(T * s_.kv());
    to_.joined.Resize(T * s_.o_wo());
    packed_starts_.assign(1, 0);
    for (const Span &span : spans_) {
      strips_ += (span.rows + kStrip - 1) / kStrip;
      for (int64_t g = 0; g < s_.kv_heads; ++g) {
        packed_starts_.push_back(packed_starts_.back() + PackedCache::Size(span.end(), s_.head_dim));
      }
    }
    to_.packed.Resize(packed_starts_.back());
    workers_ = std::min<int64_t>(4 * pool_.threads(), strips_ * s_.heads);
    to_.strips.Resize(workers_ * StripScratch(s_.context, s_.head_dim));
  }

  // x += attention(norm(x)) + mlp(norm(x)).
  void RunBlock(const Block &block) {
    const int64_t T = Tokens(), D = s_.d_model, rows = (T + 4 * pool_.threads() - 1) / (4 * pool_.threads());
    float *x = to_.x.data(), *y = to_.y.data();
    ForRanges(pool_, T, rows, [&](int64_t first, int64_t end) {
      for (int64_t t = first; t < end; ++t) Norm(x + t * D, block.scale, y + t * D, D, with_.switches);
    });
    Matmul(y, block.q_wi, to_.q_wi.data(), D, s_.q_wi(), false);
    Matmul(y, block.kv, to_.kv.data(), D, s_.kv(), false);
    for (const Span &span : spans_) {
      ForRanges(pool_, span.rows, rows, [&](int64_t first, int64_t end) {
        for (int64_t r = first; r < end; ++r) {
          WriteKv(block, span.sequence, span.row + r, span.position + r);
          RotateAndGate(span.row + r, span.position + r);
        }
      });
    }
    Pack(block);
    pool_.Run(workers_, [&](int64_t worker) {
      for (int64_t task = worker; task < strips_ * s_.heads; task += workers_) Attend(task, worker);
    });
    Matmul(to_.joined.data(), block.o_wo, x, s_.o_wo(), D, true);
  }

  // y [T, N] = a [T, depth] b [depth, N], or += with `add`.
  void Matmul(const float *a, const float *b, float *y, int64_t depth, int64_t N, bool add) {
    constexpr int64_t kMostColumns = 432;  // with kDepth rows of b, as much as a core's second cache holds
    const int64_t tasks = 2 * pool_.threads(), even = RoundUp((N + tasks - 1) / tasks, kTileColumns);
    const int64_t width = std::min(kMostColumns, even);
    ForRanges(pool_, N, width, [&](int64_t first, int64_t end) {
      Multiply(RowMajor(a, depth), RowMajor(b + first, N), y + first, N, Tokens(), end - first, depth, add);
    });
  }

  // The cache of a sequence and a head, from its first position.
  int64_t Cache(int64_t sequence, int64_t group) const {
    return (sequence * s_.kv_heads + group) * s_.context * s_.head_dim;
  }

  // Writes keys and values of row t to the caches.
  void WriteKv(const Block &block, int64_t sequence, int64_t t, int64_t position) {
    const int64_t K = s_.head_dim, table = position * K / 2;
    for (int64_t g = 0; g < s_.kv_heads; ++g) {
      const float *key = to_.kv.data() + t * s_.kv() + g * K;
      const int64_t slot = Cache(sequence, g) + position * K;
      std::copy_n(key, K, block.keys + slot);
      Rotate(block.keys + slot, with_.rotation.cos_k + table, with_.rotation.sin_k + table, K);
      std::copy_n(key + s_.kv_heads * K, K, block.values + slot);
    }
  }

  // Rotates the queries of row t, and computes its mlp.
  void RotateAndGate(int64_t t, int64_t position) {
    const int64_t K = s_.head_dim, F = s_.mlp_per_head, table = position * K / 2;
    for (int64_t h = 0; h < s_.heads; ++h) {
      float *q = to_.q_wi.data() + t * s_.q_wi() + h * (K + 2 * F);
      Rotate(q, with_.rotation.cos_q + table, with_.rotation.sin_q + table, K);
      SwiGLU(q + K, q + K + F, to_.joined.data() + t * s_.o_wo() + h * (K + F) + K, F);
    }
  }

  // Packs the keys and values that the runs see.
  void Pack(const Block &block) {
    pool_.Run(static_cast<int64_t>(spans_.size()) * s_.kv_heads, [&](int64_t task) {
      const Span &span = spans_[task / s_.kv_heads];
      const int64_t K = s_.head_dim, cache = Cache(span.sequence, task % s_.kv_heads);
      float *keys = to_.packed.data() + packed_starts_[task];
      PackColumns(RowMajor(block.keys + cache, K).Transposed(), K, span.end(), keys);
      PackColumns(RowMajor(block.values + cache, K), span.end(), K, keys + PackedSize(K, span.end()));
    });
  }

  // Attention of one strip of queries of one head.
  void Attend(int64_t task, int64_t worker) {
    const int64_t K = s_.head_dim, width = s_.heads * (K + s_.mlp_per_head), h = task % s_.heads;
    int64_t strip = task / s_.heads, i = 0;
    for (; strip >= (spans_[i].rows + kStrip - 1) / kStrip; ++i) strip -= (spans_[i].rows + kStrip - 1) / kStrip;
    const Span &span = spans_[i];
    const int64_t first = strip * kStrip, rows = std::min(kStrip, span.rows - first), t = span.row + first;
    const float *keys = to_.packed.data() + packed_starts_[i * s_.kv_heads + h / (s_.heads / s_.kv_heads)];
    const float *q = to_.q_wi.data() + t * s_.q_wi() + h * (K + 2 * s_.mlp_per_head);
    AttendStrip(q, s_.q_wi(), {keys, keys + PackedSize(K, span.end())}, span.end(),
                to_.joined.data() + t * width + h * (K + s_.mlp_per_head), width, span.position + first, rows, K,
                to_.strips.data() + worker * StripScratch(s_.context, K));
  }

  const Arguments &with_;
  const Sizes s_;
  ThreadPool &pool_;
  Buffers &to_ = Buffers::Get();
  std::vector<int32_t> tokens_;
  std::vector<Span> spans_;
  std::vector<int64_t> wanted_rows_, wanted_sequences_;  // in the order of sequences
  std::vector<int64_t> packed_starts_;                   // of each run and head of keys, in `packed`
  int64_t strips_ = 0, workers_ = 0;
};

}  // namespace

#endif  // MINDSPORE_PALM_GENERATE_CPU_PROMPTS_H_
