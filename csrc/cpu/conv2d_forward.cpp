// Conv2d forward: a product whose vectors are the positions of the output.
//
// The images become digits once, channels-last, some samples at a time. A piece of work is some blocks of output
// channels of one group, whose panels it makes, by a part of the positions, sixteen at a time: their vectors are read in
// place, or copied from the planes (image.h), and run against the panels.
#include "cut.h"
#include "image.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

template <int DIGITS>
void forward_some(const Conv2dForward &a) {
    const Source &s = a.source;
    const Window &w = a.window;
    const Frame frame(s);
    const Grid grid = {a.out_height, a.out_width, w.stride_h, w.stride_w};
    const int64_t positions = grid.height * grid.width;
    if (a.batch * positions == 0) return;
    const int64_t taps_count = w.kernel_h * w.kernel_w, channels = s.fan / taps_count, rows = s.rows / w.groups;
    const int zero = zero_of(s.weight);

    Scratch<int64_t> down(taps_count), right(taps_count);
    for (int64_t t = 0; t < taps_count; ++t) {
        down[t] = t / w.kernel_w * w.dilation_h - w.padding_h;
        right[t] = t % w.kernel_w * w.dilation_w - w.padding_w;
    }
    const Images x = {a.x, a.batch, channels * w.groups, a.height, a.width, a.channels_last};
    Taps all = {taps_count, down, right, channels, 0, channels};
    Border border;
    border.include(x, all, grid);
    const bool aligned = channels % WORD == 0;  // then words are put in order once, in the planes
    Reading reading = Reading::COPIED;
    if (border.pays_in_place(x, all, grid, frame.skipped)) {
        reading = Reading::IN_PLACE;
    } else if (!aligned && w.groups == 1 && w.dilation_w == 1 && border.pays(x)) {
        reading = Reading::PACKED;
        all = {w.kernel_h, down, right, w.kernel_w * channels, 0, w.kernel_w * channels};
        for (int64_t t = 0; t < w.kernel_h; ++t) {
            down[t] = down[t * w.kernel_w];
            right[t] = right[t * w.kernel_w];
        }
    }
    const Planes<DIGITS> planes(x, border, reading, aligned ? layout_of(s.weight) : Layout::PLAIN, a.bytes, a.threads);

    const int64_t calls = frame.calls < LONGEST / QUADS ? frame.calls : LONGEST / QUADS;
    const Cut cut(rows, PANEL_BYTES, calls * CALL, Patches<DIGITS>::positions(planes, grid), a.threads);
    parallel_for(a.threads, w.groups * cut.pieces, [&](int64_t task) {
        const int64_t group = task / cut.pieces, piece = task % cut.pieces;
        const int64_t lane = cut.lane(piece), lanes = cut.lanes(piece), first_row = group * rows + lane;
        const int64_t end = cut.vector(piece) + cut.vectors(piece);
        Taps taps = all;
        taps.first = group * channels;
        Patches<DIGITS> patches(planes, taps, grid, frame.skipped * WORD, frame.k,
                                aligned ? Layout::PLAIN : layout_of(s.weight));
        const Weights weights(s, a.mask);
        Scratch<uint32_t> panel(cut.blocks * BLOCK * QUADS * calls);
        Scratch<int64_t> sums(frame.calls > calls ? cut.blocks * BLOCK * MOST_VECTORS : 0);
        const Result y = a.y + first_row * (a.out_channels_last ? 1 : positions);
        ToPlanes to_planes(a.out_channels_last ? 0 : lanes, y, positions);
        Tiles tiles;
        int64_t made = -1;  // the first call of what the panel holds
        for (int64_t from = cut.vector(piece); from < end; from += MOST_VECTORS) {
            patches.read(from, end);
            if (patches.count == 0) continue;
            int64_t places[MOST_VECTORS], corrections[MOST_VECTORS];
            double powers[MOST_VECTORS];
            for (int v = 0; v < patches.count; ++v) {
                const int64_t sample = patches.sample[v], position = patches.row[v] * grid.width + patches.column[v];
                if (!SIGNED_BYTES) corrections[v] = zero * patches.sums[v];
                powers[v] = planes.powers[sample];
                places[v] = sample * positions * s.rows + position * (a.out_channels_last ? s.rows : 1);
            }
            Output out = {y, places, 0, 0, int(lanes), powers, false, corrections, a.scale,
                          a.bias ? a.bias + first_row : nullptr, frame.calls > calls ? sums.data : nullptr, true, true,
                          small_sums(s.fan, s.weight, a.bytes)};
            if (!a.out_channels_last) {
                out.y = to_planes.add(places, patches.count);
                out.places = nullptr;
                out.vector_stride = to_planes.pitch;
            }
            for (int64_t first = 0; first < frame.calls; first += calls) {
                const int64_t here = frame.calls - first < calls ? frame.calls - first : calls;
                if (made != first)
                    for (int64_t l = 0; l < lanes; l += LANES)
                        weights.write(first_row + l, first, here, panel + l * here * QUADS);
                made = first;
                out.first = first == 0;
                out.last = first + here == frame.calls;
                multiply_blocks<DIGITS>(tiles, patches.vectors(first * CALL), patches.count, panel, here * QUADS, out);
            }
        }
        to_planes.write();
    });
}

template <int DIGITS>
void forward(const Conv2dForward &a) {
    const int64_t channels = a.source.fan / (a.window.kernel_h * a.window.kernel_w) * a.window.groups;
    const Images x = {a.x, a.batch, channels, a.height, a.width, a.channels_last};
    for (int64_t first = 0, step = samples_at_once(x, DIGITS, a.threads); first < a.batch; first += step) {
        Conv2dForward some = a;
        some.x = a.x + first * channels * x.pixels();
        some.y = a.y + first * a.source.rows * a.out_height * a.out_width;
        some.batch = a.batch - first < step ? a.batch - first : step;
        forward_some<DIGITS>(some);
    }
}

}  // namespace

void conv2d_forward(const Conv2dForward &a) {
    want_large_pages(a.y.data, a.batch * a.source.rows * a.out_height * a.out_width * a.y.size());
    if (digits_for(a.bytes) == 3) return forward<3>(a);
    forward<2>(a);
}

}  // namespace slt::SLT_ISA
