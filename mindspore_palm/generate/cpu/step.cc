// One more token of every sequence, on one CPU: the whole network as one function that ops.Custom calls ("aot").
//
// A step reads every weight once and computes little with it, so memory sets its speed, and what counts is how weights
// are read: several whole rows at a time, side by side, from their beginning to their end. By columns, or by
// MindSpore's own products, which are made for many rows of x (MS-41), it takes two to three times as long. Between the
// products lies work of microseconds, of which an op of a graph costs as many before it does anything.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include <sched.h>

namespace {

// ---- Numbers, kLanes at a time ----

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(float)), may_alias));

inline Vector Load(const float *from) { return *reinterpret_cast<const Vector *>(from); }
inline void Store(float *to, Vector v) { *reinterpret_cast<Vector *>(to) = v; }
inline Vector All(float x) { return x - Vector{}; }  // of a sum with zero, the addition would remain: -0 + 0 is 0

// The sums of four vectors: in each step, what were two vectors are the halves of one.
inline void SumEach(const Vector *v, float *sums) {
  Integers even, odd, low, high, lane;
  for (int i = 0; i < kLanes; ++i) {
    even[i] = i / 2 * 2 + i % 2 * kLanes;
    odd[i] = even[i] + 1;
    low[i] = i / 4 * 4 + i % 2 + i / 2 % 2 * kLanes;
    high[i] = low[i] + 2;
    lane[i] = i;
  }
  const Vector one = __builtin_shuffle(v[0], v[1], even) + __builtin_shuffle(v[0], v[1], odd);
  const Vector other = __builtin_shuffle(v[2], v[3], even) + __builtin_shuffle(v[2], v[3], odd);
  Vector all = __builtin_shuffle(one, other, low) + __builtin_shuffle(one, other, high);
#pragma GCC unroll 2
  for (int width = kLanes / 2; width >= 4; width /= 2) all += __builtin_shuffle(all, (lane + width) % kLanes);
  for (int i = 0; i < 4; ++i) sums[i] = all[i];
}

inline float Sum(Vector v) {
  const Vector four[4] = {v};
  float sums[4];
  SumEach(four, sums);
  return sums[0];
}

