// Linear grad_input: dx = dy W. The sum runs over rows, so the panel has k in its lanes and four rows in a lane
// (transposed.h); otherwise it is the forward product. A piece of work is the 128 k of one call (of several calls if
// sums come from tables) by all rows, or by as many rows as fit.
#include "cpu/gemm/quantize.h"
#include "cpu/gemm/work_split.h"
#include "cpu/machine/parallel.h"
#include "cpu/weights/transposed.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t ROWS_PER_STEP = 64;  // 16 quads, as AMX takes them
constexpr int64_t FEW_ROWS = 256, MOST_ROWS = 4096;
constexpr int64_t SLICE_ROWS = 288;  // rows whose quads become numbers of tables together: whole steps of tables

// The panel of one call's columns, `rows` from `first` on; rows past the end are zeros. `slice` has room for the quads
// of SLICE_ROWS.
template <class Form>
void make_panel(const Weights &weights, int64_t first, int64_t rows, int64_t call, uint32_t *slice, uint32_t *panel) {
    constexpr bool tables = Form::TABLES;
    for (int64_t from = 0, count; from < rows; from += count) {
        count = tables ? least(rows - from, SLICE_ROWS) : rows;
        uint32_t *quads = tables ? slice : panel;  // [group][count / 4][LANES]
        for (int64_t row = 0; row < count; row += COLUMN_ROWS) {
            alignas(64) uint32_t columns[ROW_QUADS * CALL];
            if (first + from + row < weights.source.rows)
                make_columns(weights, first + from + row, call, columns);
            else
                memset(columns, 0, sizeof columns);
            for (int q = 0; q < ROW_QUADS; ++q)
                for (int g = 0; g < CALL / LANES; ++g)
                    store(quads + (g * count / 4 + row / 4 + q) * LANES, load<U32>(columns + q * CALL + g * LANES));
        }
        for (int g = 0; g < CALL / LANES; ++g)
            prepare_group<Form>(quads + g * count / 4 * LANES, count / 4,
                                panel + g * panel_words<Form>(rows / 4) + panel_words<Form>(from / 4));
    }
}

// `depth`: rows of the weight, rounded up to whole steps.
template <class Form>
void grad_input_of_some(const LinearGradInput &a, int threads, int64_t depth, Quantized<Form> &dy) {
    const Source &s = a.source;
    const Weights weights(s, a.mask);
    const int64_t pitch = dy.pitch;
    dy.write(a.dy, a.batch, s.rows, 0, depth, Layout::BYTE_QUADS, a.digits, zero_of(s.weight), threads);

    const Output all = {.y = a.dx,
                        .vector_stride = s.fan,
                        .lanes = int(CALL),
                        .powers = dy.powers,
                        .corrections = dy.corrections,
                        .scale = a.scale,
                        .small = small_sums(s.rows, s.weight, a.digits)};

    constexpr bool tables = Form::TABLES;
    const int64_t rows = least(depth, !tables && a.batch <= FEW_VECTORS ? FEW_ROWS : MOST_ROWS);
    const bool parts = rows < depth;
    const int64_t group_words = panel_words<Form>(rows / 4), kept_sums = parts ? MOST_SUMMED * 8 : 0;
    const int64_t slice_words = tables ? SLICE_ROWS / 4 * CALL : 0;
    // The more outputs share a table, the better.
    const int64_t bytes = group_words / LANES * 4 + SUM_BYTES + kept_sums;
    const int64_t panel_bytes = tables ? SCRATCH_BYTES - 4 * slice_words : CALL * bytes;
    const WorkSplit split(weights.frame.k, panel_bytes, bytes, a.batch, threads, CALL, MOST_VECTORS,
                          parts ? MOST_SUMMED : a.batch);
    const int64_t panel_lanes = ceil_div(split.most_lanes, BLOCK) * BLOCK;
    parallel_for(threads, split.pieces, [&](int64_t piece) {
        const int64_t lanes = split.lanes(piece), b = split.vector(piece), batch = split.vectors(piece);
        const int64_t call = split.lane(piece) / CALL, k = call * CALL - weights.frame.skipped * WORD;
        Scratch<uint32_t> panel(panel_lanes / LANES * group_words), slice(slice_words);
        Scratch<int64_t> sums(parts ? panel_lanes * batch : 0);
        Workspace workspace;
        Output out = all.part(b, 0, CALL);
        out.y = out.y + k;
        out.first_lane = k < 0 ? int(-k) : 0;
        out.lanes = int(least(s.fan - k, lanes));
        if (parts) out.sums = sums;
        for (int64_t first = 0; first < depth; first += rows) {
            const int64_t here = least(depth - first, rows);
            for (int64_t c = 0; c < lanes / CALL; ++c)
                make_panel<Form>(weights, first, here, call + c, slice,
                                 panel + c * (CALL / LANES) * panel_words<Form>(here / 4));
            out.first = first == 0;
            out.last = first + here == depth;
            multiply_blocks<Form>(workspace, {dy.row(b) + first, Form::PLANES * pitch, pitch}, batch,
                                  panel, here / 4, out);
        }
    });
}

template <class Form>
void grad_input(const LinearGradInput &a, int threads) {
    const int64_t depth = ceil_div(a.source.rows, ROWS_PER_STEP) * ROWS_PER_STEP;
    const int64_t step = Quantized<Form>::rows_at_once(a.batch, depth);
    Quantized<Form> dy(step, depth);
    for (int64_t first = 0; first < a.batch; first += step) {
        LinearGradInput some = a;
        some.dy = a.dy + first * a.source.rows;
        some.dx = a.dx + first * a.source.fan;
        some.batch = least(a.batch - first, step);
        grad_input_of_some<Form>(some, threads, depth, dy);
    }
}

}  // namespace

void linear_grad_input(const LinearGradInput &a, int threads) {
    advise_huge_pages(a.dx.data, a.batch * a.source.fan * a.dx.size());
    with_form(a.source.weight, a.source.fan, a.batch, a.digits,
              [&](auto form) { grad_input<decltype(form)>(a, threads); });
}

}  // namespace slt::SLT_ISA
