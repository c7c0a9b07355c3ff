// Conv2d grad_input: a convolution (convolution.h) whose positions are the pixels of dx, and whose sum runs over output
// channels and taps.
//
// With strides, a pixel is reached by some taps only: pixels of the same remainder (h + padding) mod stride share
// theirs, so each remainder is a convolution of dy of its own, with stride 1 and without a tap wasted. dy becomes planes
// as x does in the forward product. Panels hold, tap by tap, the columns of the weight (transposed.h) in which the channels
// lie.
#include "cpu/conv/convolution.h"
#include "cpu/conv/image_bf16.h"
#include "cpu/conv/image_int8.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

constexpr int64_t TAP_ROWS = 4;  // a quad

struct Sizes {
    int64_t taps, channels, rows;  // of the kernel; of a group
    int64_t tap_length;            // rows of a group in whole quads
};

// The pixels of one remainder, and the taps that reach them.
struct Remainder {
    Scratch<int64_t> tap, down, right;  // tap number; where it reads dy
    int64_t count = 0;
    const int64_t first_h, first_w;  // pixel of position (0, 0)
    Grid grid;

    // That of a pixel, the first one that has it.
    Remainder(const Conv2dGradInput &a, int64_t first_h, int64_t first_w)
        : tap(a.window.kernel_h * a.window.kernel_w), down(a.window.kernel_h * a.window.kernel_w),
          right(a.window.kernel_h * a.window.kernel_w), first_h(first_h), first_w(first_w) {
        const Window &w = a.window;
        // The row of dy that tap 0 would read.
        const int64_t from_h = (first_h + w.padding_h) / w.stride_h, from_w = (first_w + w.padding_w) / w.stride_w;
        for (int64_t kh = 0; kh < w.kernel_h; ++kh)
            for (int64_t kw = 0; kw < w.kernel_w; ++kw) {
                const int64_t h = kh * w.dilation_h, v = kw * w.dilation_w;
                if ((first_h + w.padding_h - h) % w.stride_h || (first_w + w.padding_w - v) % w.stride_w) continue;
                tap[count] = kh * w.kernel_w + kw;
                down[count] = from_h - h / w.stride_h;
                right[count++] = from_w - v / w.stride_w;
            }
        grid = {ceil_div(a.dx.height - first_h, w.stride_h), ceil_div(a.dx.width - first_w, w.stride_w), 1, 1};
    }

    Taps taps(const Sizes &size) const { return {count, down, right, size.tap_length, 0, size.rows}; }
};

// The weights of [from, from + depth) of a remainder's sums, for channels [channel, channel + lanes) of a group. The sum
// runs over taps, and inside a tap over rows.
template <class Product>
void make_panel(const Weights &weights, const Remainder &c, const Sizes &size, int64_t group, int64_t channel,
                int64_t lanes, int64_t from, int64_t depth, uint32_t *panel) {
    constexpr int64_t rows_a_lane = 4 / Product::BYTES;
    const int64_t pitch = depth / rows_a_lane * LANES;  // of a group of lanes
    const int64_t past = c.count * size.tap_length - from;
    if (past < depth)  // zeros of the vectors meet these: they must be numbers
        for (int64_t g = 0; g < ceil_div(lanes, LANES); ++g)
            for (int64_t i = greatest(past, 0); i < depth; i += rows_a_lane)
                store(panel + g * pitch + i / rows_a_lane * LANES, U32{});
    for (int64_t t = 0; t < c.count; ++t) {
        const int64_t k = weights.frame.skipped * WORD + c.tap[t] * size.channels + channel;
        const int64_t start = t * size.tap_length - from;  // of the tap, in this depth
        const int64_t first_row = greatest(-start, 0) / COLUMN_ROWS * COLUMN_ROWS, end_row = least(size.rows, depth - start);
        for (int64_t row = first_row; row < end_row; row += COLUMN_ROWS) {
            const int64_t depth_at = start + row;
            for (int64_t call = k / CALL; call * CALL < k + lanes; ++call) {
                alignas(64) uint32_t columns[COLUMN_ROWS / rows_a_lane * CALL];
                Product::make_columns(weights, group * size.rows + row, call, columns);
                const int64_t first = greatest(call * CALL, k);
                const int64_t end = least((call + 1) * CALL, k + lanes);
                for (int64_t i = 0; i < COLUMN_ROWS && row + i < size.tap_length; i += rows_a_lane) {
                    if (depth_at + i < 0 || depth_at + i >= depth) continue;
                    const uint32_t *column = columns + i / rows_a_lane * CALL - call * CALL;
                    uint32_t *out = panel + (depth_at + i) / rows_a_lane * LANES;
                    for (int64_t at = first, n; at < end; at += n) {  // up to the end of a group
                        const int64_t lane = at - k, room = LANES - lane % LANES;
                        n = least(end - at, room);
                        uint32_t *to = out + lane / LANES * pitch + lane % LANES;
                        n == LANES ? memcpy(to, column + at, sizeof(U32)) : memcpy(to, column + at, size_t(n) * 4);
                    }
                }
            }
        }
    }
}

