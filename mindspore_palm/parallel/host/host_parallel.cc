// Has MindSpore 2.10 partition networks on a machine without accelerators, and run the partitions on CPU.
//
// The front end (parse, differentiate, partition, optimize) rejects the CPU as a target of semi-auto parallel, but it
// only needs the target's name and its communication groups. So it gets "GPU" or "Ascend". After the front end's
// optimization comes a pass of our own: from there on the target is the CPU, and the back end sees no other. In a dry
// run the target stays, and the back end first asks for its device: there the dry run ends.
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
#include "shared_memory.h"
#include "include/utils/custom_pass/custom_pass_plugin.h"
#include "ir/core_ops_primitive.h"
#include "ir/func_graph.h"
#include "ir/func_graph_cloner.h"
#include "ir/func_graph_flag.h"
#include "ir/graph_utils.h"
#include "ir/manager.h"
#include "pybind11/pybind11.h"
#include "utils/device_manager_conf.h"
#include "utils/ms_context.h"

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

// The rank of this process; in a dry run, the one it plays.
struct Role {
  uint32_t rank{0};
  uint32_t devices{1};
  bool dry{true};
};
Role g_role;

// Communication groups, for the partitioner.
class Groups : public mindspore::CommManager {
 public:
  Groups() : CommManager("host") {}

  bool CreateGroupSync(const std::string &group, const std::vector<unsigned> &ranks) const override {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = groups_.find(group);
    if (found != groups_.end() && found->second == ranks) return true;
    // Python asks MindSpore's own manager for the size of a group and the rank of this process in it.
    if (!g_role.dry && !CollectiveManager::instance()->CreateCommunicationGroup(group, ranks)) return false;
    groups_[group] = ranks;
    return true;
  }

  bool DestroyGroup(const std::string &group) const override {
    std::lock_guard<std::mutex> lock(mutex_);
    groups_.erase(group);
    return g_role.dry || CollectiveManager::instance()->DestroyCommunicationGroup(group);
  }

  bool GetRankID(const std::string &group, unsigned *rank) const override {
    const std::vector<uint32_t> ranks = Ranks(group);
    const auto found = std::find(ranks.begin(), ranks.end(), g_role.rank);
    *rank = found == ranks.end() ? g_role.rank : static_cast<unsigned>(found - ranks.begin());
    return true;
  }

  bool GetRankSize(const std::string &group, unsigned *size) const override {
    *size = static_cast<unsigned>(Ranks(group).size());
    return true;
  }

  uint32_t GetRank() override { return g_role.rank; }

  std::vector<uint32_t> Ranks(const std::string &group) const {
    if (kWorlds.count(group) != 0) {
      std::vector<uint32_t> all(g_role.devices);
      std::iota(all.begin(), all.end(), 0);
      return all;
    }
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = groups_.find(group);
    if (found != groups_.end()) return found->second;
    if (!g_role.dry) {  // created in Python, by create_group
      const auto ranks = CollectiveManager::instance()->GetGroupRanks(group);
      if (!ranks.empty()) return ranks;
    }
    throw std::runtime_error("there is no communication group " + group);
  }

