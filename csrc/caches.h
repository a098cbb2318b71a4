// How much of this machine's caches a kernel may count on.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace glimodern {

// Static: every instruction set compiles its own. Half of a core's first (data) or second cache: one operand stays
// there while another passes through. Where the system does not tell, half of 32 KB and of 512 KB.
static inline int64_t half_level1() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  if (bytes > 0) return bytes / 2;
#endif
  return 16 << 10;
}

static inline int64_t half_level2() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes / 2;
#endif
  return 256 << 10;
}

}  // namespace glimodern