template <class Planes>
void grad_input(const Conv2dGradInput &a, int threads) {
    typedef typename Planes::Product Product;
    const Source &s = a.source;
    const Window &w = a.window;
    const Weights weights(s, a.mask);
    const int64_t taps = w.kernel_h * w.kernel_w, channels = s.fan / taps, rows = s.rows / w.groups;
    const Sizes size = {taps, channels, rows, ceil_div(rows, TAP_ROWS) * TAP_ROWS};
    // Their first pixels.
    const int64_t remainders_h = least(w.stride_h, a.dx.height), remainders_w = least(w.stride_w, a.dx.width);
    Border border;
    bool in_place = true;
    for (int64_t i = 0; i < remainders_h * remainders_w; ++i) {
        const Remainder c(a, i / remainders_w, i % remainders_w);
        border.include(a.dy, c.taps(size), c.grid);
        in_place = in_place && border.pays_in_place(a.dy, c.taps(size), c.grid, 0, Planes::TILE);
    }
    const Reading reading = in_place ? Reading::IN_PLACE : Reading::COPIED;
    const bool whole = rows % WORD == 0;  // words, put in order once, in the planes
    const int64_t step = samples_at_once<Planes>(a.dy, border, reading, threads);
    for (int64_t first = 0; first < a.dy.samples; first += step) {
        const Planes planes(a.dy.part(first, step), border, reading, Layout::BYTE_QUADS, whole, a.digits, threads);
        for (int64_t i = 0; i < remainders_h * remainders_w; ++i) {
            const Remainder c(a, i / remainders_w, i % remainders_w);
            Convolution convolution;
            convolution.grid = c.grid;
            convolution.taps = c.taps(size);
            convolution.groups = w.groups;
            convolution.lanes = channels;
            convolution.depth = ceil_div(c.count * size.tap_length, Planes::TILE) * Planes::TILE;
            convolution.y = a.dx.part(first, step);
            convolution.first = c.first_h * a.dx.width + c.first_w;
            convolution.step_down = w.stride_h;
            convolution.step_right = w.stride_w;
            convolution.scale = Product::scale_of(weights, a.scale);
            convolution.zero = zero_of(s.weight);
            convolution.small = small_sums(c.count * rows, s.weight, a.digits);
            convolution.threads = threads;
            convolve(planes, convolution, [&](int64_t group, int64_t lane, int64_t lanes, int64_t from, int64_t depth,
                                              uint32_t *panel) {
                make_panel<Product>(weights, c, size, group, lane, lanes, from, depth, panel);
            });
        }
    }
}

}  // namespace

void conv2d_grad_input(const Conv2dGradInput &a, int threads) {
    const int64_t taps = a.window.kernel_h * a.window.kernel_w;
    want_large_pages(a.dx.data.data, a.dx.bytes());
#if defined(SLT_AMX)
    const int64_t most_depth = taps * (a.source.rows / a.window.groups + TAP_ROWS);
    if (a.dy.data.type == Type::BFLOAT16 && a.dx.data.type == a.dy.data.type && most_depth <= Bfloat16Product::LONGEST_DEPTH)
        return grad_input<Bfloat16Planes>(a, threads);
#endif
    with_digits(a.source.weight, a.source.fan / taps, a.dx.samples * a.dx.pixels(), a.digits,
                [&](auto digits) { grad_input<DigitPlanes<digits>>(a, threads); });
}

}  // namespace slt::SLT_ISA
