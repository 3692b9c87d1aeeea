// Matmuls of a few rows of x with a large matrix w: the order in which w is read sets their speed.
//
// w is read several whole rows at a time, side by side, from their beginning to their end. Column by column, or by
// MindSpore's own matmuls, which are built for many rows of x, takes two to three times as long.
#ifndef MINDSPORE_PALM_GENERATE_CPU_MATMUL_H_
#define MINDSPORE_PALM_GENERATE_CPU_MATMUL_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "gemm.h"
#include "pool.h"
#include "vector.h"

namespace {

constexpr int64_t kPrefetch = 64;  // floats ahead: the hardware prefetcher does not follow this many rows at a time

// sum += a b, rounded once where the processor can, as MulAdd. Of intrinsics, GCC 12 loads all factors of a tile before
// it uses the first, and runs out of registers: a tile of 6 x 16 sums then has 60 % of the speed.
inline void AddProduct(Vector& sum, Vector a, Vector b) {
#if defined(__FMA__) && !defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#elif defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum = MulAdd(a, b, sum);
#endif
}

// Calls work(rows) with a constant: `rows` as std::integral_constant.
template <int kMost, typename Work>
inline void WithConstant(int64_t rows, const Work &work) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return WithConstant<kMost - 1>(rows, work);
  }
  work(std::integral_constant<int, kMost>());
}

// Tiles of at most kMost rows that share M rows. Their heights differ by one at most.
template <int kMost>
int64_t Tiles(int64_t M) {
  return (M + kMost - 1) / kMost;
}

// Calls work(rows, m) for one of them: it has rows m .. m + rows. `rows` is a constant.
template <int kMost, typename Work>
inline void WithTile(int64_t M, int64_t tile, const Work &work) {
  const int64_t tiles = Tiles<kMost>(M), m = tile * M / tiles;
  WithConstant<kMost>((tile + 1) * M / tiles - m, [&](auto rows) { work(rows, m); });
}

// Calls work(rows, m, tile, tiles) for each of them in turn.
template <int kMost, typename Work>
inline void ForTiles(int64_t M, const Work &work) {
  const int64_t tiles = Tiles<kMost>(M);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    WithTile<kMost>(M, tile, [&](auto rows, int64_t m) { work(rows, m, tile, tiles); });
  }
}

constexpr int kMostRows = kLanes == 16 ? 8 : 6;  // of a tile with two vectors a row: its sums fit the registers

// y [kM, kColumns * kLanes of N] += x [kM, rows of x_width] w [rows, kColumns * kLanes of w_width].
template <int kM, int kColumns, bool kFromMemory>
__attribute__((noinline)) void MatmulTile(int64_t rows, const float *x, int64_t x_width, const float *w,
                                          int64_t w_width, float *y, int64_t N) {
  Vector sums[kM][kColumns] = {};
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) sums[m][c] = Load(y + m * N + c * kLanes);
  }
#pragma GCC unroll 1  // unrolled, GCC 12 runs out of registers
  for (int64_t r = 0; r < rows; ++r) {
    Vector row[kColumns];
    for (int c = 0; c < kColumns; ++c) {
      if (kFromMemory) __builtin_prefetch(w + r * w_width + c * kLanes + kPrefetch);
      row[c] = Load(w + r * w_width + c * kLanes);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      const Vector factor = Broadcast(x[m * x_width + r]);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) AddProduct(sums[m][c], factor, row[c]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) Store(y + m * N + c * kLanes, sums[m][c]);
  }
}

// The same for any M.
template <int kColumns, bool kFromMemory>
void AccumulateTiles(int64_t rows, const float *x, int64_t x_width, const float *w, int64_t w_width, float *y,
                     int64_t M, int64_t N) {
  ForTiles<kMostRows>(M, [&](auto height, int64_t m, int64_t, int64_t) {
    MatmulTile<height(), kColumns, kFromMemory>(rows, x + m * x_width, x_width, w, w_width, y + m * N, N);
  });
}

