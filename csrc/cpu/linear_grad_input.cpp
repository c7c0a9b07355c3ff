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
    const int64_t depth = ceil_div(s.rows, ROWS_A_STEP) * ROWS_A_STEP;
    const int64_t pitch = depth + 64 / int64_t(sizeof(DigitOf<DIGITS>));
    const Quantized<DIGITS> dy(a.dy, a.batch, s.rows, 0, depth, pitch, Layout::BYTE_QUADS, a.bytes, zero_of(s.weight),
                               a.threads);

    Output all;
    all.y = a.dx;
    all.vector_stride = s.fan;
    all.lanes = int(CALL);
    all.powers = dy.powers;
    all.corrections = dy.corrections;
    all.scale = a.scale;
    all.small = small_sums(s.rows, s.weight, a.bytes);

    const int64_t calls = weights.frame.calls;
    const int64_t rows = least(depth, DIGITS != WHOLE && a.batch <= FEW_VECTORS ? FEW_ROWS : MOST_ROWS);
    const bool parts = rows < depth;
    // Where there are few calls for the threads, each has several pieces, with a panel of its own.
    const int64_t wanted = a.threads == 1 ? 1 : ceil_div(4 * a.threads, calls);
    const int64_t share = ceil_div(a.batch, least(wanted, ceil_div(a.batch, 64)));
    const int64_t step = ceil_div(least(share, parts ? MOST_SUMMED : share), MOST_VECTORS) * MOST_VECTORS;
    const int64_t cuts = ceil_div(a.batch, step);
    parallel_for(a.threads, calls * cuts, [&](int64_t piece) {
        const int64_t call = piece / cuts, b = piece % cuts * step, batch = least(a.batch - b, step);
        const int64_t k = call * CALL - weights.frame.skipped * WORD;
        Scratch<uint32_t> panel(rows / 4 * PANEL_LANES);
        Scratch<int64_t> sums(parts ? PANEL_LANES * batch : 0);
        Workspace workspace;
        Output out = all.part(b, 0, CALL);
        out.y = out.y + k;
        out.first_lane = k < 0 ? int(-k) : 0;
        out.lanes = int(least(s.fan - k, CALL));
        if (parts) out.sums = sums;
        for (int64_t first = 0; first < depth; first += rows) {
            const int64_t here = least(depth - first, rows);
            // Quads behind the last row stay as they are: what they meet of dy is zeros.
            for (int64_t row = 0; row < here && first + row < s.rows; row += COLUMN_ROWS) {
                alignas(64) uint32_t columns[ROW_QUADS * CALL];
                make_columns(weights, first + row, call, columns);
                for (int q = 0; q < ROW_QUADS; ++q)
                    for (int g = 0; g < CALL / LANES; ++g)
                        store(panel + (g * here / 4 + row / 4 + q) * LANES, load<U32>(columns + q * CALL + g * LANES));
            }
            prepare_panel<DIGITS>(panel, CALL * here / 4, panel);
            out.first = first == 0;
            out.last = first + here == depth;
            multiply_blocks<DIGITS>(workspace, {dy.digits + b * DIGITS * pitch + first, DIGITS * pitch, pitch}, batch,
                                    panel, here / 4, out);
        }
    });
}

}  // namespace

void linear_grad_input(const LinearGradInput &a) {
    want_large_pages(a.dx.data, a.batch * a.source.fan * a.dx.size());
    with_digits(a.source.weight, CALL, a.batch, a.bytes, [&](auto digits) { grad_input<digits>(a); });
}

}  // namespace slt::SLT_ISA
