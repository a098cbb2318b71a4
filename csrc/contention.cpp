#include "contention.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <dirent.h>
#include <pthread.h>
#endif

namespace glimodern {
namespace {

constexpr int64_t kReadInterval = 100'000'000;  // ns
constexpr int64_t kMinSample = 10'000'000;      // ns of running and waiting needed for a judgement
// A reading takes 15 us per thread; the interval is at least this many times as long.
constexpr int64_t kIntervalPerReadTime = 200;

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Whether `threads` more threads can be started. libgomp aborts the process if it cannot start a thread of a team.
bool can_start(int threads) {
  std::mutex gate;
  std::vector<std::thread> tried;
  bool all = true;
  {
    const std::lock_guard<std::mutex> lock(gate);  // all threads exist at the same time
    try {
      tried.reserve(static_cast<size_t>(threads));
      for (int n = 0; n < threads; ++n) tried.emplace_back([&gate] { const std::lock_guard<std::mutex> wait(gate); });
    } catch (const std::system_error&) {
      all = false;
    } catch (const std::bad_alloc&) {
      all = false;
    }
  }
  for (std::thread& thread : tried) thread.join();
  return all;
}

// Keeps an OpenMP team alive in a detached thread until `end` is set. Shared by that thread and the State.
struct TeamHolder {
  std::mutex mutex;
  std::condition_variable changed;
  bool ready = false, end = false;

  void hold(int team) {
    std::atomic<int> started{0};
#if defined(_OPENMP)
#pragma omp parallel num_threads(team)
#endif
    started.fetch_add(1, std::memory_order_relaxed);  // the compiler removes an empty region
    std::unique_lock<std::mutex> lock(mutex);
    ready = true;
    changed.notify_all();
    changed.wait(lock, [this] { return end; });
  }
};

// Never destroyed: threads may use it until the process ends.
struct State {
  std::mutex mutex;
  std::shared_ptr<TeamHolder> holder;
  int64_t ran = 0, waited = 0;
  bool sampled = false;
};

State& state();

std::atomic<int64_t> next_reading{0};
std::atomic<bool> shortened{false};

#if defined(__linux__)
// In a forked child neither the holder nor its team exists, and a thread that no longer exists may hold the mutex.
void after_fork() {
  State* const old = &state();
  new (old) State;  // leaks the parent's holder and mutex
  shortened.store(false);
}
#endif

State& state() {
  static State* const kept = [] {
#if defined(__linux__)
    pthread_atfork(nullptr, nullptr, after_fork);
#endif
    return new State;
  }();
  return *kept;
}

// The time (ns) that all threads of this process ran and waited for a core. False if the kernel does not report it.
bool read_times(int64_t& ran, int64_t& waited) {
#if defined(__linux__)
  DIR* const tasks = opendir("/proc/self/task");
  if (tasks == nullptr) return false;
  bool any = false;
  ran = waited = 0;
  while (const dirent* const task = readdir(tasks)) {
    if (task->d_name[0] == '.') continue;
    char name[64];
    std::snprintf(name, sizeof(name), "/proc/self/task/%.20s/schedstat", task->d_name);
    std::FILE* const file = std::fopen(name, "r");
    if (file == nullptr) continue;  // the thread has ended
    long long run = 0, wait = 0;
    if (std::fscanf(file, "%lld %lld", &run, &wait) == 2) ran += run, waited += wait, any = true;
    std::fclose(file);
  }
  closedir(tasks);
  return any;
#else
  (void)ran, (void)waited;
  return false;
#endif
}

bool is_set(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr && value[0] != '\0';
}

}  // namespace

bool cores_are_shared(bool before, int64_t ran, int64_t waited) {
  const double share = static_cast<double>(waited) / static_cast<double>(ran + waited > 0 ? ran + waited : 1);
  return share > (before ? 0.12 : 0.28);
}

bool short_waits() { return shortened.load(std::memory_order_relaxed); }

bool set_short_waits(bool on, int threads) {
#if defined(_OPENMP) && defined(__linux__)
  State& kept = state();
  const std::lock_guard<std::mutex> lock(kept.mutex);
  if (on && kept.holder == nullptr) {
    // Together with the working team of `threads` threads: one thread more than CPUs.
    const int cpus = omp_get_num_procs(), additional = cpus >= threads ? cpus - threads + 1 : 1;
    if (!can_start(additional + 1)) return false;
    auto holder = std::make_shared<TeamHolder>();
    std::thread([holder, additional] { holder->hold(additional + 1); }).detach();
    std::unique_lock<std::mutex> wait(holder->mutex);
    holder->changed.wait(wait, [&] { return holder->ready; });
    kept.holder = holder;
  } else if (!on && kept.holder != nullptr) {
    {
      const std::lock_guard<std::mutex> tell(kept.holder->mutex);
      kept.holder->end = true;
    }
    kept.holder->changed.notify_all();
    kept.holder.reset();
  }
  shortened.store(on);
  return on;
#else
  (void)on, (void)threads;
  return false;
#endif
}

void watch_contention(int threads) {
#if defined(_OPENMP) && defined(__linux__)
  static const bool set_by_user = is_set("OMP_WAIT_POLICY") || is_set("GOMP_SPINCOUNT");
  if (threads < 2 || set_by_user) return;
  const int64_t time = now();
  int64_t due = next_reading.load(std::memory_order_relaxed);
  if (time < due || !next_reading.compare_exchange_strong(due, time + kReadInterval)) return;
  int64_t ran = 0, waited = 0;
  if (!read_times(ran, waited)) return;
  const int64_t read = now();
  if ((read - time) * kIntervalPerReadTime > kReadInterval)
    next_reading.store(read + (read - time) * kIntervalPerReadTime);
  State& kept = state();
  int64_t new_ran = 0, new_waited = 0;
  {
    const std::lock_guard<std::mutex> lock(kept.mutex);
    new_ran = ran - kept.ran, new_waited = waited - kept.waited;
    const bool usable = kept.sampled && new_ran >= 0 && new_waited >= 0;  // negative if threads have ended
    if (usable && new_ran + new_waited < kMinSample) return;
    kept.ran = ran, kept.waited = waited, kept.sampled = true;
    if (!usable) return;
  }
  const bool before = short_waits(), shared = cores_are_shared(before, new_ran, new_waited);
  if (shared != before && set_short_waits(shared, threads) != shared) {
    next_reading.store(now() + 100 * kReadInterval);  // no more threads can be started: try again in 10 s
  }
#else
  (void)threads;
#endif
}

}  // namespace glimodern
