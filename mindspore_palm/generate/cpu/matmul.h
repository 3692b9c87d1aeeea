// Matmuls of a few rows of x with a large matrix w: the order in which w is read sets their speed.
//
// w is read several whole rows at a time, side by side, from their beginning to their end. Column by column, or by
// MindSpore's own matmuls, which are built for many rows of x, takes two to three times as long.
#ifndef MINDSPORE_PALM_GENERATE_CPU_MATMUL_H_
#define MINDSPORE_PALM_GENERATE_CPU_MATMUL_H_

#include <algorithm>
#include <cstdint>

#include "vector.h"

namespace {

constexpr int64_t kPrefetch = 64;  // floats ahead: the hardware prefetcher does not follow this many rows at a time

// y [kM, kColumns * kLanes of N] += x [kM, kRows of x_width] w [kRows, kColumns * kLanes of N].
template <int kM, int kColumns, int kRows>
inline void MatmulTile(const float *x, int64_t x_width, const float *w, float *y, int64_t N) {
  Vector sums[kM][kColumns];
  for (int m = 0; m < kM; ++m) {
    for (int c = 0; c < kColumns; ++c) sums[m][c] = Load(y + m * N + c * kLanes);
  }
#pragma GCC unroll 1  // unrolled, GCC 12 runs out of registers
  for (int r = 0; r < kRows; ++r) {
    Vector row[kColumns];
    for (int c = 0; c < kColumns; ++c) {
      __builtin_prefetch(w + r * N + c * kLanes + kPrefetch);
      row[c] = Load(w + r * N + c * kLanes);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      const Vector factor = Broadcast(x[m * x_width + r]);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sums[m][c] = MulAdd(factor, row[c], sums[m][c]);
    }
  }
  for (int m = 0; m < kM; ++m) {
    for (int c = 0; c < kColumns; ++c) Store(y + m * N + c * kLanes, sums[m][c]);
  }
}

// The same for any M >= 2, in tiles of two to eight rows of y.
template <int kColumns, int kRows>
void AccumulateTiles(const float *x, int64_t x_width, const float *w, float *y, int64_t M, int64_t N) {
  constexpr int64_t kMaxRows = 8;
  constexpr decltype(&MatmulTile<2, kColumns, kRows>) kTiles[] = {
      MatmulTile<2, kColumns, kRows>, MatmulTile<3, kColumns, kRows>, MatmulTile<4, kColumns, kRows>,
      MatmulTile<5, kColumns, kRows>, MatmulTile<6, kColumns, kRows>, MatmulTile<7, kColumns, kRows>,
      MatmulTile<8, kColumns, kRows>};
  const int64_t tiles = (M + kMaxRows - 1) / kMaxRows;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t m = tile * M / tiles, count = (tile + 1) * M / tiles - m;
    kTiles[count - 2](x + m * x_width, x_width, w, y + m * N, N);
  }
}

// Columns first .. end of y [M, N] += x [M, kRows of x_width] w [kRows, N].
template <int kRows>
void AccumulateRows(const float *x, int64_t x_width, const float *w, float *y, int64_t M, int64_t N, int64_t first,
                    int64_t end) {
  int64_t n = first;
  for (; n + 2 * kLanes <= end; n += 2 * kLanes) AccumulateTiles<2, kRows>(x, x_width, w + n, y + n, M, N);
  for (; n + kLanes <= end; n += kLanes) AccumulateTiles<1, kRows>(x, x_width, w + n, y + n, M, N);
  for (; n < end; ++n) {
    for (int64_t m = 0; m < M; ++m) {
      for (int r = 0; r < kRows; ++r) y[m * N + n] = MulAdd(x[m * x_width + r], w[r * N + n], y[m * N + n]);
    }
  }
}

// The same for M = 1, over all columns: y [N] += x [kRows] w [kRows, N].
template <int kRows>
void AccumulateIntoOneRow(const float *x, const float *w, float *y, int64_t N) {
  Vector factors[kRows];
  for (int r = 0; r < kRows; ++r) factors[r] = Broadcast(x[r]);
  int64_t n = 0;
  for (; n + kLanes <= N; n += kLanes) {
    Vector sum = Load(y + n);
    for (int r = 0; r < kRows; ++r) sum = MulAdd(factors[r], Load(w + r * N + n), sum);
    Store(y + n, sum);
  }
  for (; n < N; ++n) {
    for (int r = 0; r < kRows; ++r) y[n] = MulAdd(x[r], w[r * N + n], y[n]);
  }
}

// A partial sum of x [M, D] w over the rows of w [D, N] that belong to share `part` of `parts`: y [M, N].
void MatmulPartial(const float *x, const float *w, float *y, int64_t M, int64_t D, int64_t N, int64_t part,
                   int64_t parts) {
  constexpr int64_t kRows = 16, kElements = 8192;  // of y at a time: as many as a core's caches hold
  const int64_t first = part * D / parts / kRows * kRows;
  const int64_t end = part + 1 == parts ? D : (part + 1) * D / parts / kRows * kRows;
  std::fill(y, y + M * N, 0.0f);
  if (M == 1) {
    int64_t d = first;
    for (; d + 8 <= end; d += 8) AccumulateIntoOneRow<8>(x + d, w + d * N, y, N);
    for (; d < end; ++d) AccumulateIntoOneRow<1>(x + d, w + d * N, y, N);
    return;
  }
  const int64_t width = std::max<int64_t>(2 * kLanes, kElements / M / (2 * kLanes) * (2 * kLanes));
  for (int64_t n = 0; n < N; n += width) {
    const int64_t to = std::min(N, n + width);
    int64_t d = first;
    for (; d + kRows <= end; d += kRows) AccumulateRows<kRows>(x + d, D, w + d * N, y, M, N, n, to);
    for (; d < end; ++d) AccumulateRows<1>(x + d, D, w + d * N, y, M, N, n, to);
  }
}

// y [kM, 4 of N] = x [kM, D] w^T with w [4, D].
template <int kM>
inline void TransposedTile(const float *x, const float *w, float *y, int64_t D, int64_t N) {
  Vector sums[kM][4] = {};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    Vector row[4];
    for (int r = 0; r < 4; ++r) row[r] = Load(w + r * D + d);
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      const Vector factor = Load(x + m * D + d);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) sums[m][r] = MulAdd(factor, row[r], sums[m][r]);
    }
  }
  for (int m = 0; m < kM; ++m) {
    SumFour(sums[m], y + m * N);
    for (int r = 0; r < 4; ++r) {
      for (int64_t i = d; i < D; ++i) y[m * N + r] = MulAdd(x[m * D + i], w[r * D + i], y[m * N + r]);
    }
  }
}

// Columns first .. end of y [M, N] = x [M, D] w^T with w [N, D].
void MatmulTransposed(const float *x, const float *w, float *y, int64_t M, int64_t D, int64_t N, int64_t first,
                      int64_t end) {
  int64_t n = first;
  for (; n + 4 <= end; n += 4) {
    int64_t m = 0;
    for (; m + 4 <= M; m += 4) TransposedTile<4>(x + m * D, w + n * D, y + m * N + n, D, N);
    for (; m < M; ++m) TransposedTile<1>(x + m * D, w + n * D, y + m * N + n, D, N);
  }
  for (; n < end; ++n) {
    for (int64_t m = 0; m < M; ++m) y[m * N + n] = Dot(x + m * D, w + n * D, D);
  }
}

}  // namespace

#endif  // MINDSPORE_PALM_GENERATE_CPU_MATMUL_H_
