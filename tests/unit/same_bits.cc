// Whether a row has the same bits alone and beside others, in every function of decoding that takes several.
//
// Prints a line for each size at which it has not.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "attention.h"
#include "matmul.h"
#include "network.h"
#include "prompts.h"

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

// Many rows are summed by column, in the order of the partial sums of a single one.
void Columns(int64_t M, int64_t D, int64_t N, int64_t parts) {
  const auto x = Normal(M * D), w = Normal(D * N);
  std::vector<float> packed(M * D), all(M * N), one(N), partial(N), scratch(ColumnsScratch(M));
  PackTiles(ThreadPool::Get(), x.data(), M, D, packed.data());
  MatmulColumns(packed.data(), w.data(), all.data(), M, D, N, 0, N, parts, scratch.data());
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t part = 0; part < parts; ++part) {
      MatmulPartial(x.data() + m * D, w.data(), partial.data(), 1, D, N, part, parts);
      for (int64_t n = 0; n < N; ++n) one[n] = part == 0 ? partial[n] : one[n] + partial[n];
    }
    if (!Same(one.data(), &all[m * N], N)) std::printf("MatmulColumns: M %d, D %d, N %d\n", int(M), int(D), int(N));
  }
}

// The rows of prompts.
void Rows(int64_t M, int64_t D, int64_t N) {
  const auto x = Normal(M * D), w = Normal(D * N);
  std::vector<float> all(M * N), one(N);
  Multiply(RowMajor(x.data(), D), RowMajor(w.data(), N), all.data(), N, M, N, D, false);
  for (int64_t m = 0; m < M; ++m) {
    Multiply(RowMajor(x.data() + m * D, D), RowMajor(w.data(), N), one.data(), N, 1, N, D, false);
    if (!Same(one.data(), &all[m * N], N)) std::printf("Multiply: M %d, D %d, N %d\n", int(M), int(D), int(N));
  }
}

// A strip of queries at positions first .. first + rows, and each query alone.
void Strip(int64_t first, int64_t rows, int64_t K) {
  const int64_t end = first + rows;
  const auto q = Normal(rows * K), k = Normal(end * K), v = Normal(end * K);
  std::vector<float> packed(PackedCache::Size(end, K)), scratch(StripScratch(end, K)), all(rows * K), one(K);
  const PackedCache cache = {packed.data(), packed.data() + PackedSize(K, end)};
  PackColumns(RowMajor(k.data(), K).Transposed(), K, end, packed.data());
  PackColumns(RowMajor(v.data(), K), end, K, packed.data() + PackedSize(K, end));
  AttendStrip(q.data(), K, cache, end, all.data(), K, first, rows, K, scratch.data());
  for (int64_t r = 0; r < rows; ++r) {
    AttendStrip(q.data() + r * K, K, cache, end, one.data(), K, first + r, 1, K, scratch.data());
    if (!Same(one.data(), &all[r * K], K)) std::printf("AttendStrip: rows %d, K %d\n", int(rows), int(K));
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
void Heads(int64_t heads, int64_t seen, int64_t K) {
  const auto q = Normal(heads * K), keys = Normal(seen * K), values = Normal(seen * K);
  std::vector<float> weights(heads * Padded(seen)), all(heads * K), one(K);
  Attend(heads, q.data(), keys.data(), values.data(), all.data(), K, seen, K, weights.data());
  for (int64_t h = 0; h < heads; ++h) {
    Attend(1, q.data() + h * K, keys.data(), values.data(), one.data(), K, seen, K, weights.data());
    if (!Same(one.data(), &all[h * K], K)) std::printf("Attend: heads %d, seen %d, K %d\n", int(heads), int(seen), int(K));
  }
}

}  // namespace

int main() {
  Columns(100, 900, 300, 4);  // several blocks
  Rows(100, 600, 300);
  for (int64_t D : {8, 12, 16, 36, 64}) {
    for (int64_t M = 2; M <= 9; ++M) {
      for (int64_t N : {8, 12, 20, 36, 72, 100}) {
        for (int64_t parts : {1, 4}) Partial(M, D, N, parts);
        Transposed(M, D, N + 1);
      }
    }
    for (int64_t M : {25, 40}) {
      Columns(M, D, 52, 4);
      Rows(M, D, 52);
    }
    for (int64_t rows : {2, 7, 24}) {
      for (int64_t first : {0, 5, 40}) Strip(first, rows, D);
    }
    for (int64_t seen : {1, 3, 8, 20}) {
      for (int64_t heads : {2, 3, 4, 8, 13}) Heads(heads, seen, D);
    }
  }
}
