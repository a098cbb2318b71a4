// Rows of any length, vector by vector, for every vector class V (csrc/simd/).
#pragma once

#include <cstdint>

#include "bf16.h"

namespace {

template <class V>
struct FullVector {
  template <class T>
  typename V::F load(const T* p) const {
    return V::loadu(p);
  }
  template <class T>
  void store(T* p, typename V::F x) const {
    V::storeu(p, x);
  }
  template <class T>
  void store_exact(T* p, typename V::F x) const {  // x is already rounded to T
    V::storeu_exact(p, x);
  }
  typename V::F mask(typename V::F x) const { return x; }
};

// The last vector of a row: only its first n lanes exist in memory, n < V::width.
template <class V>
struct PartialVector {
  int64_t n;

  template <class T>
  __attribute__((noinline)) typename V::F load(const T* p) const {  // zeros in the other lanes
    T elements[V::width] = {};
    for (int64_t i = 0; i < n; ++i) elements[i] = p[i];
    return V::loadu(elements);
  }
  template <class T>
  __attribute__((noinline)) void store(T* p, typename V::F x) const {
    T elements[V::width];
    V::storeu(elements, x);
    for (int64_t i = 0; i < n; ++i) p[i] = elements[i];
  }
  template <class T>
  void store_exact(T* p, typename V::F x) const {
    store(p, x);
  }
  typename V::F mask(typename V::F x) const {  // x with zeros in the other lanes
    float elements[V::width];
    V::storeu(elements, x);
    return load(elements);
  }
};

// Calls body(j, io) for every vector of a row of n elements; io is a FullVector, or a PartialVector at the end.
template <class V, class Body>
inline __attribute__((always_inline)) void for_each_vector(int64_t n, Body body) {
  int64_t j = 0;
  for (; j + V::width <= n; j += V::width) body(j, FullVector<V>{});
  if (j < n) body(j, PartialVector<V>{n - j});
}

// p [n] <- 0, rounded up to whole vectors; p is aligned.
template <class V>
void clear(float* p, int64_t n) {
  for (int64_t j = 0; j < n; j += V::width) V::store(p + j, V::zero());
}

}  // namespace
