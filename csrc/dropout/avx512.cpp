#include "simd/avx512.h"

#include "dropout/kernels.h"
#include "dropout/rows.h"

namespace glimodern {

void dropout_rows_avx512(const DropoutRows& in, int64_t first, int64_t last) { drop_rows<Avx512>(in, first, last); }

}  // namespace glimodern
