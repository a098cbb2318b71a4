// Shorter waits where other processes share the cores.
//
// A thread of libgomp that waits, for work or for the other threads of a parallel region, spins for up to some
// milliseconds. On idle cores that is the fastest way. Beside a busy process it is the slowest: the waiting thread
// holds a core that a working thread of the same region needs, so one neighbour can make a step three times slower,
// not 1.5. The spin count is read once from the environment (GOMP_SPINCOUNT, OMP_WAIT_POLICY), usually before this
// module is loaded. But libgomp has a rule of its own: while a process has more OpenMP threads than CPUs, its threads
// spin 100 times and then sleep (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). So while the kernel
// reports that threads of this process wait for a core, one more OpenMP team exists, which never works.
#pragma once

#include <cstdint>

namespace glimodern {

// Call before a parallel region of so many threads. Every 100 ms it reads how long threads waited for a core; else it
// costs a look at the clock. Does nothing where the user chose a policy, or where the kernel does not tell.
void watch_contention(int threads);

// Whether cores are shared, judged by what all threads of the process ran and waited for a core since the last look
// (ns), and by what was so before: from 28 % of waiting on, until it falls under 12 %. Idle cores: 2 to 15 %, one
// neighbour on two cores: 38 to 45 %.
bool cores_are_shared(bool before, int64_t ran, int64_t waited);

// Makes the further team, or ends it; true if its threads exist now. False too where no more threads can be started.
bool set_short_waits(bool on, int threads);
bool short_waits();

}  // namespace glimodern
