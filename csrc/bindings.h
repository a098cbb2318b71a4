// What every operator's bindings share: addresses and sizes in, nothing owned. glimodern/ops/ checks shapes, dtypes and
// contiguity. The GIL is released while a kernel runs; C++ exceptions become ValueError (invalid_argument) or
// MemoryError.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>

#include "contention.h"
#include "glimodern/dtype.h"

namespace glimodern {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline int checked_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  watch_contention(threads);
  return threads;
}

// work(float{}) or, for fp64, work(double{}): the argument's type is the wide one.
template <class F>
auto widely(Dtype dtype, F&& work) {
  return dtype == Dtype::fp64 ? work(double{}) : work(float{});
}

// One an operator (or family), in its folder's bindings.cpp.
void bind_chain(nanobind::module_&);
void bind_dropout(nanobind::module_&);
void bind_fma_ceiling(nanobind::module_&);
void bind_select_spans(nanobind::module_&);
void bind_span(nanobind::module_&);
void bind_attention_varlen(nanobind::module_&);
void bind_encoder(nanobind::module_&);
void bind_linear_packed(nanobind::module_&);
void bind_span_vectors(nanobind::module_&);

}  // namespace glimodern
