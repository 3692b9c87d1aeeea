// What has MindSpore 2.10 partition a network on a machine without accelerators, and run the parts on CPU.
//
// The front end (parse, differentiate, partition, optimise) refuses the CPU as a target of semi-auto parallel, but it
// only asks for the target's name and for its communication groups. So it is told "GPU" or "Ascend". The back end
// begins by asking for the target's device: it is given the CPU's, and from then on the target is the CPU.
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "back_end.h"
#include "ccsrc/include/runtime/hardware_abstract/collective/collective_manager.h"
#include "ccsrc/include/runtime/hardware_abstract/device_context/device_context.h"
#include "ccsrc/include/runtime/hardware_abstract/device_context/device_context_manager.h"
#include "ccsrc/include/utils/comm_manager.h"
#include "exchange.h"
#include "pybind11/pybind11.h"
#include "utils/device_manager_conf.h"

namespace mindspore_palm::host {
namespace {

using mindspore::DeviceManagerConf;
using mindspore::device::DeviceContextKey;
using mindspore::device::DeviceContextManager;
using mindspore::device::DeviceType;
using mindspore::distributed::collective::CollectiveManager;

constexpr char kDryRunComplete[] = "MINDSPORE_PALM_DRY_RUN_COMPLETE";
const std::set<std::string> kWorlds = {"hccl_world_group", "nccl_world_group", "mccl_world_group"};

// Who this process is, or in a dry run: plays.
struct Part {
  uint32_t rank{0};
  uint32_t devices{1};
  bool dry{true};
};
Part g_part;

// Answers what the partitioner asks about groups.
class Groups : public mindspore::CommManager {
 public:
  Groups() : CommManager("host") {}

  bool CreateGroupSync(const std::string &group, const std::vector<unsigned> &ranks) const override {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = groups_.find(group);
    if (found != groups_.end() && found->second == ranks) return true;
    // Python asks MindSpore's own manager how many members a group has, and who of them this process is.
    if (!g_part.dry && !CollectiveManager::instance()->CreateCommunicationGroup(group, ranks)) return false;
    groups_[group] = ranks;
    return true;
  }

  bool DestroyGroup(const std::string &group) const override {
    std::lock_guard<std::mutex> lock(mutex_);
    groups_.erase(group);
    return g_part.dry || CollectiveManager::instance()->DestroyCommunicationGroup(group);
  }

  bool GetRankID(const std::string &group, unsigned *rank) const override {
    const std::vector<uint32_t> ranks = Ranks(group);
    const auto found = std::find(ranks.begin(), ranks.end(), g_part.rank);
    *rank = found == ranks.end() ? g_part.rank : static_cast<unsigned>(found - ranks.begin());
    return true;
  }

  bool GetRankSize(const std::string &group, unsigned *size) const override {
    *size = static_cast<unsigned>(Ranks(group).size());
    return true;
  }

  uint32_t GetRank() override { return g_part.rank; }

  std::vector<uint32_t> Ranks(const std::string &group) const {
    if (kWorlds.count(group) != 0) {
      std::vector<uint32_t> all(g_part.devices);
      std::iota(all.begin(), all.end(), 0);
      return all;
    }
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = groups_.find(group);
    if (found != groups_.end()) return found->second;
    if (!g_part.dry) {  // made in Python, by create_group
      const auto ranks = CollectiveManager::instance()->GetGroupRanks(group);
      if (!ranks.empty()) return ranks;
    }
    throw std::runtime_error("no communication group is called " + group);
  }

  void Forget() {
    std::lock_guard<std::mutex> lock(mutex_);
    groups_.clear();
  }

