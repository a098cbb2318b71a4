// Two vectors of class V side by side. Two dependency chains in flight hide each other's latency where the processor's
// scheduler is too short to overlap successive vectors.
#pragma once

#include "bf16.h"

namespace {

template <class V>
struct Pair {
  struct F {
    typename V::F x, y;
  };
  static constexpr int width = 2 * V::width;

  static F load(const float* p) { return {V::load(p), V::load(p + V::width)}; }
  static void store(float* p, F a) { V::store(p, a.x), V::store(p + V::width, a.y); }
  template <class T>
  static F loadu(const T* p) {
    return {V::loadu(p), V::loadu(p + V::width)};
  }
  static void storeu(float* p, F a) { V::storeu(p, a.x), V::storeu(p + V::width, a.y); }
  static void storeu_exact(float* p, F a) { storeu(p, a); }  // a is already rounded to the storage type
  static F round_to_storage(F a) { return a; }
  static F set1(float a) { return {V::set1(a), V::set1(a)}; }
  static F zero() { return {V::zero(), V::zero()}; }
  static F add(F a, F b) { return {V::add(a.x, b.x), V::add(a.y, b.y)}; }
  static F sub(F a, F b) { return {V::sub(a.x, b.x), V::sub(a.y, b.y)}; }
  static F mul(F a, F b) { return {V::mul(a.x, b.x), V::mul(a.y, b.y)}; }
  static double reduce_add(F a) { return V::reduce_add(V::add(a.x, a.y)); }
  static F div(F a, F b) { return {V::div(a.x, b.x), V::div(a.y, b.y)}; }
  static F fma(F a, F b, F c) { return {V::fma(a.x, b.x, c.x), V::fma(a.y, b.y, c.y)}; }
  static F fms(F a, F b, F c) { return {V::fms(a.x, b.x, c.x), V::fms(a.y, b.y, c.y)}; }
  static F min(F a, F b) { return {V::min(a.x, b.x), V::min(a.y, b.y)}; }
  static F abs(F a) { return {V::abs(a.x), V::abs(a.y)}; }
  static F round(F a) { return {V::round(a.x), V::round(a.y)}; }
  static F where_negative(F a, F yes, F no) {
    return {V::where_negative(a.x, yes.x, no.x), V::where_negative(a.y, yes.y, no.y)};
  }
  static F where_positive(F a, F b) { return {V::where_positive(a.x, b.x), V::where_positive(a.y, b.y)}; }
  static F times_power_of_two(F a, F n) { return {V::times_power_of_two(a.x, n.x), V::times_power_of_two(a.y, n.y)}; }
};

// Pair for bf16 storage: x has the elements of even index, y those of odd index. This lane order takes the fewest
// operations to load and to store. load and store access scratch in lane order; loadu and storeu access memory order.
//
// Rounding adds to the bits of a value. It would turn a NaN whose lower half is not zero into infinity or zero. No such
// NaN occurs: a bf16 NaN and the NaN of an operation have a lower half of zeros, operations pass on the bits of their
// operand's NaN, and loadu from fp32 replaces NaN by the canonical one.
template <class V>
struct EvenOdd : Pair<V> {
  using F = typename Pair<V>::F;

  static F loadu(const Bf16* p) {
    F a;
    V::load_even_odd(p, &a.x, &a.y);
    return a;
  }
  static F loadu(const float* p) {
    F a;
    V::load_even_odd(p, &a.x, &a.y);
    return {V::canonical_nan(a.x), V::canonical_nan(a.y)};
  }
  template <class T>
  static void storeu(T* p, F a) {
    V::store_even_odd(p, a.x, a.y);
  }
  static void storeu_exact(Bf16* p, F a) { V::store_even_odd_exact(p, a.x, a.y); }
  static F set1(float a) { return Pair<V>::set1(a == a ? a : __builtin_nanf("")); }
  static F round_to_storage(F a) { return {V::round_to_bf16(a.x), V::round_to_bf16(a.y)}; }
};

}  // namespace
