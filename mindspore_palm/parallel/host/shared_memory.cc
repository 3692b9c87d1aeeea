#include "shared_memory.h"

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

constexpr size_t kLine = 64;  // a cache line; variables of different workers must not share one
constexpr size_t kPage = 4096;
constexpr long kPoll = 100 * 1000 * 1000;  // nanoseconds between two checks that the awaited workers are alive
constexpr int kYields = 16;                // of the processor before going to sleep: most waits are short

double Seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

// MS-34: MindSpore holds an error back for three seconds, and msrun kills all workers within one second after the first
// has ended. So the message goes to the log at once.
[[noreturn]] void Fail(const std::string &message) {
  std::cerr << "mindspore_palm: " << message << std::endl;
  throw std::runtime_error(message);
}

std::string Reason() { return std::strerror(errno); }

// The start time of a process; 0 if it has ended, even if its parent has not collected it yet.
// Reads fields 3 and 22 of /proc/PID/stat, state and start time. The name (field 2) may hold spaces and brackets.
int64_t StartTime(int64_t pid) {
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
  int64_t start_time = 0;
  fields >> start_time;
  return start_time;
}

// FNV-1a: all workers compute the same key for a group, whatever their standard library.
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
    throw std::runtime_error("memory to share between workers could not be allocated: " + Reason());
  }
  Map(fd_);
}

