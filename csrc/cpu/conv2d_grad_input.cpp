// Conv2d grad_input: a product whose vectors are the pixels of dx, and whose sum runs over output channels and taps.
//
// With strides, a pixel is reached by some taps only: pixels of the same remainder (h + padding) mod stride share
// theirs, so each remainder is a convolution of dy of its own, with stride 1 and without a tap wasted. A piece of work
// is one remainder, some blocks of input channels of one group, and a part of the pixels; its panel holds, tap by tap,
// the columns of the weight (columns.h) in which the channels lie.
#include "columns.h"
#include "cut.h"
#include "image.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t TAP_ROWS = 4;     // a quad
constexpr int64_t DEPTH_STEP = 64;  // 16 quads, as AMX takes them

struct Sizes {
    int64_t taps, channels, rows;  // of the kernel; of a group
    int64_t tap_length;            // rows of a group in whole quads
};

// The taps that reach the pixels of one remainder, and those pixels.
struct Class {
    Scratch<int64_t> tap, down, right;  // tap number; where it reads dy
    int64_t count = 0;
    int64_t first_h, first_w;  // pixel of position (0, 0)
    Grid grid;

    Class(const Conv2dGradInput &a, int64_t remainder_h, int64_t remainder_w)
        : tap(a.window.kernel_h * a.window.kernel_w), down(a.window.kernel_h * a.window.kernel_w),
          right(a.window.kernel_h * a.window.kernel_w) {
        const Window &w = a.window;
        // The first pixel h >= 0 with (h + padding) % stride == remainder, and the row of dy that tap 0 would read.
        first_h = ((remainder_h - w.padding_h) % w.stride_h + w.stride_h) % w.stride_h;
        first_w = ((remainder_w - w.padding_w) % w.stride_w + w.stride_w) % w.stride_w;
        const int64_t from_h = (first_h + w.padding_h) / w.stride_h, from_w = (first_w + w.padding_w) / w.stride_w;
        for (int64_t kh = 0; kh < w.kernel_h; ++kh)
            for (int64_t kw = 0; kw < w.kernel_w; ++kw) {
                const int64_t h = kh * w.dilation_h, v = kw * w.dilation_w;
                if (h % w.stride_h != remainder_h || v % w.stride_w != remainder_w) continue;
                tap[count] = kh * w.kernel_w + kw;
                down[count] = from_h - h / w.stride_h;
                right[count++] = from_w - v / w.stride_w;
            }
        grid = {first_h < a.height ? ceil_div(a.height - first_h, w.stride_h) : 0,
                first_w < a.width ? ceil_div(a.width - first_w, w.stride_w) : 0, 1, 1};
    }

    Taps taps(const Sizes &size, int64_t group) const {
        return {count, down, right, size.tap_length, group * size.rows, size.rows};
    }
};

// The quads of [from, from + depth) of a class's sums, for channels [channel, channel + lanes) of a group. The sum
// runs over taps, and inside a tap over rows.
inline void make_panel(const Weights &weights, const Class &c, const Sizes &size, int64_t group, int64_t channel,
                       int64_t lanes, int64_t from, int64_t depth, uint32_t *panel) {
    for (int64_t t = 0; t < c.count; ++t) {
        const int64_t k = weights.frame.skipped * WORD + c.tap[t] * size.channels + channel;
        for (int64_t row = 0; row < size.rows; row += COLUMN_ROWS) {
            const int64_t depth_at = t * size.tap_length + row - from;
            if (depth_at + COLUMN_ROWS <= 0 || depth_at >= depth) continue;
            for (int64_t call = k / CALL; call * CALL < k + lanes; ++call) {
                alignas(64) uint32_t columns[ROW_QUADS * CALL];
                make_columns(weights, group * size.rows + row, call, columns);
                for (int64_t q = 0; q < ROW_QUADS && row + 4 * q < size.tap_length; ++q) {
                    const int64_t quad = depth_at / 4 + q;
                    if (quad < 0 || quad >= depth / 4) continue;
                    for (int64_t i = call * CALL < k ? k - call * CALL : 0; i < CALL; ++i) {
                        const int64_t lane = call * CALL + i - k;
                        if (lane >= lanes) break;
                        panel[(lane / LANES * (depth / 4) + quad) * LANES + lane % LANES] = columns[q * CALL + i];
                    }
                }
            }
        }
    }
}

