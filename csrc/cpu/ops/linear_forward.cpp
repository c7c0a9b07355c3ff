// Linear forward: y = x W^T.
//
// x becomes digits once, a row at a time, and some rows are multiplied before the next are made. A piece of work is some
// blocks of rows of the weight (`Cut`): their panel is made for as many k as fit (all of them, up to 8192), and every row
// of x is run against it. A small batch has no panel where there is a dot product of bytes in 512 bits (small_batch.h); elsewhere
// it takes 256 k at a time, so that the panel stays in L1 and making it is all that counts.
#include "cpu/gemm/quantize.h"
#include "cpu/gemm/small_batch.h"
#include "cpu/gemm/work_split.h"
#include "cpu/machine/parallel.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t FEW_CALLS = 2, MOST_CALLS = 64;

template <int DIGITS>
void forward_some(const LinearForward &a, int threads, Quantized<DIGITS> &x) {
    const Source &s = a.source;
    const Frame frame(s);
    const int64_t pitch = x.pitch;
    x.write(a.x, a.batch, s.fan, frame.skipped * WORD, frame.k, layout_of(s.weight), a.digits, zero_of(s.weight),
            threads);
    Output all;
    all.y = a.y;
    all.vector_stride = s.rows;
    all.lanes = int(s.rows);
    all.powers = x.powers;
    all.corrections = x.corrections;
    all.scale = a.scale;
    all.bias = a.bias;
    all.small = small_sums(s.fan, s.weight, a.digits);

#if defined(__AVX512VNNI__)
    if constexpr (DIGITS != WHOLE) {
        if (a.batch * DIGITS <= FEW_DIGITS) {
            return parallel_for(threads, ceil_div(s.rows, BLOCK), [&](int64_t piece) {
                const Weights weights(s, a.mask);
                Workspace workspace;
                multiply_few<DIGITS>(workspace, weights, piece * BLOCK, x.digits, pitch, a.batch,
                                     all.part(0, piece * BLOCK, BLOCK));
            });
        }
    }
#endif

    constexpr bool tables = DIGITS == WHOLE;
    const bool few = !tables && a.batch <= FEW_VECTORS;
    const int64_t calls = least(frame.calls, few ? FEW_CALLS : MOST_CALLS);
    const bool parts = calls < frame.calls;
    const int64_t group_words = panel_words<DIGITS>(calls * QUADS);
    int64_t bytes = group_words / LANES * int64_t(sizeof(uint32_t));  // of an output
    int64_t panel_bytes = few ? BLOCK * bytes : PANEL_BYTES;
    if constexpr (tables) {
        // The more outputs share a table the better: theirs have all the scratch but the quads of one group.
        bytes += SUM_BYTES + (parts ? MOST_SUMMED * int64_t(sizeof(int64_t)) : 0);
        panel_bytes = SCRATCH_BYTES - LANES * calls * CALL;
    }
    const Cut cut(s.rows, panel_bytes, bytes, a.batch, threads, tables ? TABLE_OUTPUTS : BLOCK, MOST_VECTORS,
                  parts ? MOST_SUMMED : a.batch);
    parallel_for(threads, cut.pieces, [&](int64_t piece) {
        const int64_t row = cut.lane(piece), rows = cut.lanes(piece), b = cut.vector(piece), batch = cut.vectors(piece);
        const Weights weights(s, a.mask);
        Scratch<uint32_t> panel(cut.most_lanes / LANES * group_words);
        Scratch<uint32_t> quads(tables ? LANES * QUADS * calls : 0);
        Scratch<int64_t> sums(parts ? cut.most_lanes * batch : 0);
        Workspace workspace;
        Output out = all.part(b, row, rows);
        if (parts) out.sums = sums;
        for (int64_t first = 0; first < frame.calls; first += calls) {
            const int64_t here = least(frame.calls - first, calls);
            for (int64_t lane = 0; lane < rows; lane += LANES) {
                uint32_t *group = panel + lane / LANES * panel_words<DIGITS>(here * QUADS);
                weights.write(row + lane, first, here, tables ? quads : group);
                prepare_group<DIGITS>(quads, here * QUADS, group);
            }
            out.first = first == 0;
            out.last = first + here == frame.calls;
            multiply_blocks<DIGITS>(workspace, {x.digits + b * DIGITS * pitch + first * CALL, DIGITS * pitch, pitch},
                                    batch, panel, here * QUADS, out);
        }
    });
}

template <int DIGITS>
void forward(const LinearForward &a, int threads) {
    const int64_t padded = Frame(a.source).k, step = Quantized<DIGITS>::rows_at_once(a.batch, padded);
    Quantized<DIGITS> x(step, padded);
    for (int64_t first = 0; first < a.batch; first += step) {
        LinearForward some = a;
        some.x = a.x + first * a.source.fan;
        some.y = a.y + first * a.source.rows;
        some.batch = least(a.batch - first, step);
        forward_some<DIGITS>(some, threads, x);
    }
}

}  // namespace

void linear_forward(const LinearForward &a, int threads) {
    want_large_pages(a.y.data, a.batch * a.source.rows * a.y.size());
    with_digits(a.source.weight, a.source.rows, a.batch, a.digits, [&](auto digits) { forward<digits>(a, threads); });
}

}  // namespace slt::SLT_ISA
