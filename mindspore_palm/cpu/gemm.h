// Matmuls of float32 matrices with many rows, near the processor's peak.
//
// A tile of the result, kTileRows by kTileColumns, stays in registers while its sums are taken. Operands are packed:
// copied so that a tile reads them in the order in which they lie (Goto and van de Geijn, "Anatomy of
// high-performance matrix multiplication", 2008). Every element of a result is summed in one order, whatever the
// number of threads, and however rows and columns are shared among them.
#ifndef MINDSPORE_PALM_CPU_GEMM_H_
#define MINDSPORE_PALM_CPU_GEMM_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "vector.h"

namespace {

constexpr int kTileRows = kLanes == 16 ? 12 : 6;  // with two vectors a row, as many sums as registers allow
constexpr int kFewRows = kTileRows / 3;           // of the last strip of a matrix, for which a smaller tile does
constexpr int kTileColumns = 2 * kLanes;
constexpr int64_t kDepth = 256;     // terms of a sum that are packed at a time: a panel of b fits the first cache
constexpr int64_t kBlockRows = 96;  // rows of a that are packed at a time: they fit the second cache
constexpr int kLine = 16;           // floats of a line of the cache
constexpr int kTermsOfLine = kLine * kBlockRows / 2 / (kTileRows * kTileColumns);  // computed for each line of `next`

int64_t RoundUp(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// A matrix in memory: element (i, j) is data[i * row + j * column], and one of the two strides is 1.
struct Matrix {
  const float* data;
  int64_t row, column;
  Matrix At(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
  Matrix Transposed() const { return {data, column, row}; }
};

inline Matrix RowMajor(const float* data, int64_t width) { return {data, width, 1}; }

enum Cache { kSecond = 2, kFirst = 3 };  // to prefetch into, as __builtin_prefetch numbers them

// c [kRows, kTileColumns of ldc] = a b, or += with `add`. Element (i, k) of a is a[i * a_row + k * a_step]; row k
// of b begins at b + k * kTileColumns. Meanwhile lines of memory, `step` floats apart, come into a cache from `next`
// on: the tiles of half a block take a panel in.
template <Cache kCache, int kRows = kTileRows>
inline __attribute__((always_inline)) void Tile(int64_t depth, const float* a, int64_t a_row, int64_t a_step,
                                                const float* b, float* c, int64_t ldc, bool add, const float* next,
                                                int64_t step) {
  for (int i = 0; i < kRows; ++i) {
    __builtin_prefetch(c + i * ldc);
    __builtin_prefetch(c + i * ldc + kTileColumns - 1);
  }
  Vector sums[kRows][2] = {};
  const auto add_terms = [&](int64_t count) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int64_t k = 0; k < count; ++k, a += a_step, b += kTileColumns) {
      const Vector left = Load(b), right = Load(b + kLanes);
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        const Vector factor = Broadcast(a[i * a_row]);
        sums[i][0] += factor * left;
        sums[i][1] += factor * right;
      }
    }
  };
  for (; depth >= kTermsOfLine; depth -= kTermsOfLine, next += step) {
    __builtin_prefetch(next, 0, kCache);
    add_terms(kTermsOfLine);
  }
  add_terms(depth);
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    float* to = c + i * ldc;
    Store(to, add ? Load(to) + sums[i][0] : sums[i][0]);
    Store(to + kLanes, add ? Load(to + kLanes) + sums[i][1] : sums[i][1]);
  }
}

// The three ways in which a lies: packed, by rows, and by columns.
template <Cache kCache = kFirst, int kRows = kTileRows>
__attribute__((noinline)) void TilePacked(int64_t depth, const float* a, const float* b, float* c, int64_t ldc,
                                          bool add, const float* next, int64_t step) {
  Tile<kCache, kRows>(depth, a, 1, kTileRows, b, c, ldc, add, next, step);
}
__attribute__((noinline)) void TileByRows(int64_t depth, const float* a, int64_t lda, const float* b, float* c,
                                          int64_t ldc, bool add, const float* next) {
  Tile<kFirst>(depth, a, lda, 1, b, c, ldc, add, next, kLine);
}
__attribute__((noinline)) void TileByColumns(int64_t depth, const float* a, int64_t lda, const float* b, float* c,
                                             int64_t ldc, bool add) {
  Tile<kFirst>(depth, a, 1, lda, b, c, ldc, add, b, kLine);
}

// The lanes of two vectors, v and w, of which Transpose makes one: those of v without `kDistance` in their number, each
// followed, `kDistance` later, by w's; or, with `kHigh`, those that have it. Constants: made at run time, they take
// longer than the transposition.
template <int kDistance, bool kHigh, int... i>
constexpr IntVector Swapped(std::integer_sequence<int, i...>) {
  return IntVector{((i & kDistance) ? kLanes + i - (kHigh ? 0 : kDistance) : i + (kHigh ? kDistance : 0))...};
}

