// Materialize: the masked integer weight as a matrix, for inspection and tests. A piece of work is LANES rows. The
// quads of a call are made as for products (generate.h applies the mask), then written byte by byte.
#include "cpu/machine/parallel.h"
#include "cpu/weights/materialize.h"
#include "operations.h"

namespace slt::SLT_ISA {

void materialize(const Materialize &a, int threads) {
    const Weights weights(a.source, a.mask);
    parallel_for(threads, ceil_div(a.source.rows, LANES),
                 [&](int64_t piece) { materialize_rows(weights, piece * LANES, a.out); });
}

}  // namespace slt::SLT_ISA
