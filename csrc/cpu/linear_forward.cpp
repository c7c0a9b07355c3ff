// Linear forward: y = x W^T.
//
// x becomes digits once, a row at a time. Then a piece of work is BLOCK rows of the weight: their panel is made for as
// many k as fit (all of them, up to 8192: 512 KB of L2), and every row of x is run against it. A small batch takes
// 512 k at a time instead, so that the panel stays in L1 and making it is all that counts. Where the layer has
// few rows, the batch is cut as well, and each piece makes its own panel.
#include "operations.h"
#include "parallel.h"
#include "product.h"
#include "scratch.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t FEW_VECTORS = 8, FEW_CALLS = 4, MOST_CALLS = SLT_BYTE_DIGITS ? 64 : 32;

template <int DIGITS>
void forward(const LinearForward &a) {
    if (a.batch == 0) return;
    const Source &s = a.source;
    const Frame frame(s);
    const int64_t pitch = frame.k + 64 / int64_t(sizeof(Digit));  // not a power of two: rows must not share cache sets
    Scratch<Digit> digits(a.batch * DIGITS * pitch);
    Scratch<double> powers(a.batch);
    Scratch<int64_t> corrections(a.batch);
    const Order order(s.weight == SIGNED_CONSTANT);
    const int zero = zero_of(s.weight);
    const int64_t rows_a_piece = ceil_div(16384, frame.k);
    parallel_for(a.threads, ceil_div(a.batch, rows_a_piece), [&](int64_t piece) {
        for (int64_t b = piece * rows_a_piece; b < a.batch && b < (piece + 1) * rows_a_piece; ++b) {
            const float *x = a.x + b * s.fan;
            const FixedPoint fixed(largest_bits(x, s.fan), a.bytes);
            powers[b] = fixed.power;
            corrections[b] = zero * write_vector<DIGITS>(x, s.fan, frame.skipped * WORD, frame.k, fixed, order,
                                                         digits + b * DIGITS * pitch, pitch);
        }
    });

    const int64_t blocks = ceil_div(s.rows, BLOCK);
    const int64_t wanted = ceil_div(4 * a.threads, blocks), most = ceil_div(a.batch, 64);
    const int64_t cuts = a.threads == 1 ? 1 : wanted < most ? wanted : most;
    const int64_t batch_cut = ceil_div(ceil_div(a.batch, cuts), MOST_VECTORS) * MOST_VECTORS;
    parallel_for(a.threads, blocks * cuts, [&](int64_t piece) {
        const int64_t row = piece / cuts * BLOCK, b = piece % cuts * batch_cut;
        const int64_t batch = a.batch - b < batch_cut ? a.batch - b : batch_cut;
        if (batch <= 0) return;
        const int64_t rows = s.rows - row < BLOCK ? s.rows - row : BLOCK;
        const int64_t most_calls = batch <= FEW_VECTORS ? FEW_CALLS : MOST_CALLS;
        const int64_t calls = frame.calls < most_calls ? frame.calls : most_calls;
        Scratch<uint32_t> panel(BLOCK * QUADS * calls);
        Scratch<int64_t> sums(frame.calls > calls ? batch * BLOCK : 0);
        const Weights weights(s, a.mask);

        Output out = {a.y + b * s.rows + row, nullptr, s.rows, 1, int(rows), powers + b, false, corrections + b,
                      a.scale, a.bias ? a.bias + row : nullptr, frame.calls > calls ? sums.data : nullptr, true, true};
        const int used = int(ceil_div(rows, LANES));
        for (int64_t first = 0; first < frame.calls; first += calls) {
            const int64_t here = frame.calls - first < calls ? frame.calls - first : calls;
            for (int g = 0; g < used; ++g)
                for (int64_t call = 0; call < here; ++call)
                    weights(row + g * LANES, first + call, panel + (g * here + call) * QUADS * LANES);
            out.first = first == 0;
            out.last = first + here == frame.calls;
            multiply<DIGITS>({digits + b * DIGITS * pitch + first * CALL, DIGITS * pitch, pitch}, batch, panel, used,
                             here * QUADS, out);
        }
    });
}

}  // namespace

void linear_forward(const LinearForward &a) {
    if (digits_for(a.bytes) == 3) return forward<3>(a);
    forward<2>(a);
}

}  // namespace slt::SLT_ISA
