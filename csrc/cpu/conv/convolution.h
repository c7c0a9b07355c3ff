// A convolution over planes: a product whose vectors are positions of the output.
//
// A piece of work is some blocks of outputs of one group, whose panels it makes, by a part of the positions. It reads
// the vectors of a few positions at a time, in place or copied from the planes (im2col.h), and multiplies them by the
// panels.
#pragma once

#include "cpu/conv/im2col.h"
#include "cpu/conv/nchw_writer.h"
#include "cpu/gemm/work_split.h"
#include "cpu/machine/parallel.h"

namespace slt::SLT_ISA {
namespace {

// The number of samples whose planes are made at a time: 16 MB of planes, which stay in the shared cache and in memory
// that the process already has; and enough samples for the threads.
template <class Planes>
int64_t samples_at_once(const Images &x, const Border &around, Reading reading, int threads) {
    const Border border = reading == Reading::COPIED ? Border() : around;
    const int64_t pixels = (x.height + border.rows) * (x.width + border.columns);
    const int64_t elements = pixels * Planes::pixel_of(x, reading) * Planes::PLANES;
    return greatest((16 << 20) / (elements * int64_t(sizeof(typename Planes::Element)) + 1), 4 * threads);
}

struct Convolution {
    Grid grid;
    Taps taps;               // of the first group
    int64_t groups, lanes;   // groups; outputs of a group
    int64_t skipped = 0, depth;  // im2col vector: `skipped` zeros, the taps, zeros up to `depth`

    ResultImages y;
    int64_t first = 0, step_down = 1, step_right = 1;  // (i, j) is pixel first + (i * step_down, j * step_right)

    float scale;
    const float *bias = nullptr;  // of all outputs
    int zero;                     // the byte of a dropped weight
    bool small;                   // every sum fits an int32
    int threads;

    // Where the first channel of position (i, j) is in y, in elements.
    int64_t place(int64_t sample, int64_t i, int64_t j) const {
        const int64_t pixel = first + i * step_down * y.width + j * step_right;
        return sample * y.pixels() * y.channels + pixel * (y.channels_last ? y.channels : 1);
    }

    Result channel(int64_t c) const { return y.data + c * (y.channels_last ? 1 : y.pixels()); }
};

// The use of a thread's scratch: copied positions, results to be written as planes, kept sums, and a panel of the part
// of the depth that fits. A position of more than 170,000 numbers does not leave enough for a panel, which then exceeds
// the budget. depth is 0 if no tap reaches the position.
template <class Planes>
struct Budget {
    int together;         // positions read at a time
    int64_t panel_bytes;
    int64_t part;         // of the depth, in a panel
    int64_t run;          // positions that are multiplied by one part before the next is made

    Budget(const Planes &planes, const Convolution &c) {
        typedef typename Planes::Product Product;
        constexpr int64_t copies = 448 << 10, kept_sums = 64 << 10, least_panel = 128 << 10;
        const bool copied = planes.reading != Reading::IN_PLACE;
        const int64_t vector = Planes::PLANES * (c.depth * int64_t(sizeof(typename Planes::Element)) + 64);
        const int64_t most = planes.together(c.taps);
        together = int(copied ? greatest(least(most, copies / vector), 1) : most);
        const int64_t results = c.y.channels_last ? 0 : NchwWriter<typename Product::Number>::BYTES;
        const int64_t left = SCRATCH_BYTES - (copied ? together * vector : 0) - results - kept_sums;
        panel_bytes = greatest(least(PANEL_BYTES, left), least_panel);
        const int64_t fit = (panel_bytes / Product::OUTPUTS - Product::SUMS) / Product::BYTES;
        part = c.depth == 0 ? 1 : least(c.depth, fit / Product::PART_STEP * Product::PART_STEP);
        run = c.depth > part ? 4 * together : together;
    }
};

// The fields of `Output` that differ from position to position.
template <class Planes>
struct PositionOutputs {
    int64_t places[Planes::VECTORS], corrections[Planes::VECTORS];
    double powers[Planes::VECTORS];

