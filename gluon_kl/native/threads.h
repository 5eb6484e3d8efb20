// A few permanent threads that share independent pieces of work dynamically.
//
// Own threads rather than OpenMP: MXNet's engine calls operators from threads of its own and lets them use one OpenMP
// thread; GNU OpenMP hangs in the child of a fork, where DataLoader workers live; and no runtime has to be shipped.
#ifndef GLUON_KL_THREADS_H_
#define GLUON_KL_THREADS_H_

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace gluon_kl {

class Threads {
 public:
  static Threads& get() {
    // Never destroyed: MXNet may still run operators while the process winds down.
    static Threads* const threads = [] {
      pthread_atfork(nullptr, nullptr, [] { instance()->forget(); });
      return instance();
    }();
    return *threads;
  }

  // GLUON_KL_NUM_THREADS, else the cores this process may use, at most OMP_NUM_THREADS.
  int count() const { return limit_; }

  // task(i) for every i below `tasks`, on at most `wanted` threads. Which thread runs which task is left open.
  void run(int64_t tasks, int wanted, const std::function<void(int64_t)>& task) {
    if (wanted > limit_) wanted = limit_;
    if (tasks < wanted) wanted = static_cast<int>(tasks);
    std::unique_lock<std::mutex> turn(turn_, std::defer_lock);
    if (wanted < 2 || !turn.try_lock()) {  // another caller has the threads: go on alone
      for (int64_t i = 0; i < tasks; ++i) task(i);
      return;
    }
    start(wanted - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      tasks_ = tasks;
      next_.store(0, std::memory_order_relaxed);
      seats_ = wanted - 1;
      busy_ = 0;
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work(task, tasks);
    std::unique_lock<std::mutex> lock(mutex_);
    seats_ = 0;  // threads that have not started need not start
    done_.wait(lock, [this] { return busy_ == 0; });
    task_ = nullptr;
  }

 private:
  Threads() : limit_(decide()) {}

  static Threads* instance() {
    alignas(Threads) static unsigned char memory[sizeof(Threads)];
    static Threads* const made = new (memory) Threads;
    return made;
  }

  // In the child of a fork only the calling thread lives on; locks may be held by threads that are gone.
  void forget() {
    const int limit = limit_;
    new (this) Threads;
    limit_ = limit;
  }

  static int positive(const char* name) {
    const char* text = getenv(name);
    const long value = text ? strtol(text, nullptr, 10) : 0;  // "4,2" (nested levels) is read as 4
    return value > 0 && value < 4096 ? static_cast<int>(value) : 0;
  }
  static int decide() {
    if (const int own = positive("GLUON_KL_NUM_THREADS")) return own;
    int cores = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
#endif
    if (cores < 1) cores = 1;
    const int omp = positive("OMP_NUM_THREADS");
    return omp && omp < cores ? omp : cores;
  }

  // If the system allows no more threads (RLIMIT_NPROC), the existing ones are used; the next call tries again.
  void start(int helpers) {
    try {
      for (; helpers_ < helpers; ++helpers_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void work(const std::function<void(int64_t)>& task, int64_t tasks) {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
  }

  void serve() {
    uint64_t seen = 0;
    for (;;) {
      // Backward follows forward closely, so a thread waits actively for a while before it sleeps.
      for (int spin = 0; spin < kSpins && round_.load(std::memory_order_acquire) == seen; ++spin) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_.load(std::memory_order_relaxed) != seen; });
      seen = round_.load(std::memory_order_relaxed);
      if (seats_ == 0) continue;
      --seats_;
      ++busy_;
      const std::function<void(int64_t)>& task = *task_;
      const int64_t tasks = tasks_;
      lock.unlock();
      work(task, tasks);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  static constexpr int kSpins = 2000;

  int limit_;
  int helpers_ = 0;
  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int64_t> next_{0};
  const std::function<void(int64_t)>* task_ = nullptr;
  int64_t tasks_ = 0;
  int seats_ = 0, busy_ = 0;
};

}  // namespace gluon_kl
#endif  // GLUON_KL_THREADS_H_
