// How a pass over the rows of a batch is cut into tasks, and the buffers of those.
#ifndef MINDSPORE_PALM_CPU_TRAINING_TASKS_H_
#define MINDSPORE_PALM_CPU_TRAINING_TASKS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gemm.h"
#include "pool.h"
#include "vector.h"

namespace {

// Calls work(first, end) for ranges of rows, each as a task. Ranges are whole strips, at most kBlockRows, and become
// shorter towards the end: threads are done at about the same time, though some may be slower.
template <typename Work>
void ForRows(ThreadPool& pool, int64_t rows, const Work& work) {
  std::vector<int64_t> starts;
  for (int64_t row = 0; row < rows;) {
    starts.push_back(row);
    row += std::clamp<int64_t>(RoundUp((rows - row) / (2 * pool.threads()), kTileRows), 2 * kTileRows, kBlockRows);
  }
  starts.push_back(rows);
  pool.Run(static_cast<int64_t>(starts.size()) - 1, [&](int64_t task) { work(starts[task], starts[task + 1]); });
}

// A list of panels of several matrices to be packed, each task some of them.
class Packing {
 public:
  void Add(const Matrix& b, int64_t depth, int64_t columns, float* to) {
    parts_.push_back({b, depth, columns, to});
    panels_ += Panels(columns);
  }
  void Run(ThreadPool& pool) const {
    ForRanges(pool, panels_, std::max<int64_t>(1, panels_ / (8 * pool.threads())), [&](int64_t first, int64_t end) {
      for (const Part& part : parts_) {
        const int64_t panels = Panels(part.columns);
        if (first < panels && end > 0) {
          const int64_t n = std::max<int64_t>(0, first) * kTileColumns, to = std::min(panels, end) * kTileColumns;
          PackColumns(part.b.At(0, n), part.depth, std::min(part.columns, to) - n, part.to + n * part.depth);
        }
        first -= panels;
        end -= panels;
      }
    });
  }

 private:
  struct Part {
    Matrix b;
    int64_t depth, columns;
    float* to;
  };
  static int64_t Panels(int64_t columns) { return RoundUp(columns, kTileColumns) / kTileColumns; }
  std::vector<Part> parts_;
  int64_t panels_ = 0;
};

// A scratch of this thread of at least `size` floats.
float* Scratch(int64_t size) {
  static thread_local AlignedBuffer buffer;
  buffer.Resize(size);
  return buffer.data();
}

// Sums over rows that several tasks add to: of kTileRows rows one after another, then of these sums in order. So the
// bits do not depend on the tasks of ForRows.
class RowSums {
 public:
  void Resize(int64_t rows, int64_t width) {
    ranges_ = (rows + kTileRows - 1) / kTileRows;
    width_ = width;
    sums_.Resize(ranges_ * width);
  }

  // Where row t is added, cleared at the first row of its range.
  float* Row(int64_t t) {
    float* sums = sums_.data() + t / kTileRows * width_;
    if (t % kTileRows == 0) std::fill_n(sums, width_, 0.0f);
    return sums;
  }

  // out [width] = the sum of all rows.
  void Sum(float* out) {
    std::copy_n(sums_.data(), width_, out);
    for (int64_t i = 1; i < ranges_; ++i) {
      for (int64_t k = 0; k < width_; ++k) out[k] += sums_.data()[i * width_ + k];
    }
  }

 private:
  AlignedBuffer sums_;
  int64_t ranges_ = 0, width_ = 0;
};

}  // namespace

#endif  // MINDSPORE_PALM_CPU_TRAINING_TASKS_H_
