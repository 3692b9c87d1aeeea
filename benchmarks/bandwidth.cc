// Bytes a second that all cores read from memory: the fastest of many passes over blocks that no cache holds. Each core
// reads at four places of its part in turn, as fast a way as was found.
#include <omp.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>

typedef float Vector __attribute__((vector_size(64)));

static float Read(const float *part, int64_t count) {
  constexpr int kPlaces = 4, kLanes = 16;
  const int64_t run = count / kPlaces;
  Vector sums[kPlaces] = {};
  for (int64_t i = 0; i < run; i += kLanes) {
    for (int place = 0; place < kPlaces; ++place) {
      sums[place] += *reinterpret_cast<const Vector *>(part + place * run + i);
    }
  }
  const Vector sum = sums[0] + sums[1] + sums[2] + sums[3];
  return sum[0] + sum[kLanes - 1];
}

extern "C" double bandwidth(int64_t passes) {
  constexpr int64_t kCount = int64_t{1} << 27, kBlock = int64_t{1} << 24;  // numbers: 512 MB, read 64 MB at a time
  auto *numbers = static_cast<float *>(std::aligned_alloc(64, kCount * sizeof(float)));
#pragma omp parallel for
  for (int64_t i = 0; i < kCount; ++i) numbers[i] = static_cast<float>(i % 7);
  double fastest = 0;
  float sum = 0;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const float *block = numbers + pass % (kCount / kBlock) * kBlock;
    int64_t read = 0;
    const auto start = std::chrono::steady_clock::now();
#pragma omp parallel reduction(+ : sum, read)
    {
      const int64_t part = kBlock / omp_get_num_threads() / 64 * 64;
      sum += Read(block + omp_get_thread_num() * part, part);
      read += part;
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double speed = read * sizeof(float) / seconds.count();
    if (speed > fastest) fastest = speed;
  }
  std::free(numbers);
  return sum < 0 ? 0 : fastest;  // the sum is used, so that it is computed
}
