// The kernels of each instruction set, on rows [first, last).
#pragma once

#include "glimodern/dropout.h"

namespace glimodern {

void dropout_rows_scalar(const DropoutRows&, int64_t first, int64_t last);
void dropout_rows_avx2(const DropoutRows&, int64_t first, int64_t last);
void dropout_rows_avx512(const DropoutRows&, int64_t first, int64_t last);

}  // namespace glimodern
