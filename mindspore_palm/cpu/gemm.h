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

#include "vector.h"

namespace {

constexpr int kTileRows = kLanes == 16 ? 12 : 6;  // with two vectors a row, as many sums as registers allow
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

constexpr Matrix kNothing = {nullptr, 0, 0};

inline Matrix RowMajor(const float* data, int64_t width) { return {data, width, 1}; }

// c [kTileRows, kTileColumns of ldc] = a b, or += with `add`. Element (i, k) of a is a[i * a_row + k * a_step]; row k
// of b begins at b + k * kTileColumns. Meanwhile lines of memory, `step` floats apart, come into the cache from `next`
// on: the tiles of half a block take a panel in.
inline __attribute__((always_inline)) void Tile(int64_t depth, const float* a, int64_t a_row, int64_t a_step,
                                                const float* b, float* c, int64_t ldc, bool add, const float* next,
                                                int64_t step) {
  for (int i = 0; i < kTileRows; ++i) {
    __builtin_prefetch(c + i * ldc);
    __builtin_prefetch(c + i * ldc + kTileColumns - 1);
  }
  Vector sums[kTileRows][2] = {};
  const auto add_terms = [&](int64_t count) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int64_t k = 0; k < count; ++k, a += a_step, b += kTileColumns) {
      const Vector left = Load(b), right = Load(b + kLanes);
#pragma GCC unroll 12
      for (int i = 0; i < kTileRows; ++i) {
        const Vector factor = Broadcast(a[i * a_row]);
        sums[i][0] += factor * left;
        sums[i][1] += factor * right;
      }
    }
  };
  for (; depth >= kTermsOfLine; depth -= kTermsOfLine, next += step) {
    __builtin_prefetch(next);
    add_terms(kTermsOfLine);
  }
  add_terms(depth);
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) {
    float* to = c + i * ldc;
    Store(to, add ? Load(to) + sums[i][0] : sums[i][0]);
    Store(to + kLanes, add ? Load(to + kLanes) + sums[i][1] : sums[i][1]);
  }
}

// The three ways in which a lies: packed, by rows, and by columns.
__attribute__((noinline)) void TilePacked(int64_t depth, const float* a, const float* b, float* c, int64_t ldc,
                                          bool add, const float* next, int64_t step) {
  Tile(depth, a, 1, kTileRows, b, c, ldc, add, next, step);
}
__attribute__((noinline)) void TileByRows(int64_t depth, const float* a, int64_t lda, const float* b, float* c,
                                          int64_t ldc, bool add, const float* next) {
  Tile(depth, a, lda, 1, b, c, ldc, add, next, kLine);
}
__attribute__((noinline)) void TileByColumns(int64_t depth, const float* a, int64_t lda, const float* b, float* c,
                                             int64_t ldc, bool add) {
  Tile(depth, a, 1, lda, b, c, ldc, add, b, kLine);
}

// Transposes a square of kLanes vectors, in steps that swap what is 1, 2, 4 ... lanes apart.
inline __attribute__((always_inline)) void Transpose(Vector* v) {
#pragma GCC unroll 4
  for (int distance = 1; distance < kLanes; distance *= 2) {
    IntVector low, high;
    for (int i = 0; i < kLanes; ++i) {
      low[i] = (i & distance) ? kLanes + i - distance : i;
      high[i] = (i & distance) ? kLanes + i : i + distance;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & distance) continue;
      const Vector first = v[i], second = v[i + distance];
      v[i] = __builtin_shuffle(first, second, low);
      v[i + distance] = __builtin_shuffle(first, second, high);
    }
  }
}

// Copies kPanel floats, without a call.
template <int kPanel>
inline void CopyPanel(const float* from, float* to) {
  constexpr int kVectors = kPanel / kLanes * kLanes;
  for (int i = 0; i < kVectors; i += kLanes) Store(to + i, Load(from + i));
  float rest[kPanel - kVectors + 1];
  for (int i = kVectors; i < kPanel; ++i) rest[i - kVectors] = from[i];
  for (int i = kVectors; i < kPanel; ++i) to[i] = rest[i - kVectors];
}

