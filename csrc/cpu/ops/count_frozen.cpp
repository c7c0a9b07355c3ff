// Count frozen: where the free weights of each row start in the layer's enumeration, and the number of locked weights.
// Rows are counted in parallel, one per lane; a prefix sum follows.
#include "cpu/machine/parallel.h"
#include "cpu/weights/frozen.h"
#include "operations.h"

namespace slt::SLT_ISA {

void count_frozen(const CountFrozen &a, int threads) {
    const Source &s = a.source;
    const int64_t words = words_of(s);
    *a.locked = 0;
    const int64_t rows = rows_per_piece(s);
    parallel_for(threads, ceil_div(s.rows, rows), [&](int64_t piece) {
        const Pattern pattern(s);
        PatternTile tile;
        int64_t locked = 0;
        for (int64_t n = piece * rows; n < (piece + 1) * rows && n < s.rows; n += LANES) {
            const int lanes = int(least(s.rows - n, LANES));
            int64_t free[LANES] = {};
            for (int64_t w = 0; w < words; w += PatternTile::WORDS) {
                const int count = int(least(words - w, PatternTile::WORDS));
                tile.fill(pattern, n, w, count);
                for (int i = 0; i < count; ++i)
                    for (int l = 0; l < lanes; ++l) {
                        free[l] += __builtin_popcount(tile.free[i][l]);
                        locked += __builtin_popcount(tile.locked[i][l]);
                    }
            }
            for (int l = 0; l < lanes; ++l) a.offsets[n + l + 1] = free[l];
        }
        __atomic_fetch_add(a.locked, locked, __ATOMIC_RELAXED);
    });
    a.offsets[0] = 0;
    for (int64_t n = 0; n < s.rows; ++n) a.offsets[n + 1] += a.offsets[n];
}

}  // namespace slt::SLT_ISA
