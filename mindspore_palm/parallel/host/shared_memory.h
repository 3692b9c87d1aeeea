// Data transfer between worker processes on one machine: shared memory, with a barrier for each group.
//
// MindSpore's own library for CPU sends every collective through TCP and protocol buffers. Workers of the host back end
// always run on one machine and can share memory. It is anonymous (memfd_create): it has no name that two runs could
// both choose or that a crash could leave behind, and it does not need /dev/shm, which containers keep small.
#ifndef MINDSPORE_PALM_PARALLEL_HOST_SHARED_MEMORY_H_
#define MINDSPORE_PALM_PARALLEL_HOST_SHARED_MEMORY_H_

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace mindspore_palm::host {

// The identity of a worker, which it sends to all others once. Integers only, for MindSpore's all-gather of int64.
struct WorkerInfo {
  int64_t pid;
  int64_t start_time;  // of the process, in clock ticks since boot: a later process with the same pid has another one
  int64_t board;       // file descriptor of its notice board, in that process
};

// Memory that several processes map.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes);                          // new memory, all zeros
  SharedMemory(const WorkerInfo &owner, int fd, size_t bytes);  // memory of another process
  ~SharedMemory();
  SharedMemory(const SharedMemory &) = delete;
  SharedMemory &operator=(const SharedMemory &) = delete;

  char *data() const { return data_; }
  int fd() const { return fd_; }  // of new memory; -1 for that of another process

 private:
  void Map(int fd);

  char *data_{nullptr};
  size_t bytes_;
  int fd_{-1};
};

// The collective that a worker is about to run in a group. All members must run the same one.
struct Call {
  enum Kind : uint8_t { kAllGather = 1, kAllReduce, kReduceScatter };
  Kind kind;
  uint8_t reduce;  // a Reduce, or 0
  uint8_t type;    // a MindSpore type, or 0 where only bytes matter
  size_t bytes;    // of this worker's input

  uint64_t Packed() const;
  static std::string Describe(uint64_t packed);
};

class World;

// The members of a group and their buffers. A round is: write Mine(), Barrier(), read Theirs(). Each member has two
// buffers in turn, so that one barrier per round is enough: round k + 1 overwrites round k - 1, which all have read.
class Channel {
 public:
  static constexpr size_t kBuffer = size_t(1) << 20;

  Channel(World *world, std::string group, std::vector<uint32_t> ranks, std::unique_ptr<SharedMemory> memory);
  static size_t Bytes(size_t members);

  size_t size() const { return ranks_.size(); }
  size_t me() const { return me_; }
  std::mutex &mutex() { return mutex_; }  // held for a whole collective: kernels may run on several threads

  void Begin(const Call &call);
  char *Mine() { return Buffer(me_, round_ + 1); }
  const char *Theirs(size_t member) { return Buffer(member, round_); }
  // Waits until all members have written this round's buffer.
  // Throws std::runtime_error: a member has ended, runs another collective, or has not arrived in time.
  void Barrier();

 private:
  struct Member;
  struct Header;

  Member &At(size_t member);
  char *Buffer(size_t member, uint32_t round);
  bool AllArrived();
  void Wait();
  void CheckCalls();

  World *world_;
  std::string group_;
  std::vector<uint32_t> ranks_;
  std::unique_ptr<SharedMemory> memory_;
  Header *header_;
  size_t me_{0};
  uint32_t round_{0};
  uint64_t call_{0};
  std::mutex mutex_;
};

// Messages from one worker to another, one at a time: a message waits in shared memory until it is received, so that the
// sender waits only if the message before it is still there. The order in which a worker sends and receives on different
// lanes is therefore free.
class Lane {
 public:
  Lane(World *world, uint32_t from, uint32_t to, int64_t tag, size_t bytes, std::unique_ptr<SharedMemory> memory);
  static size_t MemoryBytes(size_t bytes);

  // Throws std::runtime_error: the other worker has ended, or has not come in time.
  void Send(const char *in);
  void Receive(char *out);

 private:
  struct Header;

  std::string Task(const char *verb) const;

  World *world_;
  uint32_t from_, to_;
  int64_t tag_;
  size_t bytes_;
  std::unique_ptr<SharedMemory> memory_;
  Header *header_;
  std::mutex mutex_;
};

// All workers of a run.
class World {
 public:
  // Creates this worker's notice board; returns the info for all other workers.
  static WorkerInfo CreateBoard();
  // `workers` holds the infos of all workers, by rank. Waits at most `patience` seconds for a worker that is alive.
  // Throws std::runtime_error: a worker is not on this machine, or belongs to another user.
  static void Open(size_t rank, const std::vector<WorkerInfo> &workers, double patience);
  // Throws std::runtime_error: Open was not called.
  static World &Get();
  static bool IsOpen();

  size_t rank() const { return rank_; }
  size_t size() const { return workers_.size(); }
  double patience() const { return patience_; }

  // The channel of a group that this worker belongs to. The group's first member creates it; the others wait for that.
  std::shared_ptr<Channel> Join(const std::string &group, const std::vector<uint32_t> &ranks);
  // The lane of a tag and a size, which its sender creates; the receiver waits for that.
  std::shared_ptr<Lane> OpenLane(uint32_t from, uint32_t to, int64_t tag, size_t bytes);
  // Waits until `done`, which another worker brings about and then changes `word` and wakes its sleepers. `missing` is
  // the first worker that it still waits for; `task` is what cannot be done without it.
  // Throws std::runtime_error: that worker has ended, or has not come in time.
  void Await(std::atomic<uint32_t> *word, const std::function<bool()> &done,
             const std::function<std::vector<uint32_t>()> &missing, const std::function<std::string()> &task);
  // Announces that this worker joins no further collectives.
  void End();
  bool HasEnded(size_t rank) const;
  // "worker 3 (pid 4711)"
  std::string Name(size_t rank) const;

 private:
  struct Board;

  World(size_t rank, std::vector<WorkerInfo> workers, double patience);
  const Board &BoardOf(size_t rank) const;
  // Memory that `owner` creates under a key, and shows on its board. Waits for that; `purpose` is for the error.
  std::unique_ptr<SharedMemory> Shared(uint64_t key, uint32_t owner, size_t bytes, const std::string &purpose);

  size_t rank_;
  std::vector<WorkerInfo> workers_;
  double patience_;
  std::vector<std::unique_ptr<SharedMemory>> boards_;
  std::mutex mutex_;
  std::map<uint64_t, std::shared_ptr<Channel>> channels_;
  std::mutex lanes_mutex_, board_mutex_;
  std::map<uint64_t, std::shared_ptr<Lane>> lanes_;
};

}  // namespace mindspore_palm::host

#endif  // MINDSPORE_PALM_PARALLEL_HOST_SHARED_MEMORY_H_