// e^x to 2e-7: 2^n e^r, |r| <= log(2) / 2. What is beyond float32 becomes e^-87 and e^88; NaN stays.
inline Vector Exp(Vector x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: beside it, a number has no places behind the point
  const Vector low = All(-87.0f), high = All(88.0f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vector shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector power = All(1.0f / 5040);
  for (float factorial : {720.0f, 120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f}) power = power * r + 1.0f / factorial;
  return power * reinterpret_cast<Vector>((reinterpret_cast<Integers>(shifted) << 23) + (127 << 23));
}

float Exp(float x) { return Exp(All(x))[0]; }

float Dot(const float *a, const float *b, int64_t count) {
  Vector sums = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sums += Load(a + i) * Load(b + i);
  float sum = Sum(sums);
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// Numbers that begin with a line of the caches: what crosses lines is loaded at half the speed.
class Numbers {
 public:
  ~Numbers() { std::free(data_); }
  float *data() { return data_; }
  void Resize(int64_t size) {
    if (size <= size_) return;
    std::free(data_);
    size_ = 0;
    data_ = static_cast<float *>(std::aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64));
    if (data_ == nullptr) throw std::bad_alloc();
    size_ = size;
  }

 private:
  float *data_ = nullptr;
  int64_t size_ = 0;
};

// ---- Threads ----

// Threads that take blocks of a job until there are none. Whoever brings the job takes blocks as well, and waits for
// blocks alone, never for a thread: on a busy machine, where OpenMP waits for every one of its threads, that is 4 times
// faster.
class Pool {
 public:
  static Pool &Get() {
    static Pool *pool = new Pool();  // its threads live as long as the process
    return *pool;
  }

  int threads() const { return threads_; }

  void Run(int64_t blocks, const std::function<void(int64_t)> &work) {
    if (threads_ == 1 || blocks == 1) {
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
    threads_ = Processors();
    for (int i = 1; i < threads_; ++i) std::thread(&Pool::Serve, this).detach();
  }

  // How many this process may use, as Python has read it from its container's limits; 16 at most, as memory is no faster
  // for more. Not OMP_NUM_THREADS: MindSpore itself sets it to 1 (MS-33).
  static int Processors() {
    cpu_set_t cores;
    int count = sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
    if (const char *set = std::getenv("MINDSPORE_PALM_PROCESSORS")) count = std::min(count, std::atoi(set));
    return std::clamp(count, 1, 16);
  }

  static void TakeBlocks(Job *job) {
    for (int64_t block; (block = job->next.fetch_add(1)) < job->blocks;) {
      (*job->work)(block);
      job->done.fetch_add(1, std::memory_order_release);
    }
  }

  void Serve() {
    constexpr auto kAwake = std::chrono::microseconds(50);  // the next job is often near, and waking up takes as long
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
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> count_{0};
  std::shared_ptr<Job> job_;
};

// ---- Products ----

constexpr int64_t kAhead = 64;  // numbers; many rows side by side are more than the processor itself reads ahead

// y [kM, kColumns * kLanes of N] += x [kM, kRows of x_width] w [kRows, kColumns * kLanes of N].
template <int kM, int kColumns, int kRows>
inline void Tile(const float *x, int64_t x_width, const float *w, float *y, int64_t N) {
  Vector sums[kM][kColumns];
  for (int m = 0; m < kM; ++m) {
    for (int c = 0; c < kColumns; ++c) sums[m][c] = Load(y + m * N + c * kLanes);
  }
#pragma GCC unroll 1  // unrolled, GCC 12 runs out of registers
  for (int r = 0; r < kRows; ++r) {
    Vector row[kColumns];
    for (int c = 0; c < kColumns; ++c) {
      __builtin_prefetch(w + r * N + c * kLanes + kAhead);
      row[c] = Load(w + r * N + c * kLanes);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      const Vector factor = All(x[m * x_width + r]);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sums[m][c] += factor * row[c];
    }
  }
  for (int m = 0; m < kM; ++m) {
    for (int c = 0; c < kColumns; ++c) Store(y + m * N + c * kLanes, sums[m][c]);
  }
}

// kRows rows of w into kColumns * kLanes columns of y, tile by tile of its rows; y has two or more.
template <int kColumns, int kRows>
void AddTiles(const float *x, int64_t x_width, const float *w, float *y, int64_t M, int64_t N) {
  constexpr int64_t kMost = 8;
  constexpr decltype(&Tile<2, kColumns, kRows>) kTiles[] = {
      Tile<2, kColumns, kRows>, Tile<3, kColumns, kRows>, Tile<4, kColumns, kRows>, Tile<5, kColumns, kRows>,
      Tile<6, kColumns, kRows>, Tile<7, kColumns, kRows>, Tile<8, kColumns, kRows>};
  const int64_t tiles = (M + kMost - 1) / kMost;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t m = tile * M / tiles, count = (tile + 1) * M / tiles - m;
    kTiles[count - 2](x + m * x_width, x_width, w, y + m * N, N);
  }
}

// kRows rows of w into columns first .. end of y.
template <int kRows>
void AddRows(const float *x, int64_t x_width, const float *w, float *y, int64_t M, int64_t N, int64_t first,
             int64_t end) {
  int64_t n = first;
  for (; n + 2 * kLanes <= end; n += 2 * kLanes) AddTiles<2, kRows>(x, x_width, w + n, y + n, M, N);
  for (; n + kLanes <= end; n += kLanes) AddTiles<1, kRows>(x, x_width, w + n, y + n, M, N);
  for (; n < end; ++n) {
    for (int64_t m = 0; m < M; ++m) {
      for (int r = 0; r < kRows; ++r) y[m * N + n] += x[m * x_width + r] * w[r * N + n];
    }
  }
}

// The same for one row of x, into all of y [N].
template <int kRows>
void AddRowsToOne(const float *x, const float *w, float *y, int64_t N) {
  Vector factors[kRows];
  for (int r = 0; r < kRows; ++r) factors[r] = All(x[r]);
  int64_t n = 0;
  for (; n + kLanes <= N; n += kLanes) {
    Vector sum = Load(y + n);
    for (int r = 0; r < kRows; ++r) sum += factors[r] * Load(w + r * N + n);
    Store(y + n, sum);
  }
  for (; n < N; ++n) {
    for (int r = 0; r < kRows; ++r) y[n] += x[r] * w[r * N + n];
  }
}

// One of `parts` of the rows of w [D, N]: y [M, N] = x [M, D] w, as far as these rows go.
void Product(const float *x, const float *w, float *y, int64_t M, int64_t D, int64_t N, int64_t part, int64_t parts) {
  constexpr int64_t kRows = 16, kSums = 8192;  // as many sums at a time as the caches of a core hold
  const int64_t first = part * D / parts / kRows * kRows;
  const int64_t end = part + 1 == parts ? D : (part + 1) * D / parts / kRows * kRows;
  std::fill(y, y + M * N, 0.0f);
  if (M == 1) {
    int64_t d = first;
    for (; d + 8 <= end; d += 8) AddRowsToOne<8>(x + d, w + d * N, y, N);
    for (; d < end; ++d) AddRowsToOne<1>(x + d, w + d * N, y, N);
    return;
  }
  const int64_t width = std::max<int64_t>(2 * kLanes, kSums / M / (2 * kLanes) * (2 * kLanes));
  for (int64_t n = 0; n < N; n += width) {
    const int64_t to = std::min(N, n + width);
    int64_t d = first;
    for (; d + kRows <= end; d += kRows) AddRows<kRows>(x + d, D, w + d * N, y, M, N, n, to);
    for (; d < end; ++d) AddRows<1>(x + d, D, w + d * N, y, M, N, n, to);
  }
}

// y [kM, 4 of N] = x [kM, D] w^T, w [4, D].
template <int kM>
inline void Dots(const float *x, const float *w, float *y, int64_t D, int64_t N) {
  Vector sums[kM][4] = {};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    Vector row[4];
    for (int r = 0; r < 4; ++r) row[r] = Load(w + r * D + d);
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      const Vector factor = Load(x + m * D + d);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) sums[m][r] += factor * row[r];
    }
  }
  for (int m = 0; m < kM; ++m) {
    SumEach(sums[m], y + m * N);
    for (int r = 0; r < 4; ++r) {
      for (int64_t i = d; i < D; ++i) y[m * N + r] += x[m * D + i] * w[r * D + i];
    }
  }
}

