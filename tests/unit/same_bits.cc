// Whether a row has the same bits alone and beside others, in every function of the decoding step that takes several.
//
// Prints a line for each size at which it has not.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "attention.h"
#include "matmul.h"

namespace {

std::mt19937 generator(1);

std::vector<float> Normal(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float &value : values) value = normal(generator);
  return values;
}

bool Same(const float *a, const float *b, int64_t count) { return std::memcmp(a, b, count * sizeof(float)) == 0; }

void Partial(int64_t M, int64_t D, int64_t N, int64_t parts) {
  const auto x = Normal(M * D), w = Normal(D * N);
  std::vector<float> all(M * N), one(N);
  for (int64_t part = 0; part < parts; ++part) {
    MatmulPartial(x.data(), w.data(), all.data(), M, D, N, part, parts);
    for (int64_t m = 0; m < M; ++m) {
      MatmulPartial(x.data() + m * D, w.data(), one.data(), 1, D, N, part, parts);
      if (!Same(one.data(), &all[m * N], N)) std::printf("MatmulPartial: M %d, D %d, N %d\n", int(M), int(D), int(N));
    }
  }
}

void Transposed(int64_t M, int64_t D, int64_t N) {
  const auto x = Normal(M * D), w = Normal(D * N);
  std::vector<float> all(M * N), one(N);
  MatmulTransposed(x.data(), w.data(), all.data(), M, D, N, 0, N);
  for (int64_t m = 0; m < M; ++m) {
    MatmulTransposed(x.data() + m * D, w.data(), one.data(), 1, D, N, 0, N);
    if (!Same(one.data(), &all[m * N], N)) std::printf("MatmulTransposed: M %d, D %d, N %d\n", int(M), int(D), int(N));
  }
}

// The number of heads that share a read of the cache depends on the number of sequences.
template <int kHeads>
void Heads(int64_t seen, int64_t K) {
  const auto q = Normal(kHeads * K), keys = Normal(seen * K), values = Normal(seen * K);
  std::vector<float> weights(kHeads * Padded(seen)), all(kHeads * K), one(K);
  Attend<kHeads>(q.data(), keys.data(), values.data(), all.data(), K, seen, K, weights.data());
  for (int64_t h = 0; h < kHeads; ++h) {
    Attend<1>(q.data() + h * K, keys.data(), values.data(), one.data(), K, seen, K, weights.data());
    if (!Same(one.data(), &all[h * K], K)) std::printf("Attend: heads %d, seen %d, K %d\n", kHeads, int(seen), int(K));
  }
}

}  // namespace

int main() {
  for (int64_t D : {8, 12, 16, 36, 64}) {
    for (int64_t M = 2; M <= 9; ++M) {
      for (int64_t N : {8, 12, 20, 36, 72, 100}) {
        for (int64_t parts : {1, 4}) Partial(M, D, N, parts);
        Transposed(M, D, N + 1);
      }
    }
    for (int64_t seen : {1, 3, 8, 20}) {
      Heads<2>(seen, D);
      Heads<3>(seen, D);
      Heads<4>(seen, D);
    }
  }
}
