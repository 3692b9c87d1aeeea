// Causal attention of one head over one sequence, and its gradient. Scores of a few queries at a time stay in the
// cache; of a sequence, only log(sum(e^score)) of each query is kept.
#ifndef MINDSPORE_PALM_CPU_TRAINING_ATTENTION_H_
#define MINDSPORE_PALM_CPU_TRAINING_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "elementwise.h"
#include "gemm.h"
#include "vector.h"

namespace {

constexpr int64_t kQueries = 24;  // of a tile of the backward pass; whole strips of kTileRows

// The sizes of one head's attention, and of its buffers, which are padded to whole tiles.
struct AttentionSizes {
  int64_t length, head_dim;
  int64_t columns() const { return RoundUp(head_dim, kTileColumns); }
  int64_t context() const { return RoundUp(RoundUp(length, kTileRows), kTileColumns); }
};

// Keys and values of one sequence, packed: as columns to take scores with, and as rows to be summed.
struct PackedKv {
  const float *keys_by_column, *values_by_column;  // panels of positions, each [head_dim, kTileColumns]
  const float *keys, *values;                      // panels of head_dim, each [length, kTileColumns]
  static int64_t Size(const AttentionSizes& s) { return s.context() * s.head_dim + s.length * s.columns(); }
};

// scores [kTileRows, context] of a packed strip of queries [K, kTileRows] with positions 0 .. end; returns the columns
// that were written.
int64_t Scores(const float* strip, const float* by_column, int64_t end, const AttentionSizes& s, float* scores) {
  const int64_t written = RoundUp(end, kTileColumns);
  for (int64_t c = 0; c < written; c += kTileColumns) {
    const float* panel = by_column + c * s.head_dim;
    TilePacked(s.head_dim, strip, panel, scores + c, s.context(), false, panel + s.head_dim * kTileColumns,
               kLine);
  }
  return written;
}

// out [rows, K of width] = softmax(q k^T) v for queries first .. first + rows of a head; log_z [rows of log_z_width].
// q [rows, K of q_width] is scaled already. `scratch` holds AttentionScratch floats.
void AttendStrip(const float* q, int64_t q_width, const PackedKv& kv, float* out, int64_t width, float* log_z,
                 int64_t log_z_width, int64_t first, int64_t rows, const AttentionSizes& s, float* scratch) {
  float *strip = scratch, *sums = strip + kTileRows * s.head_dim, *scores = sums + kTileRows * s.columns();
  PackRows(RowMajor(q, q_width), rows, s.head_dim, strip);
  const int64_t end = first + rows, written = Scores(strip, kv.keys_by_column, end, s, scores);
  Powers powers[kTileRows];
  for (int64_t r = 0; r < rows; ++r) powers[r] = TakePowers(scores + r * s.context(), first + r + 1, written);
  for (int64_t r = 0; r < rows; ++r) log_z[r * log_z_width] = std::log(powers[r].sum) + powers[r].largest;
  for (int64_t column = 0; column < s.columns(); column += kTileColumns) {
    const float* panel = kv.values + column * s.length;
    TileByRows(end, scores, s.context(), panel, sums + column, s.columns(), false, panel);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float factor = 1.0f / powers[r].sum;
    for (int64_t k = 0; k < s.head_dim; ++k) out[r * width + k] = sums[r * s.columns() + k] * factor;
  }
}

// Floats of scratch of AttendStrip.
int64_t AttentionScratch(const AttentionSizes& s) { return kTileRows * (s.head_dim + s.columns() + s.context()); }

// One head's inputs of the backward pass, each of `length` rows.
struct HeadGradient {
  const float* q;            // [K of q_width], rotated and scaled
  const float* out;          // [K of width], the head's result
  const float* d_out;        // [K of width]
  const float* log_z;        // [1 of log_z_width]
  float* d_q;                // [K of q_width]
  float *d_keys, *d_values;  // [context, columns], to which is added
  int64_t q_width, width, log_z_width;
};

// The gradient of AttendStrip over all strips of a head. `scratch` holds AttentionGradientScratch floats.
void AttendGradient(const HeadGradient& head, const PackedKv& kv, const AttentionSizes& s, float* scratch) {
  const int64_t K = s.head_dim, columns = s.columns(), context = s.context();
  float *q_strip = scratch, *d_strip = q_strip + kTileRows * K, *sums = d_strip + kTileRows * K;
  float *q_panels = sums + kTileRows * columns, *d_panels = q_panels + kQueries * columns;
  float *weights = d_panels + kQueries * columns, *d_scores = weights + kQueries * context;
  for (int64_t tile = 0; tile < s.length; tile += kQueries) {
    const int64_t tile_rows = std::min(kQueries, s.length - tile), tile_end = tile + tile_rows;
    const int64_t used = RoundUp(RoundUp(tile_end, kTileRows), kTileColumns);  // columns that the sums below read
    for (int64_t strip = tile; strip < tile_end; strip += kTileRows) {
      const int64_t rows = std::min<int64_t>(kTileRows, tile_end - strip), end = strip + rows;
      float *p = weights + (strip - tile) * context, *ds = d_scores + (strip - tile) * context;
      PackRows(RowMajor(head.q + strip * head.q_width, head.q_width), rows, K, q_strip);
      PackRows(RowMajor(head.d_out + strip * head.width, head.width), rows, K, d_strip);
      Scores(q_strip, kv.keys_by_column, end, s, p);
      Scores(d_strip, kv.values_by_column, end, s, ds);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = strip + r, seen = row + 1;
        const float log_z = head.log_z[row * head.log_z_width];
        const float mean = Dot(head.out + row * head.width, head.d_out + row * head.width, K);
        float *weight = p + r * context, *d_score = ds + r * context;
        int64_t c = 0;
        for (; c < seen; c += kLanes) {
          const Vector power = FirstLanes(Exp(Load(weight + c) - log_z), seen - c, Vector{});
          Store(weight + c, power);
          Store(d_score + c, FirstLanes(power * (Load(d_score + c) - mean), seen - c, Vector{}));
        }
        for (; c < used; c += kLanes) {
          Store(weight + c, Vector{});
          Store(d_score + c, Vector{});
        }
      }
      for (int64_t column = 0; column < columns; column += kTileColumns) {
        const float* panel = kv.keys + column * s.length;
        TileByRows(end, ds, context, panel, sums + column, columns, false, panel);
      }
      for (int64_t r = 0; r < rows; ++r) std::copy_n(sums + r * columns, K, head.d_q + (strip + r) * head.q_width);
    }
    PackColumns(RowMajor(head.q + tile * head.q_width, head.q_width), tile_rows, K, q_panels);
    PackColumns(RowMajor(head.d_out + tile * head.width, head.width), tile_rows, K, d_panels);
    for (int64_t c = 0; c < tile_end; c += kTileRows) {
      // Queries of earlier strips do not see the last positions of the tile; their weights are zeros.
      for (int64_t column = 0; column < columns; column += kTileColumns) {
        const int64_t panel = column * tile_rows;
        TileByColumns(tile_rows, d_scores + c, context, q_panels + panel, head.d_keys + c * columns + column, columns,
                      true);
        TileByColumns(tile_rows, weights + c, context, d_panels + panel, head.d_values + c * columns + column, columns,
                      true);
      }
    }
  }
}

// Floats of scratch of AttendGradient.
int64_t AttentionGradientScratch(const AttentionSizes& s) {
  return kTileRows * (2 * s.head_dim + s.columns()) + 2 * kQueries * (s.columns() + s.context());
}

}  // namespace

#endif  // MINDSPORE_PALM_CPU_TRAINING_ATTENTION_H_