// Columns first .. end of y [M, N] = x [M, D] w^T, w [N, D].
void TransposedProduct(const float *x, const float *w, float *y, int64_t M, int64_t D, int64_t N, int64_t first,
                       int64_t end) {
  int64_t n = first;
  for (; n + 4 <= end; n += 4) {
    int64_t m = 0;
    for (; m + 4 <= M; m += 4) Dots<4>(x + m * D, w + n * D, y + m * N + n, D, N);
    for (; m < M; ++m) Dots<1>(x + m * D, w + n * D, y + m * N + n, D, N);
  }
  for (; n < end; ++n) {
    for (int64_t m = 0; m < M; ++m) y[m * N + n] = Dot(x + m * D, w + n * D, D);
  }
}

// ---- The network ----

struct Sizes {
  int64_t batch, d_model, heads, kv_heads, head_dim, mlp_per_head, context, vocabulary;
  int64_t in() const { return heads * (head_dim + 2 * mlp_per_head); }
  int64_t kv() const { return 2 * kv_heads * head_dim; }
  int64_t out() const { return heads * (head_dim + mlp_per_head); }
};

// What differs between PaLM and networks like it; mindspore_palm/generate/cpu/step.py makes it.
struct Switches {
  float take_mean_off, epsilon, around, logit_scale;
};

struct Block {
  const float *scale, *q_wi, *kv, *o_wo;
  float *keys, *values;  // [B, kv_heads, C, K]
};

struct Rotation {
  const float *cos_q, *sin_q, *cos_k, *sin_k;  // [C, K / 2]
};

// x [D] to its norm.
void Norm(const float *x, const float *scale, float *y, int64_t D, const Switches &switches) {
  float mean = 0;
  if (switches.take_mean_off != 0) {
    for (int64_t d = 0; d < D; ++d) mean += x[d];
    mean /= static_cast<float>(D);
  }
  for (int64_t d = 0; d < D; ++d) y[d] = x[d] - mean;
  const float factor = 1.0f / std::sqrt(Dot(y, y, D) / static_cast<float>(D) + switches.epsilon);
  for (int64_t d = 0; d < D; ++d) y[d] = y[d] * factor * (switches.around + scale[d]);
}

