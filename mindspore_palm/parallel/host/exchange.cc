#include "exchange.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <fstream>
#include <iostream>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace mindspore_palm::host {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kLine = 64;  // a cache line: what different workers write must not share one
constexpr size_t kPage = 4096;
constexpr long kGlance = 100 * 1000 * 1000;  // nanoseconds between two looks at whether those awaited still live
constexpr int kYields = 16;                  // turns given up before going to sleep: most meetings are short

double Seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

// MS-34: MindSpore holds an error back for three seconds, and msrun kills all workers within one when the first has ended: the
// log is told at once.
[[noreturn]] void Fail(const std::string &what) {
  std::cerr << "mindspore_palm: " << what << std::endl;
  throw std::runtime_error(what);
}

std::string Reason() { return std::strerror(errno); }

// Fields 3 and 22 of /proc/PID/stat: state and start time. The name (field 2) may hold spaces and brackets.
// Returns the start time, 0 for a process that has ended (also one that its parent has not collected yet).
int64_t Born(int64_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return 0;
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(line.substr(name_end + 1));
  std::string state, skipped;
  fields >> state;
  if (state == "Z" || state == "X") return 0;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  int64_t born = 0;
  fields >> born;
  return born;
}

// FNV-1a: every worker finds the same key for a group, whatever its standard library.
uint64_t Key(const std::string &group, const std::vector<uint32_t> &ranks) {
  uint64_t hash = 14695981039346656037ull;
  auto add = [&hash](const void *data, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const unsigned char *>(data)[i]) * 1099511628211ull;
  };
  add(group.data(), group.size());
  add(ranks.data(), ranks.size() * sizeof(uint32_t));
  return hash;
}

}  // namespace

SharedMemory::SharedMemory(size_t bytes) : bytes_(bytes) {
  fd_ = memfd_create("mindspore_palm", MFD_CLOEXEC);
  if (fd_ < 0 || ftruncate(fd_, static_cast<off_t>(bytes)) != 0) {
    throw std::runtime_error("no memory to share between workers could be had: " + Reason());
  }
  Map(fd_);
}

SharedMemory::SharedMemory(const Card &owner, int fd, size_t bytes) : bytes_(bytes) {
  const std::string path = "/proc/" + std::to_string(owner.pid) + "/fd/" + std::to_string(fd);
  const int opened = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (opened < 0) {
    throw std::runtime_error("the memory of another worker (" + path + ") cannot be opened: " + Reason() +
                             "; start all workers on one machine, as one user");
  }
  Map(opened);
  close(opened);
}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
  if (fd_ >= 0) close(fd_);
}

void SharedMemory::Map(int fd) {
  void *data = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) throw std::runtime_error("memory shared between workers cannot be mapped: " + Reason());
  data_ = static_cast<char *>(data);
}

uint64_t Call::Packed() const {
  return uint64_t(kind) << 56 | uint64_t(reduce) << 48 | uint64_t(type) << 40 | (bytes & ((uint64_t(1) << 40) - 1));
}

std::string Call::Describe(uint64_t packed) {
  static const char *const kNames[] = {"nothing", "AllGather", "AllReduce", "ReduceScatter"};
  const size_t kind = std::min<size_t>(packed >> 56, kReduceScatter);
  std::string text = std::string(kNames[kind]) + " of " + std::to_string(packed & ((uint64_t(1) << 40) - 1)) + " bytes";
  if (kind == kAllGather) return text;
  return text + " (type " + std::to_string(packed >> 40 & 255) + ", reduction " + std::to_string(packed >> 48 & 255) +
         ")";
}

struct Channel::Seat {
  alignas(kLine) std::atomic<uint32_t> step;  // the last meeting that this member came to
  uint64_t call[2];                           // what it does there; by turns, as the buffers
};

struct Channel::Table {
  alignas(kLine) std::atomic<uint32_t> bell;  // rung when a meeting is complete; sleepers wait for it to change
  Seat seats[1];                              // as many as there are members
};

size_t Channel::Bytes(size_t members) {
  const size_t table = (sizeof(Table) + members * sizeof(Seat) + kPage - 1) / kPage * kPage;
  return table + members * 2 * kBuffer;
}

Channel::Channel(World *world, std::string group, std::vector<uint32_t> ranks, std::unique_ptr<SharedMemory> memory)
    : world_(world), group_(std::move(group)), ranks_(std::move(ranks)), memory_(std::move(memory)) {
  // Memory is all zeros when it is new, and that is what an atomic counter of zero looks like.
  static_assert(std::atomic<uint32_t>::is_always_lock_free, "a lock would be a process's own");
  table_ = reinterpret_cast<Table *>(memory_->data());
  me_ = std::find(ranks_.begin(), ranks_.end(), world_->rank()) - ranks_.begin();
}

Channel::Seat &Channel::At(size_t member) { return table_->seats[member]; }

char *Channel::Buffer(size_t member, uint32_t step) {
  const size_t buffers = Bytes(size()) - size() * 2 * kBuffer;
  return memory_->data() + buffers + (member * 2 + (step & 1)) * kBuffer;
}

void Channel::Begin(const Call &call) { call_ = call.Packed(); }