// Columns first .. end of y [M, y_width] += x [M, rows of x_width] w [rows, w_width], w read from memory.
void AccumulateRows(int64_t rows, const float *x, int64_t x_width, const float *w, int64_t w_width, float *y,
                    int64_t y_width, int64_t M, int64_t first, int64_t end) {
  int64_t n = first;
  for (; n + 2 * kLanes <= end; n += 2 * kLanes) {
    AccumulateTiles<2, true>(rows, x, x_width, w + n, w_width, y + n, M, y_width);
  }
  for (; n + kLanes <= end; n += kLanes) {
    AccumulateTiles<1, true>(rows, x, x_width, w + n, w_width, y + n, M, y_width);
  }
  for (; n < end; ++n) {
    for (int64_t m = 0; m < M; ++m) {
      float &sum = y[m * y_width + n];
      for (int64_t r = 0; r < rows; ++r) sum = MulAdd(x[m * x_width + r], w[r * w_width + n], sum);
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

// The first of the rows of w [D, N] that belong to share `part` of `parts`.
int64_t FirstRow(int64_t D, int64_t part, int64_t parts) {
  constexpr int64_t kRows = 16;
  return part == parts ? D : part * D / parts / kRows * kRows;
}

// A partial sum of x [M, D] w over the rows of share `part`: y [M, N].
void MatmulPartial(const float *x, const float *w, float *y, int64_t M, int64_t D, int64_t N, int64_t part,
                   int64_t parts) {
  constexpr int64_t kRows = 2 * kLanes, kElements = 32768;  // of y at a time: they fit the second cache
  const int64_t first = FirstRow(D, part, parts), end = FirstRow(D, part + 1, parts);
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
    for (int64_t d = first; d < end; d += kRows) {
      AccumulateRows(std::min(kRows, end - d), x + d, D, w + d * N, N, y, N, M, n, to);
    }
  }
}

constexpr int64_t kBlockDepth = 256, kBlockWidth = 64;  // of w: 64 KB, so that the second cache holds two
constexpr int64_t kManyRows = kLanes == 16 ? 48 : 24;  // of x: fewer use an element of w too seldom to copy it

// Copies x [M, D] tile by tile, each as [D, its rows]: the order in which PackedTile reads it.
void PackTiles(ThreadPool &pool, const float *x, int64_t M, int64_t D, float *to) {
  pool.Run(Tiles<kMostRows>(M), [&](int64_t tile) {
    WithTile<kMostRows>(M, tile, [&](auto height, int64_t m) {
      Pack<height()>(x + m * D, 1, D, height, D, to + m * D);
    });
  });
}

// Lines of memory that come into the cache while a tile is computed: one every `step` floats from `next` to `last`.
struct Prefetches {
  const float *next, *last;
  int64_t step;
};

// y [kM, 2 kLanes of N] = x w, or += with `add`, with x [rows, kM] and w [rows, 2 kLanes] packed.
template <int kM>
__attribute__((noinline)) void PackedTile(int64_t rows, const float *x, const float *w, float *y, int64_t N, bool add,
                                          Prefetches lines) {
  constexpr int64_t kEvery = 4;  // rows for each line
  Vector sums[kM][2] = {};
  if (add) {
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      sums[m][0] = Load(y + m * N);
      sums[m][1] = Load(y + m * N + kLanes);
    }
  }
  const auto add_row = [&]() __attribute__((always_inline)) {
    const Vector left = Load(w), right = Load(w + kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      const Vector factor = Broadcast(x[m]);
      AddProduct(sums[m][0], factor, left);
      AddProduct(sums[m][1], factor, right);
    }
    x += kM;
    w += 2 * kLanes;
  };
  int64_t r = 0;
#pragma GCC unroll 1
  for (; r + kEvery <= rows; r += kEvery) {
    for (int64_t i = 0; i < 2 * kLanes; i += kLine) __builtin_prefetch(lines.next + i);
    lines.next = lines.next < lines.last ? lines.next + lines.step : lines.next;
#pragma GCC unroll 4
    for (int64_t i = 0; i < kEvery; ++i) add_row();
  }
  for (; r < rows; ++r) add_row();
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    Store(y + m * N, sums[m][0]);
    Store(y + m * N + kLanes, sums[m][1]);
  }
}

// Columns first .. end of y [M, N] = x [M, D] w [D, N] for many rows of x, with the bits of the partial sums of all
// parts, added in order. x is packed by PackTiles.
//
// Many rows use each element of w so often that arithmetic takes longer than memory. A block of w is copied, so that
// tiles read it in the order in which it lies; meanwhile, line by line, the next one comes into the cache.
void MatmulColumns(const float *x, const float *w, float *y, int64_t M, int64_t D, int64_t N, int64_t first,
                   int64_t end, int64_t parts, float *scratch) {
  constexpr int64_t kRows = kBlockDepth, kWidth = kBlockWidth, kPanel = 2 * kLanes;
  float *block = scratch, *sums = block + kRows * kWidth;
  for (int64_t n = first; n < end; n += kWidth) {
    const int64_t width = std::min(kWidth, end - n);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t from = FirstRow(D, part, parts), to = FirstRow(D, part + 1, parts);
      if (from == to) std::fill_n(sums, M * kWidth, 0.0f);
      for (int64_t d = from; d < to; d += kRows) {
        const int64_t rows = std::min(kRows, to - d), left = D - d - rows;
        const float *next = left > 0 ? w + (d + rows) * N + n : w + n + kWidth;
        const int64_t next_rows = left > 0 ? std::min(kRows, left) : n + kWidth < end ? std::min(kRows, D) : 0;
        PackColumns(RowMajor(w + d * N + n, N), rows, width, block);
        for (int64_t c = 0; c < width; c += kPanel) {
          ForTiles<kMostRows>(M, [&](auto height, int64_t m, int64_t tile, int64_t tiles) {
            const int64_t line = tile * next_rows / tiles, last = std::max(line, (tile + 1) * next_rows / tiles - 1);
            PackedTile<height()>(rows, x + m * D + d * height, block + c * rows, sums + m * kWidth + c, kWidth,
                                 d > from, {next + line * N + c, next + last * N + c, N});
          });
        }
      }
      for (int64_t m = 0; m < M; ++m) {
        const float *sum = sums + m * kWidth;
        float *result = y + m * N + n;
        for (int64_t c = 0; c < width; ++c) result[c] = part == 0 ? sum[c] : result[c] + sum[c];
      }
    }
  }
}