// x [K] turned in place: pairs of the two halves.
void Turn(float *x, const float *cos, const float *sin, int64_t dim) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float one = x[i], other = x[half + i];
    x[i] = one * cos[i] - other * sin[i];
    x[half + i] = other * cos[i] + one * sin[i];
  }
}

int64_t Padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// softmax(q k^T) v of kHeads queries, up to four, over the first `seen` positions: q [kHeads, K], scaled already, to
// out, of which a head has `width` numbers. `weights` is scratch, kHeads times the padded number of positions.
template <int kHeads>
void Attend(const float *q, const float *keys, const float *values, float *out, int64_t width, int64_t seen,
            int64_t dim, float *weights) {
  const int64_t padded = Padded(seen);
  std::fill(weights, weights + kHeads * padded, -INFINITY);
  for (int64_t c = 0; c < seen; ++c) {
    const float *key = keys + c * dim;
    Vector sums[4] = {};
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) {
      for (int h = 0; h < kHeads; ++h) sums[h] += Load(q + h * dim + i) * Load(key + i);
    }
    float scores[4];
    SumEach(sums, scores);
    for (int h = 0; h < kHeads; ++h) {
      for (int64_t k = i; k < dim; ++k) scores[h] += q[h * dim + k] * key[k];
      weights[h * padded + c] = scores[h];
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    float *own = weights + h * padded;
    const float largest = *std::max_element(own, own + seen);
    Vector sums = {};
    for (int64_t c = 0; c < padded; c += kLanes) {
      const Vector power = Exp(Load(own + c) - largest);
      Store(own + c, power);
      sums += power;
    }
    const float factor = 1.0f / Sum(sums);
    for (int64_t c = 0; c < seen; ++c) own[c] *= factor;
  }
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    Vector sums[kHeads] = {};
    for (int64_t c = 0; c < seen; ++c) {
      const Vector value = Load(values + c * dim + i);
      for (int h = 0; h < kHeads; ++h) sums[h] += All(weights[h * padded + c]) * value;
    }
    for (int h = 0; h < kHeads; ++h) Store(out + h * width + i, sums[h]);
  }
  for (; i < dim; ++i) {
    for (int h = 0; h < kHeads; ++h) {
      float sum = 0;
      for (int64_t c = 0; c < seen; ++c) sum += weights[h * padded + c] * values[c * dim + i];
      out[h * width + i] = sum;
    }
  }
}

// swish(gate) * up [F].
void SwiGLU(const float *gate, const float *up, float *y, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vector g = Load(gate + i);
    Store(y + i, g / (1.0f + Exp(-g)) * Load(up + i));
  }
  for (; i < count; ++i) y[i] = gate[i] / (1.0f + Exp(-gate[i])) * up[i];
}

// log(sum(e^x)).
float LogSumExp(const float *x, int64_t count) {
  const float largest = *std::max_element(x, x + count);
  Vector sums = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sums += Exp(Load(x + i) - largest);
  float sum = Sum(sums);
  for (; i < count; ++i) sum += Exp(x[i] - largest);
  return std::log(sum) + largest;
}

constexpr int64_t kMostTogether = 4;  // query heads that read a key once

class Step {
 public:
  Step(const Sizes &sizes, const Switches &switches, const Rotation &rotation, const int32_t *positions)
      : s_(sizes), switches_(switches), rotation_(rotation), positions_(positions), pool_(Pool::Get()) {
    blocks_ = pool_.threads() == 1 ? 1 : std::min(2 * pool_.threads(), 16);
    const int64_t per_key = s_.heads / s_.kv_heads, wanted = std::max<int64_t>(1, 2 * pool_.threads() / s_.batch);
    together_ = std::min({per_key, kMostTogether, (s_.heads + wanted - 1) / wanted});
    groups_ = (per_key + together_ - 1) / together_ * s_.kv_heads;
    x_.Resize(s_.batch * s_.d_model);
    y_.Resize(s_.batch * s_.d_model);
    in_.Resize(blocks_ * s_.batch * s_.in());
    kv_.Resize(blocks_ * s_.batch * s_.kv());
    scratch_.Resize(s_.batch * groups_ * Scratch());
    joined_.Resize(s_.batch * s_.out());
    out_.Resize(blocks_ * s_.batch * s_.d_model);
  }

