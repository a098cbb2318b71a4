// The instruction sets of the CPU kernels, and the selection at run time.
#pragma once

#include <string>
#include <vector>

namespace glimodern {

// avx512_bf16 adds dot products of bf16 pairs to avx512; amx adds tile products of bf16 and int8 to that. Only some
// operators have kernels for these two. int8 products use VNNI from avx512 on, where the processor has it.
enum class Isa { scalar = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };

// Those built into this library that the processor and the operating system support, best last.
std::vector<Isa> available_isas();

// The one that runs: that of set_isa(), else of the environment variable GLIMODERN_ISA (read at every call), else the
// best; at most max_isa, the best that the operator has kernels for. Throws std::invalid_argument for a name that is
// unknown or not available.
Isa current_isa(Isa max_isa = Isa::avx512);

// Forces one by name; the empty string removes the force. Throws like current_isa().
void set_isa(const std::string& name);

const char* isa_name(Isa isa);

}  // namespace glimodern
