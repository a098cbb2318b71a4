// Shorter spin waits while other processes share the cores.
//
// A waiting libgomp thread (for work, or at the barrier of a parallel region) spins for up to some milliseconds. On
// idle cores spinning is fastest. Beside a busy process it is slowest: the spinning thread occupies a core that a
// working thread of the same region needs, and one neighbour makes a step three times slower instead of 1.5 times. The
// spin count is read once from the environment (GOMP_SPINCOUNT, OMP_WAIT_POLICY), usually before this module is loaded.
// But while a process has more OpenMP threads than CPUs, libgomp's threads spin 100 times and then sleep
// (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). So while the kernel reports that threads of this
// process wait for a core, an additional, idle OpenMP team is kept alive.
#pragma once

#include <cstdint>

namespace glimodern {

// Call before a parallel region of `threads` threads. Reads every 100 ms how long threads waited for a core; otherwise
// it costs one read of the clock. Does nothing if the user set a wait policy, or if the kernel reports no waiting
// times.
void watch_contention(int threads);

// Whether cores are shared, judged by the time (ns) that all threads of the process ran and waited for a core since the
// last reading. Hysteresis: true from a waiting share of 28 % on, until it falls below 12 %. Measured: 2 to 15 % on
// idle cores, 38 to 45 % with one neighbour on two cores.
bool cores_are_shared(bool before, int64_t ran, int64_t waited);

// Starts or ends the idle team, and returns whether it exists. False too if no more threads can be started.
bool set_short_waits(bool on, int threads);
bool short_waits();

}  // namespace glimodern
