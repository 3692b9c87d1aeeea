// Whether packing copies every element to its place, and nothing after the last one.
//
// Prints a line for each panel, order and size at which it does not.
#include <cstdio>
#include <vector>

#include "gemm.h"

namespace {

constexpr float kUntouched = -1;

template <int kPanel>
void Check(int64_t count, int64_t depth, bool lines_side_by_side) {
  const int64_t stride = (lines_side_by_side ? count : depth) + 3, step = lines_side_by_side ? stride : 1,
                line = lines_side_by_side ? 1 : stride;
  std::vector<float> from(stride * (lines_side_by_side ? depth : count) + kLanes);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<float>(i);
  const int64_t size = RoundUp(count, kPanel) * depth;
  std::vector<float> to(size + 2 * kLanes, kUntouched);
  Pack<kPanel>(from.data(), step, line, count, depth, to.data());
  bool right = true;
  for (int64_t n = 0; n < RoundUp(count, kPanel); ++n) {
    for (int64_t k = 0; k < depth; ++k) {
      const float expected = n < count ? from[k * step + n * line] : 0;
      right = right && to[n / kPanel * kPanel * depth + k * kPanel + n % kPanel] == expected;
    }
  }
  for (size_t i = size; i < to.size(); ++i) right = right && to[i] == kUntouched;
  if (!right) {
    std::printf("panel %d, count %d, depth %d, %s side by side\n", kPanel, int(count), int(depth),
                lines_side_by_side ? "lines" : "terms");
  }
}

template <int kPanel>
void CheckSizes() {
  for (int64_t depth = 1; depth <= 70; ++depth) {
    for (int64_t count : {1, kPanel - 1, kPanel, kPanel + 1, 3 * kPanel}) {
      if (count == 0) continue;
      Check<kPanel>(count, depth, false);
      Check<kPanel>(count, depth, true);
    }
  }
}

}  // namespace

int main() {
  CheckSizes<1>();
  CheckSizes<2>();
  CheckSizes<3>();
  CheckSizes<5>();
  CheckSizes<6>();
  CheckSizes<8>();
  CheckSizes<12>();
  CheckSizes<16>();
  CheckSizes<32>();
}
