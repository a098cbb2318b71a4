// Rows of any length, vector by vector, for every vector class V (csrc/simd/).
#pragma once

#include <cstdint>

#include "bf16.h"

namespace {

template <class V>
struct Whole {
  template <class T>
  typename V::F load(const T* p) const {
    return V::loadu(p);
  }
  template <class T>
  void store(T* p, typename V::F x) const {
    V::storeu(p, x);
  }
  template <class T>
  void store_exact(T* p, typename V::F x) const {  // numbers that are rounded already
    V::storeu_exact(p, x);
  }
  typename V::F only(typename V::F x) const { return x; }  // x, with zeros in lanes that do not exist
};

template <class V>
struct Part {
  int64_t n;  // numbers that exist, fewer than V::width; the others are loaded as zeros

  template <class T>
  __attribute__((noinline)) typename V::F load(const T* p) const {
    T numbers[V::width] = {};
    for (int64_t i = 0; i < n; ++i) numbers[i] = p[i];
    return V::loadu(numbers);
  }
  template <class T>
  __attribute__((noinline)) void store(T* p, typename V::F x) const {
    T numbers[V::width];
    V::storeu(numbers, x);
    for (int64_t i = 0; i < n; ++i) p[i] = numbers[i];
  }
  template <class T>
  void store_exact(T* p, typename V::F x) const {
    store(p, x);
  }
  typename V::F only(typename V::F x) const {
    float numbers[V::width];
    V::storeu(numbers, x);
    return load(numbers);
  }
};

// body(j, io) for every vector of a row of n numbers; io is Whole, or Part for what is left at the end.
template <class V, class Body>
inline __attribute__((always_inline)) void for_row(int64_t n, Body body) {
  int64_t j = 0;
  for (; j + V::width <= n; j += V::width) body(j, Whole<V>{});
  if (j < n) body(j, Part<V>{n - j});
}

}  // namespace
