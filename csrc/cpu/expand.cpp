// Expand: a compact mask to a resolved one. A piece of work is some rows, LANES of them a word at a time: what a row's
// deposit takes (two loads of 8 bytes, a shift, a pdep) are other units' instructions than the pattern's of the next
// word, and both run at once.
#include "expand.h"
#include "operations.h"
#include "parallel.h"

namespace slt::SLT_ISA {
namespace {

// Words of rows [row, row + lanes). Inside the mask its bits may be read 8 bytes at a time.
template <bool INSIDE>
void expand_rows(const Expand &a, const Pattern &pattern, int64_t row, int lanes) {
    const int64_t words = words_of(a.source), free_weights = a.offsets[a.source.rows];
    const char *bytes = reinterpret_cast<const char *>(a.compact);
    uint32_t *out = a.out + row * words;
    int64_t next[LANES];  // free weight of each row
    for (int l = 0; l < lanes; ++l) next[l] = a.offsets[row + l];
    for (int64_t w = 0; w < words; ++w, ++out) {
        alignas(64) uint32_t free[LANES], locked[LANES];
        U32 f, k;
        pattern(row, w, f, k);
        store(free, f);
        store(locked, k);
        for (int l = 0; l < lanes; ++l) {
            uint32_t bits;
            if (INSIDE) {
                uint64_t eight;
                memcpy(&eight, bytes + next[l] / 8, sizeof eight);
                bits = uint32_t(eight >> next[l] % 8);
            } else {
                bits = compact_bits(a.compact, free_weights, next[l]);
            }
            out[l * words] = deposit(bits, free[l]) | locked[l];
            next[l] += __builtin_popcount(free[l]);
        }
    }
}

}  // namespace

void expand(const Expand &a) {
    const int64_t rows = rows_a_piece(a.source), all = a.source.rows;
    const int64_t inside = a.offsets[all] - 64;  // a read that begins here ends inside
    parallel_for(a.threads, ceil_div(all, rows), [&](int64_t piece) {
        const Pattern pattern(a.source);
        for (int64_t row = piece * rows; row < (piece + 1) * rows && row < all; row += LANES) {
            const int lanes = all - row < LANES ? int(all - row) : LANES;
            if (a.offsets[row + lanes] <= inside)
                expand_rows<true>(a, pattern, row, lanes);
            else
                expand_rows<false>(a, pattern, row, lanes);
        }
    });
}

}  // namespace slt::SLT_ISA