// Floats of scratch of MatmulColumns.
int64_t ColumnsScratch(int64_t M) { return (kBlockDepth + M) * kBlockWidth; }

constexpr int kMostTransposed = kLanes == 16 ? 8 : 4;  // rows of w in a tile: with 3 of x, their sums fit the registers

// y [kM, kRows of N] = x [kM, D] w^T with w [kRows, D]; kM is at most 3. Meanwhile kAhead rows come into the second
// cache from `next` on.
template <int kM, int kRows, int kAhead>
__attribute__((noinline)) void TransposedTile(const float *x, const float *w, float *y, int64_t D, int64_t N,
                                              const float *next) {
  Vector sums[kM][kRows] = {};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < kAhead; ++r) __builtin_prefetch(next + r * D + d, 0, kSecond);
    Vector factors[kM];
#pragma GCC unroll 3
    for (int m = 0; m < kM; ++m) factors[m] = Load(x + m * D + d);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
      for (int m = 0; m < kM; ++m) AddProduct(sums[m][r], Load(w + r * D + d), factors[m]);
    }
  }
  SumFour(sums[0][0], sums[0][1], sums[0][2], sums[0][3], y);
  if constexpr (kM > 1) SumFour(sums[1][0], sums[1][1], sums[1][2], sums[1][3], y + N);
  if constexpr (kM > 2) SumFour(sums[2][0], sums[2][1], sums[2][2], sums[2][3], y + 2 * N);
  if constexpr (kRows > 4) {
    SumFour(sums[0][4], sums[0][5], sums[0][6], sums[0][7], y + 4);
    if constexpr (kM > 1) SumFour(sums[1][4], sums[1][5], sums[1][6], sums[1][7], y + N + 4);
    if constexpr (kM > 2) SumFour(sums[2][4], sums[2][5], sums[2][6], sums[2][7], y + 2 * N + 4);
  }
  if (d == D) return;
  for (int m = 0; m < kM; ++m) {
    for (int r = 0; r < kRows; ++r) {
      for (int64_t i = d; i < D; ++i) y[m * N + r] = MulAdd(x[m * D + i], w[r * D + i], y[m * N + r]);
    }
  }
}

// Columns `first` to `end` of y [M, N] = x [M, D] w^T with w [N, D], kRows at a time, as far as they go; returns the
// first column that is left. The first tiles fetch the rows of w that come next, each some of them.
template <int kRows>
int64_t TransposedTiles(const float *x, const float *w, float *y, int64_t M, int64_t D, int64_t N, int64_t first,
                        int64_t end) {
  const int64_t tiles = Tiles<3>(M), ahead = M == 1 ? 0 : tiles == 1 ? kRows : tiles < 4 ? kRows / 2 : kRows / 4;
  int64_t n = first;
  for (; n + kRows <= end; n += kRows) {
    const int64_t fetched = n + 2 * kRows <= end ? kRows : 0;
    ForTiles<3>(M, [&](auto height, int64_t m, int64_t tile, int64_t) {
      const auto compute = [&](auto rows) {
        TransposedTile<height(), kRows, rows()>(x + m * D, w + n * D, y + m * N + n, D, N,
                                                w + (n + kRows + tile * ahead) * D);
      };
      if (ahead == 0 || tile * ahead >= fetched) {
        compute(std::integral_constant<int, 0>());
      } else if (ahead == kRows) {
        compute(std::integral_constant<int, kRows>());
      } else if (ahead == kRows / 2) {
        compute(std::integral_constant<int, kRows / 2>());
      } else {
        compute(std::integral_constant<int, kRows / 4>());
      }
    });
  }
  return n;
}

// Columns first .. end of y [M, N] = x [M, D] w^T with w [N, D].
void MatmulTransposed(const float *x, const float *w, float *y, int64_t M, int64_t D, int64_t N, int64_t first,
                      int64_t end) {
  int64_t n = TransposedTiles<kMostTransposed>(x, w, y, M, D, N, first, end);
  if (kMostTransposed > 4) n = TransposedTiles<4>(x, w, y, M, D, N, n, end);
  for (; n < end; ++n) {
    for (int64_t m = 0; m < M; ++m) y[m * N + n] = Dot(x + m * D, w + n * D, D);
  }
}

}  // namespace

#endif  // MINDSPORE_PALM_GENERATE_CPU_MATMUL_H_