SharedMemory::SharedMemory(const WorkerInfo &owner, int fd, size_t bytes) : bytes_(bytes) {
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

struct Channel::Member {
  alignas(kLine) std::atomic<uint32_t> round;  // the last barrier that this member reached
  uint64_t call[2];                            // its collective there; in turn, as the buffers
};

struct Channel::Header {
  alignas(kLine) std::atomic<uint32_t> wake;  // changes when a barrier is complete; sleepers wait for that
  Member members[1];                          // one for each member
};

size_t Channel::Bytes(size_t members) {
  const size_t header = (sizeof(Header) + members * sizeof(Member) + kPage - 1) / kPage * kPage;
  return header + members * 2 * kBuffer;
}

Channel::Channel(World *world, std::string group, std::vector<uint32_t> ranks, std::unique_ptr<SharedMemory> memory)
    : world_(world), group_(std::move(group)), ranks_(std::move(ranks)), memory_(std::move(memory)) {
  // New memory is all zeros, which is the representation of an atomic counter of zero.
  static_assert(std::atomic<uint32_t>::is_always_lock_free, "a lock would belong to one process");
  header_ = reinterpret_cast<Header *>(memory_->data());
  me_ = std::find(ranks_.begin(), ranks_.end(), world_->rank()) - ranks_.begin();
}

Channel::Member &Channel::At(size_t member) { return header_->members[member]; }

char *Channel::Buffer(size_t member, uint32_t round) {
  const size_t buffers = Bytes(size()) - size() * 2 * kBuffer;
  return memory_->data() + buffers + (member * 2 + (round & 1)) * kBuffer;
}

void Channel::Begin(const Call &call) { call_ = call.Packed(); }

void Channel::Barrier() {
  ++round_;
  Member &mine = At(me_);
  mine.call[round_ & 1] = call_;
  mine.round.store(round_);
  // Stores and loads are sequentially consistent: the last member to arrive sees that all have, and wakes the others.
  if (AllArrived()) {
    header_->wake.fetch_add(1);
    syscall(SYS_futex, &header_->wake, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  } else {
    Wait();
  }
  CheckCalls();
}

bool Channel::AllArrived() {
  for (size_t member = 0; member < size(); ++member) {
    if (static_cast<int32_t>(At(member).round.load() - round_) < 0) return false;  // rounds may wrap around
  }
  return true;
}

void Channel::Wait() {
  auto missing = [this] {
    std::vector<uint32_t> ranks;
    for (size_t member = 0; member < size(); ++member) {
      if (static_cast<int32_t>(At(member).round.load() - round_) < 0) ranks.push_back(ranks_[member]);
    }
    return ranks;
  };
  world_->Await(&header_->wake, [this] { return AllArrived(); }, missing,
                [this] { return Call::Describe(call_) + " in group " + group_; });
}

void Channel::CheckCalls() {
  for (size_t member = 0; member < size(); ++member) {
    const uint64_t theirs = At(member).call[round_ & 1];
    if (theirs == call_) continue;
    Fail("workers disagree in group " + group_ + ": " + world_->Name(world_->rank()) + " runs " +
         Call::Describe(call_) + ", " + world_->Name(ranks_[member]) + " runs " + Call::Describe(theirs) +
         "; build the same network in all of them");
  }
}

struct Lane::Header {
  alignas(kLine) std::atomic<uint32_t> sent;  // messages so far
  alignas(kLine) std::atomic<uint32_t> received;
};

size_t Lane::MemoryBytes(size_t bytes) { return kPage + bytes; }

Lane::Lane(World *world, uint32_t from, uint32_t to, int64_t tag, size_t bytes, std::unique_ptr<SharedMemory> memory)
    : world_(world), from_(from), to_(to), tag_(tag), bytes_(bytes), memory_(std::move(memory)) {
  static_assert(sizeof(Header) <= kPage, "the message starts at the second page");
  header_ = reinterpret_cast<Header *>(memory_->data());
}

std::string Lane::Task(const char *verb) const {
  return std::string(verb) + " of " + std::to_string(bytes_) + " bytes from " + world_->Name(from_) + " to " +
         world_->Name(to_) + " with tag " + std::to_string(tag_);
}

void Lane::Send(const char *in) {
  std::lock_guard<std::mutex> lock(mutex_);
  const uint32_t number = header_->sent.load();
  auto empty = [&] { return header_->received.load() == number; };
  auto missing = [&] { return empty() ? std::vector<uint32_t>() : std::vector<uint32_t>{to_}; };
  if (!empty()) world_->Await(&header_->received, empty, missing, [this] { return Task("Send"); });
  std::memcpy(memory_->data() + kPage, in, bytes_);
  header_->sent.store(number + 1);
  syscall(SYS_futex, &header_->sent, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Lane::Receive(char *out) {
  std::lock_guard<std::mutex> lock(mutex_);
  const uint32_t number = header_->received.load();
  auto full = [&] { return header_->sent.load() != number; };
  auto missing = [&] { return full() ? std::vector<uint32_t>() : std::vector<uint32_t>{from_}; };
  if (!full()) world_->Await(&header_->sent, full, missing, [this] { return Task("Receive"); });
  std::memcpy(out, memory_->data() + kPage, bytes_);
  header_->received.store(number + 1);
  syscall(SYS_futex, &header_->received, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// A worker's messages to the others. Only its owner writes it, so that no lock is needed.
struct World::Board {
  static constexpr uint32_t kShared = 16384;
  std::atomic<uint32_t> ended;
  std::atomic<uint32_t> shared;  // how many of the following are valid: memory of groups and lanes
  struct {
    uint64_t key;
    int64_t fd;
  } at[kShared];
};

namespace {
std::unique_ptr<SharedMemory> g_board;
std::unique_ptr<World> g_world;
}  // namespace

WorkerInfo World::CreateBoard() {
  if (g_board == nullptr) g_board = std::make_unique<SharedMemory>(sizeof(Board));
  return {getpid(), StartTime(getpid()), g_board->fd()};
}

void World::Open(size_t rank, const std::vector<WorkerInfo> &workers, double patience) {
  g_world.reset(new World(rank, workers, patience));
}

bool World::IsOpen() { return g_world != nullptr; }

World &World::Get() {
  if (g_world == nullptr) throw std::runtime_error("the host back end is not installed: call host.install() first");
  return *g_world;
}

World::World(size_t rank, std::vector<WorkerInfo> workers, double patience)
    : rank_(rank), workers_(std::move(workers)), patience_(patience) {
  for (size_t other = 0; other < workers_.size(); ++other) {
    if (other == rank) {
      boards_.push_back(std::move(g_board));
      continue;
    }
    const WorkerInfo &worker = workers_[other];
    if (StartTime(worker.pid) != worker.start_time) {  // a process may have that pid, but it is another one
      throw std::runtime_error(Name(other) + " does not run on this machine: start all workers on one");
    }
    boards_.push_back(std::make_unique<SharedMemory>(worker, static_cast<int>(worker.board), sizeof(Board)));
  }
}

const World::Board &World::BoardOf(size_t rank) const {
  return *reinterpret_cast<const Board *>(boards_[rank]->data());
}

void World::Await(std::atomic<uint32_t> *word, const std::function<bool()> &done,
                  const std::function<std::vector<uint32_t>()> &missing, const std::function<std::string()> &task) {
  for (int i = 0; i < kYields; ++i) {
    sched_yield();
    if (done()) return;
  }
  const auto since = Clock::now();
  const timespec poll{0, kPoll};
  while (true) {
    const uint32_t before = word->load();
    if (done()) return;
    const long woken = syscall(SYS_futex, word, FUTEX_WAIT, before, &poll, nullptr, 0);
    if (woken == 0 || errno != ETIMEDOUT) continue;
    for (const uint32_t rank : missing()) {
      const bool ended = HasEnded(rank);  // checked before what it did: it may come and then end
      const std::vector<uint32_t> still = missing();
      if (std::find(still.begin(), still.end(), rank) == still.end()) continue;
      const std::string impossible = task() + " is not possible";
      if (ended) Fail(Name(rank) + " is gone: " + impossible + "; see its log");
      if (Seconds(since) > patience_) {
        Fail(Name(rank) + " has not come for " + std::to_string(static_cast<int>(patience_)) + " s: " + impossible);
      }
    }
  }
}

std::unique_ptr<SharedMemory> World::Shared(uint64_t key, uint32_t owner, size_t bytes, const std::string &purpose) {
  if (owner == rank_) {
    std::lock_guard<std::mutex> lock(board_mutex_);
    auto memory = std::make_unique<SharedMemory>(bytes);
    Board &board = const_cast<Board &>(BoardOf(rank_));
    const uint32_t count = board.shared.load();
    if (count == Board::kShared) throw std::runtime_error("the host back end has no room to open " + purpose);
    board.at[count].key = key;
    board.at[count].fd = memory->fd();
    board.shared.store(count + 1);
    return memory;
  }
  const Board &board = BoardOf(owner);
  const auto since = Clock::now();
  while (true) {
    const bool ended = HasEnded(owner);
    for (uint32_t i = 0, count = board.shared.load(); i < count; ++i) {
      if (board.at[i].key != key) continue;
      return std::make_unique<SharedMemory>(workers_[owner], static_cast<int>(board.at[i].fd), bytes);
    }
    if (ended) Fail(Name(owner) + " is gone: it did not open " + purpose);
    if (Seconds(since) > patience_) Fail(Name(owner) + " has not opened " + purpose);
    const timespec pause{0, 1000 * 1000};
    nanosleep(&pause, nullptr);
  }
}

std::shared_ptr<Channel> World::Join(const std::string &group, const std::vector<uint32_t> &ranks) {
  if (std::find(ranks.begin(), ranks.end(), rank_) == ranks.end()) {
    throw std::runtime_error(Name(rank_) + " does not belong to group " + group);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t key = Key(group, ranks);
  std::shared_ptr<Channel> &channel = channels_[key];
  if (channel == nullptr) {
    auto memory = Shared(key, ranks[0], Channel::Bytes(ranks.size()), "group " + group);
    channel = std::make_shared<Channel>(this, group, ranks, std::move(memory));
  }
  return channel;
}

std::shared_ptr<Lane> World::OpenLane(uint32_t from, uint32_t to, int64_t tag, size_t bytes) {
  const std::string name = "the lane of tag " + std::to_string(tag) + " and " + std::to_string(bytes) + " bytes to " +
                           Name(to);
  const uint64_t key = Key(name, {from, to});
  {
    std::lock_guard<std::mutex> lock(lanes_mutex_);
    const auto found = lanes_.find(key);
    if (found != lanes_.end()) return found->second;
  }
  auto memory = Shared(key, from, Lane::MemoryBytes(bytes), name);  // may wait, without the lock
  auto lane = std::make_shared<Lane>(this, from, to, tag, bytes, std::move(memory));
  std::lock_guard<std::mutex> lock(lanes_mutex_);
  return lanes_.emplace(key, std::move(lane)).first->second;
}

void World::End() { const_cast<Board &>(BoardOf(rank_)).ended.store(1); }

bool World::HasEnded(size_t rank) const {
  return BoardOf(rank).ended.load() != 0 || StartTime(workers_[rank].pid) != workers_[rank].start_time;
}

std::string World::Name(size_t rank) const {
  return "worker " + std::to_string(rank) + " (pid " + std::to_string(workers_[rank].pid) + ")";
}

}  // namespace mindspore_palm::host
