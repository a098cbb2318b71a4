// Helpers of all bindings. The bindings take addresses and sizes, and own nothing. glimodern/ops/ checks shapes, dtypes
// and contiguity. Bindings release the GIL while a kernel runs. C++ exceptions become ValueError (invalid_argument) or
// MemoryError.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "contention.h"
#include "glimodern/dtype.h"

namespace glimodern {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline int checked_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads: expected at least 1, got " + std::to_string(threads));
  watch_contention(threads);
  return threads;
}

// body(Acc{}) with the accumulator type Acc of dtype.
template <class Body>
auto with_accumulator(Dtype dtype, Body&& body) {
  return dtype == Dtype::fp64 ? body(double{}) : body(float{});
}

// One per operator or family of operators, in its folder's bindings.cpp.
void bind_chain(nanobind::module_&);
void bind_dropout(nanobind::module_&);
void bind_fma_ceiling(nanobind::module_&);
void bind_select_spans(nanobind::module_&);
void bind_span(nanobind::module_&);
void bind_attention_varlen(nanobind::module_&);
void bind_encoder(nanobind::module_&);
void bind_linear_packed(nanobind::module_&);
void bind_span_vectors(nanobind::module_&);
void bind_token_scores(nanobind::module_&);

}  // namespace glimodern
