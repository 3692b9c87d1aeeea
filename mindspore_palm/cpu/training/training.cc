// The parts of a training step on one CPU, each a function that ops.Custom calls ("aot").
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include "block.h"
#include "embed.h"
#include "unembed.h"
#include "update.h"

namespace {

std::mutex in_use;  // guards the buffers: one part at a time

// Inputs 0 .. 10 of a block: x [T, D], scale [D], q_wi, kv, o_wo, four tables of the rotation [.., S, .., K / 2], and
// [epsilon, offset of the scale].
constexpr int kBlockInputs = 10;

BlockSizes SizesOfBlock(int64_t** shapes, const int* ranks) {
  BlockSizes s;
  s.tokens = shapes[0][0];
  s.d_model = shapes[0][1];
  s.attention = {shapes[5][1], 2 * shapes[5][ranks[5] - 1]};
  const int64_t q_wi = shapes[2][1], o_wo = shapes[4][0];
  s.heads = (2 * o_wo - q_wi) / s.K();
  s.mlp = o_wo / s.heads - s.K();
  return s;
}

BlockWeights WeightsOfBlock(void** params) {
  const auto floats = [&](int i) { return static_cast<const float*>(params[i]); };
  return {floats(1), floats(2), floats(3), floats(4),    floats(5),
          floats(6), floats(7), floats(8), floats(9)[0], floats(9)[1]};
}

BlockActivations ActivationsOfBlock(void** params) {
  const auto floats = [&](int i) { return static_cast<float*>(params[i]); };
  return {floats(0), floats(1), floats(2), floats(3), floats(4), floats(5)};
}

constexpr int kUnembedInputs = 5;  // x, scale, table, targets and settings

// The settings are UnembedFunction.settings of model/fused.py, in this order. `x` is the number of that input, with scale
// and table after it, and `targets` that of the targets; `saved` are the activations.
Unembed UnembedOf(void** params, int64_t** shapes, int x, int targets, void** saved) {
  const auto floats = [](void* from) { return static_cast<float*>(from); };
  const float* settings = floats(params[kUnembedInputs - 1]);
  UnembedSizes s;
  s.tokens = shapes[x][0];
  s.d_model = shapes[x][1];
  s.padded = shapes[x + 2][0];
  s.vocabulary = static_cast<int64_t>(settings[0]);
  s.epsilon = settings[1];
  s.scale_offset = settings[2];
  s.logit_scale = settings[3];
  s.subtract_mean = settings[4] != 0;
  const UnembedActivations activations = {floats(saved[0]), floats(saved[1]), floats(saved[2]), floats(saved[3])};
  return {s, floats(params[x + 1]), floats(params[x + 2]), static_cast<int32_t*>(params[targets]), activations};
}

template <typename Work>
int Guarded(const Work& work) {
  std::lock_guard<std::mutex> lock(in_use);
  try {
    work();
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}

}  // namespace

// Outputs: the block's result [T, D], and what the backward pass needs: y [T, D], inverse [T], q_wi [T, ..], kv [T,
// 2K], joined [T, ..] and log_z [T, H]; see BlockActivations. Returns 0; or 1 if memory does not suffice, as all
// functions.
extern "C" int BlockForward(int, void** params, int* ranks, int64_t** shapes, const char**, void*, void*) {
  return Guarded([&] {
    Block(SizesOfBlock(shapes, ranks), WeightsOfBlock(params), ActivationsOfBlock(params + kBlockInputs + 1))
        .Forward(static_cast<const float*>(params[0]), static_cast<float*>(params[kBlockInputs]));
  });
}

// Inputs: those of BlockForward, its outputs after the first, and the gradient of the first [T, D]. Outputs: gradients
// of x, scale, q_wi, kv and o_wo.
extern "C" int BlockBackward(int, void** params, int* ranks, int64_t** shapes, const char**, void*, void*) {
  constexpr int kGradient = kBlockInputs + 6;
  const auto floats = [&](int i) { return static_cast<float*>(params[kGradient + i]); };
  return Guarded([&] {
    Block(SizesOfBlock(shapes, ranks), WeightsOfBlock(params), ActivationsOfBlock(params + kBlockInputs))
        .Backward(static_cast<const float*>(params[0]), floats(0),
                  {floats(1), floats(2), floats(3), floats(4), floats(5)});
  });
}

// Inputs: x [T, D], scale [D], table [V with padding, D], targets int32 [T], and the settings of UnembedOf. Outputs:
// cross-entropy and log(Z) [T], zero where a target is negative; and what the gradient needs, as UnembedActivations.
extern "C" int UnembedForward(int, void** params, int*, int64_t** shapes, const char**, void*, void*) {
  const auto floats = [&](int i) { return static_cast<float*>(params[i]); };
  return Guarded([&] {
    UnembedOf(params, shapes, 0, 3, params + kUnembedInputs + 2)
        .Forward(floats(0), floats(kUnembedInputs), floats(kUnembedInputs + 1));
  });
}

// Inputs: those of UnembedForward, targets first; its outputs after the first two, and the gradients of these two [T].
// Outputs: gradients of x, scale and table.
extern "C" int UnembedBackward(int, void** params, int*, int64_t** shapes, const char**, void*, void*) {
  constexpr int kGradients = kUnembedInputs + 4;
  const auto floats = [&](int i) { return static_cast<float*>(params[kGradients + i]); };
  return Guarded([&] {
    UnembedOf(params, shapes, 1, 0, params + kUnembedInputs)
        .Backward(static_cast<const float*>(params[1]), floats(0), floats(1), floats(2), floats(3), floats(4));
  });
}

// Inputs: the gradient of the rows of the table [T, D], tokens int32 [T], and the gradient of the table from the logits
// [V, D]. Output: the table's gradient [V, D].
extern "C" int EmbedBackward(int, void** params, int*, int64_t** shapes, const char**, void*, void*) {
  const auto floats = [&](int i) { return static_cast<float*>(params[i]); };
  return Guarded([&] {
    AddRows(floats(0), static_cast<int32_t*>(params[1]), floats(2), floats(3), shapes[0][0], shapes[0][1], shapes[2][0]);
  });
}

// Inputs: loss [], learning rate [] of the update, number of updates int32 [1], settings: the optimizer's
// number, the clip of the norm (0 for none) and the optimizer's own; then gradients, weights and moments m and v, of
// each as many. Outputs: norm, learning rate and whether the update was applied, float32 [] each. If loss or norm is
// not finite, nothing is changed.
extern "C" int UpdateWeights(int count, void** params, int* ranks, int64_t** shapes, const char**, void*, void*) {
  constexpr int kFirst = 4, kOutputs = 3, kOwn = 2;
  const auto floats = [&](int i) { return static_cast<float*>(params[i]); };
  return Guarded([&] {
    const int number = (count - kFirst - kOutputs) / 4;
    std::vector<Weight> weights;
    for (int i = kFirst; i < kFirst + number; ++i) {
      int64_t size = 1;
      for (int d = 0; d < ranks[i]; ++d) size *= shapes[i][d];
      weights.push_back(
          {floats(i), floats(i + number), floats(i + 2 * number), floats(i + 3 * number), size, ranks[i] > 1});
    }
    const float *settings = floats(3), *own = settings + kOwn, clip_norm = settings[1];
    const float lr = floats(1)[0];
    auto* updates = static_cast<int32_t*>(params[2]);
    Update update(std::move(weights));
    const float norm = update.Norm();
    const bool finite = std::isfinite(norm) && std::isfinite(floats(0)[0]);
    floats(count - 3)[0] = norm;
    floats(count - 2)[0] = finite ? lr : 0.0f;
    floats(count - 1)[0] = finite ? 1.0f : 0.0f;
    if (!finite) return;
    const float clip = clip_norm > 0 ? std::min(clip_norm / norm, 1.0f) : 1.0f;
    const float k = static_cast<float>(++updates[0]);
    if (settings[0] == 0) {
      update.AdamW(k, lr, clip, {own[0], own[1], own[2], own[3]});
    } else {
      update.Adafactor(k, lr, clip, {own[0], own[1], own[2], own[3], own[4], own[5]});
    }
  });
}
