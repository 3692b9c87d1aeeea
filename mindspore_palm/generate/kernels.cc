// The parts of a block for few rows, on one CPU: functions that ops.Custom calls ("aot").
//
// MindSpore's CPU products are made for many rows: with one row, oneDNN's read weights at a third of what memory gives.
// And each of its kernels costs some microseconds before it does anything, of which a norm has eight and a rotation
// eight. Parameters are inputs, then the output, all float32 but the slots.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// Threads that take blocks of a job until there are none. Whoever brings the job takes blocks as well, and waits for
// blocks alone, never for a thread: on a busy machine, where OpenMP waits for every one of its threads, that is 4 times
// faster.
class Pool {
 public:
  static Pool &Get() {
    static Pool *pool = new Pool();  // its threads live as long as the process
    return *pool;
  }

  void Run(int64_t blocks, const std::function<void(int64_t)> &work) {
    std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);
    if (threads_ == 1 || blocks == 1 || !alone) {
      for (int64_t block = 0; block < blocks; ++block) work(block);
      return;
    }
    auto job = std::make_shared<Job>(blocks, &work);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      count_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    TakeBlocks(job.get());
    while (job->done.load(std::memory_order_acquire) < blocks) std::this_thread::yield();
  }

 private:
  struct Job {
    Job(int64_t blocks, const std::function<void(int64_t)> *work) : blocks(blocks), work(work) {}
    const int64_t blocks;
    const std::function<void(int64_t)> *work;  // gone when all blocks are done, and then nobody calls it
    std::atomic<int64_t> next{0}, done{0};
  };

  Pool() {
    cpu_set_t cores;
    threads_ = sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
    for (int i = 1; i < threads_; ++i) std::thread(&Pool::Serve, this).detach();
  }

  static void TakeBlocks(Job *job) {
    for (int64_t block; (block = job->next.fetch_add(1)) < job->blocks;) {
      (*job->work)(block);
      job->done.fetch_add(1, std::memory_order_release);
    }
  }

  void Serve() {
    constexpr auto kAwake = std::chrono::microseconds(30);  // the next job is often near, and waking up takes as long
    for (uint64_t seen = 0;;) {
      const auto end = std::chrono::steady_clock::now() + kAwake;
      while (count_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < end) {
      }
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return count_.load() != seen; });
        seen = count_.load();
        job = job_;
      }
      TakeBlocks(job.get());
    }
  }

  int threads_ = 1;
  std::mutex busy_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> count_{0};
  std::shared_ptr<Job> job_;
};

constexpr int64_t kColumns = 256;    // of a block: its sums stay in the first cache
constexpr int64_t kMostRows = 16;    // of x; mindspore_palm/generate/kernels.py has the same

// Columns first .. first + width of y [M, N] = x [M, D] w [D, N].
void Columns(const float *x, const float *w, float *y, int64_t M, int64_t D, int64_t N, int64_t first, int64_t width) {
  float sums[kMostRows][kColumns] = {};
  int64_t d = 0;
  for (; d + 4 <= D; d += 4) {
    const float *w0 = w + d * N + first, *w1 = w0 + N, *w2 = w1 + N, *w3 = w2 + N;
    for (int64_t m = 0; m < M; ++m) {
      const float *a = x + m * D + d;
      float *sum = sums[m];
#pragma omp simd
      for (int64_t n = 0; n < width; ++n) sum[n] += a[0] * w0[n] + a[1] * w1[n] + a[2] * w2[n] + a[3] * w3[n];
    }
  }
  for (; d < D; ++d) {
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < width; ++n) sums[m][n] += x[m * D + d] * w[d * N + first + n];
    }
  }
  for (int64_t m = 0; m < M; ++m) std::memcpy(y + m * N + first, sums[m], width * sizeof(float));
}

float Dot(const float *a, const float *b, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// softmax(q k^T) v for one query over the first `seen` positions of a cache; q is scaled already.
void Query(const float *q, const float *keys, const float *values, float *out, int64_t seen, int64_t dim,
           float *weights) {
  float largest = -INFINITY, total = 0;
  for (int64_t c = 0; c < seen; ++c) {
    weights[c] = Dot(q, keys + c * dim, dim);
    largest = std::max(largest, weights[c]);
  }
#pragma omp simd reduction(+ : total)
  for (int64_t c = 0; c < seen; ++c) {
    weights[c] = std::exp(weights[c] - largest);
    total += weights[c];
  }
  std::fill(out, out + dim, 0.0f);
  for (int64_t c = 0; c < seen; ++c) {
    const float weight = weights[c] / total, *v = values + c * dim;
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) out[i] += weight * v[i];
  }
}

}  // namespace

