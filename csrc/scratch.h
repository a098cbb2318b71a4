// 64-byte aligned scratch memory.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace glimodern {

struct AlignedDelete {
  void operator()(float* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
using Scratch = std::unique_ptr<float[], AlignedDelete>;

inline Scratch make_scratch(size_t floats) {
  return Scratch(static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t(64))));
}

// Floats rounded up to whole cache lines: threads that share one allocation share no line.
inline size_t whole_lines(size_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace glimodern
