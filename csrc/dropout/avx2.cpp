#include "simd/avx2.h"

#include "dropout/kernels.h"
#include "dropout/rows.h"

namespace glimodern {

void dropout_rows_avx2(const DropoutRows& in, int64_t first, int64_t last) { drop_rows<Avx2>(in, first, last); }

}  // namespace glimodern
