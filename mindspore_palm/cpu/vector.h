// SIMD vectors of kLanes float32 values, and the few functions of them that decoding and training need.
//
// A library is one translation unit, with all of its headers. Their unnamed namespace gives every function
// internal linkage: the compiler inlines as within one file, and two builds in one process have nothing in common.
#ifndef MINDSPORE_PALM_CPU_VECTOR_H_
#define MINDSPORE_PALM_CPU_VECTOR_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <new>
#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef int32_t IntVector __attribute__((vector_size(kLanes * sizeof(float)), may_alias));

inline Vector Load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void Store(float* to, Vector v) { *reinterpret_cast<Vector*>(to) = v; }

// The numbers of the lanes.
inline IntVector Lanes() {
  IntVector lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane;
}

// The first `count` lanes of v, and those of `rest` after them.
inline Vector FirstLanes(Vector v, int64_t count, Vector rest) {
  return Lanes() < static_cast<int32_t>(count) ? v : rest;
}

// x in all lanes. x - 0 compiles to a bare broadcast; x + 0 would stay an addition, because -0 + 0 is 0.
inline Vector Broadcast(float x) { return x - Vector{}; }

// a b + c, rounded once where the processor can. Left to the compiler, that would differ from loop to loop: GCC does
// not fuse long chains of additions for some processors, and a sequence had other bits beside others than alone.
inline Vector MulAdd(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
  return reinterpret_cast<Vector>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(__ARM_NEON)
  return reinterpret_cast<Vector>(
      vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}
inline float MulAdd(float a, float b, float c) {
#if defined(FP_FAST_FMAF)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

// Horizontal sums of four vectors. Each step packs the halves of two vectors into one. The vectors are no array: an
// array of sums that is passed on lies in memory, and each product waits for it.
inline void SumFour(Vector v0, Vector v1, Vector v2, Vector v3, float* sums) {
  IntVector even, odd, low, high, lane;
  for (int i = 0; i < kLanes; ++i) {
    even[i] = i / 2 * 2 + i % 2 * kLanes;
    odd[i] = even[i] + 1;
    low[i] = i / 4 * 4 + i % 2 + i / 2 % 2 * kLanes;
    high[i] = low[i] + 2;
    lane[i] = i;
  }
  const Vector first_pair = __builtin_shuffle(v0, v1, even) + __builtin_shuffle(v0, v1, odd);
  const Vector second_pair = __builtin_shuffle(v2, v3, even) + __builtin_shuffle(v2, v3, odd);
  Vector all = __builtin_shuffle(first_pair, second_pair, low) + __builtin_shuffle(first_pair, second_pair, high);
#pragma GCC unroll 2
  for (int width = kLanes / 2; width >= 4; width /= 2) all += __builtin_shuffle(all, (lane + width) % kLanes);
  for (int i = 0; i < 4; ++i) sums[i] = all[i];
}

// Horizontal sum of one vector.
inline float Sum(Vector v) {
  float sums[4];
  SumFour(v, Vector{}, Vector{}, Vector{}, sums);
  return sums[0];
}

// e^x with a relative error of 2e-7: 2^n e^r, |r| <= log(2) / 2. Arguments are clamped to [-87, 88], where float32
// ends; NaN stays NaN.
inline Vector Exp(Vector x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector low = Broadcast(-87.0f), high = Broadcast(88.0f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vector shifted = MulAdd(x, Broadcast(1.44269504f), Broadcast(kRound)), n = shifted - kRound;
  const Vector r = MulAdd(n, Broadcast(2.12194440e-4f), MulAdd(n, Broadcast(-0.693359375f), x));
  Vector power = Broadcast(1.0f / 5040);
  for (float factorial : {720.0f, 120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f}) {
    power = MulAdd(power, r, Broadcast(1.0f / factorial));
  }
  return power * reinterpret_cast<Vector>((reinterpret_cast<IntVector>(shifted) << 23) + (127 << 23));
}

float Exp(float x) { return Exp(Broadcast(x))[0]; }

float Dot(const float* a, const float* b, int64_t count) {
  Vector sums = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sums = MulAdd(Load(a + i), Load(b + i), sums);
  float sum = Sum(sums);
  for (; i < count; ++i) sum = MulAdd(a[i], b[i], sum);
  return sum;
}

// The larger lane of a and b each; b where one is NaN.
inline Vector Larger(Vector a, Vector b) { return a > b ? a : b; }

// The largest lane.
inline float Largest(Vector v) {
  const IntVector lane = Lanes();
#pragma GCC unroll 4
  for (int width = kLanes / 2; width > 0; width /= 2) v = Larger(v, __builtin_shuffle(v, (lane + width) % kLanes));
  return v[0];
}

// The largest of x [count].
float Largest(const float* x, int64_t count) {
  if (count < kLanes) return *std::max_element(x, x + count);
  Vector most = Load(x);
  for (int64_t i = kLanes; i + kLanes <= count; i += kLanes) most = Larger(Load(x + i), most);
  return Largest(Larger(Load(x + count - kLanes), most));
}

// The size of a row that is padded to whole vectors.
int64_t Padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// A buffer that starts at a cache line: loads that cross cache lines run at half the speed.
class AlignedBuffer {
 public:
  ~AlignedBuffer() { std::free(data_); }
  float* data() { return data_; }
  // Grows to `size` floats, and loses its contents then; never shrinks.
  void Resize(int64_t size) {
    if (size <= size_) return;
    std::free(data_);
    size_ = 0;
    data_ = static_cast<float*>(std::aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64));
    if (data_ == nullptr) throw std::bad_alloc();
    size_ = size;
  }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace

#endif  // MINDSPORE_PALM_CPU_VECTOR_H_
