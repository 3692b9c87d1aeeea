// Collective kernels for MindSpore on CPU, in shared memory.
//
// MS-42: MindSpore 2.10 has an AllReduce for CPU that only sums, an AllGather that only spans all workers, and no
// ReduceScatter; the library below them has a ReduceScatter that does nothing and reports success. All go through TCP:
// an all-reduce of 4 MB over four workers on two cores took 28 ms, and takes 2 ms here.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "back_end.h"
#include "collectives.h"
#include "kernel/cpu/cpu_kernel.h"

namespace mindspore_palm::host {
namespace {

using mindspore::TypeId;
using mindspore::kernel::KernelAttr;
using mindspore::kernel::KernelTensor;

using Tensors = std::vector<KernelTensor *>;

const std::vector<TypeId> kReducible = {
    mindspore::kNumberTypeFloat16, mindspore::kNumberTypeBFloat16, mindspore::kNumberTypeFloat32,
    mindspore::kNumberTypeInt8,    mindspore::kNumberTypeInt16,    mindspore::kNumberTypeInt32,
    mindspore::kNumberTypeInt64};
const std::vector<TypeId> kAllTypes = {
    mindspore::kNumberTypeBool,     mindspore::kNumberTypeUInt8,   mindspore::kNumberTypeUInt16,
    mindspore::kNumberTypeUInt32,   mindspore::kNumberTypeUInt64,  mindspore::kNumberTypeFloat16,
    mindspore::kNumberTypeBFloat16, mindspore::kNumberTypeFloat32, mindspore::kNumberTypeFloat64,
    mindspore::kNumberTypeInt8,     mindspore::kNumberTypeInt16,   mindspore::kNumberTypeInt32,
    mindspore::kNumberTypeInt64};

class GroupKernel : public mindspore::kernel::NativeCpuKernelMod {
 public:
  bool Init(const Tensors &, const Tensors &) override {
    group_ = mindspore::GetValue<std::string>(primitive_->GetAttr("group"));
    return true;
  }

  bool Launch(const Tensors &in, const Tensors &, const Tensors &out) override {
    // A kernel may have several tensors; every worker has them in the same order.
    for (size_t i = 0; i < in.size(); ++i) LaunchOne(*in[i], *out[i]);
    return true;
  }

  std::vector<KernelAttr> GetOpSupport() override {
    std::vector<KernelAttr> support;
    for (const TypeId type : Types()) {
      support.push_back(KernelAttr().AddAllSameAttr(true).AddInputAttr(type).AddOutputAttr(type));
    }
    return support;
  }

 protected:
  virtual const std::vector<TypeId> &Types() const { return kReducible; }
  virtual void Run(Channel *channel, const KernelTensor &in, const KernelTensor &out) = 0;

  Reduce Reduction() const { return ReduceOf(mindspore::GetValue<std::string>(primitive_->GetAttr("op"))); }
  static const char *Input(const KernelTensor &tensor) { return static_cast<const char *>(tensor.device_ptr()); }
  static char *Output(const KernelTensor &tensor) { return static_cast<char *>(tensor.device_ptr()); }

 private:
  void LaunchOne(const KernelTensor &in, const KernelTensor &out) {
    if (ranks_.empty()) ranks_ = RanksOf(group_);
    if (ranks_.size() == 1) {
      std::memcpy(Output(out), Input(in), out.size());
      return;
    }
    if (channel_ == nullptr) channel_ = World::Get().Join(group_, ranks_);
    Run(channel_.get(), in, out);
  }

  std::string group_;
  std::vector<uint32_t> ranks_;
  std::shared_ptr<Channel> channel_;
};

class AllGatherKernel : public GroupKernel {
 protected:
  const std::vector<TypeId> &Types() const override { return kAllTypes; }
  void Run(Channel *channel, const KernelTensor &in, const KernelTensor &out) override {
    AllGather(channel, Input(in), Output(out), in.size());
  }
};

class AllReduceKernel : public GroupKernel {
 protected:
  void Run(Channel *channel, const KernelTensor &in, const KernelTensor &out) override {
    AllReduce(channel, Input(in), Output(out), out.size(), in.dtype_id(), Reduction());
  }
};

class ReduceScatterKernel : public GroupKernel {
 protected:
  void Run(Channel *channel, const KernelTensor &in, const KernelTensor &out) override {
    ReduceScatter(channel, Input(in), Output(out), out.size(), in.dtype_id(), Reduction());
  }
};

// One side of a lane. Ranks are those of the members of a group.
class LaneKernel : public mindspore::kernel::NativeCpuKernelMod {
 public:
  bool Init(const Tensors &, const Tensors &) override {
    group_ = mindspore::GetValue<std::string>(primitive_->GetAttr("group"));
    tag_ = mindspore::GetValue<int64_t>(primitive_->GetAttr("sr_tag"));
    return true;
  }

  std::vector<KernelAttr> GetOpSupport() override { return {KernelAttr().AddSkipCheckAttr(true)}; }

 protected:
  uint32_t Member(const char *attribute) const {
    return RanksOf(group_).at(static_cast<size_t>(mindspore::GetValue<int64_t>(primitive_->GetAttr(attribute))));
  }

  static uint32_t Me() { return static_cast<uint32_t>(World::Get().rank()); }

  int64_t tag_{0};
  std::shared_ptr<Lane> lane_;

 private:
  std::string group_;
};

class SendKernel : public LaneKernel {
 public:
  bool Launch(const Tensors &in, const Tensors &, const Tensors &) override {
    if (lane_ == nullptr) lane_ = World::Get().OpenLane(Me(), Member("dest_rank"), tag_, in[0]->size());
    lane_->Send(static_cast<const char *>(in[0]->device_ptr()));
    return true;
  }
};

class ReceiveKernel : public LaneKernel {
 public:
  bool Launch(const Tensors &, const Tensors &, const Tensors &out) override {
    if (lane_ == nullptr) lane_ = World::Get().OpenLane(Member("src_rank"), Me(), tag_, out[0]->size());
    lane_->Receive(static_cast<char *>(out[0]->device_ptr()));
    return true;
  }
};

template <typename Kernel>
void Register(const std::string &name) {
  auto &kernels = mindspore::kernel::Factory<mindspore::kernel::NativeCpuKernelMod>::Instance();
  kernels.UnRegister(name);
  kernels.Register(name, []() { return std::make_shared<Kernel>(); });
}

}  // namespace

void RegisterKernels() {
  Register<AllGatherKernel>("AllGather");
  Register<AllReduceKernel>("AllReduce");
  Register<ReduceScatterKernel>("ReduceScatter");
  Register<SendKernel>("Send");
  Register<ReceiveKernel>("Receive");
}

}  // namespace mindspore_palm::host
