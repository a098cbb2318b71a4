// Cache sizes that kernels block for.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace glimodern {

// Half of a core's L1 data cache or L2 cache in bytes: one operand stays in it while another streams through the other
// half. Half of 32 KB and of 512 KB where the system does not report sizes. Static: every instruction set compiles its
// own copy.
static inline int64_t half_l1_bytes() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  if (bytes > 0) return bytes / 2;
#endif
  return 16 << 10;
}

static inline int64_t half_l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes / 2;
#endif
  return 256 << 10;
}

}  // namespace glimodern
