#include "collectives.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "base/bfloat16.h"
#include "base/float16.h"

namespace mindspore_palm::host {
namespace {

using mindspore::TypeId;

constexpr size_t kLine = 64;         // shares start at cache lines, and so at whole elements of any type
constexpr size_t kSmall = 16 << 10;  // bytes up to which every worker reduces everything: it saves a barrier

// The maximum or minimum is NaN if any worker has a NaN, as in NumPy.
template <typename Number>
Number Larger(Number a, Number b) {
  return b > a || b != b ? b : a;
}
template <typename Number>
Number Smaller(Number a, Number b) {
  return b < a || b != b ? b : a;
}

// out = the parts reduced, from the first to the last, in type Wide.
template <typename Number, typename Wide>
void Combine(const std::vector<const char *> &parts, char *out, size_t bytes, Reduce reduce) {
  constexpr size_t kBlock = 1024;
  Wide sum[kBlock];
  const size_t count = bytes / sizeof(Number);
  for (size_t start = 0; start < count; start += kBlock) {
    const size_t n = std::min(kBlock, count - start);
    const Number *first = reinterpret_cast<const Number *>(parts[0]) + start;
    for (size_t i = 0; i < n; ++i) sum[i] = static_cast<Wide>(first[i]);
    for (size_t part = 1; part < parts.size(); ++part) {
      const Number *next = reinterpret_cast<const Number *>(parts[part]) + start;
      switch (reduce) {
        case Reduce::kSum:
          for (size_t i = 0; i < n; ++i) sum[i] += static_cast<Wide>(next[i]);
          break;
        case Reduce::kMax:
          for (size_t i = 0; i < n; ++i) sum[i] = Larger(sum[i], static_cast<Wide>(next[i]));
          break;
        case Reduce::kMin:
          for (size_t i = 0; i < n; ++i) sum[i] = Smaller(sum[i], static_cast<Wide>(next[i]));
          break;
        case Reduce::kProd:
          for (size_t i = 0; i < n; ++i) sum[i] *= static_cast<Wide>(next[i]);
          break;
      }
    }
    Number *to = reinterpret_cast<Number *>(out) + start;
    for (size_t i = 0; i < n; ++i) to[i] = static_cast<Number>(sum[i]);
  }
}

using Combiner = void (*)(const std::vector<const char *> &, char *, size_t, Reduce);

Combiner CombinerOf(TypeId type) {
  switch (type) {
    case mindspore::kNumberTypeFloat16:
      return Combine<mindspore::Float16, float>;
    case mindspore::kNumberTypeBFloat16:
      return Combine<mindspore::BFloat16, float>;
    case mindspore::kNumberTypeFloat32:
      return Combine<float, float>;
    case mindspore::kNumberTypeInt8:
      return Combine<int8_t, int8_t>;
    case mindspore::kNumberTypeInt16:
      return Combine<int16_t, int16_t>;
    case mindspore::kNumberTypeInt32:
      return Combine<int32_t, int32_t>;
    case mindspore::kNumberTypeInt64:
      return Combine<int64_t, int64_t>;
    default:
      throw std::runtime_error("the host back end cannot reduce MindSpore's type " + std::to_string(type));
  }
}

// The buffers of all members, at the same offset.
void Theirs(Channel *channel, size_t offset, std::vector<const char *> *parts) {
  for (size_t member = 0; member < channel->size(); ++member) (*parts)[member] = channel->Theirs(member) + offset;
}

}  // namespace

Reduce ReduceOf(const std::string &name) {
  static const std::map<std::string, Reduce> names = {
      {"sum", Reduce::kSum}, {"max", Reduce::kMax}, {"min", Reduce::kMin}, {"prod", Reduce::kProd}};
  const auto found = names.find(name);
  if (found == names.end()) throw std::runtime_error("the host back end knows no reduction called " + name);
  return found->second;
}

void AllGather(Channel *channel, const char *in, char *out, size_t bytes) {
  std::lock_guard<std::mutex> lock(channel->mutex());
  channel->Begin({Call::kAllGather, 0, 0, bytes});
  for (size_t done = 0; done < bytes; done += Channel::kBuffer) {
    const size_t chunk = std::min(Channel::kBuffer, bytes - done);
    std::memcpy(channel->Mine(), in + done, chunk);
    channel->Barrier();
    for (size_t member = 0; member < channel->size(); ++member) {
      std::memcpy(out + member * bytes + done, channel->Theirs(member), chunk);
    }
  }
}

void ReduceScatter(Channel *channel, const char *in, char *out, size_t bytes, TypeId type, Reduce reduce) {
  const Combiner combine = CombinerOf(type);
  std::lock_guard<std::mutex> lock(channel->mutex());
  const size_t members = channel->size();
  const size_t most = Channel::kBuffer / members / kLine * kLine;
  std::vector<const char *> parts(members);
  channel->Begin({Call::kReduceScatter, uint8_t(reduce), uint8_t(type), members * bytes});
  for (size_t done = 0; done < bytes; done += most) {
    const size_t chunk = std::min(most, bytes - done);
    char *mine = channel->Mine();
    for (size_t member = 0; member < members; ++member) {
      std::memcpy(mine + member * most, in + member * bytes + done, chunk);
    }
    channel->Barrier();
    Theirs(channel, channel->me() * most, &parts);
    combine(parts, out + done, chunk, reduce);
  }
}

void AllReduce(Channel *channel, const char *in, char *out, size_t bytes, TypeId type, Reduce reduce) {
  const Combiner combine = CombinerOf(type);
  std::lock_guard<std::mutex> lock(channel->mutex());
  const size_t members = channel->size();
  std::vector<const char *> parts(members);
  channel->Begin({Call::kAllReduce, uint8_t(reduce), uint8_t(type), bytes});
  for (size_t done = 0; done < bytes; done += Channel::kBuffer) {
    const size_t chunk = std::min(Channel::kBuffer, bytes - done);
    std::memcpy(channel->Mine(), in + done, chunk);
    channel->Barrier();
    if (members == 2 || chunk <= kSmall) {
      Theirs(channel, 0, &parts);
      combine(parts, out + done, chunk, reduce);
      continue;
    }
    // Each member reduces one share of the chunk; then all gather the shares.
    const size_t share = (chunk / members + kLine) / kLine * kLine;
    const size_t start = std::min(channel->me() * share, chunk);
    Theirs(channel, start, &parts);
    combine(parts, channel->Mine() + start, std::min(share, chunk - start), reduce);
    channel->Barrier();
    for (size_t member = 0; member < members; ++member) {
      const size_t from = std::min(member * share, chunk);
      std::memcpy(out + done + from, channel->Theirs(member) + from, std::min(share, chunk - from));
    }
  }
}

}  // namespace mindspore_palm::host