void Channel::Meet() {
  ++step_;
  Seat &mine = At(me_);
  mine.call[step_ & 1] = call_;
  mine.step.store(step_);
  // Stores and loads are sequentially consistent: whoever came last sees that all are there, and rings.
  if (Complete()) {
    table_->bell.fetch_add(1);
    syscall(SYS_futex, &table_->bell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  } else {
    Wait();
  }
  Compare();
}

bool Channel::Complete() {
  for (size_t member = 0; member < size(); ++member) {
    if (static_cast<int32_t>(At(member).step.load() - step_) < 0) return false;  // steps may wrap around
  }
  return true;
}

void Channel::Wait() {
  for (int i = 0; i < kYields; ++i) {
    sched_yield();
    if (Complete()) return;
  }
  const auto since = Clock::now();
  const timespec glance{0, kGlance};
  while (true) {
    const uint32_t bell = table_->bell.load();
    if (Complete()) return;
    const long woken = syscall(SYS_futex, &table_->bell, FUTEX_WAIT, bell, &glance, nullptr, 0);
    if (woken == 0 || errno != ETIMEDOUT) continue;
    for (size_t member = 0; member < size(); ++member) {
      const uint32_t rank = ranks_[member];
      const bool gone = world_->Gone(rank);  // asked before its step is read: it may come, and end after that
      if (static_cast<int32_t>(At(member).step.load() - step_) >= 0) continue;
      const std::string task = Call::Describe(call_) + " in group " + group_ + " is not possible";
      if (gone) Fail(world_->Name(rank) + " is gone: " + task + "; its log tells why");
      if (Seconds(since) > world_->patience()) {
        Fail(world_->Name(rank) + " has not come for " + std::to_string(static_cast<int>(world_->patience())) +
             " s: " + task);
      }
    }
  }
}

void Channel::Compare() {
  for (size_t member = 0; member < size(); ++member) {
    const uint64_t theirs = At(member).call[step_ & 1];
    if (theirs == call_) continue;
    Fail("workers disagree in group " + group_ + ": " + world_->Name(world_->rank()) + " does " +
         Call::Describe(call_) + ", " + world_->Name(ranks_[member]) + " does " + Call::Describe(theirs) +
         "; build the same network in all of them");
  }
}

// What a worker tells the others as it goes: written by its owner alone, so that no lock is needed.
struct World::Board {
  static constexpr uint32_t kGroups = 4096;
  std::atomic<uint32_t> ended;
  std::atomic<uint32_t> groups;  // how many of the following are valid
  struct {
    uint64_t key;
    int64_t fd;
  } group[kGroups];
};

namespace {
std::unique_ptr<SharedMemory> g_board;
std::unique_ptr<World> g_world;
}  // namespace

Card World::Introduce() {
  if (g_board == nullptr) g_board = std::make_unique<SharedMemory>(sizeof(Board));
  return {getpid(), Born(getpid()), g_board->fd()};
}

void World::Open(size_t rank, const std::vector<Card> &cards, double patience) {
  g_world.reset(new World(rank, cards, patience));
}

bool World::IsOpen() { return g_world != nullptr; }

World &World::Get() {
  if (g_world == nullptr) throw std::runtime_error("the host back end is not installed: call host.install() first");
  return *g_world;
}

World::World(size_t rank, std::vector<Card> cards, double patience)
    : rank_(rank), cards_(std::move(cards)), patience_(patience) {
  for (size_t other = 0; other < cards_.size(); ++other) {
    if (other == rank) {
      boards_.push_back(std::move(g_board));
      continue;
    }
    const Card &card = cards_[other];
    if (Born(card.pid) != card.born) {  // there may be a process with that number, but it is another one
      throw std::runtime_error(Name(other) + " does not run on this machine: start all workers on one");
    }
    boards_.push_back(std::make_unique<SharedMemory>(card, static_cast<int>(card.board), sizeof(Board)));
  }
}

const World::Board &World::BoardOf(size_t rank) const {
  return *reinterpret_cast<const Board *>(boards_[rank]->data());
}

std::shared_ptr<Channel> World::Join(const std::string &group, const std::vector<uint32_t> &ranks) {
  if (std::find(ranks.begin(), ranks.end(), rank_) == ranks.end()) {
    throw std::runtime_error(Name(rank_) + " does not belong to group " + group);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t key = Key(group, ranks);
  std::shared_ptr<Channel> &channel = channels_[key];
  if (channel != nullptr) return channel;
  const size_t bytes = Channel::Bytes(ranks.size());
  const uint32_t first = ranks[0];
  if (first == rank_) {
    auto memory = std::make_unique<SharedMemory>(bytes);
    Board &board = const_cast<Board &>(BoardOf(rank_));
    const uint32_t count = board.groups.load();
    if (count == Board::kGroups) throw std::runtime_error("more groups than the host back end has room for");
    board.group[count].key = key;
    board.group[count].fd = memory->fd();
    board.groups.store(count + 1);
    channel = std::make_shared<Channel>(this, group, ranks, std::move(memory));
    return channel;
  }
  const Board &board = BoardOf(first);
  const auto since = Clock::now();
  while (true) {
    const bool gone = Gone(first);
    for (uint32_t i = 0, count = board.groups.load(); i < count; ++i) {
      if (board.group[i].key != key) continue;
      auto memory = std::make_unique<SharedMemory>(cards_[first], static_cast<int>(board.group[i].fd), bytes);
      channel = std::make_shared<Channel>(this, group, ranks, std::move(memory));
      return channel;
    }
    if (gone) Fail(Name(first) + " is gone: it did not open group " + group);
    if (Seconds(since) > patience_) Fail(Name(first) + " has not opened group " + group);
    const timespec pause{0, 1000 * 1000};
    nanosleep(&pause, nullptr);
  }
}

void World::End() { const_cast<Board &>(BoardOf(rank_)).ended.store(1); }

bool World::Gone(size_t rank) const {
  return BoardOf(rank).ended.load() != 0 || Born(cards_[rank].pid) != cards_[rank].born;
}

std::string World::Name(size_t rank) const {
  return "worker " + std::to_string(rank) + " (pid " + std::to_string(cards_[rank].pid) + ")";
}

}  // namespace mindspore_palm::host
