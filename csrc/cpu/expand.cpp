// Expand: a compact mask to a resolved one. A piece of work is some rows.
#include "expand.h"
#include "operations.h"
#include "parallel.h"

namespace slt::SLT_ISA {

void expand(const Expand &a) {
    const int64_t words = words_of(a.source), rows = rows_a_piece(a.source);
    parallel_for(a.threads, ceil_div(a.source.rows, rows), [&](int64_t piece) {
        const int64_t row = piece * rows, left = a.source.rows - row;
        expand_rows(a.source, a.compact, a.offsets, row, left < rows ? left : rows, a.out + row * words);
    });
}

}  // namespace slt::SLT_ISA
