// A convolution over planes: a product whose vectors are positions of the output.
//
// A piece of work is some blocks of outputs of one group, whose panels it makes, by a part of the positions, a few at a
// time: their vectors are read in place, or copied from the planes (patches.h), and run against the panels.
#pragma once

#include "cut.h"
#include "parallel.h"
#include "patches.h"
#include "to_planes.h"

namespace slt::SLT_ISA {
namespace {

// Samples whose planes are made at a time: 16 MB of them, so that they stay in a cache that all threads share and in
// memory that the process has already; and enough samples for the threads.
template <class Planes>
int64_t samples_at_once(const Images &x, int threads) {
    const int64_t bytes = x.pixels() * x.channels * Planes::PLANES * int64_t(sizeof(typename Planes::Element));
    const int64_t fit = (16 << 20) / (bytes + 1);
    return fit > 4 * threads ? fit : 4 * threads;
}

struct Convolution {
    Grid grid;
    Taps taps;               // of the first group
    int64_t groups, lanes;   // outputs of a group
    int64_t skipped, depth;  // a vector is so many zeros, the taps, and zeros up to the depth

    // Results go to [samples, groups * lanes, pixels], or its channels-last form; position (i, j) to this pixel:
    Result y;
    bool channels_last;
    int64_t pixels, first, step_down, step_right;

    float scale;
    const float *bias;  // of all outputs, or null
    int zero;           // the byte of a dropped weight
    bool small;         // every sum fits an int32
    int threads;

    int64_t pixel(int64_t row, int64_t column) const { return first + row * step_down + column * step_right; }
};

// `make_panel(group, lane, lanes, from, depth, panel)` makes the weights of some of a group's outputs, for a part of
// the depth.
template <class Planes, class MakePanel>
void convolve(const Planes &planes, const Convolution &c, const MakePanel &make_panel) {
    typedef typename Planes::Product Product;
    typedef ToPlanes<typename Product::Number> Results;
    static_assert(Results::room(MOST_LANES) >= Planes::VECTORS);
    const int64_t positions = planes.positions(c.grid), all_channels = c.groups * c.lanes;
    const bool copied = planes.reading != Reading::IN_PLACE;

    // A thread's scratch: positions that are copied, results on their way to planes, sums that are kept, and a panel of
    // as much of the depth as fits. (One position of more than 170,000 numbers does not leave enough for a panel, which
    // then comes on top.) No tap may reach a position, and the depth be 0.
    constexpr int64_t copies = 448 << 10, kept_sums = 64 << 10, least_panel = 128 << 10;
    const int64_t vector = Planes::PLANES * (c.depth * int64_t(sizeof(typename Planes::Element)) + 64);
    const int64_t most = planes.together(c.taps), afford = copied ? copies / vector : most;
    const int together = int(afford < 1 ? 1 : least(most, afford));
    const int64_t others = (copied ? together * vector : 0) + (c.channels_last ? 0 : Results::BYTES) + kept_sums;
    const int64_t left = SCRATCH_BYTES - others;
    const int64_t panel_bytes = left < least_panel ? least_panel : least(PANEL_BYTES, left);
    const int64_t fit = (panel_bytes / Product::OUTPUTS - Product::SUMS) / Product::BYTES;
    const int64_t part = c.depth == 0 ? 1 : least(c.depth, fit / Product::STEP * Product::STEP);
    // Positions that meet one part of a panel before the next is made.
    const int64_t run = c.depth > part ? 4 * together : together;

    const Cut cut(c.lanes, panel_bytes, part * Product::BYTES + Product::SUMS, positions, c.threads, Product::OUTPUTS,
                  together);
    parallel_for(c.threads, c.groups * cut.pieces, [&](int64_t task) {
        const int64_t group = task / cut.pieces, piece = task % cut.pieces;
        const int64_t lane = cut.lane(piece), lanes = cut.lanes(piece), channel = group * c.lanes + lane;
        const int64_t end = cut.vector(piece) + cut.vectors(piece);
        Taps taps = c.taps;
        taps.first = group * c.taps.channels;
        Patches<Planes> patches(planes, taps, c.grid, c.skipped, c.depth, together);
        Scratch<uint32_t> panel(cut.most_lanes * part * Product::BYTES / 4);
        Scratch<int64_t> sums(c.depth > part ? cut.most_lanes * run : 0);
        const Result y = c.y + channel * (c.channels_last ? 1 : c.pixels);
        Results results(c.channels_last ? 0 : lanes, y, c.pixels);
        Workspace workspace;
        int64_t made = -1;  // where what the panel holds begins
        for (int64_t from = cut.vector(piece); from < end; from += run)
            for (int64_t first = 0; first == 0 || first < c.depth; first += part) {
                const int64_t depth = least(c.depth - first, part);
                if (made != first) {
                    make_panel(group, lane, lanes, first, depth, panel);
                    Product::prepare(panel, ceil_div(lanes, LANES) * LANES * depth * Product::BYTES / 4);
                }
                made = first;
                for (int64_t at = from; at < end && at < from + run; at += together) {
                    patches.read(at, least(at + together, end));
                    if (patches.count == 0) continue;
                    int64_t places[Planes::VECTORS], corrections[Planes::VECTORS];
                    double powers[Planes::VECTORS];
                    for (int v = 0; v < patches.count; ++v) {
                        const int64_t sample = patches.sample[v], pixel = c.pixel(patches.row[v], patches.column[v]);
                        places[v] = sample * c.pixels * all_channels + pixel * (c.channels_last ? all_channels : 1);
                        if constexpr (Product::FIXED_POINT) {
                            if (!SIGNED_BYTES) corrections[v] = c.zero * patches.sums[v];
                            powers[v] = planes.powers[sample];
                        }
                    }
                    Output out;
                    out.y = y;
                    out.places = places;
                    out.lanes = int(lanes);
                    out.powers = powers;
                    out.corrections = corrections;
                    out.scale = c.scale;
                    out.bias = c.bias ? c.bias + channel : nullptr;
                    out.small = c.small;
                    out.sums = c.depth > part ? sums + (at - from) * cut.most_lanes : nullptr;
                    out.first = first == 0;
                    out.last = first + depth == c.depth;
                    if (!c.channels_last && out.last) {
                        out.y = results.add(places, patches.count);
                        out.places = nullptr;
                        out.vector_stride = results.pitch;
                    }
                    Product::multiply(workspace, patches.vectors(first), patches.count, panel, depth, out);
                }
            }
        results.write();
    });
}

}  // namespace
}  // namespace slt::SLT_ISA
