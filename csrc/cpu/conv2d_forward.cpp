// Conv2d forward: a product whose vectors are the positions of the output.
//
// The images become digits once, channels-last. A piece of work is some blocks of output channels of one group, whose
// panels it makes, by a part of the positions, sixteen at a time: their vectors are gathered from the planes (a few
// bytes a product), then run against the panels.
#include "cut.h"
#include "image.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

template <int DIGITS>
void forward(const Conv2dForward &a) {
    const Source &s = a.source;
    const Window &w = a.window;
    const Frame frame(s);
    const Grid grid = {a.out_height, a.out_width, w.stride_h, w.stride_w};
    const int64_t positions = grid.height * grid.width, vectors = a.batch * positions;
    if (vectors == 0) return;
    const int64_t taps_count = w.kernel_h * w.kernel_w, channels = s.fan / taps_count, rows = s.rows / w.groups;
    const int zero = zero_of(s.weight);

    const bool aligned = channels % WORD == 0;  // then words are put in order once, in the planes
    const Images x = {a.x, a.batch, channels * w.groups, a.height, a.width, a.channels_last};
    const Planes<DIGITS> planes(x, aligned ? layout_of(s.weight) : Layout::PLAIN, a.bytes, a.threads);
    Scratch<int64_t> down(taps_count), right(taps_count);
    for (int64_t t = 0; t < taps_count; ++t) {
        down[t] = t / w.kernel_w * w.dilation_h - w.padding_h;
        right[t] = t % w.kernel_w * w.dilation_w - w.padding_w;
    }

    const int64_t calls = frame.calls < LONGEST / QUADS ? frame.calls : LONGEST / QUADS, pitch = frame.k + 64;
    const Cut cut(rows, PANEL_BYTES, calls * CALL, vectors, a.threads);
    parallel_for(a.threads, w.groups * cut.pieces, [&](int64_t task) {
        const int64_t group = task / cut.pieces, piece = task % cut.pieces;
        const int64_t lane = cut.lane(piece), lanes = cut.lanes(piece), row = group * rows + lane;
        const int64_t end = cut.vector(piece) + cut.vectors(piece);
        const Taps taps = {taps_count, down, right, channels, group * channels, channels};
        const Gather<DIGITS> gather(x, planes, taps, grid, frame.skipped * WORD, frame.k,
                                     aligned ? Layout::PLAIN : layout_of(s.weight));
        const Weights weights(s, a.mask);
        Scratch<uint32_t> panel(cut.blocks * BLOCK * QUADS * calls);
        Scratch<Digit> digits(MOST_VECTORS * DIGITS * pitch);
        Scratch<int64_t> sums(frame.calls > calls ? cut.blocks * BLOCK * MOST_VECTORS : 0);
        Tiles tiles;
        int made = -1;  // the first call of what the panel holds
        for (int64_t from = cut.vector(piece); from < end; from += MOST_VECTORS) {
            const int64_t count = end - from < MOST_VECTORS ? end - from : MOST_VECTORS;
            int64_t places[MOST_VECTORS], corrections[MOST_VECTORS];
            double powers[MOST_VECTORS];
            gather(from, count, digits, pitch, corrections);
            for (int64_t v = 0; v < count; ++v) {
                const int64_t sample = (from + v) / positions, position = (from + v) % positions;
                corrections[v] *= zero;
                powers[v] = planes.powers[sample];
                places[v] = sample * positions * s.rows + position * (a.out_channels_last ? s.rows : 1);
            }
            Output out = {a.y + row * (a.out_channels_last ? 1 : positions), places, 0,
                          a.out_channels_last ? 1 : positions, 0, int(lanes), powers, false, corrections, a.scale,
                          a.bias ? a.bias + row : nullptr, frame.calls > calls ? sums.data : nullptr, true, true};
            for (int64_t first = 0; first < frame.calls; first += calls) {
                const int64_t here = frame.calls - first < calls ? frame.calls - first : calls;
                if (made != first)
                    for (int64_t l = 0; l < lanes; l += LANES)
                        weights.write(row + l, first, here, panel + l * here * QUADS);
                made = int(first);
                out.first = first == 0;
                out.last = first + here == frame.calls;
                multiply_blocks<DIGITS>(tiles, {digits + first * CALL, DIGITS * pitch, pitch}, count, panel,
                                        here * QUADS, out);
            }
        }
    });
}

}  // namespace

void conv2d_forward(const Conv2dForward &a) {
    if (digits_for(a.bytes) == 3) return forward<3>(a);
    forward<2>(a);
}

}  // namespace slt::SLT_ISA