  void Clear() {
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

// MindSpore's id of the CPU: the one before the first network was compiled for another target.
uint32_t CpuId() {
  static const uint32_t id = DeviceManagerConf::GetInstance()->device_id();
  return id;
}

void AimAtCpu() { DeviceManagerConf::GetInstance()->set_device("CPU", CpuId(), false); }

std::shared_ptr<mindspore::device::DeviceContext> Device(const DeviceContextKey &) {
  if (g_role.dry) throw std::runtime_error(kDryRunComplete);
  throw std::runtime_error("the host back end has no such device");
}

using mindspore::AnfNodePtr;
using mindspore::AnfNodePtrList;
using mindspore::CNodePtr;
using mindspore::IsPrimitiveCNode;
using mindspore::NewValueNode;
namespace prim = mindspore::prim;

// A call of a graph: the graph, its arguments, and what they wait for.
struct Call {
  mindspore::FuncGraphPtr graph;
  AnfNodePtrList arguments;
  AnfNodePtrList awaited;

  // The node without its Depends, whose other inputs are awaited.
  AnfNodePtr Await(AnfNodePtr node) {
    while (IsPrimitiveCNode(node, prim::kPrimDepend)) {
      awaited.push_back(node->cast<CNodePtr>()->input(2));
      node = node->cast<CNodePtr>()->input(1);
    }
    return node;
  }

  // Finds the graph that a node calls, through the closures that forward passes return for their backward passes.
  bool Find(const CNodePtr &node) {
    arguments.assign(node->inputs().begin() + 1, node->inputs().end());
    for (const auto &argument : arguments) Await(argument);
    AnfNodePtr callee = node->input(0);
    while (graph == nullptr) {
      callee = Await(callee);
      if (IsPrimitiveCNode(callee, prim::kPrimPartial)) {
        const auto &inputs = callee->cast<CNodePtr>()->inputs();
        arguments.insert(arguments.begin(), inputs.begin() + 2, inputs.end());
        callee = inputs[1];
      } else if (IsPrimitiveCNode(callee, prim::kPrimTupleGetItem)) {
        const auto &inputs = callee->cast<CNodePtr>()->inputs();
        const auto tuple = Await(inputs[1]);
        if (!IsPrimitiveCNode(tuple, prim::kPrimMakeTuple)) return false;
        callee = tuple->cast<CNodePtr>()->input(1 + mindspore::GetValue<int64_t>(mindspore::GetValueNode(inputs[2])));
      } else if ((graph = mindspore::GetValueNode<mindspore::FuncGraphPtr>(callee)) == nullptr) {
        return false;
      }
    }
    return true;
  }
};

// MS-65, replaces every call by the nodes of its graph: the CPU's back end does not know the graphs that lazy_inline keeps.
// It is true if there were any. MindSpore orders calls, Sends and Receives by a Depend on some argument, which may have
// no use in the called graph: so every argument waits for all that any of them waits for.
bool InlineCalls(const mindspore::FuncGraphPtr &root) {
  const auto manager = root->manager();
  for (bool changed = false, again = true;; changed = true) {
    again = false;
    for (const auto &node : mindspore::TopoSort(root->get_return())) {
      const auto op = node->cast<CNodePtr>();
      Call call;
      if (op == nullptr || mindspore::IsValueNode<mindspore::Primitive>(op->input(0)) || !call.Find(op)) continue;
      for (auto &argument : call.arguments) {
        for (const auto &other : call.awaited) {
          const auto depend = root->NewCNode(AnfNodePtrList{NewValueNode(prim::kPrimDepend), argument, other});
          depend->set_abstract(argument->abstract());
          argument = depend;
        }
      }
      manager->Replace(op, mindspore::InlineClone(call.graph, root, call.arguments, op));
      again = true;
    }
    if (!again) return changed;
  }
}

// Whether MindSpore keeps the graph of some Cell for all its calls.
bool ReusesCells(const mindspore::FuncGraphPtr &root) {
  const auto &graphs = root->manager()->func_graphs();
  return std::any_of(graphs.begin(), graphs.end(),
                     [](const auto &graph) { return graph->has_flag(mindspore::FUNC_GRAPH_FLAG_CELL_REUSE); });
}

// The last pass of the front end for a partitioned network: it sets the CPU as the target.
class Handover : public mindspore::opt::Pass {
 public:
  Handover() : mindspore::opt::Pass(kHandover) {}

  bool Run(const mindspore::FuncGraphPtr &graph) override {
    if (g_role.dry || DeviceManagerConf::GetInstance()->GetDeviceTarget() == "CPU") return false;
    AimAtCpu();
    const bool changed = ReusesCells(graph) && InlineCalls(graph);
    mindspore::MsContext::GetInstance()->SetCellReuseLevel(mindspore::CellReuseLevel::kNoCellReuse);
    // MS-16: MindSpore notes on Load, UpdateState and similar nodes the target that it chose for them. If it is not
    // that of the kernels, the back end splits the graph in a hundred places, and the order of reads and writes of a
    // weight, which only these nodes keep, is lost between the parts.
    for (const auto &node : graph->manager()->all_nodes()) {
      node->set_user_data("primitive_target", std::shared_ptr<std::string>());
    }
    return changed;
  }
};

// Gives MindSpore our pass.
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
  // Groups are kept: MindSpore names a group after its ranks, and creates the same one only once per process.
  Register();
  g_role = {rank, devices, true};
}

void Install(uint32_t rank, uint32_t devices, double patience) {
  if (!World::IsOpen()) {
    std::vector<WorkerInfo> workers(devices);
    const WorkerInfo mine = World::CreateBoard();
    if (devices == 1) {
      workers[0] = mine;
    } else {
      constexpr size_t kFields = sizeof(WorkerInfo) / sizeof(int64_t);
      auto *library = CollectiveManager::instance()->host_comm_lib();
      if (library == nullptr || !library->AllGather(&mine, workers.data(), kFields, mindspore::kNumberTypeInt64,
                                                    library->global_group_name())) {
        throw std::runtime_error("workers cannot be reached: call mindspore.communication.init() first, under msrun");
      }
    }
    World::Open(rank, workers, patience);
  }
  const World &world = World::Get();
  if (world.rank() != rank || world.size() != devices) {
    throw std::runtime_error("the host back end is installed as rank " + std::to_string(world.rank()) + " of " +
                             std::to_string(world.size()) + " already, and cannot change that");
  }
  Register();
  RegisterKernels();
  AllGroups()->Clear();
  g_role = {rank, devices, false};
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
  module.def("install", &Install, "rank, devices, patience in seconds: this process is a worker of a run");
  module.def("install_dry_run", &InstallDryRun, "rank, devices: this process only partitions, as that worker would");
  module.def("aim", &Aim, "target: networks are compiled for it from now on");
  module.def("aim_at_cpu", &AimAtCpu, "networks are compiled for this machine from now on");
  module.def("group_size", &GroupSize);
  module.def("group_rank", &GroupRank);
  module.def("end", []() {
    if (World::IsOpen()) World::Get().End();
  }, "tells the other workers not to wait for this one");
}
