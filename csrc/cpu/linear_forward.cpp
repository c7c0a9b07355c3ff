// Linear forward: y = x W^T.
//
// x becomes digits once, a row at a time. A piece of work is some blocks of rows of the weight (`Cut`): their panel is
// made for as many k as fit (all of them, up to 8192), and every row of x is run against it. A small batch has no panel
// where there is a dot product of bytes in 512 bits (few.h); elsewhere it takes 256 k at a time, so that the panel stays
// in L1 and making it is all that counts.
#include "cut.h"
#include "few.h"
#include "operations.h"
#include "parallel.h"
#include "quantize.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t FEW_CALLS = 2, MOST_CALLS = LONGEST < 2048 ? 32 : 64;

template <int DIGITS>
void forward(const LinearForward &a) {
    if (a.batch == 0) return;
    const Source &s = a.source;
    const Frame frame(s);
    const int64_t pitch = frame.k + 64 / int64_t(sizeof(Digit));  // not a power of two: rows must not share cache sets
    const Quantized<DIGITS> x(a.x, a.batch, s.fan, frame.skipped * WORD, frame.k, pitch, layout_of(s.weight),
                              a.bytes, zero_of(s.weight), a.threads);

#if defined(__AVX512VNNI__)
    if (a.batch * DIGITS <= FEW_DIGITS) {
        parallel_for(a.threads, ceil_div(s.rows, BLOCK), [&](int64_t piece) {
            const int64_t row = piece * BLOCK, rows = s.rows - row < BLOCK ? s.rows - row : BLOCK;
            const Weights weights(s, a.mask);
            Tiles tiles;
            multiply_few<DIGITS>(tiles, weights, row, x.digits, pitch, a.batch,
                                 {a.y + row, nullptr, s.rows, 0, int(rows), x.powers, false, x.corrections, a.scale,
                                  a.bias ? a.bias + row : nullptr, nullptr, true, true,
                                  small_sums(s.fan, s.weight, a.bytes)});
        });
        return;
    }
#endif

    const bool few = a.batch <= FEW_VECTORS;
    const int64_t most_calls = few ? FEW_CALLS : MOST_CALLS;
    const int64_t calls = frame.calls < most_calls ? frame.calls : most_calls;
    const Cut cut(s.rows, few ? BLOCK * calls * CALL : PANEL_BYTES, calls * CALL, a.batch, a.threads);
    parallel_for(a.threads, cut.pieces, [&](int64_t piece) {
        const int64_t row = cut.lane(piece), rows = cut.lanes(piece), b = cut.vector(piece), batch = cut.vectors(piece);
        const Weights weights(s, a.mask);
        Scratch<uint32_t> panel(cut.most_lanes * QUADS * calls);
        Scratch<int64_t> sums(frame.calls > calls ? cut.most_lanes * batch : 0);
        Tiles tiles;
        Output out = {a.y + (b * s.rows + row), nullptr, s.rows, 0, int(rows), x.powers + b, false, x.corrections + b,
                      a.scale, a.bias ? a.bias + row : nullptr, frame.calls > calls ? sums.data : nullptr, true, true,
                      small_sums(s.fan, s.weight, a.bytes)};
        for (int64_t first = 0; first < frame.calls; first += calls) {
            const int64_t here = frame.calls - first < calls ? frame.calls - first : calls;
            for (int64_t lane = 0; lane < rows; lane += LANES)
                weights.write(row + lane, first, here, panel + lane * here * QUADS);
            out.first = first == 0;
            out.last = first + here == frame.calls;
            multiply_blocks<DIGITS>(tiles, {x.digits + b * DIGITS * pitch + first * CALL, DIGITS * pitch, pitch}, batch,
                                    panel, here * QUADS, out);
        }
    });
}

}  // namespace

void linear_forward(const LinearForward &a) {
    want_large_pages(a.y.data, a.batch * a.source.rows * a.y.size());
    if (digits_for(a.bytes) == 3) return forward<3>(a);
    forward<2>(a);
}

}  // namespace slt::SLT_ISA
