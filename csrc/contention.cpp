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

constexpr int64_t kBetweenLooks = 100'000'000;  // ns
constexpr int64_t kLeastWork = 10'000'000;      // ns of running and waiting, to judge by
constexpr int64_t kWorkPerLook = 200;           // a look takes 15 us a thread: to the next, so many times as long

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Whether so many more threads can be made. libgomp ends the process where one of a team cannot.
bool can_start(int threads) {
  std::mutex held;
  std::vector<std::thread> tried;
  bool all = true;
  {
    const std::lock_guard<std::mutex> lock(held);  // so that they exist at one time
    try {
      tried.reserve(static_cast<size_t>(threads));
      for (int n = 0; n < threads; ++n) tried.emplace_back([&held] { const std::lock_guard<std::mutex> wait(held); });
    } catch (const std::system_error&) {
      all = false;
    } catch (const std::bad_alloc&) {
      all = false;
    }
  }
  for (std::thread& one : tried) one.join();
  return all;
}

// A thread that holds an OpenMP team, until told to end. It belongs to itself and to whoever made it.
struct Holder {
  std::mutex mutex;
  std::condition_variable changed;
  bool ready = false, end = false;

  void hold(int team) {
    std::atomic<int> started{0};
#if defined(_OPENMP)
#pragma omp parallel num_threads(team)
#endif
    started.fetch_add(1, std::memory_order_relaxed);  // without some work the region would be left out
    std::unique_lock<std::mutex> lock(mutex);
    ready = true;
    changed.notify_all();
    changed.wait(lock, [this] { return end; });
  }
};

// Leaked: threads may ask until the process ends.
struct State {
  std::mutex mutex;
  std::shared_ptr<Holder> holder;
  int64_t ran = 0, waited = 0;
  bool seen = false;
};

State& state();

std::atomic<int64_t> next_look{0};
std::atomic<bool> shortened{false};

#if defined(__linux__)
// In a forked child neither the holder nor its team exist, and the mutex may be held by a thread that does not either.
void after_fork() {
  State* const old = &state();
  new (old) State;  // the parent's holder is leaked with its mutex
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

// What all threads of this process ran, and waited for a core, ns. False where the kernel does not tell.
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
    // The team that works has `threads` threads; with these, one more than there are CPUs.
    const int cpus = omp_get_num_procs(), further = cpus >= threads ? cpus - threads + 1 : 1;
    if (!can_start(further + 1)) return false;
    auto holder = std::make_shared<Holder>();
    std::thread([holder, further] { holder->hold(further + 1); }).detach();
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
  static const bool chosen_by_user = is_set("OMP_WAIT_POLICY") || is_set("GOMP_SPINCOUNT");
  if (threads < 2 || chosen_by_user) return;
  const int64_t time = now();
  int64_t due = next_look.load(std::memory_order_relaxed);
  if (time < due || !next_look.compare_exchange_strong(due, time + kBetweenLooks)) return;
  int64_t ran = 0, waited = 0;
  if (!read_times(ran, waited)) return;
  const int64_t read = now();
  if ((read - time) * kWorkPerLook > kBetweenLooks) next_look.store(read + (read - time) * kWorkPerLook);
  State& kept = state();
  int64_t more_ran = 0, more_waited = 0;
  {
    const std::lock_guard<std::mutex> lock(kept.mutex);
    more_ran = ran - kept.ran, more_waited = waited - kept.waited;
    const bool usable = kept.seen && more_ran >= 0 && more_waited >= 0;  // less where threads have ended
    if (usable && more_ran + more_waited < kLeastWork) return;
    kept.ran = ran, kept.waited = waited, kept.seen = true;
    if (!usable) return;
  }
  const bool before = short_waits(), shared = cores_are_shared(before, more_ran, more_waited);
  if (shared != before && set_short_waits(shared, threads) != shared) {
    next_look.store(now() + 100 * kBetweenLooks);  // no more threads are to be had: ask again in some seconds
  }
#else
  (void)threads;
#endif
}

}  // namespace glimodern