// Transposes a square of kLanes vectors, in steps that swap what is 1, 2, 4 ... lanes apart.
template <int kDistance = 1>
inline __attribute__((always_inline)) void Transpose(Vector* v) {
  constexpr auto kAll = std::make_integer_sequence<int, kLanes>();
  constexpr IntVector kLow = Swapped<kDistance, false>(kAll), kHigh = Swapped<kDistance, true>(kAll);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kDistance) continue;
    const Vector first = v[i], second = v[i + kDistance];
    v[i] = __builtin_shuffle(first, second, kLow);
    v[i + kDistance] = __builtin_shuffle(first, second, kHigh);
  }
  if constexpr (2 * kDistance < kLanes) Transpose<2 * kDistance>(v);
}

// Packs terms first .. end of the kPanel lines of a panel, of which element (k, i) is from[k * step + i * line]; of the
// lines, `count` exist, and the others become zeros.
template <int kPanel>
inline void PackPanel(const float* from, int64_t step, int64_t line, int64_t count, int64_t first, int64_t end,
                      float* panel) {
  if (line == 1 && count >= kPanel) {
    for (int64_t k = first; k < end; ++k) std::memcpy(panel + k * kPanel, from + k * step, kPanel * sizeof(float));
    return;
  }
  // Squares of fewer lines have vectors that are longer than a term: each ends in the next one, which is written later.
  constexpr int kLines = std::min(kPanel, kLanes), kRest = (kLanes - kLines + kPanel - 1) / kPanel;
  int64_t k = first;
  constexpr bool kSquares = kPanel % kLanes == 0 || kPanel < kLanes;
  for (; kSquares && line != 1 && k + kLanes + kRest <= end; k += kLanes) {
    for (int i = 0; i < kPanel; i += kLanes) {
      Vector square[kLanes] = {};
      for (int j = 0; j < kLines; ++j) square[j] = i + j < count ? Load(from + k + (i + j) * line) : Vector{};
      Transpose(square);
      for (int j = 0; j < kLanes; ++j) Store(panel + (k + j) * kPanel + i, square[j]);
    }
  }
  for (; k < end; ++k) {
#pragma GCC unroll 32
    for (int i = 0; i < kPanel; ++i) panel[k * kPanel + i] = i < count ? from[k * step + i * line] : 0;
  }
}

// Packs `count` lines of a matrix, of which element (k, i) is from[k * step + i * line], and step or line is 1: panel
// by panel of kPanel lines, each [depth, kPanel], and the last one filled up with zeros.
//
// If terms lie side by side, each panel is copied to its end. If lines do, a few terms of all panels are copied at a
// time. Otherwise a line of the cache would be read once for each panel that has a part of it, and lines whose
// addresses differ by a power of two push each other out.
template <int kPanel>
void Pack(const float* from, int64_t step, int64_t line, int64_t count, int64_t depth, float* to) {
  const int64_t terms = line == 1 ? 8 : depth;
  for (int64_t first = 0; first < depth; first += terms) {
    for (int64_t n = 0; n < count; n += kPanel) {
      PackPanel<kPanel>(from + n * line, step, line, count - n, first, std::min(depth, first + terms), to + n * depth);
    }
  }
}

// Floats of a packed b [depth, columns].
int64_t PackedSize(int64_t depth, int64_t columns) { return depth * RoundUp(columns, kTileColumns); }

// Packs b [depth, columns].
void PackColumns(const Matrix& b, int64_t depth, int64_t columns, float* to) {
  Pack<kTileColumns>(b.data, b.row, b.column, columns, depth, to);
}

// Packs a [rows, depth].
void PackRows(const Matrix& a, int64_t rows, int64_t depth, float* to) {
  Pack<kTileRows>(a.data, a.column, a.row, rows, depth, to);
}

// Rows of memory that will be packed next, each of contiguous floats.
class Upcoming {
 public:
  Upcoming() = default;
  Upcoming(const Matrix& data, int64_t rows, int64_t columns) : data_(data), rows_(rows), lines_(columns / kLine + 1) {}
  // Moves on by a part of one column of lines, `count` of them at most. Returns whether anything was left.
  bool Take(int64_t count, const float** next, int64_t* step) {
    const int64_t row = taken_ / lines_ * count;
    if (row >= rows_) return false;
    *next = data_.At(row, taken_++ % lines_ * kLine).data;
    *step = data_.row;
    return true;
  }

 private:
  Matrix data_ = {nullptr, 0, 0};
  int64_t rows_ = 0, lines_ = 1, taken_ = 0;
};

