// Bytes a second that all cores read from memory: the fastest of many passes over blocks that no cache holds.
#include <chrono>
#include <cstdint>
#include <cstdlib>

extern "C" double bandwidth(int64_t passes) {
  constexpr int64_t kCount = int64_t{1} << 27, kBlock = int64_t{1} << 24;  // numbers: 512 MB, read 64 MB at a time
  auto *numbers = static_cast<float *>(std::aligned_alloc(64, kCount * sizeof(float)));
#pragma omp parallel for
  for (int64_t i = 0; i < kCount; ++i) numbers[i] = static_cast<float>(i % 7);
  double fastest = 0;
  float sum = 0;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const float *block = numbers + pass % (kCount / kBlock) * kBlock;
    const auto start = std::chrono::steady_clock::now();
#pragma omp parallel for simd reduction(+ : sum)
    for (int64_t i = 0; i < kBlock; ++i) sum += block[i];
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double speed = kBlock * sizeof(float) / seconds.count();
    if (speed > fastest) fastest = speed;
  }
  std::free(numbers);
  return sum < 0 ? 0 : fastest;  // the sum is used, so that it is computed
}
