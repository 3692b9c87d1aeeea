// All cores read memory, block after block, so that no cache holds the next one. Each core reads at four positions of its
// part in turn, the fastest way found.
#include <omp.h>

#include <cstdint>
#include <cstdlib>

typedef float Vector __attribute__((vector_size(64)));

static float Read(const float *part, int64_t count) {
  constexpr int kStreams = 4, kLanes = 16;
  const int64_t run = count / kStreams;
  Vector sums[kStreams] = {};
  for (int64_t i = 0; i < run; i += kLanes) {
    for (int stream = 0; stream < kStreams; ++stream) {
      sums[stream] += *reinterpret_cast<const Vector *>(part + stream * run + i);
    }
  }
  const Vector sum = sums[0] + sums[1] + sums[2] + sums[3];
  return sum[0] + sum[kLanes - 1];
}

constexpr int64_t kBlocks = 8, kBlock = int64_t{1} << 24;  // numbers: 64 MB each

// Reads one block; returns the number of bytes.
extern "C" int64_t ReadBlock(int64_t number) {
  static float *numbers = nullptr;
  static volatile float used;  // uses the sum, so that the compiler keeps the reads
  if (numbers == nullptr) {
    numbers = static_cast<float *>(std::aligned_alloc(64, kBlocks * kBlock * sizeof(float)));
#pragma omp parallel for
    for (int64_t i = 0; i < kBlocks * kBlock; ++i) numbers[i] = static_cast<float>(i % 7);
  }
  const float *block = numbers + number % kBlocks * kBlock;
  int64_t read = 0;
  float sum = 0;
#pragma omp parallel reduction(+ : sum, read)
  {
    const int64_t part = kBlock / omp_get_num_threads() / 64 * 64;
    sum += Read(block + omp_get_thread_num() * part, part);
    read += part;
  }
  used = sum;
  return read * static_cast<int64_t>(sizeof(float));
}