  void Run(const int32_t *tokens, const float *embedding, const std::vector<Block> &blocks, const float *final_scale,
           float *logits, float *log_z) {
    for (int64_t b = 0; b < s_.batch; ++b) {
      std::copy_n(embedding + tokens[b] * s_.d_model, s_.d_model, x_.data() + b * s_.d_model);
    }
    for (const Block &block : blocks) Run(block);
    for (int64_t b = 0; b < s_.batch; ++b) {
      float *y = y_.data() + b * s_.d_model;
      Norm(x_.data() + b * s_.d_model, final_scale, y, s_.d_model, switches_);
      for (int64_t d = 0; d < s_.d_model; ++d) y[d] *= switches_.logit_scale;
    }
    const int64_t parts = 4 * blocks_;
    pool_.Run(parts, [&](int64_t part) {
      TransposedProduct(y_.data(), embedding, logits, s_.batch, s_.d_model, s_.vocabulary, part * s_.vocabulary / parts,
                        (part + 1) * s_.vocabulary / parts);
    });
    pool_.Run(s_.batch, [&](int64_t b) { log_z[b] = LogSumExp(logits + b * s_.vocabulary, s_.vocabulary); });
  }

 private:
  void Run(const Block &block) {
    const int64_t D = s_.d_model;
    for (int64_t b = 0; b < s_.batch; ++b) Norm(x_.data() + b * D, block.scale, y_.data() + b * D, D, switches_);
    pool_.Run(2 * blocks_, [&](int64_t unit) {
      const int64_t part = unit % blocks_;
      if (unit < blocks_) {
        Product(y_.data(), block.q_wi, in_.data() + part * s_.batch * s_.in(), s_.batch, D, s_.in(), part, blocks_);
      } else {
        Product(y_.data(), block.kv, kv_.data() + part * s_.batch * s_.kv(), s_.batch, D, s_.kv(), part, blocks_);
      }
    });
    for (int64_t b = 0; b < s_.batch; ++b) Keep(block, b);
    pool_.Run(s_.batch * groups_, [&](int64_t unit) {
      const int64_t of_key = groups_ / s_.kv_heads, per_key = s_.heads / s_.kv_heads, group = unit % groups_;
      const int64_t first = group / of_key * per_key + group % of_key * together_;
      const int64_t count = std::min(together_, (group / of_key + 1) * per_key - first);
      Heads(block, unit / groups_, first, count, scratch_.data() + unit * Scratch());
    });
    pool_.Run(blocks_, [&](int64_t part) {
      Product(joined_.data(), block.o_wo, out_.data() + part * s_.batch * D, s_.batch, s_.out(), D,
              part, blocks_);
    });
    const float *out = out_.data();
    for (int64_t part = 0; part < blocks_; ++part, out += s_.batch * D) {
      for (int64_t i = 0; i < s_.batch * D; ++i) x_.data()[i] += out[i];
    }
  }

  // Writes the key and value of sequence b's new token into the cache.
  void Keep(const Block &block, int64_t b) {
    const int64_t K = s_.head_dim, at = positions_[b];
    for (int64_t g = 0; g < s_.kv_heads; ++g) {
      const int64_t slot = ((b * s_.kv_heads + g) * s_.context + at) * K, column = b * s_.kv() + g * K;
      Gather(kv_, s_.kv(), column, block.keys + slot, K);
      Turn(block.keys + slot, rotation_.cos_k + at * K / 2, rotation_.sin_k + at * K / 2, K);
      Gather(kv_, s_.kv(), column + s_.kv_heads * K, block.values + slot, K);
    }
  }

  // Attention and mlp of some heads of sequence b, which have one key and value head.
  void Heads(const Block &block, int64_t b, int64_t first, int64_t count, float *scratch) {
    const int64_t K = s_.head_dim, F = s_.mlp_per_head, at = positions_[b];
    float *q = scratch, *mlp = q + together_ * K, *weights = mlp + 2 * F;
    for (int64_t h = 0; h < count; ++h) {
      const int64_t column = b * s_.in() + (first + h) * (K + 2 * F);
      Gather(in_, s_.in(), column, q + h * K, K);
      Turn(q + h * K, rotation_.cos_q + at * K / 2, rotation_.sin_q + at * K / 2, K);
      Gather(in_, s_.in(), column + K, mlp, 2 * F);
      SwiGLU(mlp, mlp + F, joined_.data() + b * s_.out() + (first + h) * (K + F) + K, F);
    }
    const int64_t cache = (b * s_.kv_heads + first / (s_.heads / s_.kv_heads)) * s_.context * K;
    float *out = joined_.data() + b * s_.out() + first * (K + F);
    constexpr decltype(&Attend<1>) kAttend[] = {Attend<1>, Attend<2>, Attend<3>, Attend<4>};
    kAttend[count - 1](q, block.keys + cache, block.values + cache, out, K + F, at + 1, K, weights);
  }

