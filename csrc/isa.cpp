#include "glimodern/isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(GLIMODERN_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace glimodern {
namespace {

std::atomic<int> forced{-1};

constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx};

#if defined(GLIMODERN_AMX)
// Linux enables the 8 KB of tile state on request: https://docs.kernel.org/arch/x86/xstate.html
bool request_tile_permission() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Reads AMX's bits of CPUID leaf 7, which __builtin_cpu_supports does not know before GCC 13.
bool machine_has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kAll) == kAll && request_tile_permission();
}
#endif

// __builtin_cpu_supports also checks by XGETBV that the operating system saves the vector registers.
bool machine_has(Isa isa) {
  if (isa == Isa::scalar) return true;
#if defined(GLIMODERN_X86)
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx512_bf16) {
#if defined(GLIMODERN_AVX512_BF16)
    return machine_has(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
  }
  if (isa == Isa::amx) {
#if defined(GLIMODERN_AMX)
    static const bool has = machine_has(Isa::avx512_bf16) && __builtin_cpu_supports("avx512vnni") && machine_has_amx();
    return has;
#else
    return false;
#endif
  }
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

Isa parse(const std::string& name) {
  std::string available;
  for (Isa isa : kIsas) {
    if (!machine_has(isa)) continue;
    if (name == isa_name(isa)) return isa;
    available += available.empty() ? "" : ", ";
    available += isa_name(isa);
  }
  throw std::invalid_argument("GLIMODERN_ISA: expected one of " + available +
                              " (available on this machine and build), got '" + name + "'");
}

}  // namespace

const char* isa_name(Isa isa) {
  static const char* const names[] = {"scalar", "avx2", "avx512", "avx512_bf16", "amx"};
  return names[static_cast<int>(isa)];
}

std::vector<Isa> available_isas() {
  std::vector<Isa> out;
  for (Isa isa : kIsas) {
    if (machine_has(isa)) out.push_back(isa);
  }
  return out;
}

namespace {

Isa requested_isa() {
  const int force = forced.load(std::memory_order_relaxed);
  if (force >= 0) return static_cast<Isa>(force);
  const char* name = std::getenv("GLIMODERN_ISA");
  if (name != nullptr && name[0] != '\0') return parse(name);
  static const Isa best = available_isas().back();
  return best;
}

}  // namespace

Isa current_isa(Isa max_isa) { return std::min(requested_isa(), max_isa); }

void set_isa(const std::string& name) { forced.store(name.empty() ? -1 : static_cast<int>(parse(name))); }

}  // namespace glimodern
