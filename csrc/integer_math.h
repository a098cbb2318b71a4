// Integer arithmetic on sizes and indices. Unnamed namespace: every instruction set compiles its own copy.
#pragma once

#include <cstdint>

namespace {

constexpr int64_t min(int64_t x, int64_t y) { return x < y ? x : y; }
constexpr int64_t max(int64_t x, int64_t y) { return x > y ? x : y; }
constexpr int64_t ceil_div(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }
constexpr int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

}  // namespace