// Packs terms first .. end of the kPanel lines of a panel, of which element (k, i) is from[k * step + i * line]; of the
// lines, `count` exist, and the others become zeros.
template <int kPanel>
inline void PackPanel(const float* from, int64_t step, int64_t line, int64_t count, int64_t first, int64_t end,
                      float* panel) {
  if (count < kPanel) {
    for (int64_t k = first; k < end; ++k) {
      for (int64_t i = 0; i < kPanel; ++i) panel[k * kPanel + i] = i < count ? from[k * step + i * line] : 0;
    }
    return;
  }
  if (line == 1) {
    for (int64_t k = first; k < end; ++k) CopyPanel<kPanel>(from + k * step, panel + k * kPanel);
    return;
  }
  int64_t k = first;
  if (kPanel % kLanes == 0) {
    for (; k + kLanes <= end; k += kLanes) {
      for (int i = 0; i < kPanel; i += kLanes) {
        Vector square[kLanes];
        for (int j = 0; j < kLanes; ++j) square[j] = Load(from + k + (i + j) * line);
        Transpose(square);
        for (int j = 0; j < kLanes; ++j) Store(panel + (k + j) * kPanel + i, square[j]);
      }
    }
  }
  for (; k < end; ++k) {
#pragma GCC unroll 32
    for (int i = 0; i < kPanel; ++i) panel[k * kPanel + i] = from[k * step + i * line];
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

// One block: c [rows, columns of ldc] = or += a b. b is packed; its panels lie `panel_stride` floats apart. Strips of a
// are packed, or are rows of `lda` floats. What comes into the cache meanwhile is the next panel, or else `following`,
// which will be packed next and has contiguous rows.
void MultiplyBlock(const float* a, int64_t lda, bool packed, const float* b, int64_t panel_stride, float* c,
                   int64_t ldc, int64_t rows, int64_t columns, int64_t depth, bool add,
                   Matrix following = kNothing) {
  alignas(64) float edge[kTileRows * kTileColumns];
  const int64_t strips = RoundUp(rows, kTileRows) / kTileRows;
  const auto tile = [&](int64_t m, int64_t n, const float* panel, float* to, int64_t width, bool more) {
    const int64_t first = m / kTileRows * depth / strips;
    const float* next = panel + panel_stride + first * kTileColumns;
    if (!packed) {
      TileByRows(depth, a + m * lda, lda, panel, to, width, more, next);
    } else if (following.data != nullptr) {
      TilePacked(depth, a + m * depth, panel, to, width, more, following.At(first, n).data, following.row);
    } else {
      TilePacked(depth, a + m * depth, panel, to, width, more, next, kLine);
    }
  };
  for (int64_t n = 0; n < columns; n += kTileColumns) {
    const float* panel = b + n / kTileColumns * panel_stride;
    for (int64_t m = 0; m < rows; m += kTileRows) {
      const int64_t height = std::min<int64_t>(kTileRows, rows - m),
                    width = std::min<int64_t>(kTileColumns, columns - n);
      float* to = c + m * ldc + n;
      if (height == kTileRows && width == kTileColumns) {
        tile(m, n, panel, to, ldc, add);
        continue;
      }
      tile(m, n, panel, edge, kTileColumns, false);
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
    const bool follows = b.column == 1 && k + kDepth < depth;
    for (int64_t m = 0; m < rows; m += kBlockRows) {
      const int64_t height = std::min(kBlockRows, rows - m);
      PackRows(a.At(m, k), height, terms, packed_a.data());
      MultiplyBlock(packed_a.data(), 0, true, packed_b.data(), terms * kTileColumns, c + m * ldc, ldc, height, columns,
                    terms, add || k > 0, follows && m + kBlockRows >= rows ? b.At(k + kDepth, 0) : kNothing);
    }
  }
}

}  // namespace

#endif  // MINDSPORE_PALM_CPU_GEMM_H_