 private:
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::vector<uint32_t>> groups_;
};

const std::shared_ptr<Groups> &AllGroups() {
  static const std::shared_ptr<Groups> groups = std::make_shared<Groups>();
  return groups;
}

// The id that MindSpore knows the CPU by: whatever it was before the first network was compiled for something else.
uint32_t CpuId() {
  static const uint32_t id = DeviceManagerConf::GetInstance()->device_id();
  return id;
}

void AimAtCpu() { DeviceManagerConf::GetInstance()->set_device("CPU", CpuId(), false); }

// Under which keys the CPU's device was given out as a target's. MindSpore keeps it there and would not ask again.
std::vector<DeviceContextKey> g_given;

void Forget() {
  for (const DeviceContextKey &key : g_given) {
    // Only renaming takes an entry out of that table: as there is one of the new name already, the entry is dropped.
    DeviceContextManager::GetInstance().UpdateDeviceContextKey(key, {DeviceType::kCPU, CpuId()});
  }
  g_given.clear();
}

std::shared_ptr<mindspore::device::DeviceContext> Device(const DeviceContextKey &key) {
  AimAtCpu();
  if (g_part.dry) throw std::runtime_error(kDryRunComplete);
  auto &devices = DeviceContextManager::GetInstance();
  devices.GetOrCreateDeviceContext({DeviceType::kCPU, CpuId()});
  g_given.push_back(key);
  return devices.GetDeviceContext("CPU");
}

void Register() {
  static bool done = false;
  if (done) return;
  for (const std::string target : {"GPU", "Ascend"}) {
    mindspore::CommManager::Register(target, AllGroups());
    DeviceContextManager::GetInstance().Register(target, &Device);
  }
  done = true;
}

void InstallDryRun(uint32_t rank, uint32_t devices) {
  // Groups are kept: MindSpore names one after its ranks, and asks for the same one but once a process.
  Register();
  g_part = {rank, devices, true};
}

void Install(uint32_t rank, uint32_t devices, double patience) {
  if (!World::IsOpen()) {
    std::vector<Card> cards(devices);
    const Card mine = World::Introduce();
    if (devices == 1) {
      cards[0] = mine;
    } else {
      constexpr size_t kNumbers = sizeof(Card) / sizeof(int64_t);
      auto *library = CollectiveManager::instance()->host_comm_lib();
      if (library == nullptr || !library->AllGather(&mine, cards.data(), kNumbers, mindspore::kNumberTypeInt64,
                                                    library->global_group_name())) {
        throw std::runtime_error("workers cannot be reached: call mindspore.communication.init() first, under msrun");
      }
    }
    World::Open(rank, cards, patience);
  }
  const World &world = World::Get();
  if (world.rank() != rank || world.size() != devices) {
    throw std::runtime_error("the host back end is installed as rank " + std::to_string(world.rank()) + " of " +
                             std::to_string(world.size()) + " already, and cannot change that");
  }
  Register();
  RegisterKernels();
  AllGroups()->Forget();
  g_part = {rank, devices, false};
  if (devices == 1) return;
  std::vector<uint32_t> all(devices);
  std::iota(all.begin(), all.end(), 0);
  for (const char *group : {"nccl_world_group", "hccl_world_group"}) AllGroups()->CreateGroupSync(group, all);
}

void Aim(const std::string &target) {
  Forget();
  DeviceManagerConf::GetInstance()->set_device(target, CpuId(), false);
}

uint32_t GroupSize(const std::string &group) {
  unsigned size = 0;
  AllGroups()->GetRankSize(group, &size);
  return size;
}

uint32_t GroupRank(const std::string &group) {
  unsigned rank = 0;
  AllGroups()->GetRankID(group, &rank);
  return rank;
}

}  // namespace

std::vector<uint32_t> RanksOf(const std::string &group) { return AllGroups()->Ranks(group); }

}  // namespace mindspore_palm::host

PYBIND11_MODULE(MS_EXTENSION_NAME, module) {
  using namespace mindspore_palm::host;  // NOLINT: nothing else is in this file
  module.attr("DRY_RUN_COMPLETE") = kDryRunComplete;
  module.def("install", &Install, "rank, devices, patience in seconds: this process works in a run");
  module.def("install_dry_run", &InstallDryRun, "rank, devices: this process only partitions, as if it did");
  module.def("aim", &Aim, "target: what compiles next is compiled for it");
  module.def("aim_at_cpu", &AimAtCpu, "what compiles next is compiled for this machine");
  module.def("group_size", &GroupSize);
  module.def("group_rank", &GroupRank);
  module.def("end", []() {
    if (World::IsOpen()) World::Get().End();
  }, "tells the other workers not to wait for this one any more");
}
