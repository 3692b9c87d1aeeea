// What has MindSpore 2.10 partition a network on a machine without accelerators, and run the parts on CPU.
//
// The front end (parse, differentiate, partition, optimise) refuses the CPU as a target of semi-auto parallel, but it
// only asks for the target's name and for its communication groups. So it is told "GPU" or "Ascend". Behind the front
// end's optimisation comes a step of our own: from there on the target is the CPU, and the back end sees no other. In a
// dry run the target stays, and the back end begins by asking for its device: that is where the run ends.
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
#include "include/utils/custom_pass/custom_pass_plugin.h"
#include "ir/func_graph.h"
#include "ir/manager.h"
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
constexpr char kHandover[] = "mindspore_palm_handover";
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

std::shared_ptr<mindspore::device::DeviceContext> Device(const DeviceContextKey &) {
  if (g_part.dry) throw std::runtime_error(kDryRunComplete);
  throw std::runtime_error("the host back end has no such device, and expects to be asked for none");
}

// The front end's last step of a network that is partitioned: the target is the CPU.
class Handover : public mindspore::opt::Pass {
 public:
  Handover() : mindspore::opt::Pass(kHandover) {}

  bool Run(const mindspore::FuncGraphPtr &graph) override {
    if (g_part.dry || DeviceManagerConf::GetInstance()->GetDeviceTarget() == "CPU") return false;
    AimAtCpu();
    // MS-16: MindSpore notes on Load, UpdateState and their like the target that it found for them. If that is another one
    // than the kernels', the back end cuts the graph in a hundred places, and the order of reads and writes of a
    // weight, which these nodes alone keep, is lost between the pieces.
    for (const auto &node : graph->manager()->all_nodes()) {
      node->set_user_data("primitive_target", std::shared_ptr<std::string>());
    }
    return false;  // the graph is what it was
  }
};

// What MindSpore asks for steps to add to its own.
class Plugin : public mindspore::opt::CustomPassPlugin {
 public:
  std::string GetPluginName() const override { return "Plugin"; }
  std::vector<std::string> GetAvailablePassNames() const override { return {kHandover}; }
  std::shared_ptr<mindspore::opt::Pass> CreatePass(const std::string &) const override {
    return std::make_shared<Handover>();
  }
};

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

void Aim(const std::string &target) { DeviceManagerConf::GetInstance()->set_device(target, CpuId(), false); }

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

EXPORT_CUSTOM_PASS_PLUGIN(Plugin)

}  // namespace mindspore_palm::host

PYBIND11_MODULE(MS_EXTENSION_NAME, module) {
  using namespace mindspore_palm::host;  // NOLINT: nothing else is in this file
  module.attr("DRY_RUN_COMPLETE") = kDryRunComplete;
  module.attr("HANDOVER") = kHandover;
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
