// Linear grad_input: dx = dy W. The sum runs over rows, so the panel has k in its lanes and four rows in a lane
// (columns.h); otherwise it is the forward product. A piece of work is one call's 128 k by all rows, or by as many as
// fit.
#include "columns.h"
#include "cut.h"
#include "operations.h"
#include "parallel.h"
#include "quantize.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t ROWS_A_STEP = 64;  // 16 quads, as AMX takes them
constexpr int64_t FEW_ROWS = 256, MOST_ROWS = 4096;
constexpr int64_t PANEL_LANES = (CALL + BLOCK - 1) / BLOCK * BLOCK;  // of one call, in whole blocks

template <int DIGITS>
void grad_input(const LinearGradInput &a) {
    if (a.batch == 0) return;
    const Source &s = a.source;
    const Weights weights(s, a.mask);
    const int64_t depth = ceil_div(s.rows, ROWS_A_STEP) * ROWS_A_STEP, pitch = depth + 64 / int64_t(sizeof(Digit));
    const Quantized<DIGITS> dy(a.dy, a.batch, s.rows, 0, depth, pitch, Layout::BY_K, a.bytes, zero_of(s.weight),
                               a.threads);

    const int64_t most = a.batch <= FEW_VECTORS ? FEW_ROWS : MOST_ROWS;
    const int64_t rows = depth < most ? depth : most;
    const int64_t cuts = weights.frame.calls < 2 * a.threads && a.batch >= 128 ? ceil_div(a.batch, 64) : 1;
    const int64_t step = ceil_div(ceil_div(a.batch, cuts), MOST_VECTORS) * MOST_VECTORS;
    parallel_for(a.threads, weights.frame.calls * cuts, [&](int64_t piece) {
        const int64_t call = piece / cuts, b = piece % cuts * step, k = call * CALL - weights.frame.skipped * WORD;
        if (b >= a.batch) return;
        const int64_t batch = a.batch - b < step ? a.batch - b : step;
        const bool parts = rows < depth;
        Scratch<uint32_t> panel(rows / 4 * PANEL_LANES);
        Scratch<int64_t> sums(parts ? PANEL_LANES * batch : 0);
        Tiles tiles;
        const int first_k = k < 0 ? int(-k) : 0, last_k = int(s.fan - k < CALL ? s.fan - k : CALL);
        Output out = {a.dx + (b * s.fan + k), nullptr, s.fan, first_k, last_k, dy.powers + b, false,
                      dy.corrections + b, a.scale, nullptr, parts ? sums.data : nullptr, true, true,
                      small_sums(s.rows, s.weight, a.bytes)};
        for (int64_t first = 0; first < depth; first += rows) {
            const int64_t here = depth - first < rows ? depth - first : rows;
            for (int64_t row = 0; row < here && first + row < s.rows; row += COLUMN_ROWS) {
                alignas(64) uint32_t columns[ROW_QUADS * CALL];
                make_columns(weights, first + row, call, columns);
                for (int q = 0; q < ROW_QUADS; ++q)
                    for (int g = 0; g < CALL / LANES; ++g)
                        store(panel + (g * here / 4 + row / 4 + q) * LANES, load<U32>(columns + q * CALL + g * LANES));
            }
            out.first = first == 0;
            out.last = first + here == depth;
            multiply_blocks<DIGITS>(tiles, {dy.digits + b * DIGITS * pitch + first, DIGITS * pitch, pitch}, batch,
                                    panel, here / 4, out);
        }
    });
}

}  // namespace

void linear_grad_input(const LinearGradInput &a) {
    want_large_pages(a.dx.data, a.batch * a.source.fan * a.dx.size());
    if (digits_for(a.bytes) == 3) return grad_input<3>(a);
    grad_input<2>(a);
}

}  // namespace slt::SLT_ISA