// One block: c [rows, columns of ldc] = or += a b. b is packed; its panels lie `panel_stride` floats apart. Strips of a
// are packed, or are rows of `lda` floats. What comes into the cache meanwhile is the next panel, or else, if b is in
// the second cache already, what is `upcoming`, in its order.
void MultiplyBlock(const float* a, int64_t lda, bool packed, const float* b, int64_t panel_stride, float* c,
                   int64_t ldc, int64_t rows, int64_t columns, int64_t depth, bool add,
                   std::initializer_list<Upcoming*> upcoming = {}) {
  alignas(64) float edge[kTileRows * kTileColumns];
  const int64_t strips = RoundUp(rows, kTileRows) / kTileRows;
  const auto tile = [&](int64_t m, const float* panel, float* to, int64_t width, bool more) {
    const float* next = panel + panel_stride + m / kTileRows * depth / strips * kTileColumns;
    int64_t step = kLine;
    if (!packed) return TileByRows(depth, a + m * lda, lda, panel, to, width, more, next);
    if (rows - m <= kFewRows) {
      return TilePacked<kFirst, kFewRows>(depth, a + m * depth, panel, to, width, more, next, step);
    }
    for (Upcoming* part : upcoming) {
      if (!part->Take(depth / kTermsOfLine, &next, &step)) continue;
      return TilePacked<kSecond>(depth, a + m * depth, panel, to, width, more, next, step);
    }
    TilePacked(depth, a + m * depth, panel, to, width, more, next, step);
  };
  for (int64_t n = 0; n < columns; n += kTileColumns) {
    const float* panel = b + n / kTileColumns * panel_stride;
    for (int64_t m = 0; m < rows; m += kTileRows) {
      const int64_t height = std::min<int64_t>(kTileRows, rows - m),
                    width = std::min<int64_t>(kTileColumns, columns - n);
      float* to = c + m * ldc + n;
      if (height == kTileRows && width == kTileColumns) {
        tile(m, panel, to, ldc, add);
        continue;
      }
      tile(m, panel, edge, kTileColumns, false);
      for (int64_t i = 0; i < height; ++i) {
        for (int64_t j = 0; j < width; ++j) to[i * ldc + j] = (add ? to[i * ldc + j] : 0) + edge[i * kTileColumns + j];
      }
    }
  }
}

// Buffers of a thread.
struct GemmBuffers {
  AlignedBuffer a, b;
  static GemmBuffers& Get() {
    static thread_local GemmBuffers buffers;
    return buffers;
  }
};

// c [rows, columns of ldc] = a [rows, depth] b [depth, columns], or += with `add`; b is packed in full.
void MultiplyPacked(const Matrix& a, const float* b, float* c, int64_t ldc, int64_t rows, int64_t columns,
                    int64_t depth, bool add) {
  constexpr int64_t kFewColumns = 8 * kTileColumns;  // for which packing rows takes longer than it saves
  AlignedBuffer& packed = GemmBuffers::Get().a;
  packed.Resize(RoundUp(kBlockRows, kTileRows) * kDepth);
  for (int64_t m = 0; m < rows; m += kBlockRows) {
    const int64_t height = std::min(kBlockRows, rows - m);
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int64_t terms = std::min(kDepth, depth - k);
      const Matrix block = a.At(m, k);
      const bool pack = columns > kFewColumns || a.column != 1 || height % kTileRows != 0;
      if (pack) PackRows(block, height, terms, packed.data());
      MultiplyBlock(pack ? packed.data() : block.data, a.row, pack, b + k * kTileColumns, depth * kTileColumns,
                    c + m * ldc, ldc, height, columns, terms, add || k > 0);
    }
  }
}

// The same for a b that is not packed.
void Multiply(const Matrix& a, const Matrix& b, float* c, int64_t ldc, int64_t rows, int64_t columns, int64_t depth,
              bool add) {
  AlignedBuffer &packed_a = GemmBuffers::Get().a, &packed_b = GemmBuffers::Get().b;
  packed_a.Resize(RoundUp(kBlockRows, kTileRows) * kDepth);
  packed_b.Resize(PackedSize(kDepth, columns));
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t terms = std::min(kDepth, depth - k);
    PackColumns(b.At(k, 0), terms, columns, packed_b.data());
    const int64_t next_terms = std::min(kDepth, depth - k - kDepth);
    Upcoming upcoming_b;
    if (b.column == 1) upcoming_b = Upcoming(b.At(k + kDepth, 0), next_terms, columns);
    for (int64_t m = 0; m < rows; m += kBlockRows) {
      const int64_t height = std::min(kBlockRows, rows - m), left = rows - m - kBlockRows;
      Upcoming upcoming_a;
      if (a.row == 1) {
        upcoming_a = left > 0 ? Upcoming(a.At(m + kBlockRows, k).Transposed(), terms, std::min(kBlockRows, left))
                              : Upcoming(a.At(0, k + kDepth).Transposed(), next_terms, std::min(kBlockRows, rows));
      }
      PackRows(a.At(m, k), height, terms, packed_a.data());
      MultiplyBlock(packed_a.data(), 0, true, packed_b.data(), terms * kTileColumns, c + m * ldc, ldc, height, columns,
                    terms, add || k > 0, {&upcoming_a, &upcoming_b});
    }
  }
}

}  // namespace

#endif  // MINDSPORE_PALM_CPU_GEMM_H_
