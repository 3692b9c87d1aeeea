// How worker processes on one machine hand data to each other: shared memory and a meeting point for each group.
//
// MindSpore's own library for CPU sends every collective through TCP and protocol buffers. Workers of the host back end
// always live on one machine, where memory can be shared. It is anonymous (memfd_create): it has no name that two runs
// could both choose or that a crash could leave behind, and /dev/shm, which containers keep small, is not needed.
#ifndef MINDSPORE_PALM_PARALLEL_HOST_EXCHANGE_H_
#define MINDSPORE_PALM_PARALLEL_HOST_EXCHANGE_H_

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace mindspore_palm::host {

// What every worker tells every other one, once. Plain numbers: MindSpore's all-gather of int64 carries them.
struct Card {
  int64_t pid;
  int64_t born;   // when the process started, in clock ticks since boot: a process that got the pid later has another
  int64_t board;  // the file descriptor of its notice board, in that process
};

// A piece of memory that several processes see.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes);                // a new one, all zeros
  SharedMemory(const Card &owner, int fd, size_t bytes);  // another process's
  ~SharedMemory();
  SharedMemory(const SharedMemory &) = delete;
  SharedMemory &operator=(const SharedMemory &) = delete;

  char *data() const { return data_; }
  int fd() const { return fd_; }  // of a new one; -1 of another process's

 private:
  void Map(int fd);

  char *data_{nullptr};
  size_t bytes_;
  int fd_{-1};
};

// What a worker is about to do in a group. All members must be about to do the same.
struct Call {
  enum Kind : uint8_t { kAllGather = 1, kAllReduce, kReduceScatter };
  Kind kind;
  uint8_t reduce;  // a Reduce, or 0
  uint8_t type;    // a MindSpore type, or 0 where only bytes count
  size_t bytes;    // of this worker's input

  uint64_t Packed() const;
  static std::string Describe(uint64_t packed);
};

class World;

// The members of a group and their buffers. A round is: write Mine(), Meet(), read Theirs(). Two buffers take turns, so
// that one meeting a round is enough: who writes round k + 1 writes where round k - 1 was, and all have read that.
class Channel {
 public:
  static constexpr size_t kBuffer = size_t(1) << 20;

  Channel(World *world, std::string group, std::vector<uint32_t> ranks, std::unique_ptr<SharedMemory> memory);
  static size_t Bytes(size_t members);

  size_t size() const { return ranks_.size(); }
  size_t me() const { return me_; }
  std::mutex &mutex() { return mutex_; }  // held for a whole collective: kernels may run on several threads

  void Begin(const Call &call);
  char *Mine() { return Buffer(me_, step_ + 1); }
  const char *Theirs(size_t member) { return Buffer(member, step_); }
  // Waits until all members have written this round's buffer.
  // Throws std::runtime_error: a member is gone, is about to do something else, or has not come for too long.
  void Meet();

 private:
  struct Seat;
  struct Table;

  Seat &At(size_t member);
  char *Buffer(size_t member, uint32_t step);
  bool Complete();
  void Wait();
  void Compare();

  World *world_;
  std::string group_;
  std::vector<uint32_t> ranks_;
  std::unique_ptr<SharedMemory> memory_;
  Table *table_;
  size_t me_{0};
  uint32_t step_{0};
  uint64_t call_{0};
  std::mutex mutex_;
};

// All workers of this run.
class World {
 public:
  // Opens this worker's notice board; the card goes to all others.
  static Card Introduce();
  // Everybody's cards are here, in order of rank. A worker that is alive is awaited for `patience` seconds.
  // Throws std::runtime_error: a worker is not on this machine, or not this user's.
  static void Open(size_t rank, const std::vector<Card> &cards, double patience);
  // Throws std::runtime_error: Open was not called.
  static World &Get();
  static bool IsOpen();

  size_t rank() const { return rank_; }
  size_t size() const { return cards_.size(); }
  double patience() const { return patience_; }

  // The channel of a group that this worker belongs to. Its first member opens it; the others wait for that.
  std::shared_ptr<Channel> Join(const std::string &group, const std::vector<uint32_t> &ranks);
  // Says that this worker will take part in nothing any more.
  void End();
  bool Gone(size_t rank) const;
  // "worker 3 (pid 4711)"
  std::string Name(size_t rank) const;

 private:
  struct Board;

  World(size_t rank, std::vector<Card> cards, double patience);
  const Board &BoardOf(size_t rank) const;

  size_t rank_;
  std::vector<Card> cards_;
  double patience_;
  std::vector<std::unique_ptr<SharedMemory>> boards_;
  std::mutex mutex_;
  std::map<uint64_t, std::shared_ptr<Channel>> channels_;
};

}  // namespace mindspore_palm::host

#endif  // MINDSPORE_PALM_PARALLEL_HOST_EXCHANGE_H_