template <int DIGITS>
void grad_input_of_some(const Conv2dGradInput &a) {
    const Source &s = a.source;
    const Window &w = a.window;
    const Weights weights(s, a.mask);
    const int64_t pixels = a.height * a.width;
    const int64_t taps = w.kernel_h * w.kernel_w, channels = s.fan / taps, rows = s.rows / w.groups;
    const Sizes size = {taps, channels, rows, ceil_div(rows, TAP_ROWS) * TAP_ROWS};
    const int zero = zero_of(s.weight);
    const int64_t all_channels = channels * w.groups;
    const Images dy = {a.dy, a.batch, s.rows, a.out_height, a.out_width, a.channels_last};
    const int64_t classes = w.stride_h * w.stride_w;
    Border border;
    bool in_place = true;
    for (int64_t remainder = 0; remainder < classes; ++remainder) {
        const Class c(a, remainder / w.stride_w, remainder % w.stride_w);
        border.include(dy, c.taps(size, 0), c.grid);
        in_place = in_place && border.pays_in_place(dy, c.taps(size, 0), c.grid, 0);
    }
    const bool aligned = rows % WORD == 0;  // then words are put in order once, in the planes
    const Planes<DIGITS> planes(dy, border, in_place ? Reading::IN_PLACE : Reading::COPIED, aligned ? Layout::BY_K : Layout::PLAIN, a.bytes,
                                a.threads);

    for (int64_t remainder = 0; remainder < classes; ++remainder) {
        const Class c(a, remainder / w.stride_w, remainder % w.stride_w);
        if (a.batch * c.grid.height * c.grid.width == 0) continue;
        // A class without taps keeps one step of zeros: its pixels are 0, or NaN with their sample.
        const int64_t steps = ceil_div(c.count * size.tap_length, DEPTH_STEP);
        const int64_t depth = (steps > 0 ? steps : 1) * DEPTH_STEP, part = depth < 4 * LONGEST ? depth : 4 * LONGEST;
        const Cut cut(channels, PANEL_BYTES, part, Patches<DIGITS>::positions(planes, c.grid), a.threads);
        parallel_for(a.threads, w.groups * cut.pieces, [&](int64_t task) {
            const int64_t group = task / cut.pieces, piece = task % cut.pieces;
            const int64_t lane = cut.lane(piece), lanes = cut.lanes(piece), channel = group * channels + lane;
            const int64_t end = cut.vector(piece) + cut.vectors(piece);
            Patches<DIGITS> patches(planes, c.taps(size, group), c.grid, 0, depth,
                                    aligned ? Layout::PLAIN : Layout::BY_K);
            Scratch<uint32_t> panel(cut.blocks * BLOCK * part / 4);
            Scratch<int64_t> sums(depth > part ? cut.blocks * BLOCK * MOST_VECTORS : 0);
            const Result dx = a.dx + channel * (a.out_channels_last ? 1 : pixels);
            ToPlanes to_planes(a.out_channels_last ? 0 : lanes, dx, pixels);
            Tiles tiles;
            int64_t made = -1;  // where what the panel holds begins
            for (int64_t from = cut.vector(piece); from < end; from += MOST_VECTORS) {
                patches.read(from, end);
                if (patches.count == 0) continue;
                int64_t places[MOST_VECTORS], corrections[MOST_VECTORS];
                double powers[MOST_VECTORS];
                for (int v = 0; v < patches.count; ++v) {
                    const int64_t sample = patches.sample[v];
                    const int64_t pixel = (c.first_h + patches.row[v] * w.stride_h) * a.width + c.first_w +
                                          patches.column[v] * w.stride_w;
                    if (!SIGNED_BYTES) corrections[v] = zero * patches.sums[v];
                    powers[v] = planes.powers[sample];
                    places[v] = sample * pixels * all_channels + pixel * (a.out_channels_last ? all_channels : 1);
                }
                Output out = {dx, places, 0, 0, int(lanes), powers, false, corrections, a.scale, nullptr,
                              depth > part ? sums.data : nullptr, true, true,
                              small_sums(c.count * rows, s.weight, a.bytes)};
                if (!a.out_channels_last) {
                    out.y = to_planes.add(places, patches.count);
                    out.places = nullptr;
                    out.vector_stride = to_planes.pitch;
                }
                for (int64_t first = 0; first < depth; first += part) {
                    const int64_t here = depth - first < part ? depth - first : part;
                    if (made != first) make_panel(weights, c, size, group, lane, lanes, first, here, panel);
                    made = first;
                    out.first = first == 0;
                    out.last = first + here == depth;
                    multiply_blocks<DIGITS>(tiles, patches.vectors(first), patches.count, panel, here / 4, out);
                }
            }
            to_planes.write();
        });
    }
}

template <int DIGITS>
void grad_input(const Conv2dGradInput &a) {
    const int64_t channels = a.source.fan / (a.window.kernel_h * a.window.kernel_w) * a.window.groups;
    const Images dy = {a.dy, a.batch, a.source.rows, a.out_height, a.out_width, a.channels_last};
    for (int64_t first = 0, step = samples_at_once(dy, DIGITS, a.threads); first < a.batch; first += step) {
        Conv2dGradInput some = a;
        some.dy = a.dy + first * a.source.rows * dy.pixels();
        some.dx = a.dx + first * channels * a.height * a.width;
        some.batch = a.batch - first < step ? a.batch - first : step;
        grad_input_of_some<DIGITS>(some);
    }
}

}  // namespace

void conv2d_grad_input(const Conv2dGradInput &a) {
    const int64_t channels = a.source.fan / (a.window.kernel_h * a.window.kernel_w) * a.window.groups;
    want_large_pages(a.dx.data, a.batch * channels * a.height * a.width * a.dx.size());
    if (digits_for(a.bytes) == 3) return grad_input<3>(a);
    grad_input<2>(a);
}

}  // namespace slt::SLT_ISA
