// The instruction sets that the CPU kernels are written for, and the choice among them at run time.
#pragma once

#include <string>
#include <vector>

namespace glimodern {

// avx512_bf16: avx512 with the product of bf16 pairs; amx: that with VNNI and matrix products of bf16 and int8 tiles.
// Both for the operators that ask for them.
enum class Isa { scalar = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };

// Built into this library and usable on this machine (processor and operating system), best last.
std::vector<Isa> available_isas();

// The one that runs: set_isa()'s, else the environment variable GLIMODERN_ISA's (read at every call), else the best; or
// `most`, the last that an operator has kernels for. Throws std::invalid_argument for an unknown name or one that this
// machine or build does not have.
Isa current_isa(Isa most = Isa::avx512);

// Forces one by name; the empty string lifts the force. Throws like current_isa().
void set_isa(const std::string& name);

const char* isa_name(Isa isa);

}  // namespace glimodern