  // Numbers of it that a call of Heads needs.
  int64_t Scratch() const {
    return Padded(together_ * s_.head_dim + 2 * s_.mlp_per_head + together_ * Padded(s_.context));
  }

  // What all blocks of a product give to some columns, of `width` in each of the sequences.
  void Gather(Numbers &blocks, int64_t width, int64_t column, float *to, int64_t count) {
    std::copy_n(blocks.data() + column, count, to);
    for (int64_t part = 1; part < blocks_; ++part) {
      const float *from = blocks.data() + part * s_.batch * width + column;
      for (int64_t i = 0; i < count; ++i) to[i] += from[i];
    }
  }

  const Sizes s_;
  const Switches switches_;
  const Rotation rotation_;
  const int32_t *positions_;
  Pool &pool_;
  int64_t blocks_;            // of a product's rows, each with a result of its own
  int64_t together_, groups_;  // query heads that go together, and how many such groups there are
  static Numbers x_, y_, in_, kv_, joined_, out_, scratch_;
};

// They stay from step to step: fresh memory costs more than what is computed with it.
Numbers Step::x_, Step::y_, Step::in_, Step::kv_, Step::joined_, Step::out_, Step::scratch_;
std::mutex in_use;  // by one step at a time

}  // namespace

// Inputs: tokens int32 [B, 1], positions int32 [B], switches [4], four tables [C, K/2] of the rotation, embedding
// [V, D], the final norm's scale [D]; then of every block scale [D], q_wi, kv, o_wo, and keys and values, into which
// the token's own are written. Outputs: logits [B, real rows of V], log(Z) [B]. Returns 0, or 1 if there is no such
// token or position or too little memory.
extern "C" int DecodeStep(int count, void **params, int *, int64_t **shapes, const char **, void *, void *) {
  constexpr int kFirst = 9, kOfBlock = 6, kOutputs = 2;
  const auto floats = [&](int i) { return static_cast<float *>(params[i]); };
  const auto *tokens = static_cast<int32_t *>(params[0]), *positions = static_cast<int32_t *>(params[1]);
  const int end = count - kOutputs;
  Sizes sizes;
  sizes.batch = shapes[0][0];
  sizes.context = shapes[3][0];
  sizes.head_dim = 2 * shapes[3][1];
  sizes.d_model = shapes[7][1];
  const int64_t in = shapes[kFirst + 1][1], out = shapes[kFirst + 3][0];
  sizes.heads = (2 * out - in) / sizes.head_dim;
  sizes.kv_heads = shapes[kFirst + 2][1] / (2 * sizes.head_dim);
  sizes.mlp_per_head = out / sizes.heads - sizes.head_dim;
  sizes.vocabulary = shapes[end][1];
  for (int64_t b = 0; b < sizes.batch; ++b) {
    if (tokens[b] < 0 || tokens[b] >= sizes.vocabulary || positions[b] < 0 || positions[b] >= sizes.context) return 1;
  }
  const float *numbers = floats(2);
  const Switches switches = {numbers[0], numbers[1], numbers[2], numbers[3]};
  const Rotation rotation = {floats(3), floats(4), floats(5), floats(6)};
  std::lock_guard<std::mutex> alone(in_use);
  try {
    std::vector<Block> blocks;
    for (int i = kFirst; i < end; i += kOfBlock) {
      blocks.push_back({floats(i), floats(i + 1), floats(i + 2), floats(i + 3), floats(i + 4), floats(i + 5)});
    }
    Step(sizes, switches, rotation, positions).Run(tokens, floats(7), blocks, floats(8), floats(end), floats(end + 1));
  } catch (const std::exception &) {  // all memory is taken before threads begin
    return 1;
  }
  return 0;
}