// x [M, D], w [D, N] to x w [M, N].
extern "C" int FewRows(int, void **params, int *, int64_t **shapes, const char **, void *, void *) {
  const auto *x = static_cast<float *>(params[0]), *w = static_cast<float *>(params[1]);
  auto *y = static_cast<float *>(params[2]);
  const int64_t M = shapes[0][0], D = shapes[0][1], N = shapes[1][1];
  Pool::Get().Run((N + kColumns - 1) / kColumns, [=](int64_t block) {
    const int64_t first = block * kColumns;
    Columns(x, w, y, M, D, N, first, std::min(kColumns, N - first));
  });
  return 0;
}

// x [M, D], w [N, D] to x w^T [M, N].
extern "C" int FewRowsTransposed(int, void **params, int *, int64_t **shapes, const char **, void *, void *) {
  const auto *x = static_cast<float *>(params[0]), *w = static_cast<float *>(params[1]);
  auto *y = static_cast<float *>(params[2]);
  const int64_t M = shapes[0][0], D = shapes[0][1], N = shapes[1][0];
  Pool::Get().Run((N + kColumns - 1) / kColumns, [=](int64_t block) {
    for (int64_t n = block * kColumns; n < std::min(N, (block + 1) * kColumns); ++n) {
      for (int64_t m = 0; m < M; ++m) y[m * N + n] = Dot(x + m * D, w + n * D, D);
    }
  });
  return 0;
}

// q [B, 1, H, K], keys and values [B, C, K] or [B, H, C, K], slots int32 [.., n] whose last number is the position:
// attention of each query to the positions up to its own, [B, 1, H, K].
extern "C" int OneQuery(int, void **params, int *ranks, int64_t **shapes, const char **, void *, void *) {
  const auto *q = static_cast<float *>(params[0]), *keys = static_cast<float *>(params[1]);
  const auto *values = static_cast<float *>(params[2]);
  const auto *slots = static_cast<int32_t *>(params[3]);
  auto *out = static_cast<float *>(params[4]);
  const int64_t batch = shapes[0][0], heads = shapes[0][2], dim = shapes[0][3], context = shapes[1][ranks[1] - 2];
  const int64_t slot = shapes[3][1], per_sequence = shapes[3][0] / batch;
  const bool one_head = ranks[1] == 3;
  Pool::Get().Run(batch * heads, [=](int64_t row) {
    const int64_t sequence = row / heads, cache = (one_head ? sequence : row) * context * dim;
    const int64_t seen = 1 + slots[sequence * per_sequence * slot + slot - 1];
    std::vector<float> weights(seen);
    Query(q + row * dim, keys + cache, values + cache, out + row * dim, seen, dim, weights.data());
  });
  return 0;
}

// x [M, D] and scale [D] to x / rms(x) * (1 + scale) [M, D].
extern "C" int Norm(int, void **params, int *, int64_t **shapes, const char **, void *, void *) {
  const auto *x = static_cast<float *>(params[0]), *scale = static_cast<float *>(params[1]);
  auto *y = static_cast<float *>(params[2]);
  const int64_t M = shapes[0][0], D = shapes[0][1];
  for (int64_t m = 0; m < M; ++m, x += D, y += D) {
    const float factor = 1.0f / std::sqrt(Dot(x, x, D) / static_cast<float>(D) + 1e-6f);
#pragma omp simd
    for (int64_t d = 0; d < D; ++d) y[d] = x[d] * factor * (1.0f + scale[d]);
  }
  return 0;
}

// gate and up [M, F] to swish(gate) * up [M, F].
extern "C" int SwiGLU(int, void **params, int *, int64_t **shapes, const char **, void *, void *) {
  const auto *gate = static_cast<float *>(params[0]), *up = static_cast<float *>(params[1]);
  auto *y = static_cast<float *>(params[2]);
  const int64_t count = shapes[0][0] * shapes[0][1];
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
  return 0;
}

// x [B, Q, H, K] turned by cos and sin [B, Q, 1, K/2]: pairs of the two halves.
extern "C" int Turn(int, void **params, int *, int64_t **shapes, const char **, void *, void *) {
  const auto *x = static_cast<float *>(params[0]);
  const auto *cos = static_cast<float *>(params[1]), *sin = static_cast<float *>(params[2]);
  auto *y = static_cast<float *>(params[3]);
  const int64_t positions = shapes[0][0] * shapes[0][1], heads = shapes[0][2], half = shapes[0][3] / 2;
  for (int64_t p = 0; p < positions; ++p, cos += half, sin += half) {
    for (int64_t h = 0; h < heads; ++h, x += 2 * half, y += 2 * half) {
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        y[i] = x[i] * cos[i] - x[half + i] * sin[i];
        y[half + i] = x[half + i] * cos[i] + x[i] * sin[i];
      }
    }
  }
  return 0;
}