    PositionOutputs(const Convolution &c, const Planes &planes, const Im2col<Planes> &im2col) {
        for (int v = 0; v < im2col.count; ++v) {
            places[v] = c.place(im2col.sample[v], im2col.row[v], im2col.column[v]);
            if constexpr (Planes::Product::FIXED_POINT) {
                if (!SIGNED_BYTES) corrections[v] = c.zero * im2col.sums[v];
                powers[v] = planes.powers[im2col.sample[v]];
            }
        }
    }
};

// Makes the weights of outputs [lane, lane + lanes) of a group, for the part [from, from + depth) of the depth. It
// makes whole calls: those of LANES outputs may end after their depth, where the next LANES follow, or in the room
// behind the panel. Refers to an operation's function without its type, so that both operations have one `convolve`.
class MakePanel {
  public:
    template <class Function>
    MakePanel(const Function &function)
        : function(&function), call([](const void *f, int64_t group, int64_t lane, int64_t lanes, int64_t from,
                                       int64_t depth, uint32_t *panel) {
              (*static_cast<const Function *>(f))(group, lane, lanes, from, depth, panel);
          }) {}

    void operator()(int64_t group, int64_t lane, int64_t lanes, int64_t from, int64_t depth, uint32_t *panel) const {
        call(function, group, lane, lanes, from, depth, panel);
    }

  private:
    const void *const function;
    void (*const call)(const void *, int64_t, int64_t, int64_t, int64_t, int64_t, uint32_t *);
};

template <class Planes>
void convolve(const Planes &planes, const Convolution &c, const MakePanel &make_panel) {
    typedef typename Planes::Product Product;
    typedef NchwWriter<typename Product::Number> Results;
    static_assert(Results::room(MOST_LANES) >= Planes::VECTORS);
    const Budget<Planes> budget(planes, c);
    const int64_t part = budget.part, run = budget.run;
    const WorkSplit split(c.lanes, budget.panel_bytes, part * Product::BYTES + Product::SUMS,
                          planes.positions(c.grid), c.threads, Product::OUTPUTS, budget.together);
    parallel_for(c.threads, c.groups * split.pieces, [&](int64_t task) {
        const int64_t group = task / split.pieces, piece = task % split.pieces;
        const int64_t lane = split.lane(piece), lanes = split.lanes(piece), channel = group * c.lanes + lane;
        const int64_t end = split.vector(piece) + split.vectors(piece);
        Taps taps = c.taps;
        taps.first = group * c.taps.channels;
        Im2col<Planes> im2col(planes, taps, c.grid, c.skipped, c.depth, budget.together);
        Scratch<uint32_t> panel(split.most_lanes * part * Product::BYTES / 4 + QUADS * LANES);
        Scratch<int64_t> sums(c.depth > part ? split.most_lanes * run : 0);
        Results results(c.y.channels_last ? 0 : lanes, c.channel(channel), c.y.pixels());
        Workspace workspace;
        int64_t made = -1;  // where the panel's part begins
        for (int64_t from = split.vector(piece); from < end; from += run)
            for (int64_t first = 0; first == 0 || first < c.depth; first += part) {
                const int64_t depth = least(c.depth - first, part);
                if (made != first) {
                    make_panel(group, lane, lanes, first, depth, panel);
                    planes.prepare(panel, ceil_div(lanes, LANES), depth);
                }
                made = first;
                for (int64_t at = from; at < end && at < from + run; at += budget.together) {
                    im2col.read(at, least(at + budget.together, end));
                    if (im2col.count == 0) continue;
                    const PositionOutputs<Planes> each(c, planes, im2col);
                    Output out = {.y = c.channel(channel),
                                  .places = each.places,
                                  .lanes = int(lanes),
                                  .powers = each.powers,
                                  .corrections = each.corrections,
                                  .scale = c.scale,
                                  .bias = c.bias ? c.bias + channel : nullptr,
                                  .small = c.small,
                                  .sums = c.depth > part ? sums + (at - from) * split.most_lanes : nullptr,
                                  .first = first == 0,
                                  .last = first + depth == c.depth};
                    if (!c.y.channels_last && out.last) {
                        out.y = results.add(each.places, im2col.count);
                        out.places = nullptr;
                        out.vector_stride = results.pitch;
                    }
                    Product::multiply(workspace, im2col.vectors(first), im2col.count, panel, depth, out);
                }
            }
        results.write();
    });
}

}  // namespace
}  // namespace slt::SLT_ISA
